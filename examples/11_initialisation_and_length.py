"""Prompt tuning by beginning, learning rate and length: which of the three decides, on two small tasks.

    python examples/11_initialisation_and_length.py     (ten minutes on two cores; keeps each result as it comes)

Lester et al. 2021, figure 3, in miniature: their prompts of T5 begin at random, at words, or at class
labels, and are 1 to 150 slots long.
"""

from functools import partial

import numpy as np

from miniature import accuracy, facts, groups, once, queries, tune
from minicompress.commands import open_model
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.initialise import initialise
from minicompress.training.shards import Shards

TASKS, DOOR = {"groups": groups, "facts": facts}, DOORS["embeddings"]
BEGINNINGS, RATES = ("normal", "uniform", "noise", "vocab", "text"), (0.003, 0.01, 0.03, 0.1, 0.3)
LENGTHS, SEEDS = (1, 2, 4, 8, 16, 32), (0, 1)
WORDS = "Q: Which group has the word?\nA: The answer is"  # what `text` begins from


def run(model, shards, task, how, slots, lr, seed):
    """One prompt -> the mean loss of its last twenty steps, and its accuracy on questions never trained on."""
    train, test = (queries(model.tokenizer, pairs) for pairs in TASKS[task](seed))
    words = WORDS if how == "text" else how
    raw = initialise(model.pair, model.tokenizer, words, slots, "embeddings", np.random.default_rng(seed))
    losses = []
    raw = tune(model, DOOR, raw, train, shards, lr=lr, seed=seed, on_step=lambda step, loss, norm: losses.append(loss))
    return {"loss": float(np.mean(losses[-20:])), "accuracy": accuracy(model, DOOR.read(*model.pair, raw)[0], test)}


def main():
    model, jobs = open_model(), {}
    with Shards() as shards:
        for seed in SEEDS:
            for task in TASKS:
                for lr in RATES:
                    for how in BEGINNINGS:
                        jobs[f"{task}, {how}, 8 slots, lr {lr}, seed {seed}"] = (task, how, 8, lr, seed)
                for slots in LENGTHS:
                    jobs[f"{task}, uniform, {slots} slots, lr 0.03, seed {seed}"] = (task, "uniform", slots, 0.03, seed)
        results = once(11, {name: partial(run, model, shards, *job) for name, job in jobs.items()})
    for task in TASKS:
        for how in BEGINNINGS:
            cells = [
                np.mean([results[f"{task}, {how}, 8 slots, lr {lr}, seed {s}"]["accuracy"] for s in SEEDS])
                for lr in RATES
            ]
            print(
                f"{task:7} {how:8}", *(f"lr {lr}: {cell:4.0%}" for lr, cell in zip(RATES, cells, strict=True)), sep="  "
            )
        curve = [
            np.mean([results[f"{task}, uniform, {n} slots, lr 0.03, seed {s}"]["accuracy"] for s in SEEDS])
            for n in LENGTHS
        ]
        print(f"{task:7} slots   ", *(f"{n}: {x:4.0%}" for n, x in zip(LENGTHS, curve, strict=True)), sep="  ")


if __name__ == "__main__":
    main()
