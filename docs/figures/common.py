"""What the figures share: a small random GPT-2, colours, and how a picture is written."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

FIGURES = Path(__file__).resolve().parent
sys.path.insert(0, str(FIGURES.parents[1]))

from minicompress.gpt2 import Config  # noqa: E402
from minicompress.verification import cases  # noqa: E402

BLUE, ORANGE, GREEN, RED, GREY = "#3465a4", "#ce7b00", "#4e8a06", "#b02020", "#8a8a8a"
TINY = Config(vocab_size=17, n_positions=64, n_embd=12, n_layer=2, n_head=3)

plt.rcParams.update({
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5,
    "legend.frameon": False, "savefig.facecolor": "white", "figure.constrained_layout.use": True,
})  # fmt: skip


def random_params(config=TINY, seed=0):
    """Weights with nothing special about them, in float64: no zero biases, no LayerNorm weights of one."""
    return cases.random_params(config, np.random.default_rng(seed))


def save(figure, script):
    """Writes the picture beside its script, under the same name."""
    path = Path(script).with_suffix(".png")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    print(path.name, path.stat().st_size // 1000, "kB")
