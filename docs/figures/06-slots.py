"""A compression read as a curve: divergence on held-out queries over the number of slots, beside the cheap rows."""

import numpy as np
from common import BLUE, GREEN, GREY, ORANGE, RED, TINY, plt, random_params, save

from minicompress.compression.gradient import train_slots
from minicompress.compression.queries import Query
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import gap_closed, score
from minicompress.gpt2.prefix import Prefix, read_slots, read_tokens
from minicompress.prompts.initialise import from_tokens
from minicompress.training.adamw import adamw_init
from minicompress.training.shards import Shards

MODEL = PARAMS, CONFIG = random_params(seed=2), TINY
SLOTS, N_CONTEXT, STEPS = (1, 2, 4, 8, 16), 24, 150


def main():
    rng = np.random.default_rng(3)
    context = rng.integers(CONFIG.vocab_size, size=N_CONTEXT)
    queries = [Query(list(rng.integers(CONFIG.vocab_size, size=8)), 1) for _ in range(60)]
    train, held = queries[:40], queries[40:]
    with Shards(1) as shards:
        read = read_tokens(*MODEL, context)
        expects, held_expects = Teacher(MODEL, read, train, shards), Teacher(MODEL, read, held, shards)
        of = lambda prefix: score(MODEL, None, prefix, held, held_expects, shards)
        none = of(Prefix())
        rows = {"first": [], "last": [], "init": [], "sigma": []}
        for k in SLOTS:
            slots = from_tokens(PARAMS["wte"]["weight"], context, k)
            rows["init"].append(of(read_slots(*MODEL, slots)[0]))
            train_slots(MODEL, slots, adamw_init({"slots": slots}), train, expects, STEPS, shards=shards)
            rows["sigma"].append(of(read_slots(*MODEL, slots)[0]))
            rows["first"].append(of(read_tokens(*MODEL, context[:k])))
            rows["last"].append(of(read_tokens(*MODEL, context[-k:])))

    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    left.axhline(none.mean_kl, color=GREY, ls="--", label="no context")
    styles = {"first": (ORANGE, "first k tokens"), "last": (RED, "last k tokens"),
              "init": (GREEN, "slots, untrained"), "sigma": (BLUE, "slots, trained")}  # fmt: skip
    for name, (colour, label) in styles.items():
        left.plot(SLOTS, [s.mean_kl for s in rows[name]], "o-", ms=4, color=colour, label=label)
    left.set(xscale="log", xticks=SLOTS, xticklabels=SLOTS, xlabel="slots or tokens k", ylabel="KL, bits a token")
    left.set_ylim(0, None)
    left.minorticks_off()
    left.legend(fontsize=8)
    gaps = [gap_closed(none, s, np.random.default_rng(0)) for s in rows["sigma"]]
    values = np.array([gap for gap, _ in gaps])
    spans = np.array([span for _, span in gaps]).T
    right.errorbar(SLOTS, values, yerr=np.abs(spans - values), fmt="o-", ms=4, capsize=3, color=BLUE)
    right.axhline(0, color=GREY, ls="--", lw=1)
    right.axhline(1, color=GREY, ls="--", lw=1)
    right.set(xscale="log", xticks=SLOTS, xticklabels=SLOTS, xlabel="slots k", ylabel="gap closed", ylim=(min(-0.1, spans.min() - 0.05), 1.08))
    right.minorticks_off()
    right.set_title("trained slots, 95% bootstrap interval")
    save(figure, __file__)


if __name__ == "__main__":
    main()
