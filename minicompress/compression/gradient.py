"""Compression per context: a few slots follow the gradient through the frozen model (Wingate et al. 2022)."""

import math

import numpy as np

from minicompress.arrays import like
from minicompress.compression.objectives import divergence, likelihood
from minicompress.compression.queries import pad
from minicompress.gpt2.prefix import EMBEDDINGS
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.adamw import adamw_step, clip_by_global_norm
from minicompress.training.schedules import warmup_cosine


def train_slots(model, slots, state, queries, teacher, steps, *, shards, loss="kl", temperature=1.0,
                lr=0.03, rows=32, seed=0, on_step=None, door=EMBEDDINGS, top_k=None):  # fmt: skip
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
            return divergence(loss, teacher.logp(numbers[part]), weight, temperature, top_k)  # noqa: B023

        mean, dslots = slots_gradient(model, slots, ids, scored, objective, shards, door)
        norm = clip_by_global_norm(dslots, math.inf)  # nothing is clipped, and what is not finite is refused
        adamw_step({"slots": slots}, {"slots": dslots}, state, warmup_cosine(step, steps, lr, final=0.05))
        if on_step:
            on_step(step + 1, mean, norm)
