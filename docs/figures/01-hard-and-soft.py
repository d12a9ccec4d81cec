"""One slot in place of six tokens: the best token of the vocabulary, and the vector that descent finds from there."""

import numpy as np
from common import BLUE, GREY, ORANGE, TINY, plt, random_params, save

from minicompress.compression.objectives import kl
from minicompress.compression.queries import Query, pad
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import read_tokens
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards

PARAMS, N_CONTEXT, ROWS, LENGTH = random_params(seed=1), 6, 12, 5


def case(shards):
    """divergence(slots) -> mean KL to the model that read the context, and its gradient."""
    rng = np.random.default_rng(7)
    context = rng.integers(TINY.vocab_size, size=N_CONTEXT)
    queries = [Query(list(row), 1) for row in rng.integers(TINY.vocab_size, size=(ROWS, LENGTH))]
    ids, scored = pad(queries)
    teacher = Teacher((PARAMS, TINY), read_tokens(PARAMS, TINY, context), queries, shards)
    objective = lambda rows, weight: kl(teacher.logp(range(ROWS)[rows]), weight)
    return lambda slots: slots_gradient((PARAMS, TINY), slots, ids, scored, objective, shards)


def descend(divergence, slots, steps=150, lr=0.03):
    """[(KL, slots) at each step] of Adam."""
    path, state = [], adamw_init({"slots": slots})
    for step in range(steps):
        loss, gradient = divergence(slots)
        path.append((loss, slots.copy()))
        adamw_step({"slots": slots}, {"slots": gradient}, state, lr * (1 - step / steps))
    return path


def plane(divergence, a, b, c, size=41):
    """KL on the plane through a, b and c (1, C): coordinates of b and c, the grid, the values."""
    right = (b - a) / np.linalg.norm(b - a)
    up = c - a - ((c - a) * right).sum() * right
    up /= np.linalg.norm(up)
    flat = lambda s: np.array([((s - a) * right).sum(), ((s - a) * up).sum()])
    marks = np.stack([flat(a), flat(b), flat(c)])
    low, high = marks.min(0) - 0.6, marks.max(0) + 0.6
    xs, ys = np.linspace(low[0], high[0], size), np.linspace(low[1], high[1], size)
    values = [[divergence(a + x * right + y * up)[0] for x in xs] for y in ys]
    return flat, xs, ys, np.array(values)


def main():
    with Shards(1) as shards:
        draw(case(shards), PARAMS["wte"]["weight"])


def draw(divergence, wte):
    hard = np.array([divergence(wte[[token]])[0] for token in range(TINY.vocab_size)])
    order = np.argsort(hard)
    path = descend(divergence, wte[order[:1]].copy())
    best, second, found = wte[order[:1]], wte[order[1:2]], path[-1][1]

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), gridspec_kw={"width_ratios": [1.25, 1]})
    flat, xs, ys, values = plane(divergence, best, second, found)
    image = left.contourf(xs, ys, values, 16, cmap="Greys", alpha=0.8)
    left.plot(*np.array([flat(s) for _, s in path]).T, color=BLUE, lw=1.2)
    for s, name, colour in ((best, "best token", ORANGE), (second, "second best", ORANGE), (found, "slot found", BLUE)):
        left.plot(*flat(s), "o", ms=6, color=colour)
        left.annotate(name, flat(s), (0, 7), textcoords="offset points", ha="center", bbox={"fc": "w", "ec": "none", "alpha": 0.75, "pad": 1})
    left.set(title="KL on the plane through three vectors", xticks=[], yticks=[])
    figure.colorbar(image, ax=left, label="KL, nats a token", shrink=0.9)
    right.bar(np.arange(len(hard)), hard[order], color=ORANGE, label="each token of the vocabulary")
    right.axhline(path[-1][0], color=BLUE, label="the slot found by descent")
    right.axhline(divergence(wte[[0]] * 0 + wte.mean(0))[0], color=GREY, ls=":", label="the mean of all embeddings")
    right.set(xlabel="token, best first", ylabel="KL, nats a token", xticks=[], ylim=(0, 1.45 * hard.max()))
    right.legend(fontsize=8, loc="upper left")
    save(figure, __file__)


if __name__ == "__main__":
    main()
