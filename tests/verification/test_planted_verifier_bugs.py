"""Bugs planted in the verifier itself: what compares must be as sharp as what it compares."""

from dataclasses import replace

import numpy as np
import pytest

from minicompress.verification import compare, diagnosis, layouts, names, oracles, repeated, tolerance, trace, walk
from minicompress.verification.catalogue import BUGS as CATALOGUE
from minicompress.verification.oracles import relative_error
from minicompress.verification.plain import backward, costs, forward, steps
from minicompress.verification.plain.forward import Way
from minicompress.verification.setup import Setup
from test_planted_bugs import Bug, planted_error
from tracing import TINY, Case, laid_out
from verifying import STEPS, contract, made, random_setup


def setup_of(kind="embeddings", loss="kl", **fields):
    case = Case(kind=kind, loss=loss, own_teacher=False)
    return Setup(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context, temperature=1.7 if loss == "kl" else 1.0, **fields)


def plain_error(kind="embeddings", loss="kl", **fields):
    """How far the plain GPT-2 is from the fast one, in the worst of all tensors."""
    setup = setup_of(kind, loss, **fields)
    theirs = setup.tensors()
    ours = backward.answer(setup, Way(left=fields == {})) | (steps.decode(setup) if setup.decode else {})
    ours |= steps.take_steps(setup) if setup.steps else {}
    return max(relative_error(ours[name], x) for name, x in theirs.items() if name in ours)


def silent(dtype=np.float64, **options):
    """The number of right pairs that are called different."""
    alarms = 0
    for seed in range(12):
        setup = random_setup(np.random.default_rng((seed, 4)), dtype, **options)
        try:
            reference = setup.tensors()
        except ValueError:
            continue
        alarms += not compare.compare(reference, backward.answer(setup), setup).equal
    return alarms


def found(name, change, **options):
    """0 where a change of one tensor is the first difference, else 1."""
    setup = setup_of(**options)
    reference = setup.tensors()
    suspect = reference | {name: change(reference[name].copy())}
    first = compare.compare(reference, suspect, setup).first
    return float(first is None or first.name != name)


def first_of_two():
    """0 where the first of two tensors that differ is called the first."""
    reference = setup_of().tensors()
    suspect = reference | {name: 2 * reference[name] for name in ("hidden.1", "logits")}
    return float(compare.compare(reference, suspect).first.name != "hidden.1")


def infinity_lost():
    """0 where a number in the place of an infinity is a difference."""
    reference = setup_of().tensors()
    lost, reference["logits"] = reference["logits"], reference["logits"].copy()
    reference["logits"][0, 0, 0] = np.inf
    return float(compare.compare(reference, {"logits": lost}).equal)


def step_by_step(kind):
    """How far the second loss of two steps is from the loss behind what one step has made."""
    setup = setup_of(kind)._replace(steps={"steps": 2, "lr": 0.1})
    two, one = setup.tensors(), setup._replace(steps={"steps": 1, "lr": 0.1}).tensors()
    slots = one["after.prompt"] if kind == "embeddings" else laid_out(one["after.prompt"], TINY)
    after = setup._replace(prompt=replace(setup.prompt, slots=slots), steps=None).tensors()
    return relative_error(two["steps.loss"][1], after["loss"])


def one_off(by):
    def change(x):
        x[..., 0] *= 1 + by
        return x

    return change


def named(id, variant, **options):
    """1 less the score of a mistake that is made, and named first."""
    bug, setup = next(b for b in CATALOGUE if b.id == id), setup_of(**options)
    reference = setup.tensors()
    causes = compare.compare(reference, contract(made(bug, setup, bug.ways(setup, None)[variant])), setup).causes
    return 1 - causes[0].score if causes and causes[0].id == id else 1.0


def read(theirs, **options):
    """0 where a right trace in another layout is equal."""
    reference = setup_of(**options).tensors()
    return float(not compare.compare(reference, theirs(reference)).equal)


def left_padded(t):
    out = {name: np.zeros_like(t[name]) for name in ("hidden.0", "logits", "query.0")}
    for row, n in enumerate((5, 1, 3)):
        for name, x in out.items():
            x[row, ..., 5 - n :, :] = t[name][row, ..., :n, :]
    return out


CHECKS = {
    "plain, embeddings": plain_error,
    "plain, tokens": lambda: plain_error(loss="ce"),
    "plain, hidden": lambda: plain_error("hidden"),
    "plain, masses": lambda: plain_error("kv with masses, logical"),
    "plain, in rows": lambda: plain_error("in rows"),
    "plain, decoding": lambda: plain_error(decode=4),
    "plain, steps": lambda: plain_error(steps=STEPS | {"weight_decay": 0.1}),
    "silent in float64": silent,
    "silent in float32": lambda: silent(np.float32),
    "a part in 1e9 of a weight's gradient": lambda: found("grad.model.h.1.mlp.c_fc.weight", one_off(1e-9)),
    "a part in 1e9 of a state": lambda: found("hidden.1", one_off(1e-9)),
    "a part in 1e11 of a weight's gradient": lambda: found("grad.model.h.1.mlp.c_fc.weight", one_off(1e-11)),
    "the first of two": first_of_two,
    "an infinity lost": infinity_lost,
    "steps, one by one": lambda: step_by_step("embeddings"),
    "steps, one by one, keys and values": lambda: step_by_step("kv"),
    "no gradient of the prompt": lambda: found("grad.prompt", lambda x: 0 * x),
    "not a number": lambda: found("logits", lambda x: np.where(x > 0, np.nan, x)),
    "the keys' bias with a prefix": lambda: found("grad.model.h.0.attn.c_attn.bias", lambda x: np.r_[x[:12], 2 * x[12:24], x[24:]], kind="kv"),
    "a mask off by one": lambda: named("mask-off-by-one", "sees the next token"),
    "one sum forgotten": lambda: named("softmax-backward", "no sum"),
    "T² forgotten": lambda: named("kl-without-t2", "1"),
    "a stale cache": lambda: named("cache-stale", "new keys are never kept", decode=4),
    "decay": lambda: named("adamw-decays-prompt", "0.1", steps=STEPS),
    "turned weights": lambda: read(lambda t: {f"grad.transformer.{n[11:]}": x.T for n, x in t.items() if n.startswith("grad.model.h.") and x.ndim == 2}),
    "outputs of blocks": lambda: read(lambda t: {"transformer.h.0": t["hidden.1"], "transformer.h.1": t["hidden.2"]}),
    "left padding": lambda: read(left_padded),
    "padding of any kind": lambda: read(lambda t: {"logits": np.where(t["logits"].any(-1, keepdims=True), t["logits"], 9.0)}),
    "rows for the slots": lambda: read(lambda t: {"hidden.1": np.pad(t["hidden.1"], [(0, 0), (4, 0), (0, 0)])}),
    "one weight turned": lambda: 1 - read(lambda t: {"grad.model.h.1.attn.c_proj.weight": t["grad.model.h.1.attn.c_proj.weight"].T, "grad.model.h.1.mlp.c_fc.weight": t["grad.model.h.1.mlp.c_fc.weight"]}),
}  # fmt: skip
BUGS = [
    # comparing
    Bug("half of the error is dropped", "a part in 1e9 of a state", oracles.error_of, "relative_error(x[finite], truth[finite])", "relative_error(x[finite][-1:], truth[finite][-1:])"),
    Bug("what is not finite is passed over", "an infinity lost", oracles.error_of, 'return float("inf")', "pass"),
    Bug("every keys' bias is left out", "the keys' bias with a prefix", compare.without_noise, 'not name.startswith("grad.") or', "True or"),
    Bug("the last difference for the first", "the first of two", walk.place_of, "1, 2 * int(rest), name", "5, 2 * int(rest), name"),
    Bug("doubts settle everything", "a part in 1e11 of a weight's gradient", compare.looked_at_again, "MEASURED * seen.get(one.name, 0)", "1e-3"),
    # tolerances
    Bug("everything rounds alike", "silent in float32", tolerance.Tolerances, "ROUNDOFF[self.bytes]", "ROUNDOFF[8]"),
    Bug("every dtype is the coarsest", "a part in 1e9 of a weight's gradient", tolerance.Tolerances, "ROUNDOFF[self.bytes]", "ROUNDOFF[2]"),
    Bug("tolerances without end", "no gradient of the prompt", tolerance.Tolerances, "tolerance *= self.cancels", "tolerance *= 1e30"),
    # naming
    Bug("the right is explained best", "one sum forgotten", diagnosis.share_explained, "np.linalg.norm(theirs - made)", "np.linalg.norm(ours - made)"),
    Bug("the reference explains itself", "a mask off by one", diagnosis.explained, "share_explained(theirs, ours, made,", "share_explained(theirs, ours, ours,"),
    Bug("mistakes behind the loss are not tried", "one sum forgotten", diagnosis.Evidence, "STAGES[first : last + 1]", "STAGES[first:last]"),
    Bug("every Way has the right forward pass", "a mask off by one", diagnosis.same_forward, "getattr(way, name) == getattr(RIGHT, name)", "True"),
    Bug("steps are taken the right way only", "decay", diagnosis.predicted, 'take_steps(setup, way) if bug.stage == "steps"', 'take_steps(setup) if bug.stage == "steps"'),
    Bug("text is written the right way only", "a stale cache", diagnosis.predicted, "decode(setup, way)", "decode(setup)"),
    Bug("the power of T is always 2", "T² forgotten", backward.answer, "setup.temperature**power", "setup.temperature**2"),
    # names and layouts
    Bug("weights are never turned", "turned weights", layouts.layouts, 'yield "transposed", tensor.T', "pass"),
    Bug("a block's output for its input", "outputs of blocks", names.one_name, "int(match[1]) + 1", "int(match[1])"),
    Bug("left padding stays", "left padding", layouts.moved_left, "one[slots + shape.T - n :]", "one[slots : slots + n]"),
    Bug("padding counts", "padding of any kind", layouts.without_padding, "np.where(real, tensor, tensor.dtype.type(0))", "tensor"),
    Bug("the slots' rows stay", "rows for the slots", layouts.cut, "[shape.P :]", "[: -shape.P]"),
    Bug("each weight as it likes", "one weight turned", names.one_reading_of_squares, "if clear and not any(clear)", "if False"),
    # the plain GPT-2
    Bug("slots see the tokens", "plain, embeddings", forward.causal, "column <= column[:, None]", "column <= np.maximum(column[:, None], 4)"),
    Bug("left padding is seen", "plain, embeddings", forward.causal, "& ~gap[:, None]", ""),
    Bug("masses are left out", "plain, masses", forward.block, "masses[:, : layout.P] = past[1]", "pass"),
    Bug("hidden slots in the first block alone", "plain, hidden", forward.forward, "x = np.concatenate([np.broadcast_to(slots[number]", "x = np.concatenate([np.broadcast_to(slots[0]"),
    Bug("the first slot for all in the rows", "plain, in rows", forward.embedded, "slots[np.maximum(-1 - ids, 0)]", "slots[0 * ids]"),
    Bug("what a slot is asked, of one row", "plain, hidden", forward.Way, "d.sum(0)", "d[0]"),
    Bug("the residual's gradient lost", "plain, tokens", backward.block_backward, "way.residual[1] * dmiddle + ", ""),
    Bug("places behind the token", "plain, tokens", costs.predictor, "np.maximum(t - 1, 0)", "t"),
    Bug("the teacher's word for the token before", "plain, embeddings", backward.teacher_logits, "len(context) + np.array(hard) - 1", "len(context) + np.array(hard) - 2"),
    Bug("written tokens do not move on", "plain, decoding", steps.written_on, "row.append(int(token))", "row.append(0)"),
    Bug("decay before the moments", "plain, steps", steps.move, "1 - lr * decay", "1 - decay"),
    # the fast one's second kind of trace
    Bug("decoding without the prompt", "plain, decoding", repeated.decoded, "prompt and prompt.prefix(*model)", "None"),
    Bug("steps that stand still", "steps, one by one", repeated.moved, 'slots=slots, beta=tree.get("beta")', 'beta=tree.get("beta")'),
    Bug("keys and values step in another layout", "steps, one by one, keys and values", repeated.moved, "kv_from_flat(tree[\"prompt\"], config.n_layer, config.n_head)", "kv_from_flat(tree[\"prompt\"][:, ::-1], config.n_layer, config.n_head)"),
    Bug("losses a place too early", "plain, tokens", trace.spread, "like(np.flatnonzero(scored), values)", "like(np.flatnonzero(np.roll(scored, -1)), values)"),
    Bug("keys without the slots'", "plain, masses", trace.inside_block, "own if not past else xp.concatenate(", "own if True else xp.concatenate("),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    with np.errstate(all="ignore"):
        assert not planted_error(bug, CHECKS, monkeypatch, (ValueError, IndexError, KeyError)) <= 1e-10
