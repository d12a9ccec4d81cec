"""The GPT-2 in the open is the same as the one that is fast, in every number, wherever slots and padding stand."""

from dataclasses import fields

import numpy as np
import pytest

from minicompress.verification.compare import compare
from minicompress.verification.oracles import relative_error
from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.forward import RIGHT, Way
from minicompress.verification.plain.steps import decode, take_steps
from minicompress.verification.setup import Setup
from reading import KINDS
from tracing import TINY, UNTIED, Case
from verifying import random_setup


def setup_of(kind, loss, config=TINY):
    case = Case(kind=kind or "embeddings", slots=4 if kind else 0, loss=loss, config=config, own_teacher=config is UNTIED)
    steps = {"steps": 3, "lr": 0.1, "weight_decay": 0.1, "clip": 0.5} if kind else None
    return Setup(case.model, case.rows, case.prompt, case.labels, case.teacher, case.context,
                 temperature=1.7 if loss == "kl" else 1.0, decode=4, steps=steps)  # fmt: skip


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_every_number_is_the_traces(kind, loss, config, left):
    """Padding on the left, masked and without positions of its own, changes nothing."""
    setup = setup_of(kind, loss, config)
    theirs = setup.tensors()
    ours = answer(setup, Way(left=left)) | decode(setup) | (take_steps(setup) if setup.steps else {})
    assert set(theirs) - set(ours) <= {"prompt", "prompt.beta"} and set(ours) <= set(theirs)
    assert max(relative_error(ours[name], theirs[name]) for name in ours) <= 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_implementations_are_silent(dtype):
    for seed in range(40):
        setup = random_setup(np.random.default_rng((seed, 1)), dtype)
        try:
            reference = setup.tensors()
        except ValueError:
            continue
        found = compare(reference, answer(setup), setup)
        assert found.equal and not found.causes, (seed, found.first)


def test_a_field_is_right_by_default():
    assert all(getattr(RIGHT, field.name) == field.default for field in fields(Way))
