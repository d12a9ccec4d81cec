"""One step of prompt tuning on GPT-2 124M: loss, gradient of the slots, Adam's update.

4 rows of 128 tokens behind 20 slots, cross-entropy on all 512 tokens (the last slot predicts the
first). Ours is `slots_gradient` with the likelihood objective and `adamw_step`, as
`minicompress tune` runs them. The peer is PEFT's PromptTuningConfig on Transformers' GPT-2 (SDPA
attention, no cache kept), `loss.backward()` and `torch.optim.AdamW`.

Fair, because both freeze all weights, so neither forms a weight's gradient; both start from the
same slots and use the same learning rate, without dropout or decay; and losses and gradients are
the same number. What is not the same is what each *chooses* to do: PEFT reads the prompt in every
row and holds all logits, we read it once and take the head in chunks.

`sgemm` is no peer but the machine: one float32 product of 2048 x 2048 matrices on all cores. The
floating-point operations of our step's products (`flops`), over our step's time, as a share of
what sgemm reaches, says how far our step is from being products alone.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Aim, Benchmark, time_and_memory

from minicompress.compression.objectives import likelihood
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards


class Size(NamedTuple):
    config: Any
    rows: int
    tokens: int
    slots: int
    sgemm: int


FULL = Size(models.GPT2, rows=4, tokens=128, slots=20, sgemm=2048)
TINY = Size(models.TINY, rows=4, tokens=10, slots=3, sgemm=64)


def data(size):
    rng = np.random.default_rng(0)
    ids = rng.integers(size.config.vocab_size, size=(size.rows, size.tokens))
    return ids, 0.1 * rng.standard_normal((size.slots, size.config.n_embd), np.float32)


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    ids, slots = data(size)
    scored, state = np.ones(ids.shape, bool), adamw_init({"slots": slots})
    with Shards() as shards:

        def step():
            objective = lambda rows, weight: likelihood(ids[rows].reshape(-1), weight)
            loss, dslots = slots_gradient(model, slots, ids, scored, objective, shards)
            adamw_step({"slots": slots}, {"slots": dslots}, state, models.LR)
            return loss, dslots

        yield step


@contextmanager
def peft(size):
    import peft
    import torch

    facts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=size.slots)
    tuned = peft.get_peft_model(models.torch_model(size.config), facts)
    ids, start = map(torch.from_numpy, data(size))
    slots = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        slots.copy_(start)
    yield models.peft_step(tuned, ids, [slots])


@contextmanager
def sgemm(size):
    a = np.random.default_rng(0).standard_normal((size.sgemm, size.sgemm), np.float32)
    yield lambda: (a @ a, None)[1]


def facts(result):
    return [result[0], float(np.linalg.norm(result[1]))] if result else []


def flops(size):
    """Of all matrix products in one of our steps. A multiplication and an addition count as two."""
    C, F, L = size.config.n_embd, size.config.width, size.config.n_layer
    B, P, T = size.rows, size.slots, size.tokens - 1  # the last token predicts nothing and is not read
    block = C * 3 * C + C * C + 2 * C * F  # c_attn, c_proj, c_fc, c_proj
    linear = 2 * (B * T + P) * L * block  # forward, and the gradient of the input
    attention = 6 * (B * T * (P + T) + P * P) * L * C  # two products forward, four backward
    head = 2 * B * size.tokens * C * size.config.vocab_size
    return 2 * (linear + attention + head)


def share_of_peak(results):
    return flops(FULL) / results["ours"]["seconds"] / (2 * FULL.sgemm**3 / results["sgemm"]["seconds"])


BENCHMARK = Benchmark(
    "prompt-step", "prompt tuning, one step: 4 x 128 tokens, 20 slots", FULL, TINY,
    {"ours": ours, "peft": peft, "sgemm": sgemm},
    [*time_and_memory("peft", 0.62, 0.45), Aim("our products' share of the sgemm peak", share_of_peak)],
    facts, {"sgemm": 8},
)  # fmt: skip
