"""A user's mistake costs one plain line and exit code 2: no traceback, and nothing half written."""

import errno
import io
import json
import os
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from minicompress.prompts.soft_prompt import SoftPrompt
from weights_loader import model_hash

WORDS = "Tom has a red dog. " * 100


def assert_one_line(result, *words):
    code, out, err = result
    assert code == 2 and not out, (code, out, err)
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("minicompress: ") and "Traceback" not in err
    for word in words:
        assert word in err, err


def left(here):
    return {path.name for path in here.iterdir()}


@pytest.fixture
def refused(run, here, quick):
    """refused(arguments, words): the command fails by one line, and the folder is as it was."""

    def check(arguments, *words):
        before = left(here)
        assert_one_line(run(*arguments), *words)
        assert left(here) == before

    return check


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["context.txt", "No such file"]),
        (b"", ["context.txt is empty"]),
        (b" \n\n", ["context.txt is empty"]),
        (b"caf\xe9", ["context.txt is not UTF-8", "byte 3"]),
        (WORDS.encode(), ["n_positions is 128", "context tokens", "need"]),
        ("folder", ["context.txt holds no .txt file"]),
    ],
    ids=["none", "empty", "blank", "not UTF-8", "too long", "a folder"],
)
def test_contexts(content, words, refused, here, quick):
    (here / "context.txt").unlink()
    if content == "folder":
        (here / "context.txt").mkdir()
    elif content is not None:
        (here / "context.txt").write_bytes(content)
    refused(["compress", "context.txt", *quick, "--out", "p.safetensors"], *words)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--slots", 200], ["n_positions is 128", "200 slots"]),
        (["--carrier", "weights"], ["--carrier", "'weights'", "embeddings"]),
        (["--producer", "magic"], ["--producer", "'magic'"]),
        (["--loss", "mse"], ["--loss", "'mse'", "kl or reverse-kl or js or top-k or", "or likelihood"]),
        (["--top-k", 5], ["--top-k belongs to --loss top-k or top-k-renormalised or top-k-tail; kl reads"]),
        (["--loss", "likelihood", "--top-k", 5], ["--top-k belongs to", "likelihood reads"]),
        (["--loss", "js", "--top-k", 5], ["--top-k belongs to", "js reads"]),
        (["--loss", "top-k", "--top-k", 0], ["--top-k is 0; it must be at least 1"]),
        (["--loss", "top-k-tail", "--top-k", 2049], ["top_k is 2,049", "from 1 to 2,048", "vocabulary"]),
        (["--loss", "likelihood", "--temperature", 2], ["--temperature softens distributions"]),
        (["--baselines", "some"], ["--baselines"]),
        (["--temperature", -1], ["--temperature", "at least"]),
        (["--temperature", 0], ["--temperature", "at least"]),
        (["--temperature", "nan"], ["--temperature is nan; it must be a finite number of at least"]),
        (["--lr", 0], ["--lr is 0", "it must be at least 1e-06"]),
        (["--lr", "inf"], ["--lr is inf; it must be a finite number of at least 1e-06"]),
        (["--threads", 0], ["--threads is 0", "at least 1"]),
        (["--seed", -1], ["seed"]),
        (["--device", "tpu"], ["'tpu'", "cpu", "cuda"]),
        (["--model", "nowhere"], ["nowhere", "no such folder"]),
        (["--model", "context.txt"], ["context.txt", "not a folder"]),
        (["--teacher", "nowhere"], ["nowhere"]),
        (["--queries", "nowhere.jsonl"], ["nowhere.jsonl", "No such file"]),
        (["--queries", "bad.jsonl"], ["bad.jsonl, line 2"]),
        (["--queries", "latin.jsonl"], ["latin.jsonl", "UTF-8"]),
        (["--queries", "long.jsonl"], ["n_positions is 128", "longest query"]),
        (["--queries", "one.jsonl"], ["too few"]),
        (["--queries", "asked.jsonl"], ["n_positions is 128"]),
        (["--evaluate-on", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--init", ""], ["--init"]),
        (["--out", "nowhere/p.safetensors"], ["--out", "no folder nowhere"]),
        (["--out", "."], ["--out"]),
    ],
    ids=str,
)
def test_options_of_compress(options, words, refused, here, quick):
    (here / "bad.jsonl").write_text('{"question": "a"}\n{"question": 3}\n')
    (here / "latin.jsonl").write_bytes(b"caf\xe9\n")
    (here / "long.jsonl").write_text(WORDS + "\nshort words\n" + WORDS[:-5])
    (here / "one.jsonl").write_text('{"question": "a", "answer": "b"}')
    (here / "asked.jsonl").write_text(json.dumps({"question": WORDS[:400]}) + '\n{"question": "a", "answer": "b"}')
    refused(["compress", "context.txt", *quick, "--out", "p.safetensors", *options], *words)


def test_an_empty_standard_input(refused, quick, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    refused(["compress", "-", *quick, "--out", "p.safetensors"], "empty")


@pytest.fixture
def made(here, model):
    """Prompts of many kinds, good and bad."""
    rng = np.random.default_rng(0)
    name = {"model": model_hash(model)}
    SoftPrompt(rng.standard_normal((3, 24)).astype("f4"), provenance=name).save(here / "good")
    SoftPrompt(rng.standard_normal((3, 12)).astype("f4"), provenance=name).save(here / "narrow")
    SoftPrompt(rng.standard_normal((126, 24)).astype("f4"), provenance=name).save(here / "long")
    SoftPrompt(rng.standard_normal((3, 24)).astype("f4"), provenance={"model": "0" * 16}).save(here / "other")
    SoftPrompt(rng.standard_normal((3, 24)).astype("f4")).save(here / "nameless")
    (here / "text").write_text("no prompt")
    save_file({"embeddings": rng.standard_normal((3, 24))}, here / "plain")
    (here / "peft").mkdir()
    (here / "peft" / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}')
    save_file({"prompt_embeddings": rng.standard_normal((3, 12)).astype("f4")}, here / "peft/adapter_model.safetensors")
    (here / "empty").mkdir()


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("nowhere", ["nowhere", "No such file"]),
        ("text", ["text is not a soft prompt"]),
        ("plain", ["plain is not a soft prompt", "format"]),
        ("other", ["other was made for the model", "--model"]),
        ("nameless", ["nameless does not name its model", "provenance"]),
        ("narrow", ["narrow", "embeddings are [3, 12]", "[3, 24]"]),
        ("long", ["n_positions is 128", "126 slots"]),
        ("peft", ["peft", "embeddings are [3, 12]", "[3, 24]"]),
        ("empty", ["adapter_config.json"]),
    ],
)
def test_prompts(prompt, words, refused, made, model):
    refused(["ask", prompt, "Who is Rex?", "--model", model], *words)
    refused(["generate", "Who is Rex?", "--prompt", prompt, "--model", model], *words)
    if prompt != "long":
        refused(["trace", "--tokens", "tokens.json", "--prompt", prompt, "--model", model, "--out", "t"], *words)


@pytest.mark.parametrize("text, options, words", [
    ("", [], ["empty"]),
    ("Tom", ["--tokens", 1000], ["n_positions is 128", "1,000 new tokens"]),
    (WORDS, [], ["n_positions is 128"]),
    ("Tom", ["--seed", -1, "--temperature", 1], ["seed"]),
    ("Tom", ["--temperature", "nan"], ["--temperature"]),
    ("Tom", ["--temperature", "1e-320"], ["--temperature"]),
])  # fmt: skip
def test_generate(text, options, words, refused, model):
    refused(["generate", text, "--model", model, *options], *words)


def test_a_question_too_long(refused, made, model):
    refused(["ask", "good", WORDS, "--model", model], "n_positions is 128", "3 slots", "question tokens")


@pytest.mark.parametrize("options", [["--temperature", -1], ["--top-k", 0], ["--top-p", 2], ["--tokens", 0]])
def test_numbers_out_of_range_are_refused_by_their_option(options, run, here, model):
    code, out, err = run("generate", "Tom", "--model", model, *options)
    assert code == 2 and not out and options[0] in err and "Traceback" not in err


@pytest.mark.parametrize(
    "tokens, words",
    [
        ("", ["tokens.json is empty"]),
        ("[[1, 2", ["tokens.json is not JSON"]),
        ("{}", ["tokens.json holds a dict"]),
        ("[]", ["list of rows"]),
        ("[1, 2]", ["list of rows"]),
        ("[[1], []]", ["at least one"]),
        ('[[1, "a"]]', ["tokens.json", "row 0", "integer"]),
        ("[[1], [1.5]]", ["tokens.json", "row 1", "integer"]),
        ("[[1, true]]", ["row 0", "integer"]),
        ("[[1, 2048]]", ["0..2047"]),
        ("[[1, -1]]", ["0..2047"]),
        ("[[1, 100000000000000000000]]", []),
        ("[[1]]", ["no target is scored"]),
        (json.dumps([[1] * 129]), ["n_positions is 128", "129 tokens"]),
    ],
)
def test_rows_of_a_trace(tokens, words, refused, here, model):
    (here / "tokens.json").write_text(tokens)
    refused(["trace", "--tokens", "tokens.json", "--model", model, "--out", "t"], *words)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--labels", "ragged.json"], ["ragged.json", "same rows and lengths"]),
        (["--labels", "few.json"], ["few.json", "same rows and lengths"]),
        (["--labels", "silent.json"], ["no target is scored"]),
        (["--labels", "first.json"], ["no target is scored"]),
        (["--labels", "high.json"], ["labels span", "0..2047"]),
        (["--labels", "low.json"], ["labels span", "0..2047"]),
        (["--labels", "nowhere"], ["nowhere"]),
        (["--loss", "kl"], ["--teacher-context"]),
        (["--loss", "mse"], ["--loss", "ce or kl"]),
        (["--teacher-context", "few.json"], ["--loss kl"]),
        (["--loss", "kl", "--teacher-context", "few.json"], ["few.json"]),
        (["--loss", "kl", "--teacher-context", "tokens.json"], ["tokens.json"]),
        (["--loss", "kl", "--teacher-context", "words.json"], ["words.json"]),
        (["--loss", "kl", "--teacher-context", "long.json"], ["n_positions is 128", "126 teacher context", "4 tokens"]),
        (["--loss", "kl", "--teacher-context", "high-ids.json"], ["0..2047"]),
        (["--dtype", "float16"], ["--dtype"]),
        (["--gradients", "none"], ["--gradients"]),
        (["--out", "nowhere/t"], ["nowhere"]),
        (["--out", "."], []),
        (["--model", "nowhere"], ["nowhere"]),
    ],
    ids=str,
)
def test_options_of_a_trace(options, words, refused, here, model):
    for name, content in {
        "ragged": [[5, 6, 7], [9, 10]], "few": [[5, 6, 7, 8]], "silent": [[-100] * 4, [-100] * 2], "words": ["a"],
        "first": [[5, -100, -100, -100], [9, -100]], "high": [[5, 6, 7, 2048], [9, 10]], "low": [[5, 6, 7, -1], [9, 1]],
        "long": [1] * 126, "high-ids": [2048],
    }.items():  # fmt: skip
        (here / f"{name}.json").write_text(json.dumps(content))
    refused(["trace", "--tokens", "tokens.json", "--model", model, "--out", "t", *options], *words)


def test_a_teacher_of_another_vocabulary_in_a_trace(refused, here, model, new_model):
    other = new_model(1, vocab_size=2000)
    (here / "c.json").write_text("[1, 2]")
    refused(["trace", "--tokens", "tokens.json", "--model", model, "--teacher", other, "--loss", "kl",
             "--teacher-context", "c.json", "--out", "t"], "vocabular")  # fmt: skip


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_trace_and_the_old_file(refused, here, model, monkeypatch):
    (here / "t").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    refused(["trace", "--tokens", "tokens.json", "--model", model, "--out", "t"], "No space left")
    assert (here / "t").read_text() == "old"


def test_a_full_disk_as_safetensors_tells_it(refused, here, model, monkeypatch):
    """Its own error is no OSError."""
    from safetensors import SafetensorError, numpy

    def fails(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(numpy, "save_file", fails)
    refused(["trace", "--tokens", "tokens.json", "--model", model, "--out", "t"], "No space left")


def test_a_full_disk_at_the_end_of_a_compression_keeps_what_was_trained(run, here, quick, monkeypatch):
    arguments = ["compress", "context.txt", *quick, "--steps", 50, "--out", "p"]
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith("checkpoint") else full())
    code, _, err = run(*arguments)
    assert code == 2 and "No space left" in err and "Traceback" not in err
    assert not (here / "p").exists() and (here / "p.checkpoint").exists()
    monkeypatch.setattr(os, "replace", replace)
    assert run(*arguments, "--resume")[0] == 0 and (here / "p").exists()
    assert left(here) == {"context.txt", "queries.jsonl", "tokens.json", "p"}
