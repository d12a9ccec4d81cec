"""Divergence, agreement, recall and the gap, on numbers small enough to work out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compression.queries import Query
from minicompress.evaluation import metrics
from minicompress.evaluation.metrics import FLOOR, Scores, gap_closed, recall, score
from minicompress.gpt2.prefix import read_tokens
from outer_checks import agreement_error, gap_interval_error, quantile_error, recall_error


def scores(*kl):
    return Scores([np.array(places, float) for places in kl], [])


def gap(none, sigma, seed=0):
    return gap_closed(scores(*none), scores(*sigma), np.random.default_rng(seed))


def test_means_are_over_places_not_over_queries():
    told = Scores([np.array([1.0, 2.0, 3.0]), np.array([6.0])], [np.array([True, True, False]), np.array([True])])
    assert (told.mean_kl, told.agreement) == (3.0, 0.75)


def test_the_95_percent_quantile_by_hand():
    assert quantile_error() <= 1e-15


def test_the_gap_is_a_ratio_of_means():
    found, interval = gap([[4], [1, 1]], [[1], [0.5, 0.9]])
    assert found == pytest.approx(1 - 2.4 / 6) and interval[0] <= found <= interval[1]


def test_the_whole_gap_none_of_it_and_worse_than_nothing():
    none = [[4], [2, 2]]
    assert gap(none, [[0], [0, 0]]) == (1, [1, 1])
    assert gap(none, none) == (0, [0, 0])
    assert gap(none, [[8], [4, 4]]) == (-1, [-1, -1])


def test_the_interval_by_hand():
    assert gap_interval_error() <= 1e-15


def test_where_no_context_costs_nothing_there_is_no_gap():
    assert gap([[0.9 * FLOOR], [0.9 * FLOOR]], [[0], [1]]) == (None, None)
    assert gap([[FLOOR], [FLOOR]], [[0], [0]]) == (1, [1, 1])


def test_a_single_query_has_a_gap_without_an_interval():
    assert gap([[1, 3]], [[1, 0]]) == (0.75, None)


def test_the_interval_narrows_with_the_number_of_queries():
    rng = np.random.default_rng(0)
    widths = []
    for n in (10, 1000):
        none = [[x] for x in rng.uniform(1, 3, n)]
        low, high = gap(none, [[x[0] * share] for x, share in zip(none, rng.uniform(0, 1, n), strict=True)])[1]
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 8))
def test_intervals_lie_between_the_worst_query_and_the_best_and_are_the_seed_s(seed, n):
    rng = np.random.default_rng(seed)
    none, sigma = ([rng.uniform(0.1, 3, k) for k in range(1, n + 1)] for _ in range(2))
    ratios = [1 - b.sum() / a.sum() for a, b in zip(none, sigma, strict=True)]
    found, (low, high) = gap(none, sigma, seed)
    assert min(ratios) - 1e-12 <= low <= high <= max(ratios) + 1e-12
    assert min(ratios) - 1e-12 <= found <= max(ratios) + 1e-12
    assert gap(none, sigma, seed) == (found, [low, high])


class Told:
    """A teacher whose distributions are given."""

    def __init__(self, logp):
        self.each = logp

    def logp(self, numbers):
        return np.concatenate([self.each[i] for i in numbers])


def test_a_divergence_in_bits_by_hand(monkeypatch, shards):
    """Between (1/2, 1/2) and (1/4, 3/4): 1 - log2(3)/2 bits. A uniform student costs the teacher's certainty: 1 bit."""
    students = np.log([[0.25, 0.75], [0.5, 0.5]])
    teacher = Told([np.log([[0.5, 0.5]]), np.log([[1 - 1e-15, 1e-15]])])
    monkeypatch.setattr(metrics, "predictors", lambda *_, **__: (None, None))
    monkeypatch.setattr(metrics, "logits", lambda *_: students + 3)
    queries = [Query([0, 1], 1), Query([0, 1], 1)]
    told = score((None, None), None, None, queries, teacher, shards)
    assert np.concatenate(told.kl) == pytest.approx([1 - math.log2(3) / 2, 1])
    assert told.recall is None


def test_agreement_by_hand():
    assert agreement_error() == 0


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_how_many_rows_are_read_at_once_does_not_matter(rows, new_run):
    run = new_run()
    queries, model = run.train + run.held, run.model
    prefix, teacher = read_tokens(*model.pair, run.ids[:4]), Told([])
    rng = np.random.default_rng(0)
    teacher.each = [np.log(rng.dirichlet(np.ones(33), len(q.ids) - q.start)) for q in queries]
    one, other = (score(*model[:2], prefix, queries, teacher, run.shards, n) for n in (16, rows))
    assert [len(kl) for kl in other.kl] == [len(q.ids) - q.start for q in queries]
    np.testing.assert_allclose(np.concatenate(other.kl), np.concatenate(one.kl), rtol=1e-11)
    assert np.array_equal(np.concatenate(other.agree), np.concatenate(one.agree)) and one.recall == other.recall


def test_recall_by_hand():
    assert recall_error() == 0


def test_without_known_answers_there_is_nothing_to_recall():
    assert recall(None, None, None, [Query([0, 1], 1, "q", None), Query([0, 1], 1)]) is None
