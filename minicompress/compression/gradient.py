"""Compression per context: a few slots follow the gradient through the frozen model (Wingate et al. 2022).

The slots stand first and are the same for all rows. So they are read once a batch; each shard of
rows reads their keys and values, and asks something of them on the way back; the sum of what was
asked goes through the slots' own reading once. Where rows have slots of their own, each shard reads
those of its rows. No gradient of any weight is ever formed.
"""

import math
from operator import add

import numpy as np

from minicompress.arrays import array_module, like, to_host
from minicompress.compression.objectives import kl, likelihood
from minicompress.compression.queries import pad
from minicompress.gpt2 import head_loss
from minicompress.gpt2.prefix import EMBEDDINGS, check_first, predictors, predictors_backward
from minicompress.prompts.tenants import predicts_first, read_many_backward, read_numbered
from minicompress.training.adamw import adamw_step, clip_by_global_norm
from minicompress.training.schedules import warmup_cosine
from minicompress.trees import tree_map


def slots_gradient(model, slots, ids, scored, make_objective, shards, door=EMBEDDINGS):
    """slots (P, C), ids and scored (B, T) -> mean loss over the scored places, dslots (P, C).

    make_objective(rows, weight) gives the objective for the scored places of the batch's rows.
    Behind another `door` the slots are whatever it reads, an array or a tree, and dslots the same.
    """
    prefix, cache = door.read(*model, slots, keep="dx")

    def shard(rows, objective):
        return asked_by_rows(model, prefix, ids[rows], scored[rows], objective)

    losses, asked = zip(*over_shards(shard, scored, make_objective, shards), strict=True)
    return float(to_host(sum(losses))), door.read_backward(total(asked), cache)


def tenants_gradient(model, prompts, numbers, ids, scored, make_objective, shards):
    """As `slots_gradient`, but row b stands behind prompts[numbers[b]], a SoftPrompt or None -> loss, [dslots of each].

    The mean is over the scored places of all rows. dslots are as each prompt's `tree`, None of a None.
    Raises ValueError for a row whose first token is scored though its prompt predicts none.
    """
    numbers = np.asarray(numbers)
    check_first(scored, np.array([predicts_first(prompts[n]) for n in numbers]))

    def shard(rows, objective):
        mine, places = np.unique(numbers[rows], return_inverse=True)
        prefix, cache = read_numbered(*model, [prompts[n] for n in mine], places, keep="dx")
        loss, asked = asked_by_rows(model, prefix, ids[rows], scored[rows], objective)
        return loss, mine, read_many_backward(asked, cache)

    zeros = lambda x: array_module(x).zeros_like(x)
    losses, parts = 0, [None if prompt is None else tree_map(zeros, prompt.tree) for prompt in prompts]
    for loss, mine, found in over_shards(shard, scored, make_objective, shards):
        losses = losses + loss
        for n, d in zip(mine, found, strict=True):
            parts[n] = None if d is None else tree_map(add, parts[n], d)
    return float(to_host(losses)), parts


def over_shards(shard, scored, make_objective, shards):
    """[shard(rows, objective) for each part of the batch], in the parts' order, but those where nothing is scored."""
    if not scored.any():
        raise ValueError("no target is scored, so there is no loss")
    weight = 1 / int(scored.sum())

    def part(rows):
        return shard(rows, make_objective(rows, weight)) if scored[rows].any() else None

    return [result for result in shards.map(part, len(scored)) if result]


def asked_by_rows(model, prefix, ids, scored, objective):
    """The loss of some rows, and what they ask of the prefix before them."""
    hidden, back = predictors(*model, prefix, ids, scored, keep="dx")
    losses, dhidden = head_loss(model[0], hidden, objective)
    return losses.sum(), predictors_backward(dhidden, back)


def total(parts):
    """The sum of equally nested tuples, lists and arrays, always in the order of the parts; None of Nones."""
    if isinstance(parts[0], tuple | list):
        return [total(some) for some in zip(*parts, strict=True)]
    return None if parts[0] is None else sum(parts[1:], parts[0])


def train_slots(model, slots, state, queries, teacher, steps, *, shards, loss="kl", temperature=1.0,
                lr=0.03, rows=32, seed=0, on_step=None, door=EMBEDDINGS):  # fmt: skip
    """Adam on the slots for `steps` steps, in place, from state["step"] on.

    Each step takes `rows` queries, drawn from (seed, step) alone: a resumed run sees the same
    batches. on_step(step, loss, norm) may raise to stop; slots and state are then as after that step.
    """
    while state["step"] < steps:
        step = state["step"]
        rng = np.random.default_rng((seed, step))
        numbers = np.sort(rng.choice(len(queries), min(rows, len(queries)), replace=False))
        ids, scored = pad([queries[i] for i in numbers])

        def objective(part, weight):
            if loss == "likelihood":  # the rows' answers are the teacher's own
                return likelihood(like(ids[part][scored[part]], model[0]["wte"]["weight"]), weight)  # noqa: B023
            return kl(teacher.logp(numbers[part]), weight, temperature)  # noqa: B023

        mean, dslots = slots_gradient(model, slots, ids, scored, objective, shards, door)
        norm = clip_by_global_norm(dslots, math.inf)  # nothing is clipped, and what is not finite is refused
        adamw_step({"slots": slots}, {"slots": dslots}, state, warmup_cosine(step, steps, lr, final=0.05))
        if on_step:
            on_step(step + 1, mean, norm)
