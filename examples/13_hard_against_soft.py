"""Hard prompts, soft prompts, and both: what each costs, what a person can read, what outlives a new release of the model.

    python examples/13_hard_against_soft.py     (ten minutes on two cores; keeps each result as it comes)

The next release is the embedded model trained on for 300 steps. It is as good as the last one, and
shares its vocabulary; whatever was made for the last one's weights is put before it unchanged.
"""

from functools import partial

import numpy as np

from miniature import accuracy, documents, groups, once, queries, tune
from minicompress.commands import open_model
from minicompress.gpt2.prefix import read_slots, read_tokens
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.initialise import initialise, recycling_map
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.language_model import language_model_step
from minicompress.training.schedules import warmup_cosine
from minicompress.training.shards import Shards
from minicompress.trees import tree_map

DOOR, SLOTS, SEEDS, LEARNT = DOORS["embeddings"], 8, (0, 1, 2), 0.05


def next_release(model, shards, steps=300, lr=1e-3, tokens=2048):
    """The model after some more training on notes and tasks that it has not seen."""
    params, state = tree_map(lambda w: np.array(w), model.pair[0]), None
    state = adamw_init(params)
    for step in range(steps):
        rng = np.random.default_rng((11, step))
        drawn, stream = [], documents(rng, model.tokenizer, None, ("notes", "tasks")[step % 2], 4)
        while sum(len(ids) for ids, _ in drawn) < tokens:
            drawn.append(next(stream))
        longest = max(len(ids) for ids, _ in drawn)
        ids, weights = np.zeros((len(drawn), longest), int), np.zeros((len(drawn), longest - 1), np.float32)
        for row, (said, weight) in enumerate(drawn):
            ids[row, : len(said)], weights[row, : len(said) - 1] = said, weight[1:]
        _, grads = language_model_step(params, model.pair[1], ids, weights, shards)
        clip_by_global_norm(grads, 1.0)
        adamw_step(params, grads, state, warmup_cosine(step, steps, lr, 30), betas=(0.9, 0.99))
    return model._replace(pair=(params, model.pair[1]))


def demonstrations(pairs, each):
    """The first `each` questions of every label with their answers, as text."""
    shown = [pair for place in range(each) for pair in pairs[place :: len(pairs) // 4]]
    return "Sort the words into groups.\n" + "".join(f"{text} {answer}\n" for text, answer in shown)


def first_learnt(losses):
    """The first step from which ten losses in a row have a mean below LEARNT; None where there is none."""
    means = np.convolve(losses, np.ones(10) / 10, "valid")
    return int(np.argmax(means < LEARNT)) if (means < LEARNT).any() else None


def soft(model, shards, rows, start, seed):
    """-> trained slots, and after how many steps they were learnt."""
    losses = []
    slots = tune(
        model, DOOR, start, rows, shards, steps=200, seed=seed, on_step=lambda step, loss, norm: losses.append(loss)
    )
    return slots, first_learnt(losses)


def run(old, new, shards, seed):
    """Accuracy of every kind of prompt with the old model and with the new one."""
    task, encode = groups(seed), lambda text: old.tokenizer.encode(text).ids
    train, test = (queries(old.tokenizer, pairs) for pairs in task)
    both = lambda prefix: [accuracy(m, prefix(m), test) for m in (old, new)]
    found = {}
    for each in (1, 2, 3):
        ids = encode(demonstrations(task.train, each))
        found[f"{each} shown"] = {"tokens": len(ids), "accuracy": both(lambda m, ids=ids: read_tokens(*m.pair, ids))}
    begin = initialise(old.pair, old.tokenizer, "uniform", SLOTS, "embeddings", np.random.default_rng(seed))
    slots, steps = soft(old, shards, train, begin, seed)
    found["soft"] = {"tokens": SLOTS, "accuracy": both(lambda m: read_slots(*m.pair, slots)[0]), "steps": steps}
    carried = slots @ recycling_map(old.wte, new.wte)
    found["recycled"] = {"tokens": SLOTS, "accuracy": [None, accuracy(new, read_slots(*new.pair, carried)[0], test)]}
    for name, start in (("tuned on", slots), ("tuned anew", begin)):
        again, steps = soft(new, shards, train, start, seed)
        found[name] = {
            "tokens": SLOTS,
            "accuracy": [None, accuracy(new, read_slots(*new.pair, again)[0], test)],
            "steps": steps,
        }
    cosine = (slots / np.linalg.norm(slots, axis=1, keepdims=True)) @ (
        old.wte / np.linalg.norm(old.wte, axis=1, keepdims=True)
    ).T
    words = cosine.argmax(1)
    found["read as words"] = {"tokens": SLOTS, "accuracy": both(lambda m: read_tokens(*m.pair, words)),
                              "text": old.tokenizer.decode(words.tolist()), "cosine": float(cosine.max(1).mean())}  # fmt: skip
    front = old.wte[encode(demonstrations(task.train, 1))]
    mixed = np.concatenate([front, begin])  # the demonstrations' own embeddings are trained along: a soft text
    hybrid, steps = soft(old, shards, train, mixed, seed)
    found["soft from 1 shown"] = {
        "tokens": len(mixed),
        "accuracy": both(lambda m: read_slots(*m.pair, hybrid)[0]),
        "steps": steps,
    }
    return found


def main():
    old = open_model()
    with Shards() as shards:
        new = next_release(old, shards)
        results = once(13, {f"seed {seed}": partial(run, old, new, shards, seed) for seed in SEEDS})
    for name in results["seed 0"]:
        rows = [results[f"seed {seed}"][name] for seed in SEEDS]
        cells = [[r["accuracy"][i] for r in rows if r["accuracy"][i] is not None] for i in (0, 1)]
        told = [f"{np.mean(cell):4.0%}" if cell else "   –" for cell in cells]
        print(
            f"{name:18} {rows[0]['tokens']:4} tokens  this release {told[0]}  the next {told[1]}",
            [r.get("steps") for r in rows],
        )


if __name__ == "__main__":
    main()
