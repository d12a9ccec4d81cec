"""The one line that a failed property gives: what is wrong, by how much, and what is usually the cause."""

import numpy as np


def of_slopes(errors, wrong, tolerance, oracle, slopes):
    """A gradient's. slopes {argument: [(what it says along a direction, what f does there, error)]}."""
    name = max(wrong, key=lambda name: (np.isnan(errors[name]), errors[name]))
    ours, truth, each = np.array(slopes[name]).T
    place, others = int(np.argmax(each)), [other for other in wrong if other != name]  # the first that is no number
    return (
        f"the gradient of {name} is off by {errors[name]:.1e} (tolerance {tolerance:.0e}, {oracle}): "
        f"along a direction it says {ours[place]:.9g}, f says {truth[place]:.9g}; "
        f"{usual_cause(ours, truth, errors[name])}" + (f"; also off: {', '.join(others)}" if others else "")
    )


def usual_cause(ours, truth, error):
    """What a wrong gradient's numbers look like."""
    factor, missed = constant_factor(ours, truth), np.abs(ours - truth).max()
    if not np.isfinite(ours).all():
        return "not a number: usually a division by 0, or infinity minus infinity, in the backward"
    if not ours.any():
        return "all zero: usually it is never passed on, or added to a copy"
    if np.abs(truth).max() < 1e-3 * missed:
        return "f does not depend on it: usually gradients are returned in another order than f's arguments"
    if factor is not None and abs(factor - 1) > 1e-2:
        cause = "a minus sign" if factor < 0 else "a mean's 1/n, a scale or a temperature"
        return f"{factor:.6g} times the right one everywhere: usually {cause} is forgotten, or is there twice"
    if factor is not None:
        return f"{factor:.9g} times the right one everywhere: usually a constant is rounded, as float32 does"
    if error < 1e-2:
        return "so little is usually an eps left out of one term, a rounded constant, or float32 or an abs within f"
    return "usually a term of the derivative is missing: each path from the argument to out adds one"


def constant_factor(ours, truth):
    """The number that all of `ours` are times `truth`, or None: one direction alone does not tell."""
    factor, missed = (ours @ truth) / (truth @ truth or 1), np.abs(ours - truth).max()
    return factor if len(ours) > 1 and np.abs(ours - factor * truth).max() <= 1e-4 * missed else None


def of_rates(rates, least, h, ours, truth):
    """A Taylor test's: the gradient's slope, and the loss's own by a central difference."""
    seen = ", ".join(f"{rate:.2f}" for rate in rates)
    if abs(ours - truth) <= 1e-6 * abs(truth):
        cause = f"both slopes agree, so h = {h:.0e} is too long for this loss, or it has a corner (ReLU, max, clipping)"
    elif min(rates) < 0.5:
        cause = "it does not fall at all: usually the loss is computed in float32, or h is far too short"
    else:
        cause = "usually a factor (1/n of a mean), or a path from x to the loss, is missing in the gradient"
    return (
        f"the remainder falls at rates {seen} as h = {h:.0e} is halved, and must at more than {least}: "
        f"along a direction the gradient says {ours:.9g}, the loss {truth:.9g}; {cause}"
    )


def of_bits(name, before, after):
    """A weight's that should have stayed as it was."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"{name} was {before.dtype} {list(before.shape)} and is {after.dtype} {list(after.shape)}"
    width = before.dtype.itemsize
    bits = [np.ascontiguousarray(x).view(np.uint8).reshape(-1, width) for x in (before, after)]
    changed = np.flatnonzero((bits[0] != bits[1]).any(-1))
    place = [int(i) for i in np.unravel_index(changed[0], before.shape)]
    then, now = before.flat[changed[0]], after.flat[changed[0]]
    return (
        f"{name} changed in {len(changed)} of {before.size} numbers, first at {place} from {then!s} to {now!s} "
        "(tolerance: no bit); usually the optimiser was given all weights, weight decay reaches them, or += writes "
        "into a view of them"
    )


def of_leak(t, s, change, tolerance):
    """An output's that depends on a later input."""
    return (
        f"out at {t} changes by {change:.1e} (tolerance {tolerance:.0e}) when the input at {s} does: "
        "usually a mask one column too wide, a mean or a norm over time, or a mask that is large, but not infinite"
    )


def of_leaking_gradient(t, s, size, tolerance):
    """A gradient's that reaches inputs behind all outputs it is of."""
    return (
        f"the gradient of out up to {t} is {size:.1e} at the input {s} behind it (tolerance {tolerance:.0e}): "
        "usually probabilities are not transposed in the backward, or the mask is applied in the forward alone"
    )
