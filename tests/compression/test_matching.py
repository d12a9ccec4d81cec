"""Attention Matching: exact with all keys, best in its own terms, and bugs planted in it; non-negative least squares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from helpers import TINY, random_params
from minicompress.arrays import array_module, to_host
from minicompress.compression import matching, nnls
from minicompress.compression.matching import BUDGETS, CHOOSE, attention_matching, by_need, masses, matched
from minicompress.compression.queries import Query, pad
from minicompress.gpt2.prefix import predictors, read_tokens
from minicompress.layers.attention import attention, attention_backward, softmax
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import tree_map
from minicompress.verification.oracles import complex_step, relative_error
from test_planted_bugs import Bug, planted_error

PAIR = random_params(TINY, np.random.default_rng(0)), TINY
RNG = np.random.default_rng(1)
IDS = RNG.integers(TINY.vocab_size, size=9).tolist()
ROWS = [RNG.integers(TINY.vocab_size, size=n).tolist() for n in (6, 3, 9, 7)]
ROW, SCORED = pad([Query([3, 5, 7, 2], 1)])
each_choice = pytest.mark.parametrize("choose", CHOOSE)
each_budget = pytest.mark.parametrize("budget", BUDGETS)


def states(prefix):
    return predictors(*PAIR, prefix, ROW, SCORED)[0]


def lossless_error(choose="rms", budget="even"):
    """As many slots as tokens, even where some reference rows are padded."""
    made = attention_matching(PAIR, IDS, len(IDS), ROWS, choose, budget=budget)
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


def layered_error(budget="even"):
    """Behind compacted layers the queries are those of rows that read them: a fit of the last layer, done by hand."""
    made = attention_matching(PAIR, IDS, 4, ROWS, budget=budget)
    params, last = PAIR[0], TINY.n_layer - 1
    queries = []
    for row in ROWS:  # each alone, through the compacted layers before the last
        x = matching.embed(params, np.array([row]), len(IDS))
        for layer in range(last):
            past = (made.slots[layer, 0][None], made.slots[layer, 1][None], made.beta[layer][None])
            x, _, _ = matching.block(x, params["h"][str(layer)], TINY, past)
        queries.append(matching.queries_of(x, params["h"][str(last)], TINY))
    queries = np.concatenate(queries, axis=1)
    keys, values = (part[0] for part in read_tokens(*PAIR, IDS).past[last])
    counts = need_by_hand(queries, keys, 4) if budget == "by-need" else [4] * TINY.n_head
    by_hand = np.zeros_like(made.slots[last]), np.zeros_like(made.beta[last])
    for h, count in enumerate(counts):
        k, v, beta = matched(queries[h], keys[h], values[h], count, "rms", 0.01)
        by_hand[0][0, h, :count], by_hand[0][1, h, :count], by_hand[1][h, :count] = k, v, np.exp(beta)
    return max(relative_error(made.slots[last], by_hand[0]), relative_error(np.exp(made.beta[last]), by_hand[1]))


def heads_of(seed=0, H=4, N=30, T=12, D=5):
    """Queries (H, N, D) and keys (H, T, D): some heads look at few keys, some at nearly all."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((H, N, D)) * 4.0 ** -np.arange(H)[:, None, None], rng.standard_normal((H, T, D))


def need_by_hand(queries, keys, slots):
    """A key at a time: to the head whose next key has the greatest root mean square, until there are slots H in all."""
    probs = np.stack([softmax(q @ k.T) for q, k in zip(queries, keys, strict=True)])
    best = [sorted(root, reverse=True) for root in np.sqrt((probs**2).mean(1))]
    counts = [1 if slots == 1 else max(2, slots // 2)] * len(keys)
    while sum(counts) < slots * len(keys):
        may = [h for h, count in enumerate(counts) if count < min(2 * slots, keys.shape[1])]
        counts[max(may, key=lambda h: best[h][counts[h]])] += 1
    return counts


def need_error():
    """Budgets of heads, as a key at a time gives them; with few slots and with many."""
    found = lambda way: np.array([way(*heads_of(seed), slots) for seed in range(4) for slots in (1, 2, 3, 4, 6, 8, 12)])
    return relative_error(found(by_need).astype(float), found(need_by_hand).astype(float))


def equal_error():
    """Heads that are alike keep as many each."""
    queries, keys = (np.repeat(x[:1], 5, axis=0) for x in heads_of())
    return max(
        np.abs(by_need(queries, keys, slots) - matching.evenly(queries, keys, slots)).max() for slots in range(1, 13)
    )


def absent_error():
    """What stands in slots that a head does not use changes nothing, and gets no gradient: not by a bit."""
    made, rng = attention_matching(PAIR, IDS, 4, ROWS, budget="by-need"), np.random.default_rng(4)
    absent = ~made.slots[:, 0].any(-1)  # (L, H, P); of a model with random weights no key is zero
    slots = np.where(absent[:, None, ..., None], 1e3 * rng.standard_normal(made.slots.shape), made.slots)
    other = SoftPrompt(slots, "kv", "logical", len(IDS), made.beta)
    errors = [np.abs(states(other.prefix(*PAIR)) - states(made.prefix(*PAIR))).max(), float(not absent.any())]
    for layer in range(TINY.n_layer):
        shape = (2, TINY.n_head, 3, TINY.n_embd // TINY.n_head)
        q, k, v, dout = (rng.standard_normal(shape) for _ in range(4))
        past = made.slots[layer, 0][None], made.slots[layer, 1][None], made.beta[layer][None]
        *_, dpast = attention_backward(dout, attention(q, k, v, past)[1])
        errors += [np.abs(d[0][absent[layer]]).max(initial=0) for d in dpast]
    return max(errors, key=lambda error: (math.isnan(error), error))


def side_error():
    """Heads of 1, 3 and 2 keys side by side, written out."""
    rng = np.random.default_rng(5)
    heads = [tuple(rng.standard_normal(shape) for shape in ((n, 2), (n, 2), n)) for n in (1, 3, 2)]
    keys, values, mass = np.zeros((3, 3, 2)), np.zeros((3, 3, 2)), np.zeros((3, 3))
    for h, (k, v, beta) in enumerate(heads):
        keys[h, : len(k)], values[h, : len(k)], mass[h, : len(k)] = k, v, np.exp(beta)
    found = matching.side_by_side(heads)
    parts = zip((found[0], found[1], np.exp(found[2])), (keys, values, mass), strict=True)
    return max(relative_error(ours, by_hand) for ours, by_hand in parts)


CHECKS = {
    "lossless": lossless_error, "values": values_error, "masses": mass_error, "nnls": nnls_error, "chosen": chosen_error,
    "pursuit": pursuit_error, "layered": layered_error, "queries": queries_error,
    "layered by need": lambda: layered_error("by-need"), "need": need_error, "equal": equal_error,
    "absent": absent_error, "side by side": side_error,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-11


BUGS = [
    Bug("tokens at the slots' end", "lossless", matching.attention_matching, '"logical", len(ids), beta', '"logical", slots - 1, beta'),
    Bug("padding asks as well", "layered", matching.attention_matching, "np.arange(lengths.max()) < lengths[:, None]", "np.arange(lengths.max()) <= lengths[:, None]"),
    Bug("rows read nothing before them", "layered", matching.attention_matching, "config, tuple(part[None] for part in side_by_side(heads[-H:])))", "config)"),
    Bug("rows read the full context", "layered", matching.attention_matching, "config, tuple(part[None] for part in side_by_side(heads[-H:])))", "config, (keys, values))"),
    Bug("scores that are not scaled", "queries", matching.queries_of, "q.swapaxes(0, 1) * (1 / math.sqrt(q.shape[-1]))", "q.swapaxes(0, 1)"),
    Bug("values pulled to zero", "values", matching.matched, "shares.T @ (probs @ v - shares @ values)", "shares.T @ (probs @ v) - damped @ values"),
    Bug("shares without the masses", "values", matching.matched, "q @ keys.T + beta", "q @ keys.T"),
    Bug("masses pulled to zero", "masses", matching.masses, "own.sum(0) + damping", "own.sum(0)"),
    Bug("β is the mass, not its log", "masses", matching.matched, "beta = xp.log(", "beta = ("),
    Bug("the keys of least attention", "chosen", matching.by_rms, "np.argsort(-mean", "np.argsort(mean"),
    Bug("mean instead of root mean square", "chosen", matching.mean_square, "(probs * probs).mean(0)", "-probs.min(0)"),
    Bug("lengths not divided out", "pursuit", matching.by_pursuit, "np.maximum(length, np.finfo(float).tiny)", "1"),
    Bug("what is missing never updated", "pursuit", matching.by_pursuit, "missing = 1 -", "_ = 1 -"),
    Bug("budgets by mean attention", "need", matching.mean_square, "(probs * probs).mean(0)", "probs.mean(0)"),
    Bug("always as many in each head", "layered by need", matching.attention_matching, "BUDGETS[budget](", 'BUDGETS["even"]('),
    Bug("budgets that no head keeps to", "layered by need", matching.attention_matching, "int(count)", "slots"),
    Bug("rows read the heads in another order", "layered by need", matching.attention_matching, "heads[-H:]", "heads[-H:][::-1]"),
    Bug("a head may be left with nothing", "need", matching.by_need, "max(slots // 2, min(2, slots))", "0"),
    Bug("a head may be left with one key", "need", matching.by_need, "max(slots // 2, min(2, slots))", "max(slots // 2, 1)"),
    Bug("a head may take all", "need", matching.by_need, "[:, least:most]", "[:, least:]"),
    Bug("a head's own keys are pooled again", "need", matching.by_need, "[:, least:most]", "[:, :most]"),
    Bug("the least of what is read", "need", matching.by_need, "np.sort(-squares, axis=1)", "np.sort(squares, axis=1)"),
    Bug("keys of one head are another's", "need", matching.by_need, "least:most].T", "least:most]"),
    Bug("a head's own keys are not counted", "equal", matching.by_need, "least + np", "np"),
    Bug("a head's own keys come on top", "equal", matching.by_need, "(slots - least) * H", "slots * H"),
    Bug("absent slots of mass 1", "absent", matching.side_by_side, "-math.inf)", "0)"),
    Bug("nothing where no key is", "absent", matching.side_by_side, "(0, 0, -math.inf)", "(math.nan, math.nan, -math.inf)"),
    Bug("absent slots come first", "side by side", matching.side_by_side, "(0, P - len(x))", "(P - len(x), 0)"),
    Bug("keys and values change places", "side by side", matching.side_by_side, "zip(zip(*heads, strict=True)", "zip([[v for _, v, _ in heads], [k for k, *_ in heads], [b for *_, b in heads]]"),
    Bug("negative masses", "nnls", nnls.descended, "free & (best <= 0)", "free & (best <= -math.inf)"),
    Bug("held at zero for good", "nnls", nnls.nnls, "free[int(to_host(slope.argmax()))] = True", "return w"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    error = planted_error(bug, CHECKS, monkeypatch, impossible=(ValueError, FloatingPointError))
    assert not error <= 1e-6  # not a number is an answer too


@each_choice
@each_budget
def test_all_keys_lose_nothing(choose, budget):
    assert lossless_error(choose, budget) <= 1e-11


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
    k = np.array(
        [[0, 0], [1, 0]], np.float32
    )  # the first is read by five queries; beside the other the sixth never does
    keys, values, beta = matched(q, k, np.eye(2, dtype=np.float32), 1, "rms", 0.01)
    assert np.isfinite(values).all() and np.isfinite(beta).all()


def test_fitted_masses_are_better_than_none():
    full, made = states(read_tokens(*PAIR, IDS)), attention_matching(PAIR, IDS, 5, ROWS)
    flat = type(made)(made.slots, "kv", "logical", len(IDS), np.zeros_like(made.beta))
    assert relative_error(states(made.prefix(*PAIR)), full) < relative_error(states(flat.prefix(*PAIR)), full)


@given(seed=st.integers(0, 2**32 - 1), H=st.integers(1, 6), T=st.integers(1, 20), data=st.data())
def test_a_budget_is_spent_whole_and_no_head_goes_without(seed, H, T, data):
    slots = data.draw(st.integers(1, T))
    counts = by_need(*heads_of(seed, H, T=T), slots)
    assert counts.sum() == slots * H and counts.shape == (H,)
    assert counts.min() >= max(slots // 2, min(2, slots)) and counts.max() <= min(T, 2 * slots)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@each_choice
def test_heads_of_other_lengths_are_kept_in_a_file(choose, dtype, tmp_path):
    """-∞ and all, in the model's own type; the keys of all heads are as many as with an even budget."""
    pair = tree_map(lambda x: x.astype(dtype), PAIR[0]), TINY
    made = attention_matching(pair, IDS, 4, ROWS, choose, budget="by-need")
    counts = made.slots[:, 0].any(-1).sum(-1)  # (L, H)
    assert (counts.sum(1) == 4 * TINY.n_head).all() and made.length == counts.max() > 4 > counts.min()
    assert made.slots.dtype == made.beta.dtype == dtype and np.isfinite(made.slots).all()
    made.save(tmp_path / "prompt.safetensors")
    loaded = SoftPrompt.load(tmp_path / "prompt.safetensors")
    assert (loaded.slots == made.slots).all() and (loaded.beta == made.beta).all() and np.isneginf(loaded.beta).any()
    assert np.isfinite(states(loaded.prefix(*pair))).all()


@each_choice
@each_budget
def test_on_a_strict_device_the_same_numbers(choose, budget):
    there = tree_map(strict_device.asarray, PAIR[0]), TINY
    ours, theirs = (attention_matching(pair, IDS, 4, ROWS, choose, budget=budget) for pair in (PAIR, there))
    assert relative_error(ours.slots, theirs.slots.get()) <= 1e-13
    assert relative_error(np.exp(ours.beta), np.exp(theirs.beta.get())) <= 1e-13


def test_the_context_again_where_there_is_room_for_it():
    repeat_prefill = matching.repeat_prefill
    assert repeat_prefill(IDS, TINY) == [IDS]
    long = list(range(17)) + [0] * 3
    assert repeat_prefill(long, TINY) == [long[i : i + 4] for i in range(0, 20, 4)]
    with pytest.raises(ValueError, match="n_positions is 24; behind 24 context tokens none can be asked"):
        repeat_prefill([0] * 24, TINY)


def test_more_slots_than_tokens():
    with pytest.raises(ValueError, match="the context has 9 tokens, of which 10 keys cannot be chosen"):
        attention_matching(PAIR, IDS, 10, ROWS)


def test_non_negative_least_squares_on_either_device(xp, rng):
    """Where the arrays are, and to the bits of NumPy on the strict stand-in."""
    A, y = rng.standard_normal((30, 12)), rng.standard_normal(30)
    gram, moment, start = A.T @ A, A.T @ y, rng.random(12) < 0.5
    for guess in (None, start):
        ours = nnls.nnls(xp.asarray(gram), xp.asarray(moment), guess if guess is None else xp.asarray(guess))
        assert array_module(ours) is xp
        host = nnls.nnls(gram, moment, guess)
        assert np.allclose(to_host(ours), host, rtol=1e-12, atol=1e-14) and (host > 0).any() and (host == 0).any()
