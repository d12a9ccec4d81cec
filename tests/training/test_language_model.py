"""The whole model's step: every weight by two oracles, the mean over weights, and shards that change nothing."""

from dataclasses import replace

import numpy as np
import pytest

from helpers import TINY, random_params
from minicompress.training.language_model import language_model_step
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, complex_step, relative_error
from outer_checks import batch, language_model_errors, language_model_losses

UNTIED = replace(TINY, tie_word_embeddings=False)


def step(params, config, tokens, weights, n=1, offset=0):
    with Shards(n) as shards:
        return language_model_step(params, config, tokens, weights, shards, offset)


def distance(grads, others):
    """Of two trees, the largest relative error of an array."""
    others = flatten(others)
    return max(relative_error(g, others[name]) for name, g in flatten(grads).items())


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_complex_step(config, offset, n):
    errors = language_model_errors(complex_step, config, offset, n)
    assert max(errors.values()) <= 1e-12, errors


def test_finite_differences():
    errors = language_model_errors(central_difference, TINY, 3, 2)
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("offset", [0, 3])
def test_the_loss_is_the_mean_over_all_weights(offset):
    params, tokens, weights = batch()
    losses = language_model_losses(params, TINY, tokens, offset)
    loss, _ = step(params, TINY, tokens, weights, 2, offset)
    assert relative_error(loss, np.average(losses.reshape(weights.shape), weights=weights)) <= 1e-14


def test_weights_count_by_their_ratio():
    params, tokens, weights = batch()
    (loss, grads), (again, grads_again) = (step(params, TINY, tokens, w) for w in (weights, 8 * weights))
    assert loss == again and distance(grads_again, grads) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, int, bool])
def test_weights_may_be_of_any_dtype(dtype):
    params, tokens, weights = batch()
    scored = weights > 0
    loss, grads = step(params, TINY, tokens, scored.astype(dtype))
    expected, expected_grads = step(params, TINY, tokens, scored.astype(np.float64))
    assert relative_error(loss, expected) <= 1e-6 and distance(grads, expected_grads) <= 1e-6


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_same_number_of_shards_gives_the_same_bits(n):
    params, tokens, weights = batch()
    (loss, grads), (again, grads_again) = (step(params, TINY, tokens, weights, n) for _ in range(2))
    assert loss == again
    for name, g in flatten(grads).items():
        assert g.tobytes() == flatten(grads_again)[name].tobytes(), name


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_another_number_of_shards_changes_the_rounding_alone(n):
    params, tokens, weights = batch()
    (loss, grads), (other, others) = (step(params, TINY, tokens, weights, m) for m in (1, n))
    assert relative_error(other, loss) <= 1e-13 and distance(others, grads) <= 1e-12


@pytest.mark.parametrize("n", [1, 4, 9])
def test_rows_that_score_nothing_change_nothing(n):
    """Among nine shards there are some in which no row scores anything."""
    params, tokens, weights = batch()
    loss, grads = step(params, TINY, tokens, weights)
    more, none = np.r_[tokens, tokens[::-1], tokens[:4]], np.zeros((9, weights.shape[1]))
    other, others = step(params, TINY, more, np.r_[weights, none], n)
    assert relative_error(other, loss) <= 1e-13 and distance(others, grads) <= 1e-12


def test_a_target_that_weighs_nothing_does_not_matter():
    """The last column is a target only."""
    params, tokens, weights = batch()
    weights[:, -1] = 0
    loss, grads = step(params, TINY, tokens, weights)
    tokens[:, -1] = (tokens[:, -1] + 1) % TINY.vocab_size
    other, others = step(params, TINY, tokens, weights)
    assert other == loss and distance(others, grads) == 0


def test_gradients_are_of_the_weights_dtype_and_the_weights_as_they_were():
    params, tokens, weights = batch()
    params = tree_map(lambda w: w.astype(np.float32), params)
    before = tree_map(np.copy, params)
    _, grads = step(params, TINY, tokens, weights.astype(np.float32), 2)
    for name, g in flatten(grads).items():
        assert g.dtype == np.float32 and g.shape == flatten(params)[name].shape, name
        assert flatten(params)[name].tobytes() == flatten(before)[name].tobytes(), name


def test_a_token_outside_the_vocabulary_is_told_through_the_threads():
    params, tokens, weights = batch()
    tokens[4, 2] = TINY.vocab_size
    with pytest.raises(ValueError, match="token ids span"):
        step(params, TINY, tokens, weights, 3)


def test_following_the_gradient_lowers_the_loss():
    params, tokens, weights = random_params(TINY, np.random.default_rng(5)), *batch()[1:]
    losses = []
    for _ in range(20):
        loss, grads = step(params, TINY, tokens, weights, 2)
        losses.append(loss)
        tree_map(lambda p, g: p.__isub__(0.05 * g), params, grads)
    assert losses[-1] < 0.8 * losses[0]
