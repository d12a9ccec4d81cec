"""Layer normalisation over the last axis (Ba et al. 2016)."""


def layernorm(x, weight, bias, eps=1e-5):
    """x (..., C) -> weight * (x - mean) / sqrt(var + eps) + bias, with the biased variance."""
    d = x - x.mean(-1, keepdims=True)
    rstd = ((d * d).mean(-1, keepdims=True) + eps) ** -0.5  # (..., 1)
    d *= rstd  # now x̂, of mean 0 and variance just under 1
    out = d * weight
    out += bias
    return out, (d, rstd, weight)


def layernorm_backward(dout, cache, grads=None):
    """dx = rstd (g - mean(g) - x̂ mean(g x̂)), with g = dout * weight.

    x̂ is unmoved by shifting x, and all but unmoved by stretching it: the two means take these
    directions out of g. `eps` is inside `rstd`, which is why the stretch is not removed exactly.
    """
    xhat, rstd, weight = cache
    if grads is not None:
        rows = tuple(range(dout.ndim - 1))
        grads["weight"] += (dout * xhat).sum(rows)
        grads["bias"] += dout.sum(rows)
    g = dout * weight
    shift = g.mean(-1, keepdims=True)
    stretch = (g * xhat).mean(-1, keepdims=True)
    g -= shift
    g -= xhat * stretch
    g *= rstd
    return g
