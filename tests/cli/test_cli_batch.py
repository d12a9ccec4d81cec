"""`generate --batch`: every line behind a prompt of its own, and what is wrong with one, by file and line."""

import json

import numpy as np
import pytest

from minicompress.prompts.soft_prompt import SoftPrompt
from weights_loader import model_hash


@pytest.fixture
def made(here, model):
    """Prompts of every carrier, one in a template, one of another model, one that is too long for any text."""
    rng, name = np.random.default_rng(0), {"model": model_hash(model)}
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    SoftPrompt(draw(3, 24), provenance=name).save(here / "embeddings")
    SoftPrompt(draw(2, 5, 24), "hidden", "unshifted", provenance=name).save(here / "hidden")
    SoftPrompt(draw(2, 2, 2, 4, 12), "kv", "logical", 20, draw(2, 2, 4), provenance=name).save(here / "kv")
    SoftPrompt(draw(2, 24), template="Say {text}[2]", provenance=name).save(here / "template")
    SoftPrompt(draw(2, 24), template="{a}{b}[2]", provenance=name).save(here / "two")
    SoftPrompt(draw(3, 24), provenance={"model": "0" * 16}).save(here / "other")
    SoftPrompt(draw(120, 24), provenance=name).save(here / "long")
    return here


def write(lines, path="b.jsonl"):
    with open(path, "w") as file:
        file.write("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


LINES = [{"prompt": "kv", "text": "Tom has a"}, {"text": "Ann"}, {"prompt": "embeddings", "text": "The dog of Rome is"},
         {"prompt": "template", "text": "yes"}, {"prompt": "hidden", "text": "Tom\u2028 has"}, {"prompt": "kv", "text": "x"},
         {"prompt": None, "text": "A much longer text than all the others, and then some more of it"}]  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--lines", 1]])
def test_each_row_is_written_as_it_is_alone(options, run, made, model):
    write([*LINES[:3], "", *LINES[3:]])
    more = ["--model", model, "--tokens", 12, *options]
    code, out, err = run("generate", "--batch", "b.jsonl", *more, "--json")
    assert code == 0, err
    told, found = json.loads(out), []
    for line in LINES:
        behind = ["--prompt", line["prompt"]] if line.get("prompt") else []
        found.append(json.loads(run("generate", line["text"], *behind, *more, "--json")[1]))
    assert told == {"texts": [one["text"] for one in found], "tokens": [one["tokens"] for one in found]}
    assert len({tuple(ids) for ids in told["tokens"]}) > 4
    lines = run("generate", "--batch", "b.jsonl", *more)[1].split("\n")[:-1]
    assert [json.loads(line) for line in lines] == [a["text"] + b for a, b in zip(LINES, told["texts"], strict=True)]


def test_a_seed_decides_what_is_drawn(run, made, model):
    write(LINES)
    more = ["--batch", "b.jsonl", "--model", model, "--tokens", 8, "--temperature", 1, "--top-p", 0.9]
    first, again, other = (run("generate", *more, "--seed", seed)[1] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "line, words",
    [
        ("plain text", ["Expecting value at column 1"]),
        ("[1]", ['{"prompt": "FILE" or null, "text": "…"}']),
        ({"prompt": "kv"}, ['"text"']),
        ({"promt": "kv", "text": "a"}, ['{"prompt": "FILE" or null']),
        ({"prompt": 3, "text": "a"}, ["its prompt must be the name of a file"]),
        ({"prompt": "kv", "text": ["a"]}, ["its text a text"]),
        ({"prompt": "kv", "text": ""}, ["its text is empty"]),
        ({"prompt": "nowhere", "text": "a"}, ["nowhere", "No such file"]),
        ({"prompt": "other", "text": "a"}, ["other was made for the model", "--model"]),
        ({"prompt": "two", "text": "a"}, ["one text cannot fill", "a, b"]),
        ({"prompt": "long", "text": "Tom has a dog"}, ["n_positions is 128", "120 slots", "8 new tokens"]),
        ({"text": "Tom has a red dog. " * 40}, ["n_positions is 128", "text tokens"]),
        ('{"text": "\\ud800"}', ["is not UTF-8 text"]),
        ("[" * 100000, []),
    ],
    ids=str,
)
def test_a_mistake_is_named_by_file_and_line(line, words, run, made, model):
    write([LINES[0], "", line, LINES[1]])
    code, out, err = run("generate", "--batch", "b.jsonl", "--model", model, "--tokens", 8)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1, err
    assert err.startswith("minicompress: b.jsonl, line 3: ")
    for word in words:
        assert word in err, err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["TEXT", "--batch"]),
        (["Tom", "--batch", "b.jsonl"], ["TEXT", "--batch"]),
        (["--batch", "b.jsonl", "--prompt", "kv"], ["--prompt", "--batch"]),
        (["--batch", "nowhere"], ["nowhere", "No such file"]),
        (["--batch", "empty"], ["empty is empty"]),
    ],
    ids=str,
)
def test_options_that_do_not_fit(arguments, words, run, made, model):
    write(LINES)
    (made / "empty").write_text("\n\n")
    code, out, err = run("generate", *arguments, "--model", model)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err, err
