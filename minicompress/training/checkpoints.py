"""Trees on disk as safetensors, written beside and renamed: a killed run leaves the old file or the new."""

import json
import os
from pathlib import Path

import numpy as np

from minicompress.arrays import to_host
from minicompress.trees import flatten, unflatten


def replace_file(path, write):
    """Runs write(temporary path), then puts that file in the place of `path` in one step."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # as any new file here; safetensors would hide its own from others
        write(beside)
        beside.chmod(mode)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_arrays(path, arrays, metadata=None):
    """{name: array} as a safetensors file. Raises OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    host = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    try:
        replace_file(path, lambda beside: save_file(host, beside, metadata))
    except SafetensorError as reason:
        raise OSError(f"{path} cannot be written: {reason}") from None


def load_arrays(path, form):
    """-> {name: array} and the metadata of a file whose `format` is `form`. Raises ValueError with why it is not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if (found := (metadata := file.metadata() or {}).get("format")) != form:
                raise ValueError(f"its format is {found!r}, not {form!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as reason:
        raise ValueError(reason) from None


def save_tree(path, tree, **facts):
    """The tree's arrays, and facts (anything JSON can hold) in the file's metadata."""
    save_arrays(path, flatten(tree), {"facts": json.dumps(facts)})


def load_tree(path):
    """-> tree, facts. Raises ValueError where the file is not one that `save_tree` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if not isinstance(facts := json.loads((file.metadata() or {})["facts"]), dict):
                raise ValueError("its facts are no JSON object")
            return unflatten({name: file.get_tensor(name) for name in file.keys()}), facts  # noqa: SIM118
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as reason:
        raise ValueError(f"{path} is not a checkpoint of this program ({reason}); delete it to start afresh") from None


def load_own(path, **ours):
    """`load_tree` of a run's own checkpoint. Raises ValueError where one of the facts is another run's.

    `shards`, the number of threads, is one of them: sums over other parts of a batch round otherwise.
    """
    tree, facts = load_tree(path)
    for name, value in ours.items():
        if (theirs := facts.get(name)) == value:
            continue
        if name == "shards":
            raise ValueError(f"{path} belongs to a run on {theirs} threads; --threads {theirs} goes on from it")
        raise ValueError(f"{path} belongs to a run with another {name}; leave out --resume to start afresh")
    return tree, facts
