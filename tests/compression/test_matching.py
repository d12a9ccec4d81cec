"""Attention Matching: exact with all keys, best in its own terms, and bugs planted in it; non-negative least squares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from helpers import TINY, random_params
from minicompress.compression import matching, nnls
from minicompress.compression.matching import CHOOSE, attention_matching, masses, matched, repeat_prefill
from minicompress.compression.queries import Query, pad
from minicompress.gpt2.prefix import predictors, read_tokens
from minicompress.layers.attention import softmax
from minicompress.trees import tree_map
from minicompress.verification.oracles import complex_step, relative_error
from test_planted_bugs import Bug, planted_error

PAIR = random_params(TINY, np.random.default_rng(0)), TINY
RNG = np.random.default_rng(1)
IDS = RNG.integers(TINY.vocab_size, size=9).tolist()
ROWS = [RNG.integers(TINY.vocab_size, size=n).tolist() for n in (6, 3, 9, 7)]
ROW, SCORED = pad([Query([3, 5, 7, 2], 1)])
each_choice = pytest.mark.parametrize("choose", CHOOSE)


def states(prefix):
    return predictors(*PAIR, prefix, ROW, SCORED)[0]


def lossless_error(choose="rms"):
    """As many slots as tokens, even where some reference rows are padded."""
    made = attention_matching(PAIR, IDS, len(IDS), ROWS, choose)
    return relative_error(states(made.prefix(*PAIR)), states(read_tokens(*PAIR, IDS)))


def head(seed=0, N=40, T=12, D=5):
    rng = np.random.default_rng(seed)
    return rng, *(rng.standard_normal(shape) for shape in ((N, D), (T, D), (T, D)))


def shares_of(q, k, beta):
    return softmax(q @ k.T + beta)


def values_error(seed=0, ridge=0.01, slots=5):
    """Where the values stand, the objective they are to minimise is level in every direction, by the complex step."""
    rng, q, k, v = head(seed)
    keys, values, beta = matched(q, k, v, slots, "rms", ridge)
    wanted, shares = softmax(q @ k.T) @ v, shares_of(q, keys, beta)
    own = v[[int(np.flatnonzero((k == key).all(1))[0]) for key in keys]]
    f = lambda x: (((shares @ x - wanted) ** 2).sum() + ridge * len(q) / slots * ((x - own) ** 2).sum())[None]
    u = rng.standard_normal(values.shape)
    return abs(complex_step(f, values, u, np.ones(1))) / abs(complex_step(f, values + u, u, np.ones(1)))


def nnls_error(seeds=range(30), k=20, n=22, warm=False):
    """Its optimality conditions: nothing negative, level where positive, not falling where zero."""
    errors = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        A, y = rng.standard_normal((n, k)), rng.standard_normal(n)
        gram, moment = A.T @ A + 1e-6 * np.eye(k), A.T @ y
        w = nnls.nnls(gram, moment, rng.random(k) < 0.5 if warm else None)
        slope = gram @ w - moment
        errors += [-w.min(), np.abs(slope[w > 0]).max(initial=0), -slope[w == 0].min(initial=0)]
    return max(errors)


def mass_error(seed=0, ridge=0.01, slots=5):
    """The conditions of the masses e^β: level where positive, not falling where zero."""
    _, q, k, v = head(seed)
    keys, _, beta = matched(q, k, v, slots, "rms", ridge)
    own, w = softmax(q @ k.T)[:, [int(np.flatnonzero((k == key).all(1))[0]) for key in keys]], np.exp(beta)
    slope = own.T @ (own @ w - 1) + ridge * len(q) / slots * (w - 1)
    return max(np.abs(slope[w > 0]).max(initial=0), -slope[w == 0].min(initial=0), -w.min()) / len(q)


def chosen_error(slots=4):
    _, q, k, v = head()
    p = softmax(q @ k.T)
    wanted = sorted(sorted(range(len(k)), key=lambda j: -math.sqrt((p[:, j] ** 2).mean()))[:slots])
    return relative_error(matched(q, k, v, slots, "rms", 0.01)[0], k[wanted])


def pursuit_error(slots=4):
    """Orthogonal matching pursuit, by hand: each key is the best of all that could be added, by what it points along."""
    _, q, k, _ = head()
    p, chosen = softmax(q @ k.T), []
    for _ in range(slots):
        missing = 1 - p[:, chosen] @ masses(p[:, chosen], 0.01) if chosen else np.ones(len(p))
        gains = {j: p[:, j] @ missing / math.sqrt((p[:, j] ** 2).sum()) for j in range(len(k)) if j not in chosen}
        chosen.append(max(gains, key=gains.get))
    return relative_error(np.array(CHOOSE["omp"](p, slots, 0.01), float), np.sort(chosen).astype(float))


def queries_error():
    """LayerNorm and the first third of c_attn, head by head, over the root of the head's width: by hand."""
    weights, C = PAIR[0]["h"]["0"], TINY.n_embd
    x = np.random.default_rng(3).standard_normal((1, 4, C))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + TINY.layer_norm_epsilon)
    normed = normed * weights["ln_1"]["weight"] + weights["ln_1"]["bias"]
    q = normed[0] @ weights["attn"]["c_attn"]["weight"][:, :C] + weights["attn"]["c_attn"]["bias"][:C]
    D = C // TINY.n_head
    by_hand = np.stack([q[:, h * D : (h + 1) * D] / np.sqrt(D) for h in range(TINY.n_head)])
    return relative_error(matching.queries_of(x, weights, TINY), by_hand)


def layered_error():
    """Behind compacted layers the queries are those of rows that read them: a fit of the last layer, done by hand."""
    made = attention_matching(PAIR, IDS, 4, ROWS)
    params, last = PAIR[0], TINY.n_layer - 1
    queries = []
    for row in ROWS:  # each alone, through the compacted layers before the last
        x = matching.embed(params, np.array([row]), len(IDS))
        for layer in range(last):
            past = (made.slots[layer, 0][None], made.slots[layer, 1][None], made.beta[layer][None])
            x, _, _ = matching.block(x, params["h"][str(layer)], TINY, past)
        queries.append(matching.queries_of(x, params["h"][str(last)], TINY))
    queries = np.concatenate(queries, axis=1)
    keys, values = read_tokens(*PAIR, IDS).past[last]
    by_hand = [matched(q, k, v, 4, "rms", 0.01) for q, k, v in zip(queries, keys[0], values[0], strict=True)]
    return max(
        relative_error(made.slots[last, 0], np.stack([k for k, _, _ in by_hand])),
        relative_error(made.slots[last, 1], np.stack([v for _, v, _ in by_hand])),
        relative_error(np.exp(made.beta[last]), np.exp(np.stack([b for *_, b in by_hand]))),
    )


CHECKS = {
    "lossless": lossless_error, "values": values_error, "masses": mass_error, "nnls": nnls_error, "chosen": chosen_error,
    "pursuit": pursuit_error, "layered": layered_error, "queries": queries_error,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-11


BUGS = [
    Bug("tokens at the slots' end", "lossless", matching.attention_matching, '"logical", len(ids), xp', '"logical", slots - 1, xp'),
    Bug("padding asks as well", "layered", matching.attention_matching, "np.arange(lengths.max()) < lengths[:, None]", "np.arange(lengths.max()) <= lengths[:, None]"),
    Bug("rows read nothing before them", "layered", matching.attention_matching, "block(x, weights, config, past[-1])", "block(x, weights, config)"),
    Bug("rows read the full context", "layered", matching.attention_matching, "block(x, weights, config, past[-1])", "block(x, weights, config, (keys, values))"),
    Bug("scores that are not scaled", "queries", matching.queries_of, "q.swapaxes(0, 1) * (1 / math.sqrt(q.shape[-1]))", "q.swapaxes(0, 1)"),
    Bug("values pulled to zero", "values", matching.matched, "shares.T @ (probs @ v - shares @ values)", "shares.T @ (probs @ v) - damped @ values"),
    Bug("shares without the masses", "values", matching.matched, "q @ keys.T + beta", "q @ keys.T"),
    Bug("masses pulled to zero", "masses", matching.masses, "own.sum(0) + damping", "own.sum(0)"),
    Bug("β is the mass, not its log", "masses", matching.matched, "beta = xp.log(", "beta = ("),
    Bug("the keys of least attention", "chosen", matching.by_rms, "np.argsort(-to_host", "np.argsort(to_host"),
    Bug("mean instead of root mean square", "chosen", matching.by_rms, "(probs * probs).mean(0)", "-probs.min(0)"),
    Bug("lengths not divided out", "pursuit", matching.by_pursuit, "np.maximum(length, np.finfo(float).tiny)", "1"),
    Bug("what is missing never updated", "pursuit", matching.by_pursuit, "missing = 1 -", "_ = 1 -"),
    Bug("negative masses", "nnls", nnls.descended, "(best[free] > 0).all()", "True"),
    Bug("held at zero for good", "nnls", nnls.nnls, "free[slope.argmax()] = True", "return w"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch, impossible=(ValueError, FloatingPointError)) > 1e-6


@each_choice
def test_all_keys_lose_nothing(choose):
    assert lossless_error(choose) <= 1e-11


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), n=st.integers(12, 30), warm=st.booleans())
def test_non_negative_least_squares(seed, k, n, warm):
    """Wherever it begins."""
    assert nnls_error([seed], k, n, warm) <= 1e-8


def test_a_mass_of_nothing_is_a_slot_that_is_not_there():
    made = attention_matching(PAIR, IDS, 3, ROWS)
    beta = made.beta.copy()
    beta[..., 1] = -np.inf
    gone = [x[..., [0, 2], :] if x.ndim == 5 else x[..., [0, 2]] for x in (made.slots, beta)]
    with_it, without = (type(made)(s, "kv", "logical", len(IDS), b) for s, b in ((made.slots, beta), gone))
    assert relative_error(states(with_it.prefix(*PAIR)), states(without.prefix(*PAIR))) <= 1e-14


def test_a_query_that_hardly_reads_the_kept_keys_is_no_division_by_zero():
    """In float32 its shares of the context underflow; those among the kept keys do not."""
    q = np.array([[-300, 0]] * 5 + [[200, 0]], np.float32)
    k = np.array([[0, 0], [1, 0]], np.float32)  # the first is read by five queries; beside the other the sixth never does
    keys, values, beta = matched(q, k, np.eye(2, dtype=np.float32), 1, "rms", 0.01)
    assert np.isfinite(values).all() and np.isfinite(beta).all()


def test_fitted_masses_are_better_than_none():
    full, made = states(read_tokens(*PAIR, IDS)), attention_matching(PAIR, IDS, 5, ROWS)
    flat = type(made)(made.slots, "kv", "logical", len(IDS), np.zeros_like(made.beta))
    assert relative_error(states(made.prefix(*PAIR)), full) < relative_error(states(flat.prefix(*PAIR)), full)


@each_choice
def test_on_a_strict_device_the_same_numbers(choose):
    there = tree_map(strict_device.asarray, PAIR[0]), TINY
    ours, theirs = (attention_matching(pair, IDS, 4, ROWS, choose) for pair in (PAIR, there))
    assert relative_error(ours.slots, theirs.slots.get()) <= 1e-13
    assert relative_error(np.exp(ours.beta), np.exp(theirs.beta.get())) <= 1e-13


def test_the_context_again_where_there_is_room_for_it():
    assert repeat_prefill(IDS, TINY) == [IDS]
    long = list(range(17)) + [0] * 3
    assert repeat_prefill(long, TINY) == [long[i : i + 4] for i in range(0, 20, 4)]
    with pytest.raises(ValueError, match="n_positions is 24; behind 24 context tokens none can be asked"):
        repeat_prefill([0] * 24, TINY)


def test_more_slots_than_tokens():
    with pytest.raises(ValueError, match="the context has 9 tokens, of which 10 keys cannot be chosen"):
        attention_matching(PAIR, IDS, 10, ROWS)
