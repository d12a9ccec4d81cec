"""Each bug of the catalogue is made, on models and seeds of its own, and must be found and named first."""

import numpy as np
import pytest

from minicompress.verification.catalogue import BUGS
from minicompress.verification.catalogue.bug import STAGES
from minicompress.verification.compare import compare
from minicompress.verification.setup import Setup
from tracing import Case
from verifying import contract, wrong_answer

RUN = [bug for bug in BUGS if bug.stage != "chance" and bug.id not in ("prompt-detached", "encoder-frozen")]
SAME = {  # what comes to the same in some setups: one tensor, one row, one slot, a KL or a row's gradient that is 0
    "clip-missing": "clipped-per-tensor", "mask-without-offset": "mask-off-by-one", "scale-of-another-width": "scale-",
    "teacher-without-context": "kl-top-k", "positions-off-by-one": "positions-", "ignored-labels-counted": "padding-scored",
    "prompt-gradient-averaged": "prompt-detached",
}  # fmt: skip


def test_there_are_enough_and_each_says_what_it_is():
    assert len(BUGS) >= 30 and len({bug.id for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        assert bug.stage in STAGES and bug.title and bug.shows and bug.mend


@pytest.mark.parametrize("rich", [False, True], ids=["contract", "everything"])
@pytest.mark.parametrize("bug", RUN, ids=lambda bug: bug.id)
def test_every_bug_is_named_first(bug, rich):
    for seed in range(2):
        setup, reference, suspect, variant = wrong_answer(bug, seed)
        found = compare(reference, suspect if rich else contract(suspect), setup)
        named = found.causes[0].id if found.causes else None
        assert not found.equal and (named == bug.id or named.startswith(SAME.get(bug.id, "-"))), (variant, found.first, found.causes[:2])


def case(**options):
    case = Case(**options)
    return Setup(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context)


@pytest.mark.parametrize("lost", ["zero", "missing"])
def test_a_detached_prompt(lost):
    setup = case()
    reference = setup.tensors()
    suspect = contract(reference)
    suspect["grad.prompt"] = 0 * suspect["grad.prompt"]
    if lost == "missing":
        del suspect["grad.prompt"]
    found = compare(reference, suspect, setup)
    assert found.causes[0].id == "prompt-detached" and found.first.name == "grad.prompt"


@pytest.mark.parametrize("drawn, stays, cause", [
    (("logits", "hidden.0", "loss"), (), "model-in-train-mode"), (("loss", "teacher_log_probs"), ("logits",), "teacher-in-train-mode"),
    (("prompt", "logits"), ("hidden.0",), "encoder-in-train-mode"),
])  # fmt: skip
def test_what_is_drawn_by_chance(drawn, stays, cause, rng):
    setup = case(loss="kl")
    reference = setup.tensors()
    again = {f"again.{name}": reference[name] for name in stays}
    again |= {f"again.{name}": reference[name] * (1 + 0.1 * rng.standard_normal(reference[name].shape)) for name in drawn}
    found = compare(reference, reference | again, setup)
    assert found.causes[0].id == cause and found.first.name.startswith("again.")


def test_the_second_forward_of_a_right_one_is_silent():
    setup = case(loss="kl")._replace(twice=True)
    assert compare(setup.tensors(), setup.tensors(), setup).equal


def test_half_precision_is_told_from_a_structure():
    setup = case(slots=0)
    reference = setup.tensors()
    rounded = {name: x.astype(np.float16).astype(np.float32) for name, x in reference.items()}
    found = compare(reference, rounded, setup)
    assert found.causes[0].id == "float16-accumulation"


def test_conventions_are_called_so():
    by_id = {bug.id: bug for bug in BUGS}
    in_embeddings, in_kv = case(), case(kind="kv")
    assert not by_id["positions-unshifted"].convention(in_embeddings) and by_id["positions-unshifted"].convention(in_kv)
    for name in ("kl-top-k", "loss-summed", "first-token-unscored"):
        assert by_id[name].convention(in_kv)


def test_without_a_setup_the_first_difference_is_still_named():
    setup, reference, suspect, _ = wrong_answer(next(bug for bug in BUGS if bug.id == "gelu-erf"), 0)
    found = compare(reference, contract(suspect))
    assert found.first.name == "hidden.1" and not any(cause.id == "gelu-erf" for cause in found.causes)
