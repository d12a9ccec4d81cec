"""Accuracy of tuned prompts over beginning, learning rate and length, as examples/11_initialisation_and_length.py found it."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

FOUND = json.loads((FIGURES.parents[1] / "examples/results/11.json").read_text())
BEGINNINGS, RATES = ("normal", "uniform", "noise", "vocab", "text"), (0.003, 0.01, 0.03, 0.1, 0.3)
LENGTHS, SEEDS = (1, 2, 4, 8, 16, 32), (0, 1)


def mean(task, how, slots, lr):
    """Mean accuracy over the seeds."""
    return float(np.mean([FOUND[f"{task}, {how}, {slots} slots, lr {lr}, seed {seed}"]["accuracy"] for seed in SEEDS]))


def main():
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), width_ratios=(1.15, 1.15, 1), sharey=True)
    colours = dict(zip(BEGINNINGS, (RED, BLUE, GREEN, ORANGE, GREY), strict=True))
    for ax, task in zip(axes, ("groups", "facts"), strict=False):
        for how in BEGINNINGS:
            ax.semilogx(RATES, [100 * mean(task, how, 8, lr) for lr in RATES], "o-", ms=3, color=colours[how], label=how)
        ax.set(title=f"{task}: 8 slots", xlabel="learning rate", xticks=RATES, xticklabels=RATES)
        ax.minorticks_off()
    axes[0].legend(loc="lower center", fontsize=8)
    axes[0].set(ylabel="new questions answered, %", ylim=(0, 104))
    for task, marker in (("groups", "o-"), ("facts", "s--")):
        axes[2].semilogx(LENGTHS, [100 * mean(task, "uniform", n, 0.03) for n in LENGTHS], marker, ms=3, color=BLUE, label=task)
    axes[2].set(title="uniform, rate 0.03", xlabel="slots", xticks=LENGTHS, xticklabels=LENGTHS)
    axes[2].minorticks_off()
    axes[2].legend(loc="lower right", fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
