"""A soft prompt's file: the very bits and where they came from; whatever else stands in a file is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers import TINY
from minicompress.prompts import soft_prompt
from minicompress.prompts.soft_prompt import FORMAT, SoftPrompt, text_hash
from minicompress.prompts.template import parse
from minicompress.trees import flatten
from outer_checks import prompt_file_error
from reading import KINDS, random_prompt

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


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_file_of_every_kind(kind, tmp_path):
    """The slots under their carrier's name, masses, first slots and raw arrays beside them, all else in the metadata."""
    prompt = random_prompt(kind, TINY, 3, np.random.default_rng(0))
    raw = {"embedding": {"weight": np.ones((3, 2))}, "mlp_head": {"0": {"bias": np.zeros(2)}}}
    replace(prompt, initial=2 * prompt.slots, raw=raw).save(tmp_path / "p")
    found = load_file(tmp_path / "p")
    beta = {} if prompt.beta is None else {"beta": prompt.beta}
    expected = {prompt.carrier: prompt.slots, "initial": 2 * prompt.slots, "raw.embedding.weight": np.ones((3, 2)),
                "raw.mlp_head.0.bias": np.zeros(2)} | beta  # fmt: skip
    assert found.keys() == expected.keys() and all((found[name] == x).all() for name, x in expected.items())
    with safe_open(tmp_path / "p", framework="numpy") as file:
        metadata = file.metadata()
    told = {"format": FORMAT, "carrier": prompt.carrier, "positions": prompt.positions, "provenance": "{}"}
    told |= {"offset": "7"} if prompt.positions == "logical" else {}
    assert metadata == told | ({"template": prompt.template} if prompt.template else {})
    back = SoftPrompt.load(tmp_path / "p").raw
    assert flatten(back).keys() == flatten(raw).keys() and (back["embedding"]["weight"] == 1).all()


@pytest.mark.parametrize("metadata, tensors, words", [
    ({"carrier": "kv"}, {"kv": np.ones((2, 2, 3, 4))}, r"its slots have shape \[2, 2, 3, 4\]; finite numbers \(L, 2, H, P, D\)"),
    ({"carrier": "hidden"}, {"hidden": np.ones((2, 0, 4))}, r"its slots have shape \[2, 0, 4\]; finite numbers \(L, P, C\)"),
    ({"carrier": "kv"}, {"embeddings": SLOTS}, "kv"),
    ({"offset": "3"}, {}, "positions are 'compact', the offset is 3; an offset belongs to 'logical' alone"),
    ({"positions": "logical"}, {}, "positions are 'logical', the offset is None"),
    ({"positions": "logical", "offset": "-1"}, {}, "its offset is -1; positions begin at 0"),
    ({"positions": "logical", "offset": "three"}, {}, "three"),
    ({}, {"beta": np.zeros(3)}, r"its beta has shape \[3\]; the carrier kv takes \(L, H, P\), below ∞"),
    ({"carrier": "kv"}, {"kv": np.ones((2, 2, 3, 4, 5)), "beta": np.zeros((2, 4, 3))}, r"beta has shape \[2, 4, 3\]"),
    ({"carrier": "kv"}, {"kv": np.ones((2, 2, 3, 4, 5)), "beta": np.full((2, 3, 4), np.inf)}, "below ∞"),
    ({"carrier": "kv"}, {"kv": np.ones((2, 2, 3, 4, 5)), "beta": np.full((2, 3, 4), np.nan)}, "below ∞"),
    ({}, {"initial": SLOTS[:2]}, r"its initial slots have shape \[2, 2\]; finite \[3, 2\]"),
    ({}, {"initial": SLOTS * np.nan}, "its initial slots"),
    ({"template": "[3"}, {}, "template, column 3"),
    ({"template": "[2]", "carrier": "hidden"}, {"hidden": np.ones((2, 2, 4))}, "its template places embeddings, and its carrier is hidden"),
])  # fmt: skip
def test_parts_that_do_not_belong_together_are_refused(metadata, tensors, words, tmp_path):
    save_file({"embeddings": SLOTS} | tensors, tmp_path / "p", METADATA | metadata)
    refused(tmp_path / "p", words)


@pytest.mark.parametrize("metadata, tensors", [
    ({"carrier": "kv"}, {"kv": np.ones((2, 2, 3, 4, 5)), "beta": np.full((2, 3, 4), -np.inf)}),
    ({"positions": "logical", "offset": "0"}, {}), ({"template": "{text}"}, {}), ({"template": "{text}[3]"}, {}),
    ({"carrier": "hidden", "template": "Q: {text}"}, {"hidden": np.ones((2, 2, 4))}),
])  # fmt: skip
def test_parts_that_do_belong_together(metadata, tensors, tmp_path):
    save_file({"embeddings": SLOTS} | tensors, tmp_path / "p", METADATA | metadata)
    assert SoftPrompt.load(tmp_path / "p").carrier == metadata.get("carrier", "embeddings")


def test_a_template_is_parsed_once(monkeypatch):
    parsed = []
    monkeypatch.setattr(soft_prompt, "parse", lambda text: (parsed.append(text), parse(text))[1])
    prompt = SoftPrompt(SLOTS, template="[3]{text}")
    assert [prompt.in_rows, prompt.in_rows, prompt.start, replace(prompt, template="{text}").in_rows] == [True, True, 0, False]
    assert parsed == ["[3]{text}", "{text}"]


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
