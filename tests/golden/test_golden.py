"""Against PyTorch's numbers in a file; each tolerance is about ten times the error that was seen."""

import pytest

from checks import GOLDEN, golden, golden_step
from minicompress.trees import flatten
from minicompress.verification.oracles import relative_error

TOLERANCES = {"logits": 1e-14, "loss": 3e-15, "grads.slots": 1.5e-14}
WEIGHT_GRADIENT = 3e-14


@pytest.fixture(scope="module")
def ours():
    return flatten(golden_step())


def names():
    return [name for name in flatten(golden()[0]) if name.startswith(("logits", "loss", "grads"))]


@pytest.mark.parametrize("name", names())
def test_equal_to_pytorch(name, ours):
    told = flatten(golden()[0])[name]
    assert ours[name].shape == told.shape
    assert relative_error(ours[name], told) <= TOLERANCES.get(name, WEIGHT_GRADIENT)


def test_nothing_is_missing(ours):
    assert ours.keys() == set(names())


def test_the_file_is_small():
    assert GOLDEN.stat().st_size < 100_000
