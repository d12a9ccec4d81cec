"""The answers to the pages' exercises. The numbers that figures measure are in `test_quoted_numbers.py`."""

import answers
import numpy as np
import pytest

from helpers import TINY, log_normalised, random_ids, random_params
from letters import Letters
from minicompress.commands import open_model
from minicompress.compression.matching import matched
from minicompress.evaluation.metrics import Scores, gap_closed
from minicompress.gpt2 import Config, embed, forward
from minicompress.gpt2.block import block
from minicompress.gpt2.init import shapes
from minicompress.gpt2.prefix import read_slots
from minicompress.layers.attention import attention
from minicompress.layers.divergences import reverse_kl, reverse_kl_backward
from minicompress.layers.losses import kl_divergence, kl_divergence_backward, log_softmax
from minicompress.prompts.carriers import DOORS, lift
from minicompress.prompts.parameterisations import low_rank
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.template import parse
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.verification.catalogue.front import over_padding
from minicompress.verification.oracles import complex_step, relative_error, unit_direction
from minicompress.verification.peft_conformance.bench import CONFIG
from minicompress.verification.peft_conformance.writing import anew_behind
from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.costs import divided_by, mean_of_row_means, with_slots
from minicompress.verification.plain.forward import Way
from minicompress.verification.properties import rates_both_ways
from minicompress.verification.setup import Setup
from minicompress.verification.tolerance import Tolerances
from tracing import Case


def with_layers(n):
    return Config(**{**vars(TINY), "n_layer": n})


@pytest.mark.parametrize("layers, noticed", [(1, False), (2, True)])
def test_01_reversed_slots(layers, noticed, rng):
    config = with_layers(layers)
    params = random_params(config, rng)
    ids, slots = random_ids(config, rng, 2, 5), rng.standard_normal((2, config.n_embd))

    def read(slots):
        prefix, _ = read_slots(params, config, slots)
        return prefix.last, forward(params, config, embed(params, ids, prefix.start), prefix.past)[0]

    (last, text), (other_last, other_text) = read(slots), read(answers.reversed_slots(slots, params["wpe"]["weight"]))
    error = relative_error(other_text, text)
    assert error > 1e-3 if noticed else error < 1e-13
    assert relative_error(other_last, last) > 1e-3


def against_complex_step(f, f_backward, x, dout, rng):
    u = unit_direction(rng, x.shape)
    dx = f_backward(dout, f(x)[1])
    return relative_error((dx * u).sum(), complex_step(lambda x: f(x)[0], x, u, dout))


def test_02_rmsnorm(rng):
    x, weight, dout = rng.standard_normal((3, 8)), rng.standard_normal(8), rng.standard_normal((3, 8))
    assert against_complex_step(lambda x: answers.rmsnorm(x, weight), answers.rmsnorm_backward, x, dout, rng) < 1e-13


@pytest.mark.parametrize("config", [TINY, Config(), Config(tie_word_embeddings=False)], ids=["tiny", "small", "untied"])
def test_03_weights(config):
    total = sum(int(np.prod(shape)) for shape in shapes(config).values())
    sizes = config.vocab_size, config.n_positions, config.n_embd, config.n_layer
    assert total == answers.weights_of(*sizes, tied=config.tie_word_embeddings)
    assert total == {17: total, 50257: 124439808 + 38597376 * (not config.tie_word_embeddings)}[config.vocab_size]


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_03_products(n):
    assert answers.products(n) == (sum(t + 1 for t in range(n)), sum(t * (t + 1) // 2 for t in range(1, n + 1)))


@pytest.mark.parametrize("frozen", [True, False])
def test_04_numbers_kept(frozen, rng):
    B, T, P, C, H = 2, 5, 3, TINY.n_embd, TINY.n_head
    params = random_params(TINY, rng)["h"]["0"]
    past = tuple(rng.standard_normal((1, H, P, C // H)) for _ in "kv")
    cache = block(rng.standard_normal((B, T, C)), params, TINY, past, frozen=frozen)[2]

    def sizes(node):
        if isinstance(node, dict):
            return sum(map(sizes, node.values()))
        if isinstance(node, tuple):
            return sum(map(sizes, node))
        return node.size if isinstance(node, np.ndarray) else 0

    weights = sum(params[part]["weight"].size for part in ("ln_1", "ln_2"))
    weights += sum(layer["weight"].size for part in ("attn", "mlp") for layer in params[part].values())
    kept = sizes(cache) - weights - sizes(past)
    assert kept == answers.numbers_kept(B, T, P, C, H, frozen)


def test_04_quoted_numbers():
    sizes = 1, 1, 147, 768, 12
    assert (answers.numbers_kept(*sizes), answers.numbers_kept(*sizes, frozen=False)) == (8690, 14066)


def test_05_groups_of_tokens(rng):
    z, teacher, dout = rng.standard_normal((4, 9)), log_normalised(rng, 4, 9), rng.standard_normal(4)
    groups = np.array([0, 1, 2, 0, 1, 3, 3, 3, 2])
    f = lambda z, groups=groups: answers.grouped_kl(z, teacher, groups)
    assert against_complex_step(f, answers.grouped_kl_backward, z, dout, rng) < 1e-13
    full, cache = kl_divergence(z, teacher)
    alone, alone_cache = f(z, np.arange(9))
    assert relative_error(alone, full) < 1e-13 and (f(z)[0] < full).all()
    assert relative_error(answers.grouped_kl_backward(dout, alone_cache), kl_divergence_backward(dout, cache)) < 1e-13
    proportional = teacher + rng.standard_normal((4, 4))[:, groups]
    assert relative_error(f(proportional)[0], kl_divergence(proportional, teacher)[0]) < 1e-12


def test_05_a_student_that_is_sure_learns_nothing_from_reverse_kl(rng):
    _, cache = reverse_kl(1e4 * np.eye(9)[:4], log_normalised(rng, 4, 9))
    assert not reverse_kl_backward(rng.standard_normal(4), cache).any()


def test_05_limit_of_high_temperature(rng):
    z, t, T = rng.standard_normal((4, 9)), rng.standard_normal((4, 9)), 1e5
    gradient = kl_divergence_backward(np.ones(4), kl_divergence(z, log_softmax(t / T), T)[1])
    assert relative_error(gradient, (z - z.mean(-1, keepdims=True) - t + t.mean(-1, keepdims=True)) / 9) < 1e-4


def test_06_gap_closed():
    none, slots = [3.0, 0.9, 0.1], [0.6, 0.3, 0.3]
    assert answers.gap_and_mean_of_ratios(none, slots) == pytest.approx((0.7, -0.1778), abs=1e-4)
    scores = [Scores([np.array([x]) for x in kl], []) for kl in (none, slots)]
    assert gap_closed(*scores, np.random.default_rng(0))[0] == pytest.approx(0.7)


def test_06_break_even():
    assert answers.queries_to_break_even(45, 0.050, 0.020) == pytest.approx(1500)
    assert answers.queries_to_break_even(45, 0.020, 0.020) is None


@pytest.mark.parametrize("beta", [0.0, 1.3, -np.inf])
def test_07_zero_slots_shrink(beta, rng):
    B, H, T, D, P = 2, 3, 5, 4, 6
    q, k, v = rng.standard_normal((3, B, H, T, D))
    zeros = np.zeros((1, H, P, D))
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(D), -np.inf)
    out = attention(q, k, v, (zeros, zeros, np.full((1, H, P), beta)))[0]
    assert relative_error(out, answers.shrunk(scores, P, beta)[..., None] * attention(q, k, v)[0]) < 1e-14


def test_07_when_zero_slots_take_a_tenth():
    left = np.array([answers.shrunk(np.zeros(t + 1), 20) for t in range(300)])
    assert (left > 0.9).argmax() == 180 and (left[180:] > 0.9).all()
    assert answers.shrunk(np.zeros(1), 20, -np.log(180)) == pytest.approx(0.9)
    assert -np.log(180) == pytest.approx(-5.19, abs=0.005)


@pytest.mark.parametrize("carrier", DOORS)
@pytest.mark.parametrize("layers", [1, 3])
def test_08_directions(carrier, layers, rng):
    P, config = 2, with_layers(layers)
    params = random_params(config, rng)
    slots = lift(params, config, rng.standard_normal((P, config.n_embd)), carrier)

    def moved(i):
        x = slots.astype(complex)
        x.flat[i] += 1e-30j
        past = DOORS[carrier].read(params, config, x)[0].past
        return np.concatenate([a.imag.ravel() for layer in past for a in layer]) / 1e-30

    jacobian = np.stack([moved(i) for i in range(slots.size)])
    rank = np.linalg.matrix_rank(jacobian, tol=1e-10 * np.abs(jacobian).max())
    assert rank == answers.directions(P, config.n_embd, layers)[carrier]


def test_08_a_constant_is_not_noticed(rng):
    params, ids, slots = random_params(TINY, rng), random_ids(TINY, rng, 2, 5), rng.standard_normal((3, TINY.n_embd))

    def read(slots):
        prefix, _ = read_slots(params, TINY, slots)
        return np.concatenate([prefix.last[0], *forward(params, TINY, embed(params, ids, 3), prefix.past)[0]])

    assert relative_error(read(slots + np.array([[1.0], [-2.0], [0.5]])), read(slots)) < 1e-12


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_09_low_rank_step(scale, rng):
    rate, raw = 0.1, low_rank.init(rng, rng.standard_normal((5, 7)), 2, np.float64)
    raw["b"] += scale * rng.standard_normal(raw["b"].shape)
    (slots, cache), g = low_rank.bake(raw), rng.standard_normal((5, 7))
    draw = low_rank.bake_backward(g, cache)
    after = low_rank.bake({name: raw[name] - rate * draw[name] for name in raw})[0]
    assert relative_error(answers.low_rank_step(raw["a"], raw["b"], g, rate), after - slots) < 1e-12
    if not scale:
        unseen = g - raw["a"] @ np.linalg.pinv(raw["a"]) @ g
        assert np.abs(answers.low_rank_step(raw["a"], raw["b"], unseen, rate)).max() < 1e-14


@pytest.mark.parametrize("text", ["t", "tom has a dog"])
def test_10_tied_template(text):
    template, C = parse("[a 2]{text}[3][a]"), 12
    row = template.row(Letters(), {"text": text})
    places, numbers, of_slot_0, whole, behind = answers.tied_template(len(text), C)
    assert (places, numbers) == (len(row), template.slots(Letters()) * C)
    assert of_slot_0 == [place for place, token in enumerate(row) if token == -1]
    assert whole == sum(place + 1 for place in range(places)) == behind + 1 + 2


def test_11_keys_of_a_batch():
    lengths, tokens = [8, 0, 2, 5], [5, 9, 3, 7]
    kept, real = answers.keys_of_a_batch(lengths, tokens)
    mask = np.concatenate([np.arange(8) < np.array(lengths)[:, None], np.arange(9) < np.array(tokens)[:, None]], axis=1)
    assert (kept, real) == (mask.size, mask.sum())


def test_12_steps_to_shrink():
    wte = open_model().wte
    assert round(float(wte.std()), 2) == 0.08
    x, rate, steps = {"x": np.ones((3, 4))}, 0.01, 0
    state = adamw_init(x)
    while x["x"].max() > 0.08 + 1e-4:
        adamw_step(x, {"x": np.ones((3, 4))}, state, rate)
        steps += 1
    assert steps == answers.steps_to_shrink(1, 0.08, 0.01) == 92 and answers.steps_to_shrink(1, 0.08, 0.1) == 9


def test_15_four_point_difference(rng):
    f, x, u, dout = np.sin, rng.standard_normal(5), unit_direction(rng, 5), rng.standard_normal(5)
    exact = (dout * np.cos(x) * u).sum()
    error = lambda h: relative_error(answers.four_point_difference(f, x, u, dout, h), exact)
    fifth = (dout * np.cos(x) * u**5).sum()  # φ⁽⁵⁾
    assert error(0.05) == pytest.approx(abs(fifth / exact) * 0.05**4 / 30, rel=0.01)
    assert error(7e-4) < 1e-11 and error(7e-4) < error(1e-6) and error(7e-4) < error(0.05)


@pytest.mark.parametrize("curvature", [0.3, 1.0, -4.0])
def test_15_least_error_that_a_taylor_test_sees(curvature):
    f = lambda x: float(x[0] + curvature * x[0] ** 2 / 2)
    for sign in (1, -1):
        rates = [rates_both_ways(f, np.zeros(1), np.ones(1), 1 + sign * share * answers.least_seen(abs(curvature)) * np.ones(1), 1e-3, 4)
                 for share in (0.97, 1.03)]  # fmt: skip
        assert min(rates[0]) > 1.9 > min(rates[1])
    assert answers.least_seen(1) == pytest.approx(3.3e-5, rel=0.02)


@pytest.mark.parametrize("anew, most", [(False, 905), (True, 44)])
def test_18_positions_needed(anew, most, rng):
    assert answers.positions_needed(20, 100, most, anew) <= 1024 < answers.positions_needed(20, 100, most + 1, anew)
    params, prompt, row = random_params(CONFIG, rng), SoftPrompt(rng.standard_normal((4, CONFIG.n_embd))), [3, 1, 4]
    room = next(k for k in range(99) if answers.positions_needed(4, len(row), k + 1, anew) > CONFIG.n_positions)
    reads = (anew_behind if anew else lambda params, prompt, row, text: embed(params, [row + text[:-1]], prompt.start))
    reads(params, prompt, row, [1] * room)
    with pytest.raises(ValueError, match=f"{answers.positions_needed(4, len(row), room + 1, anew)} positions are needed"):
        reads(params, prompt, row, [1] * (room + 1))


def test_13_a_mean_over_all_places():
    assert answers.of_all_places([5, 2, 3]) == pytest.approx(2 / 3)
    rows = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    setup = Setup(Case(rows=rows).model, rows, Case().prompt)
    wrong = answer(setup, Way(places=divided_by(lambda asked, n: asked.scored.size)))
    assert relative_error(wrong["loss"], setup.tensors()["loss"] * answers.of_all_places([5, 2, 3])) <= 1e-14


def test_14_least_planted():
    assert answers.least_planted(3072, 24, 4) == pytest.approx(8e-5, rel=0.05)
    assert answers.least_planted(3072, 24, 8) == pytest.approx(1.5e-13, rel=0.05)
    reference = {"hidden.2": np.ones((1, 1, 64)), "grad.model.wte.weight": np.ones((3, 64)), "hidden.0": np.zeros((1, 1, 64)), "hidden.1": np.zeros((1, 1, 64))}
    known = Setup(None, [])  # a model at hand, so that no safety is added
    assert Tolerances(reference, reference, known).of("grad.model.wte.weight") == pytest.approx(answers.least_planted(64, 4, 8))


@pytest.mark.parametrize("lengths, slots", [([5, 5, 5], 4), ([5, 2, 3], 1)])
def test_16_what_cannot_be_told(lengths, slots, rng):
    rows = [rng.integers(17, size=n).tolist() for n in lengths]
    setup = Setup(Case().model, rows, SoftPrompt(rng.standard_normal((slots, TINY.n_embd))))
    right, silent = answer(setup), set()
    ways = {"mean-of-row-means": Way(places=mean_of_row_means(False)), "left-padding": Way(left=True, positions=over_padding),
            "slots-scored": Way(places=with_slots(0))}  # fmt: skip
    for name, way in ways.items():
        wrong = answer(setup, way)
        silent |= {name} if max(relative_error(wrong[n], x) for n, x in right.items()) <= 1e-12 else set()
    assert silent == answers.cannot_be_told(lengths, slots)


def test_slots_and_the_longest_sequence_of_a_compressor():
    found = {kind: answers.slots_and_longest(kind, 96, 32, 8) for kind in ("autocompressor", "rmt", "ccm-mean")}
    assert found == {"autocompressor": (24, 56), "rmt": (8, 48), "ccm-mean": (8, 48)}


def test_one_slot_for_three_tokens():
    """The fit of a head, with next to no ridge, is the answer by hand."""
    attention, values = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 6.0])
    w, value, with_beta, without = answers.one_slot(attention, values, 0.25)
    assert (w, value, with_beta, without) == pytest.approx((2, 2.3, 0.25, 0.4))
    keys, fitted, beta = matched(np.ones((1, 1)), np.log(attention)[:, None], values[:, None], 1, "rms", 1e-12)
    assert (np.exp(beta[0]), fitted[0, 0]) == pytest.approx((w, value)) and keys[0, 0] == np.log(0.5)
