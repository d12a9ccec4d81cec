"""Low-rank weights (LoRA): not slots before the rows, but a thin product added to some weights of the model.

A second object beside the SoftPrompt, made of the same nested dicts: for each adapted weight its `a` and
`b`, under the weight's own name. As a compressed context it stands nowhere and takes no position.
"""

import json
import math
from dataclasses import dataclass, field

from minicompress.arrays import array_module, like
from minicompress.gpt2.prefix import Prefix
from minicompress.layers.lora import lora, lora_backward
from minicompress.training.checkpoints import load_arrays, save_arrays
from minicompress.trees import flatten, unflatten

LORA = "lora"  # the carrier's name
FORMAT = "minicompress low-rank weights 1"
TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # the weights of a block
ALPHA = 16  # the product is scaled by ALPHA / r, so that a good learning rate hardly depends on r


def init(rng, params, rank, targets=("attn.c_attn",)):
    """a normal with variance 1/I and b zero (I, r), (r, O): the model begins as it was. Targets are some of TARGETS."""
    flat = flatten({"h": params["h"]})
    found = {}
    for name, weight in flat.items():
        if name.endswith(tuple(f"{target}.weight" for target in targets)):
            (inner, outer), stem = weight.shape, name.removesuffix(".weight")
            a = rng.standard_normal((inner, rank)) / math.sqrt(inner)
            found[f"{stem}.a"] = like(a.astype(weight.dtype), weight)
            found[f"{stem}.b"] = array_module(weight).zeros((rank, outer), weight.dtype)
    return unflatten(found)


def adapt(params, low, alpha=ALPHA):
    """params, and low-rank weights of some of them -> the adapted params, which share all other arrays; cache."""
    if "a" in low and "b" in low:
        weight, cache = lora(params["weight"], low["a"], low["b"], alpha / low["a"].shape[1])
        return params | {"weight": weight}, cache
    made = {name: adapt(params[name], part, alpha) for name, part in low.items()}
    return params | {n: p for n, (p, _) in made.items()}, {n: c for n, (_, c) in made.items()}


def adapt_backward(grads, caches):
    """grads of the adapted weights, a tree as `room_for` makes it -> a tree like the low-rank weights."""
    if isinstance(caches, tuple):
        da, db = lora_backward(grads["weight"], caches)
        return {"a": da, "b": db}
    return {name: adapt_backward(grads[name], cache) for name, cache in caches.items()}


def room_for(params, low):
    """Zeros for the gradients of the adapted weights alone: where nothing stands in this tree, nothing is formed."""
    if "a" in low and "b" in low:
        return {"weight": array_module(params["weight"]).zeros_like(params["weight"])}
    return {name: room_for(params[name], part) for name, part in low.items()}


@dataclass(frozen=True)
class LowRankWeights:
    """A context, or anything else, that has been distilled into a few thin matrices."""

    low: dict  # for each adapted weight {"a": (I, r), "b": (r, O)}, nested as the checkpoint names them
    alpha: float = ALPHA
    provenance: dict = field(default_factory=dict)

    @property
    def size(self):
        """How many numbers."""
        return sum(array.size for array in flatten(self.low).values())

    length, start, template = 0, 0, None  # as a SoftPrompt has them: it takes no position

    def slots_worth(self, config):
        """How many slots of keys and values have as many numbers; at least 1."""
        return max(1, round(self.size / (2 * config.n_layer * config.n_embd)))

    def prefix(self, params, config):
        """What stands before the rows: nothing."""
        return Prefix()

    def reader(self, params, config):
        """The pair (params, config) that the model has become."""
        return adapt(params, self.low, self.alpha)[0], config

    def save(self, path):
        """One safetensors file, its tensors named `h.0.attn.c_attn.a` and `.b`."""
        metadata = {"format": FORMAT, "alpha": str(self.alpha), "provenance": json.dumps(self.provenance)}
        save_arrays(path, flatten(self.low), metadata)

    @staticmethod
    def names(path):
        """Whether the file says that it holds low-rank weights."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                return (file.metadata() or {}).get("format") == FORMAT
        except (SafetensorError, OSError):
            return False

    @classmethod
    def load(cls, path):
        """Raises ValueError where the file does not hold low-rank weights."""
        try:
            low, metadata = load_arrays(path, FORMAT)
            return cls(unflatten(low), float(metadata["alpha"]), json.loads(metadata["provenance"]))
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as reason:
            raise ValueError(f"{path} does not hold low-rank weights of this program: {reason}") from None

    def check_model(self, config, name="the weights"):
        """Raises ValueError where a thin matrix does not fit the model's weight."""
        C, W = config.n_embd, config.width
        sizes = dict(zip(TARGETS, ((C, 3 * C), (C, C), (C, W), (W, C)), strict=True))
        for path, array in flatten(self.low).items():
            h, layer, part, weight, side = [*path.split("."), *[""] * 5][:5]
            size = sizes.get(f"{part}.{weight}")
            fits = h == "h" and layer.isdecimal() and int(layer) < config.n_layer and side in ("a", "b") and size
            if not fits or array.ndim != 2 or array.shape[side == "b"] != size[side == "b"]:
                raise ValueError(f"{name}: {path} {list(array.shape)} adapts no weight of this model")


def rank_at_equal_size(slots):
    """The rank at which c_attn's low-rank weights are as many numbers as the keys and values of so many slots.

    r L (C + 3C) = 2 L C P gives r = P / 2, at least 1.
    """
    return max(1, slots // 2)
