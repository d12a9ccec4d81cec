"""Compressors that read segment by segment: gradients by every oracle, horizons that cut, states that do not grow."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segmenting import CHECKS, CONFIG, Case, K, gradient_error, horizon_case

import strict_device
from minicompress.compression import amortised, segments
from minicompress.compression.compressor import Compressor, weights_of
from minicompress.compression.segments import METHODS, read_segment_backward, states, states_backward
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, relative_error

each_kind = pytest.mark.parametrize("kind", METHODS)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@settings(max_examples=30)
@given(kind=st.sampled_from(list(METHODS)), seed=st.integers(0, 2**32 - 1))
def test_finite_differences(kind, seed):
    assert gradient_error(kind, seed, central_difference, segments=2) <= 1e-6


@each_kind
def test_a_horizon_of_all_segments_cuts_nothing(kind):
    case, _, segments, caches, cotangents = horizon_case(kind)
    full, covered = (
        states_backward(cotangents, caches, CONFIG, case.method, horizon=h) for h in (None, len(segments))
    )
    assert np.array_equal(full, covered)


@pytest.mark.parametrize("kind", ["autocompressor", "ccm", "ccm-mean"])
def test_what_lies_beyond_the_horizon_is_exactly_zero(kind):
    """A loss on the last state alone asks nothing of any segment but the last: only its own term is left."""
    case, _, segments, caches, cotangents = horizon_case(kind)
    cut = states_backward([None, None, None, cotangents[3]], caches, CONFIG, case.method, horizon=1)
    left = cotangents[3] / 4 if case.method.merge == "mean" else cotangents[3][..., -K:, :]
    own, beyond = read_segment_backward(left, caches[3][0], CONFIG, case.method)
    assert np.array_equal(cut, own) and np.abs(beyond).max() > 1e-6


def test_a_state_that_is_cut_off_from_its_slots_asks_nothing_of_them():
    """RMT's slots are only its first state: with a horizon of 1 the last state knows nothing of them."""
    case, _, _, caches, cotangents = horizon_case("rmt")
    cut = states_backward([None, None, None, cotangents[3]], caches, CONFIG, case.method, horizon=1)
    assert cut.shape == (K, CONFIG.n_embd) and not cut.any()
    assert np.isfinite(case.gradient(horizon=1)[0])


@each_kind
@pytest.mark.parametrize("horizon", [1, 2, 3, None])
def test_what_is_not_gone_back_through_is_not_kept(kind, horizon, monkeypatch):
    """Kept or not, the gradient is the same to the bit; and what is needed is all that is kept."""
    case = Case(kind, segments=5)
    case.examples = [example._replace(asked=[one for one in example.asked if one.step]) for example in case.examples[:1]]
    mean, draw = case.gradient(horizon=horizon)
    real, kept = segments.read_segment, []
    monkeypatch.setattr(segments, "read_segment", lambda *args: (kept.append(args[-1] == "grads"), real(*args))[1])
    case.gradient(horizon=horizon)
    assert kept == [number >= {1: 4, 2: 4, 3: 3, None: 0}[horizon] for number in range(5)]
    monkeypatch.setattr(amortised, "gone_through", lambda *_: range(5))
    mean_all, draw_all = case.gradient(horizon=horizon)
    assert mean == mean_all and all(np.array_equal(x, flatten(draw_all)[name]) for name, x in flatten(draw).items())


def test_each_state_that_is_asked_goes_back_to_its_own_cut():
    assert segments.gone_through([4], 2) == {4} and segments.gone_through([3], 2) == {2, 3}
    assert segments.gone_through([1, 4], 3) == {0, 1, 3, 4} and segments.gone_through([0], None) == {0}
    assert segments.gone_through([4], None) == segments.gone_through([4], 5) == set(range(5))


def test_a_short_horizon_needs_less_memory():
    case, peaks = Case("autocompressor", segments=6), []
    case.examples = [example._replace(asked=[one for one in example.asked if one.step]) for example in case.examples[:1]]
    for horizon in (None, 1):
        tracemalloc.start()
        case.gradient(horizon=horizon)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 0.7 * peaks[0], peaks


@each_kind
def test_the_stream_gives_the_states_of_the_recurrence(kind):
    case = Case(kind)
    ids = case.rng.integers(CONFIG.vocab_size, size=9).tolist()
    compressor = Compressor(kind, case.raw, segment=4)
    segments = [ids[:4], ids[4:8], ids[8:]]
    weights, _, _ = weights_of(case.raw, case.teacher[0], case.method)
    found, _ = states(weights, CONFIG, case.method, case.raw["slots"], segments)
    streamed = list(compressor.stream(case.teacher, iter(ids)))
    assert all(np.array_equal(prompt.slots, state) for prompt, state in zip(streamed, found, strict=True))
    assert np.array_equal(compressor.compress(case.teacher, ids).slots, found[-1])


@pytest.mark.parametrize("kind", ["rmt", "ccm-mean"])
def test_a_stream_of_twenty_windows_leaves_a_state_that_does_not_grow(kind):
    case = Case(kind)
    ids = (int(i) for i in case.rng.integers(CONFIG.vocab_size, size=20 * CONFIG.n_positions))
    lengths = [prompt.length for prompt in Compressor(kind, case.raw, segment=20).stream(case.teacher, ids)]
    assert len(lengths) >= 20 and set(lengths) == {K}


@each_kind
def test_a_compressor_comes_back_from_its_file(kind, tmp_path):
    case = Case(kind)
    made = Compressor(kind, case.raw, segment=4, provenance={"model": "m"})
    made.save(tmp_path / "c.safetensors")
    again = Compressor.load(tmp_path / "c.safetensors", case.raw.get("params"))
    assert (again.kind, again.segment, again.provenance) == (made.kind, made.segment, made.provenance)
    ours, theirs = flatten(made.raw), flatten(again.raw)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_more_slots_than_were_trained_are_refused():
    case = Case("gist")
    with pytest.raises(ValueError, match="leaves 1 to 2 slots a segment, not 3"):
        Compressor("gist", case.raw, segment=4).compress(case.teacher, [1, 2, 3], slots=3)


def test_the_first_slots_do_not_depend_on_those_behind_them():
    case = Case("gist")
    compressor = Compressor("gist", case.raw, segment=9)
    one, two = (compressor.compress(case.teacher, [1, 2, 3, 4], slots=k).slots for k in (1, 2))
    assert relative_error(one, two[..., :1, :]) <= 1e-14


@pytest.mark.parametrize("kind", ["gist", "ccm-mean", "rmt"])
def test_on_a_strict_device_the_same_numbers(kind):
    case = Case(kind)
    mean, draw = case.gradient(horizon=2)
    there = tree_map(strict_device.asarray, {"raw": case.raw, "base": case.teacher[0]})
    case.raw, case.teacher = there["raw"], (there["base"], CONFIG)
    mean_there, draw_there = case.gradient(horizon=2)
    ours, theirs = flatten(draw), flatten(draw_there)
    assert mean == mean_there  # a device adds up the rows of wte in another order
    assert max(relative_error(theirs[name].get(), ours[name]) for name in ours) <= 1e-14
