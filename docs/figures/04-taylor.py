"""The Taylor test of a slot's gradient through a frozen model: the remainder falls with the square of the step."""

import numpy as np
from common import BLUE, GREY, RED, TINY, plt, random_params, save

from minicompress.compression.objectives import likelihood
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards
from minicompress.verification.oracles import unit_direction


def case():
    """f(slots) -> loss and gradient, slots, and a direction that leans along the gradient."""
    rng = np.random.default_rng(0)
    model, ids = (random_params(), TINY), rng.integers(TINY.vocab_size, size=(3, 6))
    scored, slots = np.ones((3, 6), bool), rng.standard_normal((4, TINY.n_embd))

    def f(slots):
        with Shards(1) as shards:
            return slots_gradient(model, slots, ids, scored, lambda rows, w: likelihood(ids[rows].ravel(), w), shards)

    gradient = f(slots)[1]
    return f, slots, unit_direction(rng, slots.shape) + gradient / np.linalg.norm(gradient)


def remainders(f, slots, u, steps, factor=1.0):
    """|f(σ + hu) - f(σ) - h <factor · gradient, u>| for each h."""
    start, gradient = f(slots)
    slope = factor * (gradient * u).sum()
    return [abs(f(slots + h * u)[0] - start - h * slope) for h in steps]


def main():
    f, slots, u = case()
    steps = 2.0 ** -np.arange(0, 16)
    figure, axes = plt.subplots(figsize=(5.4, 3.4))
    axes.loglog(steps, [abs(f(slots + h * u)[0] - f(slots)[0]) for h in steps], "s-", ms=3, color=GREY, label="no gradient: order 1")
    axes.loglog(steps, remainders(f, slots, u, steps, 1.01), "^-", ms=4, color=RED, label="1% wrong: order 1 in the end")
    axes.loglog(steps, remainders(f, slots, u, steps), "o-", ms=4, color=BLUE, label="right: order 2")
    axes.set(xlabel="step h", ylabel="what the linear term leaves")
    axes.legend(loc="lower right")
    save(figure, __file__)


if __name__ == "__main__":
    main()
