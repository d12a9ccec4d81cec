"""A GPT-2 checkpoint folder in Hugging Face layout: config.json and one or many safetensors files."""

import hashlib
import json
import os
import re

import numpy as np

from weights_loader.files import LoadError, existing_folder, is_size, read_json, refuse_pickle
from weights_loader.safetensors_file import open_tensors, read_array

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
SUPPORTED = {  # of config.json: key -> the value of an absent key, and the values that mean plain GPT-2
    "model_type": (None, ["gpt2"]),
    "activation_function": ("gelu_new", ["gelu_new", "gelu_pytorch_tanh"]),  # two names of one function
    "scale_attn_weights": (True, [True]),
    "scale_attn_by_inverse_layer_idx": (False, [False]),
    "add_cross_attention": (False, [False]),
    "tie_word_embeddings": (True, [True, False]),
}
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which old checkpoints carry along


def load(folder, dtype="float32"):
    """The model in `folder` -> (params, config).

    params: nested dict of read-only arrays, `params["h"]["0"]["attn"]["c_attn"]["weight"]` (C, 3C),
    in the order wte, wpe, h, ln_f, and lm_head where it is untied. Weights stored as `dtype`
    ("float32" or "float64") stay in the mapped file; others are converted one at a time.
    config: the parsed config.json. Raises LoadError.
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise LoadError(f"dtype is {np.dtype(dtype)}; weights are loaded as float32 or float64")
    folder = existing_folder(folder)
    config = read_json(folder / "config.json")
    check_config(config, folder / "config.json")
    tensors = _without_tied_head(_open_checkpoint(folder), config, dtype)
    tensors = arrange(tensors, config, folder)
    return nested({name: read_array(tensor, dtype) for name, tensor in tensors.items()}), config


def save(folder, params, config):
    """Writes params (nested dict) and config (dict with at least the sizes) so that `load` and
    transformers' GPT2LMHeadModel read them. Files are written beside and renamed: nobody ever sees
    half a file, and arrays mapped from the old one stay valid. Raises LoadError for a wrong shape or name.
    """
    from safetensors.numpy import save_file

    defaults = {key: absent for key, (absent, _) in SUPPORTED.items()} | {"model_type": "gpt2"}
    config = {"architectures": ["GPT2LMHeadModel"]} | defaults | config
    for key in ("dtype", "torch_dtype"):  # of the model it was loaded from: transformers would round to it
        config.pop(key, None)
    if not os.path.exists(folder):
        os.makedirs(folder)
    folder = existing_folder(folder)
    check_config(config, folder / "config.json")
    named = arrange(flat(params), config, folder)
    stem = {name: "" if name == "lm_head.weight" else "transformer." for name in named}
    named = {stem[name] + name: np.ascontiguousarray(x) for name, x in named.items()}
    _replace(folder / "model.safetensors", lambda path: save_file(named, path, metadata={"format": "pt"}))
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def model_hash(folder):
    """16 hexadecimal digits that name the weights: SHA-256 over the files' names and bytes, all of them read."""
    digest, folder = hashlib.sha256(), existing_folder(folder)
    for name in sorted(_weight_files(folder)):
        with open(folder / name, "rb") as file:
            digest.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def check_config(config, path):
    """Raises LoadError unless the config describes a plain GPT-2 of possible sizes."""
    for key, (absent, supported) in SUPPORTED.items():
        if config.get(key, absent) not in supported:
            words = " or ".join(map(json.dumps, supported))
            found = json.dumps(config.get(key, absent))
            raise LoadError(f"{path}: {key} is {found}, and only {words} is supported; use a plain GPT-2 checkpoint")
    for key in SIZES:
        if not is_size(config.get(key)):
            found = json.dumps(config[key]) if key in config else "missing"
            raise LoadError(f"{path}: {key} is {found}; it must be a whole number above 0")
    if config["n_embd"] % config["n_head"]:
        raise LoadError(f"{path}: n_embd {config['n_embd']} is not divisible by n_head {config['n_head']}; correct one")
    inner, eps = config.get("n_inner"), config.get("layer_norm_epsilon", 1e-5)
    if inner is not None and not is_size(inner):
        raise LoadError(f"{path}: n_inner is {json.dumps(inner)}; it must be null or a whole number above 0")
    if type(eps) is not float or not 0 < eps < 1:
        raise LoadError(f"{path}: layer_norm_epsilon is {json.dumps(eps)}; it must be a number between 0 and 1")


def expected_shapes(config):
    """Yields (name, shape) of every weight in the checkpoint's order; C = n_embd, F = the MLP's width."""
    C = config["n_embd"]
    F = config.get("n_inner") or 4 * C
    yield "wte.weight", (config["vocab_size"], C)
    yield "wpe.weight", (config["n_positions"], C)
    layers = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
              "ln_2": (C,), "mlp.c_fc": (C, F), "mlp.c_proj": (F, C)}  # fmt: skip
    for layer in range(config["n_layer"]):
        for name, shape in layers.items():
            yield f"h.{layer}.{name}.weight", shape
            yield f"h.{layer}.{name}.bias", shape[-1:]
    yield "ln_f.weight", (C,)
    yield "ln_f.bias", (C,)
    if not config.get("tie_word_embeddings", True):
        yield "lm_head.weight", (config["vocab_size"], C)


def arrange(tensors, config, folder):
    """{name: anything with a shape}, in the checkpoint's order. Raises LoadError unless the names
    and shapes are exactly those the config asks for.
    """
    arranged, advice = {}, "the weights and config.json do not belong together"
    for name, shape in expected_shapes(config):
        if name not in tensors:
            raise LoadError(f"{folder}: tensor {name!r} {list(shape)} is missing; {advice}")
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise LoadError(f"{folder}: tensor {name!r} has shape {found}, expected {list(shape)}; {advice}")
        arranged[name] = tensors[name]
    if extra := [name for name in tensors if name not in arranged]:
        raise LoadError(f"{folder}: unexpected tensor {extra[0]!r} ({len(extra)} in all); {advice}")
    return arranged


def nested(named):
    """{"h.0.ln_1.bias": x} -> {"h": {"0": {"ln_1": {"bias": x}}}}."""
    tree = {}
    for name, x in named.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = x
    return tree


def flat(tree, prefix=""):
    """The inverse of `nested`."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: x for key, child in tree.items() for name, x in flat(child, f"{prefix}{key}.").items()}


def _open_checkpoint(folder):
    """{name without `transformer.`: Stored} over all the weight files, without buffers. Raises LoadError."""
    tensors = {}
    for file, promised in _weight_files(folder).items():
        stored = open_tensors(folder / file)
        if promised is not None and (differing := promised ^ stored.keys()):
            raise LoadError(f"{folder / file}: the index and this shard disagree about tensor {min(differing)!r}; "
                            "download both again")  # fmt: skip
        for full_name, tensor in stored.items():
            name = full_name.removeprefix("transformer.")
            if name in tensors:
                raise LoadError(f"{folder / file}: tensor {name!r} is stored twice; download the weights again")
            if not BUFFERS.fullmatch(name):
                tensors[name] = tensor
    return tensors


def _weight_files(folder):
    """{file name: the names the index promises in it, None without an index}. Raises LoadError."""
    if (folder / "model.safetensors").exists():
        return {"model.safetensors": None}
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        refuse_pickle(folder, "pytorch_model*.bin", "model.safetensors")
        raise LoadError(f"{folder}: there is no model.safetensors and no {index.name}; download the model's weights")
    shards, weight_map = {}, read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{index}: has no weight_map from tensors to files; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\:\0"):
            raise LoadError(f"{index}: tensor {name!r} lies in {file!r}, no file of this folder; do not trust it")
        if not (folder / file).is_file():
            raise LoadError(f"{folder}: shard {file!r}, named in {index.name}, is missing; download it")
        shards.setdefault(file, set()).add(name)
    return shards


def _without_tied_head(tensors, config, dtype):
    """The tensors without a stored lm_head that says what wte says, where the config ties the two."""
    head, wte = tensors.get("lm_head.weight"), tensors.get("wte.weight")
    if head is None or wte is None or not config.get("tie_word_embeddings", True):
        return tensors
    if not np.array_equal(read_array(head, dtype), read_array(wte, dtype)):
        raise LoadError(f"{head.file}: lm_head.weight differs from wte.weight, and config.json ties the two; "
                        'set "tie_word_embeddings": false there if the head is really its own')  # fmt: skip
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def _replace(path, write):
    """write(a path beside), then rename it to `path`; nothing is left behind where writing fails."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as any new file here; safetensors would hide its own from others
        write(partial)
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
