"""Every way to compress over its number of slots and over its time, as the scripts in examples/embedded_model found it."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

SIZES = [1, 2, 4, 8, 16, 32]
PURPLE = "#75507b"


def lines(name):
    return [json.loads(line) for line in (FIGURES.parents[1] / "examples/results" / name).read_text().splitlines()]


PRODUCERS, FIELD, PAIRS = lines("producers.jsonl"), lines("field.jsonl"), lines("composition.jsonl")
MATCHING = [line for line in lines("matching.jsonl") if line.get("reference") == "self-study" and line["choose"] == "rms"]
COMPRESSORS = [line for line in lines("compressors.jsonl") if "per_segment" in line and line["segment"] == 32]
COLOURS = {"selection": ORANGE, "closed form": BLUE, "trained once": PURPLE, "gradient": GREEN}
LABELS = {  # of a producer: what it is called in the picture, and where that stands beside its point
    "first": ("first", 6, -6), "last": ("last", 6, -2), "random": ("random", 4, 3), "selective": ("selective", 6, -3),
    "pooled-embeddings": ("mean embeddings", 6, -8), "pooled-kv": ("mean keys and values", 6, -2), "h2o": ("H2O", 6, -6),
    "snapkv": ("SnapKV", -6, 2), "icae": ("icae", 6, 2), "rmt": ("rmt", 6, -5), "gist32": ("gist", 6, -7), "ccm": ("ccm", 6, 1),
    "500x": ("500x", 6, 2), "attention-matching": ("closed form", 6, -9), "gradient, kv": ("gradient: kv", 6, -8),
    "gradient, matched": ("closed form, then 50 steps", -6, -3), "gradient, lora": ("lora", 6, 3),
}  # fmt: skip


def closed(some):
    """The gap of each run, in per cent."""
    return [100 * (1 - line["kl"] / line["kl_none"]) for line in some]


def way(name, slots):
    return [line for line in PRODUCERS if (line["way"], line["slots"]) == (name, slots)]


def told(some):
    """Mean gap, worst run, recall."""
    return f"{np.mean(closed(some)):.1f}% | {min(closed(some)):.1f}% | {np.mean([line['recall'] for line in some]):.0%}"


def matched(slots):
    return [line for line in MATCHING if (line["budget"], line["slots"]) == ("even", slots)]


def field(producer, kind="notes"):
    """[(KL, KL of nothing, recall, slots, seconds)] of a producer over contexts of one kind."""
    none = {line["number"]: line["kl"] for line in FIELD if line["producer"] == "none"}
    chosen = [line for line in FIELD if (line["producer"], line["kind"]) == (producer, kind)]
    return np.array([(x["kl"], none[x["number"]], x["recall"], x["slots"], x["seconds"]) for x in chosen])


def gap(found):
    """A ratio of means, in per cent."""
    return 100 * (1 - found[:, 0].mean() / found[:, 1].mean())


def interval(found, draws=2000):
    """Its 95% bootstrap interval over contexts."""
    drawn = found[np.random.default_rng(0).integers(len(found), size=(draws, len(found)))].mean(1)
    return np.quantile(100 * (1 - drawn[:, 0] / drawn[:, 1]), [0.025, 0.975])


def row(producer):
    """The page's line: gap with its interval and recall on notes, the same on tasks, slots, seconds."""
    cells = []
    for kind in ("notes", "task"):
        found = field(producer, kind)
        low, high = interval(found)
        cells += [f"{gap(found):.0f}% ({low:.0f} to {high:.0f})", f"{found[:, 2].mean():.0%}"]
    both = np.concatenate([field(producer), field(producer, "task")])
    seconds = float(np.median(both[:, 4]))
    return f"| {' | '.join(cells)} | {both[:, 3].mean():.0f} | {seconds:.2g} |"


def pair(way, name):
    """Mean bits over pairs and seeds."""
    return float(np.mean([line[name] for line in PAIRS if line["way"] == way]))


def kind_of(producer):
    if producer.startswith("gradient"):
        return "gradient"
    if producer.startswith("attention"):
        return "closed form"
    return "trained once" if producer in ("gist32", "icae", "500x", "rmt", "ccm") else "selection"


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.8))
    kept = lambda name, size: [x for x in COMPRESSORS if (x["producer"], x["per_segment"]) == (name, size)]
    for name, colour in (("gist", PURPLE), ("500x", RED)):
        some = [kept(name, size) for size in (1, 2, 4, 8)]
        gaps = [100 * (1 - sum(x["sigma"]["kl"] for x in s) / sum(x["none"]["kl"] for x in s)) for s in some]
        left.plot([np.mean([x["slots"] for x in s]) for s in some], gaps, "o-", ms=3, color=colour, label=f"{name}, trained once")
    left.plot(SIZES, [np.mean(closed(matched(n))) for n in SIZES], "o-", ms=3, color=BLUE, label="closed form")
    left.plot(SIZES, [np.mean(closed(way("any-prefix", n))) for n in SIZES], "o-", ms=3, color=GREEN, label="gradient, one training for all")
    left.plot([4, 8], [np.mean(closed(way("matched", n))) for n in (4, 8)], "k*-", label="closed form, then 50 steps")
    left.set(title="gap closed, %: held-out notes", xscale="log", xlabel="slots", xticks=SIZES, xticklabels=SIZES, ylim=(60, 101))
    left.minorticks_off()
    left.legend(loc="lower right", fontsize=7)
    for name, (label, dx, dy) in LABELS.items():
        found = field(name)
        at = np.median(found[:, 4]), 100 * found[:, 2].mean()
        right.plot(*at, "o", ms=5, color=COLOURS[kind_of(name)])
        right.annotate(label, at, xytext=(dx, dy), textcoords="offset points", fontsize=7, ha="right" if dx < 0 else "left")
    right.axhline(100 * field("full")[:, 2].mean(), color=GREY, ls="--", lw=0.8)
    right.set(title="recall, %, at 16 slots; dashed: the full notes", xscale="log", xlabel="seconds to make", ylim=(-3, 101))
    right.set_xlim(1.5e-3, 2e2)
    save(figure, __file__)


if __name__ == "__main__":
    main()
