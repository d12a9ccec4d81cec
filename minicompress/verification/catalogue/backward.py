"""What goes wrong in the backward, and in half precision."""

import numpy as np

from minicompress.trees import flatten
from minicompress.verification.catalogue.block import half
from minicompress.verification.catalogue.bug import Bug, in_front, where
from minicompress.verification.catalogue.chance import again
from minicompress.verification.plain.forward import Way
from minicompress.verification.plain.gelus import CUBE, erf_slope, tanh_slope

several = lambda setup: len(setup.rows) > 1


def detached(evidence):
    """Whether the reference has a gradient of the prompt, and the suspect has none."""
    ours = evidence.reference.get("grad.prompt")
    theirs = evidence.suspect.get("grad.prompt")
    gradients = [name for name in evidence.suspect if name.startswith("grad.")]
    early = evidence.first_stage != "backward"  # the prompt has another effect, or none, already before the loss
    if early or ours is None or not ours.any() or (theirs is None and not gradients):
        return 0.0
    return float(theirs is None or not theirs.any())


def cut_off(setup, evidence):
    """The slots are read once without a gradient, wholly, or but for the last one's own prediction."""
    ways = {
        "keys and values cut off": Way(reaches_slots=(False, False)),
        "keys cut off": Way(reaches_slots=(False, True)),
        "values cut off": Way(reaches_slots=(True, False)),
        "all cut off": Way(reaches_slots=(False, False), last_slot=False),
    }
    if setup.prompt.carrier != "embeddings" and setup.model[1].n_layer > 1:
        ways["behind the first block"] = Way(prompt_gradient=lambda d, rows: in_blocks(d.sum(0), slice(0, 1)))
        ways["in the first block"] = Way(prompt_gradient=lambda d, rows: in_blocks(d.sum(0), slice(1, None)))
    return ways if in_front(setup) else {}


def in_blocks(d, kept):
    """d (L, ...), 0 in all blocks but these."""
    out = np.zeros_like(d)
    out[kept] = d[kept]
    return out


def frozen_encoder(evidence):
    """Whether raw arrays of an encoder that should have a gradient have none, or stay where they were after steps."""
    if evidence.first_stage not in ("backward", "steps"):
        return 0.0
    raw = evidence.setup and evidence.setup.prompt and evidence.setup.prompt.raw
    for name, start in (flatten(raw, "after.raw") if raw else {}).items():
        theirs = evidence.suspect.get(name)
        if name in evidence.differing and theirs is not None and np.array_equal(theirs, start.astype(theirs.dtype)):
            return 1.0
    ours = {name: g for name, g in evidence.reference.items() if name.startswith("grad.raw.") and g.any()}
    lost = [name for name in ours if not np.any(evidence.suspect.get(name, 0))]
    seen = [name for name in evidence.suspect if name.startswith("grad.raw.")] or "grad.prompt" in evidence.suspect
    return float(bool(seen and lost)) if "grad.prompt" not in evidence.differing else 0.0


def in_half(evidence):
    """Whether the errors have the size of half precision's rounding, 2^-11 a number: the first, and all others."""
    small = lambda error: 3e-6 < error < 5e-2
    if evidence.first_stage == "loss":
        return 0.3 * float(small(evidence.first_error) and evidence.first_error < 3e-3)
    if evidence.first_stage not in ("front", "block", "head", "backward") or not small(evidence.first_error):
        return 0.0
    early = evidence.first_stage != "backward"
    if early and any(evidence.agrees(name) for name in ("hidden.1", "attention.1")):  # half of it was not rounded
        return 0.0
    if again(evidence):  # it is drawn, not rounded
        return 0.0
    errors = list(evidence.differing.values())
    return (0.3 + 0.3 * float(np.mean([small(error) for error in errors]) >= 0.9)) * float(max(errors) < 0.1)


BACKWARD = "loss and everything before it agree, "
BUGS = [
    Bug(
        "prompt-detached",
        "no gradient reaches the prompt",
        "backward",
        BACKWARD + "grad.prompt is zero or missing",
        "no detach(), no torch.no_grad(), no .data between the prompt and the model",
        where(lambda s: s.prompt is not None, cut_off),
        rule=detached,
    ),
    Bug(
        "encoder-frozen",
        "the encoder of the prompt is not trained",
        "backward",
        BACKWARD + "grad.raw.* is zero or missing, grad.prompt is right",
        "hand the encoder's weights to the optimiser, with requires_grad",
        rule=frozen_encoder,
    ),
    Bug(
        "eps-missing-in-backward",
        "LayerNorm's backward forgets ε",
        "backward",
        BACKWARD + "grad.hidden.l by about ε/σ²",
        "use the forward's own rstd",
        lambda s, e: {
            "in rstd": Way(norm_backward="no eps"),
            "in 1/σ": Way(norm_backward="no eps in 1/σ"),
            "in x̂ too": Way(norm_backward="no eps, recomputed"),
            "in the stretch": Way(norm_backward="no eps in the stretch"),
        },
    ),
    Bug(
        "layernorm-backward",
        "LayerNorm's backward forgets that mean and variance depend on x",
        "backward",
        BACKWARD + "grad.hidden.L differs widely",
        "dx = rstd (g - mean(g) - x̂ mean(g x̂))",
        lambda s, e: {"no means": Way(norm_backward="no means")},
    ),
    Bug(
        "softmax-backward",
        "softmax's backward forgets the sum",
        "backward",
        BACKWARD + "grad.hidden.L agrees, those below do not",
        "dx = p (dp - Σ p dp)",
        lambda s, e: {"no sum": Way(softmax_sum=False)},
    ),
    Bug(
        "gelu-backward",
        "GELU's slope is another one's",
        "backward",
        BACKWARD + "grad.hidden.L agrees, those below do not",
        "the slope of the tanh form has 3 · 0.044715 x²",
        lambda s, e: {
            "of erf": Way(gelu_slope=erf_slope),
            "cube forgotten": Way(gelu_slope=lambda x: tanh_slope(x, 0)),
            "3 forgotten": Way(gelu_slope=lambda x: tanh_slope(x, CUBE)),
        },
    ),
    Bug(
        "scale-lost-in-backward",
        "the backward of the scores forgets 1/√D, or has it twice",
        "backward",
        BACKWARD + "grad.hidden.L agrees, those below do not",
        "dq and dk both carry 1/√D, once",
        lambda s, e: {
            f"{name}, {power}": Way(
                scale_backward=lambda scale, q=q, k=k, n=n: (scale ** (n if q else 1), scale ** (n if k else 1))
            )
            for name, q, k in (("dq", 1, 0), ("dk", 0, 1), ("both", 1, 1))
            for power, n in (("none", 0), ("twice", 2))
        },
    ),
    Bug(
        "residual-gradient-lost",
        "the residual stream's own gradient is dropped",
        "backward",
        BACKWARD + "grad.hidden.L agrees, those below do not",
        "x + f(x) passes dout on, and adds f's share",
        lambda s, e: {
            "past the MLP": Way(residual=(0, 1)),
            "past the attention": Way(residual=(1, 0)),
            "past both": Way(residual=(0, 0)),
        },
    ),
    Bug(
        "tied-head-gradient-lost",
        "wte receives the gradient of the head or of the embedding, not of both",
        "backward",
        BACKWARD + "every gradient but grad.model.wte.weight too",
        "the tied matrix is used twice: add both gradients",
        where(
            lambda s: s.gradients == "all" and "lm_head" not in s.model[0],
            lambda s, e: {"head's lost": Way(tied=(0, 1)), "embedding's lost": Way(tied=(1, 0))},
        ),
    ),
    Bug(
        "repeated-tokens-once",
        "a token that comes twice receives one gradient",
        "backward",
        BACKWARD + "grad.model.wte.weight in the repeated tokens' rows",
        "add.at, scatter_add or index_add: dW[ids] += d keeps the last only",
        where(
            lambda s: s.gradients == "all",
            lambda s, e: {"the last": Way(repeated="last"), "the first": Way(repeated="first")},
        ),
    ),
    Bug(
        "prompt-gradient-averaged",
        "the prompt's gradient is averaged over the rows, or taken from one",
        "backward",
        BACKWARD + "grad.prompt alone is smaller by a factor, or another row's",
        "one prompt serves all rows: its gradient is their sum",
        where(
            several,
            lambda s, e: {
                "averaged": Way(prompt_gradient=lambda d, rows: d.mean(0)),
                "of the first row": Way(prompt_gradient=lambda d, rows: d[0]),
                "of the last row": Way(prompt_gradient=lambda d, rows: d[-1]),
                "summed over slots": Way(prompt_gradient=lambda d, rows: d.sum(0) * rows),
            },
        ),
    ),
    Bug(
        "float16-accumulation",
        "sums are kept in half precision",
        "block",
        "everything from the first product on, by 1e-4 to 1e-2, without a pattern",
        "accumulate in float32: float16 keeps three digits",
        lambda s, e: {"half": Way(product=half)} if e.small else {},
        rule=in_half,
    ),
]
