"""The oracles on functions whose derivative everybody knows."""

import numpy as np
import pytest

from minicompress.verification.oracles import (
    central_difference,
    complex_step,
    leaning_direction,
    relative_error,
    suits_complex_step,
    taylor_rates,
    unit_direction,
)

X, U, COTANGENT = np.array([0.3, -1.2]), np.array([0.6, 0.8]), np.array([2.0, -1.0])
TRUTH = (COTANGENT * np.cos(X) * U).sum()


@pytest.mark.parametrize("oracle, tolerance", [(complex_step, 1e-15), (central_difference, 1e-9)])
def test_derivative_of_the_sine(oracle, tolerance):
    assert relative_error(oracle(np.sin, X, U, COTANGENT), TRUTH) <= tolerance


def test_taylor_rates_tell_a_right_gradient_from_a_wrong_one():
    f = lambda x: np.sin(x).sum()
    assert min(taylor_rates(f, X, U, np.cos(X))) > 1.95
    assert max(taylor_rates(f, X, U, 1.1 * np.cos(X))) < 1.5


def test_relative_error():
    assert relative_error(np.array([3.0, 4.1]), np.array([3.0, 4.0])) == pytest.approx(0.02)
    assert relative_error(0.0, 0.0) == 0
    assert np.isnan(relative_error(np.nan, 1.0))  # and no comparison with a tolerance passes


def test_unit_direction(rng):
    assert np.linalg.norm(unit_direction(rng, (3, 4))) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 4)])
def test_leaning_direction(shape, rng):
    """The slope along it is at least the gradient's length, even of a single number."""
    for _ in range(20):
        gradient = rng.standard_normal(shape)
        assert (leaning_direction(rng, gradient) * gradient).sum() >= 0.999 * np.linalg.norm(gradient)
    assert np.linalg.norm(leaning_direction(rng, np.zeros(shape))) == pytest.approx(1)


def test_whether_the_complex_step_may_be_taken(rng):
    arrays = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)}
    suits = lambda f: suits_complex_step(f, arrays, rng)
    assert suits(lambda x: np.sin(x["a"]) * x["b"]) and suits(lambda x: 0 * x["a"])
    assert not suits(lambda x: x["a"] + np.abs(x["b"])) and not suits(lambda x: x["a"].real)
    assert not suits(lambda x: np.hypot(x["a"], x["b"]))
