"""Selectors: which tokens are kept, that all of them are the context itself, and bugs planted in the choice."""

import numpy as np
import pytest

import strict_device
from helpers import TINY, random_params
from minicompress.compression import select
from minicompress.compression.queries import Query, pad
from minicompress.compression.select import SELECTORS, TOKENS, means, places, self_information
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import predictors, read_tokens
from minicompress.layers.losses import log_softmax
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error
from test_planted_bugs import Bug, planted_error

PAIR = random_params(TINY, np.random.default_rng(0)), TINY
IDS = np.random.default_rng(1).integers(TINY.vocab_size, size=9).tolist()
ROW, SCORED = pad([Query([3, 5, 7], 1)])


def states(prefix):
    return predictors(*PAIR, prefix, ROW, SCORED)[0]


def lossless_error():
    full = states(read_tokens(*PAIR, IDS))
    made = [SELECTORS[name](PAIR, IDS, len(IDS), np.random.default_rng(0)) for name in (*TOKENS, "pooled-embeddings", "pooled-kv")]
    return max(relative_error(states(prompt.prefix(*PAIR)), full) for prompt in made)


def information_by_hand():
    """Each token's by a reading of what stands before it alone."""
    found = []
    for t in range(1, len(IDS)):
        hidden, _, _ = forward(*PAIR, embed(PAIR[0], np.array([IDS[:t]])))
        found.append(-log_softmax(logits(PAIR[0], hidden))[0, -1, IDS[t]] / np.log(2))
    return np.array(found)


def information_error():
    return relative_error(self_information(PAIR, IDS)[1:], information_by_hand())


def chosen_error():
    """The chosen tokens, read in their order as a text of their own."""
    wanted = {"first": [0, 1, 2, 3], "last": [5, 6, 7, 8], "first-last": [0, 1, 7, 8]}
    wanted["selective"] = sorted([0, *(1 + np.argsort(-information_by_hand()))][:4])
    errors = []
    for name, kept in wanted.items():
        prompt = SELECTORS[name](PAIR, IDS, 4, None)
        errors.append(relative_error(states(prompt.prefix(*PAIR)), states(read_tokens(*PAIR, [IDS[i] for i in kept]))))
    return max(errors)


def means_error():
    x = np.random.default_rng(2).standard_normal((7, 3))
    return relative_error(means(x, 3, 0), np.stack([x[0:2].mean(0), x[2:4].mean(0), x[4:7].mean(0)]))


CHECKS = {"lossless": lossless_error, "information": information_error, "chosen": chosen_error, "means": means_error}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


BUGS = [
    Bug("information of the token before", "information", select.self_information, "ids[1:]", "ids[:-1]"),
    Bug("nats called bits", "information", select.self_information, "/ np.log(2)", "/ 1"),
    Bug("the least informative kept", "chosen", select.places, "-self_information", "self_information"),
    Bug("order lost", "chosen", select.places, "np.sort(np.argsort(", "np.array(np.argsort("),
    Bug("the last ones from the wrong end", "chosen", select.places, "n - (k - head) : n", "n - k : n - head"),
    Bug("rows at the slots", "lossless", select.pooled_kv, "len(ids))", "len(ids) - 1)"),
    Bug("keys of one layer", "lossless", select.pooled_kv, "for k, v in past", "for k, v in past[:1] * len(past)"),
    Bug("parts that overlap", "means", select.means, "n * i // k", "n * i // k - 1"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch, impossible=(ValueError,)) > 1e-6


def test_random_places_are_distinct_in_order_and_of_the_seed():
    drawn = [places("random", PAIR, IDS, 5, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert all(np.all(np.diff(found) > 0) and len(found) == 5 for found in drawn)
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", SELECTORS)
def test_on_a_strict_device_the_same_bits(name):
    there = tree_map(strict_device.asarray, PAIR[0]), TINY
    ours, theirs = (SELECTORS[name](pair, IDS, 4, np.random.default_rng(0)).slots for pair in (PAIR, there))
    assert np.array_equal(ours, theirs.get())


@pytest.mark.parametrize("name", SELECTORS)
def test_more_slots_than_tokens(name):
    with pytest.raises(ValueError, match="the context has 9 tokens, of which 10 cannot be selected"):
        SELECTORS[name](PAIR, IDS, 10, np.random.default_rng(0))
