"""Attention of one head, P keys of a past before T own keys; and the same tokens read in one piece."""

import numpy as np
from common import TINY, plt, random_params, save

from minicompress.gpt2 import embed, forward
from minicompress.layers import attention

P, T = 4, 6


def probabilities(layer=1, head=0):
    """(T, P + T) of tokens read behind a past, and (P + T, P + T) of all of them read at once."""
    params, ids = random_params(seed=3), np.random.default_rng(5).integers(17, size=(1, P + T))

    def read(ids, offset=0, past=None):
        _, present, (caches, _) = forward(params, TINY, embed(params, ids, offset), past)
        return present, attention.probabilities(caches[layer]["attn"]["attention"])[0, head]

    past, _ = read(ids[:, :P])
    return read(ids[:, P:], P, past)[1], read(ids)[1]


def main():
    pieces, whole = probabilities()
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.2))
    for ax, probs, first, title in zip(axes, (pieces, whole), (P, 0), ("read behind a past", "read at once"), strict=True):
        shown = np.where(probs == 0, np.nan, probs)
        image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=max(pieces.max(), whole.max()), extent=(-0.5, P + T - 0.5, P + T - 0.5, first - 0.5))
        ax.set_facecolor("#eeeeee")
        ax.axvline(P - 0.5, color="k", lw=1)
        if first == 0:
            ax.axhline(P - 0.5, color="k", lw=1)
        ax.set(title=title, xlabel="key's position", ylabel="query's position", xticks=range(P + T), yticks=range(first, P + T), ylim=(P + T - 0.5, -0.5))
    axes[0].text(4.5, 1.5, "these queries\nran before", ha="center", va="center", color="#555555")
    figure.colorbar(image, ax=axes, label="probability", shrink=0.85)
    save(figure, __file__)


if __name__ == "__main__":
    main()
