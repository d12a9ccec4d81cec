"""What a verification costs: a trace, the same recorded from PyTorch, and the two held against one another.

GPT-2 124M in float32, 4 rows of 128 tokens behind 20 slots: every tensor of the forward, the loss, the gradients of
the residual stream and of the prompt, all kept.

- `recorded` is PEFT on Transformers under `torch_adapter.record`: hooks copy every tensor out, and attention is
  computed anew from queries and keys.
- `diff` aligns and compares two traces of ours, one of them a last bit away; nothing differs, so no cause is tried.

Fair, because both traces hold the same tensors of the same model, under the same names.
"""

from contextlib import contextmanager

import models
import numpy as np
from prompt_step import FULL, TINY, data
from sides import Aim, Benchmark, ratio, time_and_memory

from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.compare import compare
from minicompress.verification.torch_adapter import record
from minicompress.verification.trace import trace


@contextmanager
def ours(size):
    ids, slots = data(size)
    model, prompt = (models.our_params(size.config), size.config), SoftPrompt(slots)
    yield lambda: trace(model, ids.tolist(), prompt)


@contextmanager
def recorded(size):
    import peft
    import torch

    ids, slots = data(size)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=size.slots)
    tuned = peft.get_peft_model(models.torch_model(size.config), config)
    tuned.prompt_encoder.default.embedding.weight.data.copy_(torch.from_numpy(slots))
    rows = torch.from_numpy(ids)

    def step():
        with record(tuned) as found:
            tuned(input_ids=rows, labels=rows).loss.backward()
        return found.tensors

    yield step


@contextmanager
def diff(size):
    with ours(size) as step:
        reference = step()
    suspect = {name: tensor * np.float32(1 + 1e-7) for name, tensor in reference.items()}

    def step():
        assert compare(reference, suspect).equal

    yield step


def facts(tensors):
    """The loss, and the lengths of the gradients and of some tensors on the way."""
    if tensors is None:
        return []
    names = ("loss", "logits", "attention.0", "gelu.1", "grad.prompt", "grad.hidden.1")
    return [float(np.linalg.norm(tensors[name])) for name in names]


BENCHMARK = Benchmark(
    "trace-and-diff", "a trace and its comparison: 4 rows of 128 tokens behind 20 slots", FULL, TINY,
    {"ours": ours, "recorded": recorded, "diff": diff},
    [*time_and_memory("recorded"), Aim("time, diff / ours", ratio("diff", "ours"))],
    facts, {"ours": 1, "recorded": 1, "diff": 1},
)  # fmt: skip
