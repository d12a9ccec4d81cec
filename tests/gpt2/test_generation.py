"""Writing with a cache equals reading everything anew; sampling is what its definition says, and a seed decides it."""

from dataclasses import replace
from itertools import product
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generating import CHECKS, FRONTS, LOGITS, RAGGED, distribution, generation_error, in_front, watched
from helpers import TINY, random_params
from minicompress.arrays import to_host
from minicompress.gpt2 import forward
from minicompress.gpt2.generate import generate, sample
from minicompress.gpt2.prefix import read_tokens
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error

SETTINGS = list(product([0.5, 1.0, 2.0], [None, 2, 3], [None, 0.5, 0.9]))


@pytest.fixture
def model(rng):
    return random_params(TINY, rng), TINY


class Constant:
    """A Generator that always draws the same number."""

    def __init__(self, value):
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


@given(
    kind=st.sampled_from(FRONTS),
    rows=st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=8), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_of_any_lengths_with_a_cache_equal_each_alone_without(kind, rows, steps, seed):
    assert generation_error(kind, rows, steps, seed) <= 1e-12


@pytest.mark.parametrize("kind", FRONTS)
def test_a_head_of_its_own(kind):
    assert generation_error(kind, config=replace(TINY, n_inner=5, tie_word_embeddings=False)) <= 1e-12


@pytest.mark.parametrize("kind", FRONTS)
def test_a_row_does_not_depend_on_the_others_of_its_batch(kind, model, rng):
    _, prefix = in_front(kind, model, rng)
    together, seen = watched(model, RAGGED, 6, prefix)
    for row, ids in enumerate(RAGGED):
        (alone,), alone_seen = watched(model, [ids], 6, prefix)
        assert alone == together[row] and relative_error(alone_seen[:, 0], seen[:, row]) <= 1e-12


def test_one_row_twice_is_written_twice_the_same(model):
    first, _, second = generate(*model, [[3, 1], [2], [3, 1]], 9)
    assert first == second


def test_writing_goes_on_where_it_stopped(model):
    """Eight tokens at once, or three, and then five behind row and those three."""
    whole = generate(*model, RAGGED, 8)
    begun = generate(*model, RAGGED, 3)
    rest = generate(*model, [ids + new for ids, new in zip(RAGGED, begun, strict=True)], 5)
    assert [a + b for a, b in zip(begun, rest, strict=True)] == whole


def test_other_devices_write_the_same(xp, model):
    params, context = model[0], [1, 2, 3]
    here, seen = watched(model, RAGGED, 6, read_tokens(*model, context))
    there = tree_map(xp.asarray, params), TINY
    tokens, their_seen = watched(there, RAGGED, 6, read_tokens(*there, context))
    assert tokens == here and relative_error(to_host(their_seen), seen) <= 1e-12


def test_float32_stays_float32(model):
    """Also in the memory of keys and values, behind a prefix, and as closely as its digits allow."""
    _, seen = watched(model, RAGGED, 6, read_tokens(*model, [1, 2, 3]))
    small = tree_map(lambda w: w.astype(np.float32), model[0]), TINY
    _, found = watched(small, RAGGED, 6, read_tokens(*small, [1, 2, 3]))
    assert found.dtype == np.float32 and relative_error(found, seen) <= 1e-5


# Where rows end.


def test_a_row_ends_with_the_token_at_which_stop_says_so(model):
    whole, asked = generate(*model, RAGGED, 8), []

    def stop(row, new):
        asked.append((row, list(new)))
        return len(new) == row + 1

    assert generate(*model, RAGGED, 8, stop=stop) == [new[: row + 1] for row, new in enumerate(whole)]
    assert asked == [(row, whole[row][: n + 1]) for n in range(4) for row in range(n, 4)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_when_the_others_end(temperature, model):
    def written(stop=None):
        return generate(*model, RAGGED, 8, stop=stop, rng=np.random.default_rng(1), temperature=temperature)

    assert written(lambda row, new: row != 2 and len(new) == 2)[2] == written()[2]


@pytest.mark.parametrize("stop, reads", [(None, [5, 1, 1, 1, 1, 1]), (lambda row, new: len(new) == 3, [5, 1, 1])], ids=["full", "stopped"])
def test_the_text_is_read_at_once_then_each_token_but_the_last(stop, reads, model):
    """Nothing more is read once all rows have ended, and nothing is kept for a backward."""
    with mock.patch("minicompress.gpt2.generate.forward", wraps=forward) as read:
        generate(*model, RAGGED, 6, stop=stop)
    assert [call.args[2].shape[1] for call in read.call_args_list] == reads
    assert {call.kwargs["keep"] for call in read.call_args_list} == {"nothing"}


def test_no_steps_write_nothing(model):
    assert generate(*model, [[1], [2, 3]], 0) == [[], []]


def test_the_last_position_can_be_used_and_no_more(model):
    prefix = read_tokens(*model, [1, 2, 3, 4])
    assert [len(new) for new in generate(*model, [[1], [2] * 10], 10, prefix)] == [10, 10]
    with pytest.raises(ValueError, match=r"n_positions is 24; 4 of prefix \+ 10 of text \+ 11 new tokens need 25"):
        generate(*model, [[1], [2] * 10], 11, prefix)


def test_an_empty_row_is_refused(model):
    with pytest.raises(ValueError, match="a row to continue is empty"):
        generate(*model, [[1], []], 3)


def test_ids_outside_the_vocabulary_are_refused(model):
    with pytest.raises(ValueError, match=r"span 0\.\.17.*0\.\.16"):
        generate(*model, [[1, 17], [0]], 3)


# Sampling.


def test_greedy_takes_the_likeliest_and_of_equals_the_first():
    assert sample(LOGITS).tolist() == LOGITS.argmax(-1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("temperature, top_k, top_p", SETTINGS)
def test_many_draws_follow_the_distribution(temperature, top_k, top_p, rng):
    """Counts of 40,000 draws lie within five standard deviations; what the definition leaves out never comes."""
    draws = 40_000
    for row in LOGITS:
        found = np.bincount(sample(np.tile(row, (draws, 1)), rng, temperature, top_k, top_p), minlength=6)
        probs = distribution(row, temperature, top_k, top_p)
        spread = np.sqrt(draws * probs * (1 - probs))
        assert (np.abs(found - draws * probs) <= 5 * spread + 1e-9).all()


@pytest.mark.parametrize("changes", [{"top_p": 1.0}, {"top_k": 300}, {"top_k": 301}, {"top_k": 300, "top_p": 1.0}], ids=str)
def test_limits_that_keep_everything_change_nothing(changes, rng):
    logits = 5 * rng.standard_normal((2000, 300))
    plain, limited = (sample(logits, np.random.default_rng(1), 0.7, **more) for more in ({}, changes))
    assert np.array_equal(plain, limited)


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-3}], ids=str)
def test_the_narrowest_limits_are_greedy(changes, rng):
    logits = rng.standard_normal((500, 30)).round(2)
    logits[:, 7] = logits.max(-1) + 0.1  # no two are equally likely
    assert (sample(logits, rng, **{"temperature": 1.0} | changes) == 7).all()


@pytest.mark.parametrize("top_p, kept", [(0.5, {0}), (0.500001, {0, 1}), (0.75, {0, 1}), (0.750001, {0, 1, 2}), (1.0, {0, 1, 2})])
def test_the_nucleus_is_the_fewest_that_reach_p(top_p, kept, rng):
    """Probabilities 1/2, 1/4, 1/4: a mass that reaches p exactly is enough; of equals, the first is taken."""
    logits = np.log(np.array([2.0, 1.0, 1.0]))
    assert set(sample(np.tile(logits, (2000, 1)), rng, 1.0, top_p=top_p).tolist()) == kept


def test_of_many_equals_the_first_make_the_nucleus(rng):
    """Weights of 1 and 3 mixed among 256 tokens: a sort that is not stable takes others of the 3s."""
    weights = rng.choice([1.0, 3.0], 256)
    found = set(sample(np.tile(np.log(weights), (4000, 1)), rng, 1.0, top_p=95.5 / weights.sum()).tolist())
    assert found == set(np.flatnonzero(weights == 3)[:32].tolist())  # 31 of them weigh less than 95.5


@pytest.mark.parametrize("top_k, kept", [(1, {0, 1, 3}), (3, {0, 1, 3}), (4, {0, 1, 2, 3, 5})])
def test_all_that_are_as_likely_as_the_k_th_are_kept(top_k, kept, rng):
    assert set(sample(np.tile(LOGITS[1], (4000, 1)), rng, 1.0, top_k).tolist()) == kept


@pytest.mark.parametrize("value", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("top_p", [None, 0.4, 0.9, 1.0])
def test_the_ends_of_the_interval_never_give_an_impossible_token(value, top_p, rng):
    logits = np.full((50, 12), -np.inf)
    logits[:, 3:8] = rng.standard_normal((50, 5))
    picked = sample(logits, Constant(value), 1.0, top_p=top_p)
    assert np.isfinite(logits[np.arange(50), picked]).all()


def test_logits_so_large_that_their_exponential_overflows(rng):
    assert set(sample(np.array([[1e4, 1e4 - 1, 0.0]] * 200, np.float32), rng, 1.0).tolist()) == {0, 1}


def test_a_seed_decides_what_is_written(model):
    options = {"temperature": 1.5, "top_k": 12, "top_p": 0.95}
    first, again, other = (generate(*model, RAGGED, 9, rng=np.random.default_rng(s), **options) for s in (1, 1, 2))
    assert first == again != other
