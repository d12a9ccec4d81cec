"""The table that people read: every number whole in 80 columns, in the right row; the costs in one sentence."""

import io
import re

import pytest
from rich.console import Console

from minicompress.report.table import NAMES, cost_line, evaluation_table

ROW = {"positions": 4, "kl": 1.23456, "kl_p95": 4.567, "gap_closed": 0.4321, "gap_closed_interval": [0.291, 0.558],
       "top1_agreement": 0.6543, "recall": 0.25}  # fmt: skip
COSTS = {"slots": 8, "context_tokens": 1010, "ratio": 126.25, "kv_bytes_context": 74461184, "kv_bytes_slots": 589824,
         "seconds": 41.27, "break_even_queries": 1234.4}  # fmt: skip


def result(rows, queries=39, **changes):
    return {"rows": rows, "queries": queries} | COSTS | changes


def rendered(rows, width=80, **changes):
    """The lines of the table as a terminal of that width shows them."""
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation_table(result(rows, **changes)))
    return console.file.getvalue().splitlines()


def line_of(label, lines):
    found = [line for line in lines if line.strip().startswith(label)]
    assert len(found) == 1, (label, lines)
    return found[0]


def test_a_row_s_numbers_in_their_order():
    line = line_of("slots, trained", rendered({"sigma": ROW}))
    assert line.split() == ["slots,", "trained", "4", "1.235", "4.57", "43.2%", "(29", "to", "56)", "65.4%", "25.0%"]


def test_the_title_tells_how_many_queries_and_in_what_unit():
    assert rendered({"sigma": ROW})[0].strip() == "39 held-out queries; KL from the full context, in bits per token"


def test_each_row_stands_under_its_own_name_in_a_fixed_order():
    rows = {name: ROW | {"positions": i} for i, name in enumerate(NAMES)}
    lines = rendered(dict(reversed(rows.items())), slots=12)
    labels = ["full context", "no context", "first 12 tokens", "last 12 tokens", "first and last, 12", "random 12 tokens",
              "least guessed 12", "mean embeddings", "mean keys, values", "H2O, 12 a head", "SnapKV, 12 a head",
              "slots, untrained", "slots, trained", "other text's slots", "slots, answers only"]  # fmt: skip
    numbers = [line_of(label, lines) for label in labels]
    assert numbers == [line for line in lines if line in numbers]
    for i, (label, line) in enumerate(zip(labels, numbers, strict=True)):
        assert line.strip()[len(label) :].split()[0] == str(i)


def test_rows_that_are_not_there_are_left_out():
    lines = rendered({"none": ROW, "sigma": ROW})
    assert not [line for line in lines if "other text" in line or "first" in line]


WORST = {"positions": 1010, "kl": 15.6093, "kl_p95": 24.55, "gap_closed": -9.871, "gap_closed_interval": [-9.99, -9.11],
         "top1_agreement": 1.0, "recall": 1.0}  # fmt: skip
USUAL = ROW | {"gap_closed": -0.1234, "gap_closed_interval": [-0.456, 0.123], "positions": 128}


@pytest.mark.parametrize("row", [ROW, USUAL, WORST], ids=["small", "usual", "worst"])
def test_every_number_is_whole_in_80_columns(row):
    lines = rendered(dict.fromkeys(NAMES, row), slots=128, queries=1000)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    wide = rendered(dict.fromkeys(NAMES, row), width=200, slots=128, queries=1000)
    assert [line.split() for line in lines] == [line.split() for line in wide]
    for label in ("first 128 tokens", "slots, answers only", "slots, trained"):
        told = line_of(label, lines)
        gap, (low, high) = row["gap_closed"], row["gap_closed_interval"]
        for number in (str(row["positions"]), f"{row['kl']:.3f}", f"{row['kl_p95']:.2f}", f"{gap:.1%}" if gap > -1 else f"{gap:.0%}",
                       f"({100 * low:.0f} to {100 * high:.0f})", f"{row['top1_agreement']:.1%}"):  # fmt: skip
            assert number in told, (number, told)


def test_what_is_not_known_is_a_dash():
    nothing = ROW | {"gap_closed": None, "gap_closed_interval": None, "recall": None}
    line = line_of("slots, trained", rendered({"sigma": nothing}))
    assert line.split()[2:] == ["4", "1.235", "4.57", "–", "65.4%", "–"]


def test_a_gap_of_one_query_stands_without_an_interval():
    line = line_of("slots, trained", rendered({"sigma": ROW | {"gap_closed_interval": None}}))
    assert "43.2%" in line and "(" not in line


def test_a_gap_beyond_all_measure_stands_without_an_interval():
    """Where no context costs a hundredth of a bit, untrained slots may be five hundred times worse."""
    line = line_of(
        "slots, untrained", rendered({"init": WORST | {"gap_closed": -499.2, "gap_closed_interval": [-600, -400]}})
    )
    assert line.split()[2:] == ["1010", "15.609", "24.55", "-49920%", "100.0%", "100.0%"]


@pytest.mark.parametrize("name", ["none", "full"])
def test_the_ends_of_the_scale_have_no_interval(name):
    assert "(" not in line_of(NAMES[name], rendered({name: ROW}))


def test_a_divergence_below_zero_by_rounding_is_zero():
    assert "0.000" in line_of("full", rendered({"full": ROW | {"kl": -1e-9}}))
    assert "-0.000" not in line_of("full", rendered({"full": ROW | {"kl": -1e-9}}))


def test_the_costs_in_one_sentence():
    assert cost_line(result({})) == (
        "1,010 tokens in 8 slots: 126.2 times fewer positions, keys and values 72,716 -> 576 KiB; "
        "41.3 s to make, paid back after 1,234 queries"
    )


def test_costs_that_are_never_paid_back():
    line = cost_line(result({}, break_even_queries=None))
    assert line.endswith("41.3 s to make, which a query of this length does not pay back")
    assert not re.search("None|after", line)
