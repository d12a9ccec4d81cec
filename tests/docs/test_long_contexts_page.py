"""Page 22: its table and what it says of it are those of the kept run; what it counts by formula, counted; its exercise."""

import importlib
import sys
from functools import partial
from pathlib import Path

import answers
import numpy as np
import pytest
from test_quoted_numbers import assert_quoted, figure  # noqa: F401, a fixture

import strict_device
from minicompress.commands import open_model
from minicompress.compression.compressor import Compressor, begin
from minicompress.compression.segments import METHODS
from minicompress.gpt2 import Config
from minicompress.gpt2.prefix import read_tokens
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.cases import random_params

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/embedded_model"
CONFIG = Config(vocab_size=17, n_positions=96, n_embd=12, n_layer=2, n_head=3)
SMALL = {"SLOTS": 3, "SEGMENT": 10, "RANK": 2, "ROWS": 5, "LONG": 9, "ANSWER": 4, "BATCH": 3, "STEPS": 2}


@pytest.fixture
def costs(monkeypatch):
    """The module that measured, at sizes at which products can be counted."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("costs")
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    yield module
    for name in ("costs", "slots", "notes", "tasks"):
        sys.modules.pop(name, None)


@pytest.fixture
def pair(rng):
    return random_params(CONFIG, rng), CONFIG


@pytest.fixture
def counted(monkeypatch, pair):
    """A model on the strict device, and a list that receives the operations of every product there."""
    found, product = [], strict_device.Array.__matmul__

    def count(a, b):
        out = product(a, b)
        if out.ndim > 1:  # a small matrix and a vector, in the masses' fit, are not counted
            found.append(2 * int(np.prod(out.shape)) * a.shape[-1])
        return out

    monkeypatch.setattr(strict_device.Array, "__matmul__", count)
    return (tree_map(strict_device.asarray, pair[0]), CONFIG), found


def ids_of(rng, T):
    return rng.integers(CONFIG.vocab_size, size=T).tolist()


MEASURED = [kind for kind in METHODS if kind != "autocompressor-overwrite"]  # which costs what rmt does, or less
NAMES = ("last", "snapkv", "pooled-kv", "attention-matching", "gradient", *MEASURED)


@pytest.mark.parametrize("T", [25, 70])  # a piece of attention's queries, and more than one
@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_count_every_product(costs, counted, rng, name, T, monkeypatch):
    monkeypatch.setattr(costs, "STREAMS", ())
    (model, found), rows = counted, [ids_of(rng, costs.LONG) for _ in range(costs.ROWS)]
    with Shards(1) as shards:
        make = costs.producers(model, T, rows, shards)[name]
        ids = ids_of(rng, T)
        found.clear()
        make(ids, costs.STEPS) if name == "gradient" else make(ids)
    assert sum(found) == costs.operations(name, CONFIG, T)


@pytest.mark.parametrize("name", ["attention-matching", "gradient", "autocompressor", "rmt", "ccm"])
def test_a_formula_that_forgets_the_keys_before_is_noticed(costs, name, monkeypatch):
    right = costs.operations(name, CONFIG, 70)
    attending = costs.attending
    monkeypatch.setattr(costs, "attending", lambda config, T, before=0: attending(config, T))
    assert costs.operations(name, CONFIG, 70) < right


@pytest.mark.parametrize("kind, grows", [("rmt", False), ("ccm-mean", False), ("ccm", True)])
def test_a_state_that_is_overwritten_needs_no_memory(costs, pair, rng, kind, grows):
    made = Compressor(kind, begin(kind, pair, 3, rng, 2), 10)
    short, long = (costs.peak(lambda T=T: made.compress(pair, ids_of(np.random.default_rng(T), T))) for T in (200, 1600))
    assert long > 3 * short if grows else long < 1.6 * short  # the ids themselves are there too


def test_the_exercise(costs, pair, rng):
    small = Config()
    a_token, even, read = answers.of_a_long_context(small.n_layer, small.n_embd, small.n_positions, 64, 16)
    assert (a_token, even, read) == (73728, 9152, 3840)
    assert costs.reading(small, even) == 2 * costs.attending(small, even)
    past = read_tokens(*pair, ids_of(rng, 5)).past
    own = answers.of_a_long_context(CONFIG.n_layer, CONFIG.n_embd, CONFIG.n_positions, 10, 3, past[0][0].itemsize)
    assert sum(part.nbytes for layer in past for part in layer) == 5 * own[0]
    made = Compressor("autocompressor", begin("autocompressor", pair, 3, rng), 10)
    assert made.compress(pair, ids_of(rng, own[2])).length == 3 * own[2] // 10
    with pytest.raises(ValueError, match="n_positions is 96"):
        made.compress(pair, ids_of(rng, own[2] + 10))


@pytest.fixture
def script(figure):  # noqa: F811
    return figure("22-costs")


def test_the_table_is_that_of_the_kept_run(script):
    code = lambda name: name if name in METHODS else f"`{name}`"
    assert_quoted(22, *(f"| {code(name)} {script.row(name, 448)}" for name in NAMES))
    assert_quoted(22, *(f"| {name} {script.row(name, 16000)}" for name in ("rmt", "ccm", "ccm-mean")))
    assert_quoted(22, f"runs at {script.rate():.0f} · 10⁹ operations a second")
    one = script.at("gist", 448)
    assert_quoted(22, f"it takes {script.time(one['query_full'])} where their keys and values are kept, and {script.time(one['query_anew'])} where")


def test_the_kept_run_is_of_these_formulas(script, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    costs, config = importlib.import_module("costs"), open_model().pair[1]
    for line in script.LINES:
        if "operations" in line:
            assert line["operations"] == costs.operations(line["producer"], config, line["tokens"])
    read, rmt = partial(costs.reading, config), lambda T: costs.operations("rmt", config, T)
    assert_quoted(22, *(f"{words} {costs.attending(c, T) / costs.reading(c, T):.0%}" for words, c, T in (
        ("At 64 tokens attention is", config, 64), ("of the operations, at 448", config, 448), ("in GPT-2 124M it is", Config(), 1024))))  # fmt: skip
    assert next(T for T in range(32, 16000, 32) if read(T) > rmt(T)) == 1216 and rmt(16000) / read(16000) == pytest.approx(0.2, abs=0.01)
    assert_quoted(22, f"It needs {rmt(448) / read(448):.1f} times the operations of one reading at 448 tokens, as many at 1,216, and a fifth")
    for name in ("costs", "slots", "notes", "tasks"):
        sys.modules.pop(name, None)


def test_what_is_said_of_time_and_memory(script):
    seconds = lambda name, T: script.time(script.at(name, T)["seconds"])
    assert_quoted(22, f"it takes {script.at('rmt', 448)['seconds'] / script.at('pooled-kv', 448)['seconds']:.1f} times as long at 448")
    both = [f"{seconds(name, 64)}{tokens[0]} and {seconds(name, 448)}{tokens[1]}" for name, tokens in (("attention-matching", (" at 64 tokens", " at 448")), ("gradient", ("", "")))]
    assert_quoted(22, ", and ".join(both))
    slots = script.at("gradient", 448)
    anew, kept = (slots["seconds"] / (slots[how] - slots["query"]) for how in ("query_anew", "query_full"))
    assert_quoted(22, f"anew, {anew:,.0f} queries pay", f"it takes about {round(kept, -3):,.0f}")
    weights = sum(x.nbytes for x in flatten(open_model().pair[0]).values())
    assert_quoted(22, f"take {script.size(32 * 448 * 6144)}, ten times the model's own {script.size(weights)}; 32 times eight slots take {script.size(32 * 8 * 6144)}")
    assert 32 * 448 * 6144 / weights == pytest.approx(10, abs=0.5) and script.at("snapkv", 448)["kept"] == 8 * 6144
    peaks = {script.size(script.at("rmt", T)["peak"]) for T in (448, 1000, 4000, 16000)}
    assert len(peaks) == 1
    assert_quoted(22, f"the gist needs {script.size(script.at('gist', 448)['peak'])} at 448 tokens. RMT needs {peaks.pop()}, at")
    query = lambda name: script.time(script.at(name, 16000)["query"])
    assert_quoted(22, f"take {query('ccm')} instead of {query('ccm-mean')}", f"limits it: {seconds('ccm-mean', 16000)} for 16,000")


def test_what_is_said_of_training_and_of_its_ends(script, figure):  # noqa: F811
    short, long, cut = script.training(64), script.training(448), script.training(448, 1)
    words = [f"{script.time(line['seconds'])} and {line['peak'] / 1e6:.0f} MB with {line['tokens']}" for line in (short, long)]
    assert_quoted(22, f"{words[0]} tokens, {words[1]}")
    assert_quoted(22, f"cuts that to {script.time(cut['seconds'])} and {cut['peak'] / 1e6:.0f} MB")
    refused = [line for line in script.LINES if "refused" in line]
    assert {(line["producer"], line["tokens"]) for line in refused} == {("autocompressor", 4000), ("autocompressor", 16000)}
    assert answers.of_a_long_context(4, 192, 512, 32, 8)[2] == 1920
    other = figure("19-compressors")
    gaps = dict(other.over_stream("autocompressor", "sigma"))
    assert_quoted(22, f"from {gaps[1]:.0f}% after one note to {gaps[8]:.0f}% after eight and {gaps[24]:.0f}% after 24")
    gist, auto = (other.of_size(name, 8) for name in ("gist, one segment", "autocompressor"))
    recall = lambda lines: f"{other.recall(lines):.0f}%"
    assert_quoted(22, f"a gist closed {other.gap(gist, 'sigma'):.0f}% of the gap and recalled {recall(gist)}")
    assert_quoted(22, f"autocompressor closed {other.gap(auto, 'sigma'):.0f}% and recalled {recall(auto)}")
