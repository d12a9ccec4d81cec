"""`evaluate` as a user types it: the table of `compress` again, of any prompt, and its mistakes."""

import json

import pytest
from test_cli_mistakes import assert_one_line


@pytest.mark.parametrize("carrier", ["embeddings", "hidden", "kv", "lora"])
def test_the_row_that_compress_gave(carrier, run, here, model, quick):
    (here / "asked.jsonl").write_text((here / "queries.jsonl").read_text().replace("Who", "What"))
    made = run("compress", "context.txt", *quick, "--carrier", carrier, "--evaluate-on", "asked.jsonl", "--out", "p.safetensors",
               "--json")  # fmt: skip
    code, out, err = run("evaluate", "p.safetensors", "--context", "context.txt", "--queries", "asked.jsonl", "--model", model, "--json")
    assert code == 0, err
    before, after = json.loads(made[1])["rows"], json.loads(out)["rows"]
    assert set(after) == {"none", "full", "first", "last", "sigma"}
    for name in ("none", "full", "sigma") if carrier == "lora" else after:  # a rank of 1 is not quite three slots
        ours, theirs = ({n: x for n, x in rows[name].items() if n != "gap_closed_interval"} for rows in (after, before))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), name


def test_by_self_study_and_for_the_first_slots(run, here, model, quick):
    run("compress", "context.txt", *quick, "--out", "p.safetensors")
    code, out, err = run("evaluate", "p.safetensors", "--context", "context.txt", "--model", model, "--slots", 2, "--self-study", 12)
    assert code == 0, err
    assert "first 2 tokens" in out and "the prompt  " in out and "takes 2 positions" in out
    assert_one_line(run("evaluate", "p.safetensors", "--context", "context.txt", "--model", model, "--slots", 9), "the prompt has 3 slots; the first 9")


@pytest.mark.parametrize("arguments, said", [
    (["none.safetensors", "--context", "context.txt"], "none.safetensors"),
    (["p.safetensors", "--context", "nothing.txt"], "nothing.txt: No such file"),
    (["p.safetensors", "--context", "context.txt", "--self-study", 1], "--self-study is 1"),
])  # fmt: skip
def test_mistakes(arguments, said, run, here, model, quick):
    run("compress", "context.txt", *quick, "--out", "p.safetensors")
    assert_one_line(run("evaluate", *arguments, "--model", model), said)
