"""Everything else that golden files ask for, written once more in plain NumPy; gradients by the complex step."""

import math

import numpy as np
from golden_reading import by_layer, continued, gelu, layernorm, log_softmax, softmax, whole

from helpers import directional_error
from minicompress.verification.golden.folder import CASES, given_and_asked, tensor_error
from minicompress.verification.oracles import complex_step


def attention(i):
    """One query at a time: its scores on the past and on its own keys up to its own place."""
    (B, H, T, D), P = i["q"].shape, i["past_k"].shape[2] if "past_k" in i else 0
    out = np.zeros((B, H, T, D), np.result_type(*(x for x in i.values())))
    for b, h, t in np.ndindex(B, H, T):
        keys, values, beta = list(i["k"][b, h, : t + 1]), list(i["v"][b, h, : t + 1]), np.zeros(P + t + 1)
        if P:
            row = b % len(i["past_k"])
            keys, values = [*i["past_k"][row, h], *keys], [*i["past_v"][row, h], *values]
            if "beta" in i:
                beta = np.concatenate([i["beta"][row, h], np.zeros(t + 1)])
        scores = np.array([i["q"][b, h, t] @ key / math.sqrt(D) for key in keys]) + beta
        if "key_mask" in i:
            scores[i["key_mask"][b, : P + t + 1] == 0] = -np.inf
        out[b, h, t] = softmax(scores) @ np.array(values)
    return out


def lstm(i, reverse=False):
    """One step of one row after another."""
    x, (B, T, _), h = i["x"], i["x"].shape, i["weight_hh"].shape[1]
    sigmoid, out = lambda z: 1 / (1 + np.exp(-z)), np.zeros((B, T, h), np.result_type(*i.values()))
    for b in range(B):
        state = cell = np.zeros(h)
        for t in reversed(range(T)) if reverse else range(T):
            z = i["weight_ih"] @ x[b, t] + i["bias_ih"] + i["weight_hh"] @ state + i["bias_hh"]
            cell = sigmoid(z[h : 2 * h]) * cell + sigmoid(z[:h]) * np.tanh(z[2 * h : 3 * h])
            out[b, t] = state = sigmoid(z[3 * h :]) * np.tanh(cell)
    return out


def relu(x):
    return np.where(x.real > 0, x, 0)


def kl(i, temperature):
    p, q = (log_softmax(i[name] / temperature) for name in ("teacher_logits", "logits"))
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def both_sides(i):
    """p of the teacher, log p and log q at the file's temperature, and the temperature's square."""
    T = i["config.temperature"]
    p, q = (log_softmax(i[name] / T) for name in ("teacher_logits", "logits"))
    return np.exp(p), p, q, T**2


def reverse_kl(i):
    _, p, q, square = both_sides(i)
    return square * (np.exp(q) * (q - p)).sum(-1)


def jensen_shannon(i):
    mass, p, q, square = both_sides(i)
    m = np.log((mass + np.exp(q)) / 2)
    return square * (mass * (p - m) + np.exp(q) * (q - m)).sum(-1) / 2


def top_k(i, kind):
    """Row by row, over the k tokens that the teacher holds likeliest."""
    found = []
    for mass, p, q in zip(*both_sides(i)[:3], strict=True):
        top = np.argsort(-mass.real)[: int(i["config.k"])]
        rest = [n for n in range(len(p)) if n not in top]
        p, q = ([*x[top], np.log(np.exp(x[rest]).sum())] if kind == "tail" else list(x[top]) for x in (p, q))
        if kind == "renormalised":
            p, q = (np.array(x) - np.log(np.exp(x).sum()) for x in (p, q))
        found.append(sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    return i["config.temperature"] ** 2 * np.array(found)


def linear(x, tree, name):
    return x @ tree[f"{name}.weight"] + tree[f"{name}.bias"]


def both_ways(i):
    x = i["raw.embedding.weight"][None]
    for layer in "01":
        part = lambda way, x=x, layer=layer: {"x": x} | {
            n: i[f"raw.lstm_head.{layer}.{way}.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
        x = np.concatenate([lstm(part("onward")), lstm(part("reverse"), reverse=True)], axis=2)
    return linear(relu(linear(x[0], i, "raw.mlp_head.0")), i, "raw.mlp_head.2")


def three_layers(i):
    x = i["raw.embedding.weight"]
    for n in (0, 2):
        x = relu(linear(x, i, f"raw.mlp_head.{n}"))
    return linear(x, i, "raw.mlp_head.4")


def two_layers(i):
    return linear(np.tanh(linear(i["raw.embedding.weight"], i, "raw.transform.0")), i, "raw.transform.2")


OUT = {  # what a file's `out`, or its `slots`, should be, by the beginning of the file's name
    "layer-embedding": lambda i: np.array([[i["weight"][n] for n in row] for row in i["ids"]]),
    "layer-linear": lambda i: np.einsum("bti,io->bto", i["x"], i["weight"]) + i.get("bias", 0),
    "layer-layernorm": lambda i: layernorm(i["x"], i["weight"], i["bias"], i["config.eps"]),
    "layer-gelu": lambda i: gelu(i["x"]),
    "layer-relu": lambda i: relu(i["x"]),
    "layer-tanh": lambda i: (np.exp(2 * i["x"]) - 1) / (np.exp(2 * i["x"]) + 1),
    "layer-softmax": lambda i: softmax(i["x"]),
    "layer-attention": attention,
    "layer-lstm-reverse": lambda i: lstm(i, reverse=True),
    "layer-lstm": lstm,
    "loss-cross-entropy": lambda i: np.array([-log_softmax(row)[y] for row, y in zip(i["logits"], i["targets"], strict=True)]),
    "loss-kl": lambda i: kl(i, i["config.temperature"]),
    "loss-reverse-kl": reverse_kl,
    "loss-jensen-shannon": jensen_shannon,
    "loss-top-k-renormalised": lambda i: top_k(i, "renormalised"),
    "loss-top-k-tail": lambda i: top_k(i, "tail"),
    "loss-top-k": lambda i: top_k(i, "truncated"),
    "bake-direct": lambda i: i["raw.slots"],
    "layer-lora": lambda i: i["weight"] + i["config.scale"] * np.einsum("ir,ro->io", i["a"], i["b"]),
    "bake-low-rank-kv": lambda i: i["raw.base"] + by_layer(i["raw.a"] @ i["raw.b"], 2, 2),
    "bake-low-rank": lambda i: i["raw.base"] + i["raw.a"] @ i["raw.b"],
    "bake-cartridge": lambda i: np.concatenate([i["raw.frozen"], i["raw.slots"]], axis=3),
    "bake-prefix-mlp": lambda i: by_layer(two_layers(i), int(i["config.n_layer"]), int(i["config.n_head"])),
    "bake-ptuning-mlp": three_layers,
    "bake-ptuning-lstm": both_ways,
}  # fmt: skip
FROZEN = ("raw.base", "raw.frozen")


def beginning(name):
    return next(start for start in OUT if name.startswith(start))


def asked_of_a_layer(name, i):
    """-> what the file asks for beside gradients, and the function whose slope they are."""
    f = lambda i: OUT[beginning(name)](i)
    found = {"slots" if name.startswith("bake") else "out": f(i)}
    if "teacher_logits" in i:
        found["teacher_log_probs"] = log_softmax(i["teacher_logits"] / i["config.temperature"])
    return found, lambda i: (f(i) * i["dslots" if name.startswith("bake") else "dout"]).sum().reshape(1)


def asked_of_a_model(config, i):
    """The same of a trace. Nudges of 0 stand among the inputs, so that the stream has a gradient as well."""
    found = whole(i, config)
    names = [name for name in found if name.startswith("hidden.") or name == "ln_f"]
    nudge = {f"nudge {name}": np.zeros(found[name].shape) for name in names}
    f = lambda i: np.reshape(whole(i, config, {n.removeprefix("nudge "): x for n, x in i.items() if n in nudge})["loss"], 1)
    return found, f, nudge


def source_of(gradient, i):
    """The name of what a gradient is of."""
    name = gradient.removeprefix("grad.")
    return next(n for n in (f"nudge {name}", name, {"beta": "prompt.beta"}.get(name)) if n in i)


def trace_error(name, given, asked):
    """The largest error of any tensor of a layer's file, or of a trace; ∞ where one has no second reading."""
    config = CASES[name].facts
    if name.startswith(("layer", "loss", "bake")):
        (found, f), i = asked_of_a_layer(name, given), given
    else:
        found, f, nudge = asked_of_a_model(config, given)
        i = given | nudge
        if "raw.embedding.weight" in given:  # slots that are made of raw arrays, as if they were given
            slots = {"prompt": found["prompt"]} | {n: x for n, x in i.items() if not n.startswith("raw.")}
    rng, errors = np.random.default_rng(0), [tensor_error(asked[n], np.asarray(x)) for n, x in found.items()]
    errors += [np.inf] * len({n for n in asked if not n.startswith("grad.")} ^ found.keys())
    for n in (n for n in asked if n.startswith("grad.")):
        at = slots if n == "grad.prompt" and "prompt" not in i else i
        errors.append(slope_error(f, at, source_of(n, at), asked[n], rng))
    return max(errors)


def slope_error(f, i, name, gradient, rng):
    x = i[name]
    if name in FROZEN:
        return np.abs(gradient).max()
    there = np.isfinite(x)  # log-masses of -∞ stay what they are, and have no gradient

    def put(some):
        whole = x.astype(some.dtype)
        whole[there] = some
        return whole

    absent = np.abs(gradient[~there]).max(initial=0)
    return max(absent, directional_error(complex_step, lambda s: f(i | {name: put(s)}), x[there], gradient[there], 1.0, rng))


# Steps, and decoding.


def adam(p, g, m, v, t, fact):
    """One step of one array, in the paper's own order."""
    m, v = fact["beta1"] * m + (1 - fact["beta1"]) * g, fact["beta2"] * v + (1 - fact["beta2"]) * g**2
    moved = (m / (1 - fact["beta1"] ** t)) / (np.sqrt(v / (1 - fact["beta2"] ** t)) + fact["eps"])
    decay = fact["weight_decay"] * p if p.ndim > 1 else 0
    return p - fact["lr"] * (moved + decay), m, v


def walk(arrays, gradients, fact, steps):
    """gradients(arrays, step) -> {name: array}. -> {after.*, adam.m.*, adam.v.*}."""
    m, v = ({name: np.zeros(x.shape) for name, x in arrays.items()} for _ in "mv")
    for step in range(steps):
        g = gradients(arrays, step)
        moved = {n: adam(arrays[n], g[n], m[n], v[n], step + 1, fact) for n in arrays}
        arrays, m, v = ({n: three[part] for n, three in moved.items()} for part in range(3))
    return {f"{kind}.{n}": x for kind, tree in (("after", arrays), ("adam.m", m), ("adam.v", v)) for n, x in tree.items()}


def clipped(g, limit):
    norm = math.sqrt(sum(float(x @ x) for x in (x.ravel() for x in g.values())))
    return norm, {n: x * min(1.0, limit / norm) for n, x in g.items()}


def stepped(name, i):
    """Gradients number by number, by the complex step."""
    fact, names = CASES[name].facts, ["prompt"] if "prompt" in i else [n for n in i if n.startswith("model.")]
    losses, norms = [], []

    def gradients(arrays, step):
        f = lambda some: whole(i | arrays | some, fact)["loss"]
        losses.append(f({}))
        g = {n: np.zeros(x.shape) for n, x in arrays.items()}
        for n, x in arrays.items():
            for place in np.ndindex(x.shape):
                at = x.astype(complex)
                at[place] += 1e-30j
                g[n][place] = f({n: at}).imag / 1e-30
        norm, g = clipped(g, fact["clip"])
        norms.append(norm)
        return g

    found = walk({n: i[n] for n in names}, gradients, fact, fact["steps"])
    return found | {"steps.loss": np.array(losses), "steps.norm": np.array(norms)}


def golden_error(name):
    """How far the numbers that would be released are from their second reading."""
    given, asked = given_and_asked(name, CASES[name])
    fact = CASES[name].facts
    if name == "step-adamw":
        of = lambda start: {n.removeprefix(start): x for n, x in given.items() if n.startswith(start)}
        found = walk(of("before."), lambda _, step: {n: x[step] for n, x in of("gradient.").items()}, fact, 3)
    elif name.startswith("step-clip"):
        norm, g = clipped({n: given[f"gradient.{n}"] for n in "ab"}, fact["limit"])
        found = {"norm": np.array(norm)} | {f"clipped.{n}": x for n, x in g.items()}
    elif name.startswith("step"):
        found = stepped(name, given)
    elif name.startswith("decode"):
        found = continued(given, fact, fact["tokens"])
    else:
        return trace_error(name, given, asked)
    return max([tensor_error(asked[n], found[n]) for n in asked] + [np.inf] * len(asked.keys() ^ found.keys()))
