"""The tables and the picture of an inspection: every number whole in 100 columns, in the row of its slot."""

import io
import json
import math
import re
import warnings

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from minicompress.report import inspection
from minicompress.report.inspection import fitting, number, plain, tables, visible

WORDS = [" the", "$x_a$", "\n", "日本", "_b^", " antidisestablishment", "[/red]", "é", "\x07"]


def found(P=3, L=2, H=2, seed=0, moved=True, lens=True, k=5):
    """What `inspection` gives, out of random numbers."""
    rng = np.random.default_rng(seed)
    near = lambda: (rng.integers(len(WORDS), size=(P, k)), rng.standard_normal((P, k)))
    return {
        "nearest": {"cosine": near(), "euclidean": near()},
        "moved": {name: rng.random(P) for name in ("distance", "relative", "cosine")} if moved else None,
        "attention": rng.dirichlet(np.ones(P + 4), (L, H))[..., :P],
        "kl": rng.random(P), "loss": rng.standard_normal(P), "places": np.arange(P),
        "lens": (rng.integers(len(WORDS), size=(L + 1, P)), rng.random((L + 1, P))) if lens else None,
    }  # fmt: skip


def result(P=3, L=2, carrier="embeddings", texts=6, **options):
    head = {"prompt": "p.safetensors", "carrier": carrier, "slots": P, "layers": L, "texts": texts}
    return head | plain(found(P, L, **options), lambda ids: WORDS[ids[0]])


def lines(result, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(*tables(result), sep="\n")
    return console.file.getvalue().splitlines()


def rows_of(p, shown):
    """The lines that begin with a slot's number."""
    return [line for line in shown if line.split()[:1] == [str(p)]]


def test_numbers_in_their_places():
    numbers, told = found(), result()
    assert told["attention"]["slots"] == numbers["attention"].tolist()
    np.testing.assert_allclose(told["attention"]["prompt"], numbers["attention"].sum(-1), rtol=1e-15)
    assert told["left_out"] == {name: numbers[name].tolist() for name in ("kl", "loss", "places")}
    assert told["moved"] == {name: values.tolist() for name, values in numbers["moved"].items()}
    ids, values = numbers["nearest"]["euclidean"]
    assert told["nearest"]["euclidean"][1][2] == {"id": ids[1, 2], "token": WORDS[ids[1, 2]], "value": values[1, 2]}
    ids, chances = numbers["lens"]
    assert told["lens"][2][1] == {"id": ids[2, 1], "token": WORDS[ids[2, 1]], "probability": chances[2, 1]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_knows_no_infinity(bad):
    numbers = found()
    numbers["kl"][1] = numbers["moved"]["relative"][0] = bad
    told = plain(numbers, lambda ids: "")
    assert told["left_out"]["kl"][1] is None and told["moved"]["relative"][0] is None
    json.dumps(told, allow_nan=False)


def test_what_is_not_there_is_null():
    told = result(moved=False, lens=False)
    assert told["moved"] is None and told["lens"] is None
    shown = lines(told)
    assert not [line for line in shown if "moved" in line or "lens" in line]
    assert len(rows_of(0, shown)) == 2 and len(rows_of(0, lines(result()))) == 3


def test_the_row_of_a_slot():
    told = result()
    told["moved"] = {"distance": [1.234, 0, 0], "relative": [0.5, 0, 0], "cosine": [-0.25, 1, 1]}
    told["attention"]["slots"] = [[[0.1, 0, 0], [0.2, 0, 0]], [[0.3, 0, 0], [0.4, 0, 0]]]
    told["left_out"] = {"kl": [0.12345, None, -1e-9], "loss": [-0.0004, 1.0, 2.0], "places": [7, 0, 7]}
    shown = lines(told)
    assert rows_of(0, shown)[0].split() == [
        "0",
        "1.23",
        "50%",
        "-0.25",
        "25.0%",
        "40%",
        *["layer", "1", "head", "1"],
        "0.123",
        "0.000",
    ]
    lost = [rows_of(p, shown)[0].split()[-2:] for p in range(3)]
    assert lost == [["0.123", "0.000"], ["–", "1.000"], ["0.000", "2.000"]]


def test_where_a_slot_is_looked_at_most():
    told = result()
    told["attention"]["slots"] = [[[0.1, 0.5, 0], [0.2, 0, 0]], [[0.3, 0, 0], [0.2, 0, 0.7]]]
    most = [re.search(r"\d+% layer \d head \d", rows_of(p, lines(told))[0])[0] for p in range(3)]
    assert most == ["30% layer 1 head 0", "50% layer 0 head 0", "70% layer 1 head 1"]
    assert "layer by layer: 40% 60%" in "".join(
        lines(told | {"attention": told["attention"] | {"prompt": [[0.3, 0.5], [0.4, 0.8]]}})
    )


def test_each_slot_s_own_words():
    """Each token is called by where it belongs: measure or state, slot, rank."""
    told = result(L=2)
    for measure in ("cosine", "euclidean"):
        entry = lambda p, n, measure=measure: {"id": 0, "token": f"{measure[0]}{p}{n}", "value": p + n / 10}
        told["nearest"][measure] = [[entry(p, n) for n in range(3)] for p in range(3)]
    told["lens"] = [
        [{"id": 0, "token": f"s{n}{p}", "probability": n / 10 + p / 100} for p in range(3)] for n in range(3)
    ]
    _, near, states = rows_of(1, lines(told))
    assert near.split() == [
        "1",
        "c10",
        "1.00",
        "c11",
        "1.10",
        "c12",
        "1.20",
        "e10",
        "1.00",
        "e11",
        "1.10",
        "e12",
        "1.20",
    ]
    assert states.split() == ["1", "s01", "1%", "s11", "11%", "s21", "21%"]


def test_without_texts_of_the_user_no_loss():
    told = result()
    told["left_out"]["loss"] = None
    assert not [line for line in lines(told) if "loss added" in line] and "loss added" in "".join(lines(result()))


@pytest.mark.parametrize("P, L, carrier", [(3, 2, "embeddings"), (20, 12, "hidden"), (120, 12, "kv")])
def test_everything_in_100_columns(P, L, carrier):
    shown = lines(result(P, L, carrier))
    assert max(map(cell_len, shown)) <= 100
    assert [len(rows_of(p, shown)) for p in range(P)] == [3] * P
    wide = lines(result(P, L, carrier), 200)
    assert [line.split() for line in shown if line.split()] == [line.split() for line in wide if line.split()]


def test_the_heading_counts():
    assert lines(result())[0].startswith("p.safetensors: 3 slots, read with 6 texts;")
    assert lines(result(1, texts=1))[0].startswith("p.safetensors: 1 slot, read with 1 text;")


def test_which_layers_the_lens_shows():
    titles = lambda L: re.split("  +", next(line for line in lines(result(2, L)) if "the end" in line).strip())
    assert titles(2) == ["slot", "layer 0", "layer 1", "the end"]
    assert titles(12) == ["slot", "layer 0", "layer 3", "layer 6", "layer 9", "the end"]


def test_hidden_states_have_no_end():
    told = result(2, 3)
    told["lens"] = told["lens"][:3]
    assert ["slot", "layer 0", "layer 1", "layer 2"] in [re.split("  +", line.strip()) for line in lines(told)]


@pytest.mark.parametrize("token, shown", [
    (" the", "␣the"), ("\n", "\\n"), ("  ", "␣␣"), ("é", "é"), ("\x07", "\\x07"), ("[/b]", "[/b]"), ("", ""),
    (" antidisestablishment", "␣antidises…"), ("日本語日本語", "日本語日本…"), ("exactly 11.", "exactly␣11."), ("\N{NO-BREAK SPACE}", "\\xa0"),
])  # fmt: skip
def test_tokens_that_can_be_seen(token, shown):
    assert visible(token) == shown


def test_as_many_as_fit():
    assert fitting(["aaa", "bbb", "ccc"], 15) == "aaa   bbb   ccc"
    assert fitting(["aaa", "bbb", "ccc"], 14) == "aaa   bbb"
    assert fitting(["aaa"], 1) == "aaa"
    assert fitting(["日本", "b"], 8) == "日本   b" and fitting(["日本", "b"], 7) == "日本"  # as wide as four letters


def test_numbers_without_a_sign_on_nothing():
    assert [number(x, ".2f") for x in (-0.001, 0.001, -0.006, None)] == ["0.00", "0.00", "-0.01", "–"]


SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("form", SIGNATURES)
def test_a_picture_of_each_format(form, tmp_path):
    inspection.figure(result(), tmp_path / f"p.{form}")
    assert (tmp_path / f"p.{form}").read_bytes().startswith(SIGNATURES[form])
    assert [path.name for path in tmp_path.iterdir()] == [f"p.{form}"]


@pytest.mark.parametrize("P, L, H", [(1, 1, 1), (12, 2, 3), (13, 4, 6), (40, 12, 12), (41, 2, 2)])
@pytest.mark.parametrize("moved", [True, False])
def test_pictures_of_all_sizes_without_a_warning(P, L, H, moved, tmp_path):
    """A glyph that the font lacks, or a layout that does not fit, is a warning; words of the vocabulary are no formulas."""
    told = result(P, L, H=H, moved=moved)
    told["prompt"] = "my$prompt_$.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inspection.figure(told, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size < 400_000


def test_a_picture_of_what_nobody_knows(tmp_path):
    told = result(2)
    told["left_out"]["kl"] = [None, None]
    told["attention"] = {"slots": np.zeros((2, 2, 2)).tolist(), "prompt": np.zeros((2, 2)).tolist()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inspection.figure(told, tmp_path / "p.png")


def drawn(told, tmp_path, monkeypatch):
    """The picture as matplotlib holds it."""
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (kept.append(self), path.write_bytes(b"")))
    inspection.figure(told, tmp_path / "p.png")
    return kept[0]


def test_what_the_picture_shows(tmp_path, monkeypatch):
    told = result(P=5, L=3, H=2)
    heat, *others = drawn(told, tmp_path, monkeypatch).axes
    np.testing.assert_array_equal(heat.images[0].get_array(), np.array(told["attention"]["slots"]).reshape(6, 5))
    bars = [[bar.get_height() for bar in axes.patches] for axes in others[:2]]
    assert bars == [told["left_out"]["kl"], told["moved"]["distance"]]
    widths = [bar.get_width() for bar in others[2].patches]
    assert widths == list(np.array(told["attention"]["prompt"]).reshape(-1))
    assert [label.get_text() for label in heat.get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]
    nearest = [inspection.drawable(visible(near[0]["token"])) for near in told["nearest"]["cosine"]]
    assert [label.get_text() for label in heat.get_xticklabels()] == [f"{p}\n{word}" for p, word in enumerate(nearest)]


@pytest.mark.parametrize("P, tilt", [(2, 0), (6, 0), (7, 90), (40, 90), (41, 0)])
def test_words_stand_upright_where_they_would_meet(P, tilt, tmp_path, monkeypatch):
    told = result(P)
    for near in told["nearest"]["cosine"]:
        near[0]["token"] = " everybody"
    picture = drawn(told, tmp_path, monkeypatch)
    labels = picture.axes[0].get_xticklabels()
    assert {label.get_rotation() for label in labels} == {tilt}
    picture.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_many_slots_have_numbers_alone(tmp_path, monkeypatch):
    heat = drawn(result(P=90), tmp_path, monkeypatch).axes[0]
    assert [label.get_text() for label in heat.get_xticklabels()] == [str(p) for p in range(0, 90, 3)]
