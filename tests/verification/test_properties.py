"""The four properties: they hold of the project's own code, and each fails, in one line, on what is planted for it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import TINY, zeros_like
from minicompress.gpt2 import backward, embed, forward, logits
from minicompress.gpt2.block import block, block_backward
from minicompress.layers import attention as attention_module
from minicompress.layers.activations import relu, relu_backward
from minicompress.layers.attention import attention, attention_backward, softmax, softmax_backward
from minicompress.layers.gelu import gelu, gelu_backward
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.layers.linear import linear, linear_backward
from minicompress.layers.losses import cross_entropy, cross_entropy_backward
from minicompress.layers.lstm import lstm, lstm_backward
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.trees import flatten, tree_map
from minicompress.verification.cases import random_params
from minicompress.verification.oracles import taylor_rates
from minicompress.verification.properties import check_causal, check_frozen, check_gradient, taylor_test
from minicompress.verification.strategies import configs, models, normals, seeds, setups, sizes
from minicompress.verification.trace import trace
from test_planted_bugs import Bug, plant

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def fails(words, kind=AssertionError):
    """One line, which has these words."""
    return pytest.raises(kind, match=rf"^(?!(?s:.)*\n).*{words}")


def with_weights(layer_backward, **weights):
    """A layer's backward as check_gradient calls it: dx, and the gradients of the weights."""

    def f_backward(dout, cache):
        grads = zeros_like(weights)
        return layer_backward(dout, cache, grads), *grads.values()

    return f_backward


# check_gradient: what is right passes.


@given(normals("BTC", "C", "C"))
def test_layernorm(arrays):
    found = check_gradient(layernorm, with_weights(layernorm_backward, weight=arrays[1], bias=arrays[2]), *arrays)
    assert found.errors.keys() == {"x", "weight", "bias"} and found.oracle == "complex step"
    assert max(found.errors.values()) <= 1e-12


@given(normals("BTC", "CV", "V"), st.sampled_from(["complex step", "central difference"]))
def test_linear(arrays, oracle):
    f_backward = with_weights(linear_backward, weight=arrays[1], bias=arrays[2])
    assert check_gradient(linear, f_backward, *arrays, oracle=oracle).oracle == oracle


@given(normals("BTC"))
def test_functions_of_one_array(arrays):
    x = arrays[0] + 0.1 * np.sign(arrays[0])  # off ReLU's corner
    for f, f_backward in ((gelu, gelu_backward), (relu, relu_backward), (np.sin, lambda dout, x: dout * np.cos(x))):
        check_gradient(f, f_backward, x)
    check_gradient(lambda x: (softmax(x),) * 2, softmax_backward, x)


@given(normals("BHTD", "BHTD", "BHTD", "1HPD", "1HPD", "1HP"))
def test_attention_behind_a_past_with_masses(arrays):
    def f_backward(dout, cache):
        *dqkv, dpast = attention_backward(dout, cache)
        return *dqkv, *dpast

    check_gradient(lambda q, k, v, *past: attention(q, k, v, past), f_backward, *arrays)


@given(normals("BTC", "GC", "GH", "G", "G", C=(2, 4), H=2, G=8))
def test_lstm(arrays):
    check_gradient(lstm, with_weights(lstm_backward, **dict(zip(NAMES, arrays[1:], strict=True))), *arrays)


@given(normals("BV"), seeds())
def test_an_argument_of_integers_is_left_out(arrays, seed):
    targets = np.random.default_rng(seed).integers(arrays[0].shape[1], size=len(arrays[0]))
    for name in ("targets", 1, [1]):
        check_gradient(cross_entropy, cross_entropy_backward, *arrays, targets, leave_out=name)


@given(models(n_layer=1), sizes("BT"), seeds())
def test_a_block_with_its_weights_as_a_tree(model, found, seed):
    params, config = model[0]["h"]["0"], model[1]

    def f_backward(dout, cache):
        grads = zeros_like(params)
        return block_backward(dout, cache, grads=grads)[0], grads

    x = np.random.default_rng(seed).standard_normal((found["B"], found["T"], config.n_embd))
    found = check_gradient(lambda x, params: block(x, params, config, frozen=False), f_backward, x, params)
    assert found.errors.keys() == {"x", *flatten(params, "params")}


@given(models(), sizes("BT"), seeds())
def test_gpt2_from_embeddings_to_hidden_states(model, found, seed):
    x = np.random.default_rng(seed).standard_normal((found["B"], found["T"], model[1].n_embd))
    check_gradient(lambda x: forward(*model, x), lambda dout, cache: backward(dout, cache)[0], x)


# A stranger's layer: no cache, its backward asks for the arguments.


def rms(x, scale, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rms_backward(dout, x, scale, eps=1e-6):
    r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    g = dout * scale
    return r * g - x * r**3 * (g * x).mean(-1, keepdims=True), (dout * x * r).reshape(-1, x.shape[-1]).sum(0)


@given(normals("BTC", "C"))
def test_a_strangers_rmsnorm(arrays):
    assert max(check_gradient(rms, rms_backward, *arrays).errors.values()) <= 1e-12


@given(normals("BTC", "C"))
def test_a_function_that_takes_no_complex_numbers(arrays):
    """math.sqrt refuses them: central differences are taken, and it is said."""

    def f(x, scale):
        rows = [row / math.sqrt((row * row).mean() + 1e-6) * scale for row in x.reshape(-1, x.shape[-1])]
        return np.array(rows).reshape(x.shape)

    assert check_gradient(f, rms_backward, *arrays).oracle == "central difference"
    with fails("not analytic", ValueError):
        check_gradient(f, rms_backward, *arrays, oracle="complex step")


@pytest.mark.parametrize("f, slope", [
    (lambda x: x * np.abs(x), lambda x: 2 * np.abs(x)),
    (lambda x: x * np.conj(x), lambda x: 2 * x),
    (lambda x: x.astype(float) ** 2, lambda x: 2 * x),
    (lambda x: np.abs(x), np.sign),
])  # fmt: skip
def test_what_takes_complex_numbers_but_is_not_analytic(f, slope, rng):
    """The complex step would be wrong there, and a right backward blamed for it."""
    found = check_gradient(f, lambda dout, x: dout * slope(x), rng.standard_normal((2, 3, 4)))
    assert found.oracle == "central difference"


def test_float32_arguments_and_single_numbers():
    f = lambda x, a: a * (x * x).sum()
    found = check_gradient(f, lambda d, x, a: (2 * d * a * x, d * (x * x).sum()), np.ones(3, np.float32), 2.0)
    assert found.errors == pytest.approx({"x": 0, "a": 0}, abs=1e-15)


@pytest.mark.parametrize("oracle", ["complex step", "central difference"])
def test_a_gradient_of_zero_is_right_where_f_does_not_move(oracle, rng):
    x = rng.standard_normal((3, 4))
    check_gradient(lambda x: softmax(x).sum(-1), lambda dout, x: 0 * x, x, oracle=oracle)
    check_gradient(lambda x: 0 * x, lambda dout, x: 0 * x, x, oracle=oracle)


def test_the_seed_decides(rng):
    x, found = rng.standard_normal((3, 4)), set()
    for seed in (0, 0, 1):
        found.add(check_gradient(gelu, gelu_backward, x, seed=seed, oracle="central difference").errors["x"])
    assert len(found) == 2


# check_gradient: what is wrong fails, and is told apart.


def forgetful(dout, cache):
    """LayerNorm's backward without eps: all of the stretch is taken out."""
    xhat, rstd, weight = cache
    g = dout * weight
    stretch = (g * xhat).mean(-1, keepdims=True) / (xhat * xhat).mean(-1, keepdims=True)
    return rstd * (g - g.mean(-1, keepdims=True) - xhat * stretch)


def times(factor):
    return lambda dout, cache: factor * layernorm_backward(dout, cache)


def into_dout(dout, cache):
    dout *= cache[2]
    return dout


WRONG = {
    "eps forgotten": (forgetful, r"x is off by .*tolerance 1e-10, complex step.* an eps left out"),
    "1e-6 too large": (times(1 + 1e-6), r"x is off by 1\.0e-06 .* 1\.000001 times .* a constant is rounded"),
    "1e-9 too small": (times(1 - 1e-9), r"x is off by 1\.0e-09 .* 0\.999999999 times"),
    "a mean's 1/n": (times(1 / 8), r"0\.125 times the right one everywhere: usually a mean's 1/n"),
    "twice": (times(2), "2 times the right one everywhere"),
    "the sign": (times(-1), "-1 times the right one everywhere: usually a minus sign"),
    "nothing": (times(0), "all zero: usually it is never passed on"),
    "not a number": (times(np.nan), "x is off by nan .* not a number"),
    "infinite": (times(np.inf), "not a number"),
    "a missing term": (lambda dout, cache: dout * cache[2] * cache[1], "a term of the derivative is missing"),
    "not summed": (lambda dout, cache: dout[:1], r"x has shape \[1, 5, 8\], x has \[3, 5, 8\]: .*not summed"),
    "dout overwritten": (into_dout, "writes into dout"),
}


@pytest.mark.parametrize("f_backward, words", WRONG.values(), ids=WRONG)
def test_a_wrong_backward_fails(f_backward, words, rng):
    x, weight, bias = rng.standard_normal((3, 5, 8)), rng.standard_normal(8), rng.standard_normal(8)
    with fails(words), np.errstate(all="ignore"):
        check_gradient(layernorm, f_backward, x, weight, bias, leave_out=("weight", "bias"))


@given(normals("BTC", "C", "C", C=(4, 12)), seeds())
def test_layernorm_without_eps_fails_whatever_is_drawn(arrays, seed):
    with fails("the gradient of x is off"):
        check_gradient(layernorm, forgetful, 0.1 * arrays[0], *arrays[1:], leave_out=("weight", "bias"), seed=seed)


@given(normals("BTC", "C", C=(2, 6)), seeds(), st.sampled_from(["complex step", "central difference"]))
def test_a_hundred_thousandth_too_much_fails_under_both_oracles(arrays, seed, oracle):
    wrong = lambda dout, x, scale: [(1 + 1e-5) * g for g in rms_backward(dout, x, scale)]
    with fails("the gradient of (x|scale) is off by 1.0e-05"):
        check_gradient(rms, wrong, *arrays, oracle=oracle, seed=seed)


def test_every_wrong_argument_is_named(rng):
    wrong = lambda dout, x, scale: tuple(2 * g for g in rms_backward(dout, x, scale))
    with fails("the gradient of (x is off .*; also off: scale|scale is off .*; also off: x)$"):
        check_gradient(rms, wrong, rng.standard_normal((2, 3, 4)), rng.standard_normal(4))


def test_gradients_in_another_order(rng):
    with fails("f does not depend on it"):
        check_gradient(lambda x, y: x * x + 0 * y, lambda d, x, y: (0 * d, 2 * d * x), *rng.standard_normal((2, 3)))


def test_one_wrong_weight_of_a_tree(rng):
    params = random_params(TINY, rng)["h"]["0"]

    def f_backward(dout, cache):
        grads = zeros_like(params)
        block_backward(dout, cache, grads=grads)
        grads["mlp"]["c_fc"]["bias"][3] += 1e-6
        return grads

    with fails(r"the gradient of params\.mlp\.c_fc\.bias is off"):
        check_gradient(lambda params: block(x, params, TINY, frozen=False), f_backward, params)


x = np.random.default_rng(1).standard_normal((2, 4, TINY.n_embd))


def test_a_function_that_writes_into_its_argument(rng):
    def f(x):
        x += 1
        return x * x

    with fails("writes into x"):
        check_gradient(f, lambda dout, x: 2 * dout * x, rng.standard_normal(3))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("oracle", ["complex step", "central difference"])
def test_a_single_number_is_seen_by_every_seed(seed, oracle):
    slightly = lambda dout, x: (1 + 1e-5) * 2 * x * dout
    with fails("x is off by 1.0e-05"):
        check_gradient(lambda x: x * x, slightly, 3.0, oracle=oracle, seed=seed, directions=1)


def test_a_sum_would_see_nothing(rng):
    """dout = 1 gives softmax a gradient of 0, right or wrong; a random dout tells them apart."""
    wrong = lambda dout, p: dout - (p * dout).sum(-1, keepdims=True)
    ones, p = np.ones((3, 5)), softmax(rng.standard_normal((3, 5)))
    assert np.abs(softmax_backward(ones, p)).max() < 1e-15 and np.abs(wrong(ones, p)).max() < 1e-15
    with fails("is off by"):
        check_gradient(lambda x: (softmax(x),) * 2, wrong, rng.standard_normal((3, 5)))


MISTAKES = {
    "integers": (lambda x: x, lambda d, x: d, [np.arange(3)], {}, "x is int64, .* leave_out"),
    "one gradient for two": (rms, lambda d, x, s: d, [np.ones(3), np.ones(3)], {}, r"1 gradients and 2 \(x, scale\)"),
    "None for one": (rms, lambda d, x, s: (d, None), [np.ones(3), np.ones(3)], {}, "1 gradients and 2"),
    "all left out": (rms, rms_backward, [np.ones(3), 1.0], {"leave_out": (0, 1)}, "every argument is left out"),
    "a name of none": (rms, rms_backward, [np.ones(3), 1.0], {"leave_out": "y"}, "leave_out names y; the arguments are x, scale"),
    "an oracle of none": (rms, rms_backward, [np.ones(3), 1.0], {"oracle": "taylor"}, "oracle is 'taylor'; it can be"),
    "float32 within": (lambda x: x.astype("f4"), lambda d, x: d, [np.ones(3)], {}, "f gives float32"),
    "not finite": (lambda x: x * np.inf, lambda d, x: d, [np.ones(3)], {}, "not finite"),
    "drawn anew": (lambda x: x + np.random.random(), lambda d, x: d, [np.ones(3)], {}, "drawn anew"),
}  # fmt: skip


@pytest.mark.parametrize("f, f_backward, arrays, options, words", MISTAKES.values(), ids=MISTAKES)
def test_a_call_that_could_show_nothing(f, f_backward, arrays, options, words):
    with fails(words, ValueError):
        check_gradient(f, f_backward, *arrays, **options)


# taylor_test.


def token_loss(model, ids):
    """f(slots or wte rows x) of mean cross-entropy, and its gradient: a whole model's."""

    def f(x):
        hidden, _, cache = forward(*model, x)
        flat = logits(model[0], hidden[:, :-1]).reshape(-1, model[1].vocab_size)
        losses, back = cross_entropy(flat, ids[:, 1:].ravel())
        dlogits = cross_entropy_backward(np.full(len(losses), 1 / len(losses)), back).reshape(*ids[:, 1:].shape, -1)
        dhidden = np.zeros_like(hidden)
        dhidden[:, :-1] = dlogits @ model[0]["wte"]["weight"]
        return losses.mean(), backward(dhidden, cache)[0]

    return f, embed(model[0], ids)


@given(models(vocab_size=9, tie_word_embeddings=True), seeds())
def test_taylor_of_a_whole_model(model, seed):
    f, start = token_loss(model, np.random.default_rng(seed).integers(9, size=(2, 5)))
    rates = taylor_test(f, start, f(start)[1])
    assert rates.shape == (2, 4) and rates.min() > 1.9


@pytest.mark.parametrize("factor", [0, 0.5, 0.999, 1.001, 2, -1])
def test_taylor_fails_where_the_gradient_is_wrong(factor, rng):
    f, start = token_loss((random_params(TINY, rng), TINY), rng.integers(17, size=(2, 5)))
    with fails("the remainder falls at rates .* more than 1.9: along a direction the gradient says"):
        taylor_test(f, start, factor * f(start)[1])


def test_one_side_alone_errs_both_ways():
    """An error of the slope, or a third derivative, may cancel the second one's share on one side of x."""
    one_side = lambda f, slope, way: taylor_rates(f, np.zeros(1), way * np.ones(1), slope * np.ones(1), 1e-3)
    curved = lambda x: float(x[0] + x[0] ** 2 / 2)
    assert min(one_side(curved, 1 + 2e-5, 1)) > 2  # wrong, and passes
    for slope in (1 + 1e-4, 1 - 1e-4):
        with fails("the remainder"):
            taylor_test(curved, np.zeros(1), slope * np.ones(1))
    twisted = lambda x: float(x[0] + 3e-4 * x[0] ** 2 - x[0] ** 3)
    assert min(one_side(twisted, 1, 1)) < 1.9  # right, and fails
    assert taylor_test(twisted, np.zeros(1), np.ones(1)).min() >= 1.9


def test_taylor_of_a_linear_loss_and_of_a_tree(rng):
    tree = {"a": rng.standard_normal((2, 3)), "b": {"c": rng.standard_normal(4)}}
    loss = lambda t: 1 + t["a"].sum() - t["b"]["c"].sum()
    gradient = lambda factor: {"a": np.ones((2, 3)), "b": {"c": -factor * np.ones(4)}}
    assert np.isinf(taylor_test(loss, tree, gradient(1))).all()
    with fails("falls at rates 1.00"):
        taylor_test(loss, tree, gradient(1.0001))
    with fails(r"the gradient of x\.b\.c is missing"):
        taylor_test(lambda t: t["a"].sum(), tree, {"a": np.ones((2, 3))})


@pytest.mark.parametrize("loss, gradient, kind, words", [
    (lambda x: np.abs(x).sum(), np.ones(4), AssertionError, "falls at rates"),
    (lambda x: np.float64(np.float32(x.sum() + 100)), np.ones(4), AssertionError, "not fall at all: .*float32"),
    (lambda x: 0 * x.sum() + 100, np.zeros(4), ValueError, "does not move within h = 1e-03"),
    (lambda x: np.random.random() + x.sum(), np.ones(4), ValueError, "drawn anew"),
    (lambda x: x, np.ones(4), ValueError, r"shape \[4\]; one number"),
    (lambda x: x.sum(), np.ones(3), AssertionError, r"x has shape \[3\], x has \[4\]"),
])  # fmt: skip
def test_losses_of_which_nothing_is_proved(loss, gradient, kind, words):
    with fails(words, kind):
        taylor_test(loss, np.zeros(4), gradient)


def test_a_corner_within_the_step_is_told_from_a_wrong_gradient():
    with fails("both slopes agree, so h = 1e-01 is too long"):
        taylor_test(lambda x: np.maximum(x, 0.003).sum(), np.zeros(1), np.zeros(1), h=0.1)


# check_frozen.


def train(params, tree, rng):
    """One step of AdamW on a tree that is, or is not, a part of the params."""
    adamw_step(tree, tree_map(lambda w: rng.standard_normal(w.shape), tree), adamw_init(tree), 1e-3, weight_decay=0.1)


def test_what_is_not_trained_stays(rng):
    params, slots = random_params(TINY, rng), {"slots": rng.standard_normal((3, 12))}
    before = tree_map(np.copy, params)
    with check_frozen(params):
        train(params, slots, rng)
        forward(params, TINY, embed(params, [[1, 2, 3]]))
    assert check_frozen(before, params) == len(flatten(params))


@given(configs(), seeds())
def test_a_single_bit_is_seen_and_named(config, seed):
    rng = np.random.default_rng(seed)
    params = random_params(config, rng)
    before, flat = tree_map(np.copy, params), flatten(params)
    name = rng.choice(list(flat))
    place = int(rng.integers(flat[name].size))
    flat[name].reshape(-1).view(np.uint64)[place] ^= np.uint64(1)
    with fails(rf"{name} changed in 1 of {flat[name].size} numbers, first at \["):
        check_frozen(before, params)


def test_the_first_changed_weight_is_named(rng):
    params = random_params(TINY, rng)
    with fails(r"h\.1\.ln_1\.weight changed in 12 of 12 .* weight decay"), check_frozen(params):
        train(params, params["h"]["1"], rng)


def test_other_trees_are_not_the_same_weights(rng):
    before, other = {"a": np.ones(3), "b": -np.zeros(2)}, {"a": np.ones(3), "b": np.zeros(2)}
    for after, words in [({"a": np.ones(3)}, "came or went: b"), (before | {"a": np.ones(3, "f4")}, "a was float64"),
                         (other, r"b changed in 2 of 2 numbers, first at \[0\] from -0.0 to 0.0")]:  # fmt: skip
        with fails(words):
            check_frozen(tree_map(np.copy, before), after)


def test_a_tree_compared_with_itself_shows_nothing(rng):
    params = {"a": rng.standard_normal(4)}
    for after in (params, {"a": params["a"][:]}):
        with fails("a is the same array before and after", ValueError):
            check_frozen(params, after)


def test_an_error_within_is_not_hidden():
    with pytest.raises(KeyError), check_frozen({"a": np.ones(3)}):
        raise KeyError


def test_frozen_on_a_device(xp):
    params = {"a": xp.asarray(np.ones(3)), "b": {"c": xp.asarray(np.ones((2, 2)))}}
    with check_frozen(params):
        params["a"] + 1
    with fails(r"b\.c changed in 4 of 4 numbers"), check_frozen(params):
        params["b"]["c"] *= 2


def test_bits_of_not_a_number_are_bits_too():
    assert check_frozen({"a": np.array([np.nan, 1])}, {"a": np.array([np.nan, 1])}) == 1


# check_causal.


def model_of(model):
    return lambda ids: logits(model[0], forward(*model, embed(model[0], ids), keep="nothing")[0])


@given(models(), sizes("BT", T=(2, 6)), seeds())
def test_gpt2_is_causal(model, found, seed):
    rng, V = np.random.default_rng(seed), model[1].vocab_size
    assert check_causal(model_of(model), rng.integers(V, size=(found["B"], found["T"])), vocabulary=V) == 0
    x = rng.standard_normal((found["B"], found["T"], model[1].n_embd))
    assert check_causal(lambda x: forward(*model, x), x, lambda dout, cache: backward(dout, cache)[0]) == 0


@given(normals("BHTD", T=(2, 6)))
def test_attention_is_causal_along_another_axis(arrays):
    def f_backward(dout, cache):
        dq, dk, dv, _ = attention_backward(dout, cache)
        return dq + dk + dv

    assert check_causal(lambda x: attention(x, x, x), arrays[0], f_backward, axis=2) == 0


@given(normals("BTC", T=(2, 5)))
def test_time_along_another_axis_of_out(arrays):
    sums = lambda x: x.cumsum(1).swapaxes(1, 2)
    later = lambda dout, x: dout.swapaxes(1, 2)[:, ::-1].cumsum(1)[:, ::-1]
    check_causal(sums, arrays[0], later, out_axis=2)


NOT_CAUSAL = {
    "the mean over time": lambda x: x - x.mean(1, keepdims=True),
    "one to the left": lambda x: np.roll(x, -1, axis=1),
    "the last": lambda x: x * x[:, -1:],
    "the largest": lambda x: x / x.max(1, keepdims=True),
    "a billionth of the next": lambda x: x + 1e-9 * np.roll(x, -1, axis=1),
    "a mask that is only large": lambda x: softmax(np.where(np.tri(5, dtype=bool), x @ x.swapaxes(1, 2), -20.0)) @ x,
}


@pytest.mark.parametrize("f", NOT_CAUSAL.values(), ids=NOT_CAUSAL)
def test_what_is_not_causal_fails(f, rng):
    with fails(r"out at \d changes by .* when the input at \d does: usually a mask"):
        check_causal(f, rng.standard_normal((2, 5, 3)))


def test_a_leak_is_placed(rng):
    """Out 1 sees input 3, and no other sees what is behind it."""

    def f(x):
        out = x.copy()
        out[:, 1] += x[:, 3]
        return out

    with fails("out at 1 changes by .* when the input at 3 does"):
        check_causal(f, rng.standard_normal((2, 6, 3)))


def test_a_gradient_that_leaks(rng):
    with fails("the gradient of out up to 0 is .* at the input 1 behind it .* not transposed"):
        check_causal(lambda x: x.cumsum(1), rng.standard_normal((2, 5, 3)), lambda dout, x: dout.cumsum(1))


def test_a_tolerance_is_a_share_of_the_largest_output(rng):
    x = rng.standard_normal((2, 5, 3))
    assert 0 < check_causal(lambda x: x + 1e-9 * x[:, ::-1], x, tolerance=1e-8) < 1e-7
    with fails("tolerance 1e-10"):
        check_causal(lambda x: x + 1e-9 * x[:, ::-1], x, tolerance=1e-10)


@pytest.mark.parametrize("f, x, options, words", [
    (lambda x: np.ones_like(x), np.ones((2, 4, 3)), {}, "no output depends"),
    (lambda x: x[:, :1], np.ones((2, 4, 3)), {}, "x has 4 places, out 1"),
    (lambda x: x, np.ones((2, 1, 3)), {}, "at least two"),
    (lambda x: x * np.inf, np.ones((2, 4, 3)), {}, "finite numbers"),
    (lambda x: 1.0 * x, np.zeros((2, 4), int), {}, "1 id leaves none to change to"),
    (lambda x: 1.0 * x, np.ones((2, 4), int), {"f_backward": lambda dout, x: dout}, "int64, which has no gradient"),
    (lambda x: x, np.ones((2, 4, 3)), {"f_backward": lambda dout, x: 0 * dout}, "0 everywhere"),
])  # fmt: skip
def test_a_causal_check_that_could_show_nothing(f, x, options, words):
    with fails(words, ValueError):
        check_causal(f, x, **options)


# Bugs planted in the real source.


def gradient_of_attention():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 5, 4))
    check_gradient(attention, attention_backward, q, k, v)


def causal_gpt2():
    model = random_params(TINY, np.random.default_rng(0)), TINY
    check_causal(model_of(model), np.arange(10).reshape(2, 5), vocabulary=17)


PLANTED = [
    (Bug("scale missing in dq", gradient_of_attention, attention_module.attention_backward,
         "dq *= 1 / math.sqrt(q.shape[-1])", "pass"), "the gradient of q is off .* 2 times the right one everywhere"),
    (Bug("dv not transposed", gradient_of_attention, attention_module.attention_backward,
         "dv = probs[..., -T:].swapaxes(-1, -2)", "dv = probs[..., -T:]"), "the gradient of v is off .* a term"),
    (Bug("a query sees the next token", causal_gpt2, attention_module.attention,
         "xp.tri(T, dtype=bool)", "xp.tri(T, k=1, dtype=bool)"), "out at 3 changes by .* when the input at 4 does"),
]  # fmt: skip


@pytest.mark.parametrize("bug, words", PLANTED, ids=lambda value: getattr(value, "name", ""))
def test_planted_bugs_are_told(bug, words, monkeypatch):
    bug.caught_by()
    plant(bug, monkeypatch)
    with fails(words):
        bug.caught_by()


# The strategies.


@given(setups())
def test_every_setup_can_be_traced(setup):
    tensors = trace(*setup.asked, gradients="prompt")
    assert all(np.isfinite(x).all() for x in tensors.values()) and tensors["loss"] > 0
    assert ("grad.prompt" in tensors) == (setup.prompt is not None)


@given(normals("BTC", "1HPD", "CC", B=2, P=(4, 4)))
def test_a_letter_is_one_size_everywhere(arrays):
    (B, T, C), (one, H, P, D), square = (a.shape for a in arrays)
    assert (B, one, P) == (2, 1, 4) and square == (C, C) and 1 <= T <= 6 and 1 <= H <= 3 and 3 <= D <= 5
    assert all(a.dtype == np.float64 and a.all() for a in arrays)


@given(models(n_layer=2, n_head=2, vocab_size=7))
def test_models_have_no_special_weight(model):
    params, config = model
    assert (config.n_layer, config.n_head, config.vocab_size, len(params["wte"]["weight"])) == (2, 2, 7, 7)
    assert all((w != 0).all() and (w != 1).all() for w in flatten(params).values())
