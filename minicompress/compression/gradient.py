"""Compression per context: a few slots follow the gradient through the frozen model (Wingate et al. 2022)."""

import math

import numpy as np

from minicompress.arrays import like
from minicompress.compression.inside import asked_inside, objective_inside
from minicompress.compression.objectives import INSIDE, objective_of, read_loss
from minicompress.compression.queries import pad
from minicompress.gpt2.prefix import EMBEDDINGS
from minicompress.prompts.gradient import slots_gradient, weights_gradient
from minicompress.training.adamw import adamw_step, clip_by_global_norm
from minicompress.training.schedules import warmup_cosine


def train_slots(model, slots, state, queries, teacher, steps, *, shards, loss="kl", temperature=1.0, lr=0.03, rows=32,
                seed=0, on_step=None, door=EMBEDDINGS, top_k=None, until=None, inside=None, fewer=None):  # fmt: skip
    """Adam on the slots for `steps` steps, in place, from state["step"] on, or only until step `until` of them.

    Each step takes `rows` queries, drawn from (seed, step) alone: a resumed run sees the same batches. A door of None:
    the slots are low-rank weights. `inside`: a TeacherInside, where the loss looks there. fewer(rng) gives a step's
    door, where not every step trains all slots. on_step(step, loss, norm) may raise to stop; all is then as after that
    step.
    """
    terms = read_loss(loss, top_k)
    ask = asked_inside if any(term.name in INSIDE for term in terms) else None
    while state["step"] < min(steps, until or steps):
        step = state["step"]
        rng = np.random.default_rng((seed, step))
        numbers = np.sort(rng.choice(len(queries), min(rows, len(queries)), replace=False))
        ids, scored = pad([queries[i] for i in numbers])
        make = batch_objective(terms, numbers, ids, scored, model, teacher, temperature, inside)
        if door is None:
            mean, dslots = weights_gradient(model, slots, ids, scored, make, shards, ask)
        else:
            through = fewer(rng) if fewer else door
            mean, dslots = slots_gradient(model, slots, ids, scored, make, shards, through, ask)
        norm = clip_by_global_norm(dslots, math.inf)  # nothing is clipped, and what is not finite is refused
        adamw_step({"slots": slots}, {"slots": dslots}, state, warmup_cosine(step, steps, lr, final=0.05))
        if on_step:
            on_step(step + 1, mean, norm)


def batch_objective(terms, numbers, ids, scored, model, teacher, temperature=1.0, inside=None):
    """make_objective of a batch: for the head; or for the head, or None, and for what is seen inside."""
    within, outside = ([term for term in terms if (term.name in INSIDE) == inner] for inner in (True, False))

    def make(part, weight):
        logp = lambda: teacher.logp(numbers[part])
        targets = lambda: like(ids[part][scored[part]], model[0]["wte"]["weight"])
        head = objective_of(outside, weight, logp, targets, temperature) if outside else None
        if not within:
            return head
        return head, objective_inside(within, weight, lambda kind: inside.at(kind, numbers[part]))

    return make
