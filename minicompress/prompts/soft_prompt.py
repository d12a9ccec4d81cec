"""A soft prompt: a few vectors that stand where token embeddings would, and where they came from."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicompress.training.checkpoints import save_arrays

FORMAT = "minicompress soft prompt 1"


@dataclass(frozen=True)
class SoftPrompt:
    """slots (P, C) for the carrier `embeddings`; provenance holds the model's hash, the recipe, the seed."""

    slots: Any
    carrier: str = "embeddings"
    positions: str = "compact"  # slots at 0..P-1, tokens after them
    provenance: dict = field(default_factory=dict)

    def save(self, path):
        """One safetensors file: a tensor named after the carrier, everything else in its metadata."""
        metadata = {"format": FORMAT, "carrier": self.carrier, "positions": self.positions}
        metadata["provenance"] = json.dumps(self.provenance)
        save_arrays(path, {self.carrier: self.slots}, metadata)

    @classmethod
    def load(cls, path):
        """Raises ValueError where the file is not a soft prompt, or of a kind this version does not know."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                carrier, placing = metadata["carrier"], metadata["positions"]
                if carrier != "embeddings" or placing != "compact":
                    raise ValueError(f"carrier {carrier!r} with positions {placing!r} is not known here")
                slots = file.get_tensor(carrier)
            if slots.ndim != 2 or not len(slots) or not np.isfinite(slots).all():
                raise ValueError(
                    f"its slots have shape {list(slots.shape)}; at least one row of finite numbers is needed"
                )
            if not isinstance(provenance := json.loads(metadata["provenance"]), dict):
                raise ValueError("its provenance is no JSON object")
            return cls(slots, carrier, placing, provenance)
        except (SafetensorError, KeyError, ValueError, TypeError) as reason:
            raise ValueError(f"{path} is not a soft prompt of this program: {reason}") from None


def text_hash(text):
    """16 hexadecimal digits that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
