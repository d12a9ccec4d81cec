"""`compress` on a folder, or on lines of JSON: the same bits as one by one, whatever fails or stops in between."""

import json
import os
import signal

import numpy as np
import pytest
from test_cli_interrupted import program, wait_for
from test_cli_mistakes import assert_one_line

from minicompress.cli import many
from minicompress.cli.many import Context, contexts_of, is_many, work
from minicompress.cli.produce import Job
from minicompress.compression.problem import Recipe
from minicompress.evaluation.metrics import mean_interval
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.report.table import contexts_table

TEXTS = {"ann": "Ann lives in Rome and plays the drum.\n", "tom": "Tom has a red dog. The dog is called Rex.\n"}


@pytest.fixture
def folder(here):
    (here / "notes").mkdir()
    for name, text in TEXTS.items():
        (here / "notes" / f"{name}.txt").write_text(text)
    return here


@pytest.fixture
def job(model, folder, monkeypatch):
    """One of few steps; and a worker's state, as a process has it at its beginning."""
    for name, value in (("opened", None), ("stopped", False)):
        monkeypatch.setattr(many.Worker, name, value)
    (folder / "out").mkdir()
    recipe = Recipe(slots=2, steps=2, rows=4, queries="file")
    return Job(recipe, model=model, queries=folder / "queries.jsonl", resume=True)


def test_a_folder_is_its_texts_one_by_one(run, folder, quick):
    (folder / "notes/bad.txt").write_bytes(b"\xff")
    (folder / "notes/tom.jsonl").write_text('{"question": "Who has a dog?", "answer": "Tom"}\n')
    code, out, err = run("compress", "notes", *quick, "--out", "out", "--threads", 2, "--json")
    told = json.loads(out)
    assert code == 2 and err.splitlines()[-1].startswith("minicompress: 1 of 3 contexts failed, bad first: notes/bad.txt")
    assert list(told["failed"]) == ["bad"] and [r["name"] for r in told["contexts"]] == ["ann", "tom"]
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["ann.json", "ann.safetensors", "tom.json", "tom.safetensors"]
    assert told["contexts"][1]["queries"] == 1, "the questions beside it are what it is judged by"
    gaps = [r["gap_closed"] for r in told["contexts"]]
    assert told["gap_closed"] == pytest.approx(np.mean(gaps)) and len(told["gap_closed_interval"]) == 2
    alone = run("compress", "notes/ann.txt", *quick, "--out", "ann", "--threads", 1, "--json")
    assert SoftPrompt.load("ann").slots.tobytes() == SoftPrompt.load("out/ann.safetensors").slots.tobytes()
    ours, theirs = json.loads(alone[1]), told["contexts"][0]
    assert all(ours[name] == theirs[name] for name in ("kl_none", "kl_sigma", "gap_closed", "top1_agreement", "recall_full"))


def test_lines_of_json_and_a_producer_that_trains_nothing(run, folder, model):
    lines = [{"text": TEXTS["ann"]}, {"context": TEXTS["tom"], "queries": [{"question": "Who?", "answer": "Tom"}]}]
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{no\n")
    arguments = ["many.jsonl", "--model", model, "--producer", "last", "--slots", 4, "--self-study", 8, "--out", "out"]
    code, out, err = run("compress", *arguments)
    assert code == 2 and "1 of 3 contexts failed, line-000003 first: the line: " in err and "Traceback" not in err
    assert "line-000001" in out and "line-000002" in out and "written to out/" in out
    told = json.loads((folder / "out/line-000002.json").read_text())
    assert told["queries"] == 1 and told["recall_full"] is not None
    assert SoftPrompt.load("out/line-000001.safetensors").length == 4


def test_stopped_by_ctrl_c_and_resumed(run, folder, quick):
    arguments = ["compress", "notes", *quick, "--threads", 1]
    assert run(*arguments, "--out", "whole")[0] == 0
    process = program([*arguments, "--steps", 4000, "--out", "out"], start_new_session=True)
    wait_for(folder / "out/ann.safetensors.checkpoint", process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out and "Traceback" not in err and "--resume goes on from it" in err, err
    assert [p.name for p in (folder / "out").iterdir()] == ["ann.safetensors.checkpoint"]
    (folder / "out/ann.safetensors.checkpoint").unlink()
    assert run(*arguments, "--out", "out", "--resume")[0] == 0
    for name in TEXTS:
        one, other = (SoftPrompt.load(f"{out}/{name}.safetensors").slots for out in ("whole", "out"))
        assert one.tobytes() == other.tobytes()


def test_what_is_done_is_kept_and_what_has_changed_is_not(job, folder, monkeypatch):
    context, out, facts = Context("ann", folder / "notes/ann.txt"), folder / "out", {"a": 1}
    made = work(job, facts, context, out)
    assert made == json.loads((out / "ann.json").read_text()) and "failed" not in made
    spent = lambda *changes: work(*({"job": job, "facts": facts} | dict(changes)).values(), context, out)["seconds"]
    assert spent() == made["seconds"], "nothing is done twice"
    assert spent(("facts", {"a": 2})) != made["seconds"]
    again = work(job, facts, context, out)["seconds"]
    (folder / "notes/ann.jsonl").write_text('{"question": "Who?", "answer": "Ann"}')
    assert (asked := spent()) != again and spent() == asked, "other questions"
    (folder / "notes/ann.jsonl").unlink()
    context.source.write_text("Ann lives in Oslo now.")
    assert (moved := spent()) != asked and spent() == moved, "another text"
    (out / "ann.json").write_text("{")
    assert (anew := spent()) != moved and spent() == anew, "half a file"
    (out / "ann.safetensors").unlink()
    assert spent() != anew and (out / "ann.safetensors").exists()
    job = Job(**vars(job) | {"resume": False})
    before = spent()
    assert spent() != before, "only --resume keeps"


def test_a_worker_that_was_stopped_begins_nothing_more(job, folder, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "make", stops)
    contexts = [Context(name, folder / f"notes/{name}.txt") for name in TEXTS]
    told = [work(job, {}, context, folder / "out") for context in contexts]
    assert [t["failed"] for t in told] == ["stopped", "stopped"]
    monkeypatch.setattr(Job, "make", lambda *_: pytest.fail("it was stopped"))
    assert work(job, {}, contexts[0], folder / "out")["failed"] == "stopped"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_worker_that_is_killed_costs_one_line(run, folder, quick, monkeypatch):
    monkeypatch.setattr(many, "work", kill_myself)
    result = run("compress", "notes", *quick, "--out", "out", "--threads", 1)
    assert_one_line((result[0], result[1], result[2].splitlines()[-1] + "\n"), "a worker was killed", "--resume")


def kill_myself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("source, said", [
    ("empty", "empty holds no .txt file"),
    ("none.jsonl", "none.jsonl"),
    ("blank.jsonl", "blank.jsonl is empty"),
])  # fmt: skip
def test_no_contexts(source, said, run, folder, quick):
    (folder / "empty").mkdir()
    (folder / "blank.jsonl").write_text("\n \n")
    assert_one_line(run("compress", source, *quick, "--out", "out"), said)
    assert not (folder / "out").exists()


def test_many_need_a_folder_and_one_needs_a_file(run, folder, quick):
    assert_one_line(run("compress", "notes", *quick, "--out", "context.txt"), "context.txt is a file; many contexts need a folder")
    assert_one_line(run("compress", "context.txt", *quick, "--out", "notes"), "notes is a folder; name a file")
    assert is_many("notes") and is_many("a.jsonl") and not is_many("-") and not is_many("context.txt")


def test_names_have_one_order_and_do_not_depend_on_the_lines_behind(here):
    (here / "many.jsonl").write_text('{"text": "a"}\n\n' * 6)
    assert [c.name for c in contexts_of("many.jsonl")] == [f"line-{n:06}" for n in range(1, 12, 2)]


def test_another_prompt_to_begin_from_is_another_job(run, folder, model, quick):
    """By what is in the file, not by its name."""
    once = quick[: quick.index("--steps")]
    for name in ("last", "first"):
        assert run("compress", "context.txt", *once, "--producer", name, "--out", f"{name}.safetensors")[0] == 0
    (folder / "p.safetensors").write_bytes((folder / "first.safetensors").read_bytes())
    arguments = ["compress", "notes", *once, "--steps", 0, "--init", "p.safetensors", "--out", "out", "--resume", "--threads", 1]
    initial = lambda: SoftPrompt.load("out/tom.safetensors").slots.tobytes()
    assert run(*arguments)[0] == 0 and initial() == SoftPrompt.load("first.safetensors").slots.tobytes()
    (folder / "p.safetensors").write_bytes((folder / "last.safetensors").read_bytes())
    assert run(*arguments)[0] == 0 and initial() == SoftPrompt.load("last.safetensors").slots.tobytes()


def test_the_mean_and_its_interval():
    rng = np.random.default_rng(0)
    assert mean_interval([], rng) == (None, None) and mean_interval([0.5], rng) == (0.5, None)
    values = rng.normal(3, 1, 400)
    mean, (low, high) = mean_interval(list(values), rng)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1) and low < mean < high


def test_of_very_many_the_table_shows_the_worst():
    row = {"context_tokens": 9, "slots": 2, "seconds": 1.0}
    results = [row | {"name": f"c{i}", "gap_closed": gap} for i, gap in enumerate([0.9, 0.1, None, 0.5])]
    shown = contexts_table(results, most=2)
    assert list(shown.columns[0].cells) == ["c1", "c3"] and "the 2 of 4" in shown.title
    assert list(contexts_table(results).columns[0].cells) == ["c0", "c1", "c2", "c3"]
