"""The keys that each row of a mixed batch sees: its own prompt, no padding, its own tokens and nobody else's."""

import numpy as np
from common import BLUE, GREEN, GREY, ORANGE, RED, TINY, plt, random_params, save
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from minicompress.prompts.carriers import lift
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.tenants import read_many

TEXTS = (6, 9, 4, 7, 9)  # tokens of the rows


def prompts():
    """One prompt a row: eight embeddings, none, four hidden, three keys and values that take no positions, eight again."""
    params, rng = random_params(), np.random.default_rng(0)
    first = SoftPrompt(rng.standard_normal((8, TINY.n_embd)))
    deep = {kind: lift(params, TINY, rng.standard_normal((n, TINY.n_embd)), kind) for kind, n in (("hidden", 4), ("kv", 3))}
    return [first, None, SoftPrompt(deep["hidden"], "hidden"), SoftPrompt(deep["kv"], "kv", "unshifted"), first]


def main():
    rows = prompts()
    prefix, _ = read_many(random_params(), TINY, rows)
    P, T = prefix.length, max(TEXTS)
    kinds = {"embeddings": 1, "hidden": 2, "kv": 3}
    cells = np.zeros((len(rows), P + T))
    for b, (prompt, n) in enumerate(zip(rows, TEXTS, strict=True)):
        cells[b, :P] = prefix.mask[b] * (kinds[prompt.carrier] if prompt else 0)
        cells[b, P : P + n] = 4
    figure, axes = plt.subplots(figsize=(7.4, 2.5))
    colours = ["#eeeeee", BLUE, GREEN, ORANGE, GREY]
    axes.pcolormesh(cells, cmap=ListedColormap(colours), vmin=-0.5, vmax=4.5, edgecolors="white", linewidth=1.5)
    for b, n in enumerate(TEXTS):
        for t in range(n):
            axes.text(P + t + 0.5, b + 0.5, int(prefix.start[b]) + t, ha="center", va="center", color="white", fontsize=7.5)
    axes.axvline(P, color=RED, linewidth=1)
    names = ("embeddings, 8", "none", "hidden, 4", "kv, 3, unshifted", "the first row's")
    axes.set(yticks=np.arange(len(rows)) + 0.5, yticklabels=names, xticks=[P / 2, P + T / 2])
    axes.set_xticklabels([f"prefix, {P} keys", f"text, {T} keys; in each its position"])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    words = ("seen by nobody", "embeddings", "hidden", "kv", "tokens")
    axes.legend([Patch(color=c) for c in colours], words, ncols=5, loc="upper center", bbox_to_anchor=(0.42, 1.2), fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
