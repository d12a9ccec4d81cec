"""One name and one layout for every tensor, whatever an implementation calls it and however it lays it out.

Names of Hugging Face, nanoGPT and llm.c are known; ours are the reference's. A layout is never asked for, but
found: of all the ways in which an array's shape can become the reference's (transposed, batch second, slots'
rows in front, padding on the left, a padded vocabulary), the one that brings it nearest is taken, and named.
"""

import re
from typing import NamedTuple

import numpy as np

from minicompress.prompts.layout import flat_from_kv

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


NEAR = 1e-3  # relative: no other layout is looked for
OF_TOKENS = ("hidden.", "ln_", "query.", "attention.", "attended.", "middle.", "fc.", "gelu.", "logits", "losses",
             "teacher_log_probs", "grad.hidden.", "grad.ln_f", "key.", "value.")  # fmt: skip
WEIGHTS_OF = ("grad.model.", "after.", "adam.")
CLEARLY = 0.5  # another layout is taken where it brings a tensor this much nearer


class Aligned(NamedTuple):
    tensors: dict  # under our names, in the reference's layout where that is possible
    notes: dict  # {name: how it was laid out}
    unknown: list  # names that are none of ours


def align(suspect, reference):
    """The suspect's tensors as the reference has them -> Aligned."""
    origin = {}
    named = joined(renamed(suspect, reference, origin), reference)
    shape = Shape.of(reference)
    if not padded_left(named, reference, shape):
        shape = shape._replace(lengths=None)
    tensors, notes = {}, {}
    for name, tensor in named.items():
        first = name.removeprefix("again.")
        if name not in reference and (first not in reference or first not in named):
            continue
        wanted = reference.get(name, reference.get(name.removeprefix("again.")))
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


def without_padding(name, tensor, wanted, reference):
    """The tensor with 0 where the reference's rows are over: there, nothing has to agree."""
    stream = next((reference[n] for n in ("hidden.0", "ln_f") if n in reference), None)
    name = name.removeprefix("again.")
    if stream is None or tensor.shape != wanted.shape or not name.startswith(OF_TOKENS):
        return tensor
    axis = 2 if tensor.ndim == 4 else 1
    real = stream.any(-1)  # (B, T)
    if name.startswith(("key.", "value.")):
        real = np.pad(real, [(0, 0), (tensor.shape[2] - real.shape[1], 0)], constant_values=True)  # the slots in front
    if tensor.shape[:1] + tensor.shape[axis : axis + 1] != real.shape:
        return tensor
    real = real[:, None, :, None] if axis == 2 else real.reshape(*real.shape, *[1] * (tensor.ndim - 2))
    return np.where(real, tensor, tensor.dtype.type(0))


def padded_left(named, reference, shape):
    """Whether the suspect's rows stand at the right ends: told by the first tensor that both have of every token."""
    name = next((n for n in ("hidden.0", "ln_1.0", "logits") if n in named and n in reference), None)
    return name is not None and "left padding" in fit(named[name], reference[name], shape, name)[1]


class Shape(NamedTuple):
    """B rows of T tokens behind P slots; how long each row is."""

    P: int
    T: int
    lengths: np.ndarray | None

    @classmethod
    def of(cls, reference):
        stream = next((reference[n] for n in ("hidden.0", "logits", "ln_f") if n in reference), None)
        T = stream.shape[1] if stream is not None and stream.ndim == 3 else 0
        attention = reference.get("attention.0")
        P = attention.shape[-1] - T if attention is not None else 0
        if not P and "first_logits" in reference and "prompt" in reference:
            P = len(reference["prompt"])
        return cls(P, T, stream.any(-1).sum(1) if T else None)


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


def joined(named, reference):
    """Fused queries, keys and values taken apart; weights that are split put together."""
    found = {}
    for name, tensor in named.items():
        if re.fullmatch(r"qkv\.\d+", name) and (query := reference.get(f"query.{name[4:]}")) is not None:
            H, D = query.shape[1], query.shape[3]
            if tensor.ndim == 3 and tensor.shape[-1] == 3 * H * D:
                parts = tensor.reshape(*tensor.shape[:2], 3, H, D).transpose(2, 0, 3, 1, 4)
                kinds = ("query", "key", "value")
                found |= {f"{kind}.{name[4:]}": part for kind, part in zip(kinds, parts, strict=True)}
                continue
        found[name] = tensor
    for name in [n for n in found if re.search(r"attn\.q(_proj|uery)?\.(weight|bias)$", n)]:
        called = ("query", "key", "value") if "attn.query" in name else "qkv"
        names = [name.replace(f"attn.{called[0]}", f"attn.{kind}") for kind in called]
        fused = re.sub(r"attn\.q(_proj|uery)?", "attn.c_attn", name)
        if all(n in found for n in names):
            parts = [found.pop(n) for n in names]
            found[fused] = np.concatenate(parts, axis=-1)
            wanted = reference.get(fused)
            if wanted is not None and wanted.ndim == 2 and nearest([p.T for p in parts], parts, wanted):
                found[fused] = np.concatenate([p.T for p in parts], axis=-1)
    return found


def nearest(one, other, wanted):
    """Whether the first list of parts, side by side, is nearer to what is wanted than the second."""
    joined = [np.concatenate(parts, axis=-1) for parts in (one, other)]
    if joined[0].shape != wanted.shape or joined[1].shape != wanted.shape:
        return joined[0].shape == wanted.shape
    return np.linalg.norm(joined[0] - wanted) < np.linalg.norm(joined[1] - wanted)


def fit(tensor, wanted, shape, name):
    """The tensor in the wanted layout, of all that its shape allows the nearest, and how it was read ("": as it is)."""
    if tensor.shape == wanted.shape and distance_of(tensor, wanted) <= NEAR * np.linalg.norm(wanted):
        return tensor, ""
    readings = {how: made for how, made in layouts(tensor, wanted, shape, name) if made.shape == wanted.shape}
    if not readings:
        return tensor, ""
    if "" in readings and len(readings) == 1:
        return readings[""], ""
    distance = {how: distance_of(made, wanted) for how, made in readings.items()}
    how = min(distance, key=distance.get)
    how = "" if "" in readings and distance[how] >= CLEARLY * distance[""] else how
    return readings[how], how


def distance_of(tensor, wanted):
    """‖a - b‖, of what is finite."""
    return np.linalg.norm(np.nan_to_num(tensor) - np.nan_to_num(wanted))


def layouts(tensor, wanted, shape, name):
    """(how, array) for the readings of a tensor that people use."""
    flat = name.startswith(WEIGHTS_OF)
    yield "", tensor
    if tensor.ndim == 2 and wanted.ndim == 2 and flat:
        yield "transposed", tensor.T
    if name.endswith("wte.weight") and tensor.shape[1:] == wanted.shape[1:] and len(tensor) > len(wanted):
        yield "without the vocabulary's padding", tensor[: len(wanted)]
    if tensor.ndim == 5 and wanted.ndim == 2 and tensor.shape[3] == len(wanted):
        yield "layer by layer", flat_from_kv(tensor)
    if flat or wanted.ndim < 2 or not shape.T:
        if wanted.ndim == 0 and tensor.size == 1:
            yield "", tensor.reshape(())
        return
    bases = [("", tensor)]
    if tensor.ndim == wanted.ndim - 1:
        bases.append(("one row", tensor[None]))
    if tensor.ndim == wanted.ndim and tensor.ndim >= 2:
        bases.append(("batch second", tensor.swapaxes(0, 1)))
    if tensor.ndim == 4 == wanted.ndim:
        bases.append(("heads behind tokens", tensor.swapaxes(1, 2)))
    if tensor.ndim == 3 and wanted.ndim == 4 and tensor.shape[-1] == wanted.shape[1] * wanted.shape[3]:
        split = tensor.reshape(*tensor.shape[:2], wanted.shape[1], wanted.shape[3]).swapaxes(1, 2)
        bases += [("heads side by side", split)]
    for how, base in bases:
        yield how, base
        yield from cut(how, base, wanted, shape)


def cut(how, base, wanted, shape):
    """The same without the slots' rows, without a padded vocabulary, or moved from left padding to right."""
    axis = 2 if wanted.ndim == 4 else 1
    name = lambda more: f"{how}, {more}".removeprefix(", ")
    if base.ndim != wanted.ndim:
        return
    if shape.P and base.ndim >= 2 and base.shape[axis] == wanted.shape[axis] + shape.P:
        base, how = np.moveaxis(np.moveaxis(base, axis, 0)[shape.P :], 0, axis), name("without the slots' rows")
        yield how, base
    if base.shape[:-1] == wanted.shape[:-1] and base.shape[-1] > wanted.shape[-1] and wanted.ndim == 3:
        base, how = base[..., : wanted.shape[-1]], name("without the vocabulary's padding")
        yield how, base
    if base.shape == wanted.shape and shape.lengths is not None and len(base) == len(shape.lengths):
        for along in [a for a in range(1, base.ndim) if wanted.shape[a] in (shape.T, shape.P + shape.T)][-2:]:
            base = moved_left(base, along, shape)
        yield name("moved from left padding"), base


def moved_left(x, axis, shape):
    """x with each row's tokens along an axis moved to the left, behind the slots where those stand there too."""
    out, slots = np.zeros_like(x), x.shape[axis] - shape.T
    for row, n in enumerate(shape.lengths):
        one, into = np.moveaxis(x[row], axis - 1, 0), np.moveaxis(out[row], axis - 1, 0)  # views
        into[:slots] = one[:slots]
        into[slots : slots + n] = one[slots + shape.T - n :]
    return out
