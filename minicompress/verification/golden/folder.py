"""Golden vectors: small files of inputs and right answers, for whoever ports a layer, or all, to another language.

A set is a folder: NAME.safetensors for each case, and manifest.json. All a file's numbers are float64 or int64; what
a port is given and what it must find are told apart in the manifest. `config.*` and `tolerance.*` are scalars.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minicompress.training.checkpoints import replace_file
from minicompress.verification.golden.case import computed
from minicompress.verification.golden.layers import LAYERS
from minicompress.verification.golden.models import MODELS
from minicompress.verification.oracles import error_of
from minicompress.verification.trace_file import read_trace, write_trace

FORMAT = "minicompress golden vectors 1"
MANIFEST = "manifest.json"
CASES = dict(sorted((LAYERS | MODELS).items()))
BLANKS = str.maketrans("", "", "\n ")


def given_and_asked(name, case):
    """-> what a port is given, and what it must find: {name: array}, float64 and int64 alone."""
    inputs, outputs = computed(name, case)
    numbers = {f"config.{fact}": np.array(x) for fact, x in case.facts.items() if not isinstance(x, str)}
    numbers |= {"tolerance.float64": np.array(case.float64), "tolerance.float32": np.array(case.float32)}
    typed = lambda tree: {n: x.astype(np.float64 if x.dtype.kind == "f" else np.int64) for n, x in sorted(tree.items())}
    return typed(inputs | numbers), typed(outputs)


def entry(case, given, asked):
    """What the manifest says of a file, but for its bytes."""
    tolerances = {"float64": case.float64, "float32": case.float32}
    shapes = {part: {n: list(x.shape) for n, x in tree.items()} for part, tree in (("given", given), ("asked", asked))}
    return {"proves": case.proves, "source": case.source, "config": case.facts, "tolerances": tolerances} | shapes


# Writing.


def write_golden(folder):
    """The whole set, in a folder that is new, empty, or an older set -> its manifest.

    Written beside and renamed, so that the folder is complete or absent. Raises ValueError where it holds
    anything else, OSError where it cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    beside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("tmp", "old"))
    try:
        beside.mkdir()
        manifest = {"format": FORMAT, "files": {f"{n}.safetensors": write_case(beside, n, c) for n, c in CASES.items()}}
        replace_file(beside / MANIFEST, lambda path: path.write_text(as_text(manifest), encoding="utf-8"))
        put_in_place(beside, folder, old)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def write_case(folder, name, case):
    given, asked = given_and_asked(name, case)
    path = folder / f"{name}.safetensors"
    write_trace(path, given | asked, case.facts)
    return {"sha256": sha256(path), "bytes": path.stat().st_size} | entry(case, given, asked)


def put_in_place(new, folder, old):
    """Two renames; where the second fails, what was there is there again."""
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise


def check_replaceable(folder):
    """Raises ValueError where something would be lost: a file, or a folder that holds anything but a golden set."""
    if not folder.parent.is_dir():
        raise ValueError(f"{folder}: there is no folder {folder.parent}")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"{folder} is no folder; name a new one for the golden set")
    found = {path.name for path in folder.iterdir()}
    if found and MANIFEST not in found:
        raise ValueError(f"{folder} holds no golden set but other files; name a new folder")
    if found and (foreign := sorted(found - {MANIFEST, *read_manifest(folder)["files"]})):
        raise ValueError(f"{folder} holds {foreign[0]}, which is not of its golden set; name a new folder")


def as_text(manifest):
    """Sorted JSON in lines, a shape in one of them."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    return re.sub(r"\[[\s\d,]*\]", lambda shape: shape[0].translate(BLANKS).replace(",", ", "), text)


# Reading, and comparing with what is computed here.


class Checked(NamedTuple):
    """files: how many were compared; nearest: the largest share of a tolerance; lines: what differs."""

    files: int
    nearest: float
    lines: list


def read_manifest(folder):
    """Raises ValueError where the folder is no golden set of this version."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is no golden set: it has no {MANIFEST}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}, not {FORMAT!r}")
        if not all(isinstance(one["sha256"], str) for one in found["files"].values()):
            raise ValueError("a file has no sha256")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as reason:
        raise ValueError(f"{path} is no manifest of golden vectors: {reason}") from None
    return found


def check_golden(folder):
    """Computes every number anew -> Checked. Inputs must be the same bit for bit, answers within the tolerances.

    Raises ValueError where the folder is no golden set.
    """
    folder, listed = Path(folder), read_manifest(folder)["files"]
    names = [f"{name}.safetensors" for name in CASES]
    lines = [f"{name}: not a file of this version's set" for name in sorted(listed.keys() - set(names))]
    lines += [f"{p.name}: not in {MANIFEST}" for p in sorted(folder.iterdir()) if p.name not in {MANIFEST, *listed}]
    nearest = 0.0
    for name, case in zip(names, CASES.values(), strict=True):
        found, share = differences(folder / name, listed.get(name), case)
        lines += [f"{name}: {line}" for line in found]
        nearest = max(nearest, share)
    return Checked(len(names), nearest, lines)


def differences(path, told, case):
    """-> lines, and the largest error as a share of the tolerance, of one file."""
    if told is None or not path.is_file():
        return [f"not in {MANIFEST}" if told is None else "missing"], 0.0
    given, asked = given_and_asked(path.stem, case)
    wanted, tensors, share = entry(case, given, asked), {}, 0.0
    lines = [] if told["sha256"] == sha256(path) else [f"its bytes are not those of {MANIFEST}"]
    lines += [f"{MANIFEST} says something else of it: {part}" for part in wanted if wanted[part] != told.get(part)]
    try:
        tensors, _ = read_trace(path)
    except ValueError as reason:
        lines.append(str(reason))
    for name in sorted(tensors.keys() ^ (given | asked).keys()) if tensors else ():
        lines.append(f"{name} is {'not asked for' if name in tensors else 'missing'}")
    for name in tensors.keys() & (given | asked).keys():
        error = tensor_error(tensors[name], (given | asked)[name])
        if name in given and error:
            lines.append(f"{name}, which is given, is not what it was when it was drawn")
        elif error == np.inf:
            lines.append(f"{name} has another shape, dtype, or other integers")
        elif not error <= case.float64:
            lines.append(f"{name} is off by {error:.1e}; the tolerance is {case.float64:.0e}")
        else:
            share = max(share, error / case.float64)
    return sorted(lines), share


def tensor_error(x, truth):
    """‖x - truth‖ / ‖truth‖; ∞ where a shape or dtype is another, or what is infinite or an integer is not the same."""
    if (x.shape, x.dtype) != (truth.shape, truth.dtype):
        return np.inf
    if x.dtype.kind != "f":
        return 0.0 if np.array_equal(x, truth) else np.inf
    return error_of(x, truth)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
