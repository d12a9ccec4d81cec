"""Non-negative least squares by active sets (Lawson & Hanson 1974, chapter 23), on normal equations."""

import math
import sys

from minicompress.arrays import array_module, to_host


def nnls(gram, moment, start=None):
    """The w >= 0 (k,) of least ½ wᵀ G w - bᵀ w, for G = gram (k, k) positive definite and b = moment (k,).

    At it the slope G w - b is zero where w > 0, and not negative where w = 0. `start` (k,), bools, is a guess of where
    w > 0. With G = AᵀA and b = Aᵀy it is the w of least |A w - y|².
    """
    xp = array_module(gram)
    tolerance = 1e-12 * max(1.0, float(to_host(abs(moment).max())))
    w = xp.zeros_like(moment) if start is None else xp.maximum(solved(gram, moment, start), 0)
    free = w > 0
    for _ in range(10 * len(moment)):
        w, free = descended(gram, moment, w, free)
        slope = xp.where(free, -math.inf, moment - gram @ w)  # of what is held at zero: how much it would gain
        if float(to_host(slope.max())) <= tolerance:
            return w
        free[int(to_host(slope.argmax()))] = True
    return w


def descended(gram, moment, w, free):
    """The best w with only `free` of its numbers; where that one is negative, it goes as far as it may, and lets go."""
    xp, some = array_module(gram), lambda mask: bool(to_host(mask.any()))
    while some(free):
        best = solved(gram, moment, free)
        falls = free & (best <= 0)
        if not some(falls):
            return best, free
        ratios = w / xp.maximum(xp.where(falls, w - best, 1), sys.float_info.min)
        w = xp.where(free, w + xp.where(falls, ratios, math.inf).min() * (best - w), 0)
        held = falls & (w <= 1e-15 * xp.maximum(1.0, w.max()))
        free = free & ~(held if some(held) else falls)
        w = xp.where(free, w, 0)
    return xp.zeros_like(moment), free


def solved(gram, moment, free):
    """G w = b among the free numbers; the others are zero."""
    xp = array_module(gram)
    w = xp.zeros_like(moment)
    w[free] = xp.linalg.solve(gram[free][:, free], moment[free])
    return w
