"""Many tenants: 16 prompts of 20 slots, one row of 128 tokens behind each; loss, all gradients, Adam's update.

GPT-2 124M, cross-entropy on all 16 x 128 tokens. Ours is `tenants_gradient`, one batch whose rows have
prompts of their own, and `adamw_step` for each.

- `peft` is PEFT's only way: 16 adapters in one PeftModel, `set_adapter`, and a pass for each; of its
  `adapter_names` for mixed batches prompt methods take no notice.
- `careful` leaves PEFT: 16 prompts and 16 rows of embeddings are joined in one batch by hand, which is
  possible where all are embeddings of one length. It holds all logits, as Transformers does.

Fair, because all three start from the same prompts, freeze all weights, and compute the same mean
loss and the same 16 gradients; no side does an update that the others do not.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.compression.objectives import likelihood
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.tenants import tenants_gradient
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards


class Size(NamedTuple):
    config: Any
    rows: int
    tokens: int
    slots: int


FULL = Size(models.GPT2, rows=16, tokens=128, slots=20)
TINY = Size(models.TINY, rows=3, tokens=10, slots=3)


def data(size):
    """Rows (B, T), and a first prompt for each: (B, P, C)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(size.config.vocab_size, size=(size.rows, size.tokens))
    return ids, 0.1 * rng.standard_normal((size.rows, size.slots, size.config.n_embd), np.float32)


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    ids, start = data(size)
    prompts, scored = [SoftPrompt(slots) for slots in start], np.ones(ids.shape, bool)
    slots = {str(n): prompt.slots for n, prompt in enumerate(prompts)}
    state = adamw_init(slots)
    with Shards() as shards:

        def step():
            objective = lambda rows, weight: likelihood(ids[rows].reshape(-1), weight)
            loss, dslots = tenants_gradient(model, prompts, range(size.rows), ids, scored, objective, shards)
            adamw_step(slots, {str(n): d for n, d in enumerate(dslots)}, state, models.LR)
            return loss, dslots

        yield step


@contextmanager
def peft(size):
    import peft
    import torch

    names = [f"tenant{n}" for n in range(size.rows)]
    told = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=size.slots)
    tuned = peft.get_peft_model(models.torch_model(size.config), told, names[0])
    for name in names[1:]:
        tuned.add_adapter(name, told)
    ids, start = map(torch.from_numpy, data(size))
    slots = [tuned.prompt_encoder[name].embedding.weight for name in names]
    with torch.no_grad():
        for own, first in zip(slots, start, strict=True):
            own.copy_(first)
    optimiser = torch.optim.AdamW(slots, models.LR, weight_decay=0.0)

    def step():
        optimiser.zero_grad()
        mean = 0.0
        for name, row in zip(names, ids, strict=True):
            tuned.set_adapter(name)
            loss = tuned(input_ids=row[None], labels=row[None]).loss / len(names)
            loss.backward()
            mean += loss.item()
        optimiser.step()
        return mean, [own.grad.numpy() for own in slots]

    yield step


@contextmanager
def careful(size):
    import torch

    model = models.torch_model(size.config, **models.CAREFUL)
    ids, slots = map(torch.from_numpy, data(size))
    optimiser = torch.optim.AdamW([slots.requires_grad_()], models.LR, weight_decay=0.0)

    def step():
        optimiser.zero_grad()
        rows = torch.cat([slots, model.transformer.wte(ids)], 1)
        logits = model(inputs_embeds=rows).logits[:, size.slots - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        optimiser.step()
        return loss.item(), slots.grad.numpy()

    yield step


def facts(result):
    """The mean loss, and the length of every tenant's gradient."""
    return [result[0], *(float(np.linalg.norm(d)) for d in result[1])]


BENCHMARK = Benchmark(
    "mixed-batch", "16 tenants, one step: a prompt of 20 slots and a row of 128 tokens each", FULL, TINY,
    {"ours": ours, "peft": peft, "careful": careful},
    [*time_and_memory("peft", 0.3), *time_and_memory("careful")],
    facts, {"ours": 2, "peft": 1, "careful": 2},
)  # fmt: skip
