"""Ways to compress a context as rows, the six axes as columns: what a way chose on each, in a colour for each choice."""

from common import plt, save

AXES = ["slots are", "made by", "loss", "asked", "segments", "tokens begin"]
WAYS = {  # as published; ours where nobody has published it
    "truncation, Selective-Context": ("tokens", "selection", "–", "nothing", "one", "after slots"),
    "H2O, SnapKV": ("keys, values", "selection", "–", "nothing", "one", "after context"),
    "Attention Matching": ("keys, values", "closed form", "inside", "self-study", "one", "after context"),
    "Wingate": ("embeddings", "gradient", "KL", "context-free", "one", "after slots"),
    "Cartridges": ("keys, values", "gradient", "KL, top k", "self-study", "one", "after slots"),
    "context distillation": ("weights", "gradient", "KL", "context-free", "one", "no slots"),
    "Gist": ("keys, values", "trained once", "data", "tasks", "one", "after both"),
    "ICAE": ("embeddings", "trained once", "data, context", "continuation", "apart, joined", "after slots"),
    "500xCompressor": ("keys, values", "trained once", "data, context", "tasks", "apart, joined", "after both"),
    "AutoCompressor": ("embeddings", "trained once", "data", "continuation", "in turn, joined", "after slots"),
    "RMT": ("embeddings", "trained once", "data", "continuation", "overwritten", "after slots"),
    "CCM": ("keys, values", "trained once", "data", "tasks", "joined or mean", "after segment"),
    "matched, then refined (here)": ("keys, values", "form, gradient", "inside, KL", "self-study", "one", "after context"),
    "any of these by KL (here)": ("any", "trained once", "KL", "any", "any", "any"),
}
PALETTE = ["#cfe0f3", "#fbe0bd", "#d6ecc4", "#f4cccc", "#e4d7ee", "#fff2b8", "#d9d9d9", "#c9eae6", "#f7d6e6"]


def main():
    figure, axes = plt.subplots(figsize=(8.4, 4.3))
    axes.set_axis_off()
    axes.set_xlim(-1.95, len(AXES))
    axes.set_ylim(len(WAYS), -1)
    for column, name in enumerate(AXES):
        axes.text(column + 0.5, -0.4, f"{column + 1}. {name}", ha="center", va="center", weight="bold", fontsize=8)
        kinds = list(dict.fromkeys(way[column] for way in WAYS.values()))
        for row, way in enumerate(WAYS.values()):
            colour = PALETTE[kinds.index(way[column]) % len(PALETTE)]
            axes.add_patch(plt.Rectangle((column + 0.02, row + 0.05), 0.96, 0.9, color=colour))
            axes.text(column + 0.5, row + 0.5, way[column], ha="center", va="center", fontsize=7.5)
    for row, name in enumerate(WAYS):
        axes.text(-0.06, row + 0.5, name, ha="right", va="center", fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
