"""AdamW against its formula, one number at a time; clipping by the joint length; rates at steps worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import zeros_like
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.schedules import warmup_cosine
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import relative_error
from outer_checks import adamw_error, random_tree, schedule_error


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_the_formula(decay, betas, eps):
    assert adamw_error(decay, betas, eps) <= 1e-14


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_the_first_step_is_as_long_as_the_learning_rate(size, rng):
    """m̂ / √v̂ is then the gradient's sign, however large the gradient."""
    params, grads = random_tree(rng), tree_map(lambda g: size * g, random_tree(rng))
    before = tree_map(np.copy, params)
    adamw_step(params, grads, adamw_init(params), 0.01, eps=0.0)
    for name, p in flatten(params).items():
        assert relative_error(flatten(before)[name] - p, 0.01 * np.sign(flatten(grads)[name])) <= 1e-12, name


def test_decay_shrinks_matrices_spares_vectors_and_stays_out_of_the_moments(rng):
    params = random_tree(rng)
    before, state = tree_map(np.copy, params), adamw_init(params)
    for _ in range(3):
        adamw_step(params, zeros_like(params), state, 0.1, weight_decay=0.5)
    assert relative_error(params["w"], 0.95**3 * before["w"]) <= 1e-15
    assert params["deep"]["b"].tobytes() == before["deep"]["b"].tobytes()
    assert not any(m.any() for m in flatten({"m": state["m"], "v": state["v"]}).values())


def test_params_and_state_are_changed_in_place_in_their_own_dtype(rng):
    params = tree_map(lambda w: w.astype(np.float32), random_tree(rng))
    state = adamw_init(params)
    held = [id(a) for tree in (params, state["m"], state["v"]) for a in flatten(tree).values()]
    for step in range(3):
        assert state["step"] == step
        adamw_step(params, tree_map(lambda w: np.ones_like(w), params), state, 0.01, weight_decay=0.1)
    arrays = [a for tree in (params, state["m"], state["v"]) for a in flatten(tree).values()]
    assert [id(a) for a in arrays] == held and {a.dtype for a in arrays} == {np.dtype(np.float32)}


@given(seed=st.integers(0, 2**32 - 1), limit=st.floats(1e-3, 20))
def test_clipping_bounds_the_joint_length_and_keeps_the_direction(seed, limit):
    grads = random_tree(np.random.default_rng(seed))
    before = np.concatenate([g.ravel() for g in flatten(grads).values()])
    length = math.sqrt(sum(g * g for g in before.tolist()))
    assert clip_by_global_norm(grads, limit) == pytest.approx(length, rel=1e-14)
    after = np.concatenate([g.ravel() for g in flatten(grads).values()])
    if length <= limit:
        assert after.tobytes() == before.tobytes()
    else:
        assert relative_error(after, before * (limit / length)) <= 1e-14


def test_a_gradient_of_exactly_the_limit_and_one_of_nothing_are_left_alone():
    grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    assert clip_by_global_norm(grads, 5.0) == 5 and grads == {"a": [3.0], "b": [[4.0]]}
    assert clip_by_global_norm({"a": np.zeros(3)}, 1.0) == 0


def test_the_length_of_many_small_float32_gradients_is_summed_in_float64():
    grads = {"big": np.array([4096.0], np.float32), "small": np.ones(4096, np.float32)}
    assert clip_by_global_norm(grads, 1e9) == pytest.approx(math.sqrt(4096**2 + 4096), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused_untouched(bad, rng):
    grads = random_tree(rng)
    grads["deep"]["b"][2] = bad
    before = {name: g.tobytes() for name, g in flatten(grads).items()}
    with pytest.raises(FloatingPointError, match="not finite; lower the learning rate"):
        clip_by_global_norm(grads, 1.0)
    assert {name: g.tobytes() for name, g in flatten(grads).items()} == before


def test_rates_worked_out_by_hand():
    assert schedule_error() <= 1e-15


def test_without_warm_up_the_first_step_is_the_fastest():
    assert warmup_cosine(0, 10, 0.3) == 0.3


@given(steps=st.integers(1, 50), warmup=st.integers(0, 60), final=st.floats(0, 1))
def test_rates_rise_then_fall_and_stay_between_nothing_and_the_highest(steps, warmup, final):
    rates = [warmup_cosine(step, steps, 0.1, warmup, final) for step in range(steps + 20)]
    assert all(0 <= rate <= 0.1 + 1e-15 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup < steps:
        assert rates[steps:] == [0.1 * final] * 20
