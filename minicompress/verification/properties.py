"""Four properties that anybody's NumPy code can be held to: a gradient, a whole loss, frozen weights, a causal order.

Each raises AssertionError with one line: what is wrong, where, by how much, against which tolerance, and what
is usually the cause. Where all is well it returns what it measured. A call that could show nothing whatever
the code does is a mistake of the caller's, and a ValueError.
"""

import inspect
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minicompress.arrays import to_host
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import (
    central_difference,
    complex_step,
    leaning_direction,
    taylor_rates,
    taylor_remainders,
    unit_direction,
)

ORACLES = {"complex step": (complex_step, 1e-10), "central difference": (central_difference, 1e-6)}
FLOOR = 1e-3  # a slope smaller than this share of <cotangent, out> is measured against that share
ROUNDING = 1000 * float(np.finfo(float).eps)  # of a loss: what is below it may be noise


class Measured(NamedTuple):
    """What `check_gradient` found."""

    errors: dict  # {argument: relative error of the worst slope}
    oracle: str  # "complex step" or "central difference"


def check_gradient(f, f_backward, *arrays, leave_out=(), oracle=None, tolerance=None, directions=3, seed=0):
    """Holds a hand-written backward against f, which alone is believed -> Measured.

    f(*arrays) gives out, or a tuple whose first is out and whose last is a cache. The backward gives the
    gradients of <dout, out>, one or a tuple: f_backward(dout, cache), or f_backward(dout, *arrays) where f
    gives no tuple. An argument may be a tree; so is its gradient then.
    leave_out: names or places of arguments without a gradient; the others are made float64.
    oracle: "complex step", "central difference"; None takes the first where f takes complex numbers
    and is analytic. tolerance: 1e-10 and 1e-6. A dout and directions are drawn `directions` times.
    """
    rng, names = np.random.default_rng(seed), argument_names(f, len(arrays))
    held = [name for place, name in enumerate(names) if not {name, place} & set(leave_out)]
    given = dict(zip(names, arrays, strict=True))
    tree = {name: tree_map(lambda x, name=name: real(x, name), given[name]) for name in held}
    run = lambda values: parts_of(f(*(given | filled(tree, values)).values()))
    asked = lambda dout, cache: f_backward(dout, *([cache] if cache is not None else (given | tree).values()))
    flat, out = flatten(tree), checked_out(run(flatten(tree))[0])
    oracle = oracle or ("complex step" if suits_complex_step(run, flat, out, rng) else "central difference")
    if oracle not in ORACLES or not flat:
        raise ValueError(f"oracle {oracle!r} is not one of {', '.join(ORACLES)}" if flat else "no argument has a gradient")
    slopes = {name: [] for name in flat}
    for _ in range(directions):
        dout = rng.standard_normal(out.shape)
        gradients = gradients_of(run, asked, flat, dout, held)
        for name, gradient in gradients.items():
            slopes[name].append(slope_pair(ORACLES[oracle][0], run, flat, name, gradient, dout, out, rng))
    errors = {name: worst(slopes[name]) for name in flat}
    tolerance = ORACLES[oracle][1] if tolerance is None else tolerance
    for name in sorted(errors, key=lambda name: -errors[name]):
        assert errors[name] <= tolerance, complaint(name, errors, tolerance, oracle, slopes[name])
    return Measured(errors, oracle)
