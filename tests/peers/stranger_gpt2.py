"""GPT-2 with soft prompts in PyTorch, written by someone else, who may be wrong: `bug` is "id: how", or nothing.

Slots that are embeddings or hidden states stand in the sequence, left of the tokens; keys and values come before it.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812

from minicompress.trees import flatten

DROPOUT = 0.1


class NormByHand(torch.autograd.Function):
    """LayerNorm with its own backward, which forgets eps: altogether, in 1/std, or in the stretch."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, how):
        d = x - x.mean(-1, keepdim=True)
        var = (d * d).mean(-1, keepdim=True)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(d, var, rstd, weight)
        ctx.how = how
        return d * rstd * weight + bias

    @staticmethod
    def backward(ctx, dout):
        d, var, rstd, weight = ctx.saved_tensors
        xhat = d * (var.rsqrt() if ctx.how in ("recomputed", "xhat") else rstd)
        outer = rstd if ctx.how in ("stretch", "xhat") else var.rsqrt()
        rows = tuple(range(dout.ndim - 1))
        g = dout * weight
        stretch = (g * xhat).mean(-1, keepdim=True)
        if ctx.how == "stretch":
            stretch = stretch / (xhat * xhat).mean(-1, keepdim=True)
        dx = outer * (g - g.mean(-1, keepdim=True) - xhat * stretch)
        return dx, (dout * xhat).sum(rows), dout.sum(rows), None, None


class LookUpOnce(torch.autograd.Function):
    """table[ids], whose backward puts where it should add: of a repeated id the last one wins."""

    @staticmethod
    def forward(ctx, table, ids, real, how):
        ctx.how = how
        ctx.save_for_backward(ids, real)
        ctx.size = table.shape
        return table[ids]

    @staticmethod
    def backward(ctx, dout):
        ids, real = ctx.saved_tensors
        grad = torch.zeros(ctx.size, dtype=dout.dtype)
        pairs = list(zip(ids[real], dout[real], strict=True))
        for i, d in reversed(pairs) if ctx.how == "the first wins" else pairs:
            grad[i] = grad[i] + d / (ids[real] == i).sum() if ctx.how == "averaged" else d
        return grad, None, None, None


class Averaged(torch.autograd.Function):
    """One for all rows; its gradient is their mean where it should be their sum."""

    @staticmethod
    def forward(ctx, x, rows, first):
        ctx.first = first
        return x.expand(rows, *x.shape)

    @staticmethod
    def backward(ctx, dout):
        return dout[0] if ctx.first else dout.mean(0), None, None


class GPT2:
    """weights: {checkpoint name: tensor}."""

    def __init__(self, params, config, bug="", training=False):
        self.weights = {name: torch.tensor(array).requires_grad_() for name, array in flatten(params).items()}
        self.config, self.bug, self.training = config, bug, training
        if bug == "tied-head-gradient-lost: a copy":
            self.copied_head = self.weights["wte.weight"].detach().clone().requires_grad_()

    def of(self, name):
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def matmul(self, a, b):
        if self.bug == "float16-accumulation: half products":
            return (a.half() @ b.half()).to(a.dtype)
        if self.bug == "float16-accumulation: bfloat16 products":
            return (a.bfloat16() @ b.bfloat16()).to(a.dtype)
        return a @ b

    def linear(self, x, name):
        weight, bias = self.of(name)
        return self.matmul(x, weight) + bias

    def drop(self, x, where):
        only = self.bug.split(": ")[-1]
        return F.dropout(x, DROPOUT) if self.training and only in ("everywhere", where) else x

    def norm(self, x, name):
        (weight, bias), eps = self.of(name), self.config.layer_norm_epsilon
        kind, _, how = self.bug.partition(": ")
        kind = "" if how == "blocks only" and name == "ln_f" else kind
        if self.bug == "final-norm-missing: without its weights" and name == "ln_f":
            return F.layer_norm(x, x.shape[-1:], eps=eps)
        if kind == "eps-missing-in-backward":
            return NormByHand.apply(x, weight, bias, eps, how)
        var = x.var(-1, keepdim=True, unbiased=kind == "variance-unbiased")
        std = var.sqrt() + eps if kind == "eps-outside-root" else (var + eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / std * weight + bias

    def gelu(self, x):
        return F.gelu(x, approximate="none" if self.bug.startswith("gelu-erf") else "tanh")

    def look_up(self, ids, real):
        wte = self.weights["wte.weight"]
        if self.bug == "repeated-tokens-once: padding too":
            return LookUpOnce.apply(wte, ids, torch.ones_like(real), "the last wins")
        return (
            LookUpOnce.apply(wte, ids, real, self.bug.partition(": ")[2])
            if self.bug.startswith("repeated-tokens-once")
            else wte[ids]
        )

    def head(self, x):
        weight = self.weights.get("lm_head.weight", self.weights["wte.weight"])
        if self.bug == "tied-head-gradient-lost: detached":
            weight = weight.detach()
        if self.bug == "tied-head-gradient-lost: a copy":
            weight = self.copied_head
        if self.bug == "float16-accumulation: the head":
            return (x.half() @ weight.T.half()).to(x.dtype)
        return self.matmul(x, weight.T)

    def heads(self, qkv):
        """[B,N,3C] -> queries, keys, values, each [B,H,N,D]."""
        B, N, width = qkv.shape
        H, D = self.config.n_head, width // 3 // self.config.n_head
        if self.bug == "qkv-split: interleaved":
            q, k, v = qkv.view(B, N, H, 3, D).permute(3, 0, 2, 1, 4)
        elif self.bug == "qkv-split: heads last":
            q, k, v = qkv.view(B, N, 3, D, H).permute(2, 0, 4, 1, 3)
        else:
            q, k, v = qkv.view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)
        if self.bug == "qkv-split: keys first":
            q, k = k, q
        if self.bug == "qkv-split: values first":
            q, v = v, q
        return (q, v, k) if self.bug == "key-value-swapped: in c_attn" else (q, k, v)

    def attend(self, a, layer, allowed, past, slots, note):
        """a [B,N,C], allowed [B,N,S] -> [B,N,C], and the keys and values of all S. slots: how many of a's columns."""
        B, N, C = a.shape
        q, k, v = self.heads(self.linear(a, f"h.{layer}.attn.c_attn"))
        if self.bug == "key-value-swapped: of hidden slots" and slots:
            k, v = torch.cat([v[:, :, :slots], k[:, :, slots:]], 2), torch.cat([k[:, :, :slots], v[:, :, slots:]], 2)
        own, beta = (k, v), None
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            if len(past) == 3:
                beta = torch.cat([past[2], past[2].new_zeros(*past[2].shape[:2], N)], 2)
        q = self.scaled_early(q)
        if self.bug == "scale-twice: in both":
            q, k = q / math.sqrt(q.shape[-1]), k / math.sqrt(q.shape[-1])
        scores = self.scores(q, k, slots if k.shape[2] == N else 0)
        if beta is not None:
            scores = scores + beta[:, :, None]
        if self.bug == "mask-missing: added as 0 and 1":
            scores = scores + allowed[:, None]
        else:
            scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        probs = scores.softmax(-1)
        out = self.weigh(self.drop(probs, "attention"), v, slots if v.shape[2] == N else 0)
        if self.bug == "qkv-split: heads last":
            out = out.permute(0, 2, 3, 1).reshape(B, N, C)
        else:
            out = out.transpose(1, 2).reshape(B, N, C)
        note |= {"query": q, "key": k, "value": v, "attention": probs, "attended": out}
        return self.linear(out, f"h.{layer}.attn.c_proj"), (k, v) if beta is None else (k, v, beta), own

    def scaled_early(self, q):
        return q / math.sqrt(q.shape[-1]) if self.bug == "scale-twice: the query first" else q

    def scores(self, q, k, slots):
        scale = math.sqrt(q.shape[-1])
        scale = {"scale-twice: scores again": scale * scale, "scale-missing: none": 1, "scale-twice: in both": 1}.get(
            self.bug, scale
        )
        return self.through(q, k, slots, lambda q, k: self.half_or(q, k.transpose(2, 3))) / scale

    def weigh(self, probs, v, slots):
        return self.through(probs, v, slots, self.half_or)

    def half_or(self, a, b):
        return (a.half() @ b.half()).to(a.dtype) if self.bug == "float16-accumulation: attention" else self.matmul(a, b)

    def through(self, a, b, slots, product):
        """product(a, b); where slots are kept without a gradient, tokens (a's rows behind them) get none of theirs."""
        if not slots or self.bug not in ("prompt-detached: cached", "prompt-detached: cached, but the last state"):
            return product(a, b)
        kept = torch.cat([b[:, :, :slots].detach(), b[:, :, slots:]], 2)
        return torch.cat([product(a[:, :, :slots], b), product(a[:, :, slots:], kept)], 2)

    def block(self, x, layer, allowed, past, slots, note):
        note["hidden"] = x
        note["ln_1"] = a = self.norm(x, f"h.{layer}.ln_1")
        a, present, own = self.attend(a, layer, allowed, past, slots, note)
        note["middle"] = x = x + self.drop(a, "residual")
        note["ln_2"] = m = self.norm(x, f"h.{layer}.ln_2")
        note["fc"] = m = self.linear(m, f"h.{layer}.mlp.c_fc")
        note["gelu"] = m = self.gelu(m)
        return x + self.drop(self.linear(m, f"h.{layer}.mlp.c_proj"), "residual"), present, own

    def forward(self, x, allowed, past=None, deep=None, slots=0, watched=()):
        """x [B,N,C] -> logits [B,N,V], what is kept of each layer, its own part, and notes {name: tensor}.

        deep [B,L,P,C]: what stands in the first P columns before each layer. watched: whose gradients are kept.
        """
        x, presents, owns, notes = self.drop(x, "embeddings"), [], [], {}
        for layer in range(self.config.n_layer):
            note = {}
            if deep is not None and not (layer and self.bug == "prompt-not-injected: in the first layer only"):
                x = torch.cat([deep[:, layer], x[:, deep.shape[2] :]], 1)
            x, present, own = self.block(x, layer, allowed, past and past[layer], slots, note)
            presents.append(present)
            owns.append(own)
            notes |= {f"{name}.{layer}": tensor for name, tensor in note.items()}
        notes[f"hidden.{self.config.n_layer}"] = x
        if self.bug != "final-norm-missing: none":
            notes["ln_f"] = x = self.norm(x, "ln_f")
        for name in watched:
            if name in notes and notes[name].requires_grad:
                notes[name].retain_grad()
        logits = self.head(x)
        if self.bug == "prompt-detached: cached" and slots:
            logits = torch.cat([logits[:, :slots].detach(), logits[:, slots:]], 1)
        return logits, presents, owns, notes

    def allowed(self, keys, N, slots):
        """keys [B,S], False where padding stands -> [B,N,S]: what the last N columns may look at. slots lead."""
        B, S = keys.shape
        shift = {"mask-off-by-one: the next too": 1, "mask-off-by-one: not itself": -1}.get(self.bug, 0)
        seen = torch.ones(N, S, dtype=torch.bool).tril(S - N + shift)
        tokens = torch.arange(S - N, S) >= slots
        if self.bug == "mask-off-by-one: not itself, but the first":
            seen = torch.ones(N, S, dtype=torch.bool).tril(S - N - 1)
            seen[0, S - N] = True
        if self.bug.startswith("mask-missing: ") and "added" not in self.bug:
            seen[:] = True
        if self.bug == "mask-missing: padding seen too":
            keys = torch.ones_like(keys)
        if self.bug == "mask-inverted: causal":
            seen = ~seen
        if self.bug == "mask-inverted: padding":
            keys = ~keys
        if self.bug == "mask-missing-for-slots: tokens do not see them":
            seen[tokens, :slots] = False
        if self.bug == "mask-missing-for-slots: hidden as padding":
            keys = keys.clone()
            keys[:, :slots] = False
        if self.bug == "mask-missing-for-slots: they see each other" and N == S:
            seen[:slots, :slots] = True
        return seen & keys[:, None]
