"""The small network inside the other parameterisations: linear layers with one kind of activation between them.

params {"0": ..., "2": ..., "4": ...}: the activations count too, as in a PyTorch Sequential.
"""

import math

from minicompress.layers.linear import linear, linear_backward


def mlp_init(rng, widths, dtype):
    """Linear layers from each width to the next; weights and biases uniform in ±1/√in, as PyTorch draws them."""

    def layer(n_in, n_out):
        bound = 1 / math.sqrt(n_in)
        return {name: rng.uniform(-bound, bound, shape).astype(dtype)
                for name, shape in (("weight", (n_in, n_out)), ("bias", (n_out,)))}  # fmt: skip

    return {str(2 * n): layer(*pair) for n, pair in enumerate(zip(widths, widths[1:], strict=False))}


def mlp(x, params, activation):
    """x (..., I) -> (..., O). activation: relu or tanh."""
    caches = []
    for n in range(len(params)):
        if n:
            x, cache = activation(x)
            caches.append(cache)
        x, cache = linear(x, **params[str(2 * n)])
        caches.append(cache)
    return x, caches


def mlp_backward(dout, caches, activation_backward, grads):
    """dout (..., O) -> dx (..., I); adds to grads, a tree like params."""
    for n in reversed(range(len(caches))):  # linear layers at even n, activations between them
        dout = activation_backward(dout, caches[n]) if n % 2 else linear_backward(dout, caches[n], grads[str(n)])
    return dout
