"""compress, ask, generate and trace with slots of every carrier, at all three kinds of positions, and in templates."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from test_cli_mistakes import assert_one_line, left

import weights_loader
from minicompress.gpt2 import Config
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.oracles import relative_error
from minicompress.verification.trace import trace
from reading import KINDS, random_prompt
from weights_loader import model_hash

SMALL = Config(vocab_size=2048, n_positions=128, n_embd=24, n_layer=2, n_head=2)  # the fixture `model`
CARRIERS = [["--carrier", "embeddings"], ["--carrier", "hidden"], ["--carrier", "kv"], ["--carrier", "kv", "--beta"]]
each_carrier = pytest.mark.parametrize("carrier", CARRIERS, ids=lambda options: "".join(options[1:]))
each_position = pytest.mark.parametrize("positions", ["compact", "logical", "unshifted"])
GRADIENTS = {"embeddings": (3, 24), "hidden": (2, 3, 24), "kv": (3, 2 * 2 * 24)}


@pytest.fixture
def saved(here, model):
    """saved(name, kind, P) -> a random prompt for the model, in that file."""

    def save(name, kind, P=3, **changes):
        prompt = replace(random_prompt(kind, SMALL, P, np.random.default_rng(0), np.float32), **changes)
        prompt = replace(prompt, provenance={"model": model_hash(model)})
        prompt.save(here / name)
        return prompt

    return save


def tensors_of(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@each_carrier
@each_position
def test_from_a_context_to_an_answer(carrier, positions, run, here, quick, model):
    code, out, err = run("compress", "context.txt", *quick, *carrier, "--positions", positions, "--json", "--out", "p")
    assert code == 0, err
    result, prompt = json.loads(out), SoftPrompt.load("p")
    assert (result["slots"], prompt.length, prompt.carrier, prompt.positions) == (3, 3, carrier[1], positions)
    assert prompt.start == {"compact": 3, "unshifted": 0, "logical": result["context_tokens"]}[positions]
    assert (prompt.beta is not None) == ("--beta" in carrier) and prompt.initial.shape == prompt.slots.shape
    assert (prompt.initial != prompt.slots).any() and result["kl_sigma"] != result["kl_init"]
    assert isinstance(json.loads(run("ask", "p", "Who is Rex?", "--model", model, "--json")[1])["answer"], str)
    plain, prompted = (json.loads(run("generate", "Tom has", "--model", model, "--tokens", 8, "--json", *more)[1])["tokens"]
                       for more in ([], ["--prompt", "p"]))  # fmt: skip
    assert len(prompted) == 8 and prompted != plain
    code, out, _ = run("trace", "--model", model, "--tokens", "tokens.json", "--prompt", "p", "--json", "--out", "t")
    found = tensors_of("t")
    assert code == 0 and found["grad.prompt"].shape == GRADIENTS[carrier[1]] and found["grad.prompt"].any()
    assert ("first_logits" in found) == (carrier[1] == "embeddings") and ("grad.beta" in found) == ("--beta" in carrier)


@each_carrier
def test_stopped_and_resumed_equals_never_stopped(carrier, run, here, quick, monkeypatch):
    from minicompress.compression.run import Run

    arguments = ["compress", "context.txt", *quick, *carrier]
    assert run(*arguments, "--out", "whole")[0] == 0
    real = Run.train_slots

    def train_slots(self, checkpoint, progress):
        def stops(step, steps, loss):
            progress(step, steps, loss)
            if step == 2:
                raise KeyboardInterrupt

        return real(self, checkpoint, stops)

    monkeypatch.setattr(Run, "train_slots", train_slots)
    assert run(*arguments, "--out", "p")[0] == 130 and (here / "p.checkpoint").exists()
    monkeypatch.setattr(Run, "train_slots", real)
    assert run(*arguments, "--out", "p", "--resume")[0] == 0
    whole, resumed = SoftPrompt.load("whole"), SoftPrompt.load("p")
    assert whole.slots.tobytes() == resumed.slots.tobytes()
    assert whole.beta is None or whole.beta.tobytes() == resumed.beta.tobytes()


@each_carrier
@pytest.mark.parametrize("init", ["first", "vocab:100", "noise", "uniform", "zero", "normal", "labels:yes,no", "red dog"])
def test_beginnings(carrier, init, run, here, quick):
    code, _, err = run("compress", "context.txt", *quick, *carrier, "--init", init, "--steps", 0, "--out", "p")
    assert code == 0, err
    prompt = SoftPrompt.load("p")
    assert (prompt.slots == prompt.initial).all() and prompt.slots.any() == (init != "zero")


def test_all_controls_of_keys_and_values(run, here, quick):
    code, out, _ = run("compress", "context.txt", *quick, "--carrier", "kv", "--beta", "--positions", "logical", "--baselines",
                       "all", "--other", "context.txt", "--json", "--out", "p")  # fmt: skip
    assert code == 0 and json.loads(out)["rows"].keys() >= {"other", "queries", "first", "last"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_of_every_kind_of_file(kind, run, here, model, saved):
    """The command writes what `trace` gives for the file's prompt in float64, rows with slots among them."""
    prompt = saved("p", kind)
    rows = [[5, -1, 7, -3, -2], [-2, 9, -2]] if prompt.in_rows else [[5, 6, 7, 8], [9, 10]]
    (here / "rows.json").write_text(json.dumps(rows))
    (here / "context.json").write_text("[1, 2, 3]")
    params = weights_loader.load(model, "float64")[0]
    wide = replace(prompt, slots=prompt.slots.astype(float), beta=None if prompt.beta is None else prompt.beta.astype(float))
    for loss, context in (([], None), (["--loss", "kl", "--teacher-context", "context.json"], [1, 2, 3])):
        arguments = ["--model", model, "--tokens", "rows.json", "--prompt", "p", "--gradients", "all", "--out", "t", *loss]
        assert run("trace", *arguments)[0] == 0
        expected, found = trace((params, SMALL), rows, wide, None, None, context, "all"), tensors_of("t")
        assert found.keys() == expected.keys()
        assert max(relative_error(found[name], x) for name, x in expected.items()) <= 1e-13


def test_a_teacher_needs_no_room_for_slots_in_rows(run, here, model, saved):
    """126 tokens and 2 slots fill a row; the teacher reads two of context and no slots."""
    saved("p", "in rows", 2)
    (here / "rows.json").write_text(json.dumps([[-1, -2] + [5] * 126]))
    for context, code in (([1, 2], 0), ([1, 2, 3], 2)):
        (here / "context.json").write_text(json.dumps(context))
        result = run("trace", "--model", model, "--tokens", "rows.json", "--prompt", "p", "--loss", "kl",
                     "--teacher-context", "context.json", "--out", "t")  # fmt: skip
        assert result[0] == code
    assert_one_line(result, "n_positions is 128; 3 teacher context + 126 tokens need 129")


@pytest.mark.parametrize("kind", ["embeddings", "hidden", "kv"])
def test_prompts_in_a_row(kind, run, here, model, saved):
    saved("a", kind, 2)
    saved("b", kind, 3)
    text = ["generate", "Tom has", "--model", model, "--tokens", 5, "--json"]
    both = run(*text, "--prompt", "a", "--prompt", "b")
    assert both[0] == 0 and both[1] != run(*text, "--prompt", "b")[1]


# Mistakes.


@pytest.mark.parametrize("options, words", [
    (["--carrier", "prefix"], ["--carrier is 'prefix'", "embeddings or hidden or kv"]),
    (["--positions", "spread"], ["--positions is 'spread'", "compact or logical or unshifted"]),
    (["--beta"], ["--beta is the mass of a key, which --carrier kv has and embeddings has not"]),
    (["--carrier", "hidden", "--beta"], ["--carrier kv has and hidden has not"]),
    (["--carrier", "kv", "--slots", 100], ["n_positions is 128; 100 slots + 48 tokens of a query need 148"]),
    (["--carrier", "kv", "--positions", "unshifted", "--slots", 129], ["n_positions is 128; 129 slots need 129"]),
    (["--init", "vocab:0"], ["--init is 'vocab:0'"]),
    (["--init", "labels:,"], ["--init is 'labels:,', which names no label"]),
])  # fmt: skip
def test_options_of_compress(options, words, run, here, quick):
    before = left(here)
    assert_one_line(run("compress", "context.txt", *quick, "--out", "p", *options), *words)
    assert left(here) == before


ARITHMETIC = [  # kind, P, changes, how the positions before 120 tokens are called
    ("embeddings", 9, {}, "9 slots"),
    ("hidden", 9, {}, "9 slots"),
    ("kv", 9, {}, "9 slots"),
    ("kv, logical", 3, {"offset": 9}, "9 positions before the text"),
    ("embeddings, logical", 3, {"offset": 9}, "9 positions before the text"),
]


@pytest.mark.parametrize("kind, P, changes, words", ARITHMETIC)
def test_a_text_too_long_behind_a_prompt(kind, P, changes, words, run, here, model, saved):
    """Counted together with the slots where it stands behind them, with the offset where that was given."""
    saved("p", kind, P, **changes)
    (here / "rows.json").write_text(json.dumps([[5] * 120]))
    before = left(here)
    told = run("trace", "--model", model, "--tokens", "rows.json", "--prompt", "p", "--out", "t")
    assert_one_line(told, f"n_positions is 128; {words} + 120 tokens need 129")
    told = run("generate", "Tom", "--tokens", 119, "--prompt", "p", "--model", model)
    assert_one_line(told, f"n_positions is 128; {words} + 1 text tokens + 119 new tokens need 129")
    told = run("ask", "p", " Tom" * 130, "--model", model)
    assert_one_line(told, f"n_positions is 128; {words} + ", " question tokens + 1 answer tokens need ")
    assert left(here) == before
    (here / "rows.json").write_text(json.dumps([[5] * 119]))
    assert run("trace", "--model", model, "--tokens", "rows.json", "--prompt", "p", "--out", "t")[0] == 0
    assert run("generate", "Tom", "--tokens", 118, "--prompt", "p", "--model", model)[0] == 0


def test_unshifted_a_text_has_all_positions(run, here, model, saved):
    """However many keys stand before it."""
    saved("p", "kv, unshifted", 200)
    (here / "rows.json").write_text(json.dumps([[5] * 128]))
    assert run("trace", "--model", model, "--tokens", "rows.json", "--prompt", "p", "--out", "t")[0] == 0
    told = run("generate", "Tom", "--tokens", 128, "--prompt", "p", "--model", model)
    assert_one_line(told, "n_positions is 128; 1 text tokens + 128 new tokens need 129")


@pytest.mark.parametrize("kind", ["embeddings", "hidden", "kv", "kv with masses", None])
def test_slots_in_rows_need_a_template(kind, run, here, model, saved):
    for rows in ([[5, -1, 7]], [[1, -1]], [[-1]]):
        (here / "rows.json").write_text(json.dumps(rows))
        prompt = ["--prompt", "p"] if kind else []
        if kind:
            saved("p", kind)
        told = run("trace", "--model", model, "--tokens", "rows.json", *prompt, "--out", "t")
        assert_one_line(told, "token ids span -1..", "the vocabulary is 0..2047")


def test_a_slot_that_is_not_there(run, here, model, saved):
    saved("p", "in rows", 3)
    (here / "rows.json").write_text("[[5, -4, 7]]")
    told = run("trace", "--model", model, "--tokens", "rows.json", "--prompt", "p", "--out", "t")
    assert_one_line(told, "token ids span -4..7; the vocabulary is 0..2047, and -3..-1 are slots")


def test_a_prompt_is_gone_on_from_as_it_stands(run, here, quick):
    """Carrier, positions, offset, masses and slots are the file's, unless something else is asked for."""
    once = quick[: quick.index("--steps")]
    made = run("compress", "context.txt", *once, "--producer", "pooled-kv", "--slots", 4, "--out", "p.safetensors")
    assert made[0] == 0, made[2]
    begun = SoftPrompt.load("p.safetensors")
    options = [option for option in quick if option not in ("--slots", 3)]
    refine = ["compress", "context.txt", *options, "--init", "p.safetensors", "--out", "q"]
    code, out, err = run(*refine, "--any-prefix", "--freeze-first", "--json")
    assert code == 0, err
    result, prompt = json.loads(out), SoftPrompt.load("q")
    assert (prompt.carrier, prompt.positions, prompt.offset, prompt.length) == ("kv", "logical", begun.offset, 4)
    assert (prompt.initial == begun.slots).all() and (prompt.slots[..., 0, :] == begun.slots[..., 0, :]).all()
    assert (prompt.slots[..., 1:, :] != begun.slots[..., 1:, :]).any() and result["kl_init"] is not None
    recipe = prompt.provenance["recipe"]
    assert recipe["init"] == "p.safetensors" and recipe["any_prefix"] and recipe["freeze_first"]
    replace(begun, offset=77).save("p.safetensors")  # behind a context of another length, as a compressor's may be
    assert run(*refine)[0] == 0 and SoftPrompt.load("q").offset == 77 != begun.offset
    assert run(*refine, "--slots", 2)[0] == 0 and SoftPrompt.load("q").length == 2
    assert run(*refine, "--positions", "compact", "--beta")[0] == 0
    assert (SoftPrompt.load("q").positions, SoftPrompt.load("q").beta.shape) == ("compact", (2, 2, 4))
    for more, said in ((["--slots", 9], "has 4 slots, from which 9"), (["--carrier", "embeddings"], "has kv, from which --carrier embeddings cannot begin"),
                       (["--carrier", "lora"], "begins as nothing, not as p.safetensors"),
                       (["--producer", "first"], "--init belongs to slots by gradient")):  # fmt: skip
        assert_one_line(run(*refine, *more), said)
    for option in ("--any-prefix", "--freeze-first"):
        assert_one_line(run("compress", "context.txt", *quick, "--carrier", "lora", option, "--out", "q"), f"{option} belongs")
    assert_one_line(run("compress", "context.txt", *quick, "--init", "no.safetensors", "--out", "q"), "no.safetensors")


def test_two_prompts_answer_one_question(run, here, model, saved):
    """Behind both in a row, which is what `generate` reads as well."""
    for kind in ("kv", "embeddings"):
        saved("a", kind)
        saved("b", kind, P=2)
        ask = run("ask", "a", "Who?", "--also", "b", "--model", model, "--json")
        assert ask[0] == 0, ask[2]
        told = run("generate", "Q: Who?\nA:", "--prompt", "a", "--prompt", "b", "--model", model, "--tokens", 32, "--lines", 1,
                   "--json")  # fmt: skip
        assert json.loads(ask[1])["answer"] == json.loads(told[1])["text"].split("\n")[0].strip()
    saved("c", "hidden")
    assert_one_line(run("ask", "a", "Who?", "--also", "c", "--model", model), "must be of one carrier")
    assert_one_line(run("ask", "a", "Who?", "--also", "none", "--model", model), "none")
