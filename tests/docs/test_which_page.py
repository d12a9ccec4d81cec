"""Every number of the page on which way to choose is that of the kept runs; its exercise is right."""

import answers
import numpy as np
import pytest
from test_quoted_numbers import DOCS, assert_quoted, figure  # noqa: F401

from minicompress.compression.select import SELECTORS


@pytest.fixture
def script(figure):  # noqa: F811
    return figure("23-which")


def test_the_table_of_all_ways(script):
    shown = ["full", "first", "last", "random", "selective", "pooled-kv", "h2o", "snapkv", "icae", "rmt", "gist32", "ccm", "500x",
             "attention-matching", *(f"gradient, {way}" for way in ("embeddings", "kv", "lora", "matched"))]  # fmt: skip
    assert_quoted(23, *(script.row(name) for name in shown))
    kept = [script.field(name)[:, 2].mean() for name in shown[1:10]]
    made = [script.field(name)[:, 2].mean() for name in shown[10:]]
    assert max(kept) < 0.28 and min(made) > 2.4 * max(kept), "the two halves of the page"
    h2o = script.field("h2o", "task")
    assert script.gap(h2o) < 0, "worse than nothing"


def test_the_interval_is_that_of_the_contexts(script):
    """Against a bootstrap in a loop; a producer that is the same everywhere has none."""
    found, rng = script.field("500x"), np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        some = [found[i] for i in rng.integers(len(found), size=len(found))]
        drawn.append(100 * (1 - sum(x[0] for x in some) / sum(x[1] for x in some)))
    assert script.interval(found) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.6)
    assert script.interval(script.field("full")) == pytest.approx([100, 100])


def test_what_goes_on_from_another_and_what_any_few_slots_keep(script):
    rows = {"closed form, then 50 steps": ("matched", 8), "gradient, `kv`, 200 steps": ("kv", 8)}
    assert_quoted(23, *(f"| {label} | {slots} | {script.told(script.way(way, slots))} |" for label, (way, slots) in rows.items()))
    assert_quoted(23, f"| closed form, then 50 steps | 4 | {script.told(script.way('matched', 4))} |")
    assert_quoted(23, *(f"| closed form | {n} | {script.told(script.matched(n))} |" for n in (4, 8)))
    assert_quoted(23, f"| mean keys and values, then 50 steps | 8 | {script.told(script.way('pooled', 8))} |")
    assert_quoted(23, *(f"| {n} | {script.told(script.way('any-prefix', n))} |" for n in script.SIZES))
    cut = [f"{np.mean(script.closed(script.way('cut', n))):.0f}%" for n in (1, 8)]
    assert_quoted(23, f"closes {cut[0]} with its first slot and {cut[1]} with its first eight")
    closed = lambda way: np.mean(script.closed(script.way(way, 8)))
    assert closed("kv") >= 95 and min(script.closed(script.way("matched", 8))) > 95
    assert len(script.way("kv", 8)) == len(script.way("matched", 8)) == len(script.way("any-prefix", 8)) == 15


def test_what_two_contexts_keep_side_by_side(script):
    keys = ("own", "own, other", "other, own", "other", "strangers", "prose")
    for way, label in (("attention-matching", "`attention-matching`"), ("kv, logical", "gradient, `kv`, logical"),
                       ("embeddings", "gradient, `embeddings`")):  # fmt: skip
        assert_quoted(23, f"| {label} | " + " | ".join(f"{script.pair(way, key):.2f}" for key in keys) + " |")
    text = [f"{script.pair('attention-matching', key):.2f}" for key in
            ("texts: own, other", "texts: other, own", "strangers, by the text", "prose, by the text")]  # fmt: skip
    assert_quoted(23, f"| the text itself | 0 | {text[0]} | {text[1]} | – | {text[2]} | {text[3]} |")
    assert_quoted(23, f"nothing in front costs {script.pair('attention-matching', 'none'):.2f}")
    for way in ("attention-matching", "kv, logical"):
        assert script.pair(way, "own, other") == pytest.approx(script.pair(way, "other, own"), abs=1e-3), "no order"


def test_the_exercise():
    assert answers.pays_after(1800, 0.02, (3.3, 16)) == [549, 113]
    assert_quoted(23, "(a) 549 against the closed form, 113 against the gradient")
    assert round(200 * 3.3 / 60) == 11


def test_the_readme_quotes_the_same_runs(script):
    told = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    for label, name in (("the last 16 tokens", "last"), ("recalls most", "snapkv"), ("20 minutes", "500x"),
                        ("in closed form", "attention-matching"), ("50 steps of gradient", "gradient, matched"),
                        ("by gradient", "gradient, kv"), ("the full notes", "full")):  # fmt: skip
        found = script.field(name)
        assert f"{label} | {script.gap(found):.0f}% | {found[:, 2].mean():.0%} |" in told, label
    recalls = {name: script.field(name)[:, 2].mean() for name in SELECTORS}
    assert max(recalls, key=recalls.get) == "snapkv" and len(SELECTORS) == 9


def test_5_losses_inside_beside_the_kl(script):
    def told(way):
        some = [line for line in script.way(way, 8) if line["seed"] == 0]
        return f"{np.mean(script.closed(some)):.1f}%", f"{np.mean([line['recall'] for line in some]):.0%}"

    for way, words in (("kv", "`kl` closes {} of the gap and recalls {}"), ("kv, hidden matched", "`hidden` alone {} and {}"),
                       ("kv, kl and hidden", "`kl+0.1*hidden` {} and {}"), ("kv, kl and attention", "`kl+0.1*attention` {} and {}"),
                       ("kv, attention matched", "closes {}, with {}")):  # fmt: skip
        assert_quoted("05", words.format(*told(way)))
