"""Every layer's output: against the textbook's formula, at the edges, and in the dtype it was given."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from checks import DEFINED, LAYERS, definition_error, layer_error
from helpers import log_normalised
from minicompress.layers.activations import relu, relu_backward
from minicompress.layers.attention import attention, attention_backward, softmax
from minicompress.layers.gelu import gelu
from minicompress.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    kl_divergence,
    kl_divergence_backward,
    log_softmax,
)
from minicompress.layers.lstm import gates, lstm
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error

finite = st.floats(-1e300, 1e300)


@pytest.mark.parametrize("name", DEFINED)
def test_definition(name):
    assert definition_error(name) <= 1e-14


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "embedding"])
def test_dtype_in_is_dtype_out(name, dtype, rng):
    inputs, f, gradients = LAYERS[name](rng, 2, 4, 3, 2, 3)
    inputs = tree_map(lambda a: a.astype(dtype), inputs)
    out = f(inputs)
    if "kl" not in name and "js" not in name:  # their teacher is float64 here
        assert out.dtype == dtype
    assert {g.dtype for g in gradients(inputs, out.astype(dtype)).values()} == {np.dtype(dtype)}


@given(x=arrays(float, (3, 4), elements=finite))
def test_softmax_is_a_distribution_for_any_numbers(x):
    p = softmax(x)
    assert (p >= 0).all() and np.allclose(p.sum(-1), 1)
    assert np.allclose(np.exp(log_softmax(x)), p)


def test_gelu_at_the_ends():
    out, _ = gelu(np.array([-1e5, -10.0, 0.0, 10.0, 1e5]))
    assert np.array_equal(out, [0, 0, 0, 10, 1e5])


def test_relu_at_its_corner():
    """No slope at 0, as PyTorch; and what is not a number is not hidden."""
    out, off = relu(np.array([-math.inf, -1.0, -0.0, 0.0, 2.0, math.inf, math.nan]))
    assert np.array_equal(out, [0, 0, 0, 0, 2, math.inf, math.nan], equal_nan=True)
    assert np.array_equal(relu_backward(np.full(7, 3.0), off), [0, 0, 0, 0, 3, 3, 3])


def test_gates_at_the_ends():
    i, f, g, o = gates(np.array([[-1e300, 0.0, 1e300, 1e4]]))
    assert (i, f, g, o) == (0, 0.5, 1, 1)


def test_reading_backwards_is_reading_the_steps_turned_round(rng):
    inputs = LAYERS["lstm"](rng, 2, 5, 3, 4, 3)[0]
    turned = lstm(**inputs | {"x": inputs["x"][:, ::-1]})[0][:, ::-1]
    assert np.array_equal(lstm(**inputs, reverse=True)[0], turned)


def test_a_step_knows_what_came_before_it_and_nothing_else(rng):
    inputs = LAYERS["lstm"](rng, 2, 5, 3, 4, 3)[0]
    out, _ = lstm(**inputs)
    inputs["x"][:, 3] += 1
    moved = (lstm(**inputs)[0] != out).any(-1)
    assert np.array_equal(moved, [[False, False, False, True, True]] * 2)


def test_attention_without_a_past_equals_a_past_that_the_mask_hides(rng):
    q, k, v, *past = rng.standard_normal((5, 2, 3, 4, 5))
    key_mask = np.arange(8) >= np.full((2, 1), 4)
    hidden, _ = attention(q, k, v, past, key_mask)
    assert relative_error(hidden, attention(q, k, v)[0]) <= 1e-15


def test_masked_keys_get_no_gradient(rng):
    q, k, v, *past = rng.standard_normal((5, 2, 3, 4, 5))
    key_mask = np.ones((2, 8), bool)
    key_mask[0, 1] = key_mask[1, 2] = False
    out, cache = attention(q, k, v, past, key_mask)
    *_, (dk, dv) = attention_backward(rng.standard_normal(out.shape), cache)
    for d in (dk, dv):
        assert not d[0, :, 1].any() and not d[1, :, 2].any() and d[0, :, 2].all() and d[1, :, 1].all()


def test_one_query_after_another_equals_all_at_once(rng):
    q, k, v = rng.standard_normal((3, 2, 3, 6, 5))
    whole, _ = attention(q, k, v)
    for t in range(6):
        now, before = slice(t, t + 1), slice(0, t)
        out, _ = attention(q[:, :, now], k[:, :, now], v[:, :, now], (k[:, :, before], v[:, :, before]))
        assert relative_error(out, whole[:, :, now]) <= 1e-14


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    losses, cache = cross_entropy(np.zeros((2, 8)), np.array([0, 7]))
    assert np.allclose(losses, math.log(8))
    assert np.allclose(cross_entropy_backward(np.ones(2), cache).sum(-1), 0)  # a shift of the logits changes nothing


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_to_oneself_is_zero_with_a_zero_gradient(temperature, rng):
    logits = 3 * rng.standard_normal((4, 9))
    teacher = log_softmax(logits / temperature)
    losses, cache = kl_divergence(logits, teacher, temperature)
    assert not losses.any()
    assert not kl_divergence_backward(rng.standard_normal(4), cache).any()


@given(seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_kl_is_never_negative(seed, temperature):
    rng = np.random.default_rng(seed)
    losses, _ = kl_divergence(10 * rng.standard_normal((5, 7)), log_normalised(rng, 5, 7), temperature)
    assert (losses > 0).all()


def test_layer_error_notices_a_lost_gradient(monkeypatch):
    """The measure itself: a gradient of zero is an error of one, not of zero over zero."""
    monkeypatch.setattr("minicompress.layers.gelu.gelu_backward", lambda dout, x: 0 * x)
    assert layer_error("gelu") == 1
