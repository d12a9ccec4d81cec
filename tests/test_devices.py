"""The same code on another device: equal results, and not one silent transfer."""

import math

import numpy as np
import pytest

import strict_device
from checks import DIVERGENCES, LAYERS
from helpers import TINY, prompt_step, random_ids, random_params, teacher_objective, token_objective, zeros_like
from minicompress.arrays import to_host
from minicompress.gpt2 import backward, embed, forward, logits
from minicompress.layers import activations, attention, divergences, gelu, layernorm, linear, losses, lstm
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import relative_error

HOST = np.arange(3.0)
TRANSFERS = {
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "format": lambda x: f"{x.sum():.3f}",
    "range": lambda x: range(x.argmax()),
    "math": lambda x: math.sqrt(x.sum()),
    "numpy function": lambda x: np.exp(x),
    "numpy conversion": lambda x: np.asarray(x),
    "numpy join": lambda x: np.concatenate([x, x]),
    "numpy like": lambda x: np.zeros_like(x),
    "host array on the right": lambda x: x + HOST,
    "host array on the left": lambda x: HOST * x,
    "host array in place": lambda x: x.__imul__(HOST),
    "host scalar": lambda x: x * np.float64(2),
    "host index": lambda x: x[np.array([0, 2])],
    "list index": lambda x: x[[0, 2]],
    "host mask": lambda x: x[HOST > 1],
    "host value": lambda x: x.__setitem__(slice(None), HOST),
    "device index of a host array": lambda x: HOST[strict_device.asarray([0, 2])],
    "host argument": lambda x: strict_device.where(HOST > 1, x, 0.0),
    "host join": lambda x: strict_device.concatenate([x, HOST]),
}


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=TRANSFERS)
def test_planted_transfers_are_caught(transfer):
    with pytest.raises((TypeError, IndexError)):
        transfer(strict_device.asarray(HOST + 1))


def test_the_stand_in_computes_what_numpy_computes():
    x = strict_device.asarray(HOST)
    assert np.array_equal((2 * x - x[1:2] / 4).get(), 2 * HOST - HOST[1:2] / 4)
    assert np.array_equal(strict_device.linalg.norm(x[None] @ x[:, None]).get(), 5.0)
    assert [part.shape for part in x] == [(), (), ()]
    x[x > 1] = 7.0
    assert np.array_equal(x.get(), [0, 1, 7])
    x += 1
    assert type(x) is strict_device.Array and x.shape == (3,) and len(x) == 3 and x.dtype == float


def test_layers(xp, rng):
    x, dout = rng.standard_normal((2, 2, 5, 6))
    weight, bias = rng.standard_normal((6, 6)), rng.standard_normal(6)

    def run(xp, x, dout, weight, bias):
        grads = zeros_like({"linear": {"weight": weight, "bias": bias}, "layernorm": {"weight": bias, "bias": bias}})
        y, cache_linear = linear.linear(x, weight, bias)
        z, cache_norm = layernorm.layernorm(y, bias, bias)
        out, cache_gelu = gelu.gelu(z)
        dz = gelu.gelu_backward(dout, cache_gelu)
        dy = layernorm.layernorm_backward(dz, cache_norm, grads["layernorm"])
        return {"out": out, "dx": linear.linear_backward(dy, cache_linear, grads["linear"]), **grads}

    both(xp, run, x, dout, weight, bias)


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_and_activations(xp, reverse, rng):
    inputs, *_ = LAYERS["lstm"](rng, 2, 4, 1, 3, 5)

    def run(xp, x, *weights):
        out, cache = lstm.lstm(x, *weights, reverse=reverse)
        grads = zeros_like(dict(zip(list(inputs)[1:], weights, strict=True)))
        y, cache_tanh = activations.tanh(out)
        z, cache_relu = activations.relu(y)
        dout = activations.tanh_backward(activations.relu_backward(y, cache_relu), cache_tanh)
        return {"out": z, "dx": lstm.lstm_backward(dout, cache, grads), **grads}

    both(xp, run, *inputs.values())


@pytest.mark.parametrize("past_rows", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("masses", [False, True])
def test_attention(xp, past_rows, masked, T, masses, rng):
    q, k, v, dout = rng.standard_normal((4, 2, 3, T, 5))
    past = list(rng.standard_normal((2, past_rows, 3, 2, 5))) if past_rows else None
    if past and masses:
        past.append(rng.standard_normal((past_rows, 3, 2)))
    key_mask = rng.random((2, T + 2 * bool(past))) < 0.7 if masked else None
    if masked:
        key_mask[:, -T] = True

    def run(xp, q, k, v, dout):
        mask = None if key_mask is None else xp.asarray(key_mask)
        out, cache = attention.attention(q, k, v, past and [xp.asarray(a) for a in past], mask)
        *dqkv, dpast = attention.attention_backward(dout, cache)
        return dict(zip("oqkvKVb", [out, *dqkv, *(dpast or ())], strict=False))

    both(xp, run, q, k, v, dout)


def test_losses(xp, rng):
    x, dout, targets = rng.standard_normal((6, 7)), rng.standard_normal(6), rng.integers(7, size=6)

    def run(xp, x, dout, targets):
        nll, cache = losses.cross_entropy(x, targets)
        kl, kl_cache = losses.kl_divergence(x, losses.log_softmax(0.5 * x), 2.0)
        return {"ce": nll, "dce": losses.cross_entropy_backward(dout, cache),
                "kl": kl, "dkl": losses.kl_divergence_backward(dout, kl_cache)}  # fmt: skip

    both(xp, run, x, dout, targets)


@pytest.mark.parametrize("name", DIVERGENCES.values())
@pytest.mark.parametrize("k", [1, 3, 6, 7, 9])
def test_divergences(xp, name, k, rng):
    x, t, dout = rng.standard_normal((6, 7)), rng.standard_normal((6, 7)), rng.standard_normal(6)

    def run(xp, x, t, dout):
        options = {"k": k} if "top_k" in name else {}
        out, cache = getattr(divergences, name)(x, losses.log_softmax(t), temperature=2.0, **options)
        return {"out": out, "dx": getattr(divergences, f"{name}_backward")(dout, cache)}

    both(xp, run, x, t, dout)


@pytest.mark.parametrize("objective", [token_objective, teacher_objective])
def test_a_prompt_through_the_whole_model(xp, objective, rng):
    params, slots, ids = random_params(TINY, rng), rng.standard_normal((4, 12)), random_ids(TINY, rng, 3, 5)
    against = ids.reshape(-1) if objective is token_objective else np.log(rng.dirichlet(np.ones(17), 15))

    def run(xp, slots, against, weights):
        losses, dslots = prompt_step(tree_map(xp.asarray, params), TINY, slots, ids, objective(against, weights))
        return {"losses": losses, "dslots": dslots}

    both(xp, run, slots, against, np.full(15, 1 / 15))


def test_every_weight_gradient(xp, rng):
    """Rows of the embedding table that several tokens share are summed in another order: equal to rounding there."""
    params, slots, ids = random_params(TINY, rng), rng.standard_normal((4, 12)), random_ids(TINY, rng, 3, 5)

    def run(xp, slots, targets, weights):
        there = tree_map(xp.asarray, params)
        grads = zeros_like(there)
        prompt_step(there, TINY, slots, ids, token_objective(targets, weights), grads)
        return grads

    both(xp, run, slots, ids.reshape(-1), np.full(15, 1 / 15), except_for=("wte.weight",))


def test_logits_and_a_cached_token(xp, rng):
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 6)

    def run(xp):
        there = tree_map(xp.asarray, params)
        _, past, _ = forward(there, TINY, embed(there, ids[:, :5]), keep="nothing")
        key_mask = xp.asarray(np.ones((2, 6), bool))
        hidden, _, cache = forward(there, TINY, embed(there, ids[:, 5:], [5, 5]), past, key_mask)
        return {"logits": logits(there, hidden), "dx": backward(hidden, cache)[0]}

    both(xp, run)


def test_adamw(xp, rng):
    """Clipping is left out: its norm is a number on the host by design."""
    params = {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(4)}
    steps = [tree_map(lambda w: rng.standard_normal(w.shape), params) for _ in range(5)]

    def run(xp):
        there = tree_map(lambda w: xp.asarray(w.copy()), params)
        state = adamw_init(there)
        for grads in steps:
            adamw_step(there, tree_map(xp.asarray, grads), state, 0.1, weight_decay=0.1)
        return there

    both(xp, run)


def test_every_layer_has_been_here():
    """A new layer in checks.LAYERS should come to this file too."""
    kinds = {name.split(",")[0].split(" at ")[0].split(" without")[0] for name in LAYERS}
    assert kinds == {"linear", "layernorm", "gelu", "relu", "tanh", "lstm", "embedding", "attention", "softmax",
                     "cross-entropy", "kl", *DIVERGENCES}  # fmt: skip


def both(xp, run, *inputs, except_for=()):
    """Runs on the host and on xp: equal to the last bit on the stand-in, to rounding on a GPU."""
    expected, got = flatten(run(np, *inputs)), flatten(run(xp, *map(xp.asarray, inputs)))
    for name, there in got.items():
        assert isinstance(there, xp.Array if xp is strict_device else xp.ndarray), f"{name} is not on the device"
        exact = xp.__name__ != "cupy" and name not in except_for
        assert relative_error(to_host(there), expected[name]) <= (0 if exact else 1e-12), name
