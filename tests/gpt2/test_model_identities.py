"""What must come out equal, however it is computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import causal_error, hard_text_error, hidden_of
from helpers import TINY, prompt_step, random_ids, random_params, token_objective, zeros_like
from minicompress.gpt2 import backward, embed, embed_backward, forward, head_loss, logits
from minicompress.trees import flatten
from minicompress.verification.oracles import relative_error


def test_later_tokens_do_not_change_earlier_ones():
    assert causal_error() == 0


def test_slots_of_hard_text_equal_that_text_in_front():
    assert hard_text_error() <= 1e-13


@given(cuts=st.sets(st.integers(1, 8)), seed=st.integers(0, 2**32 - 1))
def test_reading_in_pieces_equals_reading_at_once(cuts, seed):
    rng = np.random.default_rng(seed)
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 9)
    bounds, past, pieces = [0, *sorted(cuts), 9], None, []
    for a, b in zip(bounds, bounds[1:], strict=False):
        hidden, present, _ = forward(params, TINY, embed(params, ids[:, a:b], a), past)
        past = present if past is None else [join(*pair) for pair in zip(past, present, strict=True)]
        pieces.append(hidden)
    assert relative_error(np.concatenate(pieces, 1), hidden_of(params, TINY, ids)) <= 1e-12


def test_the_gradient_in_pieces_equals_the_gradient_at_once(rng):
    """The gradient crosses from the second piece to the first as dpast, which is the first's dpresent."""
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 9)
    whole, pieces = zeros_like(params), zeros_like(params)
    hidden, _, cache = forward(params, TINY, embed(params, ids), keep="grads")
    dhidden = rng.standard_normal(hidden.shape)
    dx, _ = backward(dhidden, cache, grads=whole)
    _, past, first = forward(params, TINY, embed(params, ids[:, :4]), keep="grads")
    _, _, second = forward(params, TINY, embed(params, ids[:, 4:], 4), past, keep="grads")
    dx_second, dpast = backward(dhidden[:, 4:], second, grads=pieces)
    dx_first, _ = backward(dhidden[:, :4], first, dpast, pieces)
    assert relative_error(np.concatenate([dx_first, dx_second], 1), dx) <= 1e-12
    for name, g in flatten(pieces).items():
        assert relative_error(g, flatten(whole)[name]) <= 1e-12, name


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_a_ragged_batch_equals_its_rows_alone(lengths, seed):
    rng = np.random.default_rng(seed)
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, len(lengths), max(lengths))
    together = hidden_of(params, TINY, ids)
    for row, n in enumerate(lengths):
        assert relative_error(together[row, :n], hidden_of(params, TINY, ids[row : row + 1, :n])[0]) <= 1e-12


def test_rows_with_pasts_of_different_lengths_equal_themselves_alone(rng):
    """Pasts are padded on the right and masked; each row's tokens go on from its own length."""
    params, ids, lengths = random_params(TINY, rng), random_ids(TINY, rng, 3, 9), np.array([5, 2, 4])
    _, past, _ = forward(params, TINY, embed(params, ids[:, :5]))
    key_mask = np.c_[np.arange(5) < lengths[:, None], np.ones((3, 4), bool)]
    together, _, _ = forward(params, TINY, embed(params, ids[:, 5:], lengths), past, key_mask)
    for row, n in enumerate(lengths):
        alone = hidden_of(params, TINY, np.r_[ids[row, :n], ids[row, 5:]][None])
        assert relative_error(together[row], alone[0, n:]) <= 1e-12


def test_each_row_with_its_own_past_equals_one_past_for_all(rng):
    params, ids, context = random_params(TINY, rng), random_ids(TINY, rng, 3, 5), random_ids(TINY, rng, 1, 4)
    _, shared, _ = forward(params, TINY, embed(params, context))
    each = [tuple(np.repeat(part, 3, 0) for part in pair) for pair in shared]
    x = embed(params, ids, 4)
    (one, _, one_cache), (many, _, many_cache) = (forward(params, TINY, x, past) for past in (shared, each))
    assert relative_error(one, many) <= 1e-12
    dhidden = rng.standard_normal(one.shape)
    (_, d_one), (_, d_many) = backward(dhidden, one_cache), backward(dhidden, many_cache)
    for pair_one, pair_many in zip(d_one, d_many, strict=True):
        for a, b in zip(pair_one, pair_many, strict=True):
            assert relative_error(a, b.sum(0, keepdims=True)) <= 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 7, 15, 100])
def test_the_head_does_not_depend_on_the_chunk(chunk, rng):
    params, hidden = random_params(TINY, rng), rng.standard_normal((15, TINY.n_embd))
    objective = token_objective(rng.integers(17, size=15), rng.standard_normal(15))
    grads, expected = zeros_like(params), zeros_like(params)
    losses, dhidden = head_loss(params, hidden, objective, grads, chunk)
    whole_losses, whole_dhidden = head_loss(params, hidden, objective, expected)
    assert relative_error(losses, whole_losses) <= 1e-14
    assert relative_error(dhidden, whole_dhidden) <= 1e-14
    assert relative_error(grads["wte"]["weight"], expected["wte"]["weight"]) <= 1e-13


def test_logits_are_hidden_states_times_the_head(rng):
    params, hidden = random_params(TINY, rng), rng.standard_normal((2, 3, TINY.n_embd))
    assert relative_error(logits(params, hidden), np.einsum("btc,vc->btv", hidden, params["wte"]["weight"])) <= 1e-15
    untied = params | {"lm_head": {"weight": np.ones((17, TINY.n_embd))}}
    assert np.allclose(logits(untied, hidden), hidden.sum(-1, keepdims=True))


def test_what_a_cache_keeps_does_not_change_what_comes_out(rng):
    params, x = random_params(TINY, rng), rng.standard_normal((2, 5, TINY.n_embd))
    outs = [forward(params, TINY, x, keep=keep)[0] for keep in ("nothing", "dx", "grads")]
    assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])


def test_blocks_are_taken_by_number(rng):
    """A safetensors file gives its names back sorted as text: h.0, h.1, h.10, h.11, h.2, ..."""
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 2, 5)
    shuffled = params | {"h": {number: params["h"][number] for number in ("1", "0")}}
    assert np.array_equal(hidden_of(shuffled, TINY, ids), hidden_of(params, TINY, ids))


def test_the_residual_stream_is_handed_out_before_each_block_and_after_the_last(rng):
    params, x, watch = random_params(TINY, rng), rng.standard_normal((2, 5, TINY.n_embd)), []
    forward(params, TINY, x, watch=watch)
    again, one = [], {**params, "h": {"0": params["h"]["0"]}}
    forward(one, TINY, x, watch=again)
    assert len(watch) == TINY.n_layer + 1 and watch[0] is x
    assert np.array_equal(watch[1], again[1])  # and no later block writes into it


def test_float32_stays_float32(rng):
    params = random_params(TINY, rng, np.float32)
    slots, ids, grads = rng.standard_normal((4, 12)).astype(np.float32), random_ids(TINY, rng, 3, 5), zeros_like(params)
    objective = token_objective(ids.reshape(-1), np.full(15, 1 / 15, np.float32))
    losses, dslots = prompt_step(params, TINY, slots, ids, objective, grads)
    assert {losses.dtype, dslots.dtype, *(g.dtype for g in flatten(grads).values())} == {np.dtype(np.float32)}


def test_positions_may_differ_by_row(rng):
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 3, 4)
    together = embed(params, ids, [0, 7, 20])
    for row, offset in enumerate((0, 7, 20)):
        assert np.array_equal(together[row], embed(params, ids[row : row + 1], offset)[0])


def test_embedding_gradients_reach_their_rows(rng):
    params, ids = random_params(TINY, rng), np.array([[3, 3, 1]])
    grads, dx = zeros_like(params), rng.standard_normal((1, 3, 12))
    embed_backward(dx, ids, grads, offset=6)
    assert np.allclose(grads["wte"]["weight"][3], dx[0, 0] + dx[0, 1])
    assert np.array_equal(np.flatnonzero(grads["wte"]["weight"].any(-1)), [1, 3])
    assert np.array_equal(grads["wpe"]["weight"][6:9], dx[0])


def join(earlier, later):
    """Keys and values of two pieces, one behind the other."""
    return tuple(np.concatenate(parts, axis=2) for parts in zip(earlier, later, strict=True))
