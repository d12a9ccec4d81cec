"""What each divergence is and is not: its zeros, its bounds, what it is blind to, and numbers at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import DIVERGENCES, textbook_divergence
from helpers import log_normalised
from minicompress.layers import divergences
from minicompress.layers.divergences import jensen_shannon, top_k_kl, top_k_renormalised_kl, top_k_tail_kl, top_of
from minicompress.layers.losses import kl_divergence, kl_divergence_backward, log_softmax

seeds, temperatures = st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0])
each = pytest.mark.parametrize("name", DIVERGENCES.values())


def value_and_gradient(name, logits, teacher_logp, k=3, **options):
    options |= {"k": k} if "top_k" in name else {}
    out, cache = getattr(divergences, name)(logits, teacher_logp, **options)
    return out, getattr(divergences, f"{name}_backward")(np.ones_like(out), cache)


def drawn(seed, scale=3.0, N=5, V=9):
    """Logits of a student, and a teacher's log-probabilities."""
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((N, V)), log_softmax(scale * rng.standard_normal((N, V)))


@pytest.mark.parametrize("name", [name for name in DIVERGENCES.values() if name != "top_k_kl"])
@pytest.mark.parametrize("k", [1, 3, 8, 9])
@given(seed=seeds, temperature=temperatures)
def test_a_divergence_is_zero_at_the_teacher_and_nowhere_negative(name, k, seed, temperature):
    logits, teacher = drawn(seed)
    at_teacher, slope = value_and_gradient(name, logits, log_softmax(logits / temperature), k, temperature=temperature)
    assert np.abs(at_teacher).max() <= 1e-14 and np.abs(slope).max() <= 1e-14
    assert (value_and_gradient(name, logits, teacher, k, temperature=temperature)[0] >= -1e-14).all()


@each
@given(seed=seeds, temperature=temperatures)
def test_a_constant_added_to_all_logits_changes_nothing(name, seed, temperature):
    logits, teacher = drawn(seed)
    out, dlogits = value_and_gradient(name, logits, teacher, temperature=temperature)
    moved, dmoved = value_and_gradient(name, logits + 7, teacher, temperature=temperature)
    assert np.allclose(out, moved, rtol=0, atol=1e-12) and np.allclose(dlogits, dmoved, rtol=0, atol=1e-12)
    assert np.abs(dlogits.sum(-1)).max() <= 1e-13


@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(seed, scale):
    logits, teacher = drawn(seed, scale)
    out, _ = jensen_shannon(logits, teacher)
    assert np.allclose(out, jensen_shannon(teacher, log_softmax(logits))[0], rtol=0, atol=1e-14)
    assert (out <= math.log(2) + 1e-15).all()


@given(seed=seeds, beta=st.floats(0.01, 0.99))
def test_jensen_shannon_turned_round(seed, beta):
    logits, teacher = drawn(seed)
    turned, _ = jensen_shannon(teacher, log_softmax(logits), beta=1 - beta)
    assert np.allclose(jensen_shannon(logits, teacher, beta=beta)[0], turned, rtol=0, atol=1e-13)


def test_jensen_shannon_tends_to_either_kl():
    """Over β to the forward KL, over 1-β to the reverse."""
    logits, teacher = drawn(0, 1.0)
    forward, reverse = (value_and_gradient(name, logits, teacher)[0] for name in ("jensen_shannon", "reverse_kl"))
    forward, _ = kl_divergence(logits, teacher)
    for beta, limit in ((1e-6, forward), (1 - 1e-6, reverse)):
        assert np.allclose(jensen_shannon(logits, teacher, beta=beta)[0] / min(beta, 1 - beta), limit, rtol=1e-4)


@given(seed=seeds, k=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 10.0, 1000.0]), temperature=temperatures)
def test_the_tail_bucket_never_exceeds_the_kl(seed, k, scale, temperature):
    """The data-processing inequality; and more tokens never show less."""
    logits, teacher = drawn(seed, scale)
    full, _ = kl_divergence(logits, teacher, temperature)
    bounds = [top_k_tail_kl(logits, teacher, n, temperature)[0] for n in (k, k + 1)]
    slack = 1e-12 * (1 + full)
    assert (bounds[0] <= bounds[1] + slack).all() and (bounds[1] <= full + slack).all()


@pytest.mark.parametrize("k", [8, 9, 20])
@given(seed=seeds, temperature=temperatures)
def test_a_bucket_of_one_token_is_that_token(k, seed, temperature):
    logits, teacher = drawn(seed)
    out, dlogits = value_and_gradient("top_k_tail_kl", logits, teacher, k, temperature=temperature)
    full, cache = kl_divergence(logits, teacher, temperature)
    assert np.allclose(out, full, rtol=1e-12, atol=1e-14)
    assert np.allclose(dlogits, kl_divergence_backward(np.ones(5), cache), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["top_k_kl", "top_k_renormalised_kl"])
def test_all_tokens_are_the_whole_kl(name):
    logits, teacher = drawn(0)
    for k in (9, 20):
        assert np.allclose(
            value_and_gradient(name, logits, teacher, k)[0], kl_divergence(logits, teacher)[0], rtol=1e-13
        )


@given(seed=seeds, k=st.integers(1, 8))
def test_truncated_is_least_at_a_sharpened_student(seed, k):
    """At p / P on the top it is P log P, below 0 and flat; at the teacher itself it is 0 and has a slope."""
    others, teacher = drawn(seed, 1.0)
    P = np.exp(teacher[top_of(teacher, k)]).sum(-1)
    sharpened = np.full_like(teacher, -800.0)
    sharpened[top_of(teacher, k)] = teacher[top_of(teacher, k)]
    least, slope = value_and_gradient("top_k_kl", sharpened, teacher, k)
    assert np.allclose(least, P * np.log(P), rtol=0, atol=1e-14) and (least < 0).all()
    assert np.abs(slope).max() <= 1e-14
    at_teacher, slope = value_and_gradient("top_k_kl", teacher, teacher, k)
    assert np.abs(at_teacher).max() <= 1e-14 and (np.abs(slope).max(-1) > 1e-4).all()
    assert (top_k_kl(others, teacher, k)[0] >= least).all()


@given(seed=seeds, k=st.integers(1, 8))
def test_renormalised_is_blind_to_the_tail_and_the_bucket_to_its_shape(seed, k):
    logits, teacher = drawn(seed, 1.0)
    tail = np.ones_like(logits, bool)
    tail[top_of(teacher, k)] = False
    moved, turned = logits + 5 * tail, logits.copy()
    out, dlogits = value_and_gradient("top_k_renormalised_kl", logits, teacher, k)
    assert np.array_equal(out, top_k_renormalised_kl(moved, teacher, k)[0]) and not dlogits[tail].any()
    for row, rest in zip(turned, tail, strict=True):
        row[rest] = np.roll(row[rest], 1)
    bucket = top_k_tail_kl(logits, teacher, k)[0]
    assert np.allclose(top_k_tail_kl(turned, teacher, k)[0], bucket, rtol=1e-12, atol=1e-14)
    assert (np.abs(top_k_tail_kl(moved, teacher, k)[0] - bucket) > 1e-6).all()


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_logits_of_any_size_give_finite_numbers(name, dtype, size):
    """Where a tail's mass, or a whole distribution but one token, underflows to zero."""
    logits = (size * np.array([[1, 0, 0, -1, -1], [0, 0, 1, -1, 0], [0, 0, 0, 0, 0]])).astype(dtype)
    teacher = log_softmax((size * np.array([[1, 0, 0, -1, 0], [1, 0, 0, 0, -1], [-1, 1, 0, 0, -1]])).astype(dtype))
    with np.errstate(all="raise", under="ignore"):
        out, dlogits = value_and_gradient(name, logits, teacher, 2)
    assert np.isfinite(out).all() and np.isfinite(dlogits).all() and out.dtype == dlogits.dtype == dtype
    assert abs(out[0]) <= 1e-5 and np.abs(dlogits[0]).max() <= 1e-5  # both are sure of the same token


@each
@given(seed=seeds, temperature=temperatures)
def test_float32_is_float64_rounded(name, seed, temperature):
    logits, teacher = (x.astype(np.float32) for x in drawn(seed))
    exact = value_and_gradient(name, logits.astype(float), teacher.astype(float), temperature=temperature)
    for here, there in zip(value_and_gradient(name, logits, teacher, temperature=temperature), exact, strict=True):
        assert np.allclose(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3, 8, 9])
@given(seed=seeds, temperature=temperatures)
def test_values_are_the_textbook_s(kind, k, seed, temperature):
    logits, teacher = drawn(seed)
    options = {"k": k} if kind.startswith("top-k") else {}
    out, _ = getattr(divergences, DIVERGENCES[kind])(logits, teacher, temperature=temperature, **options)
    truth = textbook_divergence(kind, logits, teacher, temperature, **options)
    assert np.allclose(out, truth, rtol=1e-11, atol=1e-12)


def test_the_top_is_the_teacher_s(rng):
    teacher = log_normalised(rng, 6, 9)
    for k in (1, 4, 9, 12):
        rows, columns = top_of(teacher, k)
        assert rows.shape == (6, 1) and columns.shape == (6, min(k, 9))
        assert np.array_equal(np.sort(columns), np.sort(np.argsort(-teacher)[:, :k]))


@each
def test_backward_leaves_its_cache_alone(name, rng):
    logits, teacher = drawn(0)
    for a in (logits, teacher):
        a.setflags(write=False)
    options = {"k": 3} if "top_k" in name else {}
    _, cache = getattr(divergences, name)(logits, teacher, **options)
    dout, backward = rng.standard_normal(5), getattr(divergences, f"{name}_backward")
    dout.setflags(write=False)
    assert np.array_equal(backward(dout, cache), backward(dout, cache))
