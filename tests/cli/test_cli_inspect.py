"""`inspect` as a user types it, and its JSON as a program reads it."""

import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import weights_loader
from minicompress.prompts.soft_prompt import SoftPrompt

SHAPE = {"prompt", "carrier", "positions", "slots", "template", "layers", "texts", "nearest", "moved", "attention",
         "lens", "left_out"}  # fmt: skip
MODULE = "minicompress.cli.inspect"


@pytest.fixture
def made(run, here, quick):
    """made(*options) -> the file of a prompt of three slots."""

    def compress(*options):
        assert run("compress", "context.txt", *quick, *options, "--out", "p.safetensors")[0] == 0
        return "p.safetensors"

    return compress


@pytest.fixture
def told(run, model):
    """told(prompt, *options) -> the JSON; nothing else is said."""

    def inspect(prompt, *options):
        code, out, err = run("inspect", prompt, "--model", model, "--json", *options)
        assert (code, err) == (0, ""), err
        return json.loads(out)

    return inspect


@pytest.fixture
def given(here, model):
    """given(name, **fields) -> the file of a prompt with random slots."""

    def write(name="given", carrier="embeddings", **fields):
        shape = {"embeddings": (3, 24), "hidden": (2, 3, 24), "kv": (2, 2, 2, 3, 12)}[carrier]
        slots = np.random.default_rng(0).standard_normal(shape).astype("f4")
        SoftPrompt(slots, carrier, **fields, provenance={"model": weights_loader.model_hash(model)}).save(here / name)
        return name

    return write


@pytest.mark.parametrize("carrier, states", [("embeddings", 3), ("hidden", 2), ("kv", None)])
def test_the_promised_shape(carrier, states, made, told):
    found = told(made("--carrier", carrier))
    assert found.keys() == SHAPE and (found["carrier"], found["slots"], found["layers"]) == (carrier, 3, 2)
    assert [(name, np.shape(rows)) for name, rows in found["nearest"].items()] == [
        ("cosine", (3, 5)),
        ("euclidean", (3, 5)),
    ]
    assert found["nearest"]["cosine"][0][0].keys() == {"id", "token", "value"}
    assert [(name, len(values)) for name, values in found["moved"].items()] == [
        ("distance", 3),
        ("relative", 3),
        ("cosine", 3),
    ]
    assert np.shape(found["attention"]["slots"]) == (2, 2, 3) and np.shape(found["attention"]["prompt"]) == (2, 2)
    np.testing.assert_allclose(np.sum(found["attention"]["slots"], -1), found["attention"]["prompt"], rtol=1e-5)
    assert found["lens"] is None if states is None else np.shape(found["lens"]) == (states, 3)
    left = found["left_out"]
    assert left["loss"] is None and min(left["kl"]) > 0 and len(set(left["places"])) <= 2


def test_slots_that_never_moved_are_their_tokens(made, told):
    found = told(made("--steps", 0, "--init", "Tom"), "--nearest", 1)
    assert found["moved"] == {"distance": [0] * 3, "relative": [0] * 3, "cosine": pytest.approx([1] * 3, abs=1e-6)}
    ids = weights_loader.load_tokenizer(weights_loader.EMBEDDED).encode("Tom").ids
    assert [[near["id"] for near in row] for row in found["nearest"]["euclidean"]] == [[i] for i in np.resize(ids, 3)]


def test_texts_of_one_s_own_have_a_loss(made, told, here):
    prompt = made()
    text, queries = told(prompt, "--text", "context.txt"), told(prompt, "--queries", "queries.jsonl")
    assert (text["texts"], queries["texts"]) == (1, 8)
    assert all(len(found["left_out"]["loss"]) == 3 for found in (text, queries))
    (here / "unanswered.jsonl").write_text('{"question": "Who is a?", "answer": "b"}\n{"question": "Who is c?"}')
    unanswered = told(prompt, "--queries", "unanswered.jsonl")
    assert unanswered["left_out"]["loss"] is None and min(unanswered["left_out"]["kl"]) > 0


def test_the_answers_alone_are_scored(made, told):
    tokenizer = weights_loader.load_tokenizer(weights_loader.EMBEDDED)
    scored = sum(len(tokenizer.encode(f" the {name} of Rome\n").ids) for name in "abcdefgh")
    assert told(made(), "--queries", "queries.jsonl")["left_out"]["places"] == [scored] * 3


def test_of_a_text_every_token_but_what_a_slot_left_out_predicts(given, told, here):
    tokens = len(weights_loader.load_tokenizer(weights_loader.EMBEDDED).encode((here / "context.txt").read_text()).ids)
    assert told(given(), "--text", "context.txt")["left_out"]["places"] == [tokens, tokens, tokens - 1]
    assert told(given("deep", "kv"), "--text", "context.txt")["left_out"]["places"] == [tokens - 1] * 3


def test_a_template_is_filled_with_the_text(given, told, run, model, here):
    placed = given("placed", template="[2]Notes: {text}[1] So")
    found = told(placed, "--text", "context.txt")
    assert found["template"] == "[2]Notes: {text}[1] So" and found["lens"]
    assert told(placed)["texts"] > 1
    assert run("inspect", placed, "--queries", "queries.jsonl", "--model", model)[0] == 2


@pytest.mark.parametrize("kind, width", [("PROMPT_TUNING", 24), ("PREFIX_TUNING", 96)])
def test_a_peft_folder(kind, width, told, here):
    (here / "peft").mkdir()
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "inference_mode": True}
    (here / "peft" / "adapter_config.json").write_text(json.dumps(config))
    slots = np.random.default_rng(0).standard_normal((3, width)).astype("f4")
    save_file({"prompt_embeddings": slots}, here / "peft" / "adapter_model.safetensors")
    found = told("peft")
    assert found["moved"] is None and found["slots"] == 3 and (found["lens"] is None) == (width == 96)


def test_for_people(made, run, model, here):
    code, out, err = run("inspect", made(), "--model", model, "--text", "context.txt")
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 100
    for words in ("p.safetensors: 3 slots, read with 1 text", "loss added", "cosine", "logit lens", "the end"):
        assert words in out


def test_a_name_is_no_markup(given, run, model, here):
    code, out, err = run("inspect", given("[red][bold]"), "--model", model)
    assert (code, err) == (0, "") and out.startswith("[red][bold]: 3 slots")


def test_a_picture(made, told, run, model, here):
    prompt = made()
    assert told(prompt, "--out", "p.png")["out"] == "p.png" and (here / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "drawn in p.svg" in run("inspect", prompt, "--model", model, "--out", "p.svg")[1]


def test_who_waits_sees_a_bar(made, run, model, monkeypatch):
    prompt = made()
    assert run("inspect", prompt, "--model", model, "--json")[2] == ""
    ticks = iter(range(1000))
    monkeypatch.setattr(sys.modules[MODULE].time, "monotonic", lambda: next(ticks))
    code, out, err = run("inspect", prompt, "--model", model, "--json")
    assert code == 0 and json.loads(out) and "inspecting" in err and "6/6" in err


@pytest.fixture
def refused(run, here, model):
    """refused(arguments, words): one line says what is wrong, and the folder is as it was."""

    def check(arguments, *words):
        before = {path.name for path in here.iterdir()}
        code, out, err = run("inspect", *arguments, "--model", model)
        assert code == 2 and not out and len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
        assert all(word in err for word in words), err
        assert {path.name for path in here.iterdir()} == before

    return check


@pytest.mark.parametrize("options, words", [
    (["--text", "context.txt", "--queries", "queries.jsonl"], ["--text", "--queries", "give one"]),
    (["--text", "nowhere"], ["nowhere", "No such file"]),
    (["--text", "empty"], ["empty is empty"]),
    (["--text", "long"], ["n_positions is 128", "3 slots", "text tokens"]),
    (["--queries", "nowhere"], ["nowhere"]),
    (["--queries", "bad"], ["bad, line 1"]),
    (["--nearest", 0], ["--nearest is 0", "at least 1"]),
    (["--out", "p.jpg"], ["p.jpg", ".png", ".svg"]),
    (["--out", "p"], [".png"]),
    (["--out", "nowhere/p.png"], ["no folder nowhere"]),
    (["--out", "."], ["is a folder"]),
    (["--device", "tpu"], ["'tpu'"]),
])  # fmt: skip
def test_mistakes(options, words, given, refused, here):
    (here / "empty").write_text("\n")
    (here / "long").write_text("Tom has a red dog. " * 60)
    (here / "bad").write_text('{"question": 3}')
    refused([given(), *options], *words)


def test_prompts_that_are_none(given, refused, here, new_model):
    refused(["nowhere"], "nowhere", "No such file")
    refused(["context.txt"], "context.txt is not a soft prompt")
    other = new_model(1)
    SoftPrompt(np.ones((3, 24), "f4"), provenance={"model": weights_loader.model_hash(other)}).save(here / "other")
    refused(["other"], "other was made for the model", "--model")
    refused([given("two", template="{a}[1]{b}")], "one text cannot fill", "a, b")


def test_without_matplotlib(given, refused, monkeypatch):
    monkeypatch.setattr(sys.modules[MODULE], "find_spec", lambda name: None)
    refused([given(), "--out", "p.png"], "matplotlib", "pip install 'minicompress[cli]'")


def test_a_full_disk_leaves_no_half_a_picture(given, refused, monkeypatch):
    prompt = given()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    refused([prompt, "--out", "p.png"], "No space left")


def test_a_model_that_was_copied_is_the_same(given, run, model, here):
    shutil.copytree(model, here / "copy")
    assert run("inspect", given(), "--model", "copy")[0] == 0
