"""What an inspection says of a prompt, against a second way, and against what must be so exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest
from inspecting import CHECKS, DEEP, PROMPTS, TEXTS, Case, H, L, P, V

from checks import normal
from helpers import TINY, random_params
from minicompress.gpt2 import embed, forward, logits
from minicompress.layers.losses import log_softmax
from minicompress.prompts import inspection, nearest
from minicompress.prompts.carriers import lift
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import relative_error
from minicompress.verification.trace import trace

each = pytest.mark.parametrize("kind", PROMPTS)
CARRIERS = ("embeddings", "hidden", "kv")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_second_way(check):
    assert check() <= 1e-12


# Nearest tokens.


@pytest.mark.parametrize("carrier", CARRIERS)
def test_slots_that_are_tokens_have_these_nearest(carrier, rng):
    params, ids = random_params(TINY, rng), [5, 11, 5, 0, 16]
    slots = lift(params, TINY, params["wte"]["weight"][ids], carrier)
    found = nearest.nearest(params, TINY, SoftPrompt(slots, carrier), 3)
    for measure, first in (("cosine", 1), ("euclidean", 0)):
        ids_found, values = found[measure]
        assert ids_found[:, 0].tolist() == ids
        np.testing.assert_allclose(values[:, 0], first, rtol=0, atol=1e-14)
    if carrier != "kv":  # the model makes keys of all at once; its products may round otherwise
        assert (found["euclidean"][1][:, 0] == 0).all()


@pytest.mark.parametrize("k", [1, 5, V, V + 5])
def test_nearest_first_and_no_more_than_there_are(k):
    case = Case()
    found = nearest.nearest(case.params, TINY, case.prompt, k)
    for measure, sign in (("cosine", -1), ("euclidean", 1)):
        ids, values = found[measure]
        assert ids.shape == values.shape == (P, min(k, V)) and (np.diff(sign * values) >= 0).all()
        assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize("words", [1, 2, 16, 17, 18])
def test_parts_of_the_vocabulary_do_not_matter(words, monkeypatch):
    case = Case()
    whole = nearest.nearest(case.params, TINY, case.prompt, 6)
    monkeypatch.setattr(nearest, "WORDS", words)
    parts = nearest.nearest(case.params, TINY, case.prompt, 6)
    for measure in whole:
        assert (parts[measure][0] == whole[measure][0]).all()
        np.testing.assert_allclose(parts[measure][1], whole[measure][1], rtol=1e-14)


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_slots_beyond_the_last_position_are_compared_at_it(carrier, rng):
    params, n = random_params(TINY, rng), TINY.n_positions
    slots = lift(params, TINY, params["wte"]["weight"][rng.integers(V, size=n)], carrier)
    longer = np.concatenate([slots, slots.take([n - 1, n - 1], axis=-2)], axis=-2)
    prompt = SoftPrompt(longer, carrier, "unshifted")
    ids, values = nearest.nearest(params, TINY, prompt, 1)["euclidean"]
    assert (ids[-2:] == ids[n - 1]).all() and np.abs(values).max() <= 1e-13


def test_a_slot_of_zeros_is_near_none_by_cosine():
    case = Case()
    found = nearest.nearest(case.params, TINY, replace(case.prompt, slots=np.zeros((2, 12))), 3)
    assert (found["cosine"][1] == 0).all() and found["cosine"][0].tolist() == [[0, 1, 2]] * 2
    shortest = np.sort(np.linalg.norm(case.params["wte"]["weight"], axis=1))[:3]
    np.testing.assert_allclose(found["euclidean"][1], [shortest] * 2)


# The way from the first slots.


def test_who_does_not_know_how_it_began_has_not_moved():
    assert inspection.moved(Case().prompt) is None


@each
def test_where_nothing_moved(kind):
    prompt = Case(kind).prompt
    told = inspection.moved(replace(prompt, initial=prompt.slots.copy()))
    assert told["distance"].tolist() == told["relative"].tolist() == [0] * P
    np.testing.assert_allclose(told["cosine"], 1, rtol=1e-15)


def test_a_file_without_first_slots_has_none(tmp_path):
    Case().prompt.save(tmp_path / "p")
    assert SoftPrompt.load(tmp_path / "p").initial is None


@pytest.mark.parametrize("bad", [np.ones((2, 12)), np.ones((3, 13)), np.full((3, 12), np.nan)])
def test_first_slots_of_another_shape_are_refused(bad, tmp_path):
    replace(Case().prompt, initial=bad).save(tmp_path / "p")
    with pytest.raises(ValueError, match=r"p is not a soft prompt .*: its initial slots have shape \[\d, 1\d\]"):
        SoftPrompt.load(tmp_path / "p")


# Attention.


@each
def test_slots_and_tokens_share_all_attention(kind):
    """Against the trace, which has the weights of the tokens' own columns; embeddings in rows are among these."""
    case = Case(kind)
    tensors = trace((case.params, TINY), case.rows, case.prompt)
    total, tokens = np.zeros((L, H)), 0
    for b, row in enumerate(case.rows):
        for t, token in enumerate(row):
            if token >= 0:
                own = [s for s, other in enumerate(row) if other >= 0]
                before = 0 if case.prompt.in_rows else P
                weights = np.array([tensors[f"attention.{layer}"][b, :, t] for layer in range(L)])
                total, tokens = total + weights[..., [before + s for s in own]].sum(-1), tokens + 1
    np.testing.assert_allclose(case.found["attention"].sum(-1) + total / tokens, 1, rtol=1e-13)


def test_a_key_without_mass_gets_no_attention():
    case = Case("kv with masses")
    case.prompt.beta[:, :, 1] = -np.inf
    assert (case.found["attention"][..., 1] == 0).all() and (case.found["attention"][..., [0, 2]] > 0).all()


# The logit lens.


def test_after_the_last_layer_the_last_slot_says_what_it_predicts():
    case = Case()
    first = trace((case.params, TINY), case.rows, case.prompt)["first_logits"][0]
    tokens, chances = case.found["lens"]
    assert tokens.shape == chances.shape == (L + 1, P) and tokens[-1, -1] == first.argmax()
    np.testing.assert_allclose(chances[-1, -1], np.exp(log_softmax(first)).max(), rtol=1e-13)


def test_hidden_states_of_embeddings_are_read_like_these(rng):
    case = Case()
    hidden = SoftPrompt(lift(case.params, TINY, case.prompt.slots, "hidden"), "hidden")
    theirs = inspection.over_texts(case.params, TINY, hidden, TEXTS, [0, 0, 0])["lens"]
    for ours, other in zip(case.found["lens"], theirs, strict=True):
        np.testing.assert_allclose(ours[:-1], other, rtol=1e-13)  # they have no end


def test_keys_and_values_have_no_residual():
    assert Case("kv").found["lens"] is None


# Leaving out.


def test_a_key_without_mass_can_be_left_out():
    case = Case("kv with masses")
    case.prompt.beta[:, :, 1] = -np.inf
    assert abs(case.found["kl"][1]) <= 1e-15 and abs(case.found["loss"][1]) <= 1e-14
    assert (case.found["kl"][[0, 2]] > 1e-4).all()


@pytest.mark.parametrize("kind", DEEP)
def test_leaving_out_a_key_is_giving_it_no_mass(kind):
    """Against the prompt itself as keys and values with a log-mass of -∞, read in the ordinary way."""
    case = Case(kind)
    past = case.past
    slots = np.stack([np.stack([k, v]) for k, v, _ in past])
    less = np.stack([masses for *_, masses in past])
    less[:, :, 1] = -np.inf
    offset = None if case.prompt.offset is None else case.prompt.offset
    blind = SoftPrompt(slots, "kv", case.prompt.positions, offset, less)
    kl, n = 0.0, 0
    for row in case.rows:
        whole, other = (predictions(case.params, p, row) for p in (case.prompt, blind))
        kl, n = kl + (np.exp(whole) * (whole - other))[:-1].sum() / math.log(2), n + len(row) - 1
    assert n == case.found["places"][1]
    np.testing.assert_allclose(case.found["kl"][1], kl / n, rtol=1e-12)


def predictions(params, prompt, row):
    """Log-probabilities (T, V) after each token of a row."""
    prefix = prompt.prefix(params, TINY)
    return log_softmax(logits(params, forward(params, TINY, embed(params, [row], prefix.start), prefix.past)[0])[0])


@pytest.mark.parametrize("kind", [kind for kind in PROMPTS if "rows" not in kind])
def test_without_its_only_slot_a_prompt_is_none_and_positions_are_kept(kind):
    case = Case(kind, slots=1)
    kl, n = 0.0, 0
    for row in case.rows:
        nothing = logits(case.params, forward(case.params, TINY, embed(case.params, [row], case.prompt.start))[0])[0]
        whole, alone = predictions(case.params, case.prompt, row), log_softmax(nothing)
        kl, n = kl + (np.exp(whole) * (whole - alone))[:-1].sum() / math.log(2), n + len(row) - 1
    assert case.found["places"].tolist() == [n]
    np.testing.assert_allclose(case.found["kl"], kl / n, rtol=1e-12)


def test_a_place_that_only_the_slot_predicted_is_skipped():
    case = Case(rows=[[6], [7]], starts=[0, 0])
    assert case.found["places"].tolist() == [2, 2, 0] and (case.found["kl"][:2] > 0).all()
    assert np.isnan([case.found["kl"][2], case.found["loss"][2]]).all()


def test_where_nothing_is_scored_there_is_still_attention():
    case = Case("kv", rows=[[6], [7]], starts=[0, 0])
    assert case.found["places"].tolist() == [0] * P and np.isnan(case.found["kl"]).all()
    assert np.isfinite(case.found["attention"]).all()


@each
def test_divergences_are_positive_and_the_prompt_is_left_as_it_was(kind):
    case = Case(kind)
    before = {name: a.tobytes() for name, a in flatten(case.params).items()}, case.prompt.slots.tobytes()
    assert (case.found["kl"] > 0).all()
    assert ({name: a.tobytes() for name, a in flatten(case.params).items()}, case.prompt.slots.tobytes()) == before


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_places_a_few_at_a_time(chunk, monkeypatch):
    whole = Case().found
    monkeypatch.setattr(inspection, "CHUNK", chunk)
    for name in ("kl", "loss", "places"):
        np.testing.assert_allclose(Case().found[name], whole[name], rtol=1e-12)


# All together.


@each
def test_on_a_device(kind, xp):
    """Equal to the last bit on the stand-in, to rounding on a GPU."""
    case = Case(kind)
    move = lambda x: None if x is None else xp.asarray(x)
    host = replace(case.prompt, initial=case.prompt.slots + 1)  # as it was saved: on the host
    there = replace(host, slots=move(host.slots), beta=move(host.beta))

    def run(params, prompt):
        near, way = nearest.nearest(params, TINY, prompt, 4), inspection.moved(prompt)
        return arrays([near, way, inspection.over_texts(params, TINY, prompt, case.rows, case.starts)])

    ours, theirs = run(case.params, host), run(tree_map(xp.asarray, case.params), there)
    assert len(ours) == len(theirs) >= 11
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(b, np.ndarray) and relative_error(b, a) <= (1e-12 if xp.__name__ == "cupy" else 0)


def arrays(found):
    """All arrays in nested dicts, lists and tuples, in their order."""
    if isinstance(found, dict | list | tuple):
        return [a for part in (found.values() if isinstance(found, dict) else found) for a in arrays(part)]
    return [] if found is None else [found]


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(kind, dtype):
    case, exact = Case(kind), Case(kind).found
    case.params = tree_map(lambda w: w.astype(dtype), case.params)
    cast = lambda x: None if x is None else x.astype(dtype)
    case.prompt = replace(case.prompt, slots=cast(case.prompt.slots), beta=cast(case.prompt.beta))
    assert case.found["attention"].dtype == dtype
    for name in ("attention", "kl", "loss"):
        assert relative_error(case.found[name], exact[name]) <= (2e-4 if dtype == np.float32 else 1e-15), name


def test_progress_is_told_of_every_step(monkeypatch):
    monkeypatch.setattr(nearest, "WORDS", 5)
    monkeypatch.setattr(inspection, "TOKENS", 1)
    case, steps = Case(), []
    nearest.nearest(case.params, TINY, case.prompt, 2, lambda: steps.append("words"))
    inspection.over_texts(case.params, TINY, case.prompt, case.rows, case.starts, lambda: steps.append("rows"))
    assert steps == ["words"] * 4 * P + ["rows"] * len(inspection.batches(case.rows, P)) * P


def test_rows_are_read_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(inspection, "TOKENS", 20)
    rows = [[1] * 5] * 7
    assert inspection.batches(rows, 5) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert inspection.batches(rows, 100) == [slice(i, i + 1) for i in range(7)]


def test_a_random_slot_in_the_trace_and_here_is_the_same(rng):
    """The mean over a single row of a single token is that token's own weights."""
    params = random_params(TINY, rng)
    prompt = SoftPrompt(normal(rng, P, 12))
    found = inspection.over_texts(params, TINY, prompt, [[4]], [0])["attention"]
    told = trace((params, TINY), [[4]], prompt)
    expected = np.stack([told[f"attention.{layer}"][0, :, 0, :P] for layer in range(L)])
    np.testing.assert_allclose(found, expected, rtol=1e-14)
