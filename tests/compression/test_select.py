"""Selectors: which tokens are kept, that all of them are the context itself, and bugs planted in the choice."""

import numpy as np
import pytest

import strict_device
from helpers import TINY, random_params
from minicompress.compression import select
from minicompress.compression.matching import queries_of
from minicompress.compression.queries import Query, pad
from minicompress.compression.select import SELECTORS, heavy_hitters, means, observed, places, self_information
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import predictors, read_tokens
from minicompress.layers.attention import softmax
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
    made = [make(PAIR, IDS, len(IDS), np.random.default_rng(0)) for make in SELECTORS.values()]
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


def attention_by_hand(ids=IDS, pair=PAIR):
    """(L, H, T, T): a reading's attention, of the stream before each block."""
    (params, config), stream, n = pair, [], len(ids)
    _, present, _ = forward(params, config, embed(params, np.array([ids])), keep="nothing", watch=stream)
    hidden = ~np.tri(n, dtype=bool)
    scores = [queries_of(x, params["h"][str(i)], config) @ present[i][0][0].swapaxes(1, 2) for i, x in enumerate(stream[:-1])]
    return np.stack([softmax(np.where(hidden, -np.inf, layer)) for layer in scores])


def heavy_by_hand(probs, k):
    """One head's, k // 2 of them the last."""
    T, recent = len(probs), k // 2
    received = {j: sum(probs[t, j] for t in range(j, T)) for j in range(T - recent)}
    return sorted(sorted(received, key=lambda j: (-received[j], j))[: k - recent]) + list(range(T - recent, T))


def observed_by_hand(probs, k, window=16):
    """One head's; the window looks back, and the two neighbours on either side lend their attention."""
    T, w = len(probs), min((k + 1) // 2, window)
    seen = [sum(probs[t, j] for t in range(T - w, T)) / w for j in range(T - w)]
    near = [max(seen[max(0, j - 2) : j + 3]) for j in range(T - w)]
    return sorted(sorted(range(T - w), key=lambda j: (-near[j], -seen[j], j))[: k - w]) + list(range(T - w, T))


def evicted_error(name, by_hand, sizes=(1, 2, 3, 4, 6, 8)):
    """The kept keys and values are those of the full reading, in each layer and head its own, and the rows follow it."""
    full, probs, errors = read_tokens(*PAIR, IDS).past, attention_by_hand(), []
    for k in sizes:
        made = SELECTORS[name](PAIR, IDS, k, None)
        kept = [[by_hand(head, k) for head in layer] for layer in probs]
        wanted = [[[part[0, h, places] for h, places in enumerate(heads)] for part in kv] for kv, heads in zip(full, kept, strict=True)]
        errors += [relative_error(made.slots, np.array(wanted)), float(made.prefix(*PAIR).start != len(IDS))]
    return max(errors)


def window_error():
    """A window that is shorter than half of k."""
    probs = attention_by_hand()[0]
    return float(np.abs(observed(probs, 6, window=2) - [observed_by_hand(head, 6, window=2) for head in probs]).max())


CHECKS = {
    "lossless": lossless_error, "information": information_error, "chosen": chosen_error, "means": means_error,
    "heavy hitters": lambda: evicted_error("h2o", heavy_by_hand),
    "observed": lambda: evicted_error("snapkv", observed_by_hand), "window": window_error,
}  # fmt: skip


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
    Bug("rows behind what eviction leaves", "heavy hitters", select.evicted, '"logical", len(ids)', '"logical", slots'),
    Bug("one head chooses for all", "heavy hitters", select.evicted, "at = like(chosen[..., None], x)", "at = like(0 * chosen[..., None] + chosen[:1, :, None], x)"),
    Bug("one layer chooses for all", "observed", select.evicted, "chosen = choose(probabilities(cache[\"attn\"][\"attention\"])[0], slots)", "chosen = chosen if left else choose(probabilities(cache[\"attn\"][\"attention\"])[0], slots)"),
    Bug("attention a token pays, not receives", "heavy hitters", select.heavy_hitters, "probs.sum(-2)", "probs.sum(-1)"),
    Bug("attention of the last query alone", "heavy hitters", select.heavy_hitters, "probs.sum(-2)", "probs[:, -1]"),
    Bug("the last tokens kept twice", "heavy hitters", select.heavy_hitters, "[:, : probs.shape[-1] - recent]", ""),
    Bug("all of the k are heavy", "heavy hitters", select.heavy_hitters, "recent = k // 2", "recent = 0"),
    Bug("the window sees itself", "observed", select.looked_at, "probs[:, n:, :n].mean(-2)", "probs[:, n:, w:].mean(-2)"),
    Bug("everything observes", "observed", select.looked_at, "probs[:, n:, :n]", "probs[:, :, :n]"),
    Bug("a pool of what stands behind", "observed", select.looked_at, "((0, 0), (half, half))", "((0, 0), (0, 2 * half))"),
    Bug("a pool by the least", "observed", select.looked_at, ".max(0)", ".min(0)"),
    Bug("no pool", "observed", select.looked_at, "for i in range(width)", "for i in [half]"),
    Bug("a window of any length", "window", select.observed, "min((k + 1) // 2, window)", "(k + 1) // 2"),
    Bug("ties to whoever is first", "observed", select.greatest, "np.lexsort((-ties, -scores))", "np.argsort(-scores, kind='stable')"),
    Bug("the least attended", "heavy hitters", select.greatest, "-scores", "scores"),
    Bug("by their score, not their place", "heavy hitters", select.greatest, "np.sort(np.lexsort((-ties, -scores))[:, :k])", "np.lexsort((-ties, -scores))[:, :k]"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch, impossible=(ValueError, IndexError)) > 1e-6


def test_attention_received_is_that_of_all_queries():
    probs = attention_by_hand()
    assert np.allclose(probs.sum((-1, -2)), len(IDS), rtol=1e-14)


def test_more_text_only_adds_to_what_a_token_received():
    """Causality: what is read later takes nothing back."""
    short, long = attention_by_hand(IDS[:6]), attention_by_hand()
    assert np.allclose(short, long[..., :6, :6], rtol=1e-12)
    assert (long.sum(-2)[..., :6] > short.sum(-2) - 1e-12).all()


@pytest.mark.parametrize("name", ["h2o", "snapkv"])
def test_a_token_that_takes_all_attention_is_kept(name):
    """All keys are 0 but that of one token, and no block changes the stream: one slot beside the last is enough."""
    C, where, rng = TINY.n_embd, 4, np.random.default_rng(5)
    params = random_params(TINY, rng)
    along = np.tile([1.0, -1.0], C // 2)  # LayerNorm leaves it as it is
    wte = rng.standard_normal((TINY.vocab_size, C))
    wte -= wte.mean(-1, keepdims=True)
    wte -= np.outer(wte @ along, along) / C
    wte[3] = along
    params["wte"]["weight"], params["wpe"]["weight"] = wte, 0 * params["wpe"]["weight"]
    for weights in params["h"].values():
        weights["ln_1"] = {"weight": np.ones(C), "bias": np.zeros(C)}
        for part in (weights["attn"]["c_proj"], weights["mlp"]["c_proj"]):
            part["weight"], part["bias"] = 0 * part["weight"], 0 * part["bias"]
        qkv = np.zeros((C, 3 * C))
        qkv[:, C : 2 * C] = np.outer(along, np.ones(C)) * 10  # k = 10 (x · along), q = 1
        weights["attn"]["c_attn"] = {"weight": qkv, "bias": np.r_[np.ones(C), np.zeros(2 * C)]}
    ids = [token if token != 3 else 5 for token in IDS]
    ids[where] = 3
    probs = attention_by_hand(ids, (params, TINY))
    assert (probs[:, :, where:, where] > 1 - 1e-12).all()
    keys = SELECTORS[name]((params, TINY), ids, 2, None).slots[:, 0]  # (L, H, 2, D)
    assert (keys[:, :, 0] > 1).all() and np.abs(keys[:, :, 1]).max() < 1e-12


def test_equal_scores_keep_the_earlier():
    probs = np.full((1, 8, 8), 1 / 8)  # each token receives the same
    assert heavy_hitters(probs, 4).tolist() == observed(probs, 4).tolist() == [[0, 1, 6, 7]]


def test_a_pool_brings_neighbours_along():
    probs = np.zeros((1, 12, 12))
    probs[0, -2:, 5] = 1
    assert observed(probs, 4, window=1).tolist() == [[3, 4, 5, 11]] and observed(probs, 2).tolist() == [[5, 11]]
    assert observed(probs, 4, window=1, width=1).tolist() == [[0, 1, 5, 11]]


@pytest.mark.parametrize("name", SELECTORS)
def test_a_context_of_one_token(name):
    assert SELECTORS[name](PAIR, IDS[:1], 1, np.random.default_rng(0)).length == 1


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


@pytest.mark.parametrize("name", ["selective", "pooled-kv", "h2o", "snapkv"])
def test_what_must_read_all_says_how_much_room_that_needs(name):
    ids = np.random.default_rng(0).integers(TINY.vocab_size, size=TINY.n_positions).tolist()
    said = f"n_positions is {TINY.n_positions}; {len(ids)} context tokens and one behind them need {len(ids) + 1}"
    with pytest.raises(ValueError, match=said):
        SELECTORS[name](PAIR, ids, 4, np.random.default_rng(0))
    SELECTORS["first"](PAIR, ids, 4, np.random.default_rng(0))
