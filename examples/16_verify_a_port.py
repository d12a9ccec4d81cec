"""Somebody's port of GPT-2, proved; then with the wrong GELU, and the line that `diff` gives.

The port is forty lines of NumPy that know nothing of this project. All it does for its proof is to keep its
arrays under any names that are known: ours, Hugging Face's, nanoGPT's or llm.c's.
"""

import math

import numpy as np

from minicompress.commands import open_model
from minicompress.report.difference import verdict
from minicompress.verification.compare import compare
from minicompress.verification.setup import Setup


def port(w, config, ids, gelu):
    """ids (B, T) -> {name: array}, under Hugging Face's names."""
    (B, T), H, eps = ids.shape, config.n_head, config.layer_norm_epsilon
    mask = np.triu(np.full((T, T), -1e30), 1)

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["weight"] + p["bias"]

    def linear(x, p):
        return x @ p["weight"] + p["bias"]

    x, kept = w["wte"]["weight"][ids] + w["wpe"]["weight"][:T], {}
    for layer, p in enumerate(w["h"].values()):
        kept[f"hidden_states.{layer}"] = x
        qkv = linear(norm(x, p["ln_1"]), p["attn"]["c_attn"])
        q, k, v = qkv.reshape(B, T, 3, H, -1).transpose(2, 0, 3, 1, 4)
        scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + mask)
        probs = scores / scores.sum(-1, keepdims=True)
        kept[f"attentions.{layer}"] = probs
        x = x + linear((probs @ v).swapaxes(1, 2).reshape(B, T, -1), p["attn"]["c_proj"])
        x = x + linear(gelu(linear(norm(x, p["ln_2"]), p["mlp"]["c_fc"])), p["mlp"]["c_proj"])
    x = norm(x, w["ln_f"])
    return kept | {f"hidden_states.{len(w['h'])}": x, "logits": x @ w["wte"]["weight"].T}


def tanh_gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


model = open_model(dtype="float64")
ids = np.random.default_rng(0).integers(model.pair[1].vocab_size, size=(2, 12))
ours = Setup(model.pair, ids.tolist(), gradients="prompt")
for gelu in (tanh_gelu, erf_gelu):
    found = compare(ours.tensors(), port(*model.pair, ids, gelu), ours)
    print(f"{gelu.__name__}: {len(found.lines)} tensors compared", *verdict(found), sep="\n")
