"""The two objectives of compression, as losses over chunks of the vocabulary head.

Each factory returns objective(logits, rows) -> losses, dlogits for the places `rows` of a shard;
`weight` is one place's share in the batch's mean.
"""

from minicompress.arrays import array_module
from minicompress.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    kl_divergence,
    kl_divergence_backward,
)


def kl(teacher_logp, weight, temperature=1.0):
    """KL(teacher ‖ student) (Wingate et al. 2022, equation 1); teacher_logp (N, V) at that temperature."""

    def objective(logits, rows):
        losses, cache = kl_divergence(logits, teacher_logp[rows], temperature)
        return losses * weight, kl_divergence_backward(array_module(losses).full_like(losses, weight), cache)

    return objective


def likelihood(targets, weight):
    """-log P(ŷ | σ, z): the teacher's own answer ŷ as targets (N,)."""

    def objective(logits, rows):
        losses, cache = cross_entropy(logits, targets[rows])
        return losses * weight, cross_entropy_backward(array_module(losses).full_like(losses, weight), cache)

    return objective
