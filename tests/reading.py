"""The model read the plain way: one row, one layer after another, keys side by side under one mask.

Of the source only layers that look at one place at a time are used. Complex slots and weights are welcome.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from minicompress.layers.gelu import gelu
from minicompress.layers.layernorm import layernorm
from minicompress.verification.cases import KINDS as KINDS
from minicompress.verification.cases import random_prompt as random_prompt
from minicompress.verification.cases import with_slots as with_slots


class Read(NamedTuple):
    """One row of T tokens, behind a prompt or not."""

    logits: Any  # (T, V), the prediction after each token
    first: Any  # (V,), the prediction of the first token; None where there is none
    stream: list  # before each block and after the last (T, C)
    attention: list  # in each layer (H, T, S)


def read_row(params, config, prompt, row):
    """row: a list of ids, where -1 - j is slot j if the prompt's template says so; prompt: a SoftPrompt or None."""
    wte, wpe, eps = params["wte"]["weight"], params["wpe"]["weight"], config.layer_norm_epsilon
    kind = None if prompt is None else "rows" if prompt.in_rows else prompt.carrier
    start = 0 if kind in (None, "rows") else begins(prompt)
    x = np.array([prompt.slots[-1 - i] if i < 0 else wte[i] for i in row]) + wpe[start : start + len(row)]
    P = prompt.length if kind in ("embeddings", "hidden") else 0  # slots that are read along with the row
    if kind == "embeddings":
        x = np.concatenate([prompt.slots + wpe[:P], x])
    stream, attention = [], []
    for layer in range(config.n_layer):
        if kind == "hidden":
            x = np.concatenate([prompt.slots[layer], x[P:] if layer else x])
        past = (*prompt.slots[layer], None if prompt.beta is None else prompt.beta[layer]) if kind == "kv" else None
        stream.append(x[P:])
        x, probs = plain_block(x, params["h"][str(layer)], config, past)
        attention.append(probs[:, P:])
    hidden, _ = layernorm(x, **params["ln_f"], eps=eps)
    logits = hidden @ params.get("lm_head", params["wte"])["weight"].T
    return Read(logits[P:], logits[P - 1] if kind == "embeddings" else None, [*stream, x[P:]], attention)


def begins(prompt):
    return {"compact": prompt.length, "unshifted": 0, "logical": prompt.offset}[prompt.positions]


def plain_block(x, params, config, past):
    """x (T, C) -> (T, C), and the probabilities (H, T, S)."""
    eps, (T, C), H = config.layer_norm_epsilon, x.shape, config.n_head
    c_attn, c_proj = params["attn"]["c_attn"], params["attn"]["c_proj"]
    qkv = layernorm(x, **params["ln_1"], eps=eps)[0] @ c_attn["weight"] + c_attn["bias"]
    heads = [qkv[:, n * C : (n + 1) * C].reshape(T, H, C // H) for n in range(3)]  # queries, keys, values
    outs, probs = zip(*[plain_head(*(a[:, h] for a in heads), head_of(past, h)) for h in range(H)], strict=True)
    x = x + np.concatenate(outs, axis=1) @ c_proj["weight"] + c_proj["bias"]
    c_fc, c_proj = params["mlp"]["c_fc"], params["mlp"]["c_proj"]
    hidden = layernorm(x, **params["ln_2"], eps=eps)[0] @ c_fc["weight"] + c_fc["bias"]
    return x + gelu(hidden)[0] @ c_proj["weight"] + c_proj["bias"], np.array(probs)


def head_of(past, h):
    return past and [part if part is None else part[h] for part in past]


def plain_head(q, k, v, past):
    """q, k, v (T, D); past: keys and values (P, D), and a log-mass (P,) or None -> (T, D), probabilities (T, S)."""
    (T, D), P = q.shape, len(past[0]) if past else 0
    if past:
        k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
    weights = np.exp(q @ k.T / math.sqrt(D)) * [[float(s <= P + t) for s in range(P + T)] for t in range(T)]
    if past and past[2] is not None:
        weights = weights * np.concatenate([np.exp(past[2]), np.ones(T)])  # a mass of e^β
    probs = weights / weights.sum(-1, keepdims=True)
    return probs @ v, probs
