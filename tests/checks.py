"""Every check as a function that returns a relative error, so that the tests and the planted bugs share them.

Layers are reached through their modules, at the time of the call: a planted bug is seen.
"""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import safe_open

from helpers import (
    TINY,
    directional_error,
    log_normalised,
    prompt_losses,
    prompt_step,
    random_ids,
    random_params,
    teacher_objective,
    token_objective,
    tree_errors,
    zeros_like,
)
from minicompress.gpt2 import Config, embed, forward, logits
from minicompress.gpt2.model import positions
from minicompress.layers import activations, attention, divergences, embedding, gelu, layernorm, linear, losses, lstm
from minicompress.trees import unflatten
from minicompress.verification.oracles import complex_step, relative_error

# Layers. A case draws its inputs and gives: inputs, f(inputs) -> output, gradients(inputs, dout) -> as inputs.


def linear_case(rng, B, T, P, H, D):
    inputs = {"x": normal(rng, B, T, D), "weight": normal(rng, D, H * D), "bias": normal(rng, H * D)}
    return inputs, *with_params(linear.linear, linear.linear_backward)


def linear_without_bias_case(rng, B, T, P, H, D):
    inputs = {"x": normal(rng, B, T, D), "weight": normal(rng, D, H * D)}
    return inputs, *with_params(linear.linear, linear.linear_backward)


def layernorm_case(rng, B, T, P, H, D):
    C = H * D
    x = 0.1 * normal(rng, B, T, C)  # so small that eps counts
    inputs = {"x": x, "weight": normal(rng, C), "bias": normal(rng, C)}
    return inputs, *with_params(layernorm.layernorm, layernorm.layernorm_backward)


def gelu_case(rng, B, T, P, H, D):
    def f(i):
        return gelu.gelu(i["x"])[0]

    def gradients(i, dout):
        return {"x": gelu.gelu_backward(dout, gelu.gelu(i["x"])[1])}

    return {"x": 2 * normal(rng, B, T, D)}, f, gradients


def relu_case(rng, B, T, P, H, D):
    def gradients(i, dout):
        return {"x": activations.relu_backward(dout, activations.relu(i["x"])[1])}

    x = normal(rng, B, T, D)
    x += 0.1 * np.sign(x)  # no finite difference crosses the corner
    return {"x": x}, lambda i: activations.relu(i["x"])[0], gradients


def tanh_case(rng, B, T, P, H, D):
    def gradients(i, dout):
        return {"x": activations.tanh_backward(dout, activations.tanh(i["x"])[1])}

    return {"x": normal(rng, B, T, D)}, lambda i: activations.tanh(i["x"])[0], gradients


def lstm_case(rng, B, T, P, H, D, reverse=False):
    inputs = {"x": normal(rng, B, T, D), "weight_ih": normal(rng, 4 * H, D), "weight_hh": normal(rng, 4 * H, H)}
    inputs |= {name: normal(rng, 4 * H) for name in ("bias_ih", "bias_hh")}
    return inputs, *with_params(partial(lstm.lstm, reverse=reverse), lstm.lstm_backward)


def embedding_case(rng, B, T, P, H, D):
    ids = rng.integers(P + 1, size=(B, T))

    def f(i):
        return embedding.embedding(ids, i["weight"])[0]

    def gradients(i, dout):
        grads = zeros_like(i)
        embedding.embedding_backward(dout, embedding.embedding(ids, i["weight"])[1], grads)
        return grads

    return {"weight": normal(rng, P + 1, D)}, f, gradients


def attention_case(rng, B, T, P, H, D, past_rows=None, masked=False, masses=False):
    """past_rows: None without a past, 1 where one serves all rows, "each" for a past per row; masses: with β."""
    inputs = {name: normal(rng, B, H, T, D) for name in "qkv"}
    if past_rows:
        rows = B if past_rows == "each" else 1
        inputs |= {name: normal(rng, rows, H, P, D) for name in ("past_k", "past_v")}
        inputs |= {"beta": normal(rng, rows, H, P)} if masses else {}
    S = T + (P if past_rows else 0)
    key_mask = None
    if masked:
        key_mask = rng.random((B, S)) < 0.6
        key_mask[:, S - T] = True  # each query sees something

    def run(i):
        past = tuple(i[name] for name in ("past_k", "past_v", "beta") if name in i) or None
        return attention.attention(i["q"], i["k"], i["v"], past, key_mask)

    def gradients(i, dout):
        *dqkv, dpast = attention.attention_backward(dout, run(i)[1])
        return dict(zip(i, [*dqkv, *(dpast or ())], strict=True))

    return inputs, lambda i: run(i)[0], gradients


def softmax_case(rng, B, T, P, H, D):
    def gradients(i, dout):
        return {"x": attention.softmax_backward(dout, attention.softmax(i["x"]))}

    return {"x": normal(rng, B, T, D)}, lambda i: attention.softmax(i["x"]), gradients


def cross_entropy_case(rng, B, T, P, H, D):
    targets = rng.integers(D, size=B * T)

    def gradients(i, dout):
        return {"logits": losses.cross_entropy_backward(dout, losses.cross_entropy(i["logits"], targets)[1])}

    return {"logits": normal(rng, B * T, D)}, lambda i: losses.cross_entropy(i["logits"], targets)[0], gradients


def kl_case(rng, B, T, P, H, D, temperature=1.0):
    teacher = log_normalised(rng, B * T, D)

    def run(i):
        return losses.kl_divergence(i["logits"], teacher, temperature)

    def gradients(i, dout):
        return {"logits": losses.kl_divergence_backward(dout, run(i)[1])}

    return {"logits": normal(rng, B * T, D)}, lambda i: run(i)[0], gradients


def divergence_case(rng, B, T, P, H, D, name="reverse_kl", **options):
    teacher = log_normalised(rng, B * T, H * D)
    options |= {"k": min(P, H * D)} if "top_k" in name else {}

    def run(i):
        return getattr(divergences, name)(i["logits"], teacher, **options)

    def gradients(i, dout):
        return {"logits": getattr(divergences, f"{name}_backward")(dout, run(i)[1])}

    return {"logits": normal(rng, B * T, H * D)}, lambda i: run(i)[0], gradients


def normal(rng, *shape):
    return rng.standard_normal(shape)


def with_params(layer, layer_backward):
    """f and gradients of a layer in the common form: x and params in, dx and grads out."""

    def gradients(i, dout):
        grads = zeros_like({name: a for name, a in i.items() if name != "x"})
        return {"x": layer_backward(dout, layer(**i)[1], grads), **grads}

    return lambda i: layer(**i)[0], gradients


def variant(case, **options):
    return lambda *args: case(*args, **options)


DIVERGENCES = {
    "reverse kl": "reverse_kl",
    "js": "jensen_shannon",
    "top-k kl": "top_k_kl",
    "top-k renormalised kl": "top_k_renormalised_kl",
    "top-k tail kl": "top_k_tail_kl",
}
LAYERS = {
    "linear": linear_case,
    "linear without bias": linear_without_bias_case,
    "layernorm": layernorm_case,
    "gelu": gelu_case,
    "relu": relu_case,
    "tanh": tanh_case,
    "lstm": lstm_case,
    "lstm, reverse": variant(lstm_case, reverse=True),
    "embedding": embedding_case,
    "attention": attention_case,
    "attention, masked": variant(attention_case, masked=True),
    "attention, shared past": variant(attention_case, past_rows=1),
    "attention, shared past, masked": variant(attention_case, past_rows=1, masked=True),
    "attention, past per row": variant(attention_case, past_rows="each"),
    "attention, past per row, masked": variant(attention_case, past_rows="each", masked=True),
    "attention, shared past, masses": variant(attention_case, past_rows=1, masses=True),
    "attention, shared past, masses, masked": variant(attention_case, past_rows=1, masses=True, masked=True),
    "attention, past per row, masses": variant(attention_case, past_rows="each", masses=True),
    "softmax": softmax_case,
    "cross-entropy": cross_entropy_case,
    "kl": kl_case,
    "kl at T = 0.5": variant(kl_case, temperature=0.5),
    "kl at T = 2": variant(kl_case, temperature=2.0),
    **{kind: variant(divergence_case, name=name) for kind, name in DIVERGENCES.items()},
    **{f"{kind} at T = 2": variant(divergence_case, name=name, temperature=2.0) for kind, name in DIVERGENCES.items()},
    "js at beta = 0.2": variant(divergence_case, name="jensen_shannon", beta=0.2),
}


def layer_error(name, oracle=complex_step, seed=0, B=2, T=4, P=3, H=2, D=3):
    """The worst gradient of one layer, under a random cotangent."""
    rng = np.random.default_rng(seed)
    inputs, f, gradients = LAYERS[name](rng, B, T, P, H, D)
    cotangent = rng.standard_normal(f(inputs).shape)
    return max(tree_errors(oracle, f, inputs, gradients(inputs, cotangent), cotangent, rng).values())


# The whole model.


def slots_error(objective=token_objective, oracle=complex_step, config=TINY, seed=0, P=4, B=3, T=5):
    """The gradient of a prompt's slots, through keys and values that serve all rows."""
    rng = np.random.default_rng(seed)
    params, slots, ids = random_params(config, rng), normal(rng, P, config.n_embd), random_ids(config, rng, B, T)
    cotangent = normal(rng, B * T)
    against = ids.reshape(-1) if objective is token_objective else log_normalised(rng, B * T, config.vocab_size)
    objective = objective(against, cotangent)
    _, dslots = prompt_step(params, config, slots, ids, objective)
    f = lambda s: prompt_losses(params, config, s, ids, objective)
    return directional_error(oracle, f, slots, dslots, cotangent, rng)


def weight_errors(config=TINY, oracle=complex_step, seed=0, P=4, B=3, T=5):
    """{name: error} of every weight's gradient, read behind a prompt."""
    rng = np.random.default_rng(seed)
    params, slots, ids = random_params(config, rng), normal(rng, P, config.n_embd), random_ids(config, rng, B, T)
    cotangent = normal(rng, B * T)
    objective = token_objective(ids.reshape(-1), cotangent)
    grads = zeros_like(params)
    prompt_step(params, config, slots, ids, objective, grads)
    f = lambda p: prompt_losses(p, config, slots, ids, objective)
    return tree_errors(oracle, f, params, grads, cotangent, rng)


def causal_error():
    """How much the last token changes what came before it."""
    rng = np.random.default_rng(0)
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 7)
    before, after = (hidden_of(params, TINY, i) for i in (ids, np.c_[ids[:, :-1], (ids[:, -1:] + 1) % 17]))
    return relative_error(after[:, :-1], before[:, :-1])


def hard_text_error():
    """Slots that are the embedding rows of hard text, against that text in front."""
    rng = np.random.default_rng(0)
    params, hard, ids = random_params(TINY, rng), random_ids(TINY, rng, 1, 4), random_ids(TINY, rng, 3, 5)
    slots = params["wte"]["weight"][hard[0]]
    _, past, _ = forward(params, TINY, slots[None] + positions(params, 4))
    soft, _, _ = forward(params, TINY, embed(params, ids, 4), past)
    return relative_error(soft, hidden_of(params, TINY, np.c_[np.repeat(hard, 3, 0), ids])[:, 4:])


def hidden_of(params, config, ids):
    return forward(params, config, embed(params, ids), keep="nothing")[0]


# What the layers should compute, written once more as the papers have it.


def textbook_layernorm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def textbook_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def textbook_lstm(x, weight_ih, weight_hh, bias_ih, bias_hh, reverse=False):
    """One number after another, as the page of PyTorch's nn.LSTM has it."""
    sigmoid = lambda z: 1 / (1 + math.exp(-z))
    (B, T, _), h = x.shape, weight_hh.shape[1]
    out = np.empty((B, T, h))
    for b in range(B):
        state, cell = np.zeros(h), np.zeros(h)
        for t in range(T)[:: -1 if reverse else 1]:
            i, f, g, o = np.split(weight_ih @ x[b, t] + bias_ih + weight_hh @ state + bias_hh, 4)
            for n in range(h):
                cell[n] = sigmoid(f[n]) * cell[n] + sigmoid(i[n]) * math.tanh(g[n])
                state[n] = sigmoid(o[n]) * math.tanh(cell[n])
            out[b, t] = state
    return out


def textbook_attention(q, k, v, past_k=None, past_v=None, beta=None):
    """One query at a time: its weights over all keys up to its own, one after another; a key of the past counts e^β."""
    B, H, T, D = q.shape
    P = 0 if past_k is None else past_k.shape[2]
    out = np.empty_like(q)
    for b, h, t in np.ndindex(B, H, T):
        keys, values = k[b, h, : t + 1], v[b, h, : t + 1]
        if P:
            row = b % len(past_k)
            keys, values = np.r_[past_k[row, h], keys], np.r_[past_v[row, h], values]
        weights = np.array([math.exp(q[b, h, t] @ key / math.sqrt(D)) for key in keys])
        if beta is not None:
            weights[:P] *= np.exp(beta[row, h])
        out[b, h, t] = weights @ values / weights.sum()
    return out


def textbook_cross_entropy(logits, targets):
    return np.array([-row[t] + math.log(sum(map(math.exp, row))) for row, t in zip(logits, targets, strict=True)])


def textbook_kl(logits, teacher_logp, temperature):
    """T² Σ p log(p / q), the teacher p first."""
    q = np.exp(logits / temperature)
    q /= q.sum(-1, keepdims=True)
    p = np.exp(teacher_logp)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def textbook_js(p, q, beta=0.5):
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


def textbook_top_k(p, q, k, form="top-k kl"):
    """One row after another, the tokens sorted."""
    found = []
    for row in zip(p, q, strict=True):
        pairs = sorted(zip(*row, strict=True), reverse=True)
        top, tail = pairs[:k], pairs[k:]
        if form == "top-k renormalised kl":
            P, Q = map(math.fsum, zip(*top, strict=True))
            top = [(a / P, b / Q) for a, b in top]
        if form == "top-k tail kl" and tail:
            top.append(tuple(map(math.fsum, zip(*tail, strict=True))))
        found.append(math.fsum(a * math.log(a / b) for a, b in top))
    return np.array(found)


def textbook_divergence(kind, logits, teacher_logp, temperature=1.0, **options):
    """T² times a divergence of probabilities."""
    q, p = np.exp(logits / temperature), np.exp(teacher_logp)
    q /= q.sum(-1, keepdims=True)
    if kind.startswith("top-k"):
        return temperature**2 * textbook_top_k(p, q, form=kind, **options)
    return temperature**2 * (textbook_js(p, q, **options) if kind == "js" else (q * np.log(q / p)).sum(-1))


def divergence_error(name):
    """One of DIVERGENCES, maybe `at` an option, against the textbook's: 4 tokens of 9 where it reads the likeliest."""
    rng = np.random.default_rng(0)
    kind, _, option = name.partition(" at ")
    options = {"T = 2": {"temperature": 2.0}, "beta = 0.2": {"beta": 0.2}, "": {}}[option]
    options |= {"k": 4} if kind.startswith("top-k") else {}
    x, teacher = normal(rng, 8, 9), log_normalised(rng, 8, 9)
    out, _ = getattr(divergences, DIVERGENCES[kind])(x, teacher, **options)
    return relative_error(out, textbook_divergence(kind, x, teacher, **options))


def definition_error(name):
    """A layer's output, or a loss, against the textbook's."""
    rng = np.random.default_rng(0)
    inputs, f, _ = LAYERS[name](rng, 2, 4, 3, 2, 3)
    if name.startswith("kl"):
        teacher, temperature = log_normalised(rng, 8, 5), {"kl": 1.0, "kl at T = 2": 2.0}[name]
        x = normal(rng, 8, 5)
        return relative_error(losses.kl_divergence(x, teacher, temperature)[0], textbook_kl(x, teacher, temperature))
    if name.split(" at ")[0] in DIVERGENCES:
        return divergence_error(name)
    if name == "cross-entropy":
        x, targets = normal(rng, 8, 5), rng.integers(5, size=8)
        return relative_error(losses.cross_entropy(x, targets)[0], textbook_cross_entropy(x, targets))
    return relative_error(f(inputs), TEXTBOOK.get(name, textbook_attention)(**inputs))


TEXTBOOK = {"layernorm": textbook_layernorm, "gelu": textbook_gelu, "relu": lambda x: np.maximum(x, 0),
            "tanh": lambda x: 1 - 2 / (np.exp(2 * x) + 1), "lstm": textbook_lstm,
            "lstm, reverse": partial(textbook_lstm, reverse=True)}  # fmt: skip
DEFINED = [*TEXTBOOK, "attention", "attention, shared past", "attention, past per row",
           "attention, shared past, masses", "attention, past per row, masses", "cross-entropy", "kl", "kl at T = 2",
           *(name for name in LAYERS if name.split(" at ")[0] in DIVERGENCES)]  # fmt: skip


# PyTorch's numbers, kept in a file.

GOLDEN = Path(__file__).parent / "golden" / "tiny_gpt2.safetensors"


def golden():
    """What the file holds, as nested dicts: ids, slots, params, logits, loss, grads; and the config."""
    with safe_open(GOLDEN, framework="numpy") as file:
        told = unflatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return told, Config.from_dict(json.loads(file.metadata()["config"]))


def golden_step():
    """What we compute where the file holds PyTorch's answer: the same tree of numbers."""
    told, config = golden()
    params, ids, slots = told["params"], told["ids"], told["slots"]
    n = ids.size
    grads = zeros_like(params)
    objective = token_objective(ids.reshape(-1), np.full(n, 1 / n))
    losses, dslots = prompt_step(params, config, slots, ids, objective, grads)
    answer = logits(params, hidden_of(params, config, ids))
    return {"logits": answer, "loss": losses.mean(), "grads": {"params": grads, "slots": dslots}}


def golden_error(part="logits"):
    told, _ = golden()
    return relative_error(golden_step()[part], told[part])


# By name, for the planted bugs. Each gives one number, and is far below 1e-10 where the code is right.

CHECKS = {
    **{f"gradient of {name}": lambda name=name: layer_error(name) for name in LAYERS},
    **{f"definition of {name}": lambda name=name: definition_error(name) for name in DEFINED},
    "gradient of slots": slots_error,
    "gradient of slots, kl": lambda: slots_error(teacher_objective),
    "gradient of weights": lambda: max(weight_errors().values()),
    "causal": causal_error,
    "hard text": hard_text_error,
    "golden logits": golden_error,
    "golden loss": lambda: golden_error("loss"),
}
