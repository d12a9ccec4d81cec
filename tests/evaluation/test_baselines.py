"""The rows of the table: the cheap alternatives are what they are called, the controls saw only what they may."""

import json

import numpy as np
import pytest

import letters
from minicompress.compression.teacher import Teacher
from minicompress.evaluation import baselines
from minicompress.evaluation.baselines import costs, evaluate, prefixes, trained_prefixes
from minicompress.gpt2.prefix import read_slots, read_tokens
from outer_checks import clock, costs_error, relative_distance, rows_error


@pytest.fixture
def run(new_run):
    trained = new_run()
    trained.train_slots()
    return trained


def test_every_row_is_what_it_is_called():
    assert rows_error() <= 1e-14


def test_the_first_tokens_are_slots_made_of_their_embeddings(run):
    slots = run.model.wte[run.ids[:4]]
    assert relative_distance(prefixes(run)["first"], read_slots(*run.model.pair, slots)[0]) <= 1e-14


def test_the_last_tokens_stand_at_the_first_positions(run):
    slots = run.model.wte[run.ids[-4:]]
    assert relative_distance(prefixes(run)["last"], read_slots(*run.model.pair, slots)[0]) <= 1e-14


def test_where_the_student_is_the_teacher_the_full_context_costs_nothing(run):
    rows = evaluate(run)["rows"]
    assert abs(rows["full"]["kl"]) <= 1e-14 and abs(rows["full"]["kl_p95"]) <= 1e-14
    assert rows["full"]["top1_agreement"] == 1 and rows["full"]["gap_closed"] == pytest.approx(1)
    assert rows["none"]["gap_closed"] == 0 and rows["none"]["gap_closed_interval"] == [0, 0]
    assert all(rows[name]["kl"] > 1e-3 for name in ("none", "first", "last", "init", "sigma"))


def test_another_teacher_is_not_reached_even_by_the_full_context(new_run):
    run = new_run(teacher=letters.model(1))
    run.train_slots()
    assert evaluate(run)["rows"]["full"]["kl"] > 1e-3


def test_the_teacher_of_the_table_is_not_softened_by_the_training_temperature(new_run):
    hot = new_run(temperature=4.0)
    hot.train_slots()
    assert abs(evaluate(hot)["rows"]["full"]["kl"]) <= 1e-14


def test_rows_are_scored_on_the_held_out_queries_alone(run):
    """Of other training queries the table knows nothing."""
    told = evaluate(run)
    run.train = run.train[:1]
    assert evaluate(run)["rows"] == told["rows"] and told["queries"] == len(run.held)
    run.held = run.held[:1] + run.train
    assert evaluate(run)["rows"] != told["rows"]


def test_lengths_and_further_rows(run):
    rows = evaluate(run, {"extra": read_tokens(*run.model.pair, run.ids[:2])})["rows"]
    assert {name: row["positions"] for name, row in rows.items()} == {
        "none": 0, "full": len(run.ids), "first": 4, "last": 4, "init": 4, "sigma": 4, "extra": 2}  # fmt: skip


def test_a_result_is_json_and_the_same_again(run):
    one, again = evaluate(run), evaluate(run)
    assert json.loads(json.dumps(one)) == one and one["rows"] == again["rows"]


def test_the_other_text_s_slots_are_a_compression_of_that_text(run, new_run):
    other = new_run(letters.OTHER)
    other.train_slots()
    expected = read_slots(*run.model.pair, other.slots)[0]
    assert relative_distance(trained_prefixes(run, letters.OTHER)["other"], expected) == 0
    assert relative_distance(trained_prefixes(run, letters.TEXT)["other"], prefixes(run)["sigma"]) == 0


def test_slots_that_saw_only_answers_owe_the_context_nothing(shards, tmp_path, monkeypatch):
    """Another context, and a teacher who expects something else: the same slots, for the same written answers."""
    monkeypatch.setattr(letters, "QUESTIONS", {q: a or "so" for q, a in letters.QUESTIONS.items()})
    runs = [letters.run(tmp_path, shards),
            letters.run(tmp_path, shards, letters.OTHER),
            letters.run(tmp_path, shards, teacher=letters.model(1))]  # fmt: skip
    one, *others = [trained_prefixes(run, letters.OTHER)["queries"] for run in runs]
    assert [relative_distance(other, one) for other in others] == [0, 0]
    monkeypatch.setattr(letters, "QUESTIONS", {q: "no" for q in letters.QUESTIONS})
    unlike = trained_prefixes(letters.run(tmp_path, shards), letters.OTHER)["queries"]
    assert relative_distance(unlike, one) > 1e-3


def test_controls_are_trained_as_long_and_leave_the_run_as_it_was(run):
    steps, before = [], (run.slots.tobytes(), run.initial.tobytes(), run.state["step"], run.recipe)
    controls = trained_prefixes(run, letters.OTHER, progress=lambda step, last, loss: steps.append((step, last)))
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2 and set(controls) == {"other", "queries"}
    assert (run.slots.tobytes(), run.initial.tobytes(), run.state["step"], run.recipe) == before


def test_ratio_bytes_and_break_even_by_hand():
    assert costs_error() <= 1e-14


def test_slots_that_are_no_quicker_never_pay_back(run, monkeypatch):
    for full, sigma in ((1, 1), (1, 2)):
        monkeypatch.setattr(baselines, "time", clock([full] * 5 + [sigma] * 5))
        assert costs(run)["break_even_queries"] is None


def test_the_seconds_of_a_query_are_the_middle_of_five(run, monkeypatch):
    monkeypatch.setattr(baselines, "time", clock([9, 2, 1, 3, 100, 0, 0, 1, 2, 50]))
    found = costs(run)
    assert (found["seconds_per_query_full"], found["seconds_per_query_sigma"]) == (3, 1)


def test_bytes_are_those_of_the_arrays_that_are_kept(run):
    held = sum(a.nbytes for pair in prefixes(run)["full"].past for a in pair)
    slots = sum(a.nbytes for pair in prefixes(run)["sigma"].past for a in pair)
    found = costs(run)
    assert (found["kv_bytes_context"], found["kv_bytes_slots"]) == (held, slots)


def test_the_teacher_that_the_rows_are_held_against_reads_the_whole_context(run):
    """One query by hand: bits of its answer's divergence, with nothing in front."""
    query = run.held[0]
    theirs = Teacher(run.model.pair, run.read, [query], run.shards).logp([0])
    ours = Teacher(run.model.pair, read_tokens(*run.model.pair, run.ids[:4]), [query], run.shards).logp([0])
    run.held = [query]
    by_hand = (np.exp(theirs) * (theirs - ours)).sum(-1).mean() / np.log(2)
    assert evaluate(run)["rows"]["first"]["kl"] == pytest.approx(by_hand, rel=1e-12)
