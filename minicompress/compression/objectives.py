"""The objectives of compression, as losses over chunks of the vocabulary head.

Each factory returns objective(logits, rows) -> losses, dlogits for the places `rows` of a shard;
`weight` is one place's share in the batch's mean.
"""

import math
from typing import NamedTuple

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
INSIDE = ("hidden", "attention")  # what these compare no head sees: inside.py
LOSSES = (*DIVERGENCES, "likelihood", *INSIDE)


class Term(NamedTuple):
    """One summand of a loss: a name of LOSSES, its weight, and its function's own options: k of a top-k, beta of js."""

    name: str
    weight: float = 1.0
    options: dict = {}


def read_loss(text, top_k=None):
    """`kl`, `kl+0.5*likelihood`, `js:0.3`: terms joined by +, each with a weight before * and js with its β behind :.

    Raises ValueError with what is wrong about the text; top_k, of every term in TOP_K, is looked at by `check_loss`.
    """
    terms = []
    for part in text.split("+"):
        weight, _, rest = part.strip().rpartition("*")
        name, colon, beta = rest.partition(":")
        if name not in LOSSES:
            raise ValueError(f"--loss is {name!r}; it can be {' or '.join(LOSSES)}, or a sum such as kl+0.5*likelihood")
        if colon and name != "js":
            raise ValueError(f"--loss {part}: of all losses js alone has a β, as in js:0.3")
        options = {"beta": number(beta, part, "its β", 1)} if colon else {"k": top_k} if name in TOP_K else {}
        terms.append(Term(name, number(weight, part, "its weight") if "*" in part else 1.0, options))
    return terms


def number(text, part, what, below=math.inf):
    """The number that a part of a loss names. Raises ValueError where there is none between 0 and `below`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < below:
        limit = "a finite number above 0" if below == math.inf else f"a number between 0 and {below}"
        raise ValueError(f"--loss {part}: {what} is {text!r}; {limit} is needed")
    return value


def objective_of(terms, weight, logp, targets, temperature=1.0):
    """The weighted sum of all terms. logp() and targets() give what terms read, and are asked only where one does."""
    theirs = logp() if any(term.name in DIVERGENCES for term in terms) else None
    parts = [
        likelihood(targets(), weight * term.weight)
        if term.name == "likelihood"
        else divergence(term.name, theirs, weight * term.weight, temperature, **term.options)
        for term in terms
    ]
    if len(parts) == 1:
        return parts[0]

    def objective(logits, rows):
        losses, dlogits = zip(*[part(logits, rows) for part in parts], strict=True)
        return sum(losses), sum(dlogits)

    return objective


def divergence(loss, teacher_logp, weight, temperature=1.0, **options):
    """From teacher_logp (N, V) at that temperature, by one of DIVERGENCES; options: k of TOP_K's, beta of js."""
    forward, backward = DIVERGENCES[loss]

    def objective(logits, rows):
        losses, cache = forward(logits, teacher_logp[rows], temperature=temperature, **options)
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
    """Raises ValueError where the loss cannot be read, or its number of tokens is missing, idle or impossible."""
    if (top_k is None) == any(term.name in TOP_K for term in read_loss(loss)):
        raise ValueError(f"top_k is {top_k} and the loss {loss}; {', '.join(TOP_K)} have a top_k, the others have none")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ValueError(f"top_k is {top_k:,}; it must be from 1 to {vocabulary:,}, the size of the vocabulary")
