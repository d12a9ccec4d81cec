"""One step of prefix tuning on GPT-2 124M: loss, gradient of the keys and values, Adam's update.

4 rows of 128 tokens behind a flat prefix (no MLP) of 20 slots: 368,640 numbers. Cross-entropy on the
127 tokens of a row that follow another: a prefix predicts no first token. Ours is `slots_gradient`
through the door of keys and values and `adamw_step`; the peer is PEFT's PrefixTuningConfig on
Transformers' GPT-2 (SDPA attention), `loss.backward()` and `torch.optim.AdamW`.

Fair, because both freeze all weights, start from the same numbers, and use the same learning rate,
without dropout or decay; losses and gradients are the same number. What each *chooses* differs: PEFT
repeats the prefix for every row and holds all logits; ours serves all rows with one prefix, and takes
the head in chunks where something is scored.
"""

from contextlib import contextmanager

import models
import numpy as np
from prompt_step import FULL, TINY, facts
from sides import Benchmark, time_and_memory

from minicompress.compression.objectives import likelihood
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards


def data(size):
    """Rows of tokens, and the first prefix, flat: (P, 2 L C)."""
    rng, config = np.random.default_rng(0), size.config
    ids = rng.integers(config.vocab_size, size=(size.rows, size.tokens))
    return ids, 0.1 * rng.standard_normal((size.slots, 2 * config.n_layer * config.n_embd), np.float32)


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    ids, flat = data(size)
    slots = kv_from_flat(flat, size.config.n_layer, size.config.n_head).copy()
    scored, state = np.ones(ids.shape, bool), adamw_init({"slots": slots})
    scored[:, 0] = False
    with Shards() as shards:

        def step():
            objective = lambda rows, weight: likelihood(ids[rows, 1:].reshape(-1), weight)
            loss, dslots = slots_gradient(model, slots, ids, scored, objective, shards, DOORS["kv"])
            adamw_step({"slots": slots}, {"slots": dslots}, state, models.LR)
            return loss, flat_from_kv(dslots)

        yield step


@contextmanager
def peft(size):
    import peft
    import torch

    told = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=size.slots)
    tuned = peft.get_peft_model(models.torch_model(size.config), told)
    ids, start = map(torch.from_numpy, data(size))
    flat = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        flat.copy_(start)
    yield models.peft_step(tuned, ids, [flat])


BENCHMARK = Benchmark(
    "prefix-step", "prefix tuning, one step: 4 x 128 tokens, 20 slots of keys and values", FULL, TINY,
    {"ours": ours, "peft": peft},
    time_and_memory("peft", 0.7),
    facts,
)  # fmt: skip
