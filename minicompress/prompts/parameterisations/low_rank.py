"""A base that stays, plus a product of two thin matrices.

With a base of zeros the slots are the product alone: decomposed prompt tuning (Xiao et al. 2023).
Keys and values are flat rows to it, (P, 2 L C), so that one product serves all layers.
"""

import math

import numpy as np

from minicompress.arrays import array_module, like
from minicompress.prompts.layout import flat_from_kv, kv_from_flat


def init(rng, base, rank, dtype=np.float32):
    """base: slots of any carrier. a is normal with variance 1/r and b zero, so that training begins at the base.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}; it must be at least 1")
    *outer, P, width = rows(base).shape
    a = (rng.standard_normal((*outer, P, rank)) / math.sqrt(rank)).astype(dtype)
    b = np.zeros((*outer, rank, width), dtype)
    return {"base": base.astype(dtype), "a": like(a, base), "b": like(b, base)}


def bake(raw):
    """raw {base, a (..., P, r), b (..., r, width)} -> base + a b, shaped as the base."""
    base = raw["base"]
    product = raw["a"] @ raw["b"]
    if base.ndim == 5:
        product = kv_from_flat(product, base.shape[0], base.shape[2])
    return base + product, raw


def bake_backward(dslots, raw):
    """out = a b gives da = dout bᵀ and db = aᵀ dout. While b is zero, so is da: b moves first."""
    dout = rows(dslots)
    da, db = dout @ raw["b"].swapaxes(-1, -2), raw["a"].swapaxes(-1, -2) @ dout
    return {"base": array_module(dslots).zeros_like(raw["base"]), "a": da, "b": db}


def rows(slots):
    """Slots as rows for the product: keys and values flat (P, 2 L C), the others as they are."""
    return flat_from_kv(slots) if slots.ndim == 5 else slots
