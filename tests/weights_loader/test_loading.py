"""What `load` returns, and that `save` writes what it reads."""

import json
import mmap

import numpy as np
import pytest

from minicompress.gpt2.config import Config
from minicompress.gpt2.init import init, shapes
from minicompress.trees import flatten, unflatten
from weights_loader import load, model_hash, save
from weights_loader.checkpoint import expected_shapes, flat, nested

SIZES = {"gpt2": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20), "xl": (1600, 48, 25)}


def owner(x):
    """The object at the end of the chain of bases: whose memory it is."""
    while isinstance(x, np.ndarray):
        x = x.base
    return x.obj if isinstance(x, memoryview) else x


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_with_and_without_prefix_are_the_same_model(write_model, make_tensors, prefix):
    tensors = make_tensors(prefix=prefix)
    params, config = load(write_model(tensors))
    assert config["n_embd"] == 4
    assert list(params) == ["wte", "wpe", "h", "ln_f"]
    assert list(flatten(params)) == list(shapes(Config.from_dict(config)))
    for name, x in flatten(params).items():
        np.testing.assert_array_equal(x, tensors[prefix + name])


def test_float32_weights_are_views_of_the_mapped_file(write_model):
    for x in flatten(load(write_model())[0]).values():
        assert type(x) is np.ndarray and type(x + 1) is np.ndarray
        assert isinstance(owner(x), mmap.mmap) and not x.flags.owndata
        assert x.flags.aligned and not x.flags.writeable


def test_converted_weights_are_plain_arrays_too(write_model):
    for x in flatten(load(write_model(), "float64")[0]).values():
        assert type(x) is np.ndarray and x.dtype == np.float64 and owner(x) is None and not x.flags.writeable


def test_a_header_of_odd_length_still_gives_aligned_arrays(write_model, make_tensors):
    folder, tensors = write_model(), make_tensors()
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    (folder / "model.safetensors").write_bytes(odd)
    for name, x in flatten(load(folder)[0]).items():
        assert x.flags.aligned and type(x) is np.ndarray
        np.testing.assert_array_equal(x, tensors[f"transformer.{name}"])


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wanted", ["float32", "float64"])
def test_every_float_is_converted_exactly_as_numpy_does(write_model, make_tensors, stored, wanted):
    tensors = make_tensors(stored)
    for name, x in flatten(load(write_model(tensors), wanted)[0]).items():
        assert x.dtype == wanted
        np.testing.assert_array_equal(x, tensors[f"transformer.{name}"].astype(wanted))


def test_bfloat16_is_the_upper_half_of_float32(write_model, make_tensors):
    values = np.array([1.0, -2.5, 3.140625, np.inf, -0.0, 1e-40, 3.3895314e38], np.float32)
    bits = np.array([0x3F80, 0xC020, 0x4049, 0x7F80, 0x8000, 0x0001, 0x7F7F], np.uint16)
    values[5] = 2.0**-133  # the smallest subnormal bfloat16
    tensors = make_tensors()
    tensors["transformer.wte.weight"] = np.repeat(bits[:, None], 4, axis=1)
    for dtype in ("float32", "float64"):
        wte = load(write_model(tensors), dtype)[0]["wte"]["weight"]
        assert wte.dtype == dtype
        np.testing.assert_array_equal(wte, np.repeat(values[:, None], 4, axis=1).astype(dtype))
        assert np.signbit(wte[4]).all()


def test_mask_buffers_of_any_dtype_are_passed_over(write_model, make_tensors):
    tensors = make_tensors(prefix="")
    buffers = {"h.0.attn.bias": np.ones((1, 1, 5, 5), np.uint8), "h.1.attn.bias": np.ones((1, 1, 5, 5), bool),
               "h.0.attn.masked_bias": np.array(-1e4, np.float32)}  # fmt: skip
    assert list(flatten(load(write_model(tensors | buffers))[0])) == list(flatten(load(write_model(tensors))[0]))


def test_a_tied_head_that_repeats_wte_is_dropped(write_model, make_tensors):
    tensors = make_tensors()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    assert "lm_head" not in load(write_model(tensors))[0]


def test_an_untied_head_is_kept_and_stands_last(write_model, make_tensors):
    tensors = {"lm_head.weight": np.full((7, 4), 2, np.float32)} | make_tensors()
    params, _ = load(write_model(tensors, tie_word_embeddings=False))
    assert list(params)[-1] == "lm_head"
    np.testing.assert_array_equal(params["lm_head"]["weight"], 2)


def test_shards_are_one_model(write_shards, make_tensors):
    tensors = make_tensors()
    params = flatten(load(write_shards())[0])
    assert list(params) == list(shapes(Config.from_dict({"vocab_size": 7, "n_positions": 5, "n_embd": 4,
                                                         "n_layer": 2, "n_head": 2})))  # fmt: skip
    for name, x in params.items():
        np.testing.assert_array_equal(x, tensors[f"transformer.{name}"])


def test_another_mlp_width_and_the_other_name_of_gelu(write_model, make_tensors):
    folder = write_model(make_tensors(n_inner=3), n_inner=3, activation_function="gelu_pytorch_tanh")
    assert load(folder)[0]["h"]["1"]["mlp"]["c_fc"]["weight"].shape == (4, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tied", [True, False])
def test_expected_shapes_of_all_four_sizes_are_the_model_s_own(size, tied):
    n_embd, n_layer, n_head = SIZES[size]
    config = {"vocab_size": 50257, "n_positions": 1024, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head,
              "tie_word_embeddings": tied}  # fmt: skip
    assert list(expected_shapes(config)) == list(shapes(Config.from_dict(config)).items())


def test_nested_and_flat_are_the_package_s_own_trees(make_tensors):
    named = make_tensors(prefix="")
    assert nested(named) == unflatten(named) and flat(nested(named)) == named


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_is_loaded_bit_by_bit(tmp_path, tied, dtype):
    config = {"vocab_size": 7, "n_positions": 5, "n_embd": 4, "n_layer": 2, "n_head": 2, "tie_word_embeddings": tied}
    params = init(Config.from_dict(config), np.random.default_rng(0), dtype)
    save(tmp_path / "new", params, config)
    loaded, read = load(tmp_path / "new", dtype)
    assert config.items() <= read.items()
    assert list(flatten(loaded)) == list(flatten(params))
    for name, x in flatten(params).items():
        np.testing.assert_array_equal(flatten(loaded)[name], x)


def test_saving_over_a_loaded_model_leaves_its_arrays_valid(write_model):
    folder = write_model()
    params, config = load(folder)
    before = params["wte"]["weight"].copy()
    save(folder, params | {"wte": {"weight": before.T.copy().T + 1}}, config)  # not contiguous
    np.testing.assert_array_equal(params["wte"]["weight"], before)
    np.testing.assert_array_equal(load(folder)[0]["wte"]["weight"], before + 1)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_config_says_what_transformers_needs(write_model, tmp_path):
    params, config = load(write_model())
    save(tmp_path / "new", params, config | {"bos_token_id": 0, "eos_token_id": 1, "dtype": "bfloat16"})
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["model_type"] == "gpt2" and saved["architectures"] == ["GPT2LMHeadModel"]
    assert saved["tie_word_embeddings"] is True and (saved["bos_token_id"], saved["eos_token_id"]) == (0, 1)
    assert "dtype" not in saved  # these weights are float32 now


def test_model_hash_names_the_weights(write_model, write_shards, make_tensors):
    tensors = make_tensors()
    first = model_hash(write_model(tensors))
    assert len(first) == 16 and int(first, 16) >= 0
    assert model_hash(write_model(tensors, layer_norm_epsilon=1e-6)) == first  # the weights, not the config
    tensors["transformer.wte.weight"] = np.nextafter(tensors["transformer.wte.weight"], np.float32(9))
    assert len({first, model_hash(write_model(tensors)), model_hash(write_shards())}) == 3


def test_transformers_reads_what_is_saved_and_is_read(tmp_path):
    transformers = pytest.importorskip("transformers", reason="a peer, needed only to compare with")
    torch = pytest.importorskip("torch", reason="a peer, needed only to compare with")
    config = {"vocab_size": 7, "n_positions": 5, "n_embd": 4, "n_layer": 2, "n_head": 2}
    params = init(Config.from_dict(config), np.random.default_rng(0))
    save(tmp_path / "ours", params, config)
    model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    model.save_pretrained(tmp_path / "theirs", max_shard_size="1KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    for name, x in flatten(load(tmp_path / "theirs")[0]).items():
        np.testing.assert_array_equal(x, flatten(params)[name])
        theirs = model.state_dict()[f"transformer.{name}"]
        assert torch.equal(torch.from_numpy(np.array(x)), theirs)
