"""What each carrier leaves free: how well trained slots fit, and in how many directions a prefix can move."""

import numpy as np
from common import BLUE, GREEN, GREY, ORANGE, plt, random_params, save

from minicompress.compression.gradient import train_slots
from minicompress.compression.queries import Query
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2 import Config
from minicompress.gpt2.prefix import Prefix, read_tokens
from minicompress.prompts.carriers import DOORS, lift
from minicompress.prompts.initialise import from_tokens
from minicompress.training.adamw import adamw_init
from minicompress.training.shards import Shards

CONFIG = Config(vocab_size=17, n_positions=64, n_embd=12, n_layer=3, n_head=3)
SLOTS, SEEDS, STEPS = (1, 2, 4, 8), (2, 3), 60
COLOURS = {"embeddings": ORANGE, "hidden": GREEN, "kv": BLUE}
ASIDE = {"embeddings": (-7, -9), "hidden": (6, 4), "kv": (-2, -12)}


def fits(seed, shards):
    """KL of no context, and {(carrier, P): (numbers trained, KL)}, bits a token, on the queries trained on."""
    rng, model = np.random.default_rng(seed), (random_params(CONFIG, seed), CONFIG)
    context = rng.integers(CONFIG.vocab_size, size=16)
    queries = [Query(list(row), 1) for row in rng.integers(CONFIG.vocab_size, size=(16, 6))]
    teacher = Teacher(model, read_tokens(*model, context), queries, shards)
    kl = lambda prefix: score(model, None, prefix, queries, teacher, shards).mean_kl
    found = {}
    for carrier, door in DOORS.items():
        for P in SLOTS:
            slots = lift(*model, from_tokens(model[0]["wte"]["weight"], context, P), carrier)
            train_slots(model, slots, adamw_init({"slots": slots}), queries, teacher, STEPS, shards=shards, lr=0.1, door=door)
            found[carrier, P] = slots.size, kl(door.read(*model, slots)[0])
    return kl(Prefix()), found


def mean_fits():
    """The same, mean over some models and contexts."""
    with Shards(1) as shards:
        nones, runs = zip(*[fits(seed, shards) for seed in SEEDS], strict=True)
    return np.mean(nones), {key: (size, np.mean([run[key][1] for run in runs])) for key, (size, _) in runs[0].items()}


def jacobian(carrier, P=2, seed=0):
    """d(keys and values) / d(slots), (2 L P C, numbers of the slots), column by column with the complex step."""
    params, rng = random_params(CONFIG, seed), np.random.default_rng(seed)
    slots = lift(params, CONFIG, rng.standard_normal((P, CONFIG.n_embd)), carrier)

    def column(i):
        moved = slots.astype(complex)
        moved.flat[i] += 1e-30j
        past = DOORS[carrier].read(params, CONFIG, moved)[0].past
        return np.concatenate([x.imag.ravel() / 1e-30 for layer in past for x in layer])

    return np.stack([column(i) for i in range(slots.size)], axis=1)


def main():
    none, found = mean_fits()
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.3), gridspec_kw={"wspace": 0.04})
    left.set_title("trained slots; grey joins the same P")
    left.axhline(none, color=GREY, ls="--", lw=1)
    left.text(12, none - 0.02, "no context", color=GREY, va="top")
    for P in SLOTS:
        left.plot(*zip(*[found[carrier, P] for carrier in DOORS], strict=True), color="#cccccc", lw=1, zorder=0)
    for carrier, colour in COLOURS.items():
        points = [found[carrier, P] for P in SLOTS]
        left.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=carrier)
        for P, point in zip(SLOTS, points, strict=True):
            left.annotate(P, point, ASIDE[carrier], textcoords="offset points", ha="center", fontsize=8, color=colour)
    sizes = [12, 24, 48, 96, 192, 384]
    left.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="numbers trained", ylabel="KL, bits a token", ylim=(0, None))
    left.minorticks_off()
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))
    for carrier, colour in COLOURS.items():
        values = np.linalg.svd(jacobian(carrier), compute_uv=False)
        right.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-17), ".", ms=4, color=colour, label=carrier)
    right.set(xlabel="direction of the slots, largest effect first", ylabel="movement of the prefix", ylim=(3e-18, 1e3), xlim=(0, None))
    right.set_title("singular values of slots to prefix, 2 slots")
    right.legend(fontsize=8, loc="lower right")
    save(figure, __file__)


if __name__ == "__main__":
    main()
