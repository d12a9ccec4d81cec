"""`train-compressor` and `compress --compressor` as a user types them; a context as low-rank weights; their mistakes."""

import io
import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_cli_mistakes import assert_one_line

from minicompress.compression import training
from minicompress.compression.segments import METHODS
from minicompress.compression.select import SELECTORS
from minicompress.compression.training import Training
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten
from weights_loader import load_tokenizer, model_hash

RECORDS = [{"context": f"Tom has a {w} dog. Ann has a {w} cat.", "queries": [{"question": "Who?", "answer": w}]} for w in ("red", "old")]
TEXT = {"text": "Once there was a cat. The cat sat on a mat. A dog came by. The dog was big and old."}


@pytest.fixture
def data(here):
    (here / "contexts.jsonl").write_text("\n".join(map(json.dumps, [*RECORDS, TEXT])))
    return here


@pytest.fixture
def train(run, data, model):
    def command(kind="gist", *more, out=None):
        arguments = ["--data", "contexts.jsonl", "--model", model, "--slots", 3, "--segment", 8, "--steps", 2, "--contexts", 2]
        return run("train-compressor", "--producer", kind, *arguments, "--out", out or kind, *more)

    return command


@pytest.mark.parametrize("kind", METHODS)
def test_trained_and_used(kind, train, run, data, model):
    code, out, err = train(kind, "--json")
    assert code == 0, err
    assert json.loads(out) == {"out": kind, "producer": kind, "steps": 2}
    assert not (data / kind / "checkpoint.safetensors").exists()
    code, out, err = run("compress", "context.txt", "--model", model, "--compressor", kind, "--queries", "queries.jsonl",
                         "--out", "p.safetensors", "--json")  # fmt: skip
    assert code == 0, err
    told, prompt = json.loads(out), SoftPrompt.load("p.safetensors")
    assert told["producer"] == kind and told["slots"] == prompt.length and {"sigma", "full", "none"} <= set(told["rows"])
    own = METHODS[kind].adapts == "all"
    reader = data / kind if own else model
    assert prompt.provenance["model"] == model_hash(reader)
    code, out, err = run("ask", "p.safetensors", "Who is a?", "--model", reader)
    assert code == 0, err
    if own:
        assert_one_line(run("ask", "p.safetensors", "Who is a?", "--model", model), "was made for the model")


def test_fewer_slots_are_the_first_ones(train, run, data, model):
    train("gist", "--no-any-prefix")
    ask = lambda k: run("compress", "context.txt", "--model", model, "--compressor", "gist", "--queries", "queries.jsonl",
                        "--slots", k, "--out", f"{k}.safetensors")  # fmt: skip
    assert [ask(k)[0] for k in (1, 3)] == [0, 0]
    one, three = (SoftPrompt.load(f"{k}.safetensors").slots for k in (1, 3))
    segments = three.shape[3] // 3
    assert np.allclose(one, three[:, :, :, :: 3][:, :, :, :segments], atol=1e-5)
    assert_one_line(ask(4), "leaves 1 to 3 slots a segment, not 4")


def test_a_context_longer_than_any_teacher_reads_has_no_table(train, run, data, model):
    train("rmt")
    (data / "long.txt").write_text("Tom has a red dog. " * 100)
    code, out, err = run("compress", "long.txt", "--model", model, "--compressor", "rmt", "--out", "p.safetensors", "--json")
    assert code == 0 and "no teacher can read" in err
    told = json.loads(out)
    assert told["slots"] == 3 and told["context_tokens"] > 128 and "rows" not in told


def test_stopped_and_resumed_ends_at_the_same_bits(train, data, monkeypatch):
    assert train("ccm", out="whole")[0] == 0
    real = Training.train

    def stops(self, checkpoint, told):
        def step(number, *facts):
            told(number, *facts)
            raise KeyboardInterrupt

        real(self, checkpoint, step)

    monkeypatch.setattr(Training, "train", stops)
    train("ccm", out="parts")
    assert (data / "parts/checkpoint.safetensors").exists()
    monkeypatch.setattr(Training, "train", real)
    assert train("ccm", "--resume", out="parts")[0] == 0
    whole, parts = (load_file(data / name / "compressor.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_an_update_that_is_interrupted_is_not_kept(train, data, monkeypatch):
    """Half of the weights have then moved, and the moments with them."""

    def halves(params, grads, state, *args, **options):
        state["step"] += 1
        params["slots"] += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "adamw_step", halves)
    assert train("ccm")[0] != 0
    assert not (data / "ccm/checkpoint.safetensors").exists()


@pytest.mark.parametrize("line, said", [
    ('{"context": "a"}', "contexts.jsonl, line 1: it has no 'queries'"),
    ('{"context": "a", "queries": []}', "line 1: it has no query"),
    ('{"text": ""}', "line 1: a text is empty"),
    ("no JSON", "line 1: Expecting value"),
])  # fmt: skip
def test_data_that_is_none(line, said, train, data):
    (data / "contexts.jsonl").write_text(line)
    assert_one_line(train(), said)
    assert not (data / "gist").exists()


def test_a_segment_that_does_not_fit(train, data):
    said = "n_positions is 128; 126 tokens of a segment + 3 slots need 129"
    assert_one_line(train("gist", "--segment", 126), said)
    assert not (data / "gist").exists()


@pytest.mark.parametrize("arguments, said", [
    (["--producer", "gist"], "--producer gist is trained first: name its folder with --compressor DIR"),
    (["--producer", "gradient", "--compressor", "x"], "leave out one"),
    (["--compressor", "x"], "x holds no compressor.safetensors"),
    (["--producer", "summary"], "--producer is 'summary'"),
    (["--producer", "first", "--baselines", "all"], "belongs to slots by gradient"),
    (["--producer", "attention-matching", "--carrier", "hidden"], "belongs to slots by gradient"),
    (["--producer", "random", "--positions", "unshifted"], "belongs to slots by gradient"),
    (["--producer", "pooled-kv", "--resume"], "belongs to slots by gradient"),
    (["--carrier", "lora", "--positions", "unshifted"], "takes no position"),
    (["--choose", "omp"], "--choose belongs to --producer attention-matching"),
    (["--producer", "first", "--budget", "even"], "--budget belongs to --producer attention-matching"),
    (["--producer", "attention-matching", "--reference", "none"], "--reference is 'none'"),
    (["--carrier", "lora", "--baselines", "all"], "trains no controls"),
])  # fmt: skip
def test_mistakes(arguments, said, run, here, model):
    assert_one_line(run("compress", "context.txt", "--model", model, *arguments, "--out", "p.safetensors"), said)
    assert not (here / "p.safetensors").exists()


def test_a_compressor_of_another_model_or_kind(train, run, data, model, new_model):
    train("ccm")
    other = new_model(5)
    compress = lambda *more: run("compress", "context.txt", "--compressor", "ccm", "--out", "p.safetensors", *more)
    assert_one_line(compress("--model", other), "was trained from the model")
    assert_one_line(compress("--model", model, "--producer", "rmt"), "holds a compressor of the kind ccm")


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selection(name, run, here, model):
    code, out, err = run("compress", "context.txt", "--model", model, "--producer", name, "--slots", 4, "--queries", "queries.jsonl",
                         "--out", "p.safetensors", "--json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["producer"] == name and told["slots"] == 4
    if name in ("first", "last"):
        assert told["rows"]["sigma"]["kl"] == pytest.approx(told["rows"][name]["kl"], rel=1e-5)
    assert run("ask", "p.safetensors", "Who is a?", "--model", model)[0] == 0
    said = "tokens, of which 90 cannot be selected"
    assert_one_line(run("compress", "context.txt", "--model", model, "--producer", name, "--slots", 90, "--out", "q.safetensors"), said)


@pytest.mark.parametrize("choose, budget, reference", [
    ("rms", "even", "queries"), ("omp", "even", "repeat-prefill"), ("rms", "by-need", "queries"),
])  # fmt: skip
def test_attention_matching(choose, budget, reference, run, here, model):
    arguments = ["--model", model, "--producer", "attention-matching", "--choose", choose, "--queries", "queries.jsonl",
                 "--budget", budget, "--reference", reference]  # fmt: skip
    code, out, err = run("compress", "context.txt", *arguments, "--slots", 6, "--out", "p.safetensors", "--json")
    assert code == 0, err
    told, prompt = json.loads(out), SoftPrompt.load("p.safetensors")
    assert told["producer"] == "attention-matching" and prompt.beta is not None
    used = np.isfinite(prompt.beta) | (prompt.slots[:, 0] != 0).any(-1)  # (L, H, P)
    heads = used.sum(-1)
    assert (heads.mean() == 6 and heads.max() == prompt.length > 6) if budget == "by-need" else prompt.length == 6
    recipe, rows = prompt.provenance["recipe"], {"queries": 4, "repeat-prefill": 4}
    assert (recipe["choose"], recipe["budget"], recipe["reference"]) == (choose, budget, reference) and rows
    assert told["rows"]["sigma"]["kl"] < told["rows"]["none"]["kl"]
    assert_one_line(run("compress", "context.txt", *arguments, "--slots", 60, "--out", "q.safetensors"), "60 keys cannot be chosen")


def test_a_context_as_low_rank_weights(run, here, model, quick):
    code, out, err = run("compress", "context.txt", *quick, "--carrier", "lora", "--out", "w.safetensors", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["ratio"] is None and told["kv_bytes_slots"] == 0 and told["rows"]["sigma"]["positions"] == 0
    code, out, err = run("ask", "w.safetensors", "Who is a?", "--model", model, "--json")
    assert code == 0 and "answer" in json.loads(out), err
    assert_one_line(run("ask", "w.safetensors", "Who is a?"), "is of the model")


def test_low_rank_weights_resumed_end_at_the_same_bits(run, here, quick, monkeypatch):
    from minicompress.prompts.low_rank_weights import LowRankWeights

    run("compress", "context.txt", *quick, "--carrier", "lora", "--out", "whole.safetensors")
    from minicompress.compression.run import Run

    real = Run.train_slots

    def stops(self, checkpoint, progress):
        def step(number, *facts):
            progress(number, *facts)
            if number == 2:
                raise KeyboardInterrupt

        real(self, checkpoint, step)

    monkeypatch.setattr(Run, "train_slots", stops)
    run("compress", "context.txt", *quick, "--carrier", "lora", "--out", "parts.safetensors")
    monkeypatch.setattr(Run, "train_slots", real)
    assert run("compress", "context.txt", *quick, "--carrier", "lora", "--resume", "--out", "parts.safetensors")[0] == 0
    whole, parts = (flatten(LowRankWeights.load(f"{name}.safetensors").low) for name in ("whole", "parts"))
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("kind", ["rmt", "autocompressor"])
def test_a_stream_is_read_as_it_comes(kind, train, run, data, model, monkeypatch):
    """From standard input, longer than any window, in pieces: to the bits of the whole file."""
    from minicompress.compression import texts

    train(kind)
    text = "Tom has a red dog. " * 100
    (data / "long.txt").write_text(text)
    arguments = ["--model", model, "--compressor", kind, "--slots", 1]
    told = run("compress", "long.txt", *arguments, "--out", "p.safetensors", "--json")
    assert told[0] == 0, told[2]
    monkeypatch.setattr(texts.read_pieces, "__defaults__", (64,))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    streamed = run("compress", "-", *arguments, "--out", "q.safetensors", "--json")
    assert streamed[0] == 0, streamed[2]
    one, other = SoftPrompt.load("p.safetensors"), SoftPrompt.load("q.safetensors")
    assert one.slots.tobytes() == other.slots.tobytes() and one.provenance == other.provenance
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert_one_line(run("compress", "-", *arguments, "--out", "r.safetensors"), "- is empty")


@pytest.mark.parametrize("line, said", [
    ({"text": "Hi there"}, "record 2: a text of 3 tokens asks nothing; with segments of 8 it needs 10"),
    ({"context": "a dog " * 90, "queries": [{"question": "Who?", "answer": "Tom"}]}, "record 2: n_positions is 128; "),
])  # fmt: skip
def test_records_are_looked_at_before_anything_is_trained(line, said, train, data):
    (data / "contexts.jsonl").write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps(line))
    assert_one_line(train(), said)
    assert not (data / "gist").exists()


def test_without_a_teacher_a_context_may_be_longer_than_the_window(train, data):
    """Nobody reads all of it at once: the answers are those of the file."""
    record = {"context": "a dog " * 90, "queries": [{"question": "Who?", "answer": "Tom"}]}
    (data / "contexts.jsonl").write_text(json.dumps(record))
    code, out, err = train("rmt", "--loss", "likelihood")
    assert code == 0, err


@pytest.mark.parametrize("producer", ["last", "attention-matching", "rmt"])
def test_a_context_whose_end_is_asked_is_compressed_without_it(producer, train, run, data, model):
    """Slots that had read what is held out would be no compression of the rest."""
    text = "Tom has a red dog. Ann lives in Rome. The cat sat on a mat. A dog came by and it was big and old."
    (data / "text.txt").write_text(text)
    arguments = ["--model", model, "--queries", "continuation", "--json", "--out", "p.safetensors"]
    train("rmt")
    way = ["--compressor", "rmt"] if producer == "rmt" else ["--producer", producer, "--slots", 4]
    code, out, err = run("compress", "text.txt", *arguments, *way)
    assert code == 0, err
    told, prompt = json.loads(out), SoftPrompt.load("p.safetensors")
    ids = load_tokenizer(model).encode(text).ids
    assert told["context_tokens"] == prompt.provenance["context_tokens"] == len(ids) - round(0.3 * len(ids))
    if producer == "last":
        assert told["rows"]["sigma"] == told["rows"]["last"]


@pytest.mark.parametrize("wrong", [["--queries", "bogus"], ["--evaluate-on", "none.jsonl"], ["--cache", "context.txt"]])
@pytest.mark.parametrize("producer", ["h2o", "attention-matching"])
def test_a_mistake_found_late_leaves_what_was_there(producer, wrong, run, here, model):
    (here / "p.safetensors").write_bytes(b"mine")
    assert_one_line(run("compress", "context.txt", "--model", model, "--producer", producer, "--slots", 3, "--self-study", 8,
                        *wrong, "--out", "p.safetensors"))  # fmt: skip
    assert (here / "p.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("option", [["--steps", 9], ["--lr", 0.1], ["--loss", "js"], ["--init", "zero"], ["--places", "all"],
                                    ["--rows", 2], ["--temperature", 2.0], ["--freeze-first"]], ids=lambda o: o[0])  # fmt: skip
def test_what_only_training_reads_is_refused_elsewhere(option, run, here, model):
    arguments = ["compress", "context.txt", "--model", model, "--producer", "first", "--out", "p"]
    assert_one_line(run(*arguments, *option), f"{option[0]} belongs to slots by gradient")
    assert_one_line(run(*arguments, "--queries", "on-policy"), "--queries on-policy")


def test_keys_by_need_are_counted_by_their_width(run, here, model):
    """The widest head is what the prompt takes, and what as many plain tokens are compared with."""
    code, out, err = run("compress", "context.txt", "--model", model, "--producer", "attention-matching", "--slots", 6, "--budget",
                         "by-need", "--queries", "queries.jsonl", "--json", "--out", "p.safetensors")  # fmt: skip
    assert code == 0, err
    told, wide = json.loads(out), SoftPrompt.load("p.safetensors").length
    assert told["slots"] == told["rows"]["sigma"]["positions"] == told["rows"]["last"]["positions"] == wide > 6
    assert told["ratio"] == told["context_tokens"] / wide


def test_the_time_of_attention_matching_is_that_of_its_questions_too(run, here, model, monkeypatch):
    from minicompress.cli import produce

    real = produce.Problem
    monkeypatch.setattr(produce, "Problem", lambda *args: (time.sleep(0.5), real(*args))[1])
    told = json.loads(run("compress", "context.txt", "--model", model, "--producer", "attention-matching", "--slots", 3,
                          "--queries", "queries.jsonl", "--json", "--out", "p")[1])  # fmt: skip
    assert told["seconds"] > 0.5


def test_its_file_says_how_to_make_it_again(run, here, model):
    assert run("compress", "context.txt", "--model", model, "--producer", "attention-matching", "--slots", 3, "--self-study", 9,
               "--seed", 4, "--out", "p.safetensors")[0] == 0  # fmt: skip
    recipe = SoftPrompt.load("p.safetensors").provenance["recipe"]
    assert (recipe["self_study"], recipe["seed"], recipe["queries"], recipe["teacher"]) == (9, 4, "self-study", model_hash(model))


def test_who_reads_it_is_said(train, run, data, model):
    train("gist")
    arguments = ["compress", "context.txt", "--model", model, "--compressor", "gist", "--queries", "queries.jsonl", "--out", "p"]
    assert "the model that reads it is in gist" in run(*arguments)[1]
    assert "compressor" in SoftPrompt.load("p").provenance
