"""Four properties that anybody's NumPy code can be held to: a gradient, a whole loss, frozen weights, a causal order.

Each raises AssertionError with one line: what is wrong, where, by how much, against which tolerance, and what
is usually the cause. Where all is well it returns what it measured. A call that could show nothing, whatever
the code does, is a mistake of the caller's: a ValueError.
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minicompress.arrays import to_host
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, leaning_direction, taylor_remainders
from minicompress.verification.property_lines import of_bits, of_leak, of_leaking_gradient, of_rates, of_slopes
from minicompress.verification.property_slopes import (
    TOLERANCES,
    argument_names,
    as_float64,
    checked_out,
    chosen_oracle,
    filled,
    first_of,
    gradients_of,
    matching,
    same_bits,
    two_slopes,
    with_gradient,
    worst,
)

ROUNDING = 1000 * float(np.finfo(float).eps)  # of a loss: a remainder below it may be noise


class Measured(NamedTuple):
    """What `check_gradient` found."""

    errors: dict  # {argument: relative error of its worst slope}
    oracle: str  # "complex step" or "central difference"


def check_gradient(f, f_backward, *arrays, leave_out=(), oracle=None, tolerance=None, directions=3, seed=0):
    """Holds a hand-written backward against f, which alone is believed -> Measured.

    f(*arrays) gives out, or a tuple whose first is out and whose last is a cache. f_backward(dout, cache),
    or f_backward(dout, *arrays) where f gives no tuple, gives the gradients of <dout, out>: one, or a tuple.
    An argument may be a tree; so is its gradient then. leave_out: names, or places, of arguments that have no
    gradient; the others are made float64. oracle: "complex step" or "central difference"; None takes the
    first where f takes complex numbers and is analytic. tolerance: of the relative error, by default 1e-10
    and 1e-6. So many times a dout, and for each argument a direction, are drawn from the seed.
    """
    rng, given = np.random.default_rng(seed), dict(zip(argument_names(f, len(arrays)), arrays, strict=True))
    held = with_gradient(given, leave_out)
    flat, run = flatten(held), lambda flat: first_of(f(*(given | filled(held, flat)).values()))
    out = checked_out(run, flat)
    oracle, slopes = chosen_oracle(oracle, run, flat, rng), {name: [] for name in flat}
    for _ in range(directions):
        dout = rng.standard_normal(out.shape)
        for name, gradient in gradients_of(f, f_backward, dout, given, held).items():
            move = lambda x, name=name: run(flat | {name: x})
            slopes[name].append(two_slopes(oracle, move, flat[name], gradient, dout, out, rng))
    errors = {name: worst(error for _, _, error in found) for name, found in slopes.items()}
    tolerance = TOLERANCES[oracle] if tolerance is None else tolerance
    if wrong := [name for name in errors if not errors[name] <= tolerance]:
        raise AssertionError(of_slopes(errors, wrong, tolerance, oracle, slopes))
    return Measured(errors, oracle)


def taylor_test(loss, x, gradient, h=1e-3, halvings=4, rate=1.9, directions=2, seed=0):
    """Holds the gradient of a whole loss against the loss alone -> observed rates (directions, halvings).

    loss(x) gives a number, or a tuple that begins with it; x and its gradient are arrays, or trees. What the
    linear term leaves, to both sides of x, must fall faster than h^1.9 each time that h is halved: it is of
    second order where the gradient is right, and of first where it is not. Give a longer h where a loss is
    nearly straight, a shorter one where it is much curved.
    """
    held = as_float64({"x": x}, "x")
    flat, grads = flatten(held), matching({"x": gradient}, held)
    start, g = (np.concatenate([a.ravel() for a in arrays.values()]) for arrays in (flat, grads))
    ends, rng, found = np.cumsum([a.size for a in flat.values()])[:-1], np.random.default_rng(seed), []

    def f(vector):
        parts = [part.reshape(a.shape) for part, a in zip(np.split(vector, ends), flat.values(), strict=True)]
        return first_of(loss(filled(held, dict(zip(flat, parts, strict=True)))["x"]))

    if checked_out(f, start).ndim:
        raise ValueError(f"the loss gives an array of shape {list(f(start).shape)}; one number is needed")
    for _ in range(directions):
        u = leaning_direction(rng, g)
        found.append(rates_both_ways(f, start, u, g, h, halvings))
        if not min(found[-1]) > rate:
            slope = central_difference(f, start, u, 1.0, h / 100)
            raise AssertionError(of_rates(found[-1], rate, h, float(g @ u), slope))
    return np.array(found)


def rates_both_ways(f, x, u, gradient, h, halvings):
    """Of what is left along u and along -u together, for each halving; ∞ once that is the loss's rounding.

    What is even in h and what is odd make |e + o| + |e - o| = 2 max(|e|, |o|): they cannot cancel.
    """
    steps = [h / 2**i for i in range(halvings + 1)]
    left = np.add(*(taylor_remainders(f, x, way, gradient, steps) for way in (u, -u)))
    noise = ROUNDING * max(abs(float(f(x))), abs(float(f(x + h * u))))
    if max(*left, h * abs(float((gradient * u).sum()))) <= noise:
        raise ValueError(f"the loss does not move within h = {h:.0e}: nothing is shown; give a longer h")
    return [float(np.log2(a / b)) if not b <= noise else np.inf for a, b in zip(left, left[1:], strict=False)]


def check_frozen(params, after=None):
    """Holds every bit of a tree of weights where it was -> how many arrays that are.

    `with check_frozen(params): train(...)` keeps a copy and compares it at the end; check_frozen(before,
    after) compares two trees, which must not be the same arrays.
    """
    return frozen_within(params) if after is None else unchanged(params, after)


@contextmanager
def frozen_within(params):
    before = tree_map(lambda w: to_host(w).copy(), params)
    yield
    unchanged(before, params)


def unchanged(before, after):
    """The number of arrays, none of which has changed."""
    before, after = flatten(before), flatten(after)
    if before.keys() != after.keys():
        raise AssertionError(f"weights came or went: {', '.join(sorted(before.keys() ^ after.keys()))}")
    for name in before:
        if before[name] is after[name] or np.shares_memory(to_host(before[name]), to_host(after[name])):
            raise ValueError(f"{name} is the same array before and after; `with check_frozen(params):` keeps a copy")
        then, now = to_host(before[name]), to_host(after[name])
        if not same_bits(then, now):
            raise AssertionError(of_bits(name, then, now))
    return len(before)


def check_causal(f, x, f_backward=None, axis=1, out_axis=None, vocabulary=None, tolerance=0.0, seed=0):
    """Holds each output independent of the inputs behind it -> the largest change of one that should have none.

    f(x) gives out, or a tuple that begins with it and ends with a cache. Places count along `axis` of x and
    `out_axis` of out, by default the same. x: numbers, or ids below `vocabulary`, by default the largest + 1.
    For each place the inputs from it on are changed. With f_backward, called as `check_gradient` does, the
    gradient of the outputs up to each place must be 0 behind it as well. tolerance: a share of the largest
    output, or gradient; 0 asks for equal bits.
    """
    x = np.asarray(x)
    rng, out_axis, T = np.random.default_rng(seed), axis if out_axis is None else out_axis, x.shape[axis]
    out = np.moveaxis(first_of(f(x.copy())), out_axis, 0)
    if T < 2 or len(out) != T or not np.isfinite(out).all():
        raise ValueError(f"x has {T} places, out {len(out)}: as many, at least two, and finite numbers are needed")
    if f_backward is not None and x.dtype.kind != "f":
        raise ValueError(f"x is {x.dtype}, which has no gradient; leave f_backward out, or take embeddings as x")
    largest, seen, limit = 0.0, False, tolerance * np.abs(out).max()
    for s in range(T - 1, 0, -1):
        moved = np.abs(np.moveaxis(first_of(f(changed_from(x, s, axis, vocabulary, rng))), out_axis, 0) - out)
        early, seen = moved[:s], seen or bool(moved[s:].any())
        largest = max(largest, float(early.max()))
        if not early.max() <= limit:
            place = [int(i) for i in np.unravel_index(early.argmax(), early.shape)]
            raise AssertionError(of_leak(place[0], s, float(early.max()), tolerance))
    if not seen:
        raise ValueError("no output depends on any input after the first: nothing is shown by this f")
    if f_backward is not None:
        largest = max(largest, largest_leak(f, f_backward, x, axis, out_axis, tolerance, rng))
    return largest


def changed_from(x, s, axis, vocabulary, rng):
    """x with other numbers, or ids, at the places s and behind it along the axis."""
    changed = np.moveaxis(x.copy(), axis, 0)
    shape = changed[s:].shape
    if x.dtype.kind == "f":
        changed[s:] += rng.standard_normal(shape) * (np.abs(x).max() or 1)
    else:
        V = int(x.max()) + 1 if vocabulary is None else vocabulary
        if V < 2:
            raise ValueError(f"{V} id leaves none to change to; give a vocabulary of two or more")
        changed[s:] = (changed[s:] + rng.integers(1, V, shape)) % V
    return np.moveaxis(changed, 0, axis)


def largest_leak(f, f_backward, x, axis, out_axis, tolerance, rng):
    """The largest gradient of out up to a place that reaches an input behind it."""
    largest, T = 0.0, x.shape[axis]
    for t in range(T - 1):
        found = f(x.copy())
        dout = np.moveaxis(rng.standard_normal(first_of(found).shape), out_axis, 0)
        dout[t + 1 :] = 0
        grads = f_backward(np.moveaxis(dout, 0, out_axis), found[-1] if isinstance(found, tuple) else x.copy())
        dx = np.abs(np.moveaxis(first_of(grads), axis, 0))
        if not dx[: t + 1].any():
            raise ValueError(f"the gradient of out up to {t} is 0 everywhere: nothing is shown by this f_backward")
        late = dx[t + 1 :].reshape(T - 1 - t, -1).max(1)
        if not late.max() <= tolerance * dx.max():
            raise AssertionError(of_leaking_gradient(t, t + 1 + int(late.argmax()), float(late.max()), tolerance))
        largest = max(largest, float(late.max()))
    return largest
