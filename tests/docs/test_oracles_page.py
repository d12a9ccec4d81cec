"""What page 15 quotes and claims, measured anew."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "15-the-oracles.md").read_text(encoding="utf-8")


@pytest.fixture
def figure(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs" / "figures")
    return importlib.import_module("15-oracles")


def test_the_example_says_what_the_page_shows(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    importlib.import_module("15_prove_your_own_layer").main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("right, by complex step: x ")
    assert all(float(part.split()[1]) < 1e-14 for part in first[24:].split(","))
    assert len(lines) == 3 and all(f"\n{line}\n" in PAGE for line in lines)


def test_least_errors_and_best_steps_are_near_the_table(figure):
    """Within a factor of 30 of what ε alone gives: the constants A and B are this block's."""
    steps = np.logspace(-10, 0, 51)
    for dtype in (np.float64, np.float32):
        eps = float(np.finfo(dtype).eps)
        for oracle, p in ((figure.forward_difference, 1), (figure.central, 2)):
            found = figure.errors(oracle, steps, dtype)
            best = int(np.argmin(found))
            assert 1 / 30 < found[best] / eps ** (p / (p + 1)) < 30 and 1 / 30 < steps[best] / eps ** (1 / (p + 1)) < 30
        assert max(figure.errors(figure.complex_step, np.logspace(-20, -9, 12), dtype)) < 10 * eps
    assert min(figure.errors(figure.forward_difference, steps, np.float32)) > 1e-4  # no step shows page 2's error


def test_halving_is_seen_in_the_slopes_of_the_figure(figure):
    h = np.array([1e-2, 1e-3])
    for oracle, rate in ((figure.forward_difference, 1), (figure.central, 2), (figure.complex_step, 2)):
        one, other = figure.errors(oracle, h, np.float64)
        assert math.log10(one / other) == pytest.approx(rate, abs=0.1)


@pytest.mark.parametrize("tau", [1e-2, 1e-4])
def test_how_often_a_product_of_two_normal_numbers_is_small(tau):
    z = np.logspace(-9, 1.2, 20001)  # one of the two; the other is below τ / z
    density = [math.sqrt(2 / math.pi) * math.exp(-a * a / 2) * math.erf(tau / a / math.sqrt(2)) for a in z]
    share = ((np.array(density[1:]) + density[:-1]) / 2 * np.diff(z)).sum()
    assert share == pytest.approx(2 / np.pi * tau * math.log(2 / tau), rel=0.1)
    if tau == 1e-4:
        assert 1 / share == pytest.approx(1500, rel=0.02) and 1e9 < share**-3 < 1e10


def test_one_cotangent_of_ones_and_a_random_one(rng):
    """E[(cᵀ E u)²] = ‖E‖², and cᵀ E = 0 for c = 1 where columns sum to zero."""
    E = rng.standard_normal((4, 5))
    c, u = rng.standard_normal((20000, 4)), rng.standard_normal((20000, 5))
    assert np.mean(np.einsum("ni,ij,nj->n", c, E, u) ** 2) == pytest.approx((E * E).sum(), rel=0.1)
    assert np.abs(np.ones(4) @ (E - E.mean(0))).max() < 1e-14
