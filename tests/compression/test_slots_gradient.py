"""The gradient of slots through the frozen model, by every oracle and over any number of threads."""

import numpy as np
import pytest
from compressing import CHECKS, OTHERS, SUMS, TOP, Problem, gradient_error
from hypothesis import given
from hypothesis import strategies as st

from helpers import directional_error
from minicompress.compression.gradient import train_slots
from minicompress.compression.objectives import LOSSES, Term, read_loss
from minicompress.compression.queries import Query, pad
from minicompress.training.adamw import adamw_init
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import (
    central_difference,
    complex_step,
    leaning_direction,
    relative_error,
    taylor_rates,
)

each_loss = pytest.mark.parametrize("loss", ["kl", "likelihood", *OTHERS, *SUMS])


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


@each_loss
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("first", [True, False], ids=["first scored", "first not scored"])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_complex_step(loss, temperature, first, shards):
    assert gradient_error(loss, temperature, 1, first, shards) <= 1e-12


@given(
    loss=st.sampled_from(["kl", "likelihood", *OTHERS, *SUMS]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**32 - 1),
    first=st.booleans(),
)
def test_finite_differences(loss, temperature, seed, first):
    assert gradient_error(loss, temperature, seed, first, 1, central_difference) <= 1e-6


@each_loss
def test_queries_of_a_single_token(loss):
    """The slots alone predict them, and nothing of the rows is read."""
    problem = Problem()
    problem.queries = [Query([5], 0), Query([7], 0)]
    problem.ids, problem.scored = pad(problem.queries)
    mean, dslots = problem.gradient(loss)
    f = problem.losses(loss)
    assert relative_error(mean, f(problem.slots).sum()) <= 1e-13
    assert directional_error(complex_step, f, problem.slots, dslots, np.ones(2), problem.rng) <= 1e-12


@each_loss
def test_taylor(loss):
    problem = Problem(3)
    _, dslots = problem.gradient(loss)
    f, u = problem.losses(loss), leaning_direction(problem.rng, dslots)
    rates = lambda gradient: taylor_rates(lambda slots: f(slots).sum(), problem.slots, u, gradient, h=1e-3)
    assert min(rates(dslots)) > 1.9 and max(rates(1.1 * dslots)) < 1.5


@each_loss
def test_shards_change_the_rounding_alone_and_not_even_that_when_their_number_is_kept(loss):
    problem = Problem(1)
    (one, d_one), *others = [problem.gradient(loss, 1.0, n) for n in (1, 2, 3, 5)]
    for other, d_other in others:
        assert relative_error(other, one) <= 1e-13 and relative_error(d_other, d_one) <= 1e-13
    for n in (1, 2, 3):
        (a, da), (b, db) = (problem.gradient(loss, 1.0, n) for _ in range(2))
        assert a == b and da.tobytes() == db.tobytes()


def test_rows_in_which_nothing_is_scored_change_nothing():
    problem = Problem()
    before, dbefore = problem.gradient("likelihood")
    problem.ids = np.r_[problem.ids, problem.ids[:3]]
    problem.scored = np.r_[problem.scored, np.zeros_like(problem.scored[:3])]
    for shards in (1, 4, 8):
        after, dafter = problem.gradient("likelihood", 1.0, shards)
        assert relative_error(after, before) <= 1e-13 and relative_error(dafter, dbefore) <= 1e-13


@each_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_lowers_the_loss_and_leaves_every_weight_as_it_was(loss, dtype):
    problem, told = Problem(2, dtype=dtype), []
    before = tree_map(np.copy, problem.model[0])
    with Shards(2) as shards:
        train_slots(problem.model, problem.slots, adamw_init({"slots": problem.slots}), problem.queries,
                    problem.teacher(shards), 40, shards=shards, loss=loss, lr=0.05,
                    top_k=TOP,
                    on_step=lambda step, mean, norm: told.append((step, mean, norm)))  # fmt: skip
    steps, losses, norms = zip(*told, strict=True)
    assert steps == tuple(range(1, 41)) and losses[-1] < 0.8 * losses[0] and min(norms) > 0
    assert problem.slots.dtype == dtype
    for name, weight in flatten(problem.model[0]).items():
        assert weight.tobytes() == flatten(before)[name].tobytes(), name


def test_the_gradient_is_of_the_dtype_of_the_slots():
    assert Problem(dtype=np.float32).gradient()[1].dtype == np.float32


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_slots():
    problem = Problem()
    problem.model[0]["ln_f"]["weight"][0] = np.nan
    before, state = problem.slots.copy(), adamw_init({"slots": problem.slots})
    with Shards(1) as shards, pytest.raises(FloatingPointError, match="a gradient is not finite; lower the learning rate"):
        train_slots(problem.model, problem.slots, state, problem.queries, None, 3, shards=shards, loss="likelihood")
    assert state["step"] == 0 and problem.slots.tobytes() == before.tobytes()


def test_how_a_loss_is_written():
    assert read_loss("kl") == [Term("kl")]
    assert read_loss("kl + 0.5*likelihood") == [Term("kl"), Term("likelihood", 0.5)]
    assert read_loss("2*js:0.3+1e-1*top-k", 7) == [Term("js", 2.0, {"beta": 0.3}), Term("top-k", 0.1, {"k": 7})]
    assert [term.name for term in read_loss("+".join(LOSSES), 1)] == list(LOSSES)


@pytest.mark.parametrize("text, words", [
    ("", "--loss is ''; it can be kl or reverse-kl"), ("kl+", "--loss is ''; it can be"), ("kl+mse", "--loss is 'mse'; it can be"),
    ("0.5kl", "--loss is '0.5kl'"), ("kl*0.5", "--loss is '0.5'"), ("a*kl", r"--loss a\*kl: its weight is 'a'; a finite number"),
    ("0*kl", "its weight is '0'; a finite number above 0"), ("-1*kl", "its weight is '-1'"), ("inf*kl", "its weight is 'inf'"),
    ("nan*kl", "its weight is 'nan'"), ("*kl", "its weight is ''"), ("js:1", "its β is '1'; a number between 0 and 1"),
    ("js:", "its β is ''"), ("js:x", "its β is 'x'"), ("kl:0.5", "--loss kl:0.5: of all losses js alone has a β"),
])  # fmt: skip
def test_a_loss_that_cannot_be_read_costs_one_line(text, words):
    with pytest.raises(ValueError, match=words) as error:
        read_loss(text)
    assert "\n" not in str(error.value)
