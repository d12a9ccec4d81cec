"""What trained compressors keep of held-out notes and of a stream: kept by examples/embedded_model/compressors.py."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

RESULTS = FIGURES.parents[1] / "examples/results/compressors.jsonl"
LINES = [json.loads(line) for line in RESULTS.read_text().splitlines()]
PROSE = [json.loads(line) for line in (RESULTS.parent / "prose.jsonl").read_text().splitlines()]
SIZES = [1, 2, 4, 8, 16, 32]
KINDS = {  # label: producer, tokens of a segment, colour, line
    "gist, one segment": ("gist", 192, BLUE, "s:"),
    "gist": ("gist", 32, BLUE, "o-"),
    "icae": ("icae", 32, GREEN, "o-"),
    "500x": ("500x", 32, RED, "o-"),
    "autocompressor": ("autocompressor", 32, ORANGE, "o-"),
    "autocompressor, overwriting": ("autocompressor-overwrite", 32, "black", "s:"),
    "rmt": ("rmt", 32, ORANGE, "s:"),
    "ccm": ("ccm", 32, "#75507b", "o-"),
    "ccm-mean": ("ccm-mean", 32, "#75507b", "s:"),
}


def of_kind(label, key):
    """The lines of one compressor that have a certain key: `per_segment`, on contexts; `passed`, in the stream."""
    producer, segment, *_ = KINDS[label]
    return [line for line in LINES if (line["producer"], line["segment"]) == (producer, segment) and key in line]


def of_size(label, size):
    return [line for line in of_kind(label, "per_segment") if line["per_segment"] == size]


def gap(lines, name):
    """The gap closed by a row over some contexts: a ratio of means."""
    return 100 * (1 - np.mean([line[name]["kl"] for line in lines]) / np.mean([line["none"]["kl"] for line in lines]))


def recall(lines, name="sigma"):
    return 100 * np.mean([line[name]["recall"] for line in lines])


def over_sizes(label, value):
    """(mean number of slots in all, value of the lines) for each number of slots a segment."""
    for size in SIZES:
        if chosen := of_size(label, size):
            yield float(np.mean([line["slots"] for line in chosen])), value(chosen)


def row(label, size):
    """The page's line for so many slots a segment: slots in all, gap, recall, and the gap of as many plain tokens."""
    chosen = of_size(label, size)
    slots, first, last = np.mean([line["slots"] for line in chosen]), gap(chosen, "first"), gap(chosen, "last")
    return f"| {size} | {slots:.0f} | {gap(chosen, 'sigma'):.0f}% | {recall(chosen):.0f}% | {first:.0f}% | {last:.0f}% |"


def interval(label, size, draws=2000):
    """The 95% bootstrap interval, over contexts, of the gap closed."""
    chosen, rng = of_size(label, size), np.random.default_rng(0)
    kls = np.array([(line["sigma"]["kl"], line["none"]["kl"]) for line in chosen])
    drawn = kls[rng.integers(len(kls), size=(draws, len(kls)))].mean(1)
    return tuple(100 * np.quantile(1 - drawn[:, 0] / drawn[:, 1], [0.025, 0.975]))


def over_stream(label, name):
    """(notes passed, mean gap over all of them)."""
    for line in of_kind(label, "passed"):
        if None not in line[name]:
            yield line["passed"], 100 * (1 - np.mean(line[name]) / np.mean(line["none"]))


def bits(compressor, tokens, name):
    """Bits a token of the next segment of prose, by what stands before it."""
    chosen = [line for line in PROSE if (line["compressor"], line["tokens"]) == (compressor, tokens)]
    return sum(line[name] for line in chosen) / sum(line["scored"] for line in chosen)


def prose(tokens):
    """The page's line of so many tokens of prose before the segment."""
    slots = next(line["slots"] for line in PROSE if (line["compressor"], line["tokens"]) == ("books", tokens))
    ways = [bits("books", tokens, name) for name in ("none", "full", "first", "last", "sigma")]
    closed = 100 * (ways[0] - ways[4]) / (ways[0] - ways[1])
    return f"| {tokens} | {slots} | {' | '.join(f'{way:.2f}' for way in ways)} | {closed:.0f}% |"


def main():
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.4))
    for label, (*_, colour, style) in KINDS.items():
        for axes, value in ((left, lambda lines: gap(lines, "sigma")), (middle, recall)):
            axes.plot(*zip(*over_sizes(label, value), strict=True), style, ms=3, lw=1.2, color=colour, label=label)
        if stream := list(over_stream(label, "sigma")):
            right.plot(*zip(*stream, strict=True), style, ms=3, lw=1.2, color=colour)
    plain = "gist, one segment"
    for name, style in (("first", ":"), ("last", "--")):
        left.plot(*zip(*over_sizes(plain, lambda lines, n=name: gap(lines, n)), strict=True), style, color=GREY)
        of_row = list(over_sizes(plain, lambda lines, n=name: recall(lines, n)))
        middle.plot(*zip(*of_row, strict=True), style, color=GREY, label=f"{name} tokens")
    right.plot(*zip(*over_stream("rmt", "last"), strict=True), "--", color=GREY)
    left.set(title="gap closed, %: 20 held-out notes", ylim=(0, 101))
    middle.set(title=f"recall, %; of the full notes {recall(of_size(plain, 8), 'full'):.0f}", ylim=(0, 101))
    right.set(title="gap closed, %: a stream", xlabel="notes passed", ylim=(0, 101))
    for axes in (left, middle):
        axes.set(xscale="log", xlabel="slots in all", xticks=SIZES, xticklabels=SIZES)
        axes.minorticks_off()
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncol=5)
    save(figure, __file__)


if __name__ == "__main__":
    main()
