"""The verifier's contract: every tensor's name, shape and value, the loss, and every gradient."""

import json
from dataclasses import replace

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
from reading import KINDS
from tracing import CHECKS, UNTIED, Case, forward_error, loss_error, prompt_error, weight_errors

each_loss = pytest.mark.parametrize("loss", ["ce", "kl"])
each_prompt = pytest.mark.parametrize("slots", [0, 1, 4])
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


# Names and shapes.


@each_loss
@each_kind
def test_the_tensors_are_exactly_those_of_the_contract(kind, loss):
    """Only embeddings in front predict a first token; keys and values have PEFT's flat gradient, masses their own."""
    case = Case(4, loss, kind=kind)
    expected = contract(case)
    plain = trace(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context)
    assert {name: x.shape for name, x in plain.items()} == expected
    expected |= {f"grad.model.{name}": shape for name, shape in shapes(TINY).items()}
    assert {name: x.shape for name, x in case.traced.items()} == expected
    assert all(x.dtype == np.float64 and x.flags.c_contiguous for x in case.traced.values())
    assert all(np.array_equal(x, case.traced[name]) for name, x in plain.items())  # with `all`, the same and more


@each_loss
def test_the_tensors_without_a_prompt(loss):
    case = Case(0, loss)
    expected = contract(case) | {f"grad.model.{name}": shape for name, shape in shapes(TINY).items()}
    assert {name: x.shape for name, x in case.traced.items()} == expected


def contract(case):
    """{name: shape} of everything a trace of this case writes but the weights' gradients."""
    B, T, L, C, H, V = len(case.rows), max(map(len, case.rows)), TINY.n_layer, TINY.n_embd, TINY.n_head, TINY.vocab_size
    kind, P = case.kind, case.slots
    S, D = T if kind == "in rows" else P + T, C // H
    stream, wide = ("hidden", "grad.hidden"), {"fc": 4 * C, "gelu": 4 * C}
    named = {"logits": (B, T, V), "losses": (B, T), "loss": (), "ln_f": (B, T, C), "grad.ln_f": (B, T, C)}
    named |= {f"{name}.{layer}": (B, T, C) for name in stream for layer in range(L + 1)}
    for layer in range(L):
        named |= {f"{name}.{layer}": (B, T, wide.get(name, C)) for name in ("ln_1", "attended", "middle", "ln_2", *wide)}
        named |= {f"query.{layer}": (B, H, T, D), f"attention.{layer}": (B, H, T, S)}
        named |= {f"{name}.{layer}": (B, H, S, D) for name in ("key", "value")}
    named |= {"teacher_log_probs": (B, T, V)} if case.loss == "kl" else {}
    named |= {"first_logits": (B, V)} if P and kind.startswith("embeddings") else {}
    if P:
        laid = {"kv": (P, 2 * L * C), "hidden": (L, P, C)}.get(kind.split(",")[0].split(" with")[0], (P, C))
        named |= {"prompt": laid, "grad.prompt": laid}
        named |= {"prompt.beta": (L, H, P), "grad.beta": (L, H, P)} if "masses" in kind else {}
    return named


@each_kind
def test_float32_stays_float32(kind):
    case = Case(kind=kind)
    model, small = (random_params(TINY, case.rng, np.float32), TINY), lambda x: None if x is None else x.astype("f4")
    prompt = replace(case.prompt, slots=small(case.prompt.slots), beta=small(case.prompt.beta))
    traced = trace(model, case.rows, prompt, case.labels, gradients="all")
    assert {x.dtype for x in traced.values()} == {np.dtype(np.float32)}


# Values.


@each_prompt
@pytest.mark.parametrize("seed", [1, 2])
def test_ragged_rows_equal_each_row_read_alone(slots, seed):
    assert forward_error(slots=slots, seed=seed) <= 1e-12


@each_kind
@pytest.mark.parametrize("P", [1, 5])
def test_every_carrier_equals_each_row_read_the_plain_way(kind, P):
    assert forward_error(slots=P, kind=kind, seed=3) <= 1e-12


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
    case.prompt = replace(case.prompt, slots=case.model[0]["wte"]["weight"][case.context])
    assert abs(case.traced["loss"]) <= 1e-14
    assert max(np.abs(x).max() for name, x in case.traced.items() if name.startswith("grad")) <= 1e-13


def test_the_divergence_is_from_the_teacher_and_a_label_says_only_where():
    """Other label values change no KL; another teacher, another context, or none of its own rows, do."""
    case = Case(4, "kl", own_teacher=False)
    loss = case.traced["loss"]
    others = [[label if label == -100 else 0 for label in row] for row in case.labels]
    assert Case(4, "kl", own_teacher=False, labels=others).traced["loss"] == loss > 0
    assert Case(4, "kl").traced["loss"] != loss
    elsewhere = trace(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context[1:])
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
@each_kind
@pytest.mark.parametrize("slots", [1, 4])
def test_the_gradient_of_slots_of_every_carrier(kind, slots, loss):
    options = {"slots": slots, "loss": loss, "kind": kind, "own_teacher": False, "seed": 1}
    assert prompt_error(**options) <= 1e-12
    assert prompt_error(central_difference, **options) <= 1e-7


@given(kind=st.sampled_from(KINDS), loss=st.sampled_from(["ce", "kl"]), slots=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_finite_differences_of_slots(kind, loss, slots, seed):
    assert prompt_error(central_difference, kind=kind, loss=loss, slots=slots, seed=seed) <= 1e-6


@each_loss
@each_prompt
def test_the_gradient_of_every_weight(slots, loss):
    errors = weight_errors(slots=slots, loss=loss, seed=1)
    assert errors.keys() == shapes(TINY).keys() and max(errors.values()) <= 1e-12, errors


@each_loss
@each_kind
def test_the_gradient_of_every_weight_behind_every_carrier(kind, loss):
    errors = weight_errors(slots=3, loss=loss, kind=kind, seed=1)
    assert errors.keys() == shapes(TINY).keys() and max(errors.values()) <= 1e-12, errors


@each_loss
@each_kind
def test_every_carrier_with_a_head_of_its_own(kind, loss):
    options = {"slots": 3, "loss": loss, "config": UNTIED, "kind": kind}
    assert max(forward_error(**options), loss_error(**options), prompt_error(**options)) <= 1e-13


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


@pytest.mark.parametrize("kind, lowest", [("embeddings", 0), ("hidden", 0), ("kv", 0), ("in rows", -4)])
def test_ids_that_name_neither_a_token_nor_a_slot(kind, lowest):
    """Slots stand in rows only where the prompt's template says so; whatever the labels, the ids are looked at first."""
    case = Case(kind=kind)
    for labels in (None, [[1, 2]], [[-100, -100]]):
        with pytest.raises(ValueError, match=rf"token ids span {lowest - 1}\.\.1; the vocabulary is 0\.\.16"):
            trace(case.model, [[1, lowest - 1]], case.prompt, labels)


def test_a_teacher_reads_rows_without_their_slots():
    """The teacher's distributions behind 'a slot b', as behind 'a b'; a slot itself cannot be scored against them."""
    case = Case(2, "kl", own_teacher=False, kind="in rows", rows=[[4]], labels=[[4]])
    traced = lambda rows, labels: trace(case.model, rows, case.prompt, labels, case.teacher, case.context)["loss"]
    assert traced([[3, -1, -2, 5]], [[-100, -100, -100, 5]]) != traced([[3, -1, 5]], [[-100, -100, 5]])
    logits = trace(case.teacher, [case.context + [3, 5]])["logits"][0, -2]  # the teacher's, before 5
    for row in ([3, -1, -2, 5], [-1, 3, 5], [3, -2, -2, -1, 5], [3, -1, 5, -2]):
        labels = [[5 if i == 5 else -100 for i in row]]
        ours = trace(case.model, [row], case.prompt, labels)["logits"][0, row.index(5) - 1]
        p, q = (x - np.log(np.exp(x).sum()) for x in (logits, ours))
        assert relative_error(traced([row], labels), (np.exp(p) * (p - q)).sum()) <= 1e-13
    with pytest.raises(ValueError, match="row 1, place 2: a slot is scored, and the teacher has no token there; label it -100"):
        traced([[1, 2], [3, 4, -1]], [[-100, 2], [-100, 4, 4]])


@pytest.mark.parametrize("label", [17, -1, -101])
def test_labels_outside_the_vocabulary(label):
    with pytest.raises(ValueError, match=r"labels span .*the vocabulary is 0\.\.16"):
        Case(rows=[[1, 2]], labels=[[1, label]]).traced  # noqa: B018


@each_loss
@each_prompt
def test_other_devices_trace_the_same(xp, slots, loss):
    case = Case(slots, loss)
    equal_there(xp, case)


@each_loss
@each_kind
def test_other_devices_trace_every_carrier_the_same(xp, kind, loss):
    equal_there(xp, Case(3, loss, kind=kind))


def equal_there(xp, case):
    params, prompt, there = tree_map(xp.asarray, case.model[0]), case.prompt, lambda x: None if x is None else xp.asarray(x)
    if prompt:
        prompt = replace(prompt, slots=there(prompt.slots), beta=there(prompt.beta))
    there = trace((params, TINY), case.rows, prompt, case.labels, None, case.context, "all")
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
    save_file({"prompt_embeddings": case.prompt.slots}, prompt / "adapter_model.safetensors")
    for name, value in (("tokens", case.rows), ("labels", case.labels)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    cli.trace(tmp_path / "tokens.json", out, model, prompt, tmp_path / "labels.json", dtype=dtype, gradients="all", as_json=True)
    with safe_open(out, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == case.traced.keys() and {str(x.dtype) for x in found.values()} == {dtype}
    assert max(relative_error(x, case.traced[name]) for name, x in found.items()) <= tolerance
    assert json.loads(capsys.readouterr().out)["loss"] == float(found["loss"])
