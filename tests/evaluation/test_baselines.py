"""The table of a compression: every row by hand, the two trained controls, and what it costs."""

import json

import numpy as np
import pytest

from measuring import CHECKS, CONTEXT, OTHER, Letters, costs, fronts, places, row_by_hand, running
from minicompress.compression.run import Run
from minicompress.evaluation.baselines import evaluate, prefixes, trained_prefixes
from minicompress.gpt2.prefix import read_slots
from minicompress.verification.oracles import relative_error

KEYS = {"positions", "kl", "kl_p95", "gap_closed", "gap_closed_interval", "top1_agreement", "recall"}


@pytest.fixture
def run():
    with running() as run:
        run.train_slots()
        yield run


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


def test_the_rows_tell_something(run):
    """Or the table by hand would hold nothing: no two rows are alike, and the context is worth having."""
    rows = {name: row_by_hand(run, front) for name, front in fronts(run).items()}
    assert len({row["kl"] for row in rows.values()}) == len(rows) == 6
    assert rows["full"]["recall"] == pytest.approx(2 / 3) > rows["none"]["recall"] and rows["none"]["kl"] > 0.1
    assert len({len(q.ids) for q in run.held}) > 1


def test_the_full_context_is_what_all_are_measured_by(run):
    rows = evaluate(run)["rows"]
    assert abs(rows["full"]["kl"]) <= 1e-14 and rows["full"]["top1_agreement"] == 1
    assert rows["full"]["gap_closed"] == pytest.approx(1, abs=1e-14)
    assert rows["none"]["gap_closed"] == 0 and rows["none"]["gap_closed_interval"] == [0, 0]
    assert rows["none"]["positions"] == 0 and rows["full"]["positions"] == len(CONTEXT)


@pytest.mark.parametrize("name, part", [("first", slice(3)), ("last", slice(-3, None)), ("full", slice(None))])
def test_text_in_front_is_the_slots_of_its_tokens(name, part, run):
    found = prefixes(run)[name]
    truth, _ = read_slots(*run.model.pair, run.model.wte[run.ids[part]])
    assert found.length == truth.length and relative_error(found.last, truth.last) <= 1e-13
    for ours, theirs in zip(found.past, truth.past, strict=True):
        assert all(relative_error(a, b) <= 1e-13 for a, b in zip(ours, theirs, strict=True))


def test_slots_before_and_after_training_are_two_rows(run):
    found = prefixes(run)
    for name, slots in (("init", run.initial), ("sigma", run.slots)):
        assert np.array_equal(found[name].last, read_slots(*run.model.pair, slots)[0].last)
    assert not np.array_equal(found["init"].last, found["sigma"].last)


def test_the_held_out_queries_alone_are_scored(run):
    before = evaluate(run)
    run.train = run.train[:1]
    after = evaluate(run)
    assert after["rows"] == before["rows"] and after["queries"] == before["queries"] == 3


def test_a_table_is_ready_for_json(run):
    result = evaluate(run)
    assert json.loads(json.dumps(result)) == result
    assert all(row.keys() == KEYS for row in result["rows"].values())


def test_the_divergence_is_in_bits(run):
    """A sum of p log2(p / q), which is never below 0."""
    theirs, ours = (places(fronts(run)[name], run.held[0]) for name in ("full", "none"))
    assert np.exp2(theirs).sum(-1) == pytest.approx(1) and ((np.exp2(theirs) * (theirs - ours)).sum(-1) > 0).all()


# The controls of `--baselines all`.


def test_the_controls_are_two_more_rows_and_change_no_other(run):
    slots, before = run.slots.tobytes(), evaluate(run)["rows"]
    told = []
    extra = trained_prefixes(run, OTHER, lambda step, steps, loss: told.append((step, steps)))
    assert run.slots.tobytes() == slots and told == [(step, 4) for step in (1, 2, 3, 4)] * 2
    rows = evaluate(run, extra)["rows"]
    assert rows.keys() == before.keys() | {"other", "queries"} and all(rows[name] == row for name, row in before.items())
    assert rows["other"]["positions"] == rows["queries"]["positions"] == 3
    assert len({rows[name]["kl"] for name in ("other", "queries", "init", "sigma")}) == 4


@pytest.mark.parametrize("changes", [{"loss": "likelihood"}, {"temperature": 2.0}, {"lr": 0.01}, {"init": "noise"}], ids=str)
def test_the_control_of_another_context_is_trained_by_the_same_recipe(changes):
    with running(**changes) as run, running(OTHER, **changes) as wrong:
        wrong.train_slots()
        other = trained_prefixes(run, OTHER)["other"]
        assert relative_error(other.last, prefixes(wrong)["sigma"].last) <= 1e-13


def test_the_control_of_answers_alone_never_meets_the_teacher(run, monkeypatch):
    def meets(self, numbers):
        raise AssertionError("the teacher is asked")

    monkeypatch.setattr(type(run.expects), "logp", meets)
    monkeypatch.setattr(Run, "train_slots", skipping_other(Run.train_slots))
    assert trained_prefixes(run, OTHER)["queries"].length == 3


def skipping_other(train_slots):
    return lambda self, **options: train_slots(self, **options) if self.recipe.loss == "likelihood" else None


# Costs.


def test_slots_that_cost_as_much_as_the_context_never_pay_back():
    assert costs([1] * 10)["break_even_queries"] is None
    assert costs([1] * 5 + [2] * 5)["break_even_queries"] is None


def test_the_letters_come_back():
    assert Letters.decode(Letters.encode(CONTEXT).ids) == CONTEXT
