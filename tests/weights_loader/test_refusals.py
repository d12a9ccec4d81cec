"""What `load` and `save` refuse: one line each, naming the culprit and the place."""

import json

import numpy as np
import pytest

from weights_loader import LoadError, load, model_hash, save

WTE, ATTN = "transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"


def refused(call, *words):
    """The call raises a LoadError of one line that holds all the words."""
    with pytest.raises(LoadError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


CONFIGS = [
    ({"model_type": "llama"}, 'model_type is "llama"'),
    ({"model_type": ...}, "model_type is null"),
    ({"activation_function": "gelu"}, 'activation_function is "gelu", and only "gelu_new"'),
    ({"activation_function": ["gelu_new"]}, 'activation_function is ["gelu_new"]'),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ({"scale_attn_weights": False}, "scale_attn_weights is false"),
    ({"add_cross_attention": True}, "add_cross_attention is true"),
    ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"'),
    ({"vocab_size": ...}, "vocab_size is missing"),
    ({"n_positions": 0}, "n_positions is 0"),
    ({"n_embd": 4.0}, "n_embd is 4.0"),
    ({"n_layer": True}, "n_layer is true"),
    ({"n_layer": -1}, "n_layer is -1"),
    ({"n_embd": 10**4299}, "n_embd is 1000"),
    ({"n_head": "2"}, 'n_head is "2"'),
    ({"n_head": 3}, "n_embd 4 is not divisible by n_head 3"),
    ({"n_inner": 0}, "n_inner is 0"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0"),
    ({"layer_norm_epsilon": None}, "layer_norm_epsilon is null"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[message for _, message in CONFIGS])
def test_configs_that_are_no_plain_gpt2(write_model, changes, message):
    folder = write_model(**changes)
    refused(lambda: load(folder), message, "config.json")


def test_folders_that_are_none(tmp_path, write_model):
    refused(lambda: load(tmp_path / "none"), "none", "no such folder")
    refused(lambda: model_hash(tmp_path / "none"), "no such folder")
    folder = write_model()
    refused(lambda: load(folder / "config.json"), "config.json", "not a folder")
    refused(lambda: load(str(folder), "int8"), "int8", "float32 or float64")
    (folder / "model.safetensors").unlink()
    refused(lambda: load(folder), "no model.safetensors")
    (folder / "config.json").unlink()
    refused(lambda: load(folder), "no config.json", "download it")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"n_embd": NaN}', '{"n_embd": 4, "n_embd": 8}', "\ufeff{}", "[" * 100_000, "1" * 5000]
)
def test_config_that_is_no_json_object(write_model, text):
    folder = write_model()
    (folder / "config.json").write_text(text, "utf-8")
    refused(lambda: load(folder), "config.json", "JSON", "download")


def test_config_that_is_a_folder_or_not_utf8(write_model):
    folder = write_model()
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    refused(lambda: load(folder), "config.json", "not valid JSON")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(lambda: load(folder), "config.json", "cannot be read")


def test_weights_that_are_a_folder(write_model):
    folder = write_model()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(lambda: load(folder), "model.safetensors", "cannot be read")


def without(name):
    return lambda tensors: tensors.pop(name)


def with_(name, x):
    return lambda tensors: tensors.update({name: x})


TENSORS = [
    (without(ATTN), ["'h.1.attn.c_attn.weight' [4, 12] is missing"]),
    (with_(ATTN, np.ones((12, 4), np.float32)), ["h.1.attn.c_attn.weight", "shape [12, 4], expected [4, 12]"]),
    (with_("transformer.ln_f.bias", np.ones((4, 1), np.float32)), ["ln_f.bias", "[4, 1], expected [4]"]),
    (with_("transformer.h.2.ln_1.bias", np.ones(4, np.float32)), ["unexpected tensor 'h.2.ln_1.bias' (1 in all)"]),
    (with_("extra\nname", np.ones(4, np.float32)), [r"unexpected tensor 'extra\nname'"]),
    (with_("wte.weight", np.ones((7, 4), np.float32)), ["'wte.weight' is stored twice"]),
    (with_(WTE, np.ones((7, 4), np.uint8)), ["'transformer.wte.weight' has dtype U8", "F32"]),
    (with_("lm_head.weight", np.ones((7, 4), np.float32)), ["lm_head.weight differs", "tie_word_embeddings"]),
    (with_("lm_head.weight", np.ones((6, 4), np.float32)), ["lm_head.weight differs"]),
]


@pytest.mark.parametrize(("change", "words"), TENSORS, ids=[words[0] for _, words in TENSORS])
def test_tensors_that_do_not_fit(write_model, make_tensors, change, words):
    tensors = make_tensors()
    change(tensors)
    folder = write_model(tensors)
    refused(lambda: load(folder), str(folder), *words)


def test_an_untied_head_must_be_there(write_model):
    folder = write_model(tie_word_embeddings=False)
    refused(lambda: load(folder), "'lm_head.weight' [7, 4] is missing")


def test_a_billion_layers_are_refused_at_once(write_model):
    folder = write_model(n_layer=10**9)
    refused(lambda: load(folder), "'h.2.ln_1.weight' [4] is missing")


INDEXES = [
    ({WTE: "../model.safetensors"}, ["no file of this folder; do not trust it"]),
    ({WTE: "/etc/passwd"}, ["'/etc/passwd'", "no file of this folder; do not trust it"]),
    ({WTE: ".."}, ["no file of this folder; do not trust it"]),
    ({WTE: "..\\model.safetensors"}, ["no file of this folder; do not trust it"]),
    ({WTE: 3}, ["no file of this folder; do not trust it"]),
    ({WTE: "model-00003-of-00002.safetensors"}, ["'model-00003-of-00002.safetensors'", "is missing"]),
    ({WTE: "model-00002-of-00002.safetensors"}, ["disagree", WTE]),
    ({WTE: ...}, ["disagree", WTE]),
    ({"transformer.other": "model-00001-of-00002.safetensors"}, ["disagree", "transformer.other"]),
]


@pytest.mark.parametrize(("changes", "words"), INDEXES, ids=range(len(INDEXES)))
def test_indexes_that_lie(write_shards, changes, words):
    folder = write_shards(**changes)
    refused(lambda: load(folder), *words)
    if "disagree" not in words:
        refused(lambda: model_hash(folder), *words)


def test_indexes_without_a_map_and_shards_that_overlap(write_shards):
    folder = write_shards()
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for bad in ({}, {"weight_map": []}, {"weight_map": {}}):
        index.write_text(json.dumps(bad))
        refused(lambda: load(folder), "index.json", "no weight_map")
    shard = "model-00001-of-00002.safetensors"
    (folder / "copy.safetensors").write_bytes((folder / shard).read_bytes().replace(b'"transformer.', b'"Transformer.'))
    names = [name for name, file in good["weight_map"].items() if file == shard]
    copies = {name.replace("transformer.", "Transformer.", 1): "copy.safetensors" for name in names}
    index.write_text(json.dumps({"weight_map": good["weight_map"] | copies}))
    refused(lambda: load(folder), "unexpected tensor 'Transformer.")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_opened(write_model, name):
    folder = write_model()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'echo harm'\ntR.")
    message = refused(lambda: load(folder), name, "pickle", 'python -c "', "save_file", "'model.safetensors'")
    compile(message.split('python -c "')[1].rstrip('"'), "the advice", "exec")


def test_what_load_would_refuse_is_not_saved(write_model, tmp_path):
    params, config = load(write_model())
    new = tmp_path / "new"
    refused(lambda: save(new, {"wte": params["wte"]}, config), "'wpe.weight' [5, 4] is missing")
    refused(lambda: save(new, params | {"lm_head": params["wte"]}, config), "unexpected tensor 'lm_head.weight'")
    refused(lambda: save(new, params, config | {"n_head": 3}), "not divisible")
    refused(lambda: save(tmp_path / "config.json", params, config), "not a folder")
    assert list(new.iterdir()) == []
