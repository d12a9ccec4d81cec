"""A whole compression on another device: self-study, teacher, training, every row of the table, saved and resumed."""

import numpy as np
import pytest

import strict_device
from minicompress.arrays import to_host
from minicompress.compression.problem import Model, Recipe
from minicompress.compression.run import Run
from minicompress.evaluation.baselines import evaluate, trained_prefixes
from minicompress.trees import tree_map

TEXT = "Tom has a red dog. Ann lives in Rome and plays the drum."


def rows(run):
    """The table without what the clock says."""
    return evaluate(run, trained_prefixes(run, "Another text, about a cat."))["rows"]


@pytest.mark.parametrize("options", [
    {"init": "text"}, {"init": "vocab", "loss": "likelihood"}, {"init": "noise", "temperature": 2.0},
    {"init": "zero", "loss": "js"}, {"init": "first", "loss": "top-k-tail", "top_k": 5},
], ids=lambda options: options["init"])  # fmt: skip
def test_a_run(xp, options, small_model, shards, tmp_path):
    recipe = Recipe(slots=3, steps=3, rows=4, self_study=8, **options)

    def run(xp):
        model = Model((tree_map(xp.asarray, small_model.pair[0]), small_model.pair[1]), *small_model[1:])
        made = Run(model, model, TEXT, recipe, shards=shards)
        made.train_slots()
        made.save(tmp_path / "c")
        again = Run(model, model, TEXT, recipe, shards=shards)
        again.resume(tmp_path / "c")
        assert type(again.slots) is type(made.slots) and np.array_equal(to_host(again.slots), to_host(made.slots))
        return made

    here, there = run(np), run(xp)
    assert [q.ids for q in here.train] == [q.ids for q in there.train]
    tolerance = 0 if xp is strict_device else 1e-4
    np.testing.assert_allclose(to_host(there.slots), here.slots, rtol=tolerance)
    ours, theirs = rows(here), rows(there)
    assert ours.keys() == theirs.keys() and {"other", "queries"} <= ours.keys()
    for name, row in ours.items():
        assert theirs[name]["kl"] == pytest.approx(row["kl"], rel=tolerance, abs=0), name
