"""A soft prompt's file: the very bits and where they came from; whatever else stands in a file is refused."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minicompress.prompts.soft_prompt import FORMAT, SoftPrompt, text_hash
from outer_checks import prompt_file_error

METADATA = {"format": FORMAT, "carrier": "embeddings", "positions": "compact", "provenance": "{}"}
SLOTS = np.arange(6.0, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_very_bits_come_back(dtype):
    assert prompt_file_error(dtype) == 0


@pytest.mark.parametrize("slots", [SLOTS.T, SLOTS[::-1], SLOTS[:1], np.asfortranarray(SLOTS)])
def test_whatever_their_layout_in_memory(slots, tmp_path):
    SoftPrompt(slots).save(tmp_path / "p")
    assert np.array_equal(SoftPrompt.load(tmp_path / "p").slots, slots)


def test_the_provenance_comes_back(tmp_path):
    provenance = {"model": "0" * 16, "recipe": {"lr": 0.1 + 0.2, "init": 'süß \n"quoted"'}, "sizes": [1, None, True]}
    SoftPrompt(SLOTS, provenance=provenance).save(tmp_path / "p")
    assert SoftPrompt.load(tmp_path / "p").provenance == provenance


def test_slots_on_a_device_are_saved_as_the_host_s(xp, tmp_path):
    SoftPrompt(xp.asarray(SLOTS)).save(tmp_path / "p")
    back = SoftPrompt.load(tmp_path / "p").slots
    assert isinstance(back, np.ndarray) and back.tobytes() == SLOTS.tobytes()


def test_any_reader_of_safetensors_finds_one_tensor_named_after_the_carrier(tmp_path):
    SoftPrompt(SLOTS).save(tmp_path / "p")
    found = load_file(tmp_path / "p")
    assert list(found) == ["embeddings"] and found["embeddings"].tobytes() == SLOTS.tobytes()


def test_a_write_that_fails_leaves_the_old_prompt(tmp_path, monkeypatch):
    SoftPrompt(SLOTS).save(tmp_path / "p")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        SoftPrompt(2 * SLOTS).save(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"] and SoftPrompt.load(tmp_path / "p").slots.tobytes() == SLOTS.tobytes()


def refused(path, words):
    with pytest.raises(ValueError, match=f"is not a soft prompt of this program: .*{words}") as error:
        SoftPrompt.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x00" * 100, json.dumps(METADATA).encode()])
def test_what_is_no_safetensors_file_is_refused(content, tmp_path):
    (tmp_path / "p").write_bytes(content)
    refused(tmp_path / "p", "")


@pytest.mark.parametrize("kept", [1, 8, 200, -1])
def test_a_prompt_cut_short_is_refused(kept, tmp_path):
    SoftPrompt(SLOTS).save(tmp_path / "p")
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:kept])
    refused(tmp_path / "p", "")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"format": None}, "its format is None"),
        ({"format": "pt"}, "its format is 'pt', not 'minicompress soft prompt 1'"),
        ({"format": "minicompress soft prompt 2"}, "soft prompt 2"),
        ({"carrier": None}, "carrier"),
        ({"carrier": "prefix"}, "carrier 'prefix' is not known here; embeddings, hidden, kv are"),
        ({"positions": "spread"}, "positions are 'spread'; they can be compact, logical, unshifted"),
        ({"positions": None}, "positions"),
        ({"provenance": None}, "provenance"),
        ({"provenance": "{"}, ""),
        ({"provenance": "[]"}, "its provenance is no JSON object"),
    ],
    ids=str,
)
def test_foreign_metadata_is_refused(changes, words, tmp_path):
    metadata = {name: value for name, value in (METADATA | changes).items() if value is not None}
    save_file({"embeddings": SLOTS, "prefix": SLOTS}, tmp_path / "p", metadata)
    refused(tmp_path / "p", words)


def test_the_plain_metadata_of_these_tests_is_not_what_is_refused(tmp_path):
    save_file({"embeddings": SLOTS}, tmp_path / "p", METADATA)
    assert SoftPrompt.load(tmp_path / "p").slots.tobytes() == SLOTS.tobytes()


def test_a_file_without_metadata_or_without_the_tensor_is_refused(tmp_path):
    save_file({"embeddings": SLOTS}, tmp_path / "p")
    refused(tmp_path / "p", "its format is None")
    save_file({"other": SLOTS}, tmp_path / "p", METADATA)
    refused(tmp_path / "p", "embeddings")


@pytest.mark.parametrize("shape", [(0, 2), (6,), (1, 3, 2), ()])
def test_slots_of_another_shape_are_refused(shape, tmp_path):
    SoftPrompt(np.ones(shape, np.float32)).save(tmp_path / "p")
    refused(tmp_path / "p", r"its slots have shape \[.*finite numbers \(P, C\) are needed")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_slots_that_are_not_finite_are_refused(bad, tmp_path):
    slots = SLOTS.copy()
    slots[2, 1] = bad
    SoftPrompt(slots).save(tmp_path / "p")
    refused(tmp_path / "p", "finite")


def test_a_prompt_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        SoftPrompt.load(tmp_path / "p")


def test_the_hash_of_a_text():
    assert text_hash("abc") == "ba7816bf8f01cfea"  # SHA-256 of FIPS 180-4's own example begins so
    assert text_hash("abc") != text_hash("abc\n") and len(text_hash("ü")) == 16
