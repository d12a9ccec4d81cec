"""What Attention Matching keeps of held-out notes, as examples/embedded_model/matching.py found it, beside gradient."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, plt, save

SIZES = [1, 2, 4, 8, 16, 32]


def lines(name):
    return [json.loads(line) for line in (FIGURES.parents[1] / "examples/results" / name).read_text().splitlines()]


FOUND, GRADIENT = lines("matching.jsonl"), lines("slots.jsonl")


def runs(choose, slots=None, budget="even", reference="self-study"):
    """All with so many slots; None: with a quarter of the tokens."""
    way = choose, budget, reference
    chosen = [line for line in FOUND if tuple(map(line.get, ("choose", "budget", "reference"))) == way]
    return [line for line in chosen if line["slots"] == (line["tokens"] // 4 if slots is None else slots)]


def gaps(some):
    """The gap closed of each, in per cent."""
    return [100 * (1 - line["kl"] / line["kl_none"]) for line in some]


def row(choose, slots):
    """The page's line: mean gap, worst run, recall, seconds."""
    some = runs(choose, slots)
    gap, recall, seconds = gaps(some), np.mean([line["recall"] for line in some]), np.median([line["seconds"] for line in some])
    return f"| {slots or 'a quarter of the tokens'} | {np.mean(gap):.1f}% | {min(gap):.1f}% | {recall:.0%} | {seconds:.2f} |"


def part(*way):
    """Mean gap, worst run and recall: a cell of the page's second table."""
    some = runs(*way)
    return f"{np.mean(gaps(some)):.1f}% ({min(gaps(some)):.1f}%), {np.mean([line['recall'] for line in some]):.0%}"


def compared(slots):
    """The page's line of budgets: even and by need, how wide that is, and the context itself for reference rows."""
    ways = part("rms", slots), part("rms", slots, "by-need"), part("rms", slots, "even", "repeat-prefill")
    wide = np.mean([line["wide"] for line in runs("rms", slots, "by-need")])
    return f"| {slots or 'a quarter of the tokens'} | {ways[0]} | {ways[1]} | {wide:.0f} | {ways[2]} |"


def main():
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    for choose, budget, colour in (("rms", "even", BLUE), ("rms", "by-need", ORANGE), ("omp", "even", GREEN)):
        means = [np.mean(gaps(runs(choose, slots, budget))) for slots in SIZES]
        axes.plot(SIZES, means, "o-", ms=4, color=colour, label=f"{choose}, {budget}")
    by_gradient = [100 * np.mean([run["gap_closed"] for run in GRADIENT if run["slots"] == slots]) for slots in SIZES]
    axes.plot(SIZES, by_gradient, "--", color=GREY, label="embeddings, gradient")
    axes.set(title="gap closed, %", xscale="log", xlabel="slots", xticks=SIZES, xticklabels=SIZES, ylim=(0, 101))
    axes.minorticks_off()
    axes.legend(loc="lower right")
    save(figure, __file__)


if __name__ == "__main__":
    main()
