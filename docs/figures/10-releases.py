"""What hard and soft prompts are worth, with this release and the next, as examples/13_hard_against_soft.py found it."""

import json
from textwrap import fill

import numpy as np
from common import BLUE, FIGURES, ORANGE, plt, save

FOUND = json.loads((FIGURES.parents[1] / "examples/results/13.json").read_text())


def mean(name, release):
    """Mean accuracy over the seeds, or not a number where the prompt is not for that release."""
    cells = [run[name]["accuracy"][release] for run in FOUND.values()]
    return float("nan") if None in cells else float(np.mean(cells))


def table():
    """The page's table, line by line."""
    yield "| prompt | positions | this release | the next | steps until learnt |"
    yield "|---|---|---|---|---|"
    for name, told in next(iter(FOUND.values())).items():
        cells = ["–" if np.isnan(mean(name, release)) else f"{mean(name, release):.0%}" for release in (0, 1)]
        steps = [run[name].get("steps") for run in FOUND.values()]
        yield f"| {name} | {told['tokens']} | {cells[0]} | {cells[1]} | {'–' if None in steps else ', '.join(map(str, steps))} |"


def main():
    names = list(next(iter(FOUND.values())))
    figure, axes = plt.subplots(figsize=(7.4, 2.9))
    for release, (colour, label) in enumerate(((BLUE, "this release"), (ORANGE, "the next one"))):
        heights = [100 * mean(name, release) for name in names]
        bars = axes.bar(np.arange(len(names)) + 0.4 * release - 0.2, heights, 0.38, color=colour, label=label)
        axes.bar_label(bars, ["" if np.isnan(h) else f"{h:.0f}" for h in heights], fontsize=7.5)
    tokens = [next(iter(FOUND.values()))[name]["tokens"] for name in names]
    labels = [f"{fill(name, 8)}\n{n}" for name, n in zip(names, tokens, strict=True)]
    axes.set(xticks=range(len(names)), xticklabels=labels, ylabel="new words sorted, %", ylim=(0, 130))
    axes.legend(loc="upper left", ncols=2)
    save(figure, __file__)


if __name__ == "__main__":
    main()
