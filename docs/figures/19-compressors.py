"""What trained compressors keep of held-out notes and of a stream, as examples/embedded_model/compressors.py found it."""

import json

import numpy as np
from common import BLUE, FIGURES, GREY, ORANGE, plt, save

RESULTS = FIGURES.parents[1] / "examples/results/compressors.jsonl"
LINES = [json.loads(line) for line in RESULTS.read_text().splitlines()]
COLOURS = {"gist": BLUE, "autocompressor": ORANGE}


def gap(lines, name):
    """The gap closed by a row over some contexts: a ratio of means."""
    return 100 * (1 - np.mean([line[name]["kl"] for line in lines]) / np.mean([line["none"]["kl"] for line in lines]))


def over_sizes(producer, name):
    """(mean number of slots in all, gap closed) for each number of slots a segment."""
    chosen = [line for line in LINES if line["producer"] == producer and "per_segment" in line]
    for size in sorted({line["per_segment"] for line in chosen}):
        of_size = [line for line in chosen if line["per_segment"] == size]
        yield float(np.mean([line["slots"] for line in of_size])), gap(of_size, name)


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
    right.set(title="gap closed, %: a stream", xlabel="notes passed", ylim=(0, 101))
    for axes in (left, right):
        axes.legend(loc="lower right", fontsize=7.5)
    save(figure, __file__)


if __name__ == "__main__":
    main()
