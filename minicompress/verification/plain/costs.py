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
    soft: np.ndarray  # (B, T), slots among the rows' tokens
    first: bool  # whether a row's first token is predicted, by the last slot
    teacher: np.ndarray | None  # (B, T + 1, V), the teacher's logits for token t, and for what would follow the last


class Places(NamedTuple):
    """N predictions that are scored."""

    row: np.ndarray  # (N,)
    column: np.ndarray  # (N,), of the logits
    t: np.ndarray  # (N,), the token that they predict; -1 for none
    target: np.ndarray  # (N,)
    weight: np.ndarray  # (N,), the share in the loss
    guide: np.ndarray  # (N,), the token for which the teacher's word is taken


def scored_places(asked, scored=None, total=None):
    """All scored tokens, each predicted one column before its own, each with the same share."""
    row, t = np.nonzero(asked.scored if scored is None else scored)
    weight = np.full(len(row), 1 / max(1, total or len(row)))
    return Places(row, predictor(asked, row, t), t, asked.targets[row, t], weight, t)


def predictor(asked, row, t):
    """The column that predicts token t: that of the token before, or of the last slot."""
    return np.where(t > 0, asked.layout.columns[row, np.maximum(t - 1, 0)], asked.layout.P - 1)


def cost(logits, target, teacher, temperature):
    """logits (N, V), targets (N,), the teacher's log-probabilities (N, V) or None -> losses (N,), dlogits (N, V)."""
    one = np.ones(len(logits), logits.dtype)
    if teacher is None:
        losses, cache = cross_entropy(logits, target)
        return losses, cross_entropy_backward(one, cache)
    losses, cache = kl_divergence(logits, teacher, temperature)
    return losses / temperature**2, kl_divergence_backward(one / temperature**2, cache)


# As people get the places wrong.


def not_shifted(first):
    """The logits behind token t are held against token t itself; first: the first token too."""

    def places(asked):
        found = scored_places(asked, labelled(asked) & (first | (np.arange(asked.layout.T) > 0)))
        return found._replace(column=asked.layout.columns[found.row, found.t], guide=found.t + 1)

    return places


def labelled(asked):
    """(B, T), every token that has a label, whether anything predicts it or not."""
    return (asked.targets != -100) & asked.layout.real


def shifted_on(asked):
    """Token t is held against the logits behind token t + 1."""
    T = asked.layout.T
    there = asked.layout.real & (np.arange(T)[None] + 1 < asked.layout.lengths[:, None])
    places = scored_places(asked, labelled(asked) & there)
    after = np.minimum(places.t + 1, T - 1)
    return places._replace(column=asked.layout.columns[places.row, after], guide=np.minimum(places.t + 2, T))


def shifted_twice(asked):
    """Token t + 1 is held against the logits behind token t - 1."""
    places = scored_places(asked, asked.scored & (np.arange(asked.layout.T) > 1))
    return places._replace(column=asked.layout.columns[places.row, places.t - 2])


def also_places(places, row, column, t, label, share=True):
    """More places with one label; share: all have the same weight, else the new ones have that of the old."""
    pairs = zip(places[:4], (row, column, t, 0 * row + label), strict=True)
    joined, guide = [np.concatenate(pair) for pair in pairs], np.concatenate([places.guide, np.maximum(t, 0)])
    weight = 1 / len(joined[0]) if share else 1 / max(1, len(places.row))
    return Places(*joined, np.full(len(joined[0]), weight), guide)


def with_slots(label, share=True):
    """Slots are scored too, as if each had this label, or its row's first: all that something predicts."""

    def places(asked):
        if asked.soft.any():  # they stand in the rows
            row, t = np.nonzero(asked.soft & ~asked.scored & (np.arange(asked.layout.T) > 0))
            return also_places(scored_places(asked), row, predictor(asked, row, t), t, label, share)
        rows, P = len(asked.targets), asked.layout.P
        own = np.maximum(asked.targets[:, 0], 0) if label is None else np.full(rows, label)
        row, slot = (a.ravel() for a in np.meshgrid(np.arange(rows), np.arange(1, P), indexing="ij"))
        return also_places(scored_places(asked), row, slot - 1, 0 * row - 1, own[row], share)

    return places


def with_ignored(label, padding=False, share=True):
    """Places without a label are scored as if they had this one.

    padding: those behind a row's end instead, or the "first" of them; None: both.
    """

    def places(asked):
        wanted = ~asked.scored & (asked.layout.real != bool(padding) if padding is not None else True)
        if padding == "first":
            wanted &= np.arange(asked.layout.T) == asked.layout.lengths[:, None]
        row, t = np.nonzero(wanted & ((np.arange(asked.layout.T) > 0) | asked.first))
        return also_places(scored_places(asked), row, predictor(asked, row, t), t, label, share)

    return places


def mean_of_row_means(empty_too):
    """Each row has the same share, however many of its tokens are scored; rows without any count, or do not."""

    def places(asked):
        found, rows = scored_places(asked), len(asked.targets)
        per_row = np.bincount(found.row, minlength=rows)
        return found._replace(weight=1 / (per_row[found.row] * (rows if empty_too else (per_row > 0).sum())))

    return places


def mean_by_position(asked):
    """The mean over the positions of each one's mean over the rows."""
    found = scored_places(asked)
    rows = np.bincount(found.t, minlength=asked.layout.T)
    return found._replace(weight=1 / (rows[found.t] * (rows > 0).sum()))


def divided_by(number):
    """number(asked, N) in place of N."""
    return lambda asked: scored_places(asked, total=number(asked, int(asked.scored.sum())))


def without_the_first(asked):
    """A row's first token is not scored, although the slots predict it."""
    return scored_places(asked, asked.scored & (np.arange(asked.layout.T) > 0))


# As people get the cost wrong, or agree on another one.


def reversed_kl(logits, target, teacher, temperature):
    """KL(student ‖ teacher)."""
    q, p = log_softmax(logits / temperature), teacher
    losses = (np.exp(q) * (q - p)).sum(-1)
    return losses, np.exp(q) * (q - p - losses[:, None]) / temperature


def teacher_cross_entropy(logits, target, teacher, temperature):
    """-Σ p log q: the KL without the teacher's own entropy; its gradient is the same."""
    _, dlogits = cost(logits, target, teacher, temperature)
    return -(np.exp(teacher) * log_softmax(logits / temperature)).sum(-1), dlogits


def top_k(k, renormalised):
    """KL over the teacher's k likeliest tokens; on them renormalised are "both" sides, the "teacher", or "neither"."""

    def cost_of(logits, target, teacher, temperature):
        p, q = teacher, log_softmax(logits / temperature)
        kept = p >= np.partition(p, -k)[:, [-k]]
        on_kept = lambda side: log_softmax(np.where(kept, side, -1e30))
        p, q = p if renormalised == "neither" else on_kept(p), on_kept(q) if renormalised == "both" else q
        mass = np.where(kept, np.exp(p), 0)
        losses = (mass * np.where(kept, p - q, 0)).sum(-1)
        return losses, (np.exp(q) * mass.sum(-1, keepdims=True) - mass) / temperature

    return cost_of


def times(factor):
    """The cost in another unit."""
    return lambda *args: tuple(factor * part for part in cost(*args))
