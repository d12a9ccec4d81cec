"""What the README says of the embedded model: it is small, and it uses its context."""

import sys
from pathlib import Path

import numpy as np
import pytest

import weights_loader
from minicompress.commands import open_model
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.evaluation.baselines import evaluate
from minicompress.training.shards import Shards

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return open_model()


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(ROOT / "examples/embedded_model"))
    import measure

    yield measure
    sys.path.remove(str(ROOT / "examples/embedded_model"))


def test_it_is_small_and_has_room(model):
    size = sum(path.stat().st_size for path in weights_loader.EMBEDDED.iterdir())
    assert size <= 12e6 and model.pair[1].n_positions >= 512
    assert model.pair[0]["wte"]["weight"].shape[0] == model.tokenizer.get_vocab_size()


@pytest.mark.parametrize("people", [3, 4])
def test_it_answers_from_notes_that_it_was_not_trained_on(scripts, model, people):
    rng = np.random.default_rng(people)
    drawn = [scripts.notes(rng, people, 11) for _ in range(12)]
    with Shards(2) as shards:
        exact, _ = scripts.recall(model, drawn, shards, each=3)
        without, _ = scripts.recall(model, drawn, shards, with_context=False, each=3)
    assert exact >= 0.9 and without <= 0.2


@pytest.mark.parametrize("family", ["lookup", "sort", "repeat", "swap", "before", "after"])
def test_it_does_tasks_that_are_only_shown(scripts, model, family):
    rng = np.random.default_rng(0)
    drawn = [scripts.task(rng, True, family) for _ in range(8)]
    with Shards(2) as shards:
        exact, _ = scripts.recall(model, drawn, shards, each=3)
        without, _ = scripts.recall(model, drawn, shards, with_context=False, each=3)
    assert exact >= 0.85 and without <= 0.2


def test_eight_slots_answer_as_the_notes_do(model):
    """The README's run, with fewer steps."""
    with Shards(2) as shards:
        run = Run(model, model, (ROOT / "examples/notes.txt").read_text(), Recipe(steps=80, self_study=96),
                  evaluate_on=ROOT / "examples/questions.jsonl", shards=shards)  # fmt: skip
        run.train_slots()
        rows = evaluate(run)["rows"]
    assert rows["full"]["recall"] >= 0.9 and rows["none"]["recall"] <= 0.1
    assert rows["sigma"]["gap_closed"] > 0.9 and rows["sigma"]["recall"] > rows["init"]["recall"]
