"""Where slots begin: tokens of a text, words, labels, noise, another prompt; never the table itself."""

import numpy as np
import pytest
from beginning import CHECKS
from hypothesis import given
from hypothesis import strategies as st

from helpers import TINY
from letters import CONFIG, LETTERS, model
from minicompress.arrays import to_host
from minicompress.gpt2.prefix import read_slots
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.initialise import (
    from_labels,
    from_noise,
    from_prompt,
    from_tokens,
    from_uniform,
    from_vocabulary,
    from_words,
    initialise,
    recycling_map,
)
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error
from outer_checks import spacing_error, vocabulary_error
from reading import random_prompt

WTE = np.arange(40.0, dtype=np.float32).reshape(20, 2)


def rows(slots):
    """The tokens whose embeddings these are."""
    ids = (slots[:, 0] / 2).astype(int)
    assert (WTE[ids] == slots).all()
    return ids.tolist()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


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


def test_the_first_words_by_hand():
    assert rows(from_words(WTE, [3, 1, 4, 1, 5], 3)) == [3, 1, 4]
    assert rows(from_words(WTE, [3, 1], 5)) == [3, 1, 3, 1, 3]
    assert rows(from_words(WTE, [7], 1)) == [7]


def test_words_drawn_from_the_vocabulary_s_first():
    drawn = [rows(from_vocabulary(WTE, 5, np.random.default_rng(seed), most=6)) for seed in range(30)]
    assert all(len(set(ids)) == 5 and max(ids) < 6 for ids in drawn)
    assert {token for ids in drawn for token in ids} == set(range(6))
    assert len(set(rows(from_vocabulary(WTE, 9, np.random.default_rng(0), most=3)))) <= 3
    everywhere = [rows(from_vocabulary(WTE, 5, np.random.default_rng(seed), most=99)) for seed in range(30)]
    assert {token for ids in everywhere for token in ids} == set(range(20))


def test_labels_are_averaged_and_the_rest_is_drawn():
    labels = [[4], [1, 3, 11], [2, 2]]
    slots = from_labels(WTE, labels, 5, np.random.default_rng(0))
    assert slots[:3].tolist() == [WTE[4].tolist(), [10.0, 11.0], WTE[2].tolist()]  # tokens 1, 3, 11: (2 + 6 + 22) / 3
    assert slots[3:].tolist() == from_vocabulary(WTE, 5, np.random.default_rng(0))[3:].tolist()
    assert from_labels(WTE, labels, 2, np.random.default_rng(0)).tolist() == slots[:2].tolist()


def test_uniform_keeps_within_its_bounds_and_fills_them(rng):
    wte = np.zeros((3, 50), np.float32)
    for bound in (0.5, 2.0):
        slots = from_uniform(wte, 400, rng, bound)
        assert np.abs(slots).max() < bound and np.abs(slots).max() > 0.999 * bound
        assert abs(slots.mean()) <= 0.02 * bound and abs(slots.std() / (bound / 3**0.5) - 1) <= 0.02


@pytest.mark.parametrize("carrier, axis", [("embeddings", 0), ("hidden", 1), ("kv", 3)])
@pytest.mark.parametrize("slots", [1, 3, 4, 11])
def test_another_prompt_cut_or_said_again(carrier, axis, slots, rng):
    given = random_prompt(carrier, TINY, 4, rng).slots
    taken = from_prompt(given, slots, axis)
    assert taken.shape == slots_shape(carrier, TINY, slots)
    for slot in range(slots):
        assert (taken.take(slot, axis) == given.take(slot % 4, axis)).all()
    taken[...] = 0
    assert given.all()


@pytest.mark.parametrize("sizes", [(30, 30), (30, 25), (25, 30)])
def test_slots_recycled_by_an_exact_map(sizes, rng):
    """Where one table is a map of the other, it is found; over the tokens both have."""
    there = rng.standard_normal((6, 9))
    wte = rng.standard_normal((30, 6))
    found = recycling_map(wte[: sizes[0]], (wte @ there)[: sizes[1]])
    assert relative_error(found, there) <= 1e-12
    slots = rng.standard_normal((4, 6))
    assert relative_error(slots @ found, slots @ there) <= 1e-12


def test_a_map_that_is_not_exact_is_the_least_squares_one(rng):
    wte, other = rng.standard_normal((30, 6)), rng.standard_normal((30, 9))
    rest = wte @ recycling_map(wte, other) - other
    assert np.abs(wte.T @ rest).max() <= 1e-12  # what is left is at right angles to all that could be had


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
    "words": lambda wte, seed: from_words(wte, [3, 1, 4, 1, 5], 3),
    "first of the vocabulary": lambda wte, seed: from_vocabulary(wte, 3, np.random.default_rng(seed), 15),
    "labels": lambda wte, seed: from_labels(wte, [[3, 1]], 3, np.random.default_rng(seed)),
    "uniform": lambda wte, seed: from_uniform(wte, 3, np.random.default_rng(seed)),
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
    assert first == again and (first == other) == (make in (MADE["tokens"], MADE["words"]))


@each
def test_on_a_device_they_begin_where_they_do_on_the_host(make, xp):
    slots = make(xp.asarray(WTE), 0)
    assert type(slots) is type(xp.asarray(WTE)) and np.array_equal(to_host(slots), make(WTE, 0))


# By name, for every carrier.

TEXT = [LETTERS.index(letter) for letter in "a cat is here"]
HOW = ["text", "first", "vocab", "vocab:5", "labels:cat, dog", "noise", "uniform", "a dog"]
CARRIERS = ["embeddings", "hidden", "kv"]


def begin(how, carrier="embeddings", slots=4, seed=0, ids=TEXT, dtype=np.float64):
    given = model(dtype=dtype)
    return initialise(given.pair, given.tokenizer, how, slots, carrier, np.random.default_rng(seed), ids)


def letters_of(slots):
    """The text that these embeddings are."""
    wte = model().wte
    return "".join(LETTERS[int(np.flatnonzero((wte == slot).all(1))[0])] for slot in slots)


def test_beginnings_by_name():
    assert letters_of(begin("text")) == "".join("a cat is here"[round(i * 12 / 3)] for i in range(4))
    assert letters_of(begin("first")) == "a ca" and letters_of(begin("first", slots=15)) == "a cat is herea "
    assert letters_of(begin("a dog")) == "a do" and letters_of(begin("ab", slots=5)) == "ababa"
    assert set(letters_of(begin("vocab:5", slots=5))) == set(LETTERS[:5])
    assert len(set(letters_of(begin("vocab", slots=12)))) == 12
    labels = begin("labels:cat, dog", slots=3)
    for slot, label in zip(labels, (" cat", " dog"), strict=False):
        assert relative_error(slot, model().wte[[LETTERS.index(c) for c in label]].mean(0)) <= 1e-15
    assert len(letters_of(labels[2:])) == 1  # of the vocabulary
    assert np.abs(begin("uniform", slots=30)).max() <= 0.5


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_a_deep_carrier_begins_as_the_embeddings_do(how, carrier):
    """What the model makes of those embeddings: its keys and values, or the states before each layer."""
    given, stream = model(), []
    prefix, _ = read_slots(*given.pair, begin(how), watch=stream)
    expected = {"hidden": np.array([x[0] for x in stream[:-1]]),
                "kv": np.array([[part[0] for part in layer] for layer in prefix.past])}  # fmt: skip
    assert relative_error(begin(how, carrier), expected[carrier]) <= 1e-15


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("how", [*HOW, "normal", "zero"])
def test_shape_dtype_and_seed_of_every_beginning(how, carrier):
    for dtype in (np.float32, np.float64):
        slots = begin(how, carrier, dtype=dtype)
        assert slots.shape == slots_shape(carrier, CONFIG, 4) and slots.dtype == dtype
    first, again, other = (begin(how, carrier, seed=seed).tobytes() for seed in (0, 0, 1))
    drawn = how in ("vocab", "vocab:5", "labels:cat, dog", "noise", "uniform", "normal")
    assert first == again and (first != other) == drawn


@pytest.mark.parametrize("carrier", CARRIERS)
def test_zero_and_normal_are_of_the_carrier_itself(carrier):
    assert not begin("zero", carrier).any()
    many = begin("normal", carrier, slots=60)
    assert abs(many.mean()) <= 0.1 and abs(many.std() - 1) <= 0.1 and abs((many**4).mean() - 3) <= 1


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("how", [*HOW, "normal", "zero"])
def test_on_a_device_every_beginning_is_the_host_s(how, carrier, xp):
    given = model()
    there = tree_map(xp.asarray, given.pair[0]), CONFIG
    slots = initialise(there, given.tokenizer, how, 4, carrier, np.random.default_rng(0), TEXT)
    assert type(slots) is type(xp.asarray(0.0)) and relative_error(to_host(slots), begin(how, carrier)) <= 1e-12


@pytest.mark.parametrize("how, words", [
    ("", "--init is '', which has no token to begin with"), ("text", "--init is 'text', which has no token"),
    ("first", "--init is 'first', which has no token"), ("vocab:0", "--init is 'vocab:0'; .* at least 1"),
    ("labels: ,", "--init is 'labels: ,', which names no label; write labels:good,bad"),
])  # fmt: skip
def test_nothing_to_begin_with(how, words):
    with pytest.raises(ValueError, match=words):
        begin(how, ids=[])


@pytest.mark.parametrize("how", ["vocabulary", "zeros", "labels", "labels:", "vocab:a", "noise.", "text "])
def test_any_other_words_are_words(how):
    """A name is a name only as it is written."""
    assert letters_of(begin(how)) == how[:4]
