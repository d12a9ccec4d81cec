"""The slots themselves, in any carrier: prompt tuning (Lester et al. 2021), or a prefix without an MLP."""

import numpy as np


def init(rng, slots, dtype=np.float32):
    """slots: where training begins. Nothing is drawn; rng is there because every `init` has one."""
    return {"slots": slots.astype(dtype)}


def bake(raw):
    """raw {slots} -> the same slots."""
    return raw["slots"].copy(), None


def bake_backward(dslots, cache):
    return {"slots": dslots}
