"""Page 20: what it says of budgets and reference rows is what the kept run found; its exercise about two heads."""

import answers
import numpy as np
import pytest
from test_quoted_numbers import assert_quoted, figure  # noqa: F401, a fixture

from minicompress.compression.matching import by_need


def test_budgets_of_heads(figure):  # noqa: F811
    """Even and by need, side by side; in how many runs which is better; keys by pursuit; the context for questions."""
    script = figure("20-matching")
    gaps = lambda *way: np.array(script.gaps(script.runs(*way)))
    assert_quoted(20, *(script.compared(slots) for slots in (*script.SIZES[1:], None)))
    better, runs = [(gaps("rms", k, "by-need") > gaps("rms", k)).sum() for k in (4, 8, 16)], len(gaps("rms", 4))
    assert_quoted(20, f"there in {better[1]} of the {runs} runs, with 16 in all {better[2]}")
    assert_quoted(20, f"With four it is worse, in {runs - better[0]} of the {runs};")
    even, need = ([f"{gaps('omp', k, budget).mean():.0f}%" for k in (8, 16)] for budget in ("even", "by-need"))
    assert_quoted(20, f"from {even[0]} to {need[0]} with eight slots, from {even[1]} to {need[1]} with 16")
    same_width = gaps("rms", 16).mean(), gaps("rms", 8, "by-need").mean()
    assert_quoted(20, "{:.1f}% with 16 slots, against {:.1f}% by need with eight".format(*same_width))
    again = [gaps("rms", k, "even", "repeat-prefill").mean() for k in (2, 8, 32)]
    assert again[1] < again[0]
    assert_quoted(20, f"with eight slots than with two, and {again[2]:.0f}% with 32")


def test_two_heads_that_share_eight_slots():
    heads = [[0.6, 0.2, 0.1, 0.05, 0.03, 0.02], [0.25, 0.22, 0.17, 0.15, 0.12, 0.09]]
    counts, lost_by_need, lost_evenly = answers.two_heads(heads, 4)
    assert (counts, lost_by_need, lost_evenly) == ([3, 5], pytest.approx(0.19), pytest.approx(0.26))
    assert by_need(np.ones((2, 1, 1)), np.log(heads)[..., None], 4).tolist() == counts
