"""Golden vectors as a folder: the same bytes twice, complete or absent, and a check that names what differs."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicompress.verification.golden import folder as golden
from minicompress.verification.golden.folder import CASES, MANIFEST, check_golden, given_and_asked, write_golden

ROOT = Path(__file__).resolve().parents[2]
each_case = pytest.mark.parametrize("name", CASES)


def test_two_runs_write_the_same_bytes(kept, tmp_path):
    code = f"from minicompress.verification.golden.folder import write_golden; write_golden({str(tmp_path / 'set')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert contents(kept) == contents(tmp_path / "set")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_set_is_small_and_sorted(kept):
    assert sum(map(len, contents(kept).values())) < 800_000
    manifest = json.loads((kept / MANIFEST).read_text())
    assert manifest["format"] == golden.FORMAT and list(manifest["files"]) == sorted(manifest["files"])
    assert {f"{name}.safetensors" for name in CASES} == manifest["files"].keys() == contents(kept).keys() - {MANIFEST}


@each_case
def test_the_file_format_byte_for_byte(name, kept):
    """8 bytes of length, the header, the data end to end; shapes as in the manifest; nothing but F64 and I64."""
    raw, told = (kept / f"{name}.safetensors").read_bytes(), json.loads((kept / MANIFEST).read_text())["files"][f"{name}.safetensors"]
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    facts = json.loads(header.pop("__metadata__", {}).get("facts", "{}"))
    assert facts == told["config"] and told["bytes"] == len(raw)
    assert {n: one["shape"] for n, one in header.items()} == told["given"] | told["asked"]
    assert not told["given"].keys() & told["asked"].keys()
    ends = sorted(one["data_offsets"] for one in header.values())
    assert [a for a, _ in ends] == [0, *(b for _, b in ends[:-1])] and ends[-1][1] == len(data)
    given, asked = given_and_asked(name, CASES[name])
    for n, x in (given | asked).items():
        assert header[n]["dtype"] == {"f": "F64", "i": "I64"}[x.dtype.kind]
        start, end = header[n]["data_offsets"]
        assert np.frombuffer(data[start:end], f"<{x.dtype.kind}8").tolist() == x.ravel().tolist()
    assert {name: told["tolerances"][name] for name in ("float64", "float32")} == {
        "float64": float(given["tolerance.float64"]), "float32": float(given["tolerance.float32"])}  # fmt: skip


def test_an_older_set_is_replaced_and_an_empty_folder_filled(kept, folder):
    (folder / "layer-gelu.safetensors").write_bytes(b"old")
    write_golden(folder)
    (folder.parent / "empty").mkdir()
    write_golden(folder.parent / "empty")
    assert contents(folder) == contents(folder.parent / "empty") == contents(kept)
    assert {path.name for path in folder.parent.iterdir()} == {"set", "empty"}


def test_what_is_no_golden_set_is_refused(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "link").symlink_to(folder)
    (folder / "notes.txt").write_text("keep")
    for path, words in (("mine", "holds no golden set"), ("file", "is no folder"), ("link", "is no folder"),
                        ("set", "holds notes.txt"), ("nowhere/set", "there is no folder")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            write_golden(tmp_path / path)
    assert (folder / "notes.txt").read_text() == (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("where, there", [("write_case", False), ("as_text", True), ("os.rename", False), ("os.rename", True)])
def test_an_interrupted_run_leaves_nothing_half_written(where, there, folder, monkeypatch):
    """Absent where it was absent, the older set where there was one; nothing lies beside it."""
    if not there:
        shutil.rmtree(folder)
    before, calls, real = there and contents(folder), [], golden.write_case

    def interrupted(*args):
        calls.append(args)
        if where == "write_case" and len(calls) < 30:
            return real(*args)
        if where == "os.rename" and not (args[0].name.endswith(".tmp") and args[1] == folder):
            return os.replace(*args)  # the older set out of the way, and back
        raise KeyboardInterrupt if where == "write_case" else OSError("no space left")

    monkeypatch.setattr(f"minicompress.verification.golden.folder.{where}", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_golden(folder)
    assert folder.exists() == there and (not there or contents(folder) == before)
    assert [path.name for path in folder.parent.iterdir()] == ["set"] * there


# The check.


def test_a_set_as_it_was_written_has_no_differences(kept):
    found = check_golden(kept)
    assert (found.files, found.lines) == (len(CASES), []) and found.nearest < 1


def times(tensor, factor):
    return lambda tensors: tensors[tensor].__imul__(factor)


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("layer-gelu", times("out", 1 + 1e-9), "out is off by 1.0e-09; the tolerance is 1e-13"),
        ("layer-gelu", times("x", 1 + 1e-15), "x, which is given, is not what it was when it was drawn"),
        ("layer-gelu", times("out", 1 + 1e-15), "its bytes are not those of manifest.json"),
        ("layer-gelu", times("out", np.nan), "out is off by nan; the tolerance is 1e-13"),
        ("layer-gelu", lambda tensors: tensors.pop("out"), "out is missing"),
        ("layer-gelu", lambda tensors: tensors.update(more=np.ones(2)), "more is not asked for"),
        ("layer-gelu", lambda tensors: tensors.update(out=tensors["out"][:1]), "out has another shape, dtype, or other integers"),
        ("layer-gelu", lambda tensors: tensors.update(out=tensors["out"].astype("f4")), "out has another shape, dtype, or other integers"),
        ("decode-greedy", times("decoded", 2), "decoded has another shape, dtype, or other integers"),
        ("edge-absent-slots", lambda tensors: np.nan_to_num(tensors["prompt.beta"], copy=False), "prompt.beta, which is given, is not what"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_check_names_a_tensor_that_differs(name, change, words, folder, changed):
    changed(f"{name}.safetensors", change)
    assert any(line.startswith(f"{name}.safetensors: {words}") for line in check_golden(folder).lines), check_golden(folder).lines


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "layer-gelu.safetensors").unlink(), "layer-gelu.safetensors: missing"),
        (lambda f: (f / "layer-gelu.safetensors").write_bytes(b"text"), "is no trace"),
        (lambda f: (f / "notes.txt").write_text("mine"), "notes.txt: not in manifest.json"),
        (lambda f: rewritten(f, lambda m: m["files"].pop("layer-gelu.safetensors")), "layer-gelu.safetensors: not in manifest.json"),
        (lambda f: rewritten(f, lambda m: m["files"].update({"other.safetensors": {"sha256": ""}})), "other.safetensors: not a file of this version's set"),
        (lambda f: rewritten(f, lambda m: m["files"]["layer-gelu.safetensors"].update(proves="All.")), "layer-gelu.safetensors: manifest.json says something else of it: proves"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_check_names_a_file_that_differs(change, words, folder):
    change(folder)
    assert any(words in line for line in check_golden(folder).lines), check_golden(folder).lines


def rewritten(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", [None, "no JSON", "[]", '{"format": "minicompress golden vectors 0", "files": {}}', '{"files": {}}', "[" * 100_000,
                                  f'{{"format": "{golden.FORMAT}", "files": {{"a": 1}}}}'], ids=range(7))  # fmt: skip
def test_what_is_no_set_cannot_be_checked(text, tmp_path):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="is no golden set" if text is None else "is no manifest of golden vectors"):
        check_golden(tmp_path)
