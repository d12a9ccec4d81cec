"""GELU in the tanh form that GPT-2 was trained with (Hendrycks & Gimpel 2016, section 2)."""

import math

from minicompress.arrays import array_module

ROOT = math.sqrt(2 / math.pi)
CUBE = 0.044715


def gelu(x):
    """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), any shape."""
    inner = x * x
    inner *= CUBE * ROOT
    inner += ROOT
    inner *= x  # √(2/π) (x + 0.044715 x³)
    out = array_module(x).tanh(inner)
    out += 1
    out *= x
    out *= 0.5
    return out, x


def gelu_backward(dout, x):
    """With t = tanh(u(x)): dx = dout (1 + t + x (1 - t²) u') / 2."""
    square = x * x
    inner = square * (CUBE * ROOT)
    inner += ROOT
    inner *= x
    t = array_module(x).tanh(inner)
    square *= 3 * CUBE * ROOT
    square += ROOT  # u'
    square *= x
    square *= 1 - t * t
    square += t
    square += 1
    square *= dout
    square *= 0.5
    return square
