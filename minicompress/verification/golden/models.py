"""The golden files of a whole GPT-2: traces behind every carrier, against every loss, at the edges; steps; decoding."""

from dataclasses import asdict, replace

import numpy as np

from minicompress.arrays import pad_rows
from minicompress.gpt2 import Config
from minicompress.gpt2.init import shapes
from minicompress.prompts.carriers import slots_shape, start_of
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations import kind_of, prefix_mlp
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.trees import flatten, tree_map, unflatten
from minicompress.verification.golden.case import Case
from minicompress.verification.golden.layers import TINY, V
from minicompress.verification.repeated import decoded, stepped
from minicompress.verification.trace import IGNORED, scored_rows, trace

SMALL = Config(vocab_size=V, n_positions=10, n_embd=4, n_layer=1, n_head=1, n_inner=5)
UNTIED = replace(SMALL, n_head=2, tie_word_embeddings=False)
ROWS = [[3, 1, 4, 1], [9, 2]]
LABELS = [[3, 1, IGNORED, 7], [9, 2]]
CONTEXT = [8, 0, 6, 2]


def weights(draw, config, name, scale=0.25, shift=0.0):
    """{name.h.0.…: array} of every weight, none of them special. shift: on one column of the head's own matrix."""
    found = {}
    for key, shape in shapes(config).items():
        around = float("ln_" in key and key.endswith("weight"))
        found[f"{name}.{key}"] = around + draw(*shape, scale=scale if len(shape) > 1 else 0.125)
    if shift:
        found[f"{name}.lm_head.weight"][:, 0] = shift
    return found


def slots(draw, config, carrier, P, masses, encoder, absent):
    """The prompt as `grad.prompt` is laid out, its log-masses; or the raw arrays that it is baked from."""
    if encoder:
        raw = prefix_mlp.init(np.random.default_rng(0), P, config.n_layer, config.n_embd, 3)
        return flatten(tree_map(lambda x: draw(*x.shape, scale=0.5), raw), "raw")
    given = draw(*slots_shape(carrier, config, P))
    found = {"prompt": flat_from_kv(given) if carrier == "kv" else given}
    if masses:
        found["prompt.beta"] = draw(config.n_layer, config.n_head, P)
    if absent:
        found["prompt.beta"][0, 0, 1:] = found["prompt.beta"][0, 1, 0] = -np.inf
    return found


def facts_of(config, carrier, positions, P, offset, temperature, extra):
    """What the answer depends on beside arrays; start: the position of a row's first token."""
    facts = asdict(config) | {"temperature": temperature, "carrier": carrier or "none"}
    if carrier:
        start = 0 if carrier == "in rows" else start_of(positions, P, offset)
        facts |= {"positions": positions if carrier != "in rows" else "in rows", "start": start, "slots": P}
    return facts | extra


def whole(proves, source="", run=None, carrier=None, config=TINY, rows=ROWS, labels=None, P=3, positions="compact",
          offset=None, masses=False, encoder=False, absent=False, context=None, teacher=False, temperature=1.0,
          scale=0.25, shift=0.0, float64=1e-12, float32=1e-4, **extra):  # fmt: skip
    """A case of a whole model. rows: ids, -1-j where slot j stands; labels: default the rows' tokens."""
    facts = facts_of(config, carrier, positions, P, offset, temperature, extra)

    def inputs(draw):
        found = weights(draw, config, "model", scale, shift)
        if carrier:
            kind = "embeddings" if carrier == "in rows" else carrier
            found |= slots(draw, config, kind, P, masses, encoder, absent)
        found |= {"tokens": pad_rows(rows), "lengths": np.array([len(row) for row in rows])}
        if run is not run_decode:
            model, given, stands, *_ = asked(found, facts)
            _, _, scored, targets = scored_rows(model, given, stands, labels)
            found["labels"] = np.where(scored, targets, IGNORED)
        found |= {"context": np.array(context)} if context else {}
        return found | (weights(draw, config, "teacher") if teacher else {})

    return Case(proves, source, inputs, run or run_trace, facts, float64, float32)


def asked(i, facts):
    """A file's inputs -> model, rows, prompt, labels, teacher, context, as `trace` takes them."""
    tree, config = unflatten({n: x for n, x in i.items() if "." in n}), Config(**{n: facts[n] for n in asdict(TINY)})
    cut = lambda name: [row[:n].tolist() for row, n in zip(i[name], i["lengths"], strict=True)]
    teacher = (tree["teacher"], config) if "teacher" in tree else None
    context = i["context"].tolist() if "context" in i else None
    labels = cut("labels") if "labels" in i else None
    return (tree["model"], config), cut("tokens"), prompt_of(i, tree, config, facts), labels, teacher, context


def prompt_of(i, tree, config, facts):
    if (carrier := facts["carrier"]) == "none":
        return None
    if carrier == "in rows":
        return SoftPrompt(i["prompt"], template=f"{{text}}[{facts['slots']}]")
    offset = facts["start"] if facts["positions"] == "logical" else None
    raw, given = tree.get("raw"), i.get("prompt")
    if raw:
        given = kind_of(raw, config)[0](raw)[0]
    elif carrier == "kv":
        given = kv_from_flat(given, config.n_layer, config.n_head)
    return SoftPrompt(given, carrier, facts["positions"], offset, i.get("prompt.beta"), raw=raw)


def run_trace(i, temperature, gradients="all", **facts):
    found = trace(*asked(i, facts), gradients, temperature)
    return {name: x for name, x in found.items() if name not in i}


def run_decode(i, tokens, **facts):
    model, rows, prompt, *_ = asked(i, facts)
    return decoded(model, rows, prompt, tokens)


def run_steps(i, steps, lr, beta1, beta2, eps, weight_decay, clip, temperature, **facts):
    rates = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, "clip": clip}
    return stepped(*asked(i, facts), steps=steps, **rates, temperature=temperature)


# The optimiser alone.


def run_adamw(i, lr, beta1, beta2, eps, weight_decay):
    """gradient.NAME (n, ...) holds the gradients of n steps."""
    params = {name.removeprefix("before."): x.copy() for name, x in i.items() if name.startswith("before.")}
    state = adamw_init(params)
    for step in range(len(i["gradient.bias"])):
        grads = {name: i[f"gradient.{name}"][step] for name in params}
        adamw_step(params, grads, state, lr, (beta1, beta2), eps, weight_decay)
    return flatten({"after": params, "adam.m": state["m"], "adam.v": state["v"]})


def run_clip(i, limit):
    grads = {name.removeprefix("gradient."): x.copy() for name, x in i.items()}
    norm = np.array(clip_by_global_norm(grads, limit), i["gradient.a"].dtype)
    return {"norm": norm} | {f"clipped.{name}": x for name, x in grads.items()}


def two_weights(draw):
    shapes = {"weight": (3, 4), "bias": (4,)}
    found = {f"before.{name}": draw(*shape) for name, shape in shapes.items()}
    return found | {f"gradient.{name}": draw(3, *shape) for name, shape in shapes.items()}


def two_gradients(draw):
    return {"gradient.a": draw(3, 4), "gradient.b": draw(4)}


ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
DECAY, CLIP = "Loshchilov & Hutter 2019", "Pascanu et al. 2013"
PREFIX, DEEP, LESTER = "Li & Liang 2021", "Liu et al. 2022", "Lester et al. 2021"
STEPS = {"steps": 3, "lr": 0.0625}
MODELS = {
    "gpt2-tied": whole("Every tensor and gradient of a GPT-2 whose head is its token embeddings, two ragged rows.",
        "Radford et al. 2019", labels=LABELS),
    "gpt2-untied": whole("Every tensor and gradient of a GPT-2 with a head of its own.", "Radford et al. 2019",
        config=UNTIED, labels=LABELS),
    "carrier-embeddings": whole("Slots run through all layers, and the last of them predicts each row's first token.",
        LESTER, carrier="embeddings", labels=LABELS),
    "carrier-embeddings-unshifted": whole("Slots as embeddings; tokens begin at position 0.", LESTER,
        carrier="embeddings", positions="unshifted", config=UNTIED, gradients="prompt"),
    "carrier-embeddings-logical": whole("Slots as embeddings; tokens begin at a position that is given.", LESTER,
        carrier="embeddings", positions="logical", offset=5, config=UNTIED, gradients="prompt"),
    "carrier-hidden": whole("Slots are put anew into the residual stream before every layer.", DEEP, carrier="hidden",
        labels=LABELS),
    "carrier-hidden-unshifted": whole("Slots as hidden states; tokens begin at position 0.", DEEP, carrier="hidden",
        positions="unshifted", config=UNTIED, gradients="prompt"),
    "carrier-hidden-logical": whole("Slots as hidden states; tokens begin at a position that is given.", DEEP,
        carrier="hidden", positions="logical", offset=5, config=UNTIED, gradients="prompt"),
    "carrier-kv": whole("Slots are the keys and values of every layer, given as PEFT's flat rows.", PREFIX,
        carrier="kv", labels=LABELS),
    "carrier-kv-unshifted": whole("Slots as keys and values; tokens begin at position 0.", PREFIX, carrier="kv",
        positions="unshifted", config=UNTIED, gradients="prompt"),
    "carrier-kv-logical": whole("Slots as keys and values; tokens begin at a position that is given.", PREFIX,
        carrier="kv", positions="logical", offset=5, config=UNTIED, gradients="prompt"),
    "carrier-kv-masses": whole("Each key of the prefix has a log-mass, which has a gradient too.", "", carrier="kv",
        masses=True, labels=LABELS, config=UNTIED),
    "carrier-in-rows": whole("Slots stand among the tokens: the id -1-j is slot j; one that stands twice gets both.",
        "Liu et al. 2021", carrier="in rows", rows=[[3, -1, 4, -3], [-2, 9, -1, 2]], config=UNTIED),
    "encoder-prefix-mlp": whole("The slots' gradient goes on into the MLP that makes them.", f"{PREFIX}, section 4.3",
        carrier="kv", encoder=True, config=UNTIED),
    "teacher-kl": whole("The loss is KL to the same model that has read a context and no slots.",
        "Wingate et al. 2022, equation 1", carrier="embeddings", context=CONTEXT, labels=LABELS, config=UNTIED),
    "teacher-kl-temperature": whole("KL to a teacher with a context, at temperature 2, times its square.",
        "Hinton et al. 2015, section 2.1", carrier="kv", context=CONTEXT, temperature=2.0, config=UNTIED),
    "teacher-kl-other": whole("The teacher is another model; its distribution is a constant.", "Hinton et al. 2015",
        carrier="kv", context=CONTEXT, teacher=True, config=UNTIED),
    "edge-one-token": whole("One row of one token, which the only slot predicts.", "", carrier="embeddings", rows=[[5]],
        P=1, labels=[[7]], config=SMALL),
    "edge-one-slot": whole("A prefix of one key and value a layer.", "", carrier="kv", P=1, config=UNTIED),
    "edge-one-layer": whole("One layer, no prompt.", "", config=UNTIED),
    "edge-one-head": whole("One head as wide as the model.", "", carrier="embeddings", config=SMALL),
    "edge-full-positions": whole("Slots and tokens take every position of the model: P + T = n_positions.", "",
        carrier="embeddings", P=4, rows=[[3, 1, 4, 1, 5, 9], [6]], config=SMALL),
    "edge-one-label": whole("All labels but one are ignored: the mean is over one place.", "", carrier="kv",
        labels=[[IGNORED] * 4, [IGNORED, 2]], config=UNTIED),
    "edge-extreme-logits": whole("Logits all above 1000, or below -1000: a naive softmax overflows, or is 0 / 0.", "",
        config=UNTIED, rows=[[1, 2, 3, 4], [5, 6]], shift=2048.0, float64=1e-10, float32=1e-2),
    "edge-repeated-tokens": whole("One token over and over: its embedding's gradient is the sum over its places.", "",
        rows=[[4, 4, 4, 4], [4, 4]], config=SMALL),
    "edge-absent-slots": whole("β = -∞ on some heads' slots: as if these were not there, and without a gradient.", "",
        carrier="kv", masses=True, absent=True, config=UNTIED),
    "step-adamw": Case("Three steps: decay is decoupled and spares vectors, moments are corrected for their start.",
        DECAY, two_weights, run_adamw, ADAM | {"lr": 0.0625}),
    "step-clip": Case("Clipping scales all gradients by one factor, to the joint length allowed.", CLIP,
        two_gradients, run_clip, {"limit": 1.0}),
    "step-clip-not-needed": Case("Gradients shorter than the limit stay as they are.", CLIP,
        two_gradients, run_clip, {"limit": 100.0}),
    "step-prompt": whole("Three steps of AdamW on a prefix, clipped: the losses on the way, and where they lead.",
        DECAY, run_steps, "kv", **STEPS, **ADAM, clip=0.1875, config=UNTIED),
    "step-model": whole("Three steps of AdamW on all weights; eps is large, since a key's bias has a gradient of 0.",
        DECAY, run_steps, **STEPS, **ADAM | {"eps": 2.0**-10}, clip=1.0, config=UNTIED),
    "decode-greedy": whole("Two ragged rows continued by their likeliest tokens, with a cache.", "", run_decode,
        config=UNTIED, scale=1.0, tokens=6),
    "decode-behind-a-prompt": whole("Two ragged rows continued behind slots.", "", run_decode, "embeddings",
        config=UNTIED, scale=1.0, tokens=3),
}  # fmt: skip
