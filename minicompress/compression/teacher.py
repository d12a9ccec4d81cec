"""What the teacher, having read the context, expects at each scored place. Computed once and kept."""

import numpy as np

from minicompress.arrays import array_module, few_rows
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
            found = []
            for start in range(part.start, part.stop, rows):
                chosen = queries[start : min(start + rows, part.stop)]
                hidden, _ = predictors(*model, prefix, *pad(chosen), keep="nothing")
                found += split(hidden, [len(q.targets) for q in chosen])
            return found

        self.states = [state for found in shards.map(states, len(queries)) for state in found]  # for each query (n, C)
        sizes, self.kept = list(map(len, self.states)), None
        if sum(sizes) * config.vocab_size * self.states[0].dtype.itemsize <= KEEP_BYTES:
            kept = shards.map(lambda part: split(self._logp(self.states[part]), sizes[part]), len(queries))
            self.kept = [logp for group in kept for logp in group]

    def _logp(self, states):
        """Log-probabilities (N, V) at some queries' states, one after the other."""
        xp, found = array_module(states[0]), []
        states = xp.concatenate(states)
        for start in range(0, len(states), CHUNK):
            logp = logits(self.params, states[start : start + CHUNK])
            for few in few_rows(logp):
                logp[few] = log_softmax(logp[few] / self.temperature)
            found.append(logp)
        return found[0] if len(found) == 1 else xp.concatenate(found)

    def logp(self, numbers):
        """Log-probabilities (N, V) at all scored places of these queries, one after the other."""
        if self.kept is None:
            return self._logp([self.states[i] for i in numbers])
        return array_module(self.kept[0]).concatenate([self.kept[i] for i in numbers])


def split(x, sizes):
    """x (N, ...) in parts of these sizes."""
    return array_module(x).split(x, np.cumsum(sizes)[:-1].tolist())
