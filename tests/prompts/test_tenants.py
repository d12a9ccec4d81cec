"""Rows behind prompts of their own: a batch equals its rows alone, whatever stands in the other rows."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenanting import (
    CHECKS,
    KINDS,
    NUMBERS,
    TENANTS,
    Batch,
    Tenant,
    complex_step_error,
    generation_error,
    gradient_error,
    states_error,
)

import strict_device
from helpers import TINY, read_only
from minicompress.arrays import to_host
from minicompress.gpt2 import forward
from minicompress.gpt2.generate import generate
from minicompress.gpt2.prefix import predictors, predictors_backward, read_tokens
from minicompress.prompts import tenants
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.tenants import read_many, read_many_backward, spread
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import central_difference, relative_error


@st.composite
def batches(draw):
    """One to four prompts of any kinds, lengths and positions; one to five rows, each behind any of them."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 5)), min_size=1, max_size=4))
    places = [draw(st.sampled_from(["compact", "logical", "unshifted"])) for _ in kinds]
    chosen = [Tenant(kind, P, place) for (kind, P), place in zip(kinds, places, strict=True)]
    rows = draw(st.lists(st.tuples(st.integers(0, len(kinds) - 1), st.integers(1, 7)), min_size=1, max_size=5))
    numbers, lengths = zip(*rows, strict=True)
    return Batch(chosen, numbers, lengths, draw(st.integers(0, 2**32 - 1)))


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@given(batch=batches())
def test_the_states_of_any_batch_equal_those_of_its_rows_alone(batch):
    if batch.scored.any():
        assert states_error(batch) <= 1e-12


@given(batch=batches(), shards=st.integers(1, 4))
def test_loss_and_gradients_of_any_batch_equal_those_of_its_rows_alone(batch, shards):
    if batch.scored.any():
        assert gradient_error(batch, shards) <= 1e-12


@given(batch=batches())
def test_any_batch_writes_what_its_rows_write_alone(batch):
    assert generation_error(batch) <= 1e-12


@given(batch=batches(), shards=st.integers(1, 3))
def test_any_gradient_against_the_complex_step(batch, shards):
    if batch.scored.any():
        assert complex_step_error(batch, shards) <= 1e-12


@given(seed=st.integers(0, 2**32 - 1))
def test_finite_differences(seed):
    assert complex_step_error(Batch(TENANTS[:4], [0, 1, 2, 3, 0], [4, 3, 5, 6, 2], seed), 2, central_difference) <= 1e-6


def test_a_row_does_not_depend_on_its_company():
    """The field's commonest bug, padding between a prompt and its text, cannot be written down here.

    A row is its prompt's keys, then its tokens, both from their first on; padding stands behind each of
    them, where a mask or causality hides it. So whatever the other rows bring, longer prompts or longer
    texts, a row's states are its own.
    """
    assert CHECKS["company"]() <= 1e-13


def test_shards_change_the_rounding_alone_and_not_even_that_when_their_number_is_kept():
    (one, d_one), *others = [Batch().gradient(n) for n in (1, 2, 3, 7, 20)]
    for other, d_other in others:
        assert relative_error(other, one) <= 1e-13
        for a, b in zip(trees(d_other), trees(d_one), strict=True):
            assert relative_error(a, b) <= 1e-13
    again, d_again = Batch().gradient(3)
    assert again == others[1][0]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(trees(d_again), trees(others[1][1]), strict=True))


def test_one_prompt_for_all_rows_is_read_once_and_serves_them_all():
    """To the last bit what `slots_gradient` computes: there is no copy for each row."""
    batch = Batch([Tenant("embeddings", 4)], [0] * 5, [5, 2, 7, 3, 4])
    prefix, _ = read_many(*batch.model, batch.each)
    assert prefix.past[0][0].shape[0] == 1 and prefix.mask is None
    loss, (dslots,) = batch.gradient(1)
    prompt = batch.prompts[0]
    with Shards(1) as one:
        expected = slots_gradient(batch.model, prompt.slots, batch.ids, batch.scored, batch.objective, one, prompt.door)
    assert loss == expected[0] and np.array_equal(dslots, expected[1])


def test_each_distinct_prompt_is_read_once_and_embeddings_in_one_batch():
    batch = Batch(
        [Tenant("embeddings", 2), Tenant("embeddings", 5), Tenant("kv"), Tenant("hidden")], [0, 1, 0, 2, 3, 1], [3] * 6
    )
    with mock.patch.object(tenants, "forward", wraps=forward) as read:
        prefix, _ = read_many(*batch.model, batch.each)
    assert [call.args[2].shape for call in read.call_args_list] == [(2, 5, TINY.n_embd)]
    assert [x.shape for x in prefix.past[0]] == [(6, 3, 5, 4)] * 2
    assert prefix.mask.sum(1).tolist() == [2, 5, 2, 3, 3, 5]
    assert prefix.start.tolist() == [2, 5, 2, 3, 3, 5] and prefix.predicts.tolist() == [1, 1, 1, 0, 0, 1]


def test_gradients_come_in_the_order_of_first_appearance():
    """A prompt of two rows has the sum, a row without a prompt a None."""
    batch = Batch(TENANTS, NUMBERS)
    prefix, cache = read_many(*batch.model, batch.each, keep="dx")
    hidden, back = predictors(*batch.model, prefix, batch.ids, batch.scored, keep="dx")
    weight = batch.rng.standard_normal(hidden.shape)
    found = read_many_backward(predictors_backward(weight, back), cache)
    order = list(dict.fromkeys(NUMBERS))
    assert [d is None for d in found] == [batch.prompts[n] is None for n in order]
    for n, d in zip(order, found, strict=True):
        if d is not None:
            prompt = batch.prompts[n]
            assert {k: x.shape for k, x in flatten(d).items()} == {k: x.shape for k, x in flatten(prompt.tree).items()}
    copies = [None if p is None else replace(p) for p in batch.each]  # equal, but not the same
    prefix, cache = read_many(*batch.model, copies, keep="dx")
    _, back = predictors(*batch.model, prefix, batch.ids, batch.scored, keep="dx")
    apart = read_many_backward(predictors_backward(weight, back), cache)
    without = NUMBERS.index(2)  # the row without a prompt
    apart.insert(without, apart.pop(without))
    sums = {}
    for n, d in zip(NUMBERS, apart, strict=True):
        sums[n] = d if n not in sums else tree_map(np.add, sums[n], d)
    for n, d in zip(order, found, strict=True):
        if d is not None:
            assert all(relative_error(a, b) <= 1e-12 for a, b in zip(trees([d]), trees([sums[n]]), strict=True))


def test_texts_may_stand_before_their_rows_too():
    """`spread` takes any prefixes: here what two rows have read, beside a prompt and nothing."""
    batch = Batch()
    texts = [read_tokens(*batch.model, [3, 1, 4, 1]), read_tokens(*batch.model, [5])]
    prefixes = [*texts, batch.prompts[0].prefix(*batch.model), read_tokens(*batch.model, [])]
    rows = [[2, 7], [1], [8, 2, 8], [4, 5], [9]]
    numbers = np.array([1, 0, 2, 3, 0])
    together = generate(*batch.model, rows, 6, spread(prefixes, numbers))
    assert together == [generate(*batch.model, [row], 6, prefixes[n])[0] for row, n in zip(rows, numbers, strict=True)]


def test_frozen_weights_and_the_prompts_stay_as_they_are():
    """Read-only arrays: a single write to them raises."""
    batch = Batch()
    read_only(batch.model[0])
    for prompt in batch.prompts:
        if prompt is not None:
            read_only(prompt.tree)
    batch.gradient()
    generate(*batch.model, batch.rows, 3, read_many(*batch.model, batch.each)[0])


def test_a_row_whose_first_token_nothing_predicts_is_named():
    batch = Batch()
    batch.scored[NUMBERS.index(5), 0] = True
    with pytest.raises(ValueError, match="^row 4: its first token is scored, but nothing stands before it"):
        batch.gradient(3)
    prefix, _ = read_many(*batch.model, batch.each)
    with pytest.raises(ValueError, match="^row 4: its first token is scored"):
        predictors(*batch.model, prefix, batch.ids, batch.scored)


def test_nothing_scored_has_no_loss():
    batch = Batch()
    batch.scored[:] = False
    with pytest.raises(ValueError, match="no target is scored"):
        batch.gradient()


def test_a_short_row_far_out_may_stand_beside_a_long_one_near_the_front():
    """Together they would need 14 + 10 + 3 > 24 positions, but no row does: padding takes none."""
    far = SoftPrompt(np.random.default_rng(1).standard_normal((2, TINY.n_embd)), positions="logical", offset=18)
    batch = Batch()
    batch.prompts, batch.numbers = [far, None], np.array([0, 1])
    batch.rows = [[3, 1, 4], [1] * 14]
    batch.ids = np.array([[3, 1, 4] + [0] * 11, [1] * 14])
    batch.scored = batch.ids > 0
    batch.scored[1, 0] = False
    assert gradient_error(batch) <= 1e-12 and generation_error(batch, 3) <= 1e-12
    with pytest.raises(ValueError, match=r"n_positions is 24; 18 of prefix \+ 3 of text \+ 4 new tokens need 25"):
        generation_error(batch, 4)
    batch.scored[0, 8] = True
    with pytest.raises(ValueError, match="n_positions is 24; 26 positions are needed"):
        batch.gradient()


def test_a_row_cannot_place_another_row_s_slots():
    batch = Batch()
    batch.ids[NUMBERS.index(3), 1] = -1  # the prompt of hidden states stands in front, and places none
    with pytest.raises(ValueError, match=r"token ids span -1\.\.\d+; the vocabulary is 0\.\.16$"):
        batch.gradient()
    batch = Batch()
    batch.ids[NUMBERS.index(4), 1] = -3  # of two slots
    with pytest.raises(ValueError, match="token ids span -3"):
        batch.gradient()


def test_other_devices_compute_the_same(xp):
    here, there = Batch(), Batch()
    there.model = tree_map(xp.asarray, there.model[0]), TINY
    move = lambda x: None if x is None else xp.asarray(x)
    there.prompts = [p and replace(p, slots=move(p.slots), beta=move(p.beta)) for p in there.prompts]
    (loss, expected), (their_loss, found) = here.gradient(), there.gradient()
    exact = 0 if xp is strict_device else 1e-12
    assert relative_error(their_loss, loss) <= exact
    for a, b in zip(trees(found), trees(expected), strict=True):
        assert relative_error(to_host(a), b) <= exact
    written = [generate(*batch.model, batch.rows, 4, read_many(*batch.model, batch.each)[0]) for batch in (here, there)]
    assert written[0] == written[1]


def test_float32_stays_float32():
    """And as close as its digits allow."""
    batch, exact = Batch(dtype=np.float32), Batch()
    small = lambda x: None if x is None else x.astype(np.float32)
    batch.prompts = [p and replace(p, slots=small(p.slots), beta=small(p.beta)) for p in batch.prompts]
    for a, b in zip(trees(batch.gradient()[1]), trees(exact.gradient()[1]), strict=True):
        assert a.dtype == np.float32 and relative_error(a, b) <= 1e-4


def test_a_prompt_of_no_row_has_a_gradient_of_zero():
    batch = Batch([Tenant("embeddings"), Tenant("kv")], [1, 1], [4, 3])
    loss, (unused, used) = batch.gradient()
    assert not unused.any() and unused.shape == (3, TINY.n_embd) and used.any() and loss > 0


def test_rows_in_which_nothing_is_scored_change_nothing():
    batch = Batch()
    loss, before = batch.gradient()
    batch.ids, batch.numbers = np.r_[batch.ids, batch.ids[:4]], np.r_[batch.numbers, batch.numbers[:4]]
    batch.scored = np.r_[batch.scored, np.zeros_like(batch.scored[:4])]
    for shards in (1, 4, 14):
        after, found = batch.gradient(shards)
        assert relative_error(after, loss) <= 1e-13
        for a, b in zip(trees(found), trees(before), strict=True):
            assert relative_error(a, b) <= 1e-13


def trees(gradients):
    """All arrays of a list of trees, without its Nones."""
    return [x for d in gradients if d is not None for x in flatten(d).values()]
