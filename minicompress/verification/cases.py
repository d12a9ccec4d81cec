"""Random models, prompts and rows, none of whose numbers is special: no zero bias, no LayerNorm weight of one."""

import numpy as np

from minicompress.gpt2 import init
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import tree_map

KINDS = ["embeddings", "embeddings, unshifted", "embeddings, logical", "hidden", "hidden, unshifted", "hidden, logical",
         "kv", "kv, unshifted", "kv, logical", "kv with masses", "kv with masses, logical", "in rows"]  # fmt: skip
OFFSET = 7


def random_params(config, rng, dtype=np.float64):
    """Weights of a config as a nested dict."""
    params = init(config, rng, np.float64, scale=0.3)
    return tree_map(lambda w: (w + 0.2 * rng.standard_normal(w.shape)).astype(dtype), params)


def random_prompt(kind, config, P, rng, dtype=np.float64, offset=OFFSET):
    """A SoftPrompt of P slots, of one of KINDS: its carrier, positions, log-masses, or a template that places it."""
    carrier, _, positions = kind.partition(", ")
    carrier, _, masses = carrier.partition(" with ")
    options = {"positions": positions or "compact", "offset": offset if positions == "logical" else None}
    if masses:
        options["beta"] = rng.standard_normal((config.n_layer, config.n_head, P)).astype(dtype)
    if carrier == "in rows":
        carrier, options = "embeddings", {"template": f"{{before}}[{P}]{{text}}"}
    slots = rng.standard_normal(slots_shape(carrier, config, P)).astype(dtype)
    return SoftPrompt(slots, carrier, **options)


def with_slots(rows, P, rng, fill=None):
    """Rows with slots -1 .. -P strewn among their tokens, in another order in each, one of them twice; or `fill`."""
    strewn = []
    for row in rows:
        row = list(row)
        for slot in [*rng.permutation(P), rng.integers(P)]:
            row.insert(rng.integers(len(row) + 1), -1 - int(slot) if fill is None else fill)
        strewn.append(row)
    return strewn
