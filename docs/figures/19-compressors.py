"""What trained compressors keep of held-out notes and of a stream, as examples/embedded_model/compressors.py found it."""

import json

import numpy as np
from common import BLUE, FIGURES, GREY, ORANGE, plt, save

RESULTS = FIGURES.parents[1] / "examples/results/compressors.jsonl"
LINES = [json.loads(line) for line in RESULTS.read_text().splitlines()]
SIZES = [1, 2, 4, 8, 16, 32]
COLOURS = {"gist": BLUE, "autocompressor": ORANGE}


def gap(lines, name):
    """The gap closed by a row over some contexts: a ratio of means."""
    return 100 * (1 - np.mean([line[name]["kl"] for line in lines]) / np.mean([line["none"]["kl"] for line in lines]))


def of_size(producer, size):
    return [line for line in LINES if line["producer"] == producer and line.get("per_segment") == size]


def over_sizes(producer, name):
    """(mean number of slots in all, gap closed) for each number of slots a segment."""
    for size in SIZES:
        if chosen := of_size(producer, size):
            yield float(np.mean([line["slots"] for line in chosen])), gap(chosen, name)


def row(producer, size):
    """The page's line for so many slots a segment: slots in all, gap, recall, and the gap of as many plain tokens."""
    chosen = of_size(producer, size)
    slots, recall = np.mean([line["slots"] for line in chosen]), np.mean([line["sigma"]["recall"] for line in chosen])
    first, last = (gap(chosen, name) for name in ("first", "last"))
    return f"| {size} | {slots:.0f} | {gap(chosen, 'sigma'):.0f}% | {recall:.0%} | {first:.0f}% | {last:.0f}% |"


def over_stream(producer, name):
    """(notes passed, mean gap over all of them)."""
    for line in LINES:
        if line["producer"] == producer and "passed" in line and None not in line[name]:
            yield line["passed"], 100 * (1 - np.mean(line[name]) / np.mean(line["none"]))


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.9))
    for producer, colour in COLOURS.items():
        left.plot(*zip(*over_sizes(producer, "sigma"), strict=True), "o-", ms=4, color=colour, label=producer)
    for name, style in (("first", ":"), ("last", "--")):
        left.plot(*zip(*over_sizes("gist", name), strict=True), style, color=GREY, label=f"{name} tokens")
    right.plot(*zip(*over_stream("autocompressor", "sigma"), strict=True), "o-", ms=4, color=ORANGE, label="autocompressor")
    right.plot(*zip(*over_stream("autocompressor", "last"), strict=True), "--", color=GREY, label="last tokens")
    left.set(title="gap closed, %: 20 held-out notes", xscale="log", xlabel="slots in all", ylim=(0, 101))
    left.set(xticks=SIZES, xticklabels=SIZES)
    left.minorticks_off()
    right.set(title="gap closed, %: a stream", xlabel="notes passed", ylim=(0, 101))
    for axes in (left, right):
        axes.legend(loc="lower right", fontsize=7, ncol=2)
    save(figure, __file__)


if __name__ == "__main__":
    main()
