"""A long short-term memory, one layer in one direction (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

Weights lie as PyTorch's nn.LSTM keeps them: (4h, ...), the rows of the gates i, f, g, o one below
the other, and two biases that are only ever added. A second layer, or a second direction, is a
second call.
"""

from minicompress.arrays import array_module
from minicompress.layers.linear import linear, linear_backward


def lstm(x, weight_ih, weight_hh, bias_ih, bias_hh, reverse=False):
    """x (B, T, I) -> out (B, T, h): c = f c + i g and out = o tanh(c), one step after another.

    The gates are i, f, o = sigmoid and g = tanh of W_ih x + b_ih + W_hh out + b_hh, with the `out`
    of the step before; the first step finds zeros. `reverse` reads from the last step to the
    first; out[:, t] belongs to x[:, t] either way.
    """
    xp, (B, T, _), h = array_module(x), x.shape, weight_hh.shape[1]
    asked, cache = linear(x, weight_ih.T, bias_ih + bias_hh)  # (B, T, 4h): the input's part of all gates
    out, before = xp.empty((2, B, T, h), asked.dtype)  # `before`: the out of the step before
    state = cell = xp.zeros((B, h), asked.dtype)
    steps = []
    for t in reversed(range(T)) if reverse else range(T):
        before[:, t] = state
        i, f, g, o = gates(asked[:, t] + state @ weight_hh.T)
        cell_before, cell = cell, f * cell + i * g
        tanh_cell = xp.tanh(cell)
        out[:, t] = state = o * tanh_cell
        steps.append((t, i, f, g, o, cell_before, tanh_cell))
    return out, (cache, steps, before, weight_hh)


def lstm_backward(dout, cache, grads=None):
    """dout (B, T, h) -> dx (B, T, I). The steps are taken from the last read to the first.

    `dstate` and `dcell` carry back what later steps asked of this one's output and memory. Slopes:
    s (1 - s) of a sigmoid s, 1 - g² of a tanh g.
    """
    cache, steps, before, weight_hh = cache
    xp, (B, T, h) = array_module(dout), dout.shape
    dasked, dstate, dcell = xp.empty((B, T, 4 * h), dout.dtype), 0, 0
    for t, i, f, g, o, cell_before, tanh_cell in reversed(steps):
        dstate = dout[:, t] + dstate
        dcell = dcell + dstate * o * (1 - tanh_cell * tanh_cell)
        di, df, dg, do = dcell * g, dcell * cell_before, dcell * i, dstate * tanh_cell
        parts = [di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)]
        dasked[:, t] = xp.concatenate(parts, axis=-1)
        dcell = dcell * f
        dstate = dasked[:, t] @ weight_hh
    if grads is not None:
        rows, (x, _) = dasked.reshape(B * T, 4 * h), cache
        grads["weight_ih"] += rows.T @ x.reshape(B * T, -1)
        grads["weight_hh"] += rows.T @ before.reshape(B * T, h)
        grads["bias_ih"] += rows.sum(0)
        grads["bias_hh"] += rows.sum(0)
    return linear_backward(dasked, cache)


def gates(z):
    """z (B, 4h) -> i, f, g, o, each (B, h)."""
    i, f, g, o = z.reshape(len(z), 4, -1).swapaxes(0, 1)
    return sigmoid(i), sigmoid(f), array_module(z).tanh(g), sigmoid(o)


def sigmoid(x):
    """1 / (1 + exp(-x)), by way of tanh, which cannot overflow."""
    return 0.5 + 0.5 * array_module(x).tanh(0.5 * x)
