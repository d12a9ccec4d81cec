"""One name for every tensor, whatever an implementation calls it.

Names of Hugging Face, nanoGPT and llm.c are known; ours are the reference's.
"""

import re
from typing import NamedTuple

import numpy as np

from minicompress.verification.layouts import WEIGHTS_OF, Shape, distance_of, fit, without_padding

WRAPPERS = r"module\.|_orig_mod\.|base_model\.model\.|base_model\.|transformer\.|model\.(?=transformer|h\.|w[tp]e|ln_f)"
IN_FRONT = re.compile(f"^(?:{WRAPPERS})+")
LLM_C = r"wte|wpe|ln[12f][wb]|qkv[wb]|attproj[wb]|fc[wb]|fcproj[wb]"
GRADIENT = re.compile(rf"^(?:grads?[./]|d(?=(?:{LLM_C})$))|[./]grad$")
WHOLE = {  # a name that is one tensor of ours
    "encoded": "hidden.0", "drop": "hidden.0", "lnf": "ln_f", "lm_head": "logits", "prompt_embeddings": "prompt",
    "prompt_encoder.default.embedding.weight": "prompt", "soft_prompt": "prompt", "loss_per_token": "losses",
    "mean_loss": "loss", "generated": "decoded", "virtual_tokens": "prompt",
}  # fmt: skip
BY_LAYER = [  # (pattern with the layer's number, our name)
    (r"hidden_states?\.(\d+)", "hidden.{}"), (r"attentions?\.(\d+)", "attention.{}"), (r"h\.(\d+)\.ln_1", "ln_1.{}"),
    (r"h\.(\d+)\.ln_2", "ln_2.{}"), (r"h\.(\d+)\.attn\.c_attn", "qkv.{}"), (r"h\.(\d+)\.mlp\.c_fc", "fc.{}"),
    (r"h\.(\d+)\.mlp\.(?:act|gelu)", "gelu.{}"), (r"h\.(\d+)\.attn\.q_proj", "query.{}"),
    (r"h\.(\d+)\.attn\.k_proj", "key.{}"), (r"h\.(\d+)\.attn\.v_proj", "value.{}"),
    (r"past_key_values\.(\d+)\.(?:0|key)", "key.{}"),
    (r"past_key_values\.(\d+)\.(?:1|value)", "value.{}"), (r"[qQ]\.(\d+)", "query.{}"), (r"[kK]\.(\d+)", "key.{}"),
    (r"[vV]\.(\d+)", "value.{}"),
]  # fmt: skip
STACKED = {  # llm.c: all layers in one array
    "ln1": "ln_1.{}", "qkv": "qkv.{}", "atty": "attended.{}", "att": "attention.{}", "residual2": "middle.{}",
    "ln2": "ln_2.{}", "fch": "fc.{}", "fch_gelu": "gelu.{}", "residual3": "hidden.{}+1",
}  # fmt: skip
WEIGHTS = {
    "ln1w": "h.{}.ln_1.weight", "ln1b": "h.{}.ln_1.bias", "qkvw": "h.{}.attn.c_attn.weight",
    "qkvb": "h.{}.attn.c_attn.bias", "attprojw": "h.{}.attn.c_proj.weight", "attprojb": "h.{}.attn.c_proj.bias",
    "ln2w": "h.{}.ln_2.weight",
    "ln2b": "h.{}.ln_2.bias", "fcw": "h.{}.mlp.c_fc.weight", "fcb": "h.{}.mlp.c_fc.bias",
    "fcprojw": "h.{}.mlp.c_proj.weight", "fcprojb": "h.{}.mlp.c_proj.bias", "lnfw": "ln_f.weight", "lnfb": "ln_f.bias",
    "wte": "wte.weight", "wpe": "wpe.weight",
}  # fmt: skip


KINDS = ("query", "key", "value")


class Aligned(NamedTuple):
    tensors: dict  # under our names, in the reference's layout where that is possible
    notes: dict  # {name: how it was laid out}
    unknown: list  # names that are none of ours


def align(suspect, reference):
    """The suspect's tensors as the reference has them -> Aligned."""
    origin = {}
    named = put_together(taken_apart(renamed(suspect, reference, origin), reference), reference)
    shape = Shape.of(reference)
    if not padded_left(named, reference, shape):
        shape = shape._replace(lengths=None)
    tensors, notes = {}, {}
    for name, tensor in named.items():
        first = name.removeprefix("again.")
        if name not in reference and (first not in reference or first not in named):
            continue
        wanted = reference.get(name, reference.get(first))
        tensors[name], notes[name] = fit(tensor, wanted, shape, name)
        tensors[name] = without_padding(name, tensors[name], wanted, reference)
    if "first_logits" in reference and "first_logits" not in tensors and shape.P:
        whole = named.get("logits")
        if whole is not None and whole.ndim == 3 and whole.shape[1] == shape.P + shape.T:
            tensors["first_logits"] = whole[:, shape.P - 1, : reference["logits"].shape[-1]]
    one_reading_of_squares(tensors, notes, named)
    unknown = sorted({origin.get(name, name) for name in set(named) - set(tensors)})
    return Aligned(tensors, {n: w for n, w in notes.items() if w}, unknown)


def one_reading_of_squares(tensors, notes, named):
    """A square weight may be turned only where the others are: alone, it is a mistake, and not a layout."""
    weights = [name for name in notes if name.startswith(WEIGHTS_OF) and tensors[name].ndim == 2]
    turned = {name: notes[name] == "transposed" for name in weights}
    clear = [is_turned for name, is_turned in turned.items() if len(set(tensors[name].shape)) == 2]
    if clear and not any(clear):
        for name, is_turned in turned.items():
            if is_turned:
                tensors[name], notes[name] = named[name], ""


def padded_left(named, reference, shape):
    """Whether the suspect's rows stand at the right ends: told by the first tensor that both have of every token."""
    name = next((n for n in ("hidden.0", "ln_1.0", "logits") if n in named and n in reference), None)
    return name is not None and "left padding" in fit(named[name], reference[name], shape, name)[1]


def renamed(suspect, reference, origin):
    """Our names; arrays that hold all layers taken apart. origin receives {our name: theirs}."""
    layers = sum(bool(re.fullmatch(r"hidden\.\d+", name)) for name in reference) - 1
    found = {}
    for name, tensor in suspect.items():
        if name in reference or name.removeprefix("again.") in reference:
            found[name] = tensor
            continue
        bare = IN_FRONT.sub("", name)
        is_gradient = bool(GRADIENT.search(bare))
        bare = IN_FRONT.sub("", GRADIENT.sub("", bare))
        is_weight = bare in WEIGHTS or bare.endswith((".weight", ".bias")) and bare not in WHOLE
        table = (WEIGHTS if is_weight else STACKED).get(bare)
        if table and "{}" in table and tensor.ndim:
            parts = {layer_name(table, layer): part for layer, part in enumerate(tensor)}
        else:
            parts = {(table or bare) if is_weight else one_name(bare, layers): tensor}
        start = ("grad.model." if is_weight else "grad.") if is_gradient else ""
        found |= {start + part: array for part, array in parts.items()}
        origin |= dict.fromkeys((start + part for part in parts), name)
    if "encoded" in suspect and "losses" in found and found["losses"].ndim == 2:  # llm.c's loss stands before its token
        found["losses"] = np.pad(found["losses"][:, :-1], [(0, 0), (1, 0)])
    return found


def layer_name(pattern, layer):
    return pattern.replace("{}+1", str(layer + 1)).replace("{}", str(layer))


def one_name(bare, layers):
    """Our name of an activation, or the name itself."""
    if bare in WHOLE:
        return WHOLE[bare]
    for pattern, ours in BY_LAYER:
        if match := re.fullmatch(pattern, bare):
            name = ours.format(match[1])
            return "ln_f" if bare.startswith("hidden_states") and name == f"hidden.{layers}" else name
    if match := re.fullmatch(r"h\.(\d+)", bare):
        return f"hidden.{int(match[1]) + 1}"
    return bare


def taken_apart(named, reference):
    """Queries, keys and values out of what c_attn gives."""
    found = {}
    for name, tensor in named.items():
        query = reference.get(f"query.{name[4:]}") if re.fullmatch(r"qkv\.\d+", name) else None
        if query is not None and tensor.ndim == 3 and tensor.shape[-1] == 3 * query.shape[1] * query.shape[3]:
            parts = tensor.reshape(*tensor.shape[:2], 3, query.shape[1], -1).transpose(2, 0, 3, 1, 4)
            found |= {f"{kind}.{name[4:]}": part for kind, part in zip(KINDS, parts, strict=True)}
        else:
            found[name] = tensor
    return found


def put_together(named, reference):
    """c_attn's weight and bias out of three, turned where that is nearer."""
    found = dict(named)
    for name in [n for n in named if re.search(r"attn\.q(_proj|uery)?\.(weight|bias)$", n)]:
        called = KINDS if "attn.query" in name else "qkv"
        names = [name.replace(f"attn.{called[0]}", f"attn.{kind}") for kind in called]
        if not all(n in found for n in names):
            continue
        parts, fused = [found.pop(n) for n in names], re.sub(r"attn\.q(_proj|uery)?", "attn.c_attn", name)
        readings = [np.concatenate(side, axis=-1) for side in (parts, [part.T for part in parts])]
        fitting = [whole for whole in readings if fused in reference and whole.shape == reference[fused].shape]
        found[fused] = min(fitting or readings[:1], key=lambda whole: distance_of(whole, reference.get(fused, whole)))
    return found


