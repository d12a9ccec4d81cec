"""The embedded model learns: words sorted into two classes, and invented pairs of words, by every method."""

import json

import pytest

from minicompress.commands import open_model
from minicompress.gpt2.prefix import EMBEDDINGS
from minicompress.prompts import carriers
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.shards import Shards
from minicompress.tuning.outcome import outcome
from minicompress.tuning.recipe import Recipe
from minicompress.tuning.run import Tuning

CLASSES = {"pet": "dog horse rabbit parrot goat hamster turtle cat duck pig", "food": "bread soup cheese rice fish pasta salad honey"}
KINDS = [{"text": word, "label": label} for label, words in CLASSES.items() for word in words.split()]
PAIRS = [{"input": a, "output": b} for a, b in zip(*(words.split()[:8] for words in CLASSES.values()), strict=True)]


@pytest.fixture(scope="module")
def model():
    return open_model()


@pytest.fixture
def tuned(model, tmp_path):
    """tuned(records, ...) -> a Tuning that has ended, held out: what it was trained on; and its outcome."""

    def run(records, **changes):
        (tmp_path / "data").write_text("\n".join(map(json.dumps, records)))
        recipe = Recipe(**{"rows": 8, "evaluate_every": 20, "best_by": "accuracy"} | changes)
        with Shards() as shards:
            made = Tuning(model, recipe, tmp_path / "data", tmp_path / "data", shards=shards)
            made.train()
            return made, outcome(made)

    return run


@pytest.mark.parametrize("method, how, steps", [
    ("prompt", "direct", 80), ("prefix", "direct", 60), ("prefix", "mlp", 40), ("deep", "direct", 60),
    ("p-tuning", "mlp", 120),
])  # fmt: skip
def test_invented_pairs(method, how, steps, tuned):
    made, result = tuned(PAIRS, method=method, parameterisation=how, steps=steps)
    assert result["exact_match"] == 1 and result["loss"] < 0.5
    assert result["rows"]["untrained"]["exact_match"] == result["rows"]["none"]["exact_match"] == 0
    assert result["diagnosis"] == ["8 of 8 held-out texts are trained on as well"]


@pytest.mark.parametrize("method", ["prompt", "prefix", "deep", "p-tuning"])
def test_two_classes(method, tuned):
    made, result = tuned(KINDS, method=method, steps=40, patience=2)
    assert result["accuracy"] == result["macro_f1"] == 1 and result["majority"] == 10 / 18
    assert [line for line in result["diagnosis"] if "trained on as well" not in line] == []


def test_slots_among_the_words(tuned, tmp_path):
    made, result = tuned(PAIRS, template="[2]{input}[4: is now]", steps=80)
    assert result["exact_match"] == 1 and made.prompt().in_rows
    made.prompt().save(tmp_path / "p")
    with Shards() as made.shards:
        again = made.score(SoftPrompt.load(tmp_path / "p").prefix(*made.model.pair), made.task.held)
    assert again["loss"] == result["loss"]


def test_slots_in_front_are_read_once_for_all_rows(model, tuned, monkeypatch):
    """Two shards of eight rows, five steps: the slots' own positions go through the blocks once a step."""
    read = []
    door = EMBEDDINGS._replace(read=lambda *args, **options: (read.append(len(args[2])), EMBEDDINGS.read(*args, **options))[1])
    monkeypatch.setitem(carriers.DOORS, "embeddings", door)
    made, _ = tuned(PAIRS, steps=5, evaluate_every=5)
    assert not any(token < 0 for q in made.task.train for token in q.ids)
    assert read.count(8) == len(read) == 5 + 2 + 2 + 1  # steps, evaluations, the two gradients looked at, attention
