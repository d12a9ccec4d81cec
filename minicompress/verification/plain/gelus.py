"""GELU in the forms that are about, each with its slope."""

import math
from typing import Any, NamedTuple

import numpy as np

ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715


class Gelu(NamedTuple):
    f: Any
    slope: Any


def tanh_form(x):
    return x / 2 * (1 + np.tanh(ROOT * (x + CUBE * x**3)))


def tanh_slope(x, cube=3 * CUBE):
    """cube: what x² has in the inner derivative."""
    t = np.tanh(ROOT * (x + CUBE * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * ROOT * (1 + cube * x * x)


def erf(x):
    return np.vectorize(math.erf, otypes=[float])(x).astype(x.dtype)


def erf_form(x):
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def erf_slope(x):
    return (1 + erf(x / math.sqrt(2))) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def sigmoid_form(x):
    return x / (1 + np.exp(-1.702 * x))


def sigmoid_slope(x):
    s = 1 / (1 + np.exp(-1.702 * x))
    return s + 1.702 * x * s * (1 - s)


TANH = Gelu(tanh_form, tanh_slope)
ERF = Gelu(erf_form, erf_slope)
SIGMOID = Gelu(sigmoid_form, sigmoid_slope)
