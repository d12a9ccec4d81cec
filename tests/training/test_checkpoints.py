"""Checkpoints: the very bits come back; a write that fails leaves the old file alone; what is none is refused."""

import json
import os

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from minicompress.training.checkpoints import load_tree, replace_file, save_arrays, save_tree
from minicompress.trees import flatten, tree_map
from outer_checks import checkpoint_error

FACTS = {"step": 7, "recipe": {"lr": 0.1 + 0.2, "init": "füße \n"}, "train": [[1, 2], []], "none": None}


@pytest.fixture
def tree(rng):
    return {
        "params": {"w": rng.standard_normal((3, 4)).astype(np.float32), "h": {"0": {"b": rng.standard_normal(5)}}},
        "special": np.array([-0.0, np.nan, np.inf, -np.inf, 5e-324]),
        "numbers": np.arange(6, dtype=np.int64),
    }


def test_a_tree_and_its_facts_come_back(tree, tmp_path):
    save_tree(tmp_path / "c", tree, **FACTS)
    back, facts = load_tree(tmp_path / "c")
    assert facts == FACTS and flatten(back).keys() == flatten(tree).keys()
    for name, a in flatten(tree).items():
        b = flatten(back)[name]
        assert (b.dtype, b.shape, b.tobytes()) == (a.dtype, a.shape, a.tobytes()), name


def test_every_layout_in_memory_comes_back():
    assert checkpoint_error() == 0


def test_arrays_that_come_back_can_be_written_to(tree, tmp_path):
    """Training goes on in place."""
    save_tree(tmp_path / "c", tree)
    tree_map(lambda a: a.__iadd__(1), load_tree(tmp_path / "c")[0])


def test_a_device_tree_comes_back_as_the_host_s(xp, tree, tmp_path):
    save_tree(tmp_path / "c", tree_map(xp.asarray, tree), step=1)
    for name, b in flatten(load_tree(tmp_path / "c")[0]).items():
        assert isinstance(b, np.ndarray) and b.tobytes() == flatten(tree)[name].tobytes()


def test_the_second_file_takes_the_first_one_s_place(tree, tmp_path):
    for step in (1, 2):
        save_tree(tmp_path / "c", tree, step=step)
        assert load_tree(tmp_path / "c")[1] == {"step": step}
    assert os.listdir(tmp_path) == ["c"]


def half(path):
    path.write_text("half of the n")
    raise KeyboardInterrupt


def gone(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", ["the old file", None])
@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(at, before, tmp_path, monkeypatch):
    path = tmp_path / "c"
    if before:
        path.write_text(before)
    if at != "write":
        monkeypatch.setattr(os, at, gone)
    with pytest.raises((KeyboardInterrupt, OSError)):
        replace_file(path, half if at == "write" else lambda beside: beside.write_text("new"))
    assert os.listdir(tmp_path) == (["c"] if before else [])
    assert not before or path.read_text() == before


def test_the_new_file_is_whole_before_it_takes_the_name(tree, tmp_path, monkeypatch):
    replaced, order = os.replace, []
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync"))

    def replace(beside, path):
        order.append("replace")
        assert not path.exists() and beside.parent == path.parent  # a rename within one file system
        assert load_tree(beside)[1] == {"step": 3}
        replaced(beside, path)

    monkeypatch.setattr(os, "replace", replace)
    save_tree(tmp_path / "c", tree, step=3)
    assert order == ["fsync", "replace"] and load_tree(tmp_path / "c")[1] == {"step": 3}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_its_mode_is_that_of_any_new_file(umask, tree, tmp_path):
    before = os.umask(umask)
    try:
        save_tree(tmp_path / "c", tree)
        (tmp_path / "any").write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_what_safetensors_cannot_write_is_an_os_error(tree, tmp_path, monkeypatch):
    def fails(host, path, metadata):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", fails)
    with pytest.raises(OSError, match="c cannot be written: .*No space left"):
        save_arrays(tmp_path / "c", flatten(tree))
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_not_there_is_an_os_error(tree, tmp_path):
    with pytest.raises(OSError):
        save_tree(tmp_path / "no" / "c", tree)


def refused(path):
    with pytest.raises(ValueError, match="is not a checkpoint of this program .*; delete it to start afresh") as error:
        load_tree(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 8, 100, 0.5, 0.9, -1])
def test_a_file_cut_short_is_refused(kept, tree, tmp_path):
    save_tree(tmp_path / "c", tree, **FACTS)
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(tmp_path / "c")


@pytest.mark.parametrize("content", [b"plain text", b"\xff" * 64, json.dumps({"step": 1}).encode()])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "c").write_bytes(content)
    refused(tmp_path / "c")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"facts": "{"}], ids=str)
def test_a_foreign_safetensors_file_is_refused(metadata, tmp_path):
    save_file({"w": np.zeros(3)}, tmp_path / "c", metadata)
    refused(tmp_path / "c")


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "c")
