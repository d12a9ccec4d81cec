"""P-tuning's encoder as PEFT has it by default: Embedding(P, d), then three linear layers with ReLU between them.

P-tuning is Liu et al. 2021, *GPT Understands, Too*. Widths d -> h -> h -> d, under PEFT's names.
"""

import numpy as np

from minicompress.arrays import array_module
from minicompress.layers.activations import relu, relu_backward
from minicompress.prompts.parameterisations.mlp import mlp, mlp_backward, mlp_init
from minicompress.trees import tree_map


def init(rng, slots, width, hidden, dtype=np.float32):
    """For P = slots, d = C = width; the embedding is normal, the rest as `mlp_init`."""
    embedding = rng.standard_normal((slots, width)).astype(dtype)
    return {"embedding": {"weight": embedding}, "mlp_head": mlp_init(rng, (width, hidden, hidden, width), dtype)}


def bake(raw):
    """raw {embedding, mlp_head} -> slots (P, C)."""
    slots, cache = mlp(raw["embedding"]["weight"], raw["mlp_head"], relu)
    return slots, (raw, cache)


def bake_backward(dslots, cache):
    raw, cache = cache
    draw = tree_map(array_module(dslots).zeros_like, raw)
    draw["embedding"]["weight"] += mlp_backward(dslots, cache, relu_backward, draw["mlp_head"])
    return draw
