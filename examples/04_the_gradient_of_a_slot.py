"""The gradient of a compression loss with respect to its slots, through the frozen model: a Taylor test."""

import numpy as np

from minicompress.commands import open_model
from minicompress.compression.objectives import likelihood
from minicompress.compression.queries import pad, question_query
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards
from minicompress.verification.oracles import taylor_rates, unit_direction

model = open_model(dtype="float64")
rng = np.random.default_rng(0)
slots = model.wte[rng.integers(0, len(model.wte), 4)].copy()
ids, scored = pad([question_query(model.tokenizer, "Where does Mara live?", "Oslo")])


def objective(rows, weight):
    return likelihood(ids[rows][scored[rows]], weight)


def loss(slots):
    with Shards(1) as shards:
        return slots_gradient(model.pair, slots, ids, scored, objective, shards)


value, gradient = loss(slots)
u = unit_direction(rng, slots.shape)
rates = taylor_rates(lambda s: loss(s)[0], slots, u, gradient, h=1e-3)
print(f"loss {value:.4f}; halving the step, the remainder falls at rates", *(f"{r:.3f}" for r in rates))
