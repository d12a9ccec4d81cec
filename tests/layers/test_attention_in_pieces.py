"""Attention a piece of the queries at a time equals attention at once, forward and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from checks import CHECKS
from helpers import TINY, random_ids, random_params
from minicompress.arrays import to_host
from minicompress.gpt2 import backward, block, embed, forward
from minicompress.layers import attention
from minicompress.verification.oracles import complex_step, relative_error
from test_planted_bugs import Bug, plant


def inputs(rng, B, H, T, D, P, past_rows, masses, masked):
    """q, k, v, past, key_mask, and a gradient dout."""
    q, k, v, dout = rng.standard_normal((4, B, H, T, D))
    past = list(rng.standard_normal((2, past_rows, H, P, D))) if past_rows else None
    if past and masses:
        past.append(rng.standard_normal((past_rows, H, P)))
    S, mask = T + (P if past else 0), None
    if masked:
        mask = rng.random((B, S)) < 0.6
        mask[:, S - T] = True  # each query sees something
    return (q, k, v, past, mask), dout


def both_ways(arguments, dout):
    """[(in pieces, at once)] of out, dq, dk, dv and the parts of dpast."""
    found = []
    for there, back in (
        (attention.attention_in_pieces, attention.attention_in_pieces_backward),
        (attention.attention, attention.attention_backward),
    ):
        out, cache = there(*arguments)
        *dqkv, dpast = back(dout, cache)
        found.append([out, *dqkv, *(dpast or ())])
    assert len(found[0]) == len(found[1])
    return list(zip(*found, strict=True))


def error(seed=0, B=2, H=3, T=11, D=5, P=3, past_rows=1, masses=True, masked=True, piece=4):
    arguments, dout = inputs(np.random.default_rng(seed), B, H, T, D, P, past_rows, masses, masked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE", piece)
        return max(relative_error(a, b) for a, b in both_ways(arguments, dout))


CASES = {"without a past": {"past_rows": 0}, "shared past": {}, "past per row": {"past_rows": 2}}


@given(seed=st.integers(0, 2**32 - 1), T=st.integers(1, 14), P=st.integers(1, 4), past_rows=st.sampled_from([0, 1, 2]),
       masses=st.booleans(), masked=st.booleans(), piece=st.integers(1, 15))  # fmt: skip
def test_any_pieces(seed, T, P, past_rows, masses, masked, piece):
    assert error(seed, T=T, P=P, past_rows=past_rows, masses=masses, masked=masked, piece=piece) <= 1e-12


@pytest.mark.parametrize("T", [64, 65, 127, 128, 200])
def test_pieces_of_the_usual_length(T):
    assert error(B=1, H=2, T=T, P=20, past_rows=1, piece=attention.PIECE) <= 1e-12


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_probabilities_laid_side_by_side(options, monkeypatch):
    arguments, _ = inputs(np.random.default_rng(0), *{"B": 2, "H": 3, "T": 11, "D": 5, "P": 3, "past_rows": 1,
                          "masses": False, "masked": False, **options}.values())  # fmt: skip
    (*_, whole) = attention.attention(*arguments)[1]
    monkeypatch.setattr(attention, "PIECE", 4)
    found = attention.probabilities(attention.attention_in_pieces(*arguments)[1])
    assert found.shape == whole.shape and relative_error(found, whole) <= 1e-14
    assert (found[whole == 0] == 0).all()


def test_one_piece_is_attention_to_the_last_bit():
    (q, k, v, past, mask), dout = inputs(np.random.default_rng(0), 2, 3, 9, 5, 3, 1, True, True)
    assert all(np.array_equal(a, b) for a, b in both_ways((q, k, v, past, mask), dout))


def test_the_whole_model_in_pieces(rng, monkeypatch):
    """Also with the gradient of what later tokens asked, which reaches keys of every piece."""
    params, ids = random_params(TINY, rng), random_ids(TINY, rng, 3, 11)
    _, past, first = forward(params, TINY, embed(params, ids[:, :4]))
    hidden, _, second = forward(params, TINY, embed(params, ids[:, 4:], 4), past)
    dhidden = rng.standard_normal(hidden.shape)
    dx, dpast = backward(dhidden, second)
    whole = hidden, dx, backward(0 * dhidden[:, :4], first, dpast)[0]
    monkeypatch.setattr(attention, "PIECE", 3)
    _, past, first = forward(params, TINY, embed(params, ids[:, :4]))
    hidden, _, second = forward(params, TINY, embed(params, ids[:, 4:], 4), past)
    assert len(second[0][0]["attn"]["attention"][-1]) == 3
    dx, dpast = backward(dhidden, second)
    for a, b in zip((hidden, dx, backward(0 * dhidden[:, :4], first, dpast)[0]), whole, strict=True):
        assert relative_error(a, b) <= 1e-12


@pytest.mark.parametrize("name", ["gradient of slots", "gradient of weights", "causal", "hard text"])
def test_the_model_s_own_checks_in_pieces(name, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", 2)
    assert CHECKS[name]() <= 1e-12


def test_the_complex_step_through_pieces(monkeypatch):
    monkeypatch.setattr(attention, "PIECE", 2)
    (q, k, v, past, mask), dout = inputs(np.random.default_rng(0), 2, 3, 7, 5, 3, 1, True, False)
    _, caches = attention.attention_in_pieces(q, k, v, past, mask)
    *_, (dpast_k, dpast_v, dbeta) = attention.attention_in_pieces_backward(dout, caches)
    for place, found in enumerate((dpast_k, dpast_v, dbeta)):
        u = np.random.default_rng(1).standard_normal(found.shape)
        complex_past = lambda x, place=place: [x if n == place else p + 0j for n, p in enumerate(past)]
        f = lambda x: attention.attention_in_pieces(q + 0j, k + 0j, v + 0j, complex_past(x))[0]  # noqa: B023
        assert abs(complex_step(f, past[place], u, dout) - (found * u).sum()) <= 1e-12


def test_on_other_devices(xp, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", 3)
    (q, k, v, past, mask), dout = inputs(np.random.default_rng(0), 2, 3, 8, 5, 3, 1, True, True)
    move = xp.asarray
    here = both_ways((q, k, v, past, mask), dout)
    there = both_ways((move(q), move(k), move(v), [move(p) for p in past], move(mask)), move(dout))
    for (a, _), (b, _) in zip(there, here, strict=True):
        assert relative_error(to_host(a), b) <= (0 if xp is strict_device else 1e-12)


def test_the_model_reads_in_pieces():
    assert block.attention_in_pieces is attention.attention_in_pieces


BUGS = [
    Bug("earlier keys of the same row forgotten", "shared past", attention.earlier,
        "if not start", "if True"),
    Bug("a piece sees keys behind it", "shared past", attention.attention_in_pieces,
        "earlier(past, k, v, rows.start)", "earlier(past, k, v, rows.start and rows.stop)"),
    Bug("the outside past seen by the first piece alone", "past per row", attention.earlier,
        "if not past", "if True"),
    Bug("the mask of the first piece for all", "shared past", attention.seen_by,
        "key_mask[:, :keys]", "key_mask[:, :keys] & (rows.start == 0)"),
    Bug("earlier keys with the masses of the past", "shared past", attention.earlier,
        "xp.zeros_like(k[:, :, :start, 0])", "xp.ones_like(k[:, :, :start, 0])"),
    Bug("earlier keys' gradient lost", "without a past", attention.attention_in_pieces_backward,
        "dk[:, :, : rows.start] += dbefore[0][:, :, P:]", "pass"),
    Bug("earlier values' gradient lost", "without a past", attention.attention_in_pieces_backward,
        "dv[:, :, : rows.start] += dbefore[1][:, :, P:]", "pass"),
    Bug("a piece's own gradient over what later pieces asked", "without a past", attention.attention_in_pieces_backward,
        "zip(pieces(dout.shape[2]), scaled, probs, strict=True)",
        "zip(pieces(dout.shape[2])[::-1], scaled[::-1], probs[::-1], strict=True)"),
    Bug("the past's gradient of the last piece alone", "past per row", attention.attention_in_pieces_backward,
        "d += shared(before[:, :, :P], d)", "d[...] = shared(before[:, :, :P], d)"),
    Bug("the past's gradient at the earlier keys", "past per row", attention.attention_in_pieces_backward,
        "shared(before[:, :, :P], d)", "shared(before[:, :, -P:], d)"),
]  # fmt: skip


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_case_passes_on_the_real_source(options):
    assert error(**options) <= 1e-12


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    plant(bug, monkeypatch)
    try:
        found = error(**CASES[bug.caught_by])
    except ValueError:  # shapes that do not fit
        return
    assert not found <= 1e-10
