"""Folders and JSON files from other hands: everything that can be wrong becomes a `LoadError`."""

import json
from pathlib import Path


class LoadError(ValueError):
    """A file that cannot be read faithfully: one line with what is wrong, where, and what to do."""


def existing_folder(folder):
    """The Path of `folder`. Raises LoadError where there is none."""
    folder = Path(folder)
    if not folder.exists():
        raise LoadError(f"{folder}: there is no such folder; give the folder that holds the model's files")
    if not folder.is_dir():
        raise LoadError(f"{folder}: this is not a folder; give the folder that holds the model's files")
    return folder


def read_json(path, missing="download it from where the model came from"):
    """The JSON object in the file at `path`. Raises LoadError, with the advice `missing` for no file."""
    try:
        return parse_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise LoadError(f"{path.parent}: there is no {path.name}; {missing}") from None
    except OSError as reason:
        raise LoadError(f"{path}: cannot be read ({reason.strerror}); check the file's permissions") from None


def parse_json(raw, where):
    """bytes -> dict: UTF-8, one object, no name twice, no NaN. Raises LoadError."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as reason:
        raise LoadError(f"{where}: not valid JSON ({reason}); the file is damaged, download it again") from None
    if not isinstance(value, dict):
        raise LoadError(f"{where}: holds a JSON {type(value).__name__}, not an object; download the file again")
    return value


def _unique(pairs):
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return names


def _no_constant(text):
    raise ValueError(f"{text} is not JSON")


def is_size(value):
    """Is `value` a whole number from 1 to 2³¹ - 1? (True, which Python counts as 1, is not.)"""
    return type(value) is int and 0 < value < 2**31


def refuse_pickle(folder, pattern, target):
    """Raises LoadError, with the line that converts them, where `folder` holds files of that pattern."""
    found = sorted(file.name for file in folder.glob(pattern))
    if found:
        line = (
            "import glob, torch, safetensors.torch as s; "
            f"s.save_file({{k: v.contiguous().clone() for f in glob.glob('{pattern}') "
            f"for k, v in torch.load(f, weights_only=True).items()}}, '{target}', metadata={{'format': 'pt'}})"
        )
        raise LoadError(
            f"{folder}: {found[0]} is a pickle, which can run any code and is never opened here; "
            f'convert it, in that folder, with: python -c "{line}"'
        )
