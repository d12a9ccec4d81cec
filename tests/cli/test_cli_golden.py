"""`golden` as a user runs it: written, compared, and every mistake in one line."""

import json

from test_cli_mistakes import assert_one_line

from minicompress.verification.golden.folder import CASES


def test_written_and_compared(run, here):
    code, out, err = run("golden", "--out", "set")
    assert code == 0 and out.startswith(f"{len(CASES)} golden files, 0.") and out.endswith(" MB, written to set\n") and not err
    assert json.loads(run("golden", "--out", "set", "--json")[1]).keys() == {"out", "files", "bytes"}
    assert run("golden", "--check", "set")[:2] == (0, f"{len(CASES)} files as computed here; the largest error is 0% of its tolerance\n")
    (here / "set" / "layer-gelu.safetensors").unlink()
    assert run("golden", "--check", "set")[:2] == (1, "layer-gelu.safetensors: missing\n")
    code, out, _ = run("golden", "--check", "set", "--json")
    assert code == 1 and json.loads(out)["differences"] == ["layer-gelu.safetensors: missing"]


def test_mistakes(run, here):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    for arguments, words in (
        ([], "golden takes either --out DIR, to write, or --check DIR, to compare"),
        (["--out", "a", "--check", "b"], "golden takes either --out DIR"),
        (["--out", "mine"], "mine holds no golden set but other files; name a new folder"),
        (["--out", "context.txt"], "context.txt is no folder"),
        (["--out", "nowhere/set"], "nowhere/set: there is no folder nowhere"),
        (["--check", "mine"], "mine is no golden set: it has no manifest.json"),
        (["--check", "nowhere"], "nowhere is no golden set"),
    ):
        assert_one_line(run("golden", *arguments), words)
    assert {path.name for path in here.iterdir()} == {"mine", "context.txt", "queries.jsonl", "tokens.json"}
