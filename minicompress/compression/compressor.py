"""A trained compressor: learned once from many contexts, then one forward pass for each new one."""

import json
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from minicompress.compression.segments import METHODS, each_state
from minicompress.prompts.carriers import DOORS, placed
from minicompress.prompts.initialise import from_noise
from minicompress.prompts.low_rank_weights import adapt, init
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.checkpoints import load_arrays, save_arrays
from minicompress.trees import flatten, tree_map, unflatten

FORMAT = "minicompress compressor 1"


def weights_of(raw, base, method):
    """raw -> the params that read tokens, and slots; those that read the rows; the cache of `adapt`."""
    if method.adapts == "all":
        return (raw["params"], raw["params"]), raw["params"], None
    adapted, cache = adapt(base, raw["low"])
    return (base if method.adapts == "slots" else adapted, adapted), base, cache


def begin(kind, pair, slots, rng, rank=16):
    """raw before the first step: slots around the vocabulary's mean (Gist: at it), weights as the model's."""
    params, _ = pair
    raw = {"slots": from_noise(params["wte"]["weight"], slots, rng)}
    if METHODS[kind].adapts == "all":
        return raw | {"params": tree_map(lambda x: x.copy(), params)}
    return raw | {"low": init(rng, params, rank)}


def door_of(method, segments, slots):
    """How the rows read a state of so many slots, left by these segments: where their first token stands."""
    if method.carrier == "embeddings":
        return DOORS["embeddings"]
    return placed(DOORS["kv"], start_after(method, map(len, segments), slots))


def start_after(method, lengths, slots):
    """Of kv: the position behind the longest segment, and behind its slots where these advance the counter."""
    return max(lengths) + slots * method.advances


@dataclass(frozen=True)
class Compressor:
    """`raw` {"slots" (K, C), and "params" or "low"}; a context is cut into segments of at most `segment` tokens."""

    kind: str
    raw: dict
    segment: int
    provenance: dict = field(default_factory=dict)

    @property
    def method(self):
        return METHODS[self.kind]

    @cached_property
    def slots(self):
        """K, how many slots a segment may leave."""
        return len(self.raw["slots"])

    def stream(self, pair, ids, slots=None):
        """ids, any iterable of token ids, however long -> the SoftPrompt after each segment.

        Of the states only the last is kept, so what overwrites, or takes the mean, never grows.
        """
        base, config = pair
        weights, _, _ = weights_of(self.raw, base, self.method)
        begins, longest, ids = self.raw["slots"][:slots], 0, iter(ids)
        segments = iter(lambda: list(islice(ids, self.segment)), [])
        for count, (state, segment, _) in enumerate(each_state(weights, config, self.method, begins, segments), 1):
            longest = max(longest, len(segment))
            yield self.prompt(state, longest, len(begins), count)

    def prompt(self, state, longest, slots, count):
        if self.method.carrier == "embeddings":
            return SoftPrompt(state, provenance=self.provenance | {"segments": count})
        offset = start_after(self.method, [longest], slots)
        return SoftPrompt(state, "kv", "logical", offset, provenance=self.provenance | {"segments": count})

    def compress(self, pair, ids, slots=None):
        """The SoftPrompt after the last segment. Raises ValueError for no token, or more slots than it has."""
        if slots is not None and not 1 <= slots <= self.slots:
            raise ValueError(f"the compressor leaves 1 to {self.slots} slots a segment, not {slots}")
        if not (last := deque(self.stream(pair, ids, slots), maxlen=1)):
            raise ValueError("the context has no token")
        return last.pop()

    def save(self, path):
        """One safetensors file of slots and thin matrices; where all weights were trained, they are a model's files."""
        arrays = {name: part for name, part in flatten(self.raw).items() if not name.startswith("params.")}
        facts = {"kind": self.kind, "segment": self.segment, "provenance": self.provenance}
        save_arrays(path, arrays, {"format": FORMAT, "facts": json.dumps(facts)})

    @classmethod
    def load(cls, path, params):
        """params: of the model that the compressor belongs to. Raises ValueError where the file holds no compressor."""
        try:
            arrays, metadata = load_arrays(path, FORMAT)
            facts = json.loads(metadata["facts"])
            own = {"params": params} if METHODS[facts["kind"]].adapts == "all" else {}
            return cls(facts["kind"], unflatten(arrays) | own, int(facts["segment"]), facts["provenance"])
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as reason:
            raise ValueError(f"{path} is not a compressor of this program: {reason}") from None
