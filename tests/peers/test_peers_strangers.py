"""The strangers: one who made no mistake agrees with us to rounding; each of the others is told apart on its questions."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the peers are not installed")

import naming
from strangers import CONVENTIONS, RIGHT, STRANGERS, compared, in_contract, random_setup

from minicompress.verification.oracles import relative_error
from minicompress.verification.setup import Setup
from reading import KINDS
from tracing import Case

pytestmark = pytest.mark.peers
EVERYTHING = {"temperature": 1.7, "decode": 4, "steps": {"steps": 2, "clip": 0.01, "weight_decay": 0.1}, "twice": True}
TOLERANCE = {np.float64: 1e-11, np.float32: 1e-4}


def errors(setup, rich=True):
    """{name: relative error} of the stranger without a mistake."""
    ours, theirs, _ = compared(setup, RIGHT, rich)
    ours = ours if rich else {name: x for name, x in ours.items() if in_contract(name)}
    assert ours.keys() == theirs.keys()
    assert all(x.shape == theirs[name].shape for name, x in ours.items())
    return {name: away(theirs[name], x) for name, x in ours.items()}


def away(a, b):
    """Relative, where there is something to be relative to."""
    return relative_error(a, b) if np.linalg.norm(b) > 1e-12 else float(np.linalg.norm(a))


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mistake_every_tensor_agrees(kind, loss):
    case = Case(kind=kind, loss=loss)
    setup = Setup(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context, **EVERYTHING)
    assert max(errors(setup).values()) <= 1e-11


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rich", [True, False])
def test_without_a_mistake_random_questions_agree(dtype, rich):
    """But for what rounding alone decides: a divergence next to 0, and Adam's step where the gradient is 0 (key biases)."""
    for seed in range(25):
        setup = random_setup(np.random.default_rng(seed), dtype=dtype)
        if setup.steps:
            setup = setup._replace(steps=setup.steps | {"eps": 1e-3})
        small = setup.tensors()["loss"] < 0.1
        wrong = {n: e for n, e in errors(setup, rich).items() if e > TOLERANCE[dtype] and not (small and "loss" in n)}
        assert not wrong, (seed, wrong)


@pytest.mark.parametrize("stranger", STRANGERS + CONVENTIONS, ids=lambda s: s.bug)
def test_each_mistake_shows(stranger):
    setup = random_setup(np.random.default_rng(0), stranger)
    ours, theirs, _ = compared(setup, stranger)
    named = {name for name in theirs if name not in ours}
    assert not named and all(in_contract(name) for name in theirs)
    assert any(x.shape != ours[n].shape or away(x, ours[n]) > 1e-8 for n, x in theirs.items()) or len(theirs) < len(
        ours
    )


def test_the_same_question_twice_has_the_same_answer():
    """Even of one who draws at random: it begins at the same seed."""
    stranger = next(s for s in STRANGERS if s.id == "model-in-train-mode")
    setup = random_setup(np.random.default_rng(3), stranger)
    first, second = stranger.make(setup), stranger.make(setup)
    assert all(np.array_equal(x, second[name]) for name, x in first.items())


def test_a_question_is_left_as_it_was():
    """Steps move the stranger's own copy."""
    setup = random_setup(np.random.default_rng(1), next(s for s in STRANGERS if s.id == "decay-as-l2"))
    before = replace(setup.prompt, slots=setup.prompt.slots.copy()) if setup.prompt else None
    RIGHT.make(setup)
    assert before is None or np.array_equal(before.slots, setup.prompt.slots)


def test_the_table_of_names():
    """Of one mistake and of none, asked four ways."""
    stranger = next(s for s in STRANGERS if s.id == "gelu-erf")
    lines = list(naming.table([naming.asked(one, 0, *way) for one in (stranger, RIGHT) for way in naming.WAYS]))
    assert lines[1].split() == ["detected"] + ["1/1"] * 4 and lines[2].split() == ["named"] + ["1/1"] * 4
