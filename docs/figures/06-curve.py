"""What so many slots keep of held-out notes, as examples/embedded_model/slots.py found it: five notes, three seeds."""

import json

import numpy as np
from common import BLUE, FIGURES, GREY, ORANGE, plt, save

RUNS = [json.loads(line) for line in (FIGURES.parents[1] / "examples/results/slots.jsonl").read_text().splitlines()]
SLOTS = sorted({run["slots"] for run in RUNS})


def of(slots, name):
    """One number of all runs with so many slots."""
    return np.array([run[name] for run in RUNS if run["slots"] == slots])


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.9))
    for slots in SLOTS:
        left.plot(np.full(len(of(slots, "kl")), slots), 100 * of(slots, "gap_closed"), "o", ms=3, color=GREY, alpha=0.5)
    left.plot(SLOTS, [100 * of(slots, "gap_closed").mean() for slots in SLOTS], "o-", ms=4, color=BLUE)
    left.set(title="gap closed, %: every run, and the mean", ylim=(78, 101))
    right.plot(SLOTS, [100 * of(slots, "recall").mean() for slots in SLOTS], "o-", ms=4, color=ORANGE, label="slots")
    right.axhline(100 * np.mean([run["recall_full"] for run in RUNS]), color=GREY, linestyle="--", label="full notes")
    right.set(title="recall, %: mean", ylim=(0, 101))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="slots", xticks=SLOTS, xticklabels=SLOTS)
        axes.minorticks_off()
    save(figure, __file__)


if __name__ == "__main__":
    main()
