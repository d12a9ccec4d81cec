"""How far a student is from a teacher, other than by KL(teacher ‖ student): both ways round, and from few tokens.

All take the student's logits and the teacher's log-probabilities at the same temperature T, both (N, V), and give
(N,), in nats and times T² as `kl_divergence` does. Below, p is the teacher and q = softmax(logits/T) the student.
"""

import math

from minicompress.arrays import array_module
from minicompress.layers.losses import kl_divergence, kl_divergence_backward, log_softmax


def reverse_kl(logits, teacher_logp, temperature=1.0):
    """T² KL(q ‖ p) = T² Σ q a, a = log q - log p."""
    T = temperature
    logq = log_softmax(logits / T if T != 1 else logits)
    q, a = array_module(logq).exp(logq), logq - teacher_logp
    kl = (q * a).sum(-1)
    return T * T * kl, (q, a, kl, T)


def reverse_kl_backward(dout, cache):
    """dout (N,) -> dlogits = T q (a - KL) dout."""
    q, a, kl, T = cache
    dlogits = T * dout[:, None] * q
    dlogits *= a - kl[:, None]
    return dlogits


def jensen_shannon(logits, teacher_logp, temperature=1.0, beta=0.5):
    """T² (β KL(p ‖ m) + (1-β) KL(q ‖ m)), m = β p + (1-β) q, 0 < β < 1 (Agarwal et al. 2024)."""
    xp, T = array_module(logits), temperature
    logq = log_softmax(logits / T if T != 1 else logits)
    p, q = xp.exp(teacher_logp), xp.exp(logq)
    a, b = over_mixture(teacher_logp, logq, beta)
    return T * T * (beta * p * a + (1 - beta) * q * b).sum(-1), (q, b, beta, T)


def jensen_shannon_backward(dout, cache):
    """dout (N,) -> dlogits = T (1-β) q (b - Σ q b) dout, b = log q - log m."""
    q, b, beta, T = cache
    dlogits = T * (1 - beta) * dout[:, None] * q
    dlogits *= b - (q * b).sum(-1, keepdims=True)
    return dlogits


def over_mixture(logp, logq, beta):
    """log(p/m), log(q/m) of m = β p + (1-β) q: from the smaller of p and q over the larger, so nothing overflows."""
    xp, d = array_module(logq), logp - logq
    more = d.real > 0  # where p is the larger
    below = xp.expm1(xp.where(more, -d, d))  # smaller / larger - 1
    larger = -xp.log1p(xp.where(more, (1 - beta) * below, beta * below))  # log(larger / m)
    return xp.where(more, larger, larger + d), xp.where(more, larger - d, larger)


def top_of(teacher_logp, k):
    """An index (N, 1), (N, k) of the teacher's k likeliest tokens in each row, in no order; of all V where k > V."""
    xp, (N, V) = array_module(teacher_logp), teacher_logp.shape
    k = min(k, V)
    return xp.arange(N)[:, None], xp.argpartition(-teacher_logp, k - 1, axis=-1)[:, :k]


def top_k_kl(logits, teacher_logp, k, temperature=1.0):
    """T² Σ p (log p - log q) over the teacher's top k, nothing renormalised (Eyuboglu et al. 2025, Cartridges).

    No divergence: at q = p it has a slope, and it is least, P log P < 0 with P = Σ_top p, where q = p / P on the top.
    """
    xp, T = array_module(logits), temperature
    logq, top = log_softmax(logits / T if T != 1 else logits), top_of(teacher_logp, k)
    logp = teacher_logp[top]  # (N, k)
    p = xp.exp(logp)
    return T * T * (p * (logp - logq[top])).sum(-1), (logq, p, top, T)


def top_k_kl_backward(dout, cache):
    """dout (N,) -> dlogits = T (P q - p on the top) dout."""
    logq, p, top, T = cache
    dlogits = array_module(logq).exp(logq)
    dlogits *= p.sum(-1, keepdims=True)
    dlogits[top] -= p
    dlogits *= T * dout[:, None]
    return dlogits


def top_k_renormalised_kl(logits, teacher_logp, k, temperature=1.0):
    """T² KL(p ‖ q), both as distributions over the teacher's top k alone."""
    top = top_of(teacher_logp, k)
    out, cache = kl_divergence(logits[top], log_softmax(teacher_logp[top]), temperature)
    return out, (cache, top, logits.shape)


def top_k_renormalised_kl_backward(dout, cache):
    """dout (N,) -> dlogits (N, V), zero outside the top."""
    cache, top, shape = cache
    dtop = kl_divergence_backward(dout, cache)
    dlogits = array_module(dtop).zeros(shape, dtop.dtype)
    dlogits[top] = dtop
    return dlogits


def tail_bucket(x, top):
    """x (N, V) -> (N, k+1): the entries of `top`, then the log of the sum of all other exponentials."""
    xp, rest = array_module(x), x.copy()
    rest[top] = -math.inf
    most = rest.real.max(-1, keepdims=True)
    rest = xp.exp(rest - most)
    total = rest.sum(-1, keepdims=True)
    return xp.concatenate([x[top], most + xp.log(total)], axis=-1), (rest / total, top)


def tail_bucket_backward(dout, cache):
    """dout (N, k+1) -> dx (N, V): the bucket's gradient is shared out as its mass is."""
    share, top = cache
    dx = share * dout[:, -1:]
    dx[top] = dout[:, :-1]
    return dx


def top_k_tail_kl(logits, teacher_logp, k, temperature=1.0):
    """T² KL(p ‖ q) over the teacher's top k and one bucket for all else: never more than the KL over V tokens.

    A bucket of one token is that token, so from k = V-1 on this is the KL itself.
    """
    T, top = temperature, top_of(teacher_logp, min(k, teacher_logp.shape[-1] - 1))
    student, bucket = tail_bucket(logits / T if T != 1 else logits, top)
    out, cache = kl_divergence(student, tail_bucket(teacher_logp, top)[0])
    return T * T * out, (cache, bucket, T)


def top_k_tail_kl_backward(dout, cache):
    """dout (N,) -> dlogits: T (q - p) dout on the top, T q (1 - p_tail / q_tail) dout in the tail."""
    cache, bucket, T = cache
    dlogits = tail_bucket_backward(kl_divergence_backward(dout, cache), bucket)
    dlogits *= T
    return dlogits
