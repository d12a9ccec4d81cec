"""Prefix tuning's reparametrisation (Li & Liang 2021, section 4.3): each slot's keys and values from one small vector.

Embedding(P, d), Linear(d, h), tanh, Linear(h, 2 L C). The paper and PEFT take d = C; the paper's
code h = 512, PEFT h = C unless told. Names and order are PEFT's, so its encoder fits in.
"""

import numpy as np

from minicompress.arrays import array_module
from minicompress.layers.activations import tanh, tanh_backward
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations.mlp import mlp, mlp_backward, mlp_init
from minicompress.trees import tree_map


def init(rng, slots, n_layer, width, hidden, dtype=np.float32):
    """For P = slots and a model of n_layer layers, C = width; the embedding is normal, the rest as `mlp_init`."""
    embedding = rng.standard_normal((slots, width)).astype(dtype)
    transform = mlp_init(rng, (width, hidden, 2 * n_layer * width), dtype)
    return {"embedding": {"weight": embedding}, "transform": transform}


def bake(raw, n_layer, n_head):
    """raw {embedding, transform} -> kv (L, 2, H, P, D). The model's two numbers cannot be read off the arrays."""
    flat, cache = mlp(raw["embedding"]["weight"], raw["transform"], tanh)  # (P, 2 L C): all slots are looked up
    return kv_from_flat(flat, n_layer, n_head), (raw, cache)


def bake_backward(dslots, cache):
    raw, cache = cache
    draw = tree_map(array_module(dslots).zeros_like, raw)
    draw["embedding"]["weight"] += mlp_backward(flat_from_kv(dslots), cache, tanh_backward, draw["transform"])
    return draw
