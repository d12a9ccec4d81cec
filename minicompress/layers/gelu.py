"""GELU in the tanh form that GPT-2 was trained with (Hendrycks & Gimpel 2016, section 2)."""

import math

from minicompress.arrays import array_module, rowwise

ROOT = math.sqrt(2 / math.pi)
CUBE = 0.044715


def gelu(x):
    """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), any shape."""
    return rowwise(curve, x), x


def gelu_backward(dout, x):
    """With t = tanh(u(x)): dx = dout (1 + t + x (1 - t²) u') / 2 = dout (1 + t) (1 + x (1 - t) u') / 2."""
    return rowwise(times_slope, dout, x)


def curve(x):
    inner = x * x
    inner *= CUBE * ROOT
    inner += ROOT
    inner *= x  # √(2/π) (x + 0.044715 x³)
    out = array_module(x).tanh(inner)
    out += 1
    out *= x
    out *= 0.5
    return out


def times_slope(dout, x):
    t = x * x
    dx = t * (3 * CUBE * ROOT)
    dx += ROOT  # u'
    t *= CUBE * ROOT
    t += ROOT
    t *= x
    array_module(x).tanh(t, out=t)
    dx *= x
    dx *= 1 - t
    dx += 1
    t += 1
    dx *= t
    dx *= dout
    dx *= 0.5
    return dx
