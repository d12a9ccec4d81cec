"""Three ways to know a derivative without trusting the code that computes it.

All look along one direction: f must be a function of one array that returns an array, and the
number held against the backward is d/dh <cotangent, f(x + h u)> at h = 0.
"""

import warnings

import numpy as np


def complex_step(f, x, direction, cotangent, h=1e-30):
    """Im <cotangent, f(x + i h u)> / h: exact to rounding, since nothing is subtracted.

    Squire & Trapp 1998. f must accept complex128 and be analytic: no abs, no max but on real parts.
    """
    return float((cotangent * f(x + 1j * h * direction)).imag.sum() / h)


def central_difference(f, x, direction, cotangent, step=6e-6):
    """(f(x + hu) - f(x - hu)) / 2h with h = step * max(1, |x|): right to about 1e-10 in float64."""
    h = step * max(1.0, float(np.abs(x).max()))
    return float((cotangent * (f(x + h * direction) - f(x - h * direction))).sum() / (2 * h))


def suits_complex_step(f, arrays, rng):
    """Whether f, of {name: array}, takes complex arrays and is analytic: both oracles then see the same slope.

    They look along one direction of all arrays together, each moved in proportion to its length.
    """
    u = {name: unit_direction(rng, x.shape) * (np.linalg.norm(x) or 1) for name, x in arrays.items()}
    moved = lambda h: np.asarray(f({name: x + h * u[name] for name, x in arrays.items()}))
    out = moved(0.0)
    cotangent = rng.standard_normal(out.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            exact = complex_step(moved, 0.0, 1.0, cotangent)
    except Exception:  # whatever code says that was not written for complex numbers
        return False
    slope, noise = central_difference(moved, 0.0, 1.0, cotangent), 1e-8 * np.abs(cotangent * out).sum()
    return bool(abs(exact - slope) <= 1e-3 * max(abs(exact), abs(slope)) + noise)


def taylor_rates(f, x, direction, gradient, h=1e-2, halvings=4):
    """How fast |f(x + hu) - f(x) - h <gradient, u>| falls as h is halved: 2 where the gradient is right, else 1.

    f returns a number. Gives one observed order for each halving.
    """
    left = taylor_remainders(f, x, direction, gradient, [h / 2**i for i in range(halvings + 1)])
    return [float(np.log2(a / b)) for a, b in zip(left, left[1:], strict=False)]


def taylor_remainders(f, x, direction, gradient, steps):
    """|f(x + hu) - f(x) - h <gradient, u>| for each step h."""
    slope, start = float((gradient * direction).sum()), float(f(x))
    return [abs(float(f(x + h * direction)) - start - h * slope) for h in steps]


def relative_error(a, b):
    """‖a - b‖ / ‖b‖ of two arrays or numbers; 0 where both are zero."""
    difference, size = np.linalg.norm(np.asarray(a) - np.asarray(b)), np.linalg.norm(np.asarray(b))
    return float(difference / size) if size else float(difference)


def error_of(x, truth):
    """`relative_error` in float64 where the truth is finite; ∞ where it is not, and x is something else."""
    x, truth = (np.asarray(a, np.float64) for a in (x, truth))
    finite = np.isfinite(truth)
    if not np.array_equal(x[~finite], truth[~finite], equal_nan=True):
        return float("inf")
    return relative_error(x[finite], truth[finite])


def unit_direction(rng, shape):
    """A random direction of length 1."""
    u = rng.standard_normal(shape)
    return u / np.linalg.norm(u)


def leaning_direction(rng, gradient):
    """A random direction on the gradient's side, plus one along it: their slope is not near zero by chance."""
    u = unit_direction(rng, gradient.shape)
    return (-u if (u * gradient).sum() < 0 else u) + gradient / (np.linalg.norm(gradient) or 1)
