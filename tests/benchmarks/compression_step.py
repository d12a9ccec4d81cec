"""One step of compressing a context into slots: KL to a teacher that has read it, gradient, Adam.

GPT-2 124M, a context of 512 tokens, 16 slots, 16 queries of 32 tokens, all 32 scored. Ours is
`slots_gradient` with the KL objective and `adamw_step`; the teacher's log-probabilities were
computed once, before (what that costs: `teacher_reading.py`).

- `usual` is the distillation loop one finds: in every step the teacher reads context and query
  under `no_grad`, then the student reads [slots, query]; both hold all logits.
- `careful` is the best we could write in PyTorch with Transformers: the teacher's log-probabilities
  are kept as ours are; the slots are read once and their keys and values, with their gradient,
  expanded to all rows; the head is applied only at scored places; GELU is one fused kernel.

Fair, because all three start from the same slots, freeze all weights, and compute the same loss
and the same gradient; `careful` has every saving that ours has.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.compression.objectives import kl
from minicompress.compression.queries import Query, pad
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import read_tokens
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards


class Size(NamedTuple):
    config: Any
    context: int
    rows: int
    tokens: int
    slots: int


FULL = Size(models.GPT2, context=512, rows=16, tokens=32, slots=16)
TINY = Size(models.TINY, context=20, rows=5, tokens=8, slots=3)


def data(size):
    """context (S,), queries (B, T) and first slots (P, C)."""
    rng = np.random.default_rng(0)
    context = rng.integers(size.config.vocab_size, size=size.context)
    queries = rng.integers(size.config.vocab_size, size=(size.rows, size.tokens))
    return context, queries, 0.1 * rng.standard_normal((size.slots, size.config.n_embd), np.float32)


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    context, queries, slots = data(size)
    queries = [Query(row.tolist(), 0) for row in queries]
    state, everyone = adamw_init({"slots": slots}), np.arange(size.rows)
    prefix = read_tokens(*model, context)
    with Shards() as shards:
        teacher = Teacher(model, prefix, queries, shards)

        def step():
            ids, scored = pad(queries)
            objective = lambda rows, weight: kl(teacher.logp(everyone[rows]), weight)
            loss, dslots = slots_gradient(model, slots, ids, scored, objective, shards)
            adamw_step({"slots": slots}, {"slots": dslots}, state, models.LR)
            return loss, dslots

        yield step


@contextmanager
def usual(size):
    import torch

    model = models.torch_model(size.config)
    context, queries, slots, optimiser = torch_data(size)
    P, T = size.slots, size.tokens

    def step():
        optimiser.zero_grad()
        with torch.no_grad():
            teacher = model(torch.cat([context.expand(len(queries), -1), queries], 1)).logits[:, -T - 1 : -1]
        embeddings = torch.cat([slots.expand(len(queries), -1, -1), model.transformer.wte(queries)], 1)
        student = model(inputs_embeds=embeddings).logits[:, P - 1 : -1]
        loss = divergence(student.flatten(0, 1), teacher.flatten(0, 1).log_softmax(-1))
        loss.backward()
        optimiser.step()
        return loss.item(), slots.grad.numpy()

    yield step


@contextmanager
def careful(size):
    import torch

    model = models.torch_model(size.config, **models.CAREFUL)
    context, queries, slots, optimiser = torch_data(size)
    with torch.no_grad():
        read = model.transformer(context, use_cache=True)
        teacher = model.lm_head(predicting_states(model, read, queries)).log_softmax(-1)

    def step():
        optimiser.zero_grad()
        read = model.transformer(inputs_embeds=slots[None], use_cache=True)
        student = model.lm_head(predicting_states(model, read, queries))
        loss = divergence(student, teacher)
        loss.backward()
        optimiser.step()
        return loss.item(), slots.grad.numpy()

    yield step


def torch_data(size):
    """As `data`, the context (1, S) and slots that learn, with their optimiser."""
    import torch

    context, queries, slots = map(torch.from_numpy, data(size))
    slots.requires_grad_()
    return context[None], queries, slots, torch.optim.AdamW([slots], models.LR, weight_decay=0.0)


def divergence(student, teacher_logp):
    """KL(teacher ‖ student), the mean over places; student logits and teacher_logp (N, V)."""
    from torch.nn.functional import kl_div

    return kl_div(student.log_softmax(-1), teacher_logp, log_target=True, reduction="batchmean")


def predicting_states(model, read, queries):
    """The states (B T, C) that predict the queries' tokens, after what `read` (one row) stands in front of all."""
    import torch
    from transformers import DynamicCache

    B = len(queries)
    pairs = [(layer.keys, layer.values) for layer in read.past_key_values.layers]  # each (1, H, P, D)
    past = DynamicCache([tuple(x.expand(B, -1, -1, -1) for x in pair) for pair in pairs])
    hidden = model.transformer(queries[:, :-1], past_key_values=past, use_cache=True).last_hidden_state
    return torch.cat([read.last_hidden_state[:, -1:].expand(B, -1, -1), hidden], 1).flatten(0, 1)


def facts(result):
    return [result[0], float(np.linalg.norm(result[1]))]


BENCHMARK = Benchmark(
    "compression-step", "compression, one step: 512 tokens of context, 16 slots, 16 queries of 32 tokens", FULL, TINY,
    {"ours": ours, "usual": usual, "careful": careful},
    [*time_and_memory("usual", 0.5), *time_and_memory("careful", 0.8)],
    facts, {"usual": 1},
)  # fmt: skip
