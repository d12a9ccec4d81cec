"""A trace on disk: named arrays, and in the file's metadata what they are of."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from minicompress.training.checkpoints import save_arrays


def write_trace(path, tensors, facts=None):
    """{name: array} as safetensors. facts: anything JSON can hold, as the model's folder and the rows.

    Any program can write a trace: names and shapes are what counts, and no facts are needed. Raises OSError.
    """
    save_arrays(path, tensors, {"facts": json.dumps(facts)} if facts else None)


def read_trace(path):
    """-> {name: array}, facts, of a safetensors file, or of NumPy's .npz; nothing is unpickled.

    Raises ValueError where the file is neither, or holds no numbers.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; a trace is one safetensors or .npz file")
    tensors, facts = read_npz(path) if zipfile.is_zipfile(path) else read_safetensors(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} has dtype {tensor.dtype}; real numbers are needed")
    return tensors, facts


def read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as reason:
        # the last is zipfile's own word for a compression that it does not know
        raise ValueError(f"{path} cannot be read as .npz: {reason}") from None
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError(f"{path} is a zip file, but no .npz; save with numpy.savez, or as safetensors")
    return found, {}


def read_safetensors(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, RecursionError) as reason:
        raise ValueError(f"{path} is no trace (safetensors or .npz): {reason}") from None
    return tensors, facts if isinstance(facts, dict) else {}
