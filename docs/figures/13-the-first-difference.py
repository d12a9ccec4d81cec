"""The error of every tensor in the order of a run: a right port in float32, and one with erf for GELU's tanh."""

import common
import numpy as np
from common import BLUE, GREY, ORANGE, plt, save

from minicompress.trees import tree_map
from minicompress.verification.cases import random_prompt
from minicompress.verification.compare import compare
from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.forward import Way
from minicompress.verification.plain.gelus import ERF
from minicompress.verification.setup import Setup

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5]]


def main():
    rng = np.random.default_rng(1)
    setup = Setup((common.random_params(), common.TINY), ROWS, random_prompt("embeddings", common.TINY, 3, rng))
    reference = setup.tensors()
    single = lambda tensors: {name: x.astype(np.float32) for name, x in tensors.items()}
    small = setup._replace(model=(tree_map(lambda w: w.astype(np.float32), setup.model[0]), common.TINY))
    right = compare(reference, answer(small), setup).lines
    wrong = compare(reference, single(answer(setup, Way(gelu=ERF))), setup).lines
    figure, axis = plt.subplots(figsize=(7.2, 3.2))
    places = range(len(right))
    axis.plot(places, [one.tolerance for one in right], color=GREY, label="tolerance, float32")
    axis.plot(places, [max(one.error, 1e-9) for one in right], ".", color=BLUE, label="a right port in float32")
    axis.plot(places, [max(one.error, 1e-9) for one in wrong], ".", color=ORANGE, label="erf for GELU's tanh")
    first = next(n for n, one in enumerate(wrong) if one.differs)
    axis.annotate(wrong[first].name, (first, wrong[first].error), (first - 2, 1.5e-3), color=ORANGE, ha="right",
                  arrowprops={"arrowstyle": "-", "color": ORANGE})  # fmt: skip
    names = [one.name for one in right]
    axis.set_xticks([names.index(name) for name in ("hidden.0", "hidden.1", "logits", "grad.hidden.1", "grad.prompt")])
    axis.set_xticklabels(["hidden.0", "hidden.1", "logits", "grad.hidden.1", "grad.prompt"])
    axis.set_yscale("log")
    axis.set_ylabel("relative error")
    axis.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 1.18))
    save(figure, __file__)


if __name__ == "__main__":
    main()
