"""A parameterisation as a preconditioner: the spectrum of J Jᵀ, and gradient descent on raw arrays beside descent on slots."""

import numpy as np
from common import BLUE, GREEN, GREY, ORANGE, TINY, plt, random_params, save

from minicompress.compression.objectives import kl
from minicompress.compression.queries import Query, pad
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import read_tokens
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.parameterisations import direct, low_rank, prefix_mlp
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map

MODEL, P, RATE, STEPS = (random_params(seed=2), TINY), 4, 0.5, 60
COLOURS = {"direct": ORANGE, "low rank": GREEN, "MLP": BLUE}


def problem(shards):
    """f(slots) -> KL of keys and values to a model that has read 16 tokens, and its gradient."""
    rng = np.random.default_rng(3)
    context, rows = rng.integers(17, size=16), rng.integers(17, size=(24, 7))
    queries = [Query(list(row), 1) for row in rows]
    teacher = Teacher(MODEL, read_tokens(*MODEL, context), queries, shards)
    objective = lambda part, weight: kl(teacher.logp(range(24)[part]), weight)
    return lambda slots: slots_gradient(MODEL, slots, *pad(queries), objective, shards, DOORS["kv"])


def parameterisations():
    """{name: (raw, bake, bake_backward)} of three that bake to the same slots at the start."""
    rng, L, H, C = np.random.default_rng(0), TINY.n_layer, TINY.n_head, TINY.n_embd
    mlp, bake_mlp = prefix_mlp.init(rng, P, L, C, 2 * C, np.float64), lambda raw: prefix_mlp.bake(raw, L, H)
    start = bake_mlp(mlp)[0]
    return {
        "direct": (direct.init(rng, start, np.float64), direct.bake, direct.bake_backward),
        "low rank": (low_rank.init(rng, start, 2, np.float64), low_rank.bake, low_rank.bake_backward),
        "MLP": (mlp, bake_mlp, prefix_mlp.bake_backward),
    }


def jacobian(raw, bake, bake_backward):
    """dσ/dθ (numbers of the slots, raw numbers): each row is what one number of the slots asks of θ."""
    slots, cache = bake(raw)
    asked = (bake_backward(one.reshape(slots.shape), cache) for one in np.eye(slots.size))
    return np.stack([np.concatenate([d.ravel() for d in flatten(draw).values()]) for draw in asked])


def preconditioned(raw, bake, gradient_raw, h=1e-30):
    """J Jᵀ g, in the slots' shape: `gradient_raw` is Jᵀ g, and the complex step multiplies by J."""
    return bake(tree_map(lambda x, d: x + 1j * h * d, raw, gradient_raw))[0].imag / h


def descend(f, raw, bake, bake_backward, rate, steps=STEPS):
    """Losses of gradient descent on the raw arrays; of slots that follow -rate J Jᵀ g instead, the same J each step."""
    raw = tree_map(np.copy, raw)
    slots, by_raw, by_slots = bake(raw)[0], [], []
    for _ in range(steps):
        (loss, g), cache = f(bake(raw)[0]), bake(raw)[1]
        other_loss, other_g = f(slots)
        by_raw.append(loss)
        by_slots.append(other_loss)
        slots = slots - rate * preconditioned(raw, bake, bake_backward(other_g, cache))
        tree_map(lambda x, d: x.__isub__(rate * d), raw, bake_backward(g, cache))
    return by_raw, by_slots


def mean_eigenvalue(raw, bake, bake_backward):
    """Of J Jᵀ: how far a step takes the slots, beside a direct one of the same rate."""
    J = jacobian(raw, bake, bake_backward)
    return (J * J).sum() / len(J)


def main():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.3))
    made = parameterisations()
    for name, triple in made.items():
        values = np.linalg.svd(jacobian(*triple), compute_uv=False) ** 2
        left.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-3), ".", ms=4, color=COLOURS[name], label=name)
    left.set(ylim=(0.08, 80), xlabel="direction of the slots, largest first", ylabel="eigenvalue of $J J^T$")
    left.set_title("how far one step goes, by direction")
    left.legend(fontsize=8)
    with Shards(1) as shards:
        f = problem(shards)
        for name, triple in made.items():
            by_raw, by_slots = descend(f, *triple, RATE)
            right.plot(by_raw, color=COLOURS[name], label=name)
            right.plot(np.arange(0, STEPS, 4), by_slots[::4], "o", ms=3, color=COLOURS[name])
        larger = mean_eigenvalue(*made["MLP"])
        right.plot(descend(f, *made["direct"], RATE * larger)[0], "--", color=ORANGE, lw=1, label=f"direct, rate times {larger:.1f}")
    right.plot([], [], "o", ms=3, color=GREY, label="slots moved by $J J^T g$")
    right.set(xlabel="step of gradient descent", ylabel="KL, nats a token", ylim=(0, None), title=f"one rate, {RATE}, for all three")
    right.legend(fontsize=8, loc="lower left", ncols=2)
    save(figure, __file__)


if __name__ == "__main__":
    main()
