"""Writes tiny_gpt2.safetensors: a random GPT-2 and PyTorch's answers about it, all in float64.

Run as `python tests/golden/make_golden.py`, with torch and transformers installed.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

SHAPE = {"vocab_size": 17, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
SLOTS, BATCH, TOKENS = 4, 3, 6


def random_model():
    """Every weight drawn anew: PyTorch's zero biases would hide a lost one."""
    config = GPT2Config(**SHAPE, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            weight.copy_(around + 0.3 * torch.randn(weight.shape, dtype=torch.float64))
    return model


def prompt_loss(model, slots, ids):
    """Mean cross-entropy of all tokens behind the slots; the loss of float64 logits, which Transformers' own is not."""
    embeddings = torch.cat([slots.expand(len(ids), -1, -1), model.transformer.wte(ids)], dim=1)
    logits = model(inputs_embeds=embeddings).logits[:, len(slots) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def main():
    torch.manual_seed(0)
    model = random_model()
    ids = torch.randint(SHAPE["vocab_size"], (BATCH, TOKENS))
    slots = torch.randn(SLOTS, SHAPE["n_embd"], dtype=torch.float64, requires_grad=True)
    loss = prompt_loss(model, slots, ids)
    loss.backward()
    weights = {name.removeprefix("transformer."): weight for name, weight in model.named_parameters()}
    tensors = {
        "ids": ids,
        "slots": slots,
        "logits": model(ids).logits,
        "loss": loss,
        "grads.slots": slots.grad,
        **{f"params.{name}": weight for name, weight in weights.items()},
        **{f"grads.params.{name}": weight.grad for name, weight in weights.items()},
    }
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, Path(__file__).with_name("tiny_gpt2.safetensors"), metadata={"config": json.dumps(SHAPE)})


if __name__ == "__main__":
    main()
