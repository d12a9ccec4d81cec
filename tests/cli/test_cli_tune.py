"""`tune` as a user types it: every method, its JSON, its file, its mistakes, stopped and resumed."""

import json
import shlex
import signal

import numpy as np
import pytest
from test_cli_interrupted import program, wait_for
from test_cli_mistakes import assert_one_line, left

from minicompress.commands import open_model, open_prompt, row_of
from minicompress.compression.queries import Query, pad
from minicompress.gpt2 import logits
from minicompress.gpt2.prefix import predictors
from minicompress.layers.losses import log_softmax
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.tuning.run import Tuning
from weights_loader import model_hash

KINDS = [{"text": f"the {word} is here", "label": label, "id": n} for n, (word, label) in enumerate(
    (word, label) for label, words in {"pet": "dog cat goat horse", "food": "soup rice bread cheese"}.items() for word in words.split())
]  # fmt: skip
PAIRS = [{"input": word, "output": f"the {word}"} for word in ["dog", "cat", "goat", "horse", "soup", "rice"]]
PROMISED = {"method", "parameterisation", "carrier", "slots", "template", "numbers_trained", "numbers_baked", "examples", "held_out",
            "texts_cut", "majority", "loss", "steps", "best_step", "rows", "history", "measured", "diagnosis", "seconds",
            "seconds_per_step", "out"}  # fmt: skip


@pytest.fixture
def data(here):
    """Examples of both kinds in the working folder."""
    (here / "kinds.jsonl").write_text("\n".join(map(json.dumps, KINDS)))
    (here / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n")
    return here


@pytest.fixture
def brief(data, model):
    """The arguments of a tuning that takes a moment."""
    return ["tune", "--data", "kinds.jsonl", "--model", model, "--steps", 4, "--rows", 4, "--evaluate-every", 2]


@pytest.mark.parametrize("method, more, sizes", [
    ("prompt", ["--slots", 3], ("direct", "embeddings", 3, 3 * 24)),
    ("prompt", ["--parameterisation", "low-rank", "--rank", 2, "--slots", 3], ("low-rank", "embeddings", 3, 3 * 2 + 2 * 24)),
    ("prompt", ["--template", r"[2]{text}\nIt is[2: a kind]"], ("direct", "embeddings", 4, 4 * 24)),
    ("prefix", ["--slots", 2, "--positions", "unshifted"], ("direct", "kv", 2, 2 * 2 * 2 * 24)),
    ("prefix", ["--slots", 3, "--parameterisation", "cartridge", "--frozen", 2], ("cartridge", "kv", 3, 2 * 2 * 24)),
    ("prefix", ["--slots", 2, "--parameterisation", "mlp", "--hidden", 5, "--template", "{text} is a"],
     ("mlp", "kv", 2, 2 * 24 + 25 * 5 + 6 * 96)),
    ("deep", [], ("direct", "hidden", 8, 2 * 8 * 24)),
    ("p-tuning", ["--slots", 2, "--hidden", 5], ("mlp", "embeddings", 2, 2 * 24 + 25 * 5 + 6 * 5 + 6 * 24)),
    ("p-tuning", ["--parameterisation", "lstm", "--slots", 2], ("lstm", "embeddings", 2, None)),
])  # fmt: skip
def test_every_method(method, more, sizes, run, brief, data, model):
    code, out, _ = run(*brief, "--method", method, *more, "--json", "--out", "p")
    result = json.loads(out)
    assert code == 0 and result.keys() >= PROMISED | {"accuracy", "macro_f1"}
    assert (result["parameterisation"], result["carrier"], result["slots"]) == sizes[:3]
    assert sizes[3] in (None, result["numbers_trained"])
    assert [h["step"] for h in result["history"]] == [0, 2, 4] and result["steps"] == 4
    prompt = SoftPrompt.load("p")
    assert prompt.length == sizes[2] and prompt.slots.size == result["numbers_baked"] and prompt.raw
    assert prompt.provenance["model"] == model_hash(model) and prompt.provenance["recipe"]["method"] == method
    assert prompt.provenance["verbalizer"] == {"food": " food", "pet": " pet"} and prompt.template == result["template"]
    arguments = ["generate", "the dog is here", "--model", model, "--tokens", 3, "--json"]
    plain, prompted = (json.loads(run(*arguments, *more)[1])["tokens"] for more in ([], ["--prompt", "p"]))
    assert len(prompted) == 3 and prompted != plain
    assert left(data) == {"context.txt", "queries.jsonl", "tokens.json", "kinds.jsonl", "pairs.jsonl", "p"}


def test_outputs(run, brief):
    code, out, _ = run(*brief, "--data", "pairs.jsonl", "--decode", 1, "--json", "--out", "p")
    result = json.loads(out)
    assert code == 0 and result["exact_match"] in (0, 1) and "accuracy" not in result
    assert result["template"] == r"Q: {input}\nA:" and result["held_out"] == 1


def test_what_people_read(run, brief, model):
    code, out, err = run(*brief, "--verbalizer", "pet=dog,food=bread", "--valid", "kinds.jsonl", "--out", "p")
    assert code == 0 and "8 examples to train on, 8 held out" in err
    for words in ("8 held-out examples", "the commonest label", "50.0%", "no slots", "slots, untrained", "slots, tuned",
                  "8 slots (embeddings): 192 numbers trained", "! 8 of 8 held-out texts are trained on as well",
                  "written to p"):  # fmt: skip
        assert words in out, words
    *words, end = shlex.split(out.splitlines()[-1])
    assert words == ["minicompress", "ask", "p", "a text", "--model"] and end == str(model)
    assert run(*words[1:], end)[0] == 0


def test_the_same_command_gives_the_same_slots(run, brief):
    for name, more in (("p", []), ("q", []), ("r", ["--seed", 1])):
        run(*brief, *more, "--out", name)
    p, q, r = (SoftPrompt.load(name).slots.tobytes() for name in "pqr")
    assert p == q != r


def test_a_reloaded_prompt_loses_nothing(run, brief):
    """Begun at the slots that were saved, with no step to take: the loss is that of the end."""
    last = json.loads(run(*brief, "--lr", 0.3, "--json", "--out", "p")[1])
    again = json.loads(run(*brief, "--steps", 0, "--init-from", "p", "--json", "--out", "q")[1])
    assert again["loss"] == last["loss"] != last["rows"]["untrained"]["loss"]
    assert np.array_equal(SoftPrompt.load("q").slots, SoftPrompt.load("p").slots)


def test_slots_of_another_task_and_of_another_model(run, brief, new_model):
    other = new_model(5)
    run(*brief, "--data", "pairs.jsonl", "--model", other, "--out", "p")
    assert_one_line(run(*brief, "--init-from", "p", "--out", "q"), "p was made for the model")
    assert run(*brief, "--init-from", "p", "--init-model", other, "--steps", 0, "--out", "q")[0] == 0
    code, _, err = run(*brief, "--init-from", "q", "--method", "prefix", "--slots", 3, "--out", "r")
    assert code == 0 and "--init-from was made" not in err
    assert SoftPrompt.load("r").slots.shape == (2, 2, 2, 3, 12)


def test_what_is_not_taken_over_is_said_or_refused(run, brief, quick, model):
    assert run(*brief, "--template", "{text} is", "--positions", "unshifted", "--out", "p")[0] == 0
    code, _, err = run(*brief, "--init-from", "p", "--out", "q")
    assert code == 0 and r"made with the template '{text} is'; this one is 'Q: {text}\\nA:'" in err
    assert "made with --positions unshifted; this one is compact" in err
    assert run("compress", "context.txt", *quick, "--carrier", "kv", "--beta", "--out", "b")[0] == 0
    assert run("compress", "context.txt", *quick, "--positions", "logical", "--out", "l")[0] == 0
    assert_one_line(run(*brief, "--method", "prefix", "--init-from", "b", "--out", "q"), "--init-from has log-masses", "--beta")
    assert_one_line(run(*brief, "--init-from", "l", "--out", "q"), "--init-from has texts begin at position", "(logical)")


WRONG = {
    "none.jsonl": "\n", "text.jsonl": "plain words", "second.jsonl": '{"text": "a", "label": "b"}\n{"text": 3, "label": "b"}',
    "field.jsonl": '{"words": "a", "label": "b"}\n' * 2, "mixed.jsonl": '{"text": "a", "label": "b"}\n{"input": "a", "output": "b"}',
    "one.jsonl": '{"text": "a", "label": "b"}', "long.jsonl": json.dumps({"input": "a", "output": "dog " * 200}) + '\n{"input": "a", "output": "b"}',
    "empty.jsonl": '{"text": "", "label": "b"}\n' * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "nowhere.jsonl"], ["nowhere.jsonl", "No such file"]),
        (["--data", "none.jsonl"], ["none.jsonl is empty"]),
        (["--data", "text.jsonl"], ["text.jsonl, line 1", '{"text": "…", "label": "…"}']),
        (["--data", "second.jsonl"], ["second.jsonl, line 2", "'text' is of type int"]),
        (["--data", "field.jsonl"], ["field.jsonl, line 1 has no field 'text'", "its fields: 'words'"]),
        (["--data", "mixed.jsonl"], ["mixed.jsonl, line 2", "another kind of answer", "line 1"]),
        (["--data", "one.jsonl"], ["1 examples are too few"]),
        (["--data", "long.jsonl"], ["n_positions is 128", "8 slots", "tokens of the template", "longest answer"]),
        (["--data", "empty.jsonl", "--method", "deep", "--template", "{text}"], ["empty.jsonl, line 1", "nothing stands before"]),
        (["--valid", "pairs.jsonl"], ["kinds.jsonl has labels and pairs.jsonl has outputs"]),
        (["--valid", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--method", "lora"], ["--method", "'lora'", "prompt or p-tuning or prefix or deep"]),
        (["--parameterisation", "tree"], ["--parameterisation", "'tree'"]),
        (["--parameterisation", "mlp"], ["mlp does not fit --method prompt", "direct or low-rank"]),
        (["--method", "deep", "--parameterisation", "cartridge"], ["cartridge does not fit --method deep"]),
        (["--rank", 2], ["--rank belongs to --parameterisation low-rank"]),
        (["--hidden", 2, "--method", "deep"], ["--hidden belongs to --parameterisation mlp or lstm"]),
        (["--frozen", 8, "--method", "prefix", "--parameterisation", "cartridge"], ["--frozen 8 of 8 slots"]),
        (["--method", "p-tuning", "--init", "noise"], ["--init", "draws its own start"]),
        (["--init", "text"], ["--init is 'text'"]),
        (["--init-from", "nowhere"], ["nowhere"]),
        (["--init-model", "nowhere"], ["--init-model", "--init-from"]),
        (["--template", "{text"], ["template, column 6", "}"]),
        (["--template", "[2]{body}"], ["kinds.jsonl, line 1 has no field 'body'"]),
        (["--template", "{label}"], ["has no field 'label'"]),
        (["--template", "words"], ["shows nothing of an example"]),
        (["--template", "[2]{text}", "--slots", 3], ["--slots is 3", "places 2"]),
        (["--template", "[2]{text}", "--method", "prefix"], ["--method prefix", "every layer"]),
        (["--verbalizer", "pet"], ["--verbalizer has 'pet'"]),
        (["--verbalizer", "pet=a,food=a"], ["same word"]),
        (["--verbalizer", "pet=a", "--data", "pairs.jsonl"], ["--verbalizer", "outputs"]),
        (["--positions", "logical"], ["--positions", "compact or unshifted"]),
        (["--best-by", "luck"], ["--best-by", "accuracy or loss"]),
        (["--slots", 0], ["--slots", "at least 1"]),
        (["--slots", 200], ["n_positions is 128", "200 slots"]),
        (["--lr", 0], ["--lr", "at least"]),
        (["--threads", 0], ["--threads is 0", "at least 1"]),
        (["--clip", -1], ["--clip", "at least"]),
        (["--patience", 0], ["--patience", "at least 1"]),
        (["--evaluate-every", 0], ["--evaluate-every"]),
        (["--weight-decay", "nan"], ["--weight-decay"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--model", "nowhere"], ["nowhere"]),
        (["--out", "nowhere/p"], ["--out", "no folder nowhere"]),
        (["--out", "."], ["--out"]),
    ],
    ids=str,
)
def test_mistakes(options, words, run, brief, data):
    for name, content in WRONG.items():
        (data / name).write_text(content)
    before = left(data)
    assert_one_line(run(*brief, "--out", "p", *options), *words)
    assert left(data) == before


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_rate_that_is_far_too_high_says_so(run, brief):
    code, out, err = run(*brief, "--lr", 1e38, "--steps", 30, "--out", "p")
    assert code == 2 and "lower" in err.strip().splitlines()[-1] and "Traceback" not in err


# Stopped, and taken up again.


@pytest.fixture
def long(brief):
    return [*brief, "--method", "p-tuning", "--steps", 150, "--evaluate-every", 30]


@pytest.fixture
def whole(run, long):
    assert run(*long, "--out", "whole")[0] == 0
    return SoftPrompt.load("whole")


def same(one, two):
    facts = [(p.slots.tobytes(), {name: a.tobytes() for name, a in p.raw["mlp_head"]["0"].items()}, p.provenance) for p in (one, two)]
    return facts[0] == facts[1]


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_stopped_in_the_middle_and_resumed(sent, code, run, long, data, whole):
    process = program([*long, "--out", "p"])
    wait_for(data / "p.checkpoint", process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not out and "Traceback" not in err
    assert (sent != signal.SIGINT) or "--resume goes on from it" in err
    assert (data / "p.checkpoint").exists() and not (data / "p").exists()
    assert run(*long, "--out", "p", "--resume")[0] == 0
    assert same(SoftPrompt.load("p"), whole) and not (data / "p.checkpoint").exists()


def test_another_recipe_cannot_go_on(run, long, data, monkeypatch):
    train = Tuning.train

    def stops(self, checkpoint, progress):
        train(self, checkpoint, lambda run: (_ for _ in ()).throw(KeyboardInterrupt) if run.state["step"] == 3 else None)

    monkeypatch.setattr(Tuning, "train", stops)
    assert run(*long, "--out", "p")[0] == 130
    monkeypatch.setattr(Tuning, "train", train)
    kept = (data / "p.checkpoint").read_bytes()
    assert_one_line(run(*long, "--lr", 0.5, "--out", "p", "--resume"), "another recipe", "--resume")
    assert_one_line(run(*long, "--threads", 9, "--out", "p", "--resume"), "belongs to a run on", "goes on from it")
    (data / "kinds.jsonl").write_text("\n".join(map(json.dumps, KINDS[1:])))
    assert_one_line(run(*long, "--out", "p", "--resume"), "another data")
    assert (data / "p.checkpoint").read_bytes() == kept


def test_without_a_checkpoint_resume_starts_afresh(run, brief):
    code, _, err = run(*brief, "--out", "p", "--resume")
    assert code == 0 and "there is no p.checkpoint; starting afresh" in err


def test_a_prompt_tuned_on_labels_is_asked_for_one(run, brief, model):
    """The likeliest label as the tuning itself judges it; the line that tune ends with is the one to type."""
    code, out, _ = run(*brief, "--verbalizer", "pet=dog,food=bread and butter", "--out", "p")
    assert code == 0 and out.rstrip().endswith(f'minicompress ask p "a text" --model {model}')
    opened = open_model(model)
    prompt = open_prompt("p", opened)
    words = {"food": " bread and butter", "pet": " dog"}
    for text in ("soup", "a big cat"):
        ids = row_of(prompt, opened.tokenizer, text)
        scores = {}
        for label, word in words.items():
            tokens = opened.tokenizer.encode(word).ids
            query = Query(ids + tokens, len(ids))
            hidden, _ = predictors(*opened.pair, prompt.prefix(*opened.pair), *pad([query]))
            scores[label] = log_softmax(logits(opened.pair[0], hidden))[range(len(tokens)), tokens].sum()
        assert json.loads(run("ask", "p", text, "--model", model, "--json")[1]) == {"answer": max(scores, key=scores.get)}
