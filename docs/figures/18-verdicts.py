"""Every difference that the test of PEFT measured, by check and verdict, as 18-verdicts.json keeps one run of it."""

import json

from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

FOUND = json.loads((FIGURES / "18-verdicts.json").read_text())
MARKS = {"agrees": ("✓", GREEN, "o"), "differs: a convention": ("convention", ORANGE, "s"), "differs: a defect": ("**defect**", RED, "D")}
KINDS = ("prompt tuning", "P-tuning, MLP", "P-tuning, LSTM", "multitask", "CPT", "prefix tuning", "prefix, projected", "cartridge")
COLUMNS = {"prompt tuning, multitask": (0, 3), "P-tuning": (1, 2), "CPT": (4,), "prefix tuning": (5,), "projected": (6,), "cartridge": (7,)}
LEAST = 1e-17  # where a difference of 0 is drawn


def verdicts():
    """{check: {kind: verdict}}, in the order of the run."""
    found = {}
    for row in FOUND["rows"]:
        found.setdefault(row["check"], {})[row["kind"]] = row["verdict"]
    return found


def worst(check, verdict="agrees"):
    """The largest difference of a check's rows of one verdict; None where nothing was measured."""
    rows = [row for row in FOUND["rows"] if (row["check"], row["verdict"]) == (check, verdict)]
    return max((row["difference"] for row in rows if row["difference"] is not None), default=None)


def every_kind():
    """The page's first table, line by line: checks that all kinds of prompts are put to."""
    yield f"| check | {' | '.join(COLUMNS)} |"
    yield "|---|" + "---|" * len(COLUMNS)
    for check, kinds in verdicts().items():
        if set(KINDS) <= set(kinds):
            cells = [" / ".join(dict.fromkeys(MARKS[kinds[KINDS[n]]][0] for n in some)) for some in COLUMNS.values()]
            yield f"| {check} | {' | '.join(cells)} |"


def singles():
    """The page's second table: what is asked of one kind or two, and has a verdict of its own."""
    yield "| check | of | verdict |"
    yield "|---|---|---|"
    for check, kinds in verdicts().items():
        for kind, verdict in kinds.items():
            if not set(KINDS) <= set(kinds) or kind not in KINDS:
                yield f"| {check} | {kind} | {MARKS[verdict][0]} |"


def main():
    measured = {}
    for row in FOUND["rows"]:
        if row["difference"] is not None:
            measured.setdefault(row["check"], []).append(row)
    checks = sorted(measured, key=lambda check: max(row["difference"] for row in measured[check]), reverse=True)
    figure, axes = plt.subplots(figsize=(7.4, 5.6))
    for verdict, (word, colour, marker) in MARKS.items():
        points = [(max(row["difference"], LEAST), y) for y, check in enumerate(checks) for row in measured[check] if row["verdict"] == verdict]
        axes.plot(*zip(*points, strict=True), marker, ms=5, color=colour, alpha=0.65, mew=0, label=word.strip("*").replace("✓", "agrees"))
    for tolerance, words in ((1e-10, "float64"), (1e-5, "float32")):
        axes.axvline(tolerance, color=BLUE, lw=0.8, ls=":")
        axes.text(tolerance, -0.9, f"tolerance, {words}", color=BLUE, ha="center", fontsize=8)
    axes.set_xscale("log")
    axes.set(xlim=(LEAST / 2, 5), ylim=(len(checks) - 0.4, -1.3), xlabel="relative difference between ours and theirs")
    axes.set_xticks([LEAST, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1], ["0", "$10^{-15}$", "$10^{-12}$", "$10^{-9}$", "$10^{-6}$", "$10^{-3}$", "1"])
    axes.set_yticks(range(len(checks)), checks)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GREY, alpha=0.2, lw=0.6)
    axes.legend(loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, 1.0))
    save(figure, __file__)


if __name__ == "__main__":
    main()
