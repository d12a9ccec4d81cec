"""Low-rank weights: the gradient through the adapted model, the object, its file, and bugs planted in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import TINY, random_ids, random_params, tree_errors
from minicompress.compression.objectives import likelihood
from minicompress.gpt2 import head_loss
from minicompress.gpt2.prefix import Prefix, predictors
from minicompress.layers import lora as lora_layer
from minicompress.prompts import gradient
from minicompress.prompts.gradient import weights_gradient
from minicompress.prompts.low_rank_weights import TARGETS, LowRankWeights, adapt, init, rank_at_equal_size
from minicompress.training.checkpoints import save_arrays
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, complex_step, relative_error
from test_planted_bugs import Bug, planted_error

CONFIG = TINY


def case(seed, targets=TARGETS, rank=2):
    rng = np.random.default_rng(seed)
    params = random_params(CONFIG, rng)
    low = tree_map(lambda x: x + 0.1 * rng.standard_normal(x.shape), init(rng, params, rank, targets))
    ids = random_ids(CONFIG, rng, 3, 5)
    scored = np.ones(ids.shape, bool)
    scored[:, 0] = False
    return rng, params, low, ids, scored


def gradient_error(seed=0, targets=TARGETS, oracle=complex_step, shards=2):
    rng, params, low, ids, scored = case(seed, targets)

    objective = lambda rows, weight: likelihood(ids[rows][scored[rows]], weight)

    def loss(low):
        adapted, _ = adapt(params, low)
        hidden, _ = predictors(adapted, CONFIG, Prefix(), ids, scored)
        found, _ = head_loss(adapted, hidden, objective(slice(None), 1 / scored.sum()))
        return found.sum()[None]

    with Shards(shards) as threads:
        mean, dlow = weights_gradient((params, CONFIG), low, ids, scored, objective, threads)
    assert flatten(dlow).keys() == flatten(low).keys()
    return max(relative_error(mean, loss(low)[0]), *tree_errors(oracle, loss, low, dlow, np.ones(1), rng).values())


@pytest.mark.parametrize("targets", [TARGETS, *((name,) for name in TARGETS)], ids=str)
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_complex_step(targets, shards):
    assert gradient_error(0, targets, shards=shards) <= 1e-12


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_finite_differences(seed):
    assert gradient_error(seed, ("attn.c_attn",), central_difference) <= 1e-6


BUGS = [
    Bug("a product without its scale", "gradient", lora_layer.lora, "scale * (a @ b)", "(a @ b)"),
    Bug("a's gradient without the scale", "gradient", lora_layer.lora_backward, "scale * (dweight @ b.T)", "dweight @ b.T"),
    Bug("b's gradient from the wrong side", "gradient", lora_layer.lora_backward, "a.T @ dweight", "a.T @ dweight[::-1]"),
    Bug("the first shard alone", "gradient", gradient.weights_gradient, "sum(parts[1:], parts[0])", "parts[0]"),
    Bug("the rows read the model as it was", "gradient", gradient.weights_gradient, "(adapted, config)", "(params, config)"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    checks = {"gradient": gradient_error}
    assert planted_error(bug, checks, monkeypatch) > 1e-6


def test_fresh_weights_leave_the_model_as_it_was():
    rng, params, *_ = case(0)
    adapted, _ = adapt(params, init(rng, params, 3))
    ours, theirs = flatten(adapted), flatten(params)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_adapting_changes_its_targets_alone_and_no_array_in_place():
    _, params, low, *_ = case(0, ("mlp.c_fc",))
    before = {name: x.copy() for name, x in flatten(params).items()}
    after = flatten(adapt(params, low)[0])
    assert all(np.array_equal(flatten(params)[name], x) for name, x in before.items())
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        f"h.{layer}.mlp.c_fc.weight" for layer in range(CONFIG.n_layer)
    }


def test_a_file_and_back(tmp_path):
    _, _, low, *_ = case(0)
    LowRankWeights(low, 8.0, {"model": "m"}).save(tmp_path / "w.safetensors")
    assert LowRankWeights.names(tmp_path / "w.safetensors")
    again = LowRankWeights.load(tmp_path / "w.safetensors")
    assert (again.alpha, again.provenance) == (8.0, {"model": "m"})
    assert all(np.array_equal(flatten(again.low)[name], x) for name, x in flatten(low).items())
    again.check_model(CONFIG)


def test_another_file_is_no_weights(tmp_path):
    save_arrays(tmp_path / "x.safetensors", {"slots": np.zeros((2, 3))})
    assert not LowRankWeights.names(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="its format is None"):
        LowRankWeights.load(tmp_path / "x.safetensors")


def test_weights_of_another_size_are_refused():
    _, _, low, *_ = case(0, ("attn.c_attn",))
    low["h"]["0"]["attn"]["c_attn"]["b"] = np.zeros((2, 7))
    with pytest.raises(ValueError, match=r"h.0.attn.c_attn.b \[2, 7\] adapts no weight of this model"):
        LowRankWeights(low).check_model(CONFIG)


@pytest.mark.parametrize("slots", [2, 8, 32])
def test_the_rank_gives_as_many_numbers_as_the_slots(slots):
    rng, params, *_ = case(0)
    low = init(rng, params, rank_at_equal_size(slots))
    assert LowRankWeights(low).size == 2 * CONFIG.n_layer * CONFIG.n_embd * slots
