"""Soft prompts in PyTorch, written by someone else: what is trained, the encoders that make slots of it, the prefix."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from stranger_gpt2 import DROPOUT, Averaged

from minicompress.trees import flatten

STAYS = ("raw.base", "raw.frozen")
KINDS = {"onward": "", "reverse": "_reverse"}


class Prompt:
    """leaves: {name: tensor} of what is trained. A prefix is one flat row per slot, [P, 2LC], as PEFT keeps it."""

    def __init__(self, prompt, config, bug=""):
        self.prompt, self.config, self.bug = prompt, config, bug
        self.carrier = "in rows" if prompt.in_rows else prompt.carrier
        if prompt.raw:
            arrays = flatten(prompt.raw, "raw")
        else:
            arrays = {"prompt": flat(prompt.slots) if self.carrier == "kv" else prompt.slots}
        if prompt.beta is not None:
            arrays["beta"] = prompt.beta
        self.leaves = {
            name: torch.tensor(array).requires_grad_(not name.startswith(STAYS)) for name, array in arrays.items()
        }
        if bug == "encoder-frozen: its layers":
            for name, leaf in self.leaves.items():
                leaf.requires_grad_("_head" not in name and "transform" not in name)
        if bug == "encoder-frozen: its embedding":
            self.leaves["raw.embedding.weight"].requires_grad_(False)

    @property
    def moving(self):
        """{name: tensor} of what an optimiser is given."""
        return {name: leaf for name, leaf in self.leaves.items() if not name.startswith(STAYS)}

    def slots(self):
        """[P,C], [L,P,C] or [P,2LC], with the gradient kept."""
        slots = self.bake() if self.prompt.raw else self.leaves["prompt"]
        if self.bug == "encoder-frozen: its output":
            slots = slots.detach().requires_grad_()
        if self.bug == "prompt-detached: detached":
            return slots.detach()
        if slots.requires_grad:
            slots.retain_grad()
        return slots

    def bake(self):
        raw = {name.removeprefix("raw."): leaf for name, leaf in self.leaves.items()}
        if "slots" in raw:
            slots = torch.cat([raw["frozen"], raw["slots"]], 3) if "frozen" in raw else raw["slots"]
            return flat(slots) if self.carrier == "kv" else slots
        if "base" in raw:
            return (flat(raw["base"]) if self.carrier == "kv" else raw["base"]) + raw["a"] @ raw["b"]
        x = raw["embedding.weight"]
        if any(name.startswith("lstm") for name in raw):
            x = self.lstm(self.drop(x, "input"), raw)
        else:
            x = self.drop(x, "input")
        head, act = ("transform", torch.tanh) if "transform.0.weight" in raw else ("mlp_head", F.relu)
        layers = sum(name.startswith(head) and name.endswith("weight") for name in raw)
        for n in range(0, 2 * layers, 2):
            x = self.drop(act(x), "layers") if n else x
            x = x @ raw[f"{head}.{n}.weight"] + raw[f"{head}.{n}.bias"]
        return x

    def lstm(self, x, raw):
        layers = 1 + max(int(name.split(".")[1]) for name in raw if name.startswith("lstm_head"))
        hidden = raw["lstm_head.0.onward.weight_hh"].shape[1]
        lstm = torch.nn.LSTM(x.shape[1], hidden, layers, bidirectional=True, batch_first=True).to(x.dtype)
        weights = {
            f"{kind}_l{n}{end}": raw[f"lstm_head.{n}.{way}.{kind}"]
            for n in range(layers) for way, end in KINDS.items() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }  # fmt: skip
        out, _ = torch.func.functional_call(lstm, weights, (x[None],))
        return self.drop(out[0], "layers")

    def drop(self, x, where):
        if self.bug == "encoder-in-train-mode: half" and where == "layers":
            return F.dropout(x, 0.5)
        return F.dropout(x, DROPOUT) if self.bug == f"encoder-in-train-mode: {where}" else x

    def shared(self, x, rows):
        """One for all rows: [B, ...]."""
        return (
            Averaged.apply(x, rows, self.bug.endswith("first row"))
            if self.bug.startswith("prompt-gradient-averaged")
            else x.expand(rows, *x.shape)
        )

    def past(self, slots, model):
        """slots [B,P,2LC] -> for each layer keys and values [B,H,P,D], and log-masses [B,H,P] where it has them."""
        B, P, width = slots.shape
        L, H, C = self.config.n_layer, self.config.n_head, self.config.n_embd
        D, how = C // H, self.bug.partition(": ")[2]
        if self.bug.startswith("prefix-projected"):
            kv = torch.stack([self.projected(part, layer, model, how) for layer, part in
                              enumerate(slots.view(B, P, L, 2, C).permute(2, 3, 0, 1, 4))])  # fmt: skip
            kv = kv.view(L, 2, B, P, H, D).transpose(3, 4)
        elif self.bug == "prefix-layout: all keys, then all values":
            kv = slots.view(B, P, 2, L, H, D).permute(3, 2, 0, 4, 1, 5)
        elif self.bug == "prefix-layout: heads innermost":
            kv = slots.view(B, P, L, 2, D, H).permute(2, 3, 0, 5, 1, 4)
        elif self.bug == "prefix-layout: heads outermost":
            kv = slots.view(B, P, H, L, 2, D).permute(3, 4, 0, 2, 1, 5)
        elif self.bug == "prefix-layout: kinds inside heads":
            kv = slots.view(B, P, L, H, 2, D).permute(2, 4, 0, 3, 1, 5)
        elif self.bug == "prefix-layout: slots inside layers":
            kv = slots.reshape(B, L, 2, P, H, D).permute(1, 2, 0, 4, 3, 5)
        elif self.bug == "prefix-layout: not permuted":
            kv = slots.reshape(B, L, 2, H, P, D).permute(1, 2, 0, 3, 4, 5)
        elif self.bug == "prefix-layout: heads viewed, not moved":
            kv = slots.view(B, P, L, 2, C).permute(2, 3, 0, 1, 4).reshape(L, 2, B, H, P, D)
        else:
            kv = slots.view(B, P, L, 2, H, D).permute(2, 3, 0, 4, 1, 5)
        if self.bug == "prompt-detached: its keys":
            kv = torch.stack([kv[:, 0].detach(), kv[:, 1]], 1)
        if self.bug == "key-value-swapped: in the prefix":
            kv = kv.flip(1)
        if "beta" not in self.leaves:
            return [(k, v) for k, v in kv]
        return [(k, v, b.transpose(0, 1)) for (k, v), b in zip(kv, self.masses(B), strict=True)]

    def masses(self, rows):
        """[L,H,B,P]."""
        return self.shared(self.leaves["beta"], rows).permute(1, 2, 0, 3)

    def projected(self, part, layer, model, how):
        """part [2,B,P,C], used as if it were hidden states -> keys and values [2,B,P,C]."""
        states = torch.stack(
            [
                part[0],
                part[1] if how == "each part by its own" else part[1] if how == "values as hidden states" else part[0],
            ]
        )
        if how != "without ln_1":
            states = model.norm(states, f"h.{layer}.ln_1")
        (weight, bias), C = model.of(f"h.{layer}.attn.c_attn"), part.shape[-1]
        return torch.stack(
            [states[n] @ weight[:, C * n + C : C * n + 2 * C] + bias[C * n + C : C * n + 2 * C] for n in range(2)]
        )


def flat(kv):
    """[L,2,H,P,D] -> [P,2LC], of an array or a tensor."""
    kv = np.moveaxis(kv, 3, 0) if isinstance(kv, np.ndarray) else kv.movedim(3, 0)
    return kv.reshape(len(kv), -1)
