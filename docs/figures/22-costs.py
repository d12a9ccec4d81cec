"""What each way to compress costs over the length of the context, as examples/embedded_model/costs.py found it."""

import json

from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

LINES = [json.loads(line) for line in (FIGURES.parents[1] / "examples/results/costs.jsonl").read_text().splitlines()]
STYLES = {
    "last": (GREY, ":"), "snapkv": (GREY, "-"), "gist": (BLUE, "-"), "attention-matching": (GREEN, "-"), "gradient": ("black", "-"),
    "autocompressor": (ORANGE, "-"), "rmt": (RED, "-"), "ccm": (RED, "--"), "ccm-mean": (BLUE, "--"),
}  # fmt: skip


def of(producer):
    """The lines of a producer, in the order of their lengths; where it refused there is none."""
    return [line for line in LINES if line.get("producer") == producer and "seconds" in line]


def at(producer, tokens):
    return next(line for line in of(producer) if line["tokens"] == tokens)


def training(tokens, horizon=None):
    return next(line for line in LINES if "training" in line and (line["tokens"], line["horizon"]) == (tokens, horizon))


def time(seconds):
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def size(n):
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def row(producer, tokens):
    """The page's line: operations, time, peak, slots, what is kept at run time, and a query behind it."""
    line = at(producer, tokens)
    parts = f"{line['operations'] / 1e9:,.2f}", time(line["seconds"]), size(line["peak"]), f"{line['slots']:,}", size(line["kept"]), time(line["query"])
    return f"| {' | '.join(parts)} |"


def rate():
    """Operations a second, in 10⁹, of the longest reading in one go."""
    line = at("pooled-kv", 448)
    return line["operations"] / line["seconds"] / 1e9


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for name, (colour, style) in STYLES.items():
        lines = of(name)
        tokens = [line["tokens"] for line in lines]
        left.plot(tokens, [line["seconds"] for line in lines], "o" + style, ms=3, lw=1.1, color=colour)
        right.plot(tokens, [line["peak"] / 1e6 for line in lines], "o" + style, ms=3, lw=1.1, color=colour, label=name)
        if name not in ("last", "ccm-mean", "gist"):
            left.plot(tokens, [line["operations"] / rate() / 1e9 for line in lines], "-", lw=0.5, color=colour, alpha=0.6)
    left.set(title="seconds of one core", ylabel="")
    right.set(title="most memory at once, MB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="tokens of context")
        axes.axvline(512, color=GREY, lw=0.5)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncol=5, fontsize=7)
    save(figure, __file__)


if __name__ == "__main__":
    main()
