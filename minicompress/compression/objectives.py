"""The objectives of compression, as losses over chunks of the vocabulary head.

Each factory returns objective(logits, rows) -> losses, dlogits for the places `rows` of a shard;
`weight` is one place's share in the batch's mean.
"""

from minicompress.arrays import array_module
from minicompress.layers import divergences
from minicompress.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    kl_divergence,
    kl_divergence_backward,
)

TOP_K = {
    "top-k": (divergences.top_k_kl, divergences.top_k_kl_backward),
    "top-k-renormalised": (divergences.top_k_renormalised_kl, divergences.top_k_renormalised_kl_backward),
    "top-k-tail": (divergences.top_k_tail_kl, divergences.top_k_tail_kl_backward),
}
DIVERGENCES = {
    "kl": (kl_divergence, kl_divergence_backward),
    "reverse-kl": (divergences.reverse_kl, divergences.reverse_kl_backward),
    "js": (divergences.jensen_shannon, divergences.jensen_shannon_backward),
    **TOP_K,
}
LOSSES = (*DIVERGENCES, "likelihood")


def divergence(loss, teacher_logp, weight, temperature=1.0, top_k=None):
    """From teacher_logp (N, V) at that temperature, by one of DIVERGENCES; `top_k` is how many tokens TOP_K's read."""
    forward, backward = DIVERGENCES[loss]
    sizes = {"k": top_k} if loss in TOP_K else {}

    def objective(logits, rows):
        losses, cache = forward(logits, teacher_logp[rows], temperature=temperature, **sizes)
        return losses * weight, backward(array_module(losses).full_like(losses, weight), cache)

    return objective


def kl(teacher_logp, weight, temperature=1.0):
    """KL(teacher ‖ student) (Wingate et al. 2022, equation 1); teacher_logp (N, V) at that temperature."""
    return divergence("kl", teacher_logp, weight, temperature)


def likelihood(targets, weight):
    """-log P(ŷ | σ, z): the teacher's own answer ŷ as targets (N,)."""

    def objective(logits, rows):
        losses, cache = cross_entropy(logits, targets[rows])
        return losses * weight, cross_entropy_backward(array_module(losses).full_like(losses, weight), cache)

    return objective


def check_loss(loss, top_k, vocabulary):
    """Raises ValueError where the loss is none of LOSSES, or its number of tokens is missing, idle or impossible."""
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; it can be {' or '.join(LOSSES)}")
    if (top_k is None) == (loss in TOP_K):
        raise ValueError(f"top_k is {top_k} and the loss {loss}; {', '.join(TOP_K)} have a top_k, the others have none")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ValueError(f"top_k is {top_k:,}; it must be from 1 to {vocabulary:,}, the size of the vocabulary")
