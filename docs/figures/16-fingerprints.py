"""What each mistake leaves untouched, and what it changes: the relative error of every tensor, mistake by mistake."""

from types import SimpleNamespace

import common
import numpy as np
from common import plt, save
from matplotlib.colors import LogNorm

from minicompress.verification.cases import random_prompt
from minicompress.verification.catalogue import BUGS
from minicompress.verification.oracles import error_of
from minicompress.verification.plain.backward import answer, what_is_asked
from minicompress.verification.plain.forward import RIGHT, forward
from minicompress.verification.setup import Setup

TENSORS = ["hidden.0", "attention.0", "hidden.1", "attention.1", "hidden.2", "logits", "loss", "grad.hidden.2", "grad.hidden.1",
           "grad.hidden.0", "grad.prompt", "grad.model.wte.weight"]  # fmt: skip
STAGES = ("front", "block", "head", "loss", "backward")
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5]]
LABELS = [[3, -100, 4, 1, 5], [9, 2], [6, 5, -100, 5]]


def setups():
    """Behind embeddings, behind keys and values, without a prompt; against tokens and against a teacher."""
    params, rng = common.random_params(), np.random.default_rng(1)
    model = params, common.TINY
    for kind in ("embeddings", "kv", None, "embeddings, unshifted"):
        prompt = kind and random_prompt(kind, common.TINY, 3, rng)
        for context in (None, [7, 8, 9]):
            yield Setup(model, ROWS, prompt, LABELS, None, context, temperature=2.0 if context else 1.0)


def errors(bug):
    """Of the first setup and way in which the mistake shows."""
    for setup in setups():
        tape = forward(setup.model, setup.rows, setup.prompt)
        asked = what_is_asked(setup, RIGHT, tape)
        known = SimpleNamespace(tape=tape, asked=asked, suspect_loss=None, small=True)
        right = answer(setup, tape=tape)
        for way in bug.ways(setup, known).values():
            wrong = answer(setup, way)
            pairs = [(wrong.get(name), right.get(name)) for name in TENSORS]
            found = [np.nan if b is None else 1.0 if a is None or a.shape != b.shape else error_of(a, b) for a, b in pairs]
            if np.nanmax(found) > 1e-9:
                return found
    return None


def main():
    found = {bug.id: errors(bug) for bug in BUGS if bug.stage in STAGES}
    found = {name: row for name, row in found.items() if row is not None}
    table = np.array(list(found.values()))
    figure, axis = plt.subplots(figsize=(7.2, 10.2))
    shown = np.ma.masked_invalid(np.where(table < 1e-12, np.nan, np.minimum(table, 1)))
    image = axis.imshow(shown, norm=LogNorm(1e-8, 1), cmap="YlOrRd", aspect="auto")
    axis.set_xticks(range(len(TENSORS)), [name.removeprefix("grad.model.") for name in TENSORS], rotation=60, ha="left")
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(found)), list(found))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="relative error; white: none", shrink=0.4)
    save(figure, __file__)


if __name__ == "__main__":
    main()
