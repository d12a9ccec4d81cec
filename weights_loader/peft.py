"""Soft prompts as PEFT keeps them: adapter_config.json and adapter_model.safetensors, read and written.

The one tensor, `prompt_embeddings`, is what stands before the text once training is over: P-tuning's
encoder and prefix tuning's projection have been run and are not kept, and a cartridge's frozen and
trained tokens are one array again. n slots are (n, C), or (n, 2·L·C) where they are keys and values:
column ((2·layer + (0 key, 1 value))·H + head)·D + d.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_loader.files import LoadError, existing_folder, is_size, read_json, refuse_pickle
from weights_loader.safetensors_file import FLOATS, open_tensors, read_array

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING")  # (n, C), where token embeddings would stand
KV_TYPES = ("PREFIX_TUNING", "CARTRIDGE")  # (n, 2·L·C), the keys and values of every layer
OTHER_TYPES = {  # what cannot be said as slots before the text
    "MULTITASK_PROMPT_TUNING": "its slots differ from task to task; save one task's as PROMPT_TUNING",
    "CPT": "its slots are hard tokens with a bounded change, and its loss scores them too; "
    'to use them as they are, write "PROMPT_TUNING" there',
    "ADAPTION_PROMPT": "its slots are weighed by a softmax and a gate of their own in each layer",
    "LORA": "it changes the model's weights and has no slots",
}
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class PeftPrompt(NamedTuple):
    """A prompt in a PEFT folder; `dtype` is that of the file, with which `save_peft_prompt` restores its bytes."""

    array: Any
    config: dict
    dtype: str  # F64, F32, F16 or BF16


def load_peft_prompt(folder):
    """The prompt in a PEFT folder: PeftPrompt(array (n, C) or (n, 2·L·C), the parsed adapter_config.json, dtype).

    config["peft_type"] says which of the two it is. An F64 array is float64, the others are float32.
    Raises LoadError.
    """
    folder = existing_folder(folder)
    path = folder / CONFIG
    config = read_json(path, missing="give a folder that PEFT's save_pretrained wrote")
    _check_config(config, path)
    tensor = _only_tensor(folder)
    _check_shape(tensor.shape, config, f"{tensor.file}: prompt_embeddings")
    array = np.array(read_array(tensor, np.float64 if tensor.dtype == "F64" else np.float32))
    _check_finite(array, f"{tensor.file}: prompt_embeddings")
    return PeftPrompt(array, config, tensor.dtype)


def save_peft_prompt(folder, array, config, dtype="F32"):
    """Writes a prompt, as `load_peft_prompt` gives it, into `folder` so that PEFT's from_pretrained reads it.

    array: (n, C) or (n, 2·L·C) floating-point numbers; config: see `peft_config`; dtype: F64, F32, F16 or
    BF16, to which the numbers are rounded. An adapter that is there already is replaced, once both new
    files are whole on the disk. Raises LoadError.
    """
    folder, array = Path(folder), np.asarray(array)
    _check_place(folder)
    _check_config(config, folder / CONFIG)
    if not isinstance(config.get("task_type"), str):
        raise LoadError(f"{folder / CONFIG}: there is no task_type, and without one PEFT leaves the prompt out; "
                        "say CAUSAL_LM")  # fmt: skip
    if array.dtype.kind != "f":
        raise LoadError(f"{folder}: the array holds {array.dtype}; a prompt holds floating-point numbers")
    _check_shape(array.shape, config, f"{folder}: the array")
    _check_finite(array, f"{folder}: the array")
    try:
        text = json.dumps(config, indent=2, allow_nan=False)  # PEFT's own layout, ASCII as in its files
    except (TypeError, ValueError, RecursionError) as reason:
        raise LoadError(f"{folder / CONFIG}: the config cannot be written as JSON ({reason})") from None
    raw = _encoded(_rounded(array, dtype, folder), dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_together({folder / TENSORS: raw, folder / CONFIG: text.encode()})
    except OSError as reason:
        raise LoadError(f"{folder}: cannot be written ({reason.strerror}); check the path and the disk") from None


def peft_config(peft_type, slots, **facts):
    """The least adapter_config.json with which PEFT loads that many slots for a causal model, and `facts`.

    PEFT takes token_dim, num_layers and num_attention_heads from the model where they are not among the
    facts; given, they let others cut keys and values without the model. Raises LoadError.
    """
    least = {"inference_mode": True, "num_virtual_tokens": slots, "peft_type": peft_type, "task_type": "CAUSAL_LM"}
    config = dict(sorted((least | facts).items()))
    _check_config(config, CONFIG)
    return config


def _check_config(config, path):
    """Raises LoadError unless the config describes one of the four types, for one decoder, of possible sizes."""
    _check_type(config.get("peft_type"), path)
    task, submodules = config.get("task_type"), config.get("num_transformer_submodules")
    if task == "SEQ_2_SEQ_LM" or submodules not in (None, 1):
        raise LoadError(f"{path}: task_type is {_said(task)} and num_transformer_submodules {_said(submodules)}: its "
                        "slots are for an encoder and a decoder; give a CAUSAL_LM folder")  # fmt: skip
    for key in ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"):
        size = config.get(key)
        if not is_size(size) and (size is not None or key == "num_virtual_tokens"):
            raise LoadError(f"{path}: {key} is {_said(size)}; it must be a whole number above 0")
    C, H = config.get("token_dim"), config.get("num_attention_heads")
    if config["peft_type"] in KV_TYPES and C and H and C % H:
        raise LoadError(f"{path}: token_dim {C} is not divisible by num_attention_heads {H}; correct one")
    slots, frozen = config["num_virtual_tokens"], config.get("num_frozen_tokens", 1)
    if config["peft_type"] == "CARTRIDGE" and not (type(frozen) is int and 0 <= frozen <= slots):
        raise LoadError(f"{path}: num_frozen_tokens is {_said(frozen)}; it must be a whole number from 0 to "
                        f"num_virtual_tokens, {slots}")  # fmt: skip


def _said(value):
    """A value as the JSON file says it, whatever a caller put there."""
    return json.dumps(value, default=repr)


def _check_type(peft_type, path):
    known = ", ".join(EMBEDDING_TYPES + KV_TYPES)
    if peft_type not in EMBEDDING_TYPES + KV_TYPES:
        reason = OTHER_TYPES.get(peft_type) if isinstance(peft_type, str) else None
        reason = reason or "it is not known here as slots before the text"
        raise LoadError(f"{path}: peft_type is {_said(peft_type)}, not one of {known}: {reason}")


def _check_shape(shape, config, what):
    """Raises LoadError unless the shape is (n, C) or (n, 2·L·C), as far as the config tells the sizes."""
    slots, C, L = (config.get(key) for key in ("num_virtual_tokens", "token_dim", "num_layers"))
    if config["peft_type"] in EMBEDDING_TYPES:
        width, known, words = C or 1, C, "C"
    else:
        width, known, words = 2 * (L or 1) * (C or 1), C and L, f"2·{L or 'L'}·{C or 'C'}"
    if len(shape) == 2 and shape[0] == slots and (shape[1] == width if known else shape[1] and shape[1] % width == 0):
        return
    raise LoadError(
        f"{what} has shape {list(shape)}, expected [{slots}, {width if known else words}] after num_virtual_tokens, "
        f"token_dim and num_layers in {CONFIG}; the two do not belong together"
    )


def _check_finite(array, what):
    if wrong := array.size - int(np.isfinite(array).sum()):
        raise LoadError(f"{what} holds {wrong:,} of {array.size:,} numbers that are infinite or NaN; train it again")


def _check_place(folder):
    """Raises LoadError where `folder` is a file, or a model's folder, which PEFT's files would spoil."""
    if folder.exists() and not folder.is_dir():
        raise LoadError(f"{folder}: this is a file; name a folder for the adapter's two files")
    if found := [name for name in MODEL_FILES if (folder / name).exists()]:
        raise LoadError(f"{folder}: there is a model here ({found[0]}), which transformers could no longer load with "
                        "a prompt's files beside it; name another folder")  # fmt: skip


def _only_tensor(folder):
    """The Stored `prompt_embeddings`. Raises LoadError where it is not there, or not alone."""
    path = folder / TENSORS
    if not path.exists():
        refuse_pickle(folder, "adapter_model*.bin", path.name)
        raise LoadError(f"{folder}: there is no {path.name}; give a folder that PEFT's save_pretrained wrote")
    tensors = open_tensors(path)
    if set(tensors) != {"prompt_embeddings"}:
        names = ", ".join(map(repr, sorted(tensors))) or "nothing"
        reason = "save it again with PEFT"
        if "prompt_embeddings" in tensors:
            reason = "parts of the model were trained along (modules_to_save) or resized, which no prompt can say"
        raise LoadError(f"{path}: holds {names}, expected the one tensor 'prompt_embeddings'; {reason}")
    return tensors["prompt_embeddings"]


def _rounded(x, dtype, where):
    """x in the file's dtype, ties to even: bits (uint16) for BF16. Raises LoadError for what does not fit."""
    if dtype not in FLOATS:
        raise LoadError(f"{where}: dtype is {dtype!r}; it can be {', '.join(FLOATS)}")
    with np.errstate(over="ignore"):
        stored = _bfloat16(x) if dtype == "BF16" else x.astype(FLOATS[dtype])
    finite = stored & 0x7F80 != 0x7F80 if dtype == "BF16" else np.isfinite(stored)
    if not finite.all():
        raise LoadError(f"{where}: {np.abs(x).max():.7g}, the largest number, is too large for {dtype}; "
                        "save it as F32 or F64")  # fmt: skip
    return stored


def _bfloat16(x):
    """The bits (uint16) of the nearest bfloat16, ties to even: a float32's upper half.

    A number between two float32 goes to the one towards 0, whose last bit is then set: so it stays off
    the middle between two bfloat16, and is not rounded twice.
    """
    near = x.astype("<f4")
    bits = near.view("<u4") - (np.abs(near) > np.abs(x))
    bits |= near != x
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")


def _encoded(x, dtype):
    """The bytes of a safetensors file that holds x as `prompt_embeddings`: the very ones PEFT would write."""
    entry = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [0, x.nbytes]}
    header = {"__metadata__": {"format": "pt"}, "prompt_embeddings": entry}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the numbers begin at a multiple of 8 bytes
    return len(raw).to_bytes(8, "little") + raw + x.tobytes()


def _replace_together(contents):
    """{path: bytes}: all files are written beside, and whole on the disk, before the first is renamed."""
    beside = {path: path.with_name(f"{path.name}.{os.getpid()}.partial") for path in contents}
    try:
        for path, raw in contents.items():
            with open(beside[path], "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        for path, partial in beside.items():
            os.replace(partial, path)
    finally:
        for partial in beside.values():
            partial.unlink(missing_ok=True)
