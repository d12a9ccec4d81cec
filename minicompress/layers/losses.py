"""What a distribution over the vocabulary costs: against a token, and against a teacher.

Both losses are returned per row, in nats, unreduced: the caller owns the mean, and says so once.
"""

from minicompress.arrays import array_module


def log_softmax(logits):
    """logits (..., V) -> log-probabilities (..., V)."""
    logits = logits - logits.real.max(-1, keepdims=True)
    xp = array_module(logits)
    logits -= xp.log(xp.exp(logits).sum(-1, keepdims=True))
    return logits


def cross_entropy(logits, targets):
    """-log softmax(logits)[target]. logits (N, V), targets (N,) -> (N,)."""
    logp = log_softmax(logits)
    rows = array_module(logits).arange(len(targets))
    return -logp[rows, targets], (logp, targets)


def cross_entropy_backward(dout, cache):
    """dout (N,) -> dlogits = (softmax(logits) - onehot(target)) dout."""
    logp, targets = cache
    xp = array_module(logp)
    dlogits = xp.exp(logp)
    dlogits[xp.arange(len(targets)), targets] -= 1
    dlogits *= dout[:, None]
    return dlogits


def kl_divergence(logits, teacher_logp, temperature=1.0):
    """T² KL(teacher ‖ softmax(logits/T)). logits, teacher_logp (N, V) -> (N,).

    `teacher_logp` are the teacher's log-probabilities at the same temperature. The factor T²
    keeps the gradient's size when T changes (Hinton et al. 2015, section 2.1).
    """
    xp, T = array_module(logits), temperature
    logp = log_softmax(logits / T if T != 1 else logits)
    p = xp.exp(teacher_logp)
    return T * T * (p * (teacher_logp - logp)).sum(-1), (logp, p, T)


def kl_divergence_backward(dout, cache):
    """dout (N,) -> dlogits = T (softmax(logits/T) - teacher) dout."""
    logp, p, T = cache
    dlogits = array_module(logp).exp(logp)
    dlogits -= p
    dlogits *= T * dout[:, None]
    return dlogits
