"""Where queries come from: each source by its exact identity, and a run on each, stopped and taken up again."""

import numpy as np
import pytest
from sourcing import CHECKS, IDS, MODEL, gathered, recipe
from test_run import facts, stopped_at

import letters
from minicompress.compression import queries, sources
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.evaluation.baselines import trained_prefixes
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("a row begins behind the token before it", "pieces", sources.pieces, "range(0, len(ids) - 1, n)", "range(1, len(ids) - 1, n)"),
    Bug("rows overlap by nothing", "pieces", sources.pieces, "ids[i : i + n + 1]", "ids[i : i + n]"),
    Bug("rows of a continuation begin anywhere", "continued", sources.continued, "Query(ids[: i + n], max(i, 1))", "Query(ids[i : i + n], 1)"),
    Bug("what was scored before is scored again", "continued", sources.continued, "max(i, 1)", "1"),
    Bug("the first part is what follows", "continued", sources.split_text, "return ids[:n], ids[n:]", "return ids[n:], ids[:n]"),
    Bug("a continuation's beginning is held out", "held", sources.split, "queries[:n], queries[n:]", "queries[-n:], queries[:-n]"),
    Bug("of the context a part is left out", "held", sources.split, 'recipe.queries == "context"', "False"),
    Bug("the first token is the likeliest", "freely", sources.freely, "sample(expected, rng, 1.0, top_p=0.95)", "sample(expected)"),
    Bug("all rows begin alike", "freely", sources.freely, "[:, None].tolist()", "[:, None].repeat(1).reshape(-1, 1)[:1].tolist() * count"),
    Bug("a seed prompt has no share", "shares", sources.study, "for seed in seeds]", "for seed in seeds[:1]]"),
    Bug("chunks are read in one", "shares", sources.written, "parts_of(ids, recipe.chunk)", "[ids]"),
    Bug("the seed prompt has its room twice", "shares", sources.study, "min(QUERY_TOKENS, room -", "min(QUERY_TOKENS, room + 2 -"),
    Bug("more rows at once than there is memory for", "shares", sources.spread, "min(ROWS, n - i)", "n - i"),
    Bug("the seed prompt is scored", "seed prompt", queries.self_study, "Query(start + new, len(start))", "Query(start + new, 1)"),
    Bug("a drawn answer is the likeliest", "answered", queries.own_answers, "if rng is None", "if True"),
    Bug("the answers are those that were written", "answered", sources.answered, "next(own))", '"x")'),
    Bug("options are read by all", "settled", sources.settled, " and source not in sources", " and False"),
    Bug("a file is called self-study", "settled", sources.settled, '"file" if queries_file', '"self-study" if queries_file'),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() == 0


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch) > 0


@pytest.fixture
def new_run(shards):
    def run(source, text=letters.TEXT, **changes):
        settings = Recipe(**{"slots": 4, "steps": 6, "rows": 3, "self_study": 12, "queries": source} | changes)
        return Run(MODEL, MODEL, text, settings, shards=shards)

    return run


@pytest.mark.parametrize("source", sources.SOURCES)
def test_a_source_is_decided_by_the_seed(source):
    rows = lambda seed: [q.ids for q in gathered(recipe(source, seed=seed), IDS, IDS[:9])]
    assert rows(0) == rows(0) and len(rows(0)) == len(set(map(tuple, rows(0)))) > 0
    assert (rows(0) == rows(1)) == (source in ("context", "continuation"))


SOURCES = [("self-study", {"chunk": 10, "seed_prompt": ("Q:", "a")}), ("self-study", {"answers": "sampled"}),
           ("context", {"chunk": 6, "loss": "likelihood"}), ("continuation", {}), ("context-free", {}),
           ("on-policy", {"refresh": 2})]  # fmt: skip


@pytest.mark.parametrize("source, changes", SOURCES)
@pytest.mark.parametrize("last", [1, 2, 3, 5])
def test_a_run_on_every_source_stopped_and_resumed(source, changes, last, new_run, tmp_path):
    whole, broken = new_run(source, **changes), new_run(source, **changes)
    whole.train_slots()
    stopped_at(broken, last, tmp_path / "c")
    resumed = new_run(source, **changes)
    resumed.resume(tmp_path / "c")
    assert resumed.state["step"] == last and facts(resumed) == facts(broken)
    resumed.train_slots()
    assert facts(resumed) == facts(whole)


@pytest.mark.parametrize("source, changes", SOURCES)
def test_a_run_on_every_source_learns(source, changes, new_run):
    run, seen = new_run(source, **{"steps": 40, "rows": 12, "lr": 0.1} | changes), []
    run.train_slots(progress=lambda step, steps, loss: seen.append(loss))
    assert np.mean(seen[-5:]) < 0.95 * np.mean(seen[:5])


def test_the_student_writes_anew_every_few_steps_and_what_it_writes_is_what_is_scored(new_run):
    """Each time by the slots of that step; the teacher expects what it would, reading the context; nothing is held out."""
    run, asked = new_run("on-policy", refresh=2), {}
    run.train_slots(progress=lambda step, *_: asked.setdefault(step, (run.asked, run.expects)))
    assert [asked[n][0] is asked[n + 1][0] for n in range(1, 6)] == [True, False, True, False, True]
    texts = [[q.ids for q in asked[n][0]] for n in (1, 3, 5)]
    assert texts[0] != texts[1] != texts[2] and run.train is not asked[1][0]
    held = {q.key for q in run.held}
    for rows, expects in asked.values():
        assert not held & {q.key for q in rows} and len(expects.states) == len(rows)
    assert [q.ids for q in new_run("on-policy").held] == [q.ids for q in new_run("self-study").held]


def test_controls_of_a_student_s_own_rows_learn_the_answers_that_the_teacher_wrote(new_run):
    run = new_run("on-policy", refresh=2)
    run.train_slots()
    other = run.with_start(run.initial, loss="likelihood")
    assert other.asked is run.train and run.asked is not run.train and len(other.expects.states) == len(run.train)
    assert trained_prefixes(run, letters.OTHER).keys() == {"other", "queries"}


def test_the_context_is_trained_on_and_judged_as_a_whole(new_run):
    run = new_run("context", chunk=5)
    assert run.train == run.held and sum(len(q.targets) for q in run.train) == len(IDS) - 1


def test_a_continuation_is_no_part_of_the_context(new_run):
    run = new_run("continuation", continuation_share=0.4)
    n = len(run.ids)
    assert run.ids == IDS[:n] and n == len(IDS) - round(0.4 * len(IDS)) and run.read.length == n
    assert run.held[-1].ids == IDS[n:]


@pytest.mark.parametrize("source, changes, words", [
    ("book", {}, "--queries is 'book'; it can be a file or self-study or context"),
    ("context", {"seed_prompt": ("a",)}, "--seed-prompt belongs to --queries self-study or on-policy; this is context"),
    ("self-study", {"seed_prompt": ("",)}, "--seed-prompt is empty"),
    ("self-study", {"seed_prompt": ("a" * 90,)}, "there is no room to write; 67 tokens are left"),
    ("continuation", {"continuation_share": 0.01}, "its two parts are 29 and 0, and 1 and 3"),
    ("continuation", {"continuation_share": 1.0}, "its two parts are 0 and 29"),
    ("context", {"chunk": 80}, None),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_refused(source, changes, words, new_run):
    if words is None:
        assert len(new_run(source, **changes).train) == 1
        return
    with pytest.raises(ValueError, match=words):
        new_run(source, **changes)
