"""A whole GPT-2 from what a golden file gives, one row and one head after another; nothing of the source is used.

Complex weights and slots are welcome. `nudge` adds to the residual stream of the tokens, so that its gradient can be
asked for as that of any input.
"""

import math

import numpy as np


def layernorm(x, weight, bias, eps):
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d**2).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    top = x.real.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def by_layer(flat, L, H):
    """PEFT's rows (P, 2 L C) -> keys or values by [layer][kind][head]: (P, D)."""
    D = flat.shape[1] // (2 * L * H)
    part = lambda layer, kind, head: flat[:, ((2 * layer + kind) * H + head) * D :][:, :D]
    return np.array([[[part(layer, kind, head) for head in range(H)] for kind in (0, 1)] for layer in range(L)])


def one_head(q, k, v, P, beta):
    """q (T, D), k, v (P + T, D), beta (P,) or None -> out (T, D), probabilities (T, P + T)."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    if beta is not None:
        scores = scores + np.concatenate([beta, np.zeros(len(k) - P)])
    for t in range(len(q)):
        scores[t, P + t + 1 :] = -np.inf
    return softmax(scores) @ v, softmax(scores)


class Reader:
    """The weights that a file gives under one name, and how they are to be used."""

    def __init__(self, given, config, name="model"):
        self.given, self.config, self.name = given, config, name
        self.H, self.L, self.eps = config["n_head"], config["n_layer"], config["layer_norm_epsilon"]

    def weight(self, name):
        return self.given[f"{self.name}.{name}"]

    def linear(self, x, name):
        return x @ self.weight(f"{name}.weight") + self.weight(f"{name}.bias")

    def norm(self, x, name):
        return layernorm(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), self.eps)

    def head(self, x):
        return x @ self.weight("wte.weight" if self.config["tie_word_embeddings"] else "lm_head.weight").T

    def row(self, ids, prompt=None, beta=None, nudge=None):
        """-> {name: tensor} of one row's own tokens."""
        carrier, nudge = self.config["carrier"] if prompt is not None else "none", nudge or {}
        wte, wpe, start = self.weight("wte.weight"), self.weight("wpe.weight"), self.config["start"] if carrier != "none" else 0
        x = np.array([prompt[-1 - i] if i < 0 else wte[i] for i in ids]) + wpe[start : start + len(ids)]
        P = len(prompt) if carrier == "embeddings" else prompt.shape[1] if carrier == "hidden" else 0
        if carrier == "embeddings":
            x = np.concatenate([prompt + wpe[:P], x])
        kv, found = by_layer(prompt, self.L, self.H) if carrier == "kv" else None, {}
        for layer in range(self.L):
            tokens = x[P if carrier == "embeddings" or layer else 0 :] + nudge.get(f"hidden.{layer}", 0)
            front = prompt[layer] if carrier == "hidden" else x[:P] if carrier == "embeddings" else x[:0]
            past = (*kv[layer], None if beta is None else beta[layer]) if kv is not None else None
            x = self.block(np.concatenate([front, tokens]), f"h.{layer}", layer, P, past, found)
        x = np.concatenate([x[:P], x[P:] + nudge.get(f"hidden.{self.L}", 0)])
        found[f"hidden.{self.L}"], states = x[P:], self.norm(x, "ln_f")
        found["ln_f"] = states[P:] + nudge.get("ln_f", 0)
        found["logits"] = self.head(found["ln_f"])
        if carrier == "embeddings":
            found["first_logits"] = self.head(states[P - 1])
        return found

    def block(self, x, name, layer, P, past, found):
        C, H = x.shape[1], self.H
        normed = self.norm(x, f"{name}.ln_1")
        parts = self.linear(normed, f"{name}.attn.c_attn")
        heads = [[parts[:, kind * C + h * C // H :][:, : C // H] for h in range(H)] for kind in range(3)]
        before = 0 if past is None else len(past[0][0])
        outs, tables, keys, values = [], [], [], []
        for h in range(H):
            q, k, v, beta = heads[0][h], heads[1][h], heads[2][h], None
            if past is not None:
                k, v = np.concatenate([past[0][h], k]), np.concatenate([past[1][h], v])
                beta = None if past[2] is None else past[2][h]
            out, probs = one_head(q, k, v, before, beta)
            for each, one in zip((outs, tables, keys, values), (out, probs, k, v), strict=True):
                each.append(one)
        attended = np.concatenate(outs, axis=1)
        middle = x + self.linear(attended, f"{name}.attn.c_proj")
        second = self.norm(middle, f"{name}.ln_2")
        wide = self.linear(second, f"{name}.mlp.c_fc")
        rows = {"hidden": x, "ln_1": normed, "attended": attended, "middle": middle, "ln_2": second, "fc": wide, "gelu": gelu(wide)}
        found |= {f"{n}.{layer}": value[P:] for n, value in rows.items()}
        found |= {f"query.{layer}": np.array(heads[0])[:, P:], f"attention.{layer}": np.array(tables)[:, P:]}
        found |= {f"key.{layer}": np.array(keys), f"value.{layer}": np.array(values)}
        return middle + self.linear(gelu(wide), f"{name}.mlp.c_proj")


def rows_of(given):
    return [list(map(int, row[:n])) for row, n in zip(given["tokens"], given["lengths"], strict=True)]


def prompt_of(given, config):
    """As `prompt` is laid out: given, or baked from prefix tuning's raw arrays."""
    if "raw.embedding.weight" in given:
        x = np.tanh(given["raw.embedding.weight"] @ given["raw.transform.0.weight"] + given["raw.transform.0.bias"])
        return x @ given["raw.transform.2.weight"] + given["raw.transform.2.bias"]
    return given.get("prompt")


def expected(given, config):
    """What the teacher expects of token t of each row: {(row, t): log-probabilities}; {} where there is none."""
    if "context" not in given:
        return {}
    real = {name: x.real if np.iscomplexobj(x) else x for name, x in given.items()}
    reader = Reader(real, config, "teacher" if "teacher.wte.weight" in given else "model")
    context, found = list(map(int, given["context"])), {}
    for b, row in enumerate(rows_of(given)):
        logits = reader.row(context + row)["logits"]
        for t in range(len(row)):
            found[b, t] = log_softmax(logits[len(context) + t - 1] / config["temperature"])
    return found


def whole(given, config, nudge=None):
    """{name: tensor} that a trace has of the forward pass, padded with 0."""
    reader, prompt, rows = Reader(given, config), prompt_of(given, config), rows_of(given)
    cut = lambda b, n: {name: x[b, :n] for name, x in (nudge or {}).items()}
    read = [reader.row(row, prompt, given.get("prompt.beta"), cut(b, len(row))) for b, row in enumerate(rows)]
    found, T = {}, max(map(len, rows))
    for name in read[0]:
        shape = np.max([one[name].shape for one in read], axis=0)
        found[name] = np.zeros((len(rows), *shape), np.result_type(*(one[name] for one in read)))
        for b, one in enumerate(read):
            found[name][b][tuple(map(slice, one[name].shape))] = one[name]
    if "raw.embedding.weight" in given:
        found["prompt"] = prompt
    return found | costs(given, config, read, T)


def costs(given, config, read, T):
    teacher, heat = expected(given, config), config["temperature"]
    places = [(b, t, int(y)) for b, row in enumerate(given["labels"]) for t, y in enumerate(row) if y >= 0]
    losses = np.zeros((len(read), T), complex)
    told = np.zeros((len(read), T, read[0]["logits"].shape[-1]))
    for b, t, y in places:
        logits = read[b]["logits"][t - 1] if t else read[b]["first_logits"]
        if teacher:
            p, q = teacher[b, t], log_softmax(logits / heat)
            losses[b, t], told[b, t] = heat**2 * (np.exp(p) * (p - q)).sum(), p
        else:
            losses[b, t] = -log_softmax(logits)[y]
    found = {"losses": losses, "loss": losses.sum() / len(places)}
    if not any(np.iscomplexobj(one["logits"]) for one in read):
        found = {name: x.real for name, x in found.items()}
    return found | ({"teacher_log_probs": told} if teacher else {})


def continued(given, config, tokens):
    """The likeliest next token, again and again, every row read anew each time."""
    reader, prompt, written, logits = Reader(given, config), prompt_of(given, config), [], []
    for row in rows_of(given):
        n, steps = len(row), []
        for _ in range(tokens):
            steps.append(reader.row(row, prompt)["logits"][-1])
            row = [*row, int(steps[-1].argmax())]
        written.append(row[n:])
        logits.append(steps)
    return {"decoded": np.array(written), "decoded_logits": np.array(logits)}
