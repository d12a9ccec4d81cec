"""Adaption prompts (LLaMA-Adapter, Zhang et al. 2023): a softmax of their own, times a gate that begins at zero.

Not a prompt that stands before the text, so our side is their formula, written with our layers.
"""

import math

import numpy as np

from minicompress.gpt2 import embed
from minicompress.gpt2 import logits as head
from minicompress.gpt2.block import mlp, self_attention
from minicompress.layers.attention import softmax
from minicompress.layers.layernorm import layernorm
from minicompress.layers.linear import linear
from minicompress.trees import unflatten
from minicompress.verification.peft_conformance.bench import CONFIG, ROWS, asked, peer, their_logits, to_numpy, tree_of
from minicompress.verification.peft_conformance.finding import CONVENTION, EXACT, SINGLE
from minicompress.verification.peft_conformance.folders import loaded, saved
from minicompress.verification.peft_conformance.passes import held
from minicompress.verification.peft_conformance.writing import their_text

KIND, ROW = "adaption prompt", ROWS[:1]


def adapted(lib, gates=0.5):
    """The GPT-2 with such prompts in all layers, in float64."""
    facts = {"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": CONFIG.n_layer}
    lib.torch.manual_seed(lib.seed)
    model = lib.peft.get_peft_model(peer(lib), lib.peft.AdaptionPromptConfig(**facts)).double().eval()
    for name, weight in model.named_parameters():
        if name.endswith("adaption_gate"):
            weight.data.fill_(gates)
    return model


def by_hand(lib, model, inside):
    """Our logits (T, V) of the row; inside: what the prompts give joins the heads before c_proj, as in the paper."""
    found = {n.split("transformer.")[1]: to_numpy(w) for n, w in model.named_parameters() if "adaption_" in n}
    extra, params, eps = unflatten(found)["h"], tree_of(peer(lib)), CONFIG.layer_norm_epsilon
    x = embed(params, ROW)
    for layer, weights in params["h"].items():
        own, attn = extra[layer]["attn"], weights["attn"]
        a, _ = layernorm(x, **weights["ln_1"], eps=eps)
        given = gated(a, attn["c_attn"], own["adaption_prompt"], own["adaption_gate"])
        x = x + self_attention(a, attn, CONFIG.n_head)[0] + (given @ attn["c_proj"]["weight"] if inside else given)
        x = x + mlp(layernorm(x, **weights["ln_2"], eps=eps)[0], weights["mlp"])[0]
    return head(params, layernorm(x, **params["ln_f"], eps=eps)[0])[0]


def gated(a, c_attn, prompt, gate):
    """a (1, T, C), prompt (1, n, C) -> gate softmax(q kᵀ/√D) v (1, T, C), the keys and values those of the prompt."""
    heads = lambda x: linear(x, **c_attn)[0].reshape(*x.shape[:2], 3, CONFIG.n_head, -1).transpose(2, 0, 3, 1, 4)
    (q, _, _), (_, k, v) = heads(a), heads(prompt)
    out = gate * softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v  # (1, H, T, D)
    return np.ascontiguousarray(out.swapaxes(1, 2)).reshape(a.shape)


def closed_gate(lib):
    """A gate of zero, with which training begins, against no prompt at all."""
    plain = to_numpy(peer(lib)(lib.torch.as_tensor(ROW)).logits[0])
    return held(plain, their_logits(adapted(lib, 0.0), asked(lib, KIND, ROW))[0])


def formula(lib):
    """An open gate: their softmax is in float32, and what it gives is added behind c_proj."""
    model = adapted(lib)
    return held(by_hand(lib, model, inside=False), their_logits(model, asked(lib, KIND, ROW))[0], SINGLE)


def paper(lib):
    """The same with the paper's order: joined with the heads, before the output projection."""
    model = adapted(lib)
    words = "for GPT-2 what the prompts give is added behind c_proj, in the paper before it; a port must choose"
    theirs = their_logits(model, asked(lib, KIND, ROW))[0]
    return held(by_hand(lib, model, inside=True), theirs, SINGLE, CONVENTION, words)


def cached(lib):
    """Greedy text with and without their cache; "ours" is theirs without."""
    model = adapted(lib)
    (texts, plain), (with_cache, logits) = (their_text(lib, model, KIND, ROW, use_cache=use) for use in (False, True))
    return held(plain[0], logits[0], EXACT if texts == with_cache else 0.0)


def saved_and_loaded(lib):
    """Logits of the loaded adapter; "ours" are those before it was saved."""
    model = adapted(lib)
    with saved(model) as folder:
        theirs = their_logits(loaded(lib, folder), asked(lib, KIND, ROW))
    return held(their_logits(model, asked(lib, KIND, ROW)), theirs, SINGLE)
