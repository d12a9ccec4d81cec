"""Small checkpoints that the tests write themselves, byte by byte."""

import json
import math

import numpy as np
import pytest

CONFIG = {"model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": 7, "n_positions": 5, "n_embd": 4,
          "n_layer": 2, "n_head": 2, "n_inner": None, "layer_norm_epsilon": 1e-5}  # fmt: skip
CODES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "uint8": "U8", "bool": "BOOL"}


def encoded(tensors, metadata=None):
    """{name: array} -> the bytes of a safetensors file; uint16 arrays are taken for bfloat16 bits."""
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, x in tensors.items():
        header[name] = {"dtype": CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + b"".join(x.tobytes() for x in tensors.values())


def some_tensors(config, dtype=np.float32, prefix="transformer."):
    """{name: array} of a whole model with random weights, spelled out here once more, by hand."""
    C, V, T = config["n_embd"], config["vocab_size"], config["n_positions"]
    F = config.get("n_inner") or 4 * C
    shapes = {"wte.weight": (V, C), "wpe.weight": (T, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for layer in range(config["n_layer"]):
        for name, shape in {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "ln_2": (C,),
                            "mlp.c_fc": (C, F), "mlp.c_proj": (F, C)}.items():  # fmt: skip
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[-1:]}
    rng = np.random.default_rng(0)
    return {prefix + name: rng.standard_normal(math.prod(s)).reshape(s).astype(dtype) for name, s in shapes.items()}


@pytest.fixture
def to_bytes():
    return encoded


@pytest.fixture
def make_tensors():
    return lambda dtype=np.float32, prefix="transformer.", **changes: some_tensors(CONFIG | changes, dtype, prefix)


@pytest.fixture
def write_model(tmp_path):
    """write(tensors=None, **config changes) -> folder; a change to `...` leaves the key out."""

    def write(tensors=None, **changes):
        config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes(encoded(some_tensors(CONFIG) if tensors is None else tensors))
        return tmp_path

    return write


@pytest.fixture
def write_shards(write_model):
    """write(weight_map changes) -> folder with two shards and their index; ... removes an entry."""

    def write(**changes):
        folder, tensors = write_model(), some_tensors(CONFIG)
        (folder / "model.safetensors").unlink()
        names = list(tensors)
        weight_map = {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(names)}
        for shard in set(weight_map.values()):
            (folder / shard).write_bytes(encoded({name: tensors[name] for name in names if weight_map[name] == shard}))
        weight_map = {k: v for k, v in (weight_map | changes).items() if v is not ...}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return write
