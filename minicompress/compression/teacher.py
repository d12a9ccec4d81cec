"""What the teacher, having read the context, expects at each scored place. Computed once and kept."""

import numpy as np

from minicompress.arrays import array_module
from minicompress.compression.queries import pad
from minicompress.gpt2 import logits
from minicompress.gpt2.head import CHUNK
from minicompress.gpt2.prefix import predictors
from minicompress.layers.losses import log_softmax

KEEP_BYTES = 512 * 2**20  # log-probabilities are kept up to this size; beyond it, states, and the head is run again


class Teacher:
    """`Teacher(model, prefix, queries, shards)`; then `logp(numbers)` for the queries of one batch."""

    def __init__(self, model, prefix, queries, shards, rows=16, temperature=1.0):
        self.params, config = model
        self.temperature = temperature

        def states(part):
            chosen = queries[part]
            hidden, _ = predictors(*model, prefix, *pad(chosen), keep="nothing")
            xp = array_module(hidden)
            return xp.split(hidden, np.cumsum([len(q.ids) - q.start for q in chosen])[:-1].tolist())

        order = [slice(i, i + rows) for i in range(0, len(queries), rows)]
        groups = shards.map(lambda part: [state for s in order[part] for state in states(s)], len(order))
        self.states = [state for group in groups for state in group]  # for each query (n, C)
        width = config.vocab_size * self.states[0].dtype.itemsize
        if sum(map(len, self.states)) * width <= KEEP_BYTES:
            kept = shards.map(lambda part: [self._logp(state) for state in self.states[part]], len(queries))
            self.kept = [logp for group in kept for logp in group]
        else:
            self.kept = None

    def _logp(self, states):
        xp = array_module(states)
        chunks = [states[i : i + CHUNK] for i in range(0, len(states), CHUNK)]
        return xp.concatenate([log_softmax(logits(self.params, c) / self.temperature) for c in chunks])

    def logp(self, numbers):
        """Log-probabilities (N, V) at all scored places of these queries, one after the other."""
        parts = [self.kept[i] if self.kept else self._logp(self.states[i]) for i in numbers]
        return array_module(parts[0]).concatenate(parts)
