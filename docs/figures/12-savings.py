"""Milliseconds of a query by what stands before it, as examples/14_what_a_soft_prompt_saves.py found it."""

import json

from common import BLUE, FIGURES, GREEN, GREY, ORANGE, plt, save

FOUND = json.loads((FIGURES.parents[1] / "examples/results/14.json").read_text())
WAYS = {"context read anew": GREY, "context's keys and values kept": ORANGE, "slots, embeddings": BLUE, "slots, kv": GREEN}
LENGTHS = (128, 512, 960)


def row(length):
    return FOUND[f"124M, {length} tokens"]


def size(n):
    """Bytes in words."""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} KB"


def table():
    """The page's table, line by line: milliseconds for each length, and what is kept for the longest."""
    yield "| before the query | " + " | ".join(f"{n} tokens" for n in LENGTHS) + " | kept for 960 |"
    yield "|---|" + "---|" * (len(LENGTHS) + 1)
    for way in WAYS:
        cells = [f"{1000 * row(length)['seconds'][way]:,.0f} ms" for length in LENGTHS]
        yield f"| {way} | {' | '.join(cells)} | {size(row(960)['bytes'][way])} |"


def main():
    figure, axes = plt.subplots(figsize=(5.4, 2.9))
    for way, colour in WAYS.items():
        axes.plot(LENGTHS, [1000 * row(n)["seconds"][way] for n in LENGTHS], "o-", ms=4, color=colour, label=way)
    axes.set(xlabel="tokens of context", ylabel="milliseconds a query", xticks=LENGTHS, ylim=(0, None))
    axes.legend()
    save(figure, __file__)


if __name__ == "__main__":
    main()
