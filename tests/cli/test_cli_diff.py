"""`trace` and `diff` as a user types them: right, wrong, in other layouts, without the model, and mistaken."""

import json
import zipfile

import numpy as np
import pytest
from test_cli_mistakes import assert_one_line

from minicompress import commands
from minicompress.prompts.parameterisations import ptuning_mlp
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.catalogue import BUGS
from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.forward import Way
from minicompress.verification.trace_file import read_trace, write_trace
from verifying import contract
from weights_loader import model_hash


@pytest.fixture
def traced(run, here, model, rng):
    """traced(*options) -> the facts of a trace ours.safetensors of rows behind a prompt."""
    slots = rng.standard_normal((3, 24)).astype(np.float32)
    SoftPrompt(slots, provenance={"model": model_hash(model)}).save("prompt")

    def trace(*options, out="ours.safetensors"):
        asked = ["--model", model, "--tokens", "tokens.json", "--prompt", "prompt", "--gradients", "all", *options]
        assert run("trace", *asked, "--out", out)[0] == 0
        return read_trace(out)

    return trace


def bug(name):
    return next(bug for bug in BUGS if bug.id == name)


def write_wrong(facts, way, path="theirs.safetensors", keep=contract):
    setup, _ = commands.open_setup(facts)
    write_trace(path, keep(answer(setup, way)))


def test_a_right_trace_is_equal(run, traced):
    traced()
    traced("--dtype", "float32", out="single.safetensors")
    code, out, _ = run("diff", "ours.safetensors", "single.safetensors")
    assert code == 0 and out.startswith("equal: ") and len(out.splitlines()) == 1
    code, out, _ = run("diff", "ours.safetensors", "single.safetensors", "--all")
    assert code == 0 and "attention.1" in out and "tolerance" in out and "grad.prompt" in out


def test_a_wrong_one_is_named_in_words_and_in_json(run, traced):
    _, facts = traced()
    write_wrong(facts, next(iter(bug("gelu-erf").ways(None, None).values())))
    code, out, _ = run("diff", "ours.safetensors", "theirs.safetensors")
    assert code == 1 and "hidden.1 first" in out and "100% gelu-erf" in out and "approximate" in out
    code, out, err = run("diff", "ours.safetensors", "theirs.safetensors", "--json")
    found = json.loads(out)
    assert code == 1 and found["equal"] is False and found["first"]["name"] == "hidden.1"
    assert found["first"]["error"] > found["first"]["tolerance"] > 0 and not err.strip()
    assert found["causes"][0]["id"] == "gelu-erf" and found["causes"][0]["score"] > 0.99


def test_npz_of_a_port_under_its_own_names(run, traced):
    tensors, _ = traced()
    np.savez("theirs.npz", **{f"hidden_states.{n}": tensors[f"hidden.{n}"] for n in range(2)}, lm_head=tensors["logits"])
    assert run("diff", "ours.safetensors", "theirs.npz")[0] == 0


def test_a_second_kind_of_trace(run, traced):
    tensors, _ = traced("--twice", "--decode", 4, "--steps", 3, "--clip", 0.1)
    assert {"again.logits", "decoded", "decoded_logits", "after.prompt", "adam.m.prompt", "steps.loss"} <= set(tensors)
    decayed = tensors | {"after.prompt": tensors["after.prompt"] - 0.01 * 0.01 * 3 * tensors["prompt"]}
    write_trace("theirs.safetensors", decayed)
    found = json.loads(run("diff", "ours.safetensors", "theirs.safetensors", "--json")[1])
    assert found["first"]["name"] == "after.prompt" and found["causes"][0]["id"] == "adamw-decays-prompt"


def test_temperature_and_teacher(run, here, traced):
    (here / "context.json").write_text("[3, 1, 4]")
    _, facts = traced("--loss", "kl", "--teacher-context", "context.json", "--temperature", 2)
    setup, _ = commands.open_setup(facts)
    write_wrong(facts, bug("kl-without-t2").ways(setup, None)["1"])
    found = json.loads(run("diff", "ours.safetensors", "theirs.safetensors", "--json")[1])
    assert found["causes"][0]["id"] == "kl-without-t2"


def test_a_model_that_has_gone_or_changed_is_said(run, traced, new_model, model):
    _, facts = traced()
    write_wrong(facts, Way(final_norm=False))
    tensors, _ = read_trace("ours.safetensors")
    write_trace("moved.safetensors", tensors, facts | {"model": "/nowhere"})
    code, out, err = run("diff", "moved.safetensors", "theirs.safetensors")
    assert code == 1 and "logits first" in out and "/nowhere" in err and "--model" in err
    code, out, _ = run("diff", "moved.safetensors", "theirs.safetensors", "--model", model)
    assert code == 1 and "final-norm-missing" in out
    code, _, err = run("diff", "moved.safetensors", "theirs.safetensors", "--model", new_model(5))
    assert code == 1 and "this one is" in err  # the prompt, made for another model, says it first
    traced_bare = facts | {"prompt": None, "model": str(new_model(5))}
    write_trace("changed.safetensors", tensors, traced_bare)
    assert "the model is not, or no longer, the one that was traced" in run("diff", "changed.safetensors", "theirs.safetensors")[2]


def test_a_bare_reference_takes_the_suspects_facts(run, traced):
    tensors, _ = traced()
    np.savez("bare.npz", **contract(tensors))
    assert run("diff", "bare.npz", "ours.safetensors")[0] == 0


def test_another_prompt_in_the_file_is_noticed(run, traced, model, rng):
    _, facts = traced()
    write_wrong(facts, Way(softmax_sum=False))
    SoftPrompt(rng.standard_normal((3, 24)).astype(np.float32), provenance={"model": model_hash(model)}).save("prompt")
    code, _, err = run("diff", "ours.safetensors", "theirs.safetensors")
    assert code == 1 and "the prompt is not, or no longer, the one that was traced" in err


def test_what_was_not_compared_is_said(run, traced):
    tensors, _ = traced()
    np.savez("theirs.npz", loss=tensors["loss"], my_hidden=tensors["hidden.0"], **{"h.0.attn.c_attn.weight.grad": tensors["grad.model.h.0.attn.c_attn.weight"].T})
    code, out, _ = run("diff", "ours.safetensors", "theirs.npz")
    assert code == 0 and "not compared, for want of a known name: my_hidden" in out and "read otherwise: transposed (1)" in out


def test_mistakes_are_one_line(run, here, traced, tmp_path):
    traced()
    (here / "words.txt").write_text("no tensors")
    np.savez("other.npz", mine=np.ones(3))
    np.savez("words.npz", logits=np.array(["a"]))
    with zipfile.ZipFile("model.pt", "w") as file:
        file.writestr("model/data.pkl", b"not opened")
    np.savez("objects.npz", logits=np.array([{}], dtype=object))
    for file, *words in (("words.txt", "words.txt is no trace"), ("model.pt", "is a zip file, but no .npz"), ("other.npz", "share no tensor", "mine"), ("words.npz", "real numbers"),
                         ("objects.npz", "objects.npz"), (tmp_path, "is a folder"), ("nothing", "nothing")):  # fmt: skip
        assert_one_line(run("diff", "ours.safetensors", file), *words)
    assert_one_line(run("diff", "ours.safetensors", "ours.safetensors", "--model", "gone"), "there is no gone")
    (here / "tokens.json").write_text("[[5, 6, 7, 9], [9, 10]]")
    traced(out="other.safetensors")
    assert_one_line(run("diff", "ours.safetensors", "other.safetensors"), "traces of different tokens")
    for options, *words in ((["--temperature", 2], "--temperature belongs"), (["--decode", -1], "--decode"), (["--decode", 600], "n_positions"),
                            (["--steps", 1, "--lr", "nan"], "--lr"), (["--steps", 1, "--clip", 0], "--clip is 0")):  # fmt: skip
        assert_one_line(run("trace", "--tokens", "tokens.json", "--out", "t", *options), *words)
        assert not (here / "t").exists()


def test_a_prompt_with_an_encoder_shows_its_gradients(run, traced, model, rng):
    raw = ptuning_mlp.init(rng, 3, 24, 6, np.float32)
    SoftPrompt(ptuning_mlp.bake(raw)[0], raw=raw, provenance={"model": model_hash(model)}).save("prompt")
    tensors, _ = traced()
    raws = {name for name in tensors if name.startswith("grad.raw.")}
    assert {"grad.raw.embedding.weight", "grad.raw.mlp_head.0.weight", "grad.raw.mlp_head.4.bias"} <= raws
    frozen = {name: 0 * x if name.startswith("grad.raw.mlp_head") else x for name, x in contract(tensors).items()}
    write_trace("theirs.safetensors", frozen | {name: 0 * tensors[name] for name in raws if "mlp_head" in name})
    found = json.loads(run("diff", "ours.safetensors", "theirs.safetensors", "--json")[1])
    assert found["causes"][0]["id"] == "encoder-frozen"
