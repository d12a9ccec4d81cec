"""Slots as embeddings, hidden states, or keys and values, in front or among the tokens, at three kinds of positions."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from carrying import (
    CHECKS,
    DEEP,
    ROWS,
    generation_error,
    gradient_error,
    gradient_of,
    loss_and_gradient,
    padded,
    random_model,
    scored_places,
    states,
)
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from generating import watched
from helpers import TINY, random_params, read_only
from minicompress.arrays import to_host
from minicompress.compression.objectives import likelihood
from minicompress.gpt2 import embed, forward
from minicompress.gpt2.generate import generate
from minicompress.prompts.carriers import lift
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.soft_prompt import SoftPrompt, concatenate
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, leaning_direction, relative_error, taylor_rates
from reading import KINDS, random_prompt, with_slots
from tracing import UNTIED

each_kind = pytest.mark.parametrize("kind", KINDS)
RAGGED = st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


# Gradients.


@each_kind
@pytest.mark.parametrize("P, shards, seed", [(1, 1, 0), (4, 3, 1), (6, 2, 2)])
def test_the_complex_step(kind, P, shards, seed):
    assert gradient_error(kind, seed=seed, P=P, shards=shards) <= 1e-12


@each_kind
def test_the_complex_step_with_a_head_of_its_own(kind):
    assert gradient_error(kind, config=UNTIED) <= 1e-12


@given(kind=st.sampled_from(KINDS), P=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_finite_differences(kind, P, seed):
    assert gradient_error(kind, central_difference, seed, P) <= 1e-6


@each_kind
def test_taylor(kind):
    rng, model = np.random.default_rng(0), random_model()
    prompt = random_prompt(kind, TINY, 3, rng)
    rows = with_slots(ROWS, 3, rng) if prompt.in_rows else ROWS
    found = gradient_of(model, prompt, rows)
    slope = found if prompt.beta is None else found["slots"]
    f = lambda slots: loss_and_gradient(model, replace(prompt, slots=slots), rows)[0]
    u = leaning_direction(rng, slope)
    assert min(taylor_rates(f, prompt.slots, u, slope)) > 1.9
    assert max(taylor_rates(f, prompt.slots, u, 1.1 * slope)) < 1.5


@each_kind
def test_shards_change_the_rounding_alone(kind):
    rng, model = np.random.default_rng(0), random_model()
    prompt = random_prompt(kind, TINY, 3, rng)
    rows = with_slots(ROWS, 3, rng) if prompt.in_rows else ROWS
    one, *others = [gradient_of(model, prompt, rows, shards=n) for n in (1, 2, 3)]
    for other in others:
        for name, d in flatten(other).items():
            assert relative_error(d, flatten(one)[name]) <= 1e-13


@each_kind
def test_a_door_changes_neither_slots_nor_weights(kind):
    model, prompt = random_model(), random_prompt(kind, TINY, 3, np.random.default_rng(0))
    read_only(model[0]), read_only(prompt.tree)
    gradient_of(model, prompt, with_slots(ROWS, 3, np.random.default_rng(0)) if prompt.in_rows else ROWS)


def test_a_slot_that_no_row_places_has_no_gradient():
    model, prompt = random_model(), random_prompt("in rows", TINY, 4, np.random.default_rng(0))
    found = gradient_of(model, prompt, [[3, -2, 5], [-4, 1, -2]])
    assert not found[[0, 2]].any() and found[[1, 3]].all()


def test_a_slot_behind_everything_scored_has_no_gradient():
    """A GPT-2 sees nothing of what comes later."""
    found = gradient_of(random_model(), random_prompt("in rows", TINY, 2, np.random.default_rng(0)), [[3, -1, 5, -2]])
    assert found[0].all() and not found[1].any()


def test_a_mass_of_0_stays_0_as_others_are_trained():
    """Its gradient is 0, and so Adam leaves -∞ where it is."""
    model, prompt = random_model(), random_prompt("kv with masses", TINY, 3, np.random.default_rng(0))
    prompt.beta[0, 1] = -np.inf, 0.5, -np.inf
    before, tree, state = prompt.beta.copy(), {"slots": prompt.tree}, adamw_init({"slots": prompt.tree})
    for _ in range(5):
        adamw_step(tree, {"slots": gradient_of(model, prompt)}, state, 0.1)
    assert np.isneginf(prompt.beta[0, 1, [0, 2]]).all() and np.isfinite(prompt.slots).all()
    moved = np.isfinite(before)
    assert moved.sum() == before.size - 2 and (prompt.beta != before)[moved].all()


def test_without_any_mass_a_prompt_is_not_there():
    """All keys of all heads at -∞: the rows are read as if nothing stood before them."""
    model, prompt = random_model(), random_prompt("kv with masses", TINY, 3, np.random.default_rng(0))
    nothing = replace(prompt, beta=np.full_like(prompt.beta, -np.inf), positions="unshifted")
    alone = [forward(*model, embed(model[0], [row]), keep="nothing")[0][0] for row in ROWS]
    assert relative_error(states(model, nothing), np.concatenate(alone)) <= 1e-13


# What a prompt does.


@each_kind
def test_the_prompt_is_there(kind):
    """Other slots, other states, from the first token on; and those of no prompt at all are others again."""
    rng, model = np.random.default_rng(0), random_model()
    one, two = (random_prompt(kind, TINY, 3, rng) for _ in range(2))
    rows = [[-1, 3, -2, -3], [-3, -1, -2, 2]] if one.in_rows else ROWS
    first, second = states(model, one, rows), states(model, two, rows)
    assert (np.abs(first - second).max(-1) > 1e-3).all()
    if not one.in_rows:
        at = one.start  # the same positions, nothing in front
        alone = [forward(*model, embed(model[0], [row], at), keep="nothing")[0][0] for row in rows]
        assert (np.abs(first - np.concatenate(alone)).max(-1) > 1e-3).all()


@given(kind=st.sampled_from(KINDS), rows=RAGGED, steps=st.integers(1, 6), P=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_writing_with_a_cache_equals_reading_everything_anew(kind, rows, steps, P, seed):
    assert generation_error(kind, rows, steps, seed, P) <= 1e-12


@pytest.mark.parametrize("carrier", DEEP)
def test_only_embeddings_predict_a_first_token(carrier):
    model, prompt = random_model(), random_prompt(carrier, TINY, 3, np.random.default_rng(0))
    assert prompt.prefix(*model).last is None
    with pytest.raises(ValueError, match="row 1: its first token is scored, but nothing stands before it"):
        gradient_of(model, prompt, ROWS, padded([[0, 1, 1, 1, 1, 1], [1], [0]]) == 1)


@each_kind
def test_what_is_saved_has_the_same_loss_and_gradient(kind, tmp_path):
    rng, model = np.random.default_rng(0), random_model()
    prompt = random_prompt(kind, TINY, 3, rng)
    rows = with_slots(ROWS, 3, rng) if prompt.in_rows else ROWS
    prompt.save(tmp_path / "p")
    (loss, found), (loss_back, back) = (loss_and_gradient(model, p, rows) for p in (prompt, SoftPrompt.load(tmp_path / "p")))
    assert loss == loss_back
    assert {n: d.tobytes() for n, d in flatten(found).items()} == {n: d.tobytes() for n, d in flatten(back).items()}


@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays(kind, dtype):
    rng = np.random.default_rng(0)
    model, prompt = (random_params(TINY, rng, dtype), TINY), random_prompt(kind, TINY, 3, rng, dtype)
    rows = with_slots(ROWS, 3, rng) if prompt.in_rows else ROWS
    assert states(model, prompt, rows).dtype == dtype
    assert {d.dtype for d in flatten(gradient_of(model, prompt, rows)).values()} == {np.dtype(dtype)}
    assert watched(model, rows, 3, prompt.prefix(*model))[1].dtype == dtype


@each_kind
def test_other_devices_do_the_same(xp, kind):
    rng, model = np.random.default_rng(0), random_model()
    prompt = random_prompt(kind, TINY, 3, rng)
    rows = with_slots(ROWS, 3, rng) if prompt.in_rows else ROWS
    move = partial(tree_map, xp.asarray)
    there = replace(prompt, slots=move(prompt.slots), beta=None if prompt.beta is None else move(prompt.beta))
    params, scored = move(model[0]), scored_places(prompt, rows)
    ids = np.maximum(padded(rows), 0)
    make = lambda part, weight: likelihood(xp.asarray(ids[part][scored[part]]), weight)
    with Shards(2) as shards:
        loss, found = slots_gradient((params, TINY), there.tree, padded(rows), scored, make, shards, there.door)
    told, expected = loss_and_gradient(model, prompt, rows, shards=2)
    exact = 0 if xp in (np, strict_device) and not prompt.in_rows else 1e-12  # a slot's places: in another order
    assert abs(loss - told) <= exact
    for name, d in flatten(found).items():
        assert type(d) is type(xp.asarray(0.0)) and relative_error(to_host(d), flatten(expected)[name]) <= exact, name
    assert generate(params, TINY, rows, 5, there.prefix(params, TINY)) == generate(*model, rows, 5, prompt.prefix(*model))
    pair = concatenate([replace(there, template=None)] * 2)
    assert pair.length == 6 and type(pair.slots) is type(there.slots)


@pytest.mark.parametrize("carrier", ["embeddings", *DEEP])
def test_lifted_on_another_device(xp, carrier):
    model, slots = random_model(), np.random.default_rng(0).standard_normal((4, TINY.n_embd))
    lifted = lift(tree_map(xp.asarray, model[0]), TINY, xp.asarray(slots), carrier)
    assert type(lifted) is type(xp.asarray(0.0))
    assert relative_error(to_host(lifted), lift(*model, slots, carrier)) <= 1e-13


@pytest.mark.parametrize("carrier", ["embeddings", *DEEP])
def test_what_is_lifted_is_new(carrier):
    model, slots = random_model(), np.random.default_rng(0).standard_normal((4, TINY.n_embd))
    before = {n: w.tobytes() for n, w in flatten(model[0]).items()}, slots.tobytes()
    lift(*model, slots, carrier)[...] = 0
    assert ({n: w.tobytes() for n, w in flatten(model[0]).items()}, slots.tobytes()) == before
