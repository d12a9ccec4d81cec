"""Non-negative least squares by active sets (Lawson & Hanson 1974, chapter 23), on normal equations."""

import numpy as np


def nnls(gram, moment, start=None):
    """The w >= 0 (k,) of least ½ wᵀ G w - bᵀ w, for G = gram (k, k) positive definite and b = moment (k,), on the host.

    At it the slope G w - b is zero where w > 0, and not negative where w = 0. `start` (k,), bools, is a guess of where
    w > 0. With G = AᵀA and b = Aᵀy it is the w of least |A w - y|².
    """
    w, free = np.zeros(len(moment)), np.zeros(len(moment), bool) if start is None else start.copy()
    tolerance = 1e-12 * max(1.0, np.abs(moment).max())
    w[free] = np.maximum(solved(gram, moment, free)[free], 0) if free.any() else 0
    free &= w > 0
    for _ in range(10 * len(moment)):
        w, free = descended(gram, moment, w, free)
        slope = np.where(free, -np.inf, moment - gram @ w)  # of what is held at zero: how much it would gain
        if slope.max() <= tolerance:
            return w
        free[slope.argmax()] = True
    return w


def descended(gram, moment, w, free):
    """The best w with only `free` of its numbers; where that one is negative, it goes as far as it may, and lets go."""
    while free.any():
        best = solved(gram, moment, free)
        if (best[free] > 0).all():
            return best, free
        falls = free & (best <= 0)
        step = (w[falls] / np.maximum(w[falls] - best[falls], np.finfo(float).tiny)).min()
        w = np.where(free, w + step * (best - w), 0)
        held = falls & (w <= 1e-15 * max(1.0, w.max()))
        free = free & ~(held if held.any() else falls)
        w = np.where(free, w, 0)
    return np.zeros(len(moment)), free


def solved(gram, moment, free):
    """G w = b among the free numbers; the others are zero."""
    w = np.zeros(len(moment))
    w[free] = np.linalg.solve(gram[np.ix_(free, free)], moment[free])
    return w
