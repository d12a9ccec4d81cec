"""compress by every source of queries, loss and rule of places as a user types them, and what is wrong in one line."""

import json

import pytest
from test_cli_mistakes import assert_one_line, left

from minicompress.prompts.soft_prompt import SoftPrompt

SMALL = ["--self-study", 12, "--slots", 3, "--steps", 4, "--rows", 4, "--threads", 1]


def recipe(path="p"):
    return SoftPrompt.load(path).provenance["recipe"]


@pytest.mark.parametrize("options, said", [
    ([], {"queries": "self-study"}),
    (["--seed-prompt", "Q:", "--seed-prompt", "Tom", "--chunk", 10], {"seed_prompt": ["Q:", "Tom"], "chunk": 10}),
    (["--answers", "sampled"], {"queries": "self-study", "answers": "sampled"}),
    (["--queries", "context", "--loss", "likelihood"], {"queries": "context", "loss": "likelihood"}),
    (["--queries", "context", "--chunk", 7], {"queries": "context", "chunk": 7}),
    (["--queries", "continuation"], {"queries": "continuation", "continuation_share": 0.3}),
    (["--queries", "continuation", "--continuation-share", 0.5], {"continuation_share": 0.5}),
    (["--queries", "context-free"], {"queries": "context-free"}),
    (["--queries", "on-policy"], {"queries": "on-policy", "refresh": 50}),
    (["--queries", "on-policy", "--refresh", 2, "--seed-prompt", "Q: who"], {"refresh": 2, "seed_prompt": ["Q: who"]}),
    (["--queries", "queries.jsonl"], {"queries": "file"}),
    (["--queries", "asked.jsonl", "--answers", "sampled"], {"queries": "file", "answers": "sampled"}),
    (["--queries", "queries.jsonl", "--loss", "js:0.3+0.5*likelihood"], {"loss": "js:0.3+0.5*likelihood"}),
    (["--queries", "queries.jsonl", "--loss", "kl+top-k-tail"], {"loss": "kl+top-k-tail", "top_k": 20}),
    (["--queries", "queries.jsonl", "--loss", "kl+0.5*hidden+attention"], {"loss": "kl+0.5*hidden+attention"}),
    (["--queries", "queries.jsonl", "--places", "first:2"], {"places": "first:2"}),
    (["--queries", "queries.jsonl", "--places", "changed"], {"places": "changed"}),
], ids=str)  # fmt: skip
def test_from_a_context_to_a_prompt(options, said, run, here, model):
    (here / "asked.jsonl").write_text("\n".join(json.dumps({"question": f"Who is {name}?"}) for name in "abcdef"))
    code, out, err = run("compress", "context.txt", "--model", model, *SMALL, *options, "--json", "--out", "p")
    assert code == 0, err
    assert recipe().items() >= said.items() and json.loads(out)["kl_sigma"] != json.loads(out)["kl_init"]
    assert "refresh" in recipe() or recipe()["queries"] != "on-policy"


def test_drawn_answers_are_others_than_the_likeliest(run, here, model):
    (here / "asked.jsonl").write_text("\n".join(json.dumps({"question": f"Who is {name}?"}) for name in "abcdef"))
    told = {}
    for how in ("greedy", "sampled"):
        assert run("compress", "context.txt", "--model", model, *SMALL, "--queries", "asked.jsonl", "--answers", how,
                   "--loss", "likelihood", "--out", how)[0] == 0  # fmt: skip
        told[how] = SoftPrompt.load(how).slots.tobytes()
    assert run("compress", "context.txt", "--model", model, *SMALL, "--queries", "asked.jsonl", "--loss", "likelihood",
               "--out", "p")[0] == 0  # fmt: skip
    assert told["greedy"] == SoftPrompt.load("p").slots.tobytes() != told["sampled"]


def test_written_queries_are_kept(run, here, model):
    """The second run reads what the first has written, and ends at the same bits; a damaged file costs one line."""
    arguments = ["compress", "context.txt", "--model", model, *SMALL, "--cache", "kept"]
    for out in ("a", "b"):
        assert run(*arguments, "--out", out)[0] == 0
    assert SoftPrompt.load("a").slots.tobytes() == SoftPrompt.load("b").slots.tobytes()
    (path,) = (here / "kept").iterdir()
    path.write_text(path.read_text()[:-2])
    assert_one_line(run(*arguments, "--out", "c"), path.name, "is damaged", "delete it")


def test_a_student_s_rows_stopped_and_resumed(run, here, model, monkeypatch):
    from minicompress.compression.run import Run

    arguments = ["compress", "context.txt", "--model", model, *SMALL, "--queries", "on-policy", "--refresh", 2]
    assert run(*arguments, "--out", "whole")[0] == 0
    real = Run.train_slots

    def train_slots(self, checkpoint, progress):
        def stops(step, steps, loss):
            if step == 3:
                raise KeyboardInterrupt

        return real(self, checkpoint, stops)

    monkeypatch.setattr(Run, "train_slots", train_slots)
    assert run(*arguments, "--out", "p")[0] == 130
    monkeypatch.setattr(Run, "train_slots", real)
    assert run(*arguments, "--out", "p", "--resume")[0] == 0
    assert SoftPrompt.load("p").slots.tobytes() == SoftPrompt.load("whole").slots.tobytes()


@pytest.mark.parametrize("options, words", [
    (["--queries", "book"], ["book: No such file"]),
    (["--queries", "context", "--refresh", 3], ["--refresh belongs to --queries on-policy; this is context"]),
    (["--refresh", 3], ["--refresh belongs to --queries on-policy; this is self-study"]),
    (["--queries", "on-policy", "--refresh", 0], ["--refresh is 0; it must be at least 1"]),
    (["--continuation-share", 0.2], ["--continuation-share belongs to --queries continuation; this is self-study"]),
    (["--queries", "continuation", "--continuation-share", 0], ["--continuation-share is 0"]),
    (["--queries", "continuation", "--continuation-share", 1], ["its two parts are 0 and", "are the least"]),
    (["--queries", "continuation", "--continuation-share", "nan"], ["--continuation-share is nan"]),
    (["--queries", "queries.jsonl", "--seed-prompt", "Q:"], ["--seed-prompt belongs to", "this is file"]),
    (["--seed-prompt", ""], ["--seed-prompt is empty"]),
    (["--seed-prompt", "Tom " * 150], ["there is no room to write"]),
    (["--queries", "context-free", "--chunk", 3], ["--chunk belongs to --queries self-study or context or continuation"]),
    (["--chunk", 0], ["--chunk is 0; it must be at least 1"]),
    (["--answers", "drawn"], ["--answers is 'drawn'; it can be greedy or sampled"]),
    (["--answers", ""], ["--answers is ''; it can be greedy or sampled"]),
    (["--queries", "context", "--answers", "greedy"], ["--answers belongs to --queries file or self-study"]),
    (["--queries", "on-policy", "--loss", "kl+likelihood"], ["--queries on-policy", "leave likelihood out of --loss"]),
    (["--places", "some"], ["--places is 'some'; it can be all, changed, or first:N"]),
    (["--places", "first:0"], ["--places is 'first:0'"]),
    (["--loss", "kl+mse"], ["--loss is 'mse'; it can be kl or", "or a sum such as kl+0.5*likelihood"]),
    (["--loss", "0*kl"], ["its weight is '0'; a finite number above 0 is needed"]),
    (["--loss", "js:2"], ["its β is '2'; a number between 0 and 1 is needed"]),
    (["--loss", "kl:0.5"], ["js alone has a β"]),
    (["--loss", "hidden", "--temperature", 2], ["--temperature softens distributions; --loss hidden has none"]),
    (["--loss", "kl+likelihood", "--top-k", 5], ["--top-k belongs to --loss top-k or"]),
    (["--cache", "context.txt"], ["--cache context.txt is a file; name a folder"]),
], ids=str)  # fmt: skip
def test_what_is_wrong_costs_one_line(options, words, run, here, model):
    before = left(here)
    assert_one_line(run("compress", "context.txt", "--model", model, *SMALL, "--out", "p", *options), *words)
    assert left(here) == before
