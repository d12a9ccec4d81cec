"""A soft prompt: a few vectors that stand before a text, or among its tokens, and where they came from."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from minicompress.arrays import array_module
from minicompress.prompts.carriers import DOORS, IN_ROWS, cut, placed, slots_shape, start_of
from minicompress.prompts.template import parse
from minicompress.training.checkpoints import load_arrays, save_arrays
from minicompress.trees import flatten, unflatten

FORMAT = "minicompress soft prompt 1"
SLOT_AXIS = {"embeddings": 0, "hidden": 1, "kv": 3}


@dataclass(frozen=True)
class SoftPrompt:
    """Slots of one carrier; everything that decides what the model makes of them."""

    slots: Any  # embeddings (P, C), hidden (L, P, C) or kv (L, 2, H, P, D)
    carrier: str = "embeddings"
    positions: str = "compact"  # where tokens begin: after the slots, at 0 (unshifted), at `offset` (logical)
    offset: int | None = None
    beta: Any = None  # (L, H, P): log-mass of each key, of the carrier kv
    template: str | None = None  # the rows' pattern; embeddings stand where it places slots, else in front
    raw: dict | None = None  # what a parameterisation trained, to go on from; `slots` are what it bakes to
    initial: Any = None  # the slots before the first step, of the same shape; None where nobody kept them
    provenance: dict = field(default_factory=dict)  # the model's hash, the recipe, the seed

    @property
    def length(self):
        """P."""
        return self.slots.shape[SLOT_AXIS[self.carrier]]

    def first(self, slots):
        """The first of its slots, as they are worth something where it was trained for that.

        Raises ValueError where it has not so many.
        """
        if not 1 <= slots <= self.length:
            raise ValueError(f"the prompt has {self.length} slots; the first {slots} cannot be had of it")
        beta = None if self.beta is None else self.beta[..., :slots]
        initial = None if self.initial is None else cut(self.initial, slots)
        return replace(self, slots=cut(self.slots, slots), beta=beta, initial=initial, raw=None)

    @cached_property
    def in_rows(self):
        """Whether the rows themselves place the slots, as the template says."""
        return self.template is not None and parse(self.template).places_slots

    @property
    def start(self):
        """The position of a row's first token: behind the slots, or 0 where the row itself places them."""
        return 0 if self.in_rows else start_of(self.positions, self.length, self.offset)

    @property
    def tree(self):
        """The slots as their door takes them."""
        return self.slots if self.beta is None else {"slots": self.slots, "beta": self.beta}

    @property
    def door(self):
        """How the model reads them."""
        return IN_ROWS if self.in_rows else placed(DOORS[self.carrier], self.start)

    def prefix(self, params, config):
        """The Prefix that this prompt is for a model."""
        return self.door.read(params, config, self.tree)[0]

    def save(self, path):
        """One safetensors file: tensors named after the carrier, `beta`, `initial`, `raw.…`; the rest is metadata."""
        metadata = {"format": FORMAT, "carrier": self.carrier, "positions": self.positions}
        metadata |= {"provenance": json.dumps(self.provenance)}
        metadata |= {"offset": str(self.offset)} if self.offset is not None else {}
        metadata |= {"template": self.template} if self.template else {}
        arrays = {self.carrier: self.slots} | ({} if self.beta is None else {"beta": self.beta})
        arrays |= {} if self.initial is None else {"initial": self.initial}
        save_arrays(path, arrays | (flatten(self.raw, "raw") if self.raw else {}), metadata)

    @classmethod
    def load(cls, path):
        """Raises ValueError where the file is not a soft prompt, or of a kind this version does not know."""
        try:
            tensors, metadata = load_arrays(path, FORMAT)
            if (carrier := metadata["carrier"]) not in DOORS:
                raise ValueError(f"carrier {carrier!r} is not known here; {', '.join(DOORS)} are")
            if not isinstance(provenance := json.loads(metadata["provenance"]), dict):
                raise ValueError("its provenance is no JSON object")
            offset, raw = metadata.get("offset"), {n: x for n, x in tensors.items() if n.startswith("raw.")}
            prompt = cls(tensors[carrier], carrier, metadata["positions"], offset and int(offset), tensors.get("beta"),
                         metadata.get("template"), unflatten(raw)["raw"] if raw else None, tensors.get("initial"),
                         provenance)  # fmt: skip
            prompt.check()
            return prompt
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as reason:
            raise ValueError(f"{path} is not a soft prompt of this program: {reason}") from None

    def check_model(self, config, name="the prompt"):
        """Raises ValueError where this prompt is not of the model's size, or leaves no position for a token."""
        if (wanted := slots_shape(self.carrier, config, self.length)) != self.slots.shape:
            found = list(self.slots.shape)
            raise ValueError(f"{name}: its {self.carrier} are {found}; this model needs {list(wanted)}")
        room, P = config.n_positions, self.length
        if self.carrier == "embeddings" and max(room, self.start) < P:
            raise ValueError(f"{name}: n_positions is {room:,}; {P:,} slots need {P:,}")
        if (need := self.start + 1) > room:
            words = f"{P:,} slots and a token from position {self.start:,} on need {need:,}"
            raise ValueError(f"{name}: n_positions is {room:,}; {words}")

    def check(self):
        """Raises ValueError where the parts do not belong together."""
        axes = {"embeddings": "P, C", "hidden": "L, P, C", "kv": "L, 2, H, P, D"}[self.carrier]
        shape = self.slots.shape
        if len(shape) != axes.count(",") + 1 or not self.slots.size or not np.isfinite(self.slots).all():
            raise ValueError(f"its slots have shape {list(shape)}; finite numbers ({axes}) are needed")
        if self.start < 0:
            raise ValueError(f"its offset is {self.offset}; positions begin at 0")
        if self.beta is not None:
            wanted = shape[:1] + shape[2:4]
            if self.carrier != "kv" or self.beta.shape != wanted or not (self.beta < np.inf).all():
                raise ValueError(f"its beta has shape {list(self.beta.shape)}; the carrier kv takes (L, H, P), below ∞")
        if self.initial is not None and (self.initial.shape != shape or not np.isfinite(self.initial).all()):
            raise ValueError(f"its initial slots have shape {list(self.initial.shape)}; finite {list(shape)} is needed")
        if self.in_rows and self.carrier != "embeddings":
            raise ValueError(f"its template places embeddings, and its carrier is {self.carrier}")


def concatenate(prompts):
    """Several prompts of one carrier in a row, as one; it keeps no provenance but theirs.

    Embeddings then see those of the prompts before them, and stand at later positions than alone; hidden
    states and keys and values do not. Logical tokens stand behind the longest of the contexts. Raises ValueError
    where the prompts are not of one kind.
    """
    first, *others = prompts
    if not others:
        return first
    kinds = {(p.carrier, p.positions) for p in prompts}
    if len(kinds) > 1 or any(p.template for p in prompts):
        words = ", ".join(f"{p.carrier} ({'template' if p.template else p.positions})" for p in prompts)
        raise ValueError(f"prompts in a row must be of one carrier and one kind of positions; these are {words}")
    xp, beta = array_module(first.slots), None
    if any(p.beta is not None for p in prompts):
        zeros = lambda p: xp.zeros_like(p.slots[:, 0, ..., 0])
        beta = xp.concatenate([zeros(p) if p.beta is None else p.beta for p in prompts], axis=-1)
    slots = xp.concatenate([p.slots for p in prompts], axis=SLOT_AXIS[first.carrier])
    parts = {"model": first.provenance.get("model"), "parts": [p.provenance for p in prompts]}
    offset = None if first.offset is None else max(p.offset for p in prompts)
    return SoftPrompt(slots, first.carrier, first.positions, offset, beta, provenance=parts)


def text_hash(text):
    """16 hexadecimal digits that tell one text from another."""
    return bytes_hash(text.encode())


def bytes_hash(raw):
    """16 hexadecimal digits that tell some bytes from others."""
    return hashlib.sha256(raw).hexdigest()[:16]
