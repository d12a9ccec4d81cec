"""What rounding costs on each golden file, in float64 and in float32, between what is allowed and what mistakes cost."""

import math

import numpy as np
from common import BLUE, GREY, ORANGE, RED, plt, save

from minicompress.layers.layernorm import layernorm
from minicompress.verification.golden.case import computed
from minicompress.verification.golden.folder import CASES, tensor_error

ORDER = ("layer", "loss", "bake", "gpt2", "carrier", "encoder", "teacher", "edge", "step", "decode")  # to prove in
FIRST = ("layer", "loss", "bake")  # the left panel


def in_order(groups=ORDER):
    """The files' names, group by group."""
    return [name for group in groups for name in CASES if name.split("-")[0] == group]


def table():
    """The page's table of all files, line by line."""
    yield "| file | proves | source |"
    yield "|---|---|---|"
    for name in in_order():
        yield f"| `{name}` | {CASES[name].proves} | {CASES[name].source} |"


def largest_error(ours, theirs):
    return max(tensor_error(x.astype(theirs[name].dtype), theirs[name]) for name, x in ours.items())


def rounding(name, dtype):
    """The largest error of a tensor: of float32 against float64, of float64 against a wider type."""
    truth, other = computed(name, CASES[name])[1], computed(name, CASES[name], dtype)[1]
    return largest_error(truth, other) if dtype == np.longdouble else largest_error(other, truth)


def told_otherwise(name, **facts):
    """The error of a port that takes other facts than those of the file."""
    inputs, truth = computed(name, CASES[name])
    return largest_error(CASES[name].run(inputs, **CASES[name].facts | facts), truth)


def forgetful(name):
    """LayerNorm's backward that takes the stretch out as if eps were 0."""
    i, truth = computed(name, CASES[name])
    _, (xhat, rstd, weight) = layernorm(i["x"], i["weight"], i["bias"])
    g = i["dout"] * weight
    stretch = (g * xhat).mean(-1, keepdims=True) / (xhat * xhat).mean(-1, keepdims=True)
    return tensor_error(rstd * (g - g.mean(-1, keepdims=True) - xhat * stretch), truth["grad.x"])


def erf_gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def cut_gelu(x):
    """With ten digits of √(2/π)."""
    return x / 2 * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def gelu_error(gelu):
    i, truth = computed("layer-gelu", CASES["layer-gelu"])
    return tensor_error(gelu(i["x"]), truth["out"])


MISTAKES = {  # what is wrong on a file, and its errors
    "layer-layernorm": ("eps forgotten in the backward", lambda: [forgetful("layer-layernorm")]),
    "layer-layernorm-small": ("the same", lambda: [forgetful("layer-layernorm-small")]),
    "layer-gelu": ("10 digits of √(2/π); erf", lambda: [gelu_error(cut_gelu), gelu_error(erf_gelu)]),
    "gpt2-tied": ("eps = 1e-6", lambda: [told_otherwise("gpt2-tied", layer_norm_epsilon=1e-6)]),
    "step-adamw": ("eps = 1e-7", lambda: [told_otherwise("step-adamw", eps=1e-7)]),
    "teacher-kl-temperature": ("temperature 1", lambda: [told_otherwise("teacher-kl-temperature", temperature=1.0)]),
}  # fmt: skip


def panel(axes, names):
    places = range(len(names))
    for dtype, kind, colour in ((np.longdouble, "float64", BLUE), (np.float32, "float32", ORANGE)):
        cost = [max(rounding(name, dtype), 1e-17) for name in names]
        allowed = [getattr(CASES[name], kind) for name in names]
        axes.plot(cost, places, ".", ms=4.5, color=colour, label=f"{kind}, rounding")
        axes.plot(allowed, places, "|", ms=6.5, mew=1.5, color=colour, label=f"{kind}, allowed")
    for place, name in enumerate(names):
        if name in MISTAKES:
            words, errors = MISTAKES[name][0], MISTAKES[name][1]()
            axes.plot(errors, [place] * len(errors), "x", color=RED, ms=5)
            axes.text(5 * max(*errors, CASES[name].float32), place, words, color=RED, fontsize=6.5, va="center")
    axes.set_yticks(places, names, fontsize=6.5)
    axes.set(
        xscale="log", xlim=(5e-18, 1e6), ylim=(len(names) - 0.5, -0.5), xlabel="largest relative error of a tensor"
    )
    axes.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.grid(axis="y", color=GREY, lw=0.3, alpha=0.5)


def main():
    figure, axes = plt.subplots(1, 2, figsize=(9, 6.2))
    panel(axes[0], in_order(FIRST))
    panel(axes[1], in_order(ORDER[len(FIRST) :]))
    axes[0].plot([], [], "x", color=RED, ms=5, label="a mistake")
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper center", ncols=5, fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
