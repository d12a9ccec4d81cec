"""Where slots stand and what they are: in front, behind the text, both, or in every layer; at equal slots, equal numbers.

    python examples/12_embeddings_infix_prefix.py       (half an hour on two cores; keeps each result as it comes)

Li & Liang 2021, section 7, in miniature: there embeddings in front are worse than slots in every layer,
and slots behind the text worse than before it. Each way takes the learning rate whose training
loss is lowest. The sentences of Subj need the data folder; without it they are left out.
"""

from functools import partial

import numpy as np

from miniature import DATA, accuracy, facts, groups, once, queries, sentences, tune
from minicompress.commands import open_model
from minicompress.prompts.carriers import DOORS, IN_ROWS
from minicompress.prompts.initialise import initialise
from minicompress.training.shards import Shards

TASKS = {"groups": groups, "facts": facts} | ({"sentences": sentences} if DATA.is_dir() else {})
RATES = {"groups": (0.01, 0.03, 0.1), "facts": (0.01, 0.03, 0.1), "sentences": (0.03,)}
SEEDS = {"groups": (0, 1), "facts": (0, 1), "sentences": (0,)}
WAYS = {  # carrier, slots, how many of them stand before the text where the rows place them
    "in front": ("embeddings", 8, None), "behind": ("embeddings", 8, 0), "both sides": ("embeddings", 8, 4),
    "hidden": ("hidden", 8, None), "kv": ("kv", 8, None), "in front, 16 slots": ("embeddings", 16, None),
    "behind, 16 slots": ("embeddings", 16, 0), "hidden, 4 slots": ("hidden", 4, None), "kv, 2 slots": ("kv", 2, None),
}  # fmt: skip


def run(model, shards, task, way, lr, seed):
    """One prompt -> training loss, accuracy, and how many numbers were trained."""
    carrier, slots, before = WAYS[way]
    soft = [-1 - slot for slot in range(slots)]
    place = (lambda ids: ids) if before is None else (lambda ids: soft[:before] + ids + soft[before:])
    train, test = (queries(model.tokenizer, pairs, place) for pairs in TASKS[task](seed))
    door = DOORS[carrier] if before is None else IN_ROWS
    raw = initialise(model.pair, model.tokenizer, "uniform", slots, carrier, np.random.default_rng(seed))
    losses, steps = [], 300 if task == "sentences" else 200
    raw = tune(
        model, door, raw, train, shards, steps, lr, seed=seed, on_step=lambda step, loss, norm: losses.append(loss)
    )
    given = accuracy(model, door.read(*model.pair, raw)[0], test)
    return {"loss": float(np.mean(losses[-20:])), "accuracy": given, "numbers": raw.size}


def best(results, task, way, seed):
    """The result of the learning rate whose training loss is lowest."""
    return min((results[f"{task}, {way}, lr {lr}, seed {seed}"] for lr in RATES[task]), key=lambda r: r["loss"])


def main():
    model = open_model()
    names = [(task, way, lr, seed) for seed in (0, 1) for task in TASKS if seed in SEEDS[task] for way in WAYS for lr in RATES[task]]
    with Shards() as shards:
        jobs = {"{}, {}, lr {}, seed {}".format(*name): partial(run, model, shards, *name) for name in names}
        results = once(12, jobs)
    for task in TASKS:
        for way in WAYS:
            found = [best(results, task, way, seed) for seed in SEEDS[task]]
            told = np.mean([[r["accuracy"], r["loss"]] for r in found], axis=0)
            print(
                f"{task:10} {way:20} {found[0]['numbers']:6,} numbers  accuracy {told[0]:4.0%}  training loss {told[1]:.3f}"
            )


if __name__ == "__main__":
    main()
