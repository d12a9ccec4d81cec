"""The gradient through the whole model: of a prompt's slots, and of every weight."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import slots_error, weight_errors
from helpers import (
    TINY,
    prompt_losses,
    prompt_step,
    random_ids,
    random_params,
    read_only,
    teacher_objective,
    token_objective,
    zeros_like,
)
from minicompress.gpt2.init import shapes
from minicompress.trees import flatten
from minicompress.verification.oracles import central_difference, leaning_direction, taylor_rates
from minicompress.verification.strategies import configs, seeds

UNTIED = replace(TINY, tie_word_embeddings=False)


@pytest.mark.parametrize("objective", [token_objective, teacher_objective])
def test_slots_against_the_complex_step(objective):
    assert slots_error(objective) <= 1e-12


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied head", "untied head"])
def test_weights_against_the_complex_step(config):
    errors = weight_errors(config)
    assert errors.keys() == shapes(config).keys()
    assert max(errors.values()) <= 1e-12, errors


@given(config=configs(), seed=seeds(), P=st.integers(1, 4), B=st.integers(1, 3), T=st.integers(1, 5))
def test_slots_against_finite_differences(config, seed, P, B, T):
    assert slots_error(token_objective, central_difference, config, seed, P, B, T) <= 1e-7


@given(config=configs(), seed=seeds(), P=st.integers(1, 4), B=st.integers(1, 3), T=st.integers(1, 5))
def test_any_shape_against_the_complex_step(config, seed, P, B, T):
    errors = weight_errors(config, seed=seed, P=P, B=B, T=T)
    errors["slots"] = slots_error(teacher_objective, config=config, seed=seed, P=P, B=B, T=T)
    assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize("objective", [token_objective, teacher_objective])
def test_taylor_remainder_falls_with_the_square(objective, rng):
    """Along the gradient: what the linear term leaves is of second order, and of first where the gradient is wrong."""
    params, slots, objective = prompted(rng, objective)
    ids = random_ids(TINY, rng, 3, 5)
    _, dslots = prompt_step(params, TINY, slots, ids, objective)
    u = leaning_direction(rng, dslots)
    f = lambda s: prompt_losses(params, TINY, s, ids, objective).mean()
    assert min(taylor_rates(f, slots, u, dslots)) > 1.9
    assert max(taylor_rates(f, slots, u, 1.01 * dslots)) < 1.9


def test_gradients_accumulate(rng):
    params, slots, objective = prompted(rng)
    ids, once, twice = random_ids(TINY, rng, 3, 5), zeros_like(params), zeros_like(params)
    prompt_step(params, TINY, slots, ids, objective, once)
    for _ in range(2):
        prompt_step(params, TINY, slots, ids, objective, twice)
    for name, g in flatten(twice).items():
        assert np.allclose(g, 2 * flatten(once)[name], rtol=1e-12, atol=1e-15), name


def test_frozen_weights_give_the_same_slots_and_stay_as_they_are(rng):
    """Read-only arrays: a single write to them raises."""
    params, slots, objective = prompted(rng)
    params, ids = read_only(params), random_ids(TINY, rng, 3, 5)
    losses, frozen = prompt_step(params, TINY, slots, ids, objective)
    same_losses, trained = prompt_step(params, TINY, slots, ids, objective, zeros_like(params))
    assert np.array_equal(frozen, trained) and np.array_equal(losses, same_losses)


def prompted(rng, objective=token_objective):
    """Params, four slots, and an objective over 15 rows that takes their mean."""
    params, slots = random_params(TINY, rng), rng.standard_normal((4, TINY.n_embd))
    teacher = np.log(rng.dirichlet(np.ones(TINY.vocab_size), 15))
    against = teacher if objective is teacher_objective else rng.integers(TINY.vocab_size, size=15)
    return params, slots, objective(against, np.full(15, 1 / 15))
