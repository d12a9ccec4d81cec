"""Golden vectors: each number against a second reading, and the tables that make them."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from golden_port import golden_error

from minicompress.layers import attention, embedding, gelu, layernorm, linear, losses, lstm
from minicompress.prompts import carriers, layout
from minicompress.prompts.parameterisations import MADE_OF, cartridge, low_rank, ptuning_lstm
from minicompress.training import adamw
from minicompress.verification import repeated, trace
from minicompress.verification.golden import layers as golden_layers
from minicompress.verification.golden import models as golden_models
from minicompress.verification.golden.case import Draw, computed
from minicompress.verification.golden.folder import CASES, given_and_asked, tensor_error
from test_planted_bugs import Bug, planted_error

ROOT = Path(__file__).resolve().parents[2]
each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_every_number_has_a_second_reading(name):
    assert golden_error(name) <= CASES[name].float64 / 5


BUGS = [
    Bug("eps forgotten in the backward", "layer-layernorm-small", layernorm.layernorm_backward,
        "g -= xhat * stretch", "g -= xhat * stretch / (xhat * xhat).mean(-1, keepdims=True)"),
    Bug("another eps", "layer-layernorm", layernorm.layernorm, "+ eps) ** -0.5", "+ 1.1 * eps) ** -0.5"),
    Bug("a bias's gradient averaged", "layer-linear", linear.linear_backward, "rows.sum(0)", "rows.mean(0)"),
    Bug("a constant cut short", "layer-gelu", gelu.curve, "CUBE * ROOT", "0.0356774"),
    Bug("a repeated token counted once", "layer-embedding", embedding.embedding_backward,
        'add_at(grads["weight"], ids.reshape(-1), ', 'grads["weight"].__setitem__(ids.reshape(-1), '),
    Bug("the maximum stays", "layer-softmax-extreme", attention.softmax, "x - x.real.max(-1, keepdims=True)", "x + 0"),
    Bug("the maximum of all rows", "loss-cross-entropy-extreme", losses.log_softmax, "max(-1, keepdims=True)", "max()"),
    Bug("a query sees the next token", "layer-attention", attention.attention, "xp.tri(T, dtype=bool)", "xp.tri(T, k=1, dtype=bool)"),
    Bug("a shared past's gradient from one row", "layer-attention-past-shared", attention.shared, "d.sum(0, keepdims=True)", "d[:1]"),
    Bug("masses that do not count", "layer-attention-past-masses", attention.attention, "before + past[2][..., None, :]", "before"),
    Bug("a mask that hides nothing", "layer-attention-key-mask", attention.attention, "if key_mask is not None", "if False"),
    Bug("gates in another order", "layer-lstm", lstm.gates, "i, f, g, o = z", "i, f, o, g = z"),
    Bug("the reverse direction reads onward", "layer-lstm-reverse", lstm.lstm, "reversed(range(T)) if reverse else range(T)", "range(T)"),
    Bug("no T²", "loss-kl-temperature", losses.kl_divergence, "T * T * (p", "(p"),
    Bug("KL's gradient without T", "loss-kl-temperature", losses.kl_divergence_backward, "T * dout", "dout"),
    Bug("values before keys", "bake-prefix-mlp", layout.kv_from_flat, "transpose(1, 2, 3, 0, 4)", "transpose(1, 2, 3, 0, 4)[:, ::-1]"),
    Bug("a base that is trained", "bake-low-rank", low_rank.bake_backward, 'array_module(dslots).zeros_like(raw["base"])', "dslots"),
    Bug("a first slot that is trained", "bake-cartridge", cartridge.bake_backward, "array_module(dslots).zeros_like(dslots[:, :, :, :F])", "dslots[:, :, :, :F]"),
    Bug("a direction twice", "bake-ptuning-lstm", ptuning_lstm.both_directions, "[onward, back]", "[onward, onward]"),
    Bug("tokens from 0", "carrier-hidden", carriers.placed, "start=start", "start=0"),
    Bug("slots that are normalised twice", "carrier-hidden", carriers.read_hidden, "for layer, x in enumerate(slots):", "for layer, x in enumerate(slots + 1e-9 * slots**2):"),
    Bug("scored one place later", "gpt2-tied", trace.run_both_ways, "first, (B, 1, config.n_embd)), out[:, :-1]]", "first, (B, 1, config.n_embd)), out[:, 1:]]"),
    Bug("the teacher's context forgotten", "teacher-kl", trace.make_objective, "read_tokens(*teacher, teacher_context)", "read_tokens(*teacher, teacher_context[:0] or [0])"),
    Bug("the student teaches itself", "teacher-kl-other", trace.make_objective, "teacher or model", "model"),
    Bug("an encoder's gradient is that of the slots", "encoder-prefix-mlp", trace.prompt_tensors, 'dslots["slots"], bake(prompt.raw)', '2 * dslots["slots"], bake(prompt.raw)'),
    Bug("decay on vectors too", "step-adamw", adamw.adamw_step, "weight_decay and p.ndim > 1", "weight_decay"),
    Bug("decay as a gradient", "step-adamw", adamw.adamw_step, "p *= 1 - lr * weight_decay", "m += (1 - b1) * weight_decay * p"),
    Bug("moments as they are", "step-prompt", adamw.adamw_step, "rate, root = lr / (1 - b1**t), ", "rate, root = lr, "),
    Bug("clipped one by one", "step-clip", adamw.clip_by_global_norm, "g *= limit / norm", "g *= limit / math.sqrt((g * g).sum())"),
    Bug("the norm after clipping", "step-prompt", repeated.stepped, "clip_by_global_norm(grads, clip or math.inf)", "min(clip, clip_by_global_norm(grads, clip))"),
    Bug("decoding forgets the prompt", "decode-behind-a-prompt", repeated.decoded, "prompt and prompt.prefix(*model)", "None"),
    # the tables themselves
    Bug("the mask not used", "layer-attention-key-mask", golden_layers.run_attention, 'if "key_mask" in i', 'if "mask" in i'),
    Bug("a temperature on one side", "loss-kl-temperature", golden_layers.run_divergence, 'i["teacher_logits"] / temperature', 'i["teacher_logits"]'),
    Bug("the rows' padding is read", "gpt2-tied", golden_models.asked, "row[:n].tolist()", "row.tolist()"),
    Bug("the other teacher not asked", "teacher-kl-other", golden_models.asked, '"teacher" in tree', "False"),
    Bug("raw arrays not baked", "carrier-kv", golden_models.prompt_of, "kv_from_flat(given, config.n_layer, config.n_head)", "kv_from_flat(given, config.n_layer, config.n_head)[:, ::-1]"),
    Bug("the betas turned round", "step-prompt", golden_models.run_steps, "(beta1, beta2)", "(beta2, beta1)"),
    Bug("an optimiser that goes up", "step-adamw", golden_models.run_adamw, "[step] for name", "[step] * -1 for name"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_no_wrong_number_could_be_released(bug, monkeypatch):
    checks = {name: lambda name=name: golden_error(name) for name in CASES}
    with np.errstate(all="ignore"):
        assert not planted_error(bug, checks, monkeypatch, (ValueError, IndexError)) <= CASES[bug.caught_by].float64


@pytest.mark.parametrize("part", ["given", "asked"])
@pytest.mark.parametrize("name", ["layer-gelu", "carrier-kv"])
def test_what_is_off_by_little_is_off(part, name, monkeypatch):
    """One number of one tensor, on either side, by a millionth: the measure itself."""
    given, asked = given_and_asked(name, CASES[name])
    tree = {"given": given, "asked": asked}[part]
    moved = next(n for n, x in tree.items() if x.dtype.kind == "f" and x.size > 1)
    tree[moved].flat[-1] += 1e-6
    monkeypatch.setattr("golden_port.given_and_asked", lambda *_: (given, asked))
    assert golden_error(name) > 1e-9


def test_every_layer_parameterisation_carrier_and_position_is_there():
    sources = (ROOT / "minicompress" / "layers").glob("*.py")
    backwards = {name for path in sources for name in re.findall(r"^def (\w+_backward)\(", path.read_text(), re.M)}
    assert backwards - {"attention_in_pieces_backward", "tail_bucket_backward"} <= vars(golden_layers).keys()
    raw = [tuple(sorted({n.split(".")[1] for n in computed(name, CASES[name])[0] if n != "dslots"})) for name in CASES if name.startswith("bake")]
    assert set(raw) == set(MADE_OF)
    facts = [case.facts for case in golden_models.MODELS.values()]
    assert {(f["carrier"], f["positions"]) for f in facts if "positions" in f} == {
        *((carrier, positions) for carrier in carriers.DOORS for positions in carriers.POSITIONS), ("in rows", "in rows")}  # fmt: skip
    assert {f["tie_word_embeddings"] for f in facts if "carrier" in f and f["carrier"] == "none"} == {True, False}


ZERO = {  # what is nothing but zeros, and has to be
    "layer-attention-one-token": {"grad.q", "grad.k"},
    "edge-one-token": {"grad.ln_f", "grad.hidden.0", "grad.hidden.1"},
    **dict.fromkeys(("bake-low-rank", "bake-low-rank-hidden", "bake-low-rank-kv"), {"grad.raw.base"}),
    "bake-cartridge": {"grad.raw.frozen"},
}


@each_case
def test_nothing_is_zero_by_chance_or_nearly_zero(name):
    """A tensor of rounding alone could be compared with nothing."""
    _, asked = given_and_asked(name, CASES[name])
    assert {n for n, x in asked.items() if not x.any()} == ZERO.get(name, set())
    assert all(np.abs(x).max() > 1e-6 for n, x in asked.items() if n not in ZERO.get(name, ()))
    assert all(np.isfinite(x).all() for x in asked.values())


@each_case
def test_float32_is_given_the_very_same_numbers(name):
    given, _ = given_and_asked(name, CASES[name])
    drawn = [x for n, x in given.items() if not n.startswith(("config.", "tolerance."))]
    assert all(np.array_equal(x, x.astype(np.float32)) for x in drawn)


def rounding(name, dtype):
    """The largest error of a tensor that another precision makes: against float64, or of float64."""
    _, truth = computed(name, CASES[name])
    _, other = computed(name, CASES[name], dtype)
    exact, rounded = (other, truth) if dtype == np.longdouble else (truth, other)
    return max(tensor_error(x.astype(exact[n].dtype), exact[n]) for n, x in rounded.items())


@each_case
def test_the_tolerances_are_ten_times_what_rounding_costs_or_more(name):
    case = CASES[name]
    assert 10 * rounding(name, np.float32) <= case.float32 <= 1e-2
    if np.finfo(np.longdouble).eps < 1e-18:
        assert 10 * rounding(name, np.longdouble) <= case.float64 <= 1e-10


def test_the_edges_are_where_they_are_said_to_be():
    numbers = lambda name: {k: v for tree in given_and_asked(name, CASES[name]) for k, v in tree.items()}
    big = numbers("edge-extreme-logits")["logits"]
    assert (np.abs(big[big != 0]) > 1000).all() and big.min() < -1000  # and exp overflows beyond 709
    for name, tensor in (("layer-softmax-extreme", "x"), ("loss-cross-entropy-extreme", "logits")):
        x = numbers(name)[tensor]
        assert x.max() > 710 and not np.exp(np.minimum(x, 700)).any(-1).all()  # overflow in one row, 0 / 0 in another
    i = numbers("layer-attention-extreme")
    scores = i["q"] @ i["k"].swapaxes(-1, -2) / math.sqrt(3)
    assert scores.max() > 710 and scores.max(-1).min() < -746
    full = CASES["edge-full-positions"].facts
    assert full["slots"] + numbers("edge-full-positions")["lengths"].max() == full["n_positions"]
    assert (numbers("edge-one-label")["labels"] >= 0).sum() == 1
    assert len(set(numbers("edge-repeated-tokens")["tokens"].ravel())) <= 2
    assert np.isneginf(numbers("edge-absent-slots")["prompt.beta"]).sum() == 3
    assert (numbers("layer-relu")["x"] == 0).sum() == 1
    x = numbers("layer-layernorm-small")["x"]
    assert x.var(-1).max() < 1e-4


@pytest.mark.parametrize("name", ["decode-greedy", "decode-behind-a-prompt"])
def test_no_token_is_chosen_by_a_hair(name):
    _, asked = given_and_asked(name, CASES[name])
    best = np.sort(asked["decoded_logits"])[..., -2:]
    assert (best[..., 1] - best[..., 0]).min() > 1e-3
    assert len({tuple(row) for row in asked["decoded"]}) == 2 and len(set(asked["decoded"].ravel())) > 2


def test_sentences_are_sentences():
    told = [case.proves for case in CASES.values()]
    assert all(re.fullmatch(r"[^\n|]{10,110}\.", words) for words in told)


def test_draws_do_not_depend_on_what_numpy_makes_of_bits():
    """These very numbers, in whatever version."""
    assert (Draw("a")(4) * 2**13).tolist() == FIRST_DRAWN
    assert Draw("a").below(1000, 3).tolist() == FIRST_BELOW


FIRST_DRAWN, FIRST_BELOW = [5711, -2219, 639, 15679], [113, 328, 60]
