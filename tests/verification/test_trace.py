"""The verifier's contract: every tensor's name, shape and value, the loss, and every gradient."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import weights_loader
from helpers import TINY, random_params
from minicompress import cli
from minicompress.arrays import to_host
from minicompress.gpt2.init import shapes
from minicompress.trees import tree_map
from minicompress.verification.oracles import central_difference, relative_error
from minicompress.verification.trace import trace
from tracing import CHECKS, UNTIED, Case, forward_error, loss_error, prompt_error, soft, weight_errors

each_loss = pytest.mark.parametrize("loss", ["ce", "kl"])
each_prompt = pytest.mark.parametrize("slots", [0, 1, 4])


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


# Names and shapes.


@each_loss
@each_prompt
def test_the_tensors_are_exactly_those_of_the_contract(slots, loss):
    B, T, C, H, V = 3, 5, TINY.n_embd, TINY.n_head, TINY.vocab_size
    expected = {"logits": (B, T, V), "loss": ()}
    expected |= {f"hidden.{layer}": (B, T, C) for layer in range(3)}
    expected |= {f"attention.{layer}": (B, H, T, slots + T) for layer in range(2)}
    expected |= {"first_logits": (B, V), "grad.prompt": (slots, C)} if slots else {}
    case = Case(slots, loss)
    plain = trace(case.model, case.rows, soft(case.prompt), case.labels, case.teacher, case.context)
    assert {name: x.shape for name, x in plain.items()} == expected
    expected |= {f"grad.model.{name}": shape for name, shape in shapes(TINY).items()}
    assert {name: x.shape for name, x in case.traced.items()} == expected
    assert all(x.dtype == np.float64 and x.flags.c_contiguous for x in case.traced.values())
    assert all(np.array_equal(x, case.traced[name]) for name, x in plain.items())  # with `all`, the same and more


def test_float32_stays_float32():
    case = Case()
    model = random_params(TINY, case.rng, np.float32), TINY
    traced = trace(model, case.rows, soft(case.prompt.astype(np.float32)), case.labels, gradients="all")
    assert {x.dtype for x in traced.values()} == {np.dtype(np.float32)}


# Values.


@each_prompt
@pytest.mark.parametrize("seed", [1, 2])
def test_ragged_rows_equal_each_row_read_alone(slots, seed):
    assert forward_error(slots=slots, seed=seed) <= 1e-12


@each_prompt
def test_padding_is_0_and_no_token_looks_at_it(slots):
    tensors, lengths = Case(slots).traced, [5, 1, 3]
    for row, n in enumerate(lengths):
        for name in ("logits", "hidden.0", "hidden.1", "hidden.2"):
            assert not tensors[name][row, n:].any() and tensors[name][row, :n].all()
        attention = tensors["attention.1"][row]
        assert not attention[:, n:].any() and not attention[..., slots + n :].any()
        assert np.allclose(attention[:, :n].sum(-1), 1, atol=1e-14, rtol=0)
        assert not np.triu(attention[0, :, slots:], 1).any()


def test_the_prompt_predicts_the_same_first_token_in_every_row():
    first = Case().traced["first_logits"]
    assert (first == first[0]).all() and first.any()


# The loss.


@given(
    slots=st.integers(0, 3),
    loss=st.sampled_from(["ce", "kl"]),
    own_teacher=st.booleans(),
    rows=st.lists(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16) | st.just(-100)), min_size=1, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_loss_is_the_mean_over_the_scored_places(slots, loss, own_teacher, rows, seed):
    ids, labels = ([[pair[part] for pair in row] for row in rows] for part in (0, 1))
    options = {"slots": slots, "loss": loss, "own_teacher": own_teacher, "rows": ids, "labels": labels, "seed": seed}
    if Case(**options).places:
        assert loss_error(**options) <= 1e-12
    else:
        with pytest.raises(ValueError, match="no target is scored"):
            loss_error(**options)


@each_loss
@each_prompt
def test_labels_are_the_tokens_where_none_are_given(slots, loss):
    given, default = Case(slots, loss, labels=Case().rows), Case(slots, loss, labels=None)
    assert given.traced.keys() == default.traced.keys()
    assert all(np.array_equal(x, default.traced[name]) for name, x in given.traced.items())


@each_loss
def test_the_first_label_counts_only_behind_a_prompt(loss):
    with_first, without = [[3, 1, 4, 1, 5], [9], [2, 6, 5]], [[-100, 1, 4, 1, 5], [-100], [-100, 6, 5]]
    bare = [Case(0, loss, labels=labels).traced["loss"] for labels in (with_first, without)]
    prompted = [Case(4, loss, labels=labels).traced["loss"] for labels in (with_first, without)]
    assert bare[0] == bare[1] and prompted[0] != prompted[1]


def test_one_token_behind_one_slot_is_scored_by_the_slot_alone():
    case = Case(1, rows=[[5]], labels=[[7]])
    logits = case.traced["first_logits"][0]
    assert relative_error(case.traced["loss"], np.log(np.exp(logits).sum()) - logits[7]) <= 1e-14


def test_a_prompt_that_is_the_teachers_context_leaves_no_divergence_and_no_gradient():
    case = Case(6, "kl")
    case.prompt = case.model[0]["wte"]["weight"][case.context]
    assert abs(case.traced["loss"]) <= 1e-14
    assert max(np.abs(x).max() for name, x in case.traced.items() if name.startswith("grad")) <= 1e-13


def test_the_divergence_is_from_the_teacher_and_a_label_says_only_where():
    """Other label values change no KL; another teacher, another context, or none of its own rows, do."""
    case = Case(4, "kl", own_teacher=False)
    loss = case.traced["loss"]
    others = [[label if label == -100 else 0 for label in row] for row in case.labels]
    assert Case(4, "kl", own_teacher=False, labels=others).traced["loss"] == loss > 0
    assert Case(4, "kl").traced["loss"] != loss
    elsewhere = trace(case.model, case.rows, soft(case.prompt), case.labels, case.teacher, case.context[1:])
    assert elsewhere["loss"] != loss


# Gradients.


@each_loss
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("own_teacher", [True, False], ids=["own teacher", "other teacher"])
def test_the_gradient_of_the_prompt(slots, loss, own_teacher):
    options = {"slots": slots, "loss": loss, "own_teacher": own_teacher, "seed": 1}
    assert prompt_error(**options) <= 1e-12
    assert prompt_error(central_difference, **options) <= 1e-7


@each_loss
@each_prompt
def test_the_gradient_of_every_weight(slots, loss):
    errors = weight_errors(slots=slots, loss=loss, seed=1)
    assert errors.keys() == shapes(TINY).keys() and max(errors.values()) <= 1e-12, errors


@each_loss
@each_prompt
def test_a_head_of_its_own(slots, loss):
    """With an untied head, and an MLP of another width: every tensor, the loss and every gradient."""
    options = {"slots": slots, "loss": loss, "config": UNTIED}
    assert max(forward_error(**options), loss_error(**options)) <= 1e-13
    errors = weight_errors(**options)
    assert "lm_head.weight" in errors and errors.keys() == shapes(UNTIED).keys() and max(errors.values()) <= 1e-12, errors


def test_finite_differences_of_a_few_weights():
    errors = weight_errors(central_difference)
    for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias", "ln_f.weight"):
        assert errors[name] <= 1e-7, name


def test_gradients_are_means_over_the_places_of_rows_alone():
    """Each row traced alone, weighted by how many of its places are scored, adds up to the batch."""
    case = Case()
    whole, total = case.traced["grad.prompt"], len(case.places)
    parts = 0
    for row, labels in zip(case.rows, case.labels, strict=True):
        alone = Case(rows=[row], labels=[labels])
        parts += alone.traced["grad.prompt"] * len(alone.places) / total
    assert relative_error(parts, whole) <= 1e-13


# Mistakes, devices, and the command.


@pytest.mark.parametrize("rows, labels, slots", [([[1, 2]], [[-100, -100]], 2), ([[1], [2]], None, 0), ([[1, 2]], [[1, -100]], 0)])
def test_without_a_scored_target_there_is_nothing_to_trace(rows, labels, slots):
    with pytest.raises(ValueError, match="no target is scored"):
        Case(slots, rows=rows, labels=labels).traced  # noqa: B018


@pytest.mark.parametrize("label", [17, -1, -101])
def test_labels_outside_the_vocabulary(label):
    with pytest.raises(ValueError, match=r"labels span .*the vocabulary is 0\.\.16"):
        Case(rows=[[1, 2]], labels=[[1, label]]).traced  # noqa: B018


@each_loss
@each_prompt
def test_other_devices_trace_the_same(xp, slots, loss):
    case = Case(slots, loss)
    params, prompt = tree_map(xp.asarray, case.model[0]), None if case.prompt is None else xp.asarray(case.prompt)
    there = trace((params, TINY), case.rows, soft(prompt), case.labels, None, case.context, "all")
    assert there.keys() == case.traced.keys()
    assert all(relative_error(to_host(x), case.traced[name]) <= 1e-12 for name, x in there.items())


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-4)])
def test_the_command_reads_a_peft_folder(dtype, tolerance, tmp_path, capsys):
    case = Case()
    model, prompt, out = tmp_path / "model", tmp_path / "prompt", tmp_path / "out.safetensors"
    weights_loader.save(model, case.model[0], vars(TINY))
    prompt.mkdir()
    facts = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    (prompt / "adapter_config.json").write_text(json.dumps(facts))
    save_file({"prompt_embeddings": case.prompt}, prompt / "adapter_model.safetensors")
    for name, value in (("tokens", case.rows), ("labels", case.labels)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    cli.trace(tmp_path / "tokens.json", out, model, prompt, tmp_path / "labels.json", dtype=dtype, gradients="all", as_json=True)
    with safe_open(out, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == case.traced.keys() and {str(x.dtype) for x in found.values()} == {dtype}
    assert max(relative_error(x, case.traced[name]) for name, x in found.items()) <= tolerance
    assert json.loads(capsys.readouterr().out)["loss"] == float(found["loss"])
