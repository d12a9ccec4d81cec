"""LSTM layers against PyTorch's, and the encoders of prompts against PEFT's own modules: values, every gradient."""

import numpy as np
import pytest
from peer_models import assert_equal, to_numpy, torch

from helpers import zeros_like
from minicompress.layers.lstm import lstm, lstm_backward
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations import cartridge, prefix_mlp, ptuning_lstm, ptuning_mlp
from minicompress.prompts.parameterisations.ptuning_lstm import both_directions, both_directions_backward
from minicompress.trees import flatten, tree_map, unflatten

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
DIRECTIONS = {"onward": "", "reverse": "_reverse"}
SHAPES = [(4, 2, 3, 2, 5), (1, 1, 1, 4, 3), (7, 3, 2, 4, 16)]  # P, L, H, D, h
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_seed = pytest.mark.parametrize("seed", [0, 1])


def lstm_tree(named, layers, directions=DIRECTIONS):
    """{"0": {"onward": {"weight_ih": ...}, ...}, ...} of PyTorch's weight_ih_l0_reverse, and so on."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {
        str(n): {way: {kind: named[f"{kind}_l{n}{end}"] for kind in kinds} for way, end in directions.items()}
        for n in range(layers)
    }


def encoder_tree(encoder, layers=None, what=lambda weight: weight):
    """An encoder of PEFT's as our tree: linear weights (in, out); of the weights, or of `what` they carry."""
    tree = unflatten({name: to_numpy(what(weight)) for name, weight in encoder.named_parameters()})
    for head in ("transform", "mlp_head"):
        for layer in tree.get(head, {}).values():
            layer["weight"] = layer["weight"].T.copy()
    if layers:
        tree["lstm_head"] = lstm_tree(tree["lstm_head"], layers)
    return tree


def redrawn(module, seed):
    """float64, with every weight drawn anew: their own biases and weights would be small."""
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, 0.7, generator=generator)
    return module


@each_seed
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("two_ways", [False, True])
def test_lstm(layers, two_ways, seed, rng):
    theirs = redrawn(torch.nn.LSTM(6, 5, layers, batch_first=True, bidirectional=two_ways), seed)
    x, dout = rng.standard_normal((3, 7, 6)), rng.standard_normal((3, 7, 5 * (1 + two_ways)))
    there = torch.tensor(x, requires_grad=True)
    out, _ = theirs(there)
    out.backward(torch.as_tensor(dout))
    ways = DIRECTIONS if two_ways else {"onward": ""}
    params, expected = (
        lstm_tree({name: to_numpy(f(w)) for name, w in theirs.named_parameters()}, layers, ways)
        for f in (lambda w: w, lambda w: w.grad)
    )
    ours, caches, grads = x, [], zeros_like(params)
    for layer in params.values():
        ours, cache = both_directions(ours, layer) if two_ways else lstm(ours, **layer["onward"])
        caches.append(cache)
    dx = dout
    for n in reversed(range(layers)):
        if two_ways:
            dx = both_directions_backward(dx, caches[n], grads[str(n)])
        else:
            dx = lstm_backward(dx, caches[n], grads[str(n)]["onward"])
    answer = {"out": to_numpy(out), "dx": to_numpy(there.grad), "grads": expected}
    assert_equal({"out": ours, "dx": dx, "grads": grads}, answer, 1e-12)


@each_seed
@each_shape
@pytest.mark.parametrize("hidden", ["h", 512])
def test_prefix_encoder(shape, hidden, seed, rng):
    """Their output is flat; ours is baked, and laid flat again."""
    P, L, H, D, h = shape
    facts = facts_of(peft.PrefixTuningConfig, shape, h if hidden == "h" else hidden, prefix_projection=True)
    encoder = redrawn(peft.PrefixEncoder(facts), seed)
    dflat, theirs = rng.standard_normal((P, 2 * L * H * D)), encoder(torch.arange(P))
    theirs.backward(torch.as_tensor(dflat))
    kv, cache = prefix_mlp.bake(encoder_tree(encoder), L, H)
    draw = prefix_mlp.bake_backward(kv_from_flat(dflat, L, H), cache)
    answer = {"slots": to_numpy(theirs), "raw": encoder_tree(encoder, what=lambda weight: weight.grad)}
    assert_equal({"slots": flat_from_kv(kv), "raw": draw}, answer, 1e-12)


@each_seed
@each_shape
@pytest.mark.parametrize("kind, layers", [("MLP", None), ("LSTM", 1), ("LSTM", 2), ("LSTM", 3)])
def test_prompt_encoder(shape, kind, layers, seed, rng):
    P, _, H, D, h = shape
    options = {"encoder_num_layers": layers} if layers else {}
    facts = facts_of(peft.PromptEncoderConfig, shape, h, encoder_reparameterization_type=kind, **options)
    encoder = redrawn(peft.PromptEncoder(facts), seed)
    dslots, theirs = (
        rng.standard_normal((P, H * D)),
        encoder(torch.arange(P)[None])[0],
    )  # a batch of one, as PEFT calls it
    theirs.backward(torch.as_tensor(dslots))
    ours = ptuning_lstm if layers else ptuning_mlp
    slots, cache = ours.bake(encoder_tree(encoder, layers))
    answer = {"slots": to_numpy(theirs), "raw": encoder_tree(encoder, layers, lambda weight: weight.grad)}
    assert_equal({"slots": slots, "raw": ours.bake_backward(dslots, cache)}, answer, 1e-12)


@each_shape
def test_first_arrays_have_the_names_and_shapes_of_theirs(shape, rng):
    """So that a tree of ours could be theirs."""
    P, L, H, D, h = shape
    encoders = [
        (prefix_mlp.init(rng, P, L, H * D, h), peft.PrefixEncoder, peft.PrefixTuningConfig, {"prefix_projection": True}),
        (ptuning_mlp.init(rng, P, H * D, h), peft.PromptEncoder, peft.PromptEncoderConfig, {}),
        (ptuning_lstm.init(rng, P, H * D, h), peft.PromptEncoder, peft.PromptEncoderConfig,
         {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2}),
    ]  # fmt: skip
    for raw, encoder, kind, options in encoders:
        theirs = encoder_tree(encoder(facts_of(kind, shape, h, **options)), 2 if "lstm_head" in raw else None)
        assert {n: w.shape for n, w in flatten(raw).items()} == {n: w.shape for n, w in flatten(theirs).items()}


@each_shape
def test_first_numbers_spread_as_theirs(shape, rng):
    """The largest of many numbers and their spread: the same law for each array."""
    seen = {}
    for who in ("ours", "theirs"):
        for draw in range(40):
            raw = raw_of(who, shape, draw)
            for name, w in flatten(raw).items():
                seen.setdefault(name, {}).setdefault(who, []).append(w.ravel())
    for name, numbers in seen.items():
        ours, theirs = (np.concatenate(numbers[who]) for who in ("ours", "theirs"))
        if "embedding" not in name:  # uniform: it has an edge
            assert abs(np.abs(ours).max() / np.abs(theirs).max() - 1) <= 0.1, name
        assert abs(ours.std() / theirs.std() - 1) <= 0.25, name


def raw_of(who, shape, seed):
    P, _, H, D, h = shape
    if who == "ours":
        return ptuning_lstm.init(np.random.default_rng(seed), P, H * D, h)
    torch.manual_seed(seed)
    options = {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2}
    return encoder_tree(peft.PromptEncoder(facts_of(peft.PromptEncoderConfig, shape, h, **options)), 2)


@each_shape
@pytest.mark.parametrize("frozen", [0, 1])
def test_cartridge_encoder(shape, frozen, rng):
    tuners = pytest.importorskip("peft.tuners.cartridge.model", reason="this PEFT knows no cartridges")
    P, L, H, D, h = shape
    if frozen == P:
        pytest.skip("a gradient of nothing")
    facts = facts_of(peft.CartridgeConfig, shape, None, num_frozen_tokens=frozen)
    encoder = tuners.CartridgeEncoder(facts).double()
    flat, dflat = rng.standard_normal((2, P, 2 * L * H * D))
    encoder.load_prompt_embeddings(torch.as_tensor(flat))
    theirs = encoder(torch.arange(P)[None])[0]
    theirs.backward(torch.as_tensor(dflat))
    raw = cartridge.init(rng, kv_from_flat(flat, L, H), frozen, np.float64)
    kv, cache = cartridge.bake(raw)
    draw = tree_map(flat_from_kv, cartridge.bake_backward(kv_from_flat(dflat, L, H), cache))
    assert_equal({"kv": flat_from_kv(kv), "draw": draw["slots"]},
                 {"kv": to_numpy(theirs), "draw": to_numpy(encoder.trainable_embedding.grad)}, 0)  # fmt: skip
    assert not draw["frozen"].any() and draw["frozen"].shape == flat[:frozen].shape


def facts_of(kind, shape, hidden, **options):
    P, L, H, D, _ = shape
    if hidden is not None:
        options["encoder_hidden_size"] = hidden
    return kind(task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=H * D, num_layers=L, num_attention_heads=H,
                num_transformer_submodules=1, **options)  # fmt: skip
