"""The whole table made a second way: every row's numbers, with nothing cached, batched, or told by the teacher's object."""

import numpy as np
import pytest

import table_by_hand
from outer_checks import letters_run
from table_by_hand import CHECKS, fronts, row_by_hand


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


def test_the_table_tells_something():
    """No two rows are alike, queries differ in length, the full context recalls what no context does not."""
    with letters_run() as run:
        table_by_hand.prepare(run)
        rows = {name: row_by_hand(run, front) for name, front in fronts(run).items()}
        assert len({len(q.ids) for q in run.held}) > 1
    assert len({row["kl"] for row in rows.values()}) == len(rows) == 6
    assert 0 < rows["full"]["recall"] < 1 and rows["none"]["recall"] == 0
    assert all(0 < rows[name]["top1_agreement"] < 1 for name in ("none", "first", "last", "init", "sigma"))


@pytest.mark.parametrize("name", ["none", "sigma"])
def test_no_divergence_is_below_nothing(name):
    with letters_run() as run:
        for query in run.held:
            theirs, ours = (table_by_hand.places(run, fronts(run)[front], query) for front in ("full", name))
            assert np.exp2(theirs).sum(-1) == pytest.approx(1)
            assert ((np.exp2(theirs) * (theirs - ours)).sum(-1) > 0).all()
