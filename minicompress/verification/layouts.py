"""One layout for every tensor, however an implementation lays it out.

A layout is never asked for, but found: of all the ways in which an array's shape can become the reference's
(transposed, batch second, slots' rows in front, padding on the left, a padded vocabulary), the one that brings it
nearest is taken, and named.
"""

from typing import NamedTuple

import numpy as np

from minicompress.prompts.layout import flat_from_kv

OF_TOKENS = ("hidden.", "ln_", "query.", "attention.", "attended.", "middle.", "fc.", "gelu.", "logits", "losses",
             "teacher_log_probs", "grad.hidden.", "grad.ln_f", "key.", "value.")  # fmt: skip
NEAR = 1e-3  # relative: no other layout is looked for
CLEARLY = 0.5  # another layout is taken where it brings a tensor this much nearer
WEIGHTS_OF = ("grad.model.", "after.", "adam.")


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


def fit(tensor, wanted, shape, name):
    """The tensor in the wanted layout, of all that its shape allows the nearest, and how it was read ("": as it is)."""
    if tensor.shape == wanted.shape and distance_of(tensor, wanted) <= NEAR * np.linalg.norm(finite(wanted)):
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
    """‖a - b‖, with 0 for what is not finite."""
    return np.linalg.norm(finite(tensor) - finite(wanted))


def finite(x):
    """x with 0 for what is not finite."""
    return np.nan_to_num(x, posinf=0, neginf=0)


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
