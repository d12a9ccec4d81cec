"""Where a model in PyTorch has GPT-2's parts, and which of its parameters are which arrays of a trace.

Nothing of PyTorch is imported: a module is what has the attributes that are asked for.
"""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from minicompress.prompts.layout import flat_from_kv, kv_from_flat

GPT2 = {  # where Hugging Face's GPT-2 has them, and nanoGPT too; ln_1 .. mlp_proj inside each block
    "blocks": "transformer.h", "wte": "transformer.wte", "wpe": "transformer.wpe", "ln_f": "transformer.ln_f",
    "head": "lm_head", "ln_1": "ln_1", "c_attn": "attn.c_attn", "attn_proj": "attn.c_proj", "ln_2": "ln_2",
    "fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj",
}  # fmt: skip
HEADS = ("query", "key", "value")  # three parts that may stand in the place of c_attn
ENDS = ("wte", "wpe", "ln_f", "head")
INSIDE = ("ln_1", "attn_proj", "ln_2", "fc", "mlp_proj")


class Weight(NamedTuple):
    """An array of a trace: the parameters it is made of, and how they are laid out there."""

    params: list
    lay: Callable  # list of host arrays -> array

    def array(self, of):
        """The array of what `of` gives for each parameter, on the host."""
        return self.lay([host(of(p)) for p in self.params])


class Subject(NamedTuple):
    """A model, taken to pieces."""

    model: Any
    stack: Any  # its blocks
    blocks: list  # of each block {part: [module]}; under c_attn one module or three
    ends: dict  # {part: module}
    n_head: int
    encoder: Any  # PEFT's, or None
    prompt: Any  # the user's own tensor, or None
    weights: dict  # {name in a trace, without `grad.`: Weight}


def examine(model, names=None, n_head=None, prompt=None):
    """-> Subject. Raises ValueError with the part that is not there."""
    names = names or {}
    if unknown := set(names) - {*GPT2, *HEADS}:
        raise ValueError(f"names holds {', '.join(sorted(unknown))}; the parts are {', '.join([*GPT2, *HEADS])}")
    paths = {part: path for part, path in (GPT2 | names).items() if path}
    stack = found_at(model, paths, "blocks")
    blocks = [{part: [found_at(block, paths, part)] for part in INSIDE} for block in stack]
    for block, parts in zip(stack, blocks, strict=True):
        parts["c_attn"] = [found_at(block, paths, p) for p in (HEADS if set(HEADS) & set(names) else ["c_attn"])]
    ends = {part: found_at(model, paths, part) for part in ENDS if part in paths}
    H = n_head or getattr(getattr(model, "config", None), "n_head", None)
    if not H:
        raise ValueError("the model has no config.n_head; say how many heads: record(model, n_head=...)")
    adapters = getattr(model, "prompt_encoder", None)
    encoder = adapters[model.active_adapter] if adapters and model.active_adapter in adapters else None
    weights = model_weights(blocks, ends) | (encoder_weights(encoder, len(blocks), H) if encoder else {})
    if prompt is not None:
        weights["prompt"] = Weight([prompt], flat_rows)
    return Subject(model, stack, blocks, ends, H, encoder, prompt, weights)


def found_at(module, paths, part):
    """The module, or parameter, at the part's path. Raises ValueError where there is none."""
    try:
        return attrgetter(paths[part])(module)
    except (AttributeError, KeyError):
        where = f"{type(module).__name__} has no {paths.get(part)!r}, where its {part!r} should be"
        raise ValueError(f"{where}; say where it is: names={{{part!r}: ...}}") from None


def model_weights(blocks, ends):
    """Under the checkpoint's names, laid out as there; a head that is the embeddings themselves has none of its own."""
    found = {}
    for layer, parts in enumerate(blocks):
        for part, modules in parts.items():
            found |= weights_of(f"h.{layer}.{GPT2[part]}", modules, turn=True)
    for part, module in ends.items():
        if part != "head" or weight_of(module) is not weight_of(ends.get("wte")):
            found |= weights_of(GPT2[part].removeprefix("transformer."), [module], turn=False)
    return found


def weights_of(name, modules, turn):
    """{name: Weight} of weight and bias; turn: weights of linear layers, (out, in) in PyTorch, become (in, out)."""
    turns = [turn and hasattr(module, "out_features") for module in modules]
    weights, biases = map(weight_of, modules), [getattr(module, "bias", None) for module in modules]
    found = {f"model.{name}.weight": Weight([*weights], partial(side_by_side, turns=turns))}
    if all(bias is not None for bias in biases):
        found[f"model.{name}.bias"] = Weight(biases, partial(side_by_side, turns=[False] * len(biases)))
    return found


def weight_of(module):
    """A module's weight, or the parameter that stands in a module's place."""
    return getattr(module, "weight", module)


def side_by_side(arrays, turns):
    return np.concatenate([a.T if turn else a for a, turn in zip(arrays, turns, strict=True)], axis=-1)


def encoder_weights(encoder, n_layer, n_head):
    """Of PEFT's encoder, under this project's raw names; `prompt`, where it is the slots themselves."""
    named, found = dict(encoder.named_parameters()), {}
    if set(named) == {"embedding.weight"}:
        return {"prompt": Weight([named["embedding.weight"]], flat_rows)}
    for name, parameter in named.items():
        lay = lambda own: own[0]
        if name in ("frozen_embedding", "trainable_embedding"):  # a cartridge's, as flat rows
            name = "frozen" if name.startswith("frozen") else "slots"
            lay = lambda own: kv_from_flat(own[0], n_layer, n_head)
        elif name.startswith("lstm_head."):  # as lstm_head.weight_ih_l0_reverse
            kind, _, end = name.removeprefix("lstm_head.").rpartition("_l")
            layer, _, reverse = end.partition("_")
            name = f"lstm_head.{layer}.{reverse or 'onward'}.{kind}"
        elif name.startswith(("transform.", "mlp_head.")) and name.endswith("weight"):
            lay = lambda own: own[0].T
        found[f"raw.{name}"] = Weight([parameter], lay)
    return found


def flat_rows(own):
    """Slots as a trace lays them out: keys and values (L, 2, H, P, D) flat, and no leading axis of 1."""
    slots = own[0]
    return flat_from_kv(slots) if slots.ndim == 5 else slots.reshape(slots.shape[-2:]) if len(slots) == 1 else slots


def host(x):
    """A NumPy array of its own, of a tensor or of anything like an array; half precision becomes float32."""
    if not hasattr(x, "detach"):
        return np.array(x)
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() and x.element_size() == 2 else x).numpy().copy()
