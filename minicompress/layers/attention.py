"""Causal attention whose keys may outnumber its queries.

The T queries are the last T of S = P + T positions. The first P keys, the *past*, come from
outside: a soft prompt, a cached context, the tokens generated so far. One past may serve all
rows (its batch axis is then 1), and its gradient is the sum over them.

`attention` says what is computed. The model calls `attention_in_pieces`, which computes the same and
is twice as fast for long rows.
"""

import math

from minicompress.arrays import array_module

PIECE = 64  # queries; the scores of a piece should fit into a processor's cache


def attention(q, k, v, past=None, key_mask=None):
    """softmax(q kᵀ/√D + causal mask) v  (Vaswani et al. 2017, equation 1).

    q, k, v (B, H, T, D); past: keys and values, each (1 or B, H, P, D), and where it has one a
    log-mass β (1 or B, H, P): a key of mass e^β counts as e^β equal keys, β = -∞ as none.
    key_mask (B, S), or (B, T, S) for each query: False where it must not look. Returns out (B, H, T, D) and the cache.
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
        scores = xp.where(key_mask[:, None] if key_mask.ndim == 3 else key_mask[:, None, None], scores, -math.inf)
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


def attention_in_pieces(q, k, v, past=None, key_mask=None):
    """`attention`, a piece of the queries at a time: keys behind a piece, half of all in a long row, are not looked at.

    What stands before a piece is its past, as it is of a text read in pieces. It is not kept, but put together again.
    """
    P, outs, scaled, probs = past[0].shape[2] if past else 0, [], [], []
    for rows in pieces(q.shape[2]):
        before, mask = earlier(past, k, v, rows.start), seen_by(rows, key_mask, P + rows.stop)
        out, (q_piece, *_, p) = attention(q[:, :, rows], k[:, :, rows], v[:, :, rows], before, mask)
        outs.append(out)
        scaled.append(q_piece)
        probs.append(p)
    out = outs[0] if len(outs) == 1 else array_module(q).concatenate(outs, axis=2)
    return out, (tuple(scaled), k, v, past, tuple(probs))


def attention_in_pieces_backward(dout, cache):
    """dout (B, H, T, D) -> dq, dk, dv, dpast. A piece's gradient of its past is also that of the keys before it."""
    scaled, k, v, past, probs = cache
    if len(probs) == 1:
        return attention_backward(dout, (scaled[0], k, v, past, probs[0]))
    xp, P = array_module(dout), past[0].shape[2] if past else 0
    dpast = past and tuple(xp.zeros_like(part) for part in past)
    dq, dk, dv = (xp.empty_like(dout) for _ in range(3))
    for rows, q, p in zip(pieces(dout.shape[2]), scaled, probs, strict=True):
        piece = q, k[:, :, rows], v[:, :, rows], earlier(past, k, v, rows.start), p
        dq[:, :, rows], dk[:, :, rows], dv[:, :, rows], dbefore = attention_backward(dout[:, :, rows], piece)
        if rows.start:
            dk[:, :, : rows.start] += dbefore[0][:, :, P:]
            dv[:, :, : rows.start] += dbefore[1][:, :, P:]
        if past:
            for d, before in zip(dpast, dbefore, strict=True):
                d += shared(before[:, :, :P], d)
    return dq, dk, dv, dpast


def seen_by(rows, key_mask, keys):
    """Of a mask, or None, the part for these queries and so many keys."""
    if key_mask is None:
        return None
    return key_mask[:, :keys] if key_mask.ndim == 2 else key_mask[:, rows, :keys]


def pieces(T):
    """Slices of range(T)."""
    return [slice(start, min(start + PIECE, T)) for start in range(0, T, PIECE)]


def earlier(past, k, v, start):
    """The past of the query `start`: that of the whole row, and the row's own keys and values before it."""
    if not start:
        return past
    xp, own = array_module(k), (k[:, :, :start], v[:, :, :start])
    if not past:
        return own
    masses = xp.zeros_like(k[:, :, :start, 0])  # a mass of 1 for each
    each = [xp.broadcast_to(part, (len(k), *part.shape[1:])) for part in past]
    return tuple(xp.concatenate(pair, axis=2) for pair in zip(each, (*own, masses), strict=False))


def probabilities(cache):
    """How each query of `attention_in_pieces` shared out its attention: (B, H, T, S), 0 for the keys behind it."""
    *_, probs = cache
    xp, S = array_module(probs[0]), probs[-1].shape[-1]
    return xp.concatenate([xp.pad(p, [(0, 0)] * 3 + [(0, S - p.shape[-1])]) for p in probs], axis=2)


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
