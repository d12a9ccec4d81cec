"""Three oracles of a block's gradient over their steps, in two precisions; and Taylor's remainder to both sides."""

import numpy as np
from common import BLUE, GREEN, GREY, ORANGE, RED, TINY, plt, random_params, save

from minicompress.compression.objectives import likelihood
from minicompress.gpt2.block import block, block_backward
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards
from minicompress.trees import tree_map
from minicompress.verification.oracles import complex_step, leaning_direction, taylor_remainders

WRONG = 1 + 1e-4


def forward_difference(f, x, u, cotangent, h):
    return float((cotangent * (f(x + h * u) - f(x))).sum() / h)


def central(f, x, u, cotangent, h):
    """`central_difference` at a step of exactly h."""
    return float((cotangent * (f(x + h * u) - f(x - h * u))).sum() / (2 * h))


def of_block(dtype):
    """A block f(x) in this precision, its x, a direction and a cotangent, which float32 holds exactly; <dx, u>."""
    rng, small = np.random.default_rng(0), lambda a: a.astype(np.float32).astype(dtype)
    params = tree_map(small, random_params()["h"]["0"])
    x, cotangent = (small(rng.standard_normal((2, 6, TINY.n_embd))) for _ in range(2))
    dx, _ = block_backward(cotangent, block(x, params, TINY)[2])
    u = small(leaning_direction(rng, dx.astype(np.float64)))
    return lambda x: block(x, params, TINY)[0], x, u, cotangent, float((dx * u).sum())


def errors(oracle, steps, dtype):
    """Relative error of the oracle's slope at each step, against float64's gradient."""
    f, x, u, cotangent, _ = of_block(dtype)
    truth = of_block(np.float64)[-1]
    return [max(abs(oracle(f, x, u, cotangent, dtype(h)) - truth) / abs(truth), 1e-17) for h in steps]


def of_slots():
    """A whole model's loss of its slots, the slots, a direction, and the gradient."""
    rng, model = np.random.default_rng(0), (random_params(), TINY)
    ids, slots = rng.integers(TINY.vocab_size, size=(3, 6)), rng.standard_normal((4, TINY.n_embd))

    def f(slots):
        with Shards(1) as shards:
            objective = lambda rows, weight: likelihood(ids[rows].ravel(), weight)
            return slots_gradient(model, slots, ids, np.ones((3, 6), bool), objective, shards)

    gradient = f(slots)[1]
    return lambda slots: f(slots)[0], slots, leaning_direction(rng, gradient), gradient


def draw_oracles(axes):
    finite, tiny = np.logspace(-10.6, 0, 54), np.logspace(-20, 0, 81)
    for oracle, steps, colour, name in ((forward_difference, finite, ORANGE, "forward difference"),
                                        (central, finite, BLUE, "central difference"), (complex_step, tiny, GREEN, "complex step")):  # fmt: skip
        axes.loglog(steps, errors(oracle, steps, np.float64), color=colour, lw=1.3, label=name)
        axes.loglog(steps, errors(oracle, steps, np.float32), color=colour, lw=1.0, ls=":")
    axes.plot([], [], color=GREY, lw=1.0, ls=":", label="the same in float32")
    axes.set(xlabel="step h", ylabel="relative error of a slope", ylim=(1e-17, 1e2), xlim=(1e-20, 1), title="a transformer block")
    axes.legend(fontsize=8, loc="upper left", handlelength=1.5)


def draw_remainders(axes):
    f, slots, u, gradient = of_slots()
    steps = 2.0 ** -np.arange(2, 27)
    one, other = (taylor_remainders(f, slots, way, WRONG * gradient, steps) for way in (u, -u))
    right = np.add(*(taylor_remainders(f, slots, way, gradient, steps) for way in (u, -u)))
    axes.loglog(steps, one, "-", color=RED, lw=0.8, label="0.01% too large, along u")
    axes.loglog(steps, other, "--", color=RED, lw=0.8, label="the same, along −u")
    axes.loglog(steps, np.add(one, other), "^-", ms=3, color=RED, lw=1.3, label="the same, both together")
    axes.loglog(steps, right, "o-", ms=3, color=BLUE, lw=1.3, label="right, both together")
    axes.axhline(1e3 * np.finfo(float).eps * f(slots), color="k", lw=0.8, ls=":")
    axes.text(steps[0], 3e-13 * f(slots), "taken for rounding", fontsize=8, ha="right")
    axes.set(xlabel="step h", ylabel="what the linear term leaves", title="a whole model's loss")
    axes.legend(fontsize=8, loc="upper left")


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6))
    draw_oracles(left)
    draw_remainders(right)
    save(figure, __file__)


if __name__ == "__main__":
    main()
