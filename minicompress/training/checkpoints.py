"""Trees on disk as safetensors, written beside and renamed: a killed run leaves the old file or the new."""

import json
import os
from pathlib import Path

from minicompress.arrays import to_host
from minicompress.trees import flatten, tree_map, unflatten


def replace_file(path, write):
    """Runs write(temporary path), then puts that file in the place of `path` in one step."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_tree(path, tree, **facts):
    """The tree's arrays, and facts (anything JSON can hold) in the file's metadata."""
    import numpy as np
    from safetensors.numpy import save_file

    flat = flatten(tree_map(lambda a: np.ascontiguousarray(to_host(a)), tree))
    replace_file(path, lambda beside: save_file(flat, beside, metadata={"facts": json.dumps(facts)}))


def load_tree(path):
    """-> tree, facts. Raises ValueError where the file is not one that `save_tree` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return unflatten({name: file.get_tensor(name) for name in file.keys()}), facts  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as reason:
        raise ValueError(f"{path} is not a checkpoint of this program ({reason}); delete it to start afresh") from None
