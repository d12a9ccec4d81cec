"""What selection keeps of held-out notes, as examples/embedded_model/selection.py found it, beside the closed form."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

SIZES = [4, 8, 16, 32, 64]
ANEW = {"first": BLUE, "last": ORANGE, "first-last": GREEN, "random": GREY, "selective": RED, "pooled-embeddings": "black"}
KEPT = {"pooled-kv": "black", "h2o": BLUE, "snapkv": ORANGE, "last kv": GREY, "snapkv, asked": GREEN}


def lines(name):
    return [json.loads(line) for line in (FIGURES.parents[1] / "examples/results" / name).read_text().splitlines()]


FOUND = lines("selection.jsonl")
EVEN = {"choose": "rms", "budget": "even", "reference": "self-study"}
MATCHING = [line for line in lines("matching.jsonl") if all(line.get(name, EVEN[name]) == EVEN[name] for name in EVEN) and "kl" in line]


def of(selector, part, contexts=20):
    """(runs, sizes): "gap", in per cent, or another list of the lines."""
    some = [line for line in FOUND if line["selector"] == selector and line["number"] < contexts]
    if part == "gap":
        return np.array([[100 * (1 - kl / line["kl_none"]) for kl in line["kl"]] for line in some])
    return np.array([line[part] for line in some])


def matching(slots):
    """The mean gap that the closed form closes, of five of the notes."""
    return np.mean([100 * (1 - line["kl"] / line["kl_none"]) for line in MATCHING if line["slots"] == slots])


def row(selector):
    """The page's line: mean gap, and recall, of each number of slots."""
    cells = [f"{gap:.0f}% ({recall:.0%})" for gap, recall in zip(of(selector, "gap").mean(0), of(selector, "recall").mean(0), strict=True)]
    return f"| {' | '.join(cells)} |"


def main():
    figure, both = plt.subplots(1, 2, figsize=(7.4, 3.3), sharey=True)
    for axes, title, some in zip(both, ("tokens, read anew", "keys and values, as they were read"), (ANEW, KEPT), strict=True):
        for name, colour in some.items():
            style = "--" if name in ("last kv", "snapkv, asked") else "-"
            axes.plot(SIZES, of(name, "gap").mean(0), "o" + style, ms=3.5, color=colour, label=name)
        axes.set(title=title, xscale="log", xlabel="slots", xticks=SIZES, xticklabels=SIZES, ylim=(0, 101))
        axes.minorticks_off()
    both[1].plot(SIZES[:4], [matching(slots) for slots in SIZES[:4]], "-", color=RED, label="closed form")
    both[0].set_ylabel("gap closed, %")
    for axes in both:
        axes.legend(loc="lower center", ncol=3, fontsize=7, handlelength=1.4, columnspacing=1, borderaxespad=0)
    save(figure, __file__)


if __name__ == "__main__":
    main()
