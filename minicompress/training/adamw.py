"""AdamW on trees of arrays: Adam with decoupled decay (Loshchilov & Hutter 2019), decay times lr as in PyTorch."""

import math

import numpy as np

from minicompress.arrays import array_module, few_rows, to_host, zeros_like
from minicompress.trees import flatten, tree_map


def adamw_init(params):
    """Step 0: first and second moments of zero, in the shape of the params."""
    return {"step": 0, "m": tree_map(zeros_like, params), "v": tree_map(zeros_like, params)}


def adamw_step(params, grads, state, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Updates params and state in place. Decay is decoupled, and spares vectors (biases, norms).

    p -= lr (m̂ / (√v̂ + eps) + decay p), with m̂ = m / (1 - β1ᵗ) and v̂ = v / (1 - β2ᵗ).
    """
    state["step"] += 1
    (b1, b2), t = betas, state["step"]
    rate, root = lr / (1 - b1**t), 1 / math.sqrt(1 - b2**t)

    def update(*arrays):
        for few in few_rows(arrays[0]):
            update_few(*(x[few] for x in arrays))

    def update_few(p, g, m, v):
        m *= b1
        m += (1 - b1) * g
        v *= b2
        v += (1 - b2) * (g * g)
        if weight_decay and p.ndim > 1:
            p *= 1 - lr * weight_decay
        p -= rate * m / (array_module(p).sqrt(v) * root + eps)

    tree_map(update, params, grads, state["m"], state["v"])


def clip_by_global_norm(grads, limit):
    """Scales all grads in place so that their joint length is at most `limit`; returns the length before.

    The norm is taken over the whole tree: clipping tensor by tensor would change the direction. It is
    summed in the names' order, not the dict's: a tree that comes back from a file may have another.
    Raises FloatingPointError where it is not finite, before anything could reach the weights.
    """
    norm = math.sqrt(float(to_host(sum((g * g).sum(dtype=np.float64) for _, g in sorted(flatten(grads).items())))))
    if not math.isfinite(norm):
        raise FloatingPointError("a gradient is not finite; lower the learning rate")
    if norm > limit:
        for g in flatten(grads).values():
            g *= limit / norm
    return norm
