"""Accuracy by where slots stand and what they are, as examples/12_embeddings_infix_prefix.py found it."""

import json

import numpy as np
from common import BLUE, FIGURES, GREY, ORANGE, plt, save

FOUND = json.loads((FIGURES.parents[1] / "examples/results/12.json").read_text())
RATES = {"groups": (0.01, 0.03, 0.1), "facts": (0.01, 0.03, 0.1), "sentences": (0.03,)}
SEEDS = {"groups": (0, 1), "facts": (0, 1), "sentences": (0,)}
EQUAL_SLOTS = ("in front", "behind", "both sides", "hidden", "kv")
EQUAL_NUMBERS = ("in front, 16 slots", "behind, 16 slots", "hidden, 4 slots", "kv, 2 slots")


def chosen(task, way):
    """For each seed the result of the rate whose training loss is lowest -> mean accuracy, mean training loss."""
    best = [min((FOUND[f"{task}, {way}, lr {lr}, seed {seed}"] for lr in RATES[task]), key=lambda r: r["loss"]) for seed in SEEDS[task]]
    return [float(np.mean([r[name] for r in best])) for name in ("accuracy", "loss")]


def table():
    """The page's table, line by line: accuracy, and the training loss of the prompts that were chosen."""
    yield "| slots | numbers | " + " | ".join(f"{task}: accuracy, loss" for task in RATES) + " |"
    yield "|---|---|" + "---|" * len(RATES)
    for way in EQUAL_SLOTS + EQUAL_NUMBERS:
        numbers = FOUND[f"groups, {way}, lr 0.03, seed 0"]["numbers"]
        cells = ["{:.0%}, {:.2f}".format(*chosen(task, way)) for task in RATES]
        yield f"| {way}{'' if ',' in way else ', 8 slots'} | {numbers:,} | {' | '.join(cells)} |"


def main():
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), sharey=True, width_ratios=(5, 4))
    parts = ((EQUAL_SLOTS, "8 slots"), (EQUAL_NUMBERS, "3,072 numbers trained"))
    for ax, (ways, title) in zip(axes, parts, strict=True):
        for place, (task, colour) in enumerate(zip(RATES, (BLUE, ORANGE, GREY), strict=True)):
            heights = [100 * chosen(task, way)[0] for way in ways]
            bars = ax.bar(np.arange(len(ways)) + (place - 1) * 0.27, heights, 0.25, color=colour, label=task)
            ax.bar_label(bars, fmt="%.0f", fontsize=7)
        ax.set(title=title, xticks=range(len(ways)), xticklabels=[way.replace(", ", "\n") for way in ways], ylim=(0, 112))
    axes[0].set(ylabel="new questions answered, %")
    axes[1].legend(loc="upper center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, -0.2))
    save(figure, __file__)


if __name__ == "__main__":
    main()
