"""Causal attention whose keys may outnumber its queries.

The T queries are the last T of S = P + T positions. The first P keys, the *past*, come from
outside: a soft prompt, a cached context, the tokens generated so far. One past may serve all
rows (its batch axis is then 1), and its gradient is the sum over them.
"""

import math

from minicompress.arrays import array_module


def attention(q, k, v, past=None, key_mask=None):
    """softmax(q kᵀ/√D + causal mask) v  (Vaswani et al. 2017, equation 1).

    q, k, v (B, H, T, D); past: keys and values, each (1 or B, H, P, D), and where it has one a
    log-mass β (1 or B, H, P): a key of mass e^β counts as e^β equal keys, β = -∞ as none.
    key_mask (B, S), False where a row must not look. Returns out (B, H, T, D) and the cache.
    """
    xp, T = array_module(q), q.shape[2]
    q = q * (1 / math.sqrt(q.shape[-1]))  # fewer numbers to scale than the scores
    scores = q @ k.swapaxes(-1, -2)  # (B, H, T, T)
    if T > 1:
        seen = xp.tri(T, dtype=bool)  # query t sees its own keys 0..t
        scores = xp.where(seen, scores, -math.inf)
    if past is not None:
        before = q @ past[0].swapaxes(-1, -2)  # (B, H, T, P)
        if len(past) == 3:
            before = before + past[2][..., None, :]
        scores = xp.concatenate([before, scores], axis=-1)  # (B, H, T, S)
    if key_mask is not None:
        scores = xp.where(key_mask[:, None, None, :], scores, -math.inf)
    probs = softmax(scores)
    out = probs[..., -T:] @ v
    if past is not None:
        out += probs[..., :-T] @ past[1]
    return out, (q, k, v, past, probs)


def attention_backward(dout, cache):
    """dout (B, H, T, D) -> dq, dk, dv, dpast. Masked places have probability 0, so they need no mask."""
    q, k, v, past, probs = cache
    T = q.shape[2]
    dprobs = dout @ v.swapaxes(-1, -2)  # (B, H, T, T)
    if past is not None:
        dprobs = array_module(q).concatenate([dout @ past[1].swapaxes(-1, -2), dprobs], axis=-1)
    dscores = softmax_backward(dprobs, probs)  # (B, H, T, S)
    dq = dscores[..., -T:] @ k
    dk = dscores[..., -T:].swapaxes(-1, -2) @ q
    dv = probs[..., -T:].swapaxes(-1, -2) @ dout
    if past is not None:
        dq += dscores[..., :-T] @ past[0]
    dq *= 1 / math.sqrt(q.shape[-1])
    if past is None:
        return dq, dk, dv, None
    dpast_k = dscores[..., :-T].swapaxes(-1, -2) @ q  # (B, H, P, D)
    dpast_v = probs[..., :-T].swapaxes(-1, -2) @ dout
    dbeta = [dscores[..., :-T].sum(-2)] if len(past) == 3 else []  # (B, H, P)
    return dq, dk, dv, tuple(shared(d, p) for d, p in zip((dpast_k, dpast_v, *dbeta), past, strict=True))


def shared(d, x):
    """The gradient of `x`, summed over the rows where one `x` served them all."""
    return d.sum(0, keepdims=True) if x.shape[0] == 1 else d


def softmax(x):
    """exp(x) / Σ exp(x) over the last axis; the maximum is taken off first, so nothing overflows."""
    x = x - x.real.max(-1, keepdims=True)
    array_module(x).exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def softmax_backward(dprobs, probs):
    """dx = p (dp - Σ p dp): a softmax cannot tell x from x + constant, so dx sums to zero."""
    dx = dprobs - array_module(probs).einsum("...s,...s->...", dprobs, probs)[..., None]
    dx *= probs
    return dx
