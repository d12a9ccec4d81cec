"""Divergence from the full context, agreement with it, and recall."""

from dataclasses import dataclass

import numpy as np

from minicompress.arrays import array_module, to_host
from minicompress.compression.queries import answer_greedily, pad
from minicompress.gpt2 import logits
from minicompress.gpt2.prefix import predictors
from minicompress.layers.losses import log_softmax

BITS = 1 / np.log(2)
FLOOR = 0.01  # bits a token: where no context costs less than this, there is no gap to close


@dataclass(frozen=True)
class Scores:
    """Of one prefix on some queries; kl and agree hold an array for each query, a number for each scored place."""

    kl: list  # bits
    agree: list
    recall: float | None = None

    @property
    def mean_kl(self):
        return float(np.concatenate(self.kl).mean())

    @property
    def p95_kl(self):
        return float(np.quantile(np.concatenate(self.kl), 0.95))

    @property
    def agreement(self):
        return float(np.concatenate(self.agree).mean())


def score(model, tokenizer, prefix, queries, teacher, shards, rows=16):
    """KL(teacher ‖ this prefix) over the full vocabulary, top-1 agreement, and recall where answers are known."""

    def chunk(numbers):
        hidden, _ = predictors(*model, prefix, *pad([queries[i] for i in numbers]), keep="nothing")
        ours, theirs = log_softmax(logits(model[0], hidden)), teacher.logp(numbers)
        xp = array_module(ours)
        kl = to_host((xp.exp(theirs) * (theirs - ours)).sum(-1)).astype(np.float64) * BITS
        agree = to_host(ours.argmax(-1) == theirs.argmax(-1))
        ends = np.cumsum([len(queries[i].ids) - queries[i].start for i in numbers])[:-1]
        return list(zip(np.split(kl, ends), np.split(agree, ends), strict=True))

    chunks = [range(i, min(i + rows, len(queries))) for i in range(0, len(queries), rows)]
    parts = shards.map(lambda part: [pair for numbers in chunks[part] for pair in chunk(numbers)], len(chunks))
    kl, agree = zip(*[pair for part in parts for pair in part], strict=True)
    return Scores(list(kl), list(agree), recall(model, tokenizer, prefix, queries))


def recall(model, tokenizer, prefix, queries):
    """The share of known answers that free-running greedy decoding gives word for word; None without answers."""
    known = [q for q in queries if q.answer is not None]
    if not known:
        return None
    given = answer_greedily(model, tokenizer, prefix, [q.question for q in known])
    return float(np.mean([ours == q.answer.strip() for ours, q in zip(given, known, strict=True)]))


def gap_closed(none, row, rng, draws=2000):
    """G = (KL_none - KL_row) / KL_none, a ratio of means, and its 95% bootstrap interval over queries.

    None where no context costs almost nothing: there is then no gap. G may be negative. A single
    query has no interval.
    """
    if none.mean_kl < FLOOR:
        return None, None
    gap = 1 - row.mean_kl / none.mean_kl
    sums = np.array([(a.sum(), b.sum()) for a, b in zip(none.kl, row.kl, strict=True)])  # (Q, 2)
    if len(sums) == 1:
        return gap, None
    resampled = sums[rng.integers(len(sums), size=(draws, len(sums)))].sum(1)  # (draws, 2)
    resampled = resampled[resampled[:, 0] > 0]  # all of its queries may need no context
    ratios = 1 - resampled[:, 1] / resampled[:, 0]
    return gap, [float(q) for q in np.quantile(ratios, [0.025, 0.975])]


def mean_interval(values, rng, draws=2000):
    """The mean, and its 95% bootstrap interval over the values; None where there are none, or one alone."""
    if not values:
        return None, None
    values = np.asarray(values)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    return float(values.mean()), [float(q) for q in np.quantile(means, [0.025, 0.975])] if len(values) > 1 else None
