"""One step of P-tuning on GPT-2 124M: 20 slots that an LSTM makes, loss, gradient of all its weights, Adam's update.

The encoder of P-tuning's paper as PEFT has it: an embedding, two LSTM layers in both directions
(768 wide), two linear layers; 27 million weights, all of them trained, and thrown away in the end.
4 rows of 128 tokens, cross-entropy on all 512. Ours is `slots_gradient` through that
parameterisation's door and `adamw_step`; the peer is PEFT's PromptEncoderConfig with LSTM on
Transformers' GPT-2, `loss.backward()` and `torch.optim.AdamW`.

Fair, because both freeze all weights of the model, start from the same encoder, and use the same
learning rate, without dropout or decay; losses and gradients are the same number.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.compression.objectives import likelihood
from minicompress.gpt2.prefix import EMBEDDINGS
from minicompress.prompts.carriers import through
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.parameterisations import ptuning_lstm
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards
from minicompress.trees import flatten


class Size(NamedTuple):
    config: Any
    rows: int
    tokens: int
    slots: int
    hidden: int


FULL = Size(models.GPT2, rows=4, tokens=128, slots=20, hidden=768)
TINY = Size(models.TINY, rows=4, tokens=10, slots=3, hidden=8)


def data(size):
    """Rows of tokens, and the first encoder as a tree."""
    rng = np.random.default_rng(0)
    ids = rng.integers(size.config.vocab_size, size=(size.rows, size.tokens))
    return ids, ptuning_lstm.init(rng, size.slots, size.config.n_embd, size.hidden)


@contextmanager
def ours(size):
    model = models.our_params(size.config), size.config
    ids, raw = data(size)
    scored, state = np.ones(ids.shape, bool), adamw_init(raw)
    door = through(ptuning_lstm.bake, ptuning_lstm.bake_backward, EMBEDDINGS)
    with Shards() as shards:

        def step():
            objective = lambda rows, weight: likelihood(ids[rows].reshape(-1), weight)
            loss, draw = slots_gradient(model, raw, ids, scored, objective, shards, door)
            adamw_step(raw, draw, state, models.LR)
            return loss, flatten(draw).values()

        yield step


@contextmanager
def peft(size):
    import peft
    import torch

    told = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=size.slots, encoder_reparameterization_type="LSTM",
        encoder_hidden_size=size.hidden, encoder_num_layers=2, encoder_dropout=0.0,
    )  # fmt: skip
    tuned = peft.get_peft_model(models.torch_model(size.config), told)
    ids, raw = data(size)
    ids, weights = torch.from_numpy(ids), dict(tuned.prompt_encoder["default"].named_parameters())
    with torch.no_grad():
        for name, weight in flatten(raw).items():
            weights[their_name(name)].copy_(torch.from_numpy(weight.T if name.startswith("mlp") else weight))
    yield models.peft_step(tuned, ids, list(weights.values()))


def their_name(name):
    """lstm_head.0.reverse.weight_ih -> lstm_head.weight_ih_l0_reverse; the others are named alike."""
    if not name.startswith("lstm_head"):
        return name
    _, layer, direction, kind = name.split(".")
    return f"lstm_head.{kind}_l{layer}" + "_reverse" * (direction == "reverse")


def facts(result):
    """The loss, and the length of the whole gradient."""
    return [result[0], float(np.linalg.norm([np.linalg.norm(d) for d in result[1]]))]


BENCHMARK = Benchmark(
    "lstm-step", "P-tuning with an LSTM, one step: 4 x 128 tokens, 20 slots", FULL, TINY,
    {"ours": ours, "peft": peft},
    time_and_memory("peft", 0.7),
    facts,
)  # fmt: skip
