"""Written queries on disk: the same is written once, nothing else is taken for it, and damage is said in one line."""

import json

import pytest
from sourcing import MODEL

import letters
from minicompress.compression import cache, problem
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from test_planted_bugs import Bug, plant

RECIPE = {"slots": 2, "self_study": 8, "queries": "self-study"}
OTHERS = [{"self_study": 9}, {"seed": 1}, {"queries": "context-free"}, {"seed_prompt": ("Q: who",)}, {"chunk": 9},
          {"answers": "greedy"}, {"teacher": "1"}, {"text": letters.OTHER}]  # fmt: skip


@pytest.fixture
def asked(tmp_path, shards, monkeypatch):
    """asked(**changes) -> the queries of a run with that cache, and how often a teacher wrote."""
    calls, real = [], problem.gather

    def gather(*arguments):
        *rest, keep = arguments
        return real(*rest, lambda write: keep(lambda: (calls.append(1), write())[1]))

    monkeypatch.setattr(problem, "gather", gather)

    def queries(folder=tmp_path / "cache", teacher="0", text=letters.TEXT, **changes):
        reader = MODEL._replace(hashed=lambda: teacher)
        run = Run(MODEL, reader, text, Recipe(**RECIPE | changes), None, None, shards, folder)
        return (run.train, run.held), len(calls)

    return queries


def test_the_same_queries_are_written_once_and_are_the_same(asked, tmp_path):
    (plain, _), (first, _), (second, times) = asked(None), asked(), asked()
    assert plain == first == second and times == 2
    assert asked(lr=0.5, slots=3, loss="likelihood", steps=7)[1] == 2, "what does not decide them was asked for"
    assert len(list((tmp_path / "cache").iterdir())) == 1, "something was left beside"


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_nothing_else_is_taken_for_them(other, asked):
    assert asked()[1] == 1 and asked(**other)[1] == 2 and asked(**other)[1] == 2


@pytest.mark.parametrize("source", ["context", "continuation"])
def test_what_nobody_writes_is_not_kept(source, asked, tmp_path):
    asked(queries=source)
    assert not (tmp_path / "cache").exists()


def damage(change):
    def write(path):
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))

    return write


DAMAGES = {
    "empty": lambda path: path.write_text(""),
    "half": lambda path: path.write_text(path.read_text()[:-9]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_text("[]"),
    "other facts": damage(lambda body: body["facts"].update(seed=5)),
    "no queries": damage(lambda body: body.pop("queries")),
    "an id too high": damage(lambda body: body["queries"][0][0].__setitem__(0, 999)),
    "an id of words": damage(lambda body: body["queries"][0][0].__setitem__(0, "a")),
    "nothing scored": damage(lambda body: body["queries"][0].__setitem__(1, 999)),
    "a start of words": damage(lambda body: body["queries"][0].__setitem__(1, "1")),
    "a question of numbers": damage(lambda body: body["queries"][0].__setitem__(2, 3)),
    "too much": damage(lambda body: body["queries"][0].append([1])),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_costs_one_line(harm, asked, tmp_path):
    asked()
    (path,) = (tmp_path / "cache").iterdir()
    harm(path)
    with pytest.raises(
        ValueError, match=f"{path.name} is damaged .*; delete it, and its queries are written again"
    ) as error:
        asked()
    assert "\n" not in str(error.value)
    path.unlink()
    assert asked()[1] == 2


def test_a_file_is_no_folder(asked, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match="--cache .*cache is a file; name a folder"):
        asked()


BUGS = [
    Bug("the teacher decides nothing", {"teacher": "1"}, cache.kept, '("teacher", "context")', '("context",)'),
    Bug("the context decides nothing", {"text": letters.OTHER}, cache.kept, '("teacher", "context")', '("teacher",)'),
    Bug("the recipe decides nothing", {"seed": 1}, cache.kept, "for name in DECIDES", "for name in ()"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, asked, monkeypatch):
    plant(bug, monkeypatch)
    with pytest.raises(AssertionError):
        test_nothing_else_is_taken_for_them(bug.caught_by, asked)


def test_a_write_that_fails_leaves_nothing(asked, tmp_path, monkeypatch):
    """A full disk: no half of a file is found the next time."""

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        asked()
    assert not list((tmp_path / "cache").iterdir())
