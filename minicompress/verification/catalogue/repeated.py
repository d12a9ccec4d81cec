"""What goes wrong where a pass is repeated: in decoding with a cache, and in the optimiser."""

from dataclasses import replace

import numpy as np

from minicompress.verification.catalogue.bug import Bug, in_front, where
from minicompress.verification.plain.forward import Way, causal
from minicompress.verification.plain.steps import Optimiser

kept_moving = lambda setup: setup.steps is not None
continued = lambda setup: setup.decode > 0


def late(change):
    """Positions of the tokens that the model has written: change(position, layout), (B, T)."""

    def positions(layout):
        where_each = layout.start + np.arange(layout.T)[None] + 0 * layout.lengths[:, None]
        new = np.arange(layout.T) >= layout.lengths[:, None] - layout.written
        return np.where(new, change(where_each, layout), where_each)

    return Way(positions=positions)


def cache_positions(setup, evidence):
    longest = max(map(len, setup.rows))
    ways = {f"{by:+d}": late(lambda where_each, layout, by=by: where_each + by) for by in (1, -1, 2)}
    ways["all at one place"] = late(lambda w, layout: layout.start + (layout.lengths - layout.written)[:, None] + 0 * w)
    ways["all at the place before"] = late(
        lambda w, layout: layout.start + (layout.lengths - layout.written)[:, None] - 1 + 0 * w
    )
    ways["all at 0"] = late(lambda w, layout: 0 * w)
    ways["from 0"] = late(lambda w, layout: w - layout.start - (layout.lengths - layout.written)[:, None])
    ways["behind the longest row"] = late(lambda w, layout: w + (longest - (layout.lengths - layout.written))[:, None])
    if setup.prompt is not None and setup.prompt.length:
        P = setup.prompt.length
        ways["without the slots"] = late(lambda w, layout: w - P)
        ways["with the slots twice"] = late(lambda w, layout: w + P)
    return ways


def written_mask(change):
    """The causal mask, changed for what the model has written: change(seen, new_query, new_key, q, k, layout)."""

    def mask(layout):
        column = np.arange(layout.P + layout.T)
        first_new = (layout.P + layout.lengths - layout.written)[:, None, None]
        q, k = column[:, None], column[None]
        return change(causal(layout), q >= first_new, k >= first_new, q, k, layout)

    return Way(mask=mask)


def second(query, layout):
    """Whether a query is a token that the model has written, behind the first."""
    return query > (layout.P + layout.lengths - layout.written)[:, None, None]


STALE = {
    "of the rows before": Way(left_over=True),
    "the last token alone, from the second on": written_mask(
        lambda seen, nq, nk, q, k, layout: seen & (~second(q, layout) | (q - k <= 1))
    ),
    "the new tokens alone, from the second on": written_mask(
        lambda seen, nq, nk, q, k, layout: seen & (~second(q, layout) | nk)
    ),
    "new keys are never kept": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | ~nk | (q == k))),
    "only the new token's keys are kept": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | nk)),
    "the last key is overwritten": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | ~nk | (q - k <= 1))),
    "the newest is not there yet": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k != q - 1))),
    "the token does not see itself": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k != q))),
}
DROPPED = {
    "behind the first token": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k >= layout.P))),
}


def stale(setup, evidence):
    """The fixed ways, and those with keys of padding, for rows of unequal length."""
    gaps = np.array([[max(map(len, setup.rows)) - len(row)] for row in setup.rows])
    if not gaps.any():
        return STALE
    own = late(lambda w, layout: w - gaps)
    kept = {"padding's keys are seen": replace(own, keeps_padding=True)}
    return STALE | kept | {"padding's keys are seen, positions run over it": Way(keeps_padding=True)}


def decays(coupled):
    def ways(setup, evidence):
        asked = setup.steps.get("weight_decay", 0.0)
        tries = {0.1, 0.01, 0.001, 0.05, 1e-4, 0.0} - {asked}
        found = {
            f"{decay:g}": Optimiser(decay=decay, coupled=coupled) for decay in sorted(tries) if decay or not coupled
        }
        return found | ({f"{asked:g}": Optimiser(coupled=True)} if coupled and asked else {})

    return ways


BUGS = [
    Bug(
        "cache-position-off",
        "new tokens stand at wrong positions when a cache is used",
        "decoding",
        "decoded_logits agree at the first token, differ from the second on",
        "a new token's position is the number of positions before it: the slots, the row, what was written",
        where(continued, cache_positions),
    ),
    Bug(
        "cache-stale",
        "the cache misses new keys and values, or holds those of another text",
        "decoding",
        "decoded_logits agree at the first token, differ later",
        "append every step's keys and values; begin each text with an empty cache",
        where(continued, stale),
    ),
    Bug(
        "prompt-lost-in-decoding",
        "the prompt is dropped behind the first new token",
        "decoding",
        "decoded_logits agree at the first token, differ from the second on",
        "the slots' keys and values stay in the cache",
        where(lambda s: continued(s) and in_front(s), lambda s, e: DROPPED),
    ),
    Bug(
        "adamw-decays-prompt",
        "weight decay pulls the prompt towards zero",
        "steps",
        "the gradients agree, after.* is smaller",
        "put the prompt into a parameter group with weight_decay=0: AdamW's default is 0.01",
        where(kept_moving, decays(False)),
    ),
    Bug(
        "decay-as-l2",
        "decay is added to the gradient, not taken off the weights",
        "steps",
        "the gradients agree, adam.m and after.* differ",
        "AdamW, not Adam(weight_decay=...)",
        where(kept_moving, decays(True)),
    ),
    Bug(
        "clipped-per-tensor",
        "each tensor's gradient is clipped by itself",
        "steps",
        "the gradients agree, adam.m differs by a factor a tensor",
        "one norm over all of them: clip_grad_norm_(all parameters)",
        where(
            lambda s: kept_moving(s) and s.steps.get("clip"),
            lambda s, e: {
                "each": Optimiser(clip="each"),
                "layer by layer": Optimiser(clip="by layer"),
                "each, also shorter ones": Optimiser(clip="always"),
                "number by number": Optimiser(clip="by number"),
            },
        ),
    ),
    Bug(
        "clip-missing",
        "gradients are not clipped",
        "steps",
        "the gradients agree, adam.m is longer",
        "clip between backward and step",
        where(lambda s: kept_moving(s) and s.steps.get("clip"), lambda s, e: {"": Optimiser(clip="never")}),
    ),
    Bug(
        "clip-as-pytorch",
        "clipping divides by the norm + 1e-6",
        "steps",
        "the gradients agree, adam.m is shorter by 1e-6 over the norm",
        "a convention: torch.nn.utils.clip_grad_norm_ does so",
        where(lambda s: kept_moving(s) and s.steps.get("clip"), lambda s, e: {"": Optimiser(clip="as PyTorch")}),
        convention=lambda setup: True,
    ),
    Bug(
        "gradients-not-zeroed",
        "gradients of earlier steps are still there",
        "steps",
        "the first step agrees, the second does not",
        "zero_grad() before each backward",
        where(lambda s: kept_moving(s) and s.steps.get("steps", 1) > 1, lambda s, e: {"": Optimiser(zeroed=False)}),
    ),
    Bug(
        "adam-without-bias-correction",
        "Adam's moments are not corrected for their beginning at zero",
        "steps",
        "adam.m and adam.v agree, after.* does not",
        "divide m by 1 - β1^t, v by 1 - β2^t",
        where(
            kept_moving,
            lambda s, e: {
                "both": Optimiser(corrected=(False, False)),
                "m": Optimiser(corrected=(False, True)),
                "v": Optimiser(corrected=(True, False)),
                "counted from 2": Optimiser(late=1),
            },
        ),
    ),
    Bug(
        "adam-eps-inside-root",
        "Adam's ε stands inside the root",
        "steps",
        "adam.m and adam.v agree, after.* differs a little",
        "√v̂ + ε",
        where(kept_moving, lambda s, e: {"": Optimiser(inside=True)}),
    ),
]
