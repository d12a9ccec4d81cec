"""What a compression pays once, before its first step: the teacher reads the context and is asked.

GPT-2 124M, a context of 512 tokens, 16 queries of 32 tokens: the teacher's log-probabilities at all
512 places. Ours is `read_tokens` and `Teacher`.

- `usual` repeats the context in front of each of the 16 queries, in one batch, holds all logits, and
  takes log_softmax where the queries stand.
- `careful` reads the context once, expands its cache to the 16 rows, and applies the head only at
  the scored places; GELU is one fused kernel.

Fair, because all three give the same 512 x 50,257 log-probabilities; none forms a gradient.
"""

from contextlib import contextmanager

import models
import numpy as np
from compression_step import FULL, TINY, data, predicting_states, torch_data
from sides import Benchmark, time_and_memory

from minicompress.compression.queries import Query
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import read_tokens
from minicompress.training.shards import Shards


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    context, rows, _ = data(size)
    queries = [Query(row.tolist(), 0) for row in rows]

    def step():
        prefix = read_tokens(*model, context)  # one row: BLAS is on all cores
        with Shards() as shards:  # many rows: each core takes its own
            teacher = Teacher(model, prefix, queries, shards)
        return rows, teacher.logp

    yield step


@contextmanager
def usual(size):
    import torch

    model = models.torch_model(size.config)
    context, queries, *_ = torch_data(size)

    @torch.inference_mode()
    def step():
        logits = model(torch.cat([context.expand(len(queries), -1), queries], 1)).logits
        logp = logits[:, -size.tokens - 1 : -1].log_softmax(-1).flatten(0, 1)
        return queries, logp

    yield step


@contextmanager
def careful(size):
    import torch

    model = models.torch_model(size.config, **models.CAREFUL)
    context, queries, *_ = torch_data(size)

    @torch.inference_mode()
    def step():
        read = model.transformer(context, use_cache=True)
        return queries, model.lm_head(predicting_states(model, read, queries)).log_softmax(-1)

    yield step


def facts(result):
    """The log-probabilities of the queries' own tokens; no copy of the large array is made."""
    rows, logp = result
    logp = [logp([i]) for i in range(len(rows))] if callable(logp) else logp.numpy().reshape(*rows.shape, -1)
    return [float(logp[b][t, token]) for b, row in enumerate(rows) for t, token in enumerate(np.asarray(row))]


BENCHMARK = Benchmark(
    "teacher-reading", "the teacher's one reading: 512 tokens of context, 16 queries of 32 tokens", FULL, TINY,
    {"ours": ours, "usual": usual, "careful": careful},
    [*time_and_memory("usual", 0.12), *time_and_memory("careful", 1.0)],
    facts, {"usual": 1},
)  # fmt: skip
