"""Low-rank adaptation: a frozen weight plus a thin product (Hu et al. 2022, equation 3).

The product is made once a step and added to the weight, so the layers know nothing of it; its gradient
is read off the weight's.
"""


def lora(weight, a, b, scale):
    """weight (I, O), a (I, r), b (r, O) -> weight + scale a b."""
    return weight + scale * (a @ b), (a, b, scale)


def lora_backward(dweight, cache):
    """dweight (I, O) -> da, db. W + s a b gives da = s dW bᵀ and db = s aᵀ dW; the frozen weight asks for nothing."""
    a, b, scale = cache
    return scale * (dweight @ b.T), scale * (a.T @ dweight)
