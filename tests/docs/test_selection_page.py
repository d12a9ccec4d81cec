"""Page 21: its table and what it says of it are those of the kept run; its exercise; what heavy hitters are."""

import sys
from collections import Counter
from pathlib import Path

import answers
import numpy as np
import pytest
from test_quoted_numbers import assert_quoted, figure  # noqa: F401, a fixture

from minicompress.commands import open_model
from minicompress.compression.select import evicted, heavy_hitters

SELECTION = Path(__file__).resolve().parents[2] / "examples/embedded_model"


@pytest.fixture
def script(figure):  # noqa: F811
    return figure("21-selection")


def mean(script, selector, slots, part="gap"):
    return script.of(selector, part).mean(0)[script.SIZES.index(slots)]


def test_the_table_is_that_of_the_kept_run(script):
    named = dict.fromkeys(line["selector"] for line in script.FOUND)
    assert len(named) == 12 and {len(script.of(name, "kl")) for name in named} == {20, 60}
    assert_quoted(21, *(f"{name}` {script.row(name)}" if name.isidentifier() or "-" in name else f"{name}* {script.row(name)}" for name in named))
    full = np.mean([line["recall_full"] for line in script.FOUND if line["selector"] == "h2o"])
    assert_quoted(21, f"recalled at {full:.0%}")
    tokens = [line["tokens"] for line in script.FOUND]
    assert_quoted(21, f"{min(tokens)} to {max(tokens)} tokens each")


def test_what_is_learned_is_what_was_measured(script):
    gap = lambda *which: f"{mean(script, *which):.0f}%"
    assert_quoted(21, f"Four last tokens read anew close {gap('last', 4)}; the same four as they were read, {gap('last kv', 4)}")
    assert_quoted(21, f"much worse ({gap('h2o', 64)} against {gap('last kv', 64)})", f"{gap('snapkv', 64)} against {gap('snapkv, no pool', 64)} without it")
    assert_quoted(21, f"close {gap('snapkv, asked', 8)} and recall {mean(script, 'snapkv, asked', 8, 'recall'):.0%}")
    recall = [f"{mean(script, 'h2o', slots, 'recall'):.0%}" for slots in (4, 32)]
    assert_quoted(21, f"`h2o` falls from {gap('h2o', 4)} to {gap('h2o', 32)}, while its recall rises from {recall[0]} to {recall[1]}")
    assert_quoted(21, f"costs {mean(script, 'h2o', 4, 'p95'):.1f} bits or more with four slots, and {mean(script, 'h2o', 32, 'p95'):.1f} with 32")
    assert_quoted(21, f"as little as −{-min(script.of(name, 'gap').min() for name in script.ANEW):.0f}%")
    assert script.of("last", "gap").min() == min(script.of(name, "gap").min() for name in script.ANEW)
    for name in ("h2o", "snapkv"):
        assert all(abs(mean(script, name, slots) - mean(script, "last kv", slots)) < 6 for slots in (4, 8, 16, 32))
    for slots in (4, 8, 16, 32):  # the question in the window does what the closed form does
        assert abs(mean(script, "snapkv, asked", slots) - script.matching(slots)) < 2


def test_what_heavy_hitters_are(monkeypatch):
    monkeypatch.syspath_prepend(SELECTION)
    from slots import contexts

    model, found = open_model(), Counter()
    for _, context in contexts(20, 0):
        ids = model.tokenizer.encode(context.text).ids

        def counted(probs, k, ids=ids):
            chosen = heavy_hitters(probs, k)
            found.update(ids[i] for i in chosen[:, : k - k // 2].ravel())
            return chosen

        evicted(counted, model.pair, ids, 16, None)
    assert {model.tokenizer.decode([token]).strip() for token, _ in found.most_common(3)} == {"is", ",", "the"}
    sys.modules.pop("slots", None)


@pytest.mark.parametrize("T", [4, 100])
def test_even_attention_makes_the_first_tokens_heavy(T):
    even = np.tri(T)[None] / np.arange(1, T + 1)[:, None]
    received, of_each = answers.received_evenly(T)
    assert received == pytest.approx(even[0].sum(0)) and sum(received) == pytest.approx(T)
    assert heavy_hitters(even, 4).tolist() == [[0, 1, T - 2, T - 1]]
    assert (np.diff(received) < 0).all() and (np.diff(of_each) < 0).all()
    if T == 4:
        assert received == pytest.approx([25 / 12, 13 / 12, 7 / 12, 1 / 4]) and of_each == pytest.approx([25 / 48, 13 / 36, 7 / 24, 1 / 4])
