"""out = x W + b, with W stored (in, out) as GPT-2's checkpoints store it."""


def linear(x, weight, bias=None, frozen=False):
    """x (..., I), weight (I, O), bias (O,) -> (..., O). A frozen layer's cache does not keep x."""
    out = x.reshape(-1, x.shape[-1]) @ weight  # one product for all rows  (N, O)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], -1), (None if frozen else x, weight)


def linear_backward(dout, cache, grads=None):
    """dout (..., O) -> dx (..., I). out = x W + b gives dx = dout Wᵀ, dW = xᵀ dout, db = Σ dout."""
    x, weight = cache
    rows = dout.reshape(-1, dout.shape[-1])  # (N, O)
    if grads is not None:
        grads["weight"] += x.reshape(-1, x.shape[-1]).T @ rows
        if "bias" in grads:
            grads["bias"] += rows.sum(0)
    return (rows @ weight.T).reshape(*dout.shape[:-1], -1)
