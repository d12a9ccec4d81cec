"""The golden files of one function each: layers, losses, and the maps from raw arrays to slots."""

from functools import partial

import numpy as np

from minicompress.gpt2 import Config
from minicompress.layers.activations import relu, relu_backward, tanh, tanh_backward
from minicompress.layers.attention import attention, attention_backward, softmax, softmax_backward
from minicompress.layers.divergences import (
    jensen_shannon,
    jensen_shannon_backward,
    reverse_kl,
    reverse_kl_backward,
    top_k_kl,
    top_k_kl_backward,
    top_k_renormalised_kl,
    top_k_renormalised_kl_backward,
    top_k_tail_kl,
    top_k_tail_kl_backward,
)
from minicompress.layers.embedding import embedding, embedding_backward
from minicompress.layers.gelu import gelu, gelu_backward
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.layers.linear import linear, linear_backward
from minicompress.layers.lora import lora, lora_backward
from minicompress.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    kl_divergence,
    kl_divergence_backward,
    log_softmax,
)
from minicompress.layers.lstm import lstm, lstm_backward
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.parameterisations import (
    cartridge,
    direct,
    kind_of,
    low_rank,
    prefix_mlp,
    ptuning_lstm,
    ptuning_mlp,
)
from minicompress.trees import flatten, tree_map, unflatten
from minicompress.verification.golden.case import Case

TINY = Config(vocab_size=11, n_positions=10, n_embd=6, n_layer=2, n_head=2, n_inner=8)
B, T, P, H, D, C, V = 2, 4, 3, 2, 3, 6, 11


def weighted(layer, layer_backward):
    """run of a layer with weights."""

    def run(i, **facts):
        params = {name: x for name, x in i.items() if name not in ("x", "dout")}
        grads = {name: np.zeros_like(x) for name, x in params.items()}
        out, cache = layer(i["x"], **params, **facts)
        dx = layer_backward(i["dout"], cache, grads)
        return {"out": out, "grad.x": dx} | {f"grad.{name}": grad for name, grad in grads.items()}

    return run


def plain(layer, layer_backward):
    """run of a layer without weights."""

    def run(i):
        out, cache = layer(i["x"])
        return {"out": out, "grad.x": layer_backward(i["dout"], cache)}

    return run


def run_embedding(i):
    out, cache = embedding(i["ids"], i["weight"])
    grads = {"weight": np.zeros_like(i["weight"])}
    embedding_backward(i["dout"], cache, grads)
    return {"out": out, "grad.weight": grads["weight"]}


def run_attention(i):
    names = [name for name in ("past_k", "past_v", "beta") if name in i]
    mask = i["key_mask"] == 1 if "key_mask" in i else None
    out, cache = attention(i["q"], i["k"], i["v"], tuple(i[name] for name in names) or None, mask)
    *grads, dpast = attention_backward(i["dout"], cache)
    return {"out": out} | {f"grad.{n}": g for n, g in zip((*"qkv", *names), (*grads, *(dpast or ())), strict=True)}


def run_lora(i, scale):
    out, cache = lora(i["weight"], i["a"], i["b"], scale)
    da, db = lora_backward(i["dout"], cache)
    return {"out": out, "grad.a": da, "grad.b": db}


def run_cross_entropy(i):
    out, cache = cross_entropy(i["logits"], i["targets"])
    return {"out": out, "grad.logits": cross_entropy_backward(i["dout"], cache)}


def run_divergence(i, temperature, forward, backward, **sizes):
    expected = log_softmax(i["teacher_logits"] / temperature)
    out, cache = forward(i["logits"], expected, temperature=temperature, **sizes)
    return {"teacher_log_probs": expected, "out": out, "grad.logits": backward(i["dout"], cache)}


def distilled(forward, backward):
    return partial(run_divergence, forward=forward, backward=backward)


run_kl = distilled(kl_divergence, kl_divergence_backward)


def run_bake(i, **facts):
    raw = unflatten({name: x for name, x in i.items() if name != "dslots"})["raw"]
    bake, bake_backward = kind_of(raw, TINY)
    slots, cache = bake(raw)
    return {"slots": slots} | flatten(bake_backward(i["dslots"], cache), "grad.raw")


# Inputs.


def normed(scale):
    return lambda draw: {"x": draw(B, T, C, scale=scale), "weight": draw(C), "bias": draw(C), "dout": draw(B, T, C)}


def bent(draw):
    """With one number at the corner of ReLU."""
    x = draw(B, T, C)
    x[0, 0, 0] = 0
    return {"x": x, "dout": draw(B, T, C)}


def looked_up(draw):
    ids = draw.below(5, B, T)
    ids[:, -1] = ids[0, 0]  # one row of the table serves several places
    return {"ids": ids, "weight": draw(5, C), "dout": draw(B, T, C)}


def heads(T=T, rows=None, P=P, masses=False, masked=False, shift=0.0):
    """rows: how many pasts, None for none. shift: of one number of each key; it moves all scores of a query alike."""

    def inputs(draw):
        found = {name: draw(B, H, T, D) for name in "qkv"}
        if rows:
            found |= {"past_k": draw(rows, H, P, D), "past_v": draw(rows, H, P, D)}
        if masses:
            found["beta"] = draw(rows, H, P)
        for name in ("k", "past_k"):
            if name in found:
                found[name][..., 0] += shift
        if masked:  # the first row sees all but one key of its past, the second none of it
            found["key_mask"] = np.ones((B, P + T), np.int64)
            found["key_mask"][0, 1] = found["key_mask"][1, :P] = 0
        return found | {"dout": draw(B, H, T, D)}

    return inputs


def shifted(draw, *shape):
    """Rows of logits: one about 1000, one about -1000, one with hundreds between its numbers, one as it is."""
    return draw(*shape) * np.array([1, 1, 256, 1.0])[:, None] + np.array([1000, -1000, 0, 0.0])[:, None]


def scored(teacher=False, drawn=lambda draw, *shape: draw(*shape)):
    def inputs(draw):
        against = {"teacher_logits": drawn(draw, 4, V)} if teacher else {"targets": draw.below(V, 4)}
        return {"logits": drawn(draw, 4, V)} | against | {"dout": draw(4)}

    return inputs


def recurrent(draw):
    h = 3
    shapes = {"weight_ih": (4 * h, C), "weight_hh": (4 * h, h), "bias_ih": (4 * h,), "bias_hh": (4 * h,)}
    params = {name: draw(*shape, scale=0.5) for name, shape in shapes.items()}
    return {"x": draw(B, T, C)} | params | {"dout": draw(B, T, h)}


def raw_of(module, *sizes, carrier=None, **options):
    """Raw arrays shaped as `init` makes them, from sizes or from slots of a carrier; and what is asked of the slots."""

    def inputs(draw):
        start = (np.zeros(slots_shape(carrier, TINY, P)),) if carrier else sizes
        raw = module.init(np.random.default_rng(0), *start, **options)
        raw = tree_map(lambda x: draw(*x.shape, scale=0.5), raw)
        return flatten(raw, "raw") | {"dslots": draw(*kind_of(raw, TINY)[0](raw)[0].shape)}

    return inputs


def bake(proves, source, inputs, **facts):
    return Case(proves, source, inputs, run_bake, facts)


ATTENTION, HINTON = "Vaswani et al. 2017, equation 1", "Hinton et al. 2015, section 2.1"
LAYERS = {
    "layer-embedding": Case("A row that is looked up in several places receives the sum of what they ask.", "",
        looked_up, run_embedding),
    "layer-linear": Case("out = x W + b with W stored (in, out): dx = dout Wᵀ, dW = xᵀ dout, db = Σ dout.", "",
        lambda draw: {"x": draw(B, T, C), "weight": draw(C, 5), "bias": draw(5), "dout": draw(B, T, 5)},
        weighted(linear, linear_backward)),
    "layer-linear-without-bias": Case("A linear layer without a bias.", "",
        lambda draw: {"x": draw(B, T, C), "weight": draw(C, 5), "dout": draw(B, T, 5)},
        weighted(linear, linear_backward)),
    "layer-layernorm": Case("LayerNorm's variance is the biased one, and eps stands inside the root.", "Ba et al. 2016",
        normed(1.0), weighted(layernorm, layernorm_backward), {"eps": 1e-5}),
    "layer-layernorm-small": Case("LayerNorm of an x so small that eps counts, in the backward too.",
        "Ba et al. 2016", normed(2.0**-8), weighted(layernorm, layernorm_backward), {"eps": 1e-5}),
    "layer-gelu": Case("GELU is the tanh form, not that of erf.", "Hendrycks & Gimpel 2016, section 2",
        lambda draw: {"x": draw(B, T, C, scale=2.0), "dout": draw(B, T, C)}, plain(gelu, gelu_backward)),
    "layer-relu": Case("ReLU, whose slope at 0 itself is 0.", "", bent, plain(relu, relu_backward)),
    "layer-tanh": Case("tanh, whose slope is 1 - tanh².", "", bent, plain(tanh, tanh_backward)),
    "layer-softmax": Case("A softmax's gradient is p (dp - Σ p dp).", "",
        lambda draw: {"x": draw(B, T, C), "dout": draw(B, T, C)}, plain(lambda x: (softmax(x),) * 2, softmax_backward)),
    "layer-softmax-extreme": Case("Numbers near ±1000: the maximum is taken off before exp, so none overflows.", "",
        lambda draw: {"x": shifted(draw, 4, C), "dout": draw(4, C)},
        plain(lambda x: (softmax(x),) * 2, softmax_backward)),
    "layer-attention": Case("Scores are scaled by 1/√D, and query t sees the keys 0..t.", ATTENTION,
        heads(), run_attention),
    "layer-attention-one-token": Case("One query, one key: the output is the value, neither q nor k has a gradient.",
        ATTENTION, heads(T=1), run_attention),
    "layer-attention-past": Case("P keys before the own ones are seen by every query; each row has its own.",
        ATTENTION, heads(rows=B), run_attention),
    "layer-attention-past-shared": Case("One past serves all rows, and its gradient is the sum over them.", ATTENTION,
        heads(rows=1), run_attention),
    "layer-attention-past-masses": Case("A log-mass β is added to a key's score: it counts as e^β equal keys.",
        ATTENTION, heads(rows=1, masses=True), run_attention),
    "layer-attention-one-query": Case("Decoding: one query sees the whole past and itself.", ATTENTION,
        heads(T=1, rows=B), run_attention),
    "layer-attention-key-mask": Case("Keys that a row must not see get no probability and no gradient.", ATTENTION,
        heads(rows=B, masked=True), run_attention),
    "layer-attention-extreme": Case("Scores of a query all near 1000, or -1000: the maximum is taken off before exp.",
        ATTENTION, heads(rows=B, shift=1024.0), run_attention, float64=1e-11, float32=1e-3),
    "layer-lora": Case("A frozen weight plus a scaled product of two thin ones: da = s dW bᵀ, db = s aᵀ dW.",
        "Hu et al. 2022, equation 3",
        lambda draw: {"weight": draw(C, 5), "a": draw(C, 2), "b": draw(2, 5), "dout": draw(C, 5)},
        run_lora, {"scale": 8.0}),
    "layer-lstm": Case("Gates lie in the order i, f, g, o, and two biases are added.",
        "Hochreiter & Schmidhuber 1997; Gers et al. 2000", recurrent, weighted(lstm, lstm_backward)),
    "layer-lstm-reverse": Case("From the last step to the first, and out[t] still belongs to x[t].",
        "Hochreiter & Schmidhuber 1997; Gers et al. 2000", recurrent,
        weighted(lstm, lstm_backward), {"reverse": True}),
    "loss-cross-entropy": Case("-log softmax(logits)[target] in nats, whose gradient is softmax - onehot.", "",
        scored(), run_cross_entropy),
    "loss-cross-entropy-extreme": Case("Cross-entropy of logits near ±1000: not the log of a softmax.", "",
        scored(drawn=shifted), run_cross_entropy),
    "loss-kl": Case("KL(teacher ‖ student), the teacher first; the gradient is student - teacher.", HINTON,
        scored(True), run_kl, {"temperature": 1.0}),
    "loss-kl-temperature": Case("Both sides at temperature 2, times its square, so that the gradient keeps its size.",
        HINTON, scored(True), run_kl, {"temperature": 2.0}),
    "loss-reverse-kl": Case("KL(student ‖ teacher), the student first.", "Agarwal et al. 2024",
        scored(True), distilled(reverse_kl, reverse_kl_backward), {"temperature": 2.0}),
    "loss-jensen-shannon": Case("Half of each side's KL to their mean.", "Agarwal et al. 2024",
        scored(True), distilled(jensen_shannon, jensen_shannon_backward), {"temperature": 2.0}),
    "loss-top-k": Case("KL over the teacher's three likeliest tokens, nothing renormalised.", "Eyuboglu et al. 2025",
        scored(True), distilled(top_k_kl, top_k_kl_backward), {"temperature": 2.0, "k": 3}),
    "loss-top-k-renormalised": Case("KL between both sides renormalised on the teacher's three likeliest tokens.", "",
        scored(True), distilled(top_k_renormalised_kl, top_k_renormalised_kl_backward), {"temperature": 2.0, "k": 3}),
    "loss-top-k-tail": Case("KL over three tokens and one bucket for all others: a lower bound of the whole.", "",
        scored(True), distilled(top_k_tail_kl, top_k_tail_kl_backward), {"temperature": 2.0, "k": 3}),
    "loss-kl-extreme": Case("KL at temperature 1/2 of logits near ±1000 on both sides.", HINTON,
        scored(True, shifted), run_kl, {"temperature": 0.5}),
    "bake-direct": bake("The slots themselves are trained.", "Lester et al. 2021",
        raw_of(direct, carrier="embeddings")),
    "bake-low-rank": bake("A base that stays, plus a product of two thin matrices.", "Xiao et al. 2023",
        raw_of(low_rank, carrier="embeddings", rank=2)),
    "bake-low-rank-hidden": bake("A low rank for hidden states: a product in each layer.", "Xiao et al. 2023",
        raw_of(low_rank, carrier="hidden", rank=2)),
    "bake-low-rank-kv": bake("A low rank for keys and values: one product over flat rows ((2l + kind) H + head) D + j.",
        "Xiao et al. 2023", raw_of(low_rank, carrier="kv", rank=2)),
    "bake-cartridge": bake("The first slot's keys and values stay, the others are trained.", "Eyuboglu et al. 2025",
        raw_of(cartridge, carrier="kv")),
    "bake-prefix-mlp": bake("Embedding, linear, tanh, linear, then keys and values by layer from flat rows.",
        "Li & Liang 2021, section 4.3", raw_of(prefix_mlp, P, TINY.n_layer, C, 5), n_layer=2, n_head=2),
    "bake-ptuning-mlp": bake("P-tuning's encoder as PEFT has it: three linear layers with ReLU between them.",
        "Liu et al. 2021", raw_of(ptuning_mlp, P, C, 5)),
    "bake-ptuning-lstm": bake("P-tuning's encoder as in its paper: two LSTM layers both ways, linear, ReLU, linear.",
        "Liu et al. 2021", raw_of(ptuning_lstm, P, C, 3)),
}  # fmt: skip
