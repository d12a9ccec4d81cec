"""Bugs planted in the parameterisations, one edit each, that a check of `parameterising.py` must catch."""

import pytest
from parameterising import CHECKS

from minicompress.layers import activations
from minicompress.prompts import layout
from minicompress.prompts.parameterisations import (
    cartridge,
    direct,
    low_rank,
    mlp,
    prefix_mlp,
    ptuning_lstm,
    ptuning_mlp,
)
from test_planted_bugs import Bug, planted_error

BUGS = [
    # layout
    Bug("all keys before all values", "layout", layout.kv_from_flat,
        "reshape(P, n_layer, 2, n_head, D).transpose(1, 2, 3, 0, 4)",
        "reshape(P, 2, n_layer, n_head, D).transpose(2, 1, 3, 0, 4)"),
    Bug("heads and channels mixed up", "layout", layout.kv_from_flat,
        "reshape(P, n_layer, 2, n_head, D).transpose(1, 2, 3, 0, 4)",
        "reshape(P, n_layer, 2, D, n_head).transpose(1, 2, 4, 0, 3)"),
    Bug("rows of heads instead of slots", "layout", layout.kv_from_flat,
        "reshape(P, n_layer, 2, n_head, D).transpose(1, 2, 3, 0, 4)",
        "reshape(n_layer, 2, n_head, P, D)"),
    Bug("values' gradient in the keys' columns", "gradient of prefix mlp", layout.flat_from_kv,
        "kv.transpose", "kv[:, ::-1].transpose"),
    Bug("layers and kinds mixed up on the way back", "gradient of low rank, kv", layout.flat_from_kv,
        "transpose(3, 0, 1, 2, 4)", "transpose(3, 1, 0, 2, 4)"),
    # direct, low rank, cartridge
    Bug("slots that training goes on to change", "alias of direct", direct.bake,
        '.copy()', ""),
    Bug("the base forgotten", "definition of low rank", low_rank.bake,
        "base + product", "product"),
    Bug("the base trained", "frozen of low rank", low_rank.bake_backward,
        'array_module(dslots).zeros_like(raw["base"])', "dslots"),
    Bug("a's gradient not transposed", "gradient of low rank, square", low_rank.bake_backward,
        'raw["b"].swapaxes(-1, -2)', 'raw["b"]'),
    Bug("b's gradient not transposed", "gradient of low rank, square", low_rank.bake_backward,
        'raw["a"].swapaxes(-1, -2)', 'raw["a"]'),
    Bug("the product's gradient in the carrier's order", "gradient of low rank, kv", low_rank.bake_backward,
        "dout = rows(dslots)", "dout = dslots.reshape(rows(dslots).shape)"),
    Bug("training begins away from the base", "start of low rank, kv", low_rank.init,
        "np.zeros((*outer, rank, width), dtype)", "np.ones((*outer, rank, width), dtype)"),
    Bug("training never begins", "first gradient of low rank", low_rank.init,
        "rng.standard_normal((*outer, P, rank))", "np.zeros((*outer, P, rank))"),
    Bug("frozen slots trained", "frozen of cartridge", cartridge.bake_backward,
        "array_module(dslots).zeros_like(dslots[:, :, :, :F])", "dslots[:, :, :, :F]"),
    Bug("frozen slots last", "definition of cartridge", cartridge.bake,
        '[raw["frozen"], raw["slots"]]', '[raw["slots"], raw["frozen"]]'),
    Bug("each slot gets its neighbour's gradient", "gradient of cartridge", cartridge.bake_backward,
        '"slots": dslots[:, :, :, F:]', '"slots": dslots[:, :, :, : dslots.shape[3] - F]'),
    Bug("the last slots frozen", "start of cartridge", cartridge.init,
        "kv[:, :, :, :frozen]", "kv[:, :, :, kv.shape[3] - frozen :]"),
    # encoders
    Bug("the prefix's embedding not trained", "gradient of prefix mlp", prefix_mlp.bake_backward,
        '["weight"] += ', '["weight"] += 0 * '),
    Bug("the MLP's embedding not trained", "gradient of p-tuning mlp", ptuning_mlp.bake_backward,
        '["weight"] += ', '["weight"] += 0 * '),
    Bug("the LSTM's embedding not trained", "gradient of p-tuning lstm", ptuning_lstm.bake_backward,
        '["weight"] += ', '["weight"] += 0 * '),
    Bug("no activation", "definition of prefix mlp", mlp.mlp,
        "if n:", "if False:"),
    Bug("an activation behind the last layer", "definition of p-tuning mlp", mlp.mlp,
        "return x, caches", "return activation(x)[0], caches"),
    Bug("the activation's slope left out", "gradient of p-tuning mlp", mlp.mlp_backward,
        "activation_backward(dout, caches[n])", "dout"),
    Bug("tanh's slope not squared", "gradient of prefix mlp", activations.tanh_backward,
        "out * out", "out"),
    Bug("ReLU where the prefix has tanh", "definition of prefix mlp", prefix_mlp.bake,
        ", tanh)", ", lambda x: (x * (x > 0), None))"),
    Bug("the second direction is the first again", "definition of p-tuning lstm", ptuning_lstm.both_directions,
        "[onward, back]", "[onward, onward]"),
    Bug("both directions read onward", "definition of p-tuning lstm", ptuning_lstm.both_directions,
        ", reverse=True", ""),
    Bug("the directions change places", "definition of p-tuning lstm", ptuning_lstm.both_directions,
        "[onward, back]", "[back, onward]"),
    Bug("the second direction's gradient lost", "gradient of p-tuning lstm", ptuning_lstm.both_directions_backward,
        "dx += lstm_backward", "_ = lstm_backward"),
    Bug("both directions get the first half", "gradient of p-tuning lstm, 1 layer", ptuning_lstm.both_directions_backward,
        "dout[..., h:]", "dout[..., :h]"),
    Bug("a layer reads the embedding again", "definition of p-tuning lstm, 3 layers", ptuning_lstm.bake,
        "both_directions(x, raw", "both_directions(x if n < 2 else x * 0, raw"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch) <= 1e-10
