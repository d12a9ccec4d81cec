"""A golden file before it is written: what it proves, its numbers, and the source that answers them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One file. inputs(draw) -> {name: array}; run(inputs, **facts) -> outputs, in the inputs' dtype."""

    proves: str
    source: str
    inputs: Callable
    run: Callable
    facts: dict[str, Any] = {}  # numbers and texts that the answer depends on beside the inputs
    float64: float = 1e-13  # the relative error of a tensor that a right port in float64 may have
    float32: float = 1e-5


class Draw:
    """Numbers that are the same for a name under every version of NumPy, and exact in float32.

    What a Generator makes of its bits may change from version to version, the bits may not (NEP 19). So the
    bits are used as they are: odd multiples of 2^-13 between -2 and 2, which are never 0.
    """

    def __init__(self, name):
        self.bits = np.random.PCG64(list(name.encode()))

    def __call__(self, *shape, scale=1.0):
        """scale: a power of two, so that nothing is rounded."""
        steps = (self.bits.random_raw(math.prod(shape)) >> 50).astype(np.float64)  # 0 .. 2^14 - 1
        return ((2 * steps + 1 - 2**14) * (scale * 2.0**-13)).reshape(shape)

    def below(self, n, *shape):
        """Integers 0 .. n - 1."""
        return (self.bits.random_raw(math.prod(shape)) >> 33).astype(np.int64).reshape(shape) % n


def computed(name, case, dtype=np.float64):
    """-> inputs, outputs: {name: array on the host}. Integers stay integers."""
    inputs = case.inputs(Draw(name))
    typed = {key: x.astype(dtype) if x.dtype.kind == "f" else x for key, x in inputs.items()}
    return inputs, case.run(typed, **case.facts)
