"""Two checks of LayerNorm's gradient over their step sizes, for the right backward and for one that forgets eps."""

import numpy as np
from common import BLUE, RED, plt, save

from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.verification.oracles import central_difference, complex_step, unit_direction


def forgetful_backward(dout, cache):
    """The backward that takes all of the stretch out, as if mean(x̂²) were 1: right only for eps = 0."""
    xhat, rstd, weight = cache
    g = dout * weight
    stretch = (g * xhat).mean(-1, keepdims=True) / (xhat * xhat).mean(-1, keepdims=True)
    return rstd * (g - g.mean(-1, keepdims=True) - xhat * stretch)


def case(seed=0):
    """x, weight, bias, a random cotangent and a random direction."""
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.standard_normal((4, 8)), rng.standard_normal(8), rng.standard_normal(8)
    return x, weight, bias, rng.standard_normal((4, 8)), unit_direction(rng, (4, 8))


def error(backward, oracle, **step):
    """Relative error of <backward's gradient, u> against the oracle."""
    x, weight, bias, cotangent, u = case()
    _, cache = layernorm(x, weight, bias)
    ours = (backward(cotangent, cache) * u).sum()
    truth = oracle(lambda x: layernorm(x, weight, bias)[0], x, u, cotangent, **step)
    return abs(ours - truth) / abs(truth)


def main():
    figure, axes = plt.subplots(figsize=(6.2, 3.5))
    finite, tiny = np.logspace(-12, -1, 45), np.logspace(-35, -1, 69)
    for backward, colour, name in ((layernorm_backward, BLUE, "right"), (forgetful_backward, RED, "eps forgotten")):
        by_difference = [error(backward, central_difference, step=h) for h in finite]
        by_complex = [max(error(backward, complex_step, h=h), 1e-17) for h in tiny]
        axes.loglog(tiny, by_complex, color=colour, label=f"complex step, {name}")
        axes.loglog(finite, by_difference, ".", ms=4, color=colour, label=f"central difference, {name}")
    axes.axhline(1e-3, color="k", lw=0.8, ls=":")
    axes.text(1e-35, 1.5e-3, "a usual tolerance, 1e-3", va="bottom")
    axes.set(xlabel="step h", ylabel="relative error of one slope", ylim=(5e-18, 20))
    axes.legend(loc="upper center", bbox_to_anchor=(0.38, 0.62), fontsize=8)
    save(figure, __file__)


if __name__ == "__main__":
    main()
