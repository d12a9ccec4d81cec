"""The commands as a user types them, and their JSON as a program reads it."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from test_cli_mistakes import assert_one_line

import weights_loader
from minicompress.cli.common import show
from minicompress.compression.select import SELECTORS
from minicompress.prompts.soft_prompt import SoftPrompt

PROMISED = {"slots", "context_tokens", "kl_none", "kl_init", "kl_sigma", "gap_closed", "gap_closed_interval",
            "top1_agreement", "recall_full", "recall_none", "recall_sigma", "seconds", "seconds_per_step", "steps",
            "out"}  # fmt: skip


@pytest.fixture
def prompt(run, here, quick):
    assert run("compress", "context.txt", *quick, "--out", "p.safetensors")[0] == 0
    return here / "p.safetensors"


def test_compress_gives_the_promised_keys_and_nothing_else_on_standard_output(run, here, quick):
    code, out, _ = run("compress", "context.txt", *quick, "--json", "--out", "p.safetensors")
    result = json.loads(out)
    assert code == 0 and result.keys() >= PROMISED
    assert (result["slots"], result["steps"], result["out"]) == (3, 4, "p.safetensors")
    assert result["kl_none"] > 0 and len(result["gap_closed_interval"]) == 2 and 0 <= result["top1_agreement"] <= 1
    assert 0 <= result["recall_sigma"] <= 1 and result["seconds_per_step"] > 0
    assert sorted(p.name for p in here.iterdir()) == ["context.txt", "p.safetensors", "queries.jsonl", "tokens.json"]


@pytest.mark.parametrize("options, top_k", [
    ([], None), (["--loss", "reverse-kl"], None), (["--loss", "js", "--temperature", 2], None),
    (["--loss", "top-k"], 20), (["--loss", "top-k-renormalised", "--top-k", 7], 7), (["--loss", "top-k-tail", "--top-k", 2048], 2048),
])  # fmt: skip
def test_losses_of_compress_are_in_the_prompt_s_provenance(options, top_k, run, here, quick):
    assert run("compress", "context.txt", *quick, "--out", "p.safetensors", *options)[0] == 0
    recipe = SoftPrompt.load(here / "p.safetensors").provenance["recipe"]
    assert recipe["loss"] == (options or ["", "kl"])[1] and recipe.get("top_k") == top_k


def test_weights_are_hashed_only_for_a_prompt_and_once(run, here, model, prompt, monkeypatch):
    """For the hash all files are read again."""
    calls, real = [], weights_loader.model_hash
    monkeypatch.setattr(weights_loader, "model_hash", lambda folder: (calls.append(folder), real(folder))[1])
    for arguments, times in (
        (["generate", "Tom"], 0), (["trace", "--tokens", "tokens.json", "--out", "t"], 1), (["ask", prompt, "Who?"], 1),
        (["generate", "Tom", "--prompt", prompt, "--prompt", prompt], 1),
    ):  # fmt: skip
        calls.clear()
        assert run(*arguments, "--model", model)[0] == 0 and len(calls) == times


def test_json_has_null_for_what_is_no_number(capsys):
    nan, inf = float("nan"), np.float64("inf")
    show({"a": nan, "b": [inf, 1.5, (-inf, {"c": nan})], "d": True, "e": "NaN", "n": 3, "none": None}, True, "")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": None, "b": [None, 1.5, [None, {"c": None}]], "d": True, "e": "NaN", "n": 3, "none": None}


def test_recall_is_null_without_answers(run, here, quick):
    here.joinpath("queries.jsonl").write_text("\n".join(f"Tom is a {name}." for name in "abcdef"))
    _, out, _ = run("compress", "context.txt", *quick, "--json", "--out", "p.safetensors")
    assert [json.loads(out)[f"recall_{name}"] for name in ("full", "none", "sigma")] == [None] * 3


def test_self_study_needs_no_queries(run, here, model):
    code, out, _ = run("compress", "context.txt", "--model", model, "--self-study", 8, "--slots", 2, "--steps", 2,
                       "--json", "--out", "p.safetensors")  # fmt: skip
    assert code == 0 and json.loads(out)["queries"] >= 1


def test_all_baselines(run, here, quick):
    code, out, _ = run("compress", "context.txt", *quick, "--baselines", "all", "--other", "context.txt", "--json",
                       "--out", "p.safetensors")  # fmt: skip
    assert code == 0 and json.loads(out)["rows"].keys() >= {"other", "queries", "first", "last", *SELECTORS}


@pytest.mark.parametrize("producer", [["--steps", 2], ["--producer", "random"]], ids=["gradient", "random"])
def test_the_selectors_as_rows_of_the_table(producer, run, here, quick):
    """Each as it comes out where it is the producer itself."""
    few = quick[: quick.index("--steps")]
    quick = quick if producer[0] == "--steps" else few
    code, out, err = run("compress", "context.txt", *quick, *producer, "--baselines", "selected", "--json", "--out", "p")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {*SELECTORS} <= rows.keys() and not {"other", "queries"} & rows.keys()
    for name in ("h2o", "random", "pooled-embeddings", "first-last"):
        alone = json.loads(run("compress", "context.txt", *few, "--producer", name, "--json", "--out", "q")[1])
        assert alone["rows"]["sigma"] == rows[name]
    again = run("evaluate", "p", "--context", "context.txt", "--queries", "queries.jsonl", "--model", quick[1], "--slots", 3,
                "--baselines", "selected", "--json")  # fmt: skip
    assert {*SELECTORS} <= json.loads(again[1])["rows"].keys()
    assert_one_line(run("evaluate", "p", "--context", "context.txt", "--baselines", "all"), "--baselines is 'all'")


def test_the_table_for_people(run, here, quick):
    code, out, _ = run("compress", "context.txt", *quick, "--out", "p.safetensors")
    assert code == 0 and "full context" in out and "slots, trained" in out and "written to p.safetensors" in out


def test_the_same_command_gives_the_same_slots(run, here, quick, prompt):
    run("compress", "context.txt", *quick, "--out", "q.safetensors")
    assert SoftPrompt.load(prompt).slots.tobytes() == SoftPrompt.load("q.safetensors").slots.tobytes()


def test_ask(run, here, model, prompt):
    code, out, _ = run("ask", prompt, "Who is Rex?", "--model", model, "--json")
    assert code == 0 and isinstance(json.loads(out)["answer"], str)
    assert run("ask", prompt, "Who is Rex?", "--model", model)[1].strip() == json.loads(out)["answer"]


def test_generate(run, here, model, prompt):
    plain, again, prompted, drawn = (
        json.loads(run("generate", "Tom has", "--model", model, "--tokens", 8, "--json", *more)[1])
        for more in ([], [], ["--prompt", prompt], ["--temperature", 1, "--top-k", 50, "--top-p", 0.9, "--seed", 3])
    )
    assert plain == again and len(plain["tokens"]) == len(prompted["tokens"]) == len(drawn["tokens"]) == 8
    assert drawn != plain
    assert json.loads(run("generate", "Tom", "--model", model, "--tokens", 1, "--json")[1])["tokens"]


def test_what_the_model_writes_is_shown_as_it_is(run, here, model, monkeypatch):
    """Brackets are no markup, colons no pictures, and long lines no paragraphs."""
    text = "[bold]Tom[/bold] has :dog: [red]and " * 3 + "[/]"
    code, out, _ = run("generate", text, "--model", model, "--tokens", 1)
    assert code == 0 and out.startswith(text)


def test_trace(run, here, model, prompt):
    code, out, _ = run("trace", "--model", model, "--tokens", "tokens.json", "--prompt", prompt, "--gradients", "all",
                       "--json", "--out", "t.safetensors")  # fmt: skip
    assert code == 0
    with safe_open("t.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert json.loads(out) == {"out": "t.safetensors", "loss": float(tensors["loss"]), "tensors": len(tensors)}
    assert tensors["logits"].shape == (2, 4, 2048) and tensors["grad.prompt"].shape == (3, 24)
    assert {x.dtype for x in tensors.values()} == {np.dtype("float64")} and tensors["loss"].shape == ()


def test_a_trace_needs_no_tokenizer(run, here, new_model):
    folder = new_model(1)
    (folder / "tokenizer.json").unlink()
    arguments = ["trace", "--model", folder, "--tokens", "tokens.json", "--dtype", "float32", "--out", "t.safetensors"]
    assert run(*arguments)[0] == 0
    assert run(*arguments, "--loss", "kl")[0] == 2
    (here / "context.json").write_text("[1, 2, 3]")
    assert run(*arguments, "--loss", "kl", "--teacher-context", "context.json")[0] == 0
