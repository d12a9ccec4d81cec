"""Every parameterisation: what it bakes to, the gradient back, what stays frozen, and its first numbers."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parameterising import (
    CASES,
    CHECKS,
    FROZEN,
    GIVEN,
    TRAINED,
    Sizes,
    baked_gradient,
    drawn,
    frozen_error,
    gradient_error,
    start_error,
)

from helpers import TINY, prompt_losses, prompt_step, random_ids, random_params, read_only, token_objective, tree_errors
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations import cartridge, low_rank, mlp, prefix_mlp, ptuning_lstm, ptuning_mlp
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.checkpoints import load_tree, save_tree
from minicompress.trees import flatten, unflatten
from minicompress.verification.oracles import central_difference, complex_step
from test_devices import both

EMBEDDINGS = [name for name in TRAINED if CASES[name].shape == "embeddings"]
each = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check(check):
    assert check() <= 1e-13


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("sizes", [Sizes(1, 1, 1, 1, 1, 1), Sizes(1, 3, 2, 4, 7, 3), Sizes(6, 1, 4, 3, 2, 1)], ids=str)
def test_complex_step(name, sizes):
    if "frozen" not in name or sizes.P > 1:
        assert gradient_error(name, sizes=sizes) <= 1e-13


@pytest.mark.parametrize("name", TRAINED)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.builds(Sizes, *map(st.integers, (2, 1, 1, 1, 1, 1), (5, 3, 3, 4, 6, 3))),
)
def test_finite_differences(name, seed, sizes):
    oracle = partial(central_difference, step=1e-6)
    assert gradient_error(name, oracle, seed, sizes) <= 1e-6


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_gradient_through_the_whole_model(name, rng):
    """The slots' gradient of a GPT-2, handed on to the raw arrays."""
    sizes = Sizes(P=4, H=3, D=4)
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 5)
    bake, bake_backward, raw = drawn(name, rng, sizes)
    cotangent = rng.standard_normal(ids.size)
    objective = token_objective(ids.reshape(-1), cotangent)
    slots, cache = bake(raw)
    draw = bake_backward(prompt_step(params, TINY, slots, ids, objective)[1], cache)
    frozen = {n: a for n, a in raw.items() if n in FROZEN}
    f = lambda tree: prompt_losses(params, TINY, bake({**frozen, **tree})[0], ids, objective)
    moved, slopes = ({n: a for n, a in tree.items() if n not in FROZEN} for tree in (raw, draw))
    assert max(tree_errors(complex_step, f, moved, slopes, cotangent, rng).values()) <= 1e-12


@each
def test_the_gradient_is_a_tree_like_raw_and_zero_where_frozen(name, rng):
    _, raw, _, draw = baked_gradient(name, rng)
    raw, draw = flatten(raw), flatten(draw)
    assert list(draw) == list(raw)
    for path, g in draw.items():
        assert (g.shape, g.dtype) == (raw[path].shape, raw[path].dtype), path
        assert not g.size or g.any() == (path not in FROZEN), path


@each
def test_slots_have_their_carrier_s_shape(name, rng):
    bake, _, raw = drawn(name, rng)
    assert bake(raw)[0].shape == Sizes().carriers[CASES[name].shape]


@each
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_dtype_in_is_dtype_out(name, dtype, rng):
    bake, raw, _, draw = baked_gradient(name, rng, dtype=dtype)
    assert bake(raw)[0].dtype == dtype
    assert {g.dtype for g in flatten(draw).values()} == {np.dtype(dtype)}


@each
def test_nothing_is_worked_on_in_place(name, rng):
    bake, bake_backward, raw = drawn(name, rng)
    slots, cache = bake(read_only(raw))
    dslots = read_only({"d": rng.standard_normal(slots.shape)})["d"]
    first, again = (flatten(bake_backward(dslots, cache)) for _ in range(2))
    assert all(np.array_equal(first[path], again[path]) for path in first)


@each
def test_on_a_device(name, xp, rng):
    bake, bake_backward, raw = drawn(name, rng)
    flat = flatten(raw)
    dslots = rng.standard_normal(bake(raw)[0].shape)

    def run(xp, dslots, *arrays):
        slots, cache = bake(unflatten(dict(zip(flat, arrays, strict=True))))
        return {"slots": slots, "draw": bake_backward(dslots, cache)}

    both(xp, run, dslots, *flat.values())


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_begun_on_a_device_stays_there(name, xp):
    def run(xp, slots):
        case = CASES[name]
        options = {"rank": 2} if case.module is low_rank else {}
        return case.module.init(np.random.default_rng(1), slots, **options)

    both(xp, run, np.random.default_rng(0).standard_normal(Sizes().carriers[CASES[name].shape]))


# Where training begins, and what it may not touch.


@pytest.mark.parametrize("name", GIVEN)
def test_training_begins_at_the_slots_that_were_given(name):
    assert start_error(name) == 0


@each
def test_what_is_frozen_keeps_its_bits_and_all_else_moves(name):
    assert frozen_error(name) == 0


@each
def test_adam_reaches_slots_that_are_wanted(name, rng):
    """From `init` on; what cannot be reached, for it is frozen or of low rank, ends nearer than it began."""
    case, sizes = CASES[name], Sizes()
    raw = case.init(rng, sizes, np.float32)
    wanted = rng.standard_normal(sizes.carriers[case.shape]).astype(np.float32)
    state, distances = adamw_init(raw), []
    for step in range(300):
        slots, cache = case.module.bake(raw, **case.told(sizes))
        distances.append(float(np.linalg.norm(slots - wanted)))
        adamw_step(raw, case.module.bake_backward(slots - wanted, cache), state, 0.05 * (1 - step / 300))
    if name == "cartridge, all frozen":
        assert set(distances) == {distances[0]}
    else:
        whole = name.startswith(("direct", "cartridge, none"))
        assert distances[-1] < (0.01 if whole else 0.95) * distances[0]


@each
def test_the_same_seed_makes_the_same_float32(name):
    once, twice = (flatten(CASES[name].init(np.random.default_rng(5), Sizes(), np.float32)) for _ in range(2))
    assert all(w.dtype == np.float32 and w.tobytes() == twice[path].tobytes() for path, w in once.items())


@each
def test_raw_arrays_come_back_from_a_file(name, rng, tmp_path):
    """The file may hold them in another order; the slots are the same bits."""
    bake, _, raw = drawn(name, rng)
    save_tree(tmp_path / "raw.safetensors", raw)
    kept, _ = load_tree(tmp_path / "raw.safetensors")
    assert np.array_equal(bake(kept)[0], bake(raw)[0])
    backwards = unflatten(dict(reversed(flatten(raw).items())))
    assert np.array_equal(bake(backwards)[0], bake(raw)[0])


def test_eleven_lstm_layers_are_read_in_their_order(rng):
    """By number: as words "10" would come before "2"."""
    raw = ptuning_lstm.init(rng, 2, 2, 1, layers=11, dtype=np.float64)
    before, _ = ptuning_lstm.bake(raw)
    shuffled = dict(raw, lstm_head=dict(sorted(raw["lstm_head"].items())))
    assert list(shuffled["lstm_head"])[2] == "10"
    assert np.array_equal(ptuning_lstm.bake(shuffled)[0], before)


@pytest.mark.parametrize("n_in", [3, 50])
def test_linear_layers_begin_uniform_in_one_over_the_root_of_their_inputs(n_in, rng):
    layer = mlp.mlp_init(rng, (n_in, 2000), np.float64)["0"]
    bound = 1 / np.sqrt(n_in)
    for w in layer.values():
        assert (
            np.abs(w).max() <= bound and abs(w.std() / (bound / np.sqrt(3)) - 1) <= 0.1 and abs(w.mean()) <= 0.1 * bound
        )


@pytest.mark.parametrize("rank", [1, 9, 64])
def test_low_rank_begins_with_rows_of_length_one(rank, rng):
    raw = low_rank.init(rng, np.zeros((4000, 3)), rank, np.float64)
    assert abs((raw["a"] ** 2).sum(1).mean() - 1) <= 0.1 and not raw["b"].any()


def test_encoders_begin_as_torch_begins_them(rng):
    """Embeddings of spread 1; LSTM weights within 1/√h, whatever they read."""
    for raw in (
        prefix_mlp.init(rng, 100, 2, 64, 8),
        ptuning_mlp.init(rng, 100, 64, 8),
        ptuning_lstm.init(rng, 100, 64, 16),
    ):
        assert abs(raw["embedding"]["weight"].std() - 1) <= 0.05
    for w in flatten(raw["lstm_head"]).values():
        assert 0.95 * 0.25 < np.abs(w).max() <= 0.25


def test_trained_numbers_of_gpt2_small(rng):
    """Twenty slots: what PEFT counts for the same encoders."""
    count = lambda raw: sum(w.size for w in flatten(raw).values())
    assert count(prefix_mlp.init(rng, 20, 12, 768, 768)) == 14_780_160
    assert count(ptuning_mlp.init(rng, 20, 768, 768)) == 1_787_136
    assert count(ptuning_lstm.init(rng, 20, 768, 768)) == 27_174_144


# The two layouts, and mistakes.


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_two_layouts_undo_one_another(P, L, H, D, seed):
    rng = np.random.default_rng(seed)
    kv, flat = rng.standard_normal((L, 2, H, P, D)), rng.standard_normal((P, 2 * L * H * D))
    assert np.array_equal(kv_from_flat(flat_from_kv(kv), L, H), kv)
    assert np.array_equal(flat_from_kv(kv_from_flat(flat, L, H)), flat)


def test_mistakes_are_said(rng):
    with pytest.raises(ValueError, match="a row has 30 numbers, which are not keys and values of 2 layers and 4 heads"):
        kv_from_flat(np.zeros((3, 30)), 2, 4)
    with pytest.raises(ValueError, match="the rank is 0; it must be at least 1"):
        low_rank.init(rng, np.zeros((3, 4)), 0)
    for frozen in (-1, 4):
        with pytest.raises(ValueError, match=f"{frozen} slots to freeze; it must be 0 to 3, the number of slots"):
            cartridge.init(rng, np.zeros((2, 2, 1, 3, 4)), frozen)
