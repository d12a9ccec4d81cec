"""Soft prompts as PEFT saves them: adapter_config.json and adapter_model.safetensors."""

import json

import numpy as np

from weights_loader.files import LoadError, existing_folder, is_size, read_json, refuse_pickle
from weights_loader.safetensors_file import open_tensors, read_array

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING")  # P-tuning stores its encoder's output, never the encoder


def load_peft_prompt(folder):
    """The prompt in a PEFT folder -> (embeddings (P, C), the parsed adapter_config.json).

    float64 stays float64, the other types become float32. Raises LoadError.
    """
    folder = existing_folder(folder)
    path = folder / "adapter_config.json"
    config = read_json(path, missing="give a folder that PEFT's save_pretrained wrote")
    _check_type(config.get("peft_type"), path)
    slots = config.get("num_virtual_tokens")
    if not is_size(slots):
        raise LoadError(f"{path}: num_virtual_tokens is {json.dumps(slots)}; it must be a whole number above 0")
    tensor = _only_tensor(folder)
    if len(tensor.shape) != 2 or tensor.shape[0] != slots or tensor.shape[1] == 0:
        raise LoadError(
            f"{tensor.file}: prompt_embeddings has shape {list(tensor.shape)}, expected [{slots}, C] after "
            f"num_virtual_tokens in {path.name}; the two files do not belong together"
        )
    return np.array(read_array(tensor, np.float64 if tensor.dtype == "F64" else np.float32)), config


def _check_type(peft_type, path):
    if peft_type == "PREFIX_TUNING":
        raise LoadError(
            f"{path}: peft_type is PREFIX_TUNING, a prefix of keys and values, not embeddings; "
            "give a PROMPT_TUNING or P_TUNING folder"
        )
    if peft_type not in EMBEDDING_TYPES:
        raise LoadError(f"{path}: peft_type is {json.dumps(peft_type)}; give a PROMPT_TUNING or P_TUNING folder")


def _only_tensor(folder):
    """The Stored `prompt_embeddings`. Raises LoadError where it is not there, or not alone."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        refuse_pickle(folder, "adapter_model*.bin", path.name)
        raise LoadError(f"{folder}: there is no {path.name}; give a folder that PEFT's save_pretrained wrote")
    tensors = open_tensors(path)
    if set(tensors) != {"prompt_embeddings"}:
        names = ", ".join(map(repr, sorted(tensors))) or "nothing"
        raise LoadError(f"{path}: holds {names}, expected the one tensor 'prompt_embeddings'; save it again with PEFT")
    return tensors["prompt_embeddings"]
