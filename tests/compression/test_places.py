"""Which places the training scores: where the rule says, and only there."""

import pytest
from placing import CHECKS
from test_run import facts, stopped_at

from minicompress.compression import places, queries, teacher
from minicompress.compression.places import read_places
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("places where it stays of its mind", "changed", places.changed, ".argmax(-1) != guesses", ".argmax(-1) == guesses"),
    Bug("a context that is never read", "changed", places.changed, "for prefix in (read, Prefix())", "for prefix in (Prefix(), Prefix())"),
    Bug("places counted from the first token", "changed", places.changed, "zip(query.targets, differ, strict=True)", "enumerate(differ)"),
    Bug("one place too many", "first", places.choose_places, "q.targets[:rule]", "q.targets[: rule + 1]"),
    Bug("the teacher expects all places", "masked", teacher.Teacher, "len(q.targets)", "len(q.ids) - q.start"),
    Bug("the batch scores all places", "masked", queries.pad, "row[list(query.targets)]", "row[query.start : len(query.ids)]"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() == 0


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch, (ValueError,)) > 0


@pytest.mark.parametrize(
    "rule", ["first", "first:0", "first:-1", "first:x", "first:1.5", "first:²", "last:2", "", "ALL"]
)
def test_a_rule_that_cannot_be_is_refused(rule):
    with pytest.raises(ValueError, match="it can be all, changed, or first:N with N of at least 1"):
        read_places(rule)


@pytest.mark.parametrize("rule", ["first:2", "changed"])
def test_a_run_on_some_places_is_another_run_and_is_resumed(rule, new_run, tmp_path):
    whole, broken, resumed, all_ = (new_run(places=rule), new_run(places=rule), new_run(places=rule), new_run())
    for run in (whole, all_):
        run.train_slots()
    stopped_at(broken, 3, tmp_path / "c")
    resumed.resume(tmp_path / "c")
    resumed.train_slots()
    assert facts(resumed) == facts(whole) != facts(all_)
    assert all(len(q.targets) == len(q.ids) - q.start for q in whole.held), "the table scores all places"
    with pytest.raises(ValueError, match="another recipe"):
        new_run().resume(tmp_path / "c")


def test_where_the_context_changes_nothing_there_is_nothing_to_train_on(new_run, monkeypatch):
    monkeypatch.setattr(places, "changed", lambda queries, *_: [()] * len(queries))
    with pytest.raises(ValueError, match="--places changed leaves nothing to train on"):
        new_run(places="changed")
