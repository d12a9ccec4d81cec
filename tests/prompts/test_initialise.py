"""Where slots begin: tokens evenly spaced, distinct words, noise like the embeddings; never the table itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.arrays import to_host
from minicompress.prompts.initialise import from_noise, from_tokens, from_vocabulary
from outer_checks import spacing_error, vocabulary_error

WTE = np.arange(40.0, dtype=np.float32).reshape(20, 2)


def rows(slots):
    """The tokens whose embeddings these are."""
    ids = (slots[:, 0] / 2).astype(int)
    assert (WTE[ids] == slots).all()
    return ids.tolist()


def test_spacing_by_hand():
    assert spacing_error() == 0


@given(ids=st.lists(st.integers(0, 19), min_size=1, max_size=30), slots=st.integers(1, 30))
def test_tokens_in_the_text_s_order_from_its_first_to_its_last(ids, slots):
    picked = rows(from_tokens(WTE, ids, slots))
    assert len(picked) == slots and picked[0] == ids[0]
    if len(ids) < slots:  # said again and again
        assert picked == (ids * slots)[:slots]
    else:
        later = iter(ids)
        assert all(token in later for token in picked)
        assert slots == 1 or picked[-1] == ids[-1]
    if len(ids) == slots:
        assert picked == ids


def test_words_of_the_vocabulary_are_distinct():
    assert vocabulary_error() == 0


def test_more_slots_than_words_repeat_some():
    picked = rows(from_vocabulary(WTE, 50, np.random.default_rng(0)))
    assert len(picked) == 50 and len(set(picked)) > 10


@pytest.mark.parametrize("mean, spread", [(0.0, 0.02), (3.0, 0.5), (-1.0, 2.0)])
def test_noise_has_the_mean_and_the_spread_of_the_embeddings(mean, spread, rng):
    wte = (mean + spread * rng.standard_normal((500, 64))).astype(np.float32)
    slots = from_noise(wte, 400, rng)
    assert abs(slots.mean() - mean) <= 0.05 * spread and abs(slots.std() / spread - 1) <= 0.05
    scores = (slots - mean) / spread
    assert abs((scores**4).mean() - 3) <= 0.3  # normal, not uniform


MADE = {
    "tokens": lambda wte, seed: from_tokens(wte, [3, 1, 4, 1, 5], 3),
    "vocabulary": lambda wte, seed: from_vocabulary(wte, 3, np.random.default_rng(seed)),
    "noise": lambda wte, seed: from_noise(wte, 3, np.random.default_rng(seed)),
}
each = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_and_dtype_are_the_embeddings_own(make, dtype):
    slots = make(WTE.astype(dtype), 0)
    assert slots.shape == (3, 2) and slots.dtype == dtype


@each
def test_changing_slots_leaves_the_embeddings_alone(make):
    wte = WTE.copy()
    make(wte, 0)[...] = -1
    assert wte.tobytes() == WTE.tobytes()


@each
def test_the_seed_decides_and_the_text_needs_none(make):
    first, again, other = (make(WTE, seed).tobytes() for seed in (0, 0, 1))
    assert first == again and (first == other) == (make is MADE["tokens"])


@each
def test_on_a_device_they_begin_where_they_do_on_the_host(make, xp):
    slots = make(xp.asarray(WTE), 0)
    assert type(slots) is type(xp.asarray(WTE)) and np.array_equal(to_host(slots), make(WTE, 0))
