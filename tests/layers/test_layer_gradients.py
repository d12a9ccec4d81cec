"""Every layer's backward against two oracles that know nothing of it."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import LAYERS, layer_error
from helpers import read_only, zeros_like
from minicompress.layers.activations import relu, relu_backward, tanh, tanh_backward
from minicompress.layers.attention import softmax_backward
from minicompress.layers.embedding import embedding_backward
from minicompress.layers.gelu import gelu, gelu_backward
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.layers.linear import linear, linear_backward
from minicompress.layers.lstm import lstm, lstm_backward
from minicompress.verification.oracles import central_difference

WITH_WEIGHTS = {
    "linear": (linear, linear_backward),
    "layernorm": (layernorm, layernorm_backward),
    "lstm": (lstm, lstm_backward),
}


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_complex_step(name, B, T):
    assert layer_error(name, B=B, T=T) <= 1e-13


@pytest.mark.parametrize("name", LAYERS)
@given(
    seed=st.integers(0, 2**32 - 1),
    B=st.integers(1, 3),
    T=st.integers(1, 5),
    P=st.integers(1, 4),
    H=st.integers(1, 3),
    D=st.integers(3, 5),
)
def test_finite_differences(name, seed, B, T, P, H, D):
    oracle = partial(central_difference, step=1e-6)  # shorter than its default: LayerNorm's x is small here
    assert layer_error(name, oracle, seed, B, T, P, H, D) <= 1e-6


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_gradients_accumulate(name, rng):
    layer, layer_backward = WITH_WEIGHTS[name]
    params, cache, dout = layer_call(name, rng)
    once, twice = zeros_like(params), zeros_like(params)
    layer_backward(dout, cache, once)
    for _ in range(2):
        layer_backward(dout, cache, twice)
    for key in params:
        assert np.array_equal(twice[key], 2 * once[key])


def test_embedding_gradients_accumulate(rng):
    """Also where one id is looked up twice."""
    grads, dout = {"weight": np.ones((4, 3))}, rng.standard_normal((1, 3, 3))
    embedding_backward(dout, np.array([[2, 0, 2]]), grads)
    assert np.allclose(grads["weight"][[0, 2]] - 1, [dout[0, 1], dout[0, 0] + dout[0, 2]])
    assert np.array_equal(grads["weight"][[1, 3]], np.ones((2, 3)))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_frozen_weights_leave_dx_as_it_was(name, rng):
    layer, layer_backward = WITH_WEIGHTS[name]
    params, cache, dout = layer_call(name, rng)
    assert np.array_equal(layer_backward(dout, cache), layer_backward(dout, cache, zeros_like(params)))


def test_a_frozen_linear_layer_keeps_no_input(rng):
    x, weight, dout = (rng.standard_normal(shape) for shape in ((2, 3), (3, 4), (2, 4)))
    _, cache = linear(x, weight, frozen=True)
    assert all(kept is not x for kept in cache)
    assert np.array_equal(linear_backward(dout, cache), linear_backward(dout, linear(x, weight)[1]))


def test_backward_leaves_its_inputs_alone(rng):
    """Caches may be used twice, and a residual stream's gradient is used again: nothing is worked on in place."""
    dout = read_only({"d": rng.standard_normal((2, 3, 4))})["d"]
    x, weight, bias = read_only({"x": rng.standard_normal((2, 3, 4)), "w": np.ones(4), "b": np.ones(4)}).values()
    recurrent = read_only({name: a for name, a in LAYERS["lstm"](rng, 2, 3, 1, 4, 4)[0].items() if name != "x"})
    for layer, layer_backward in [
        (lambda: layernorm(x, weight, bias), layernorm_backward),
        (lambda: gelu(x), gelu_backward),
        (lambda: relu(x), relu_backward),
        (lambda: tanh(x), tanh_backward),
        (lambda: lstm(x, **recurrent), lstm_backward),
        (lambda: lstm(x, **recurrent, reverse=True), lstm_backward),
        (lambda: linear(x, np.eye(4)), linear_backward),
        (lambda: (None, x), softmax_backward),
    ]:
        cache = layer()[1]
        assert np.array_equal(layer_backward(dout, cache), layer_backward(dout, cache))


def layer_call(name, rng):
    """Random params of the layer, the cache of one call, and a random dout."""
    inputs, f, _ = LAYERS[name](rng, 2, 4, 3, 2, 3)
    params = {key: a for key, a in inputs.items() if key != "x"}
    return params, WITH_WEIGHTS[name][0](**inputs)[1], rng.standard_normal(f(inputs).shape)
