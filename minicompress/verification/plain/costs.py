"""Which predictions are scored, with what weight, and what each costs: right, and as people get them wrong."""

from typing import Any, NamedTuple

import numpy as np

from minicompress.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    kl_divergence,
    kl_divergence_backward,
    log_softmax,
)


class Asked(NamedTuple):
    """A batch and what is scored of it."""

    layout: Any
    targets: np.ndarray  # (B, T), the labels; -100 where there are none
    scored: np.ndarray  # (B, T)
    first: bool  # whether a row's first token is predicted, by the last slot
    teacher: np.ndarray | None  # (B, T, V), the teacher's logits for token t


class Places(NamedTuple):
    """N predictions that are scored."""

    row: np.ndarray  # (N,)
    column: np.ndarray  # (N,), of the logits
    t: np.ndarray  # (N,), the token that they predict; -1 for none
    target: np.ndarray  # (N,)
    weight: np.ndarray  # (N,), the share in the loss


def scored_places(asked, scored=None, total=None):
    """All scored tokens, each predicted one column before its own, each with the same share."""
    row, t = np.nonzero(asked.scored if scored is None else scored)
    before = np.where(t > 0, asked.layout.columns[row, np.maximum(t - 1, 0)], asked.layout.P - 1)
    weight = np.full(len(row), 1 / (total or len(row)))
    return Places(row, before, t, asked.targets[row, t], weight)


def cost(logits, places, teacher, temperature):
    """logits (N, V), the teacher's (N, V) or None -> losses (N,), dlogits (N, V)."""
    one = np.ones(len(logits), logits.dtype)
    if teacher is None:
        losses, cache = cross_entropy(logits, places.target)
        return losses, cross_entropy_backward(one, cache)
    losses, cache = kl_divergence(logits, log_softmax(teacher / temperature), temperature)
    return losses, kl_divergence_backward(one, cache)


# As people get the places wrong.


def not_shifted(asked):
    """The logits behind token t are held against token t itself."""
    places = scored_places(asked, asked.scored & (np.arange(asked.layout.T) > 0))
    return places._replace(column=asked.layout.columns[places.row, places.t])


def not_shifted_with_the_first(asked):
    places = scored_places(asked, asked.scored)
    return places._replace(column=asked.layout.columns[places.row, places.t])


def shifted_twice(asked):
    """Token t + 1 is held against the logits behind token t - 1."""
    places = scored_places(asked, asked.scored & (np.arange(asked.layout.T) > 1))
    return places._replace(column=asked.layout.columns[places.row, places.t - 2])


def also_places(places, row, column, t, target, share=True):
    """More places; share: all have the same weight, else the new ones have that of the old."""
    joined = [np.concatenate(pair) for pair in zip(places[:4], (row, column, t, target), strict=True)]
    weight = 1 / len(joined[0]) if share else places.weight[0]
    return Places(*joined, np.full(len(joined[0]), weight))


def with_slots(label, first=1):
    """Slots are scored too, as if each had this label: slots `first` to P-1, each predicted by the one before."""

    def places(asked):
        rows, P = len(asked.targets), asked.layout.P
        row, slot = (a.ravel() for a in np.meshgrid(np.arange(rows), np.arange(first, P), indexing="ij"))
        return also_places(scored_places(asked), row, slot - 1, 0 * row - 1, 0 * row + label)

    return places


def with_ignored(label, padding=False, share=True):
    """Places without a label are scored as if they had this one; padding: also those behind a row's end."""

    def places(asked):
        open_to_all = asked.layout.real | padding
        row, t = np.nonzero(~asked.scored & open_to_all & ((np.arange(asked.layout.T) > 0) | asked.first))
        before = np.where(t > 0, asked.layout.columns[row, np.maximum(t - 1, 0)], asked.layout.P - 1)
        return also_places(scored_places(asked), row, before, t, 0 * row + label, share)

    return places


def mean_of_row_means(asked):
    """Each row has the same share, however many of its tokens are scored."""
    places = scored_places(asked)
    per_row = np.bincount(places.row, minlength=len(asked.targets))
    return places._replace(weight=1 / (per_row[places.row] * (per_row > 0).sum()))


def divided_by(number):
    """number(asked, N) in place of N."""
    return lambda asked: scored_places(asked, total=number(asked, int(asked.scored.sum())))


def without_the_first(asked):
    """A row's first token is not scored, although the slots predict it."""
    return scored_places(asked, asked.scored & (np.arange(asked.layout.T) > 0))


# As people get the cost wrong, or agree on another one.


def reversed_kl(logits, places, teacher, temperature):
    """KL(student ‖ teacher)."""
    q, p = log_softmax(logits / temperature), log_softmax(teacher / temperature)
    losses = (np.exp(q) * (q - p)).sum(-1)
    return temperature**2 * losses, temperature * np.exp(q) * (q - p - losses[:, None])


def scaled_kl(power):
    """T^power in place of T²."""

    def cost_of(logits, places, teacher, temperature):
        losses, dlogits = cost(logits, places, teacher, temperature)
        return losses * temperature ** (power - 2), dlogits * temperature ** (power - 2)

    return cost_of


def one_sided_temperature(student, teacher_too):
    """The temperature on one side alone, with T² or without."""

    def cost_of(logits, places, teacher, temperature, power=2):
        T_student, T_teacher = temperature if student else 1.0, temperature if teacher_too else 1.0
        q, p = log_softmax(logits / T_student), log_softmax(teacher / T_teacher)
        losses = (np.exp(p) * (p - q)).sum(-1)
        return temperature**power * losses, temperature**power / T_student * (np.exp(q) - np.exp(p))

    return cost_of


def teacher_cross_entropy(logits, places, teacher, temperature):
    """-Σ p log q: the KL without the teacher's own entropy; its gradient is the same."""
    _, dlogits = cost(logits, places, teacher, temperature)
    p = np.exp(log_softmax(teacher / temperature))
    return -(temperature**2) * (p * log_softmax(logits / temperature)).sum(-1), dlogits


def top_k(k, renormalised):
    """KL over the teacher's k likeliest tokens: both sides renormalised on them, or neither."""

    def cost_of(logits, places, teacher, temperature):
        T, p, q = temperature, log_softmax(teacher / temperature), log_softmax(logits / temperature)
        kept = p >= np.partition(p, -k)[:, [-k]]
        if renormalised:
            p, q = (log_softmax(np.where(kept, side, -1e30)) for side in (p, q))
        mass = np.where(kept, np.exp(p), 0)
        losses = (mass * np.where(kept, p - q, 0)).sum(-1)
        return T * T * losses, T * (np.exp(q) * mass.sum(-1, keepdims=True) - mass)

    return cost_of


def times(factor):
    """The cost in another unit."""
    return lambda *args: tuple(factor * part for part in cost(*args))


def in_float32(logits, *rest):
    """The logits cast to float32 first, as Transformers does."""
    losses, dlogits = cost(logits.astype(np.float32), *rest)
    return losses.astype(logits.dtype), dlogits.astype(logits.dtype)
