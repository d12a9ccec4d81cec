"""The same random GPT-2 for every side, made without a moment when it is in memory twice."""

import os
from dataclasses import asdict
from zlib import crc32

import numpy as np

from minicompress.gpt2 import Config
from minicompress.gpt2.init import shapes
from minicompress.trees import unflatten

GPT2 = Config()  # 124M parameters
TINY = Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4)
LR = 1e-3


def draw(name, shape):
    """The weight of that name: about N(0, 0.5²/C), around 1 for LayerNorm weights. float32, in place."""
    weight = np.random.default_rng(crc32(name.encode())).standard_normal(shape, np.float32)
    weight *= 0.5 / np.sqrt(np.float32(shape[-1] if name.startswith("w") else shape[0]))
    if "ln_" in name and name.endswith("weight"):
        weight += 1
    return weight


def our_params(config):
    return unflatten({name: draw(name, shape) for name, shape in shapes(config).items()})


def torch_model(config, **options):
    """Transformers' GPT-2 with the same weights, all frozen, no dropout, fused attention, on all cores."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    facts = asdict(config) | {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
    facts |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "attn_implementation": "sdpa"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**facts | options))
    for name, weight in model.named_parameters():  # a tied head is named once, as wte
        name = name.removeprefix("transformer.")
        weight.requires_grad_(False).copy_(torch.from_numpy(draw(name, tuple(weight.shape))))
    return model.eval()


def peft_step(tuned, ids, trained):
    """A function: one step of AdamW on the trained tensors of a PEFT model -> loss, their gradients."""
    import torch

    optimiser = torch.optim.AdamW(trained, LR, weight_decay=0.0)

    def step():
        optimiser.zero_grad()
        loss = tuned(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        return loss.item(), [tensor.grad.numpy() for tensor in trained]

    return step


# What a careful user of PyTorch sets: the same GELU as one kernel instead of a row of small ones.
CAREFUL = {"activation_function": "gelu_pytorch_tanh"}
