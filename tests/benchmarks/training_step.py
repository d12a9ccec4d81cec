"""One step of training a whole small model: loss, every weight's gradient, AdamW.

The shapes of the embedded model: vocabulary 2048, 4 layers of 192 channels, 6 heads; a batch of its
training, 2048 tokens, here 8 rows of 256, every one scored. Ours is `language_model_step` and `adamw_step`; `usual` is Transformers'
GPT-2 and `torch.optim.AdamW` as they come; `careful` fuses GELU and the optimiser.

Fair, because all three start from the same weights, without dropout, decay the same weights (not the
vectors) by the same amount, and their losses agree, also after an update.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.gpt2 import Config
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.language_model import language_model_step
from minicompress.training.shards import Shards

DECAY = 0.1


class Size(NamedTuple):
    config: Any
    rows: int
    tokens: int


EMBEDDED = Config(vocab_size=2048, n_positions=512, n_embd=192, n_layer=4, n_head=6)
FULL, TINY = Size(EMBEDDED, rows=8, tokens=256), Size(models.TINY, rows=4, tokens=10)


def data(size):
    """Tokens (B, T + 1): T are read, T are scored."""
    return np.random.default_rng(0).integers(size.config.vocab_size, size=(size.rows, size.tokens + 1))


@contextmanager
def ours(size):
    params, tokens = models.our_params(size.config), data(size)
    weights, state = np.ones((size.rows, size.tokens), np.float32), adamw_init(params)
    with Shards() as shards:

        def step():
            loss, grads = language_model_step(params, size.config, tokens, weights, shards)
            adamw_step(params, grads, state, models.LR, weight_decay=DECAY)
            return loss

        yield step


def pytorch(fused, **options):
    @contextmanager
    def side(size):
        import torch

        model, tokens = models.torch_model(size.config, **options).train(), torch.from_numpy(data(size))
        weights = [weight.requires_grad_() for weight in model.parameters()]
        groups = [{"params": [w for w in weights if w.ndim > 1], "weight_decay": DECAY},
                  {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
        optimiser = torch.optim.AdamW(groups, models.LR, fused=fused)

        def step():
            optimiser.zero_grad()
            logits = model(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            return loss.item()

        yield step

    return side


BENCHMARK = Benchmark(
    "training-step", "training a 4 x 192 model, one step: 8 x 256 tokens", FULL, TINY,
    {"ours": ours, "usual": pytorch(False), "careful": pytorch(True, **models.CAREFUL)},
    [*time_and_memory("usual", 0.9), *time_and_memory("careful", 0.9)],
    lambda loss: [loss],
)  # fmt: skip
