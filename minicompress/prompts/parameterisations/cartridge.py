"""Keys and values of a text, of which the first slots stay as they were (Cartridges, Eyuboglu et al. 2025).

A model rests much of its attention on the very first position, and training is steadier where the
keys and values there are held fast. The slots after them are trained.
"""

import numpy as np

from minicompress.arrays import array_module


def init(rng, kv, frozen=1, dtype=np.float32):
    """kv (L, 2, H, P, D), of which the first F = frozen slots stay. Nothing is drawn.

    Raises ValueError where F is not in 0..P.
    """
    P = kv.shape[3]
    if not 0 <= frozen <= P:
        raise ValueError(f"{frozen} slots to freeze; it must be 0 to {P}, the number of slots")
    return {"frozen": kv[:, :, :, :frozen].astype(dtype), "slots": kv[:, :, :, frozen:].astype(dtype)}


def bake(raw):
    """raw {frozen (L, 2, H, F, D), slots (L, 2, H, P - F, D)} -> kv (L, 2, H, P, D)."""
    kv = array_module(raw["slots"]).concatenate([raw["frozen"], raw["slots"]], axis=3)
    return kv, raw["frozen"].shape[3]


def bake_backward(dslots, F):
    dfrozen = array_module(dslots).zeros_like(dslots[:, :, :, :F])
    return {"frozen": dfrozen, "slots": dslots[:, :, :, F:]}
