"""What goes wrong behind the loss: in the backward, in decoding, in the optimiser, and by chance."""

import numpy as np

from minicompress.verification.catalogue.block import half
from minicompress.verification.catalogue.bug import Bug, in_front, where
from minicompress.verification.plain.forward import Way, causal
from minicompress.verification.plain.gelus import CUBE, erf_slope, tanh_slope
from minicompress.verification.plain.steps import Optimiser

several = lambda setup: len(setup.rows) > 1
kept_moving = lambda setup: setup.steps is not None
continued = lambda setup: setup.decode > 0


def detached(evidence):
    """Whether the reference has a gradient of the prompt, and the suspect has none."""
    ours = evidence.reference.get("grad.prompt")
    theirs = evidence.suspect.get("grad.prompt")
    gradients = [name for name in evidence.suspect if name.startswith("grad.")]
    early = evidence.first_stage != "backward"  # the prompt has another effect, or none, already before the loss
    if early or ours is None or not ours.any() or (theirs is None and not gradients):
        return 0.0
    return float(theirs is None or not theirs.any())


def frozen_encoder(evidence):
    """Whether some raw arrays of an encoder have a gradient and others, that should, have none."""
    ours = {name: g for name, g in evidence.reference.items() if name.startswith("grad.raw.") and g.any()}
    lost = [name for name in ours if not np.any(evidence.suspect.get(name, 0))]
    seen = [name for name in evidence.suspect if name.startswith("grad.raw.")] or "grad.prompt" in evidence.suspect
    return float(bool(seen and lost)) if "grad.prompt" not in evidence.differing else 0.0


def in_half(evidence):
    """Whether the first error has the size of half precision's rounding, 2^-11 a number, and no more structure."""
    size = evidence.first_error
    return 0.5 * float(3e-6 < size < 3e-2) if evidence.first_stage in ("block", "head", "backward", "front") else 0.0


def again(evidence):
    """Which of the suspect's tensors come out differently the second time."""
    pairs = [(name, evidence.suspect[name], x) for full, x in evidence.suspect.items()
             if full.startswith("again.") and (name := full.removeprefix("again.")) in evidence.suspect]  # fmt: skip
    return {name for name, first, second in pairs if first.shape == second.shape and not np.array_equal(first, second)}


def drawing_model(evidence):
    """The student's own logits are drawn anew, and not because the prompt is."""
    drawn = again(evidence)
    return float(bool(drawn & {"logits", "hidden.0", "hidden.1"}) and drawing_encoder(evidence) < 0.5)


def drawing_encoder(evidence):
    """The prompt is drawn anew: itself, or all that follows it, while the tokens' embeddings stay."""
    drawn, setup = again(evidence), evidence.setup
    if "prompt" in drawn:
        return 1.0
    if "prompt" in evidence.differing:
        return 0.8
    has_encoder = setup is not None and setup.prompt is not None and bool(setup.prompt.raw)
    stays = "hidden.0" in evidence.suspect and "again.hidden.0" in evidence.suspect and "hidden.0" not in drawn
    return float("logits" in drawn and has_encoder) * (0.9 if stays else 0.6)


def drawing_teacher(evidence):
    """The loss is drawn anew while the student's logits stay; or it differs, and nothing else explains it."""
    drawn = again(evidence)
    if drawn & {"loss", "losses", "teacher_log_probs"} and not drawn & {"logits", "first_logits"}:
        return 1.0
    setup = evidence.setup
    distils = setup is not None and setup.teacher_context
    return 0.4 * float(bool(distils) and evidence.first_name in ("teacher_log_probs", "losses", "loss"))


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
    ways["all at the place before"] = late(lambda w, layout: layout.start + (layout.lengths - layout.written)[:, None] - 1 + 0 * w)
    ways["all at 0"] = late(lambda w, layout: 0 * w)
    ways["from 0"] = late(lambda w, layout: w - layout.start - (layout.lengths - layout.written)[:, None])
    ways["behind the longest row"] = late(lambda w, layout: w + (longest - (layout.lengths - layout.written))[:, None])
    if setup.prompt is not None and setup.prompt.length:
        P = setup.prompt.length
        ways["without the slots"] = late(lambda w, layout: w - P)
        ways["with the slots twice"] = late(lambda w, layout: w + P)
    return ways


def written_mask(change):
    """The causal mask, changed for the tokens that the model has written: change(seen, new_query, new_key, q, k, layout)."""

    def mask(layout):
        column = np.arange(layout.P + layout.T)
        first_new = (layout.P + layout.lengths - layout.written)[:, None, None]
        q, k = column[:, None], column[None]
        return change(causal(layout), q >= first_new, k >= first_new, q, k, layout)

    return Way(mask=mask)


STALE = {
    "new keys are never kept": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | ~nk | (q == k))),
    "only the new token's keys are kept": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | nk)),
    "the last key is overwritten": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | ~nk | (q - k <= 1))),
    "the newest is not there yet": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k != q - 1))),
    "the token does not see itself": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k != q))),
}
DROPPED = {
    "behind the first token": written_mask(lambda seen, nq, nk, q, k, layout: seen & (~nq | (k >= layout.P))),
}  # fmt: skip




def decays(coupled):
    def ways(setup, evidence):
        asked = setup.steps.get("weight_decay", 0.0)
        tries = {0.1, 0.01, 0.001, 0.05, 1e-4, 0.0} - {asked}
        found = {f"{decay:g}": Optimiser(decay=decay, coupled=coupled) for decay in sorted(tries) if decay or not coupled}
        return found | ({f"{asked:g}": Optimiser(coupled=True)} if coupled and asked else {})

    return ways


BACKWARD = "loss and everything before it agree, "
BUGS = [
    Bug("prompt-detached", "no gradient reaches the prompt", "backward", BACKWARD + "grad.prompt is zero or missing",
        "no detach(), no torch.no_grad(), no .data between the prompt and the model", rule=detached),
    Bug("encoder-frozen", "the encoder of the prompt is not trained", "backward", BACKWARD + "grad.raw.* is zero or missing, grad.prompt is right",
        "hand the encoder's weights to the optimiser, with requires_grad", rule=frozen_encoder),
    Bug("eps-missing-in-backward", "LayerNorm's backward forgets ε", "backward", BACKWARD + "grad.hidden.l by about ε/σ²",
        "use the forward's own rstd", lambda s, e: {"in rstd": Way(norm_backward="no eps"), "in the stretch": Way(norm_backward="no eps in the stretch")}),
    Bug("layernorm-backward", "LayerNorm's backward forgets that mean and variance depend on x", "backward", BACKWARD + "grad.hidden.L differs widely",
        "dx = rstd (g - mean(g) - x̂ mean(g x̂))", lambda s, e: {"no means": Way(norm_backward="no means")}),
    Bug("softmax-backward", "softmax's backward forgets the sum", "backward", BACKWARD + "grad.hidden.L agrees, those below do not",
        "dx = p (dp - Σ p dp)", lambda s, e: {"no sum": Way(softmax_sum=False)}),
    Bug("gelu-backward", "GELU's slope is another one's", "backward", BACKWARD + "grad.hidden.L agrees, those below do not",
        "the slope of the tanh form has 3 · 0.044715 x²", lambda s, e: {
            "of erf": Way(gelu_slope=erf_slope), "cube forgotten": Way(gelu_slope=lambda x: tanh_slope(x, 0)),
            "3 forgotten": Way(gelu_slope=lambda x: tanh_slope(x, CUBE))}),
    Bug("scale-lost-in-backward", "the backward of the scores forgets 1/√D, or has it twice", "backward", BACKWARD + "grad.hidden.L agrees, those below do not",
        "dq and dk both carry 1/√D, once", lambda s, e: {
            f"{name}, {power}": Way(scale_backward=lambda scale, q=q, k=k, n=n: (scale ** (n if q else 1), scale ** (n if k else 1)))
            for name, q, k in (("dq", 1, 0), ("dk", 0, 1), ("both", 1, 1)) for power, n in (("none", 0), ("twice", 2))}),
    Bug("residual-gradient-lost", "the residual stream's own gradient is dropped", "backward", BACKWARD + "grad.hidden.L agrees, those below do not",
        "x + f(x) passes dout on, and adds f's share", lambda s, e: {
            "past the MLP": Way(residual=(0, 1)), "past the attention": Way(residual=(1, 0)), "past both": Way(residual=(0, 0))}),
    Bug("tied-head-gradient-lost", "wte receives the gradient of the head or of the embedding, not of both", "backward",
        BACKWARD + "every gradient but grad.model.wte.weight too", "the tied matrix is used twice: add both gradients",
        where(lambda s: s.gradients == "all" and "lm_head" not in s.model[0], lambda s, e: {
            "head's lost": Way(tied=(0, 1)), "embedding's lost": Way(tied=(1, 0))})),
    Bug("repeated-tokens-once", "a token that comes twice receives one gradient", "backward", BACKWARD + "grad.model.wte.weight in the repeated tokens' rows",
        "add.at, scatter_add or index_add: dW[ids] += d keeps the last only",
        where(lambda s: s.gradients == "all", lambda s, e: {"the last": Way(repeated=False)})),
    Bug("prompt-gradient-averaged", "the prompt's gradient is averaged over the rows, or taken from one", "backward",
        BACKWARD + "grad.prompt alone is smaller by a factor, or another row's", "one prompt serves all rows: its gradient is their sum",
        where(several, lambda s, e: {"averaged": Way(prompt_gradient=lambda d, rows: d.mean(0)), "of the first row": Way(prompt_gradient=lambda d, rows: d[0]),
                                     "of the last row": Way(prompt_gradient=lambda d, rows: d[-1]), "summed over slots": Way(prompt_gradient=lambda d, rows: d.sum(0) * rows)})),
    Bug("float16-accumulation", "sums are kept in half precision", "block", "everything from the first product on, by 1e-4 to 1e-2, without a pattern",
        "accumulate in float32: float16 keeps three digits", lambda s, e: {"half": Way(product=half)} if e.small else {}, rule=in_half),
    Bug("cache-position-off", "new tokens stand at wrong positions when a cache is used", "decoding", "decoded_logits agree at the first token, differ from the second on",
        "a new token's position is the number of positions before it: the slots, the row, what was written", where(continued, cache_positions)),
    Bug("cache-stale", "the cache misses new keys and values, or holds those of another text", "decoding", "decoded_logits agree at the first token, differ later",
        "append every step's keys and values; begin each text with an empty cache", where(continued, lambda s, e: STALE)),
    Bug("prompt-lost-in-decoding", "the prompt is dropped behind the first new token", "decoding", "decoded_logits agree at the first token, differ from the second on",
        "the slots' keys and values stay in the cache", where(lambda s: continued(s) and in_front(s), lambda s, e: DROPPED)),
    Bug("adamw-decays-prompt", "weight decay pulls the prompt towards zero", "steps", "the gradients agree, after.* is smaller",
        "put the prompt into a parameter group with weight_decay=0: AdamW's default is 0.01", where(kept_moving, decays(False))),
    Bug("decay-as-l2", "decay is added to the gradient, not taken off the weights", "steps", "the gradients agree, adam.m and after.* differ",
        "AdamW, not Adam(weight_decay=...)", where(kept_moving, decays(True))),
    Bug("clipped-per-tensor", "each tensor's gradient is clipped by itself", "steps", "the gradients agree, adam.m differs by a factor a tensor",
        "one norm over all of them: clip_grad_norm_(all parameters)",
        where(lambda s: kept_moving(s) and s.steps.get("clip"), lambda s, e: {"by norm": Optimiser(clip="each"), "number by number": Optimiser(clip="by number")})),
    Bug("clip-missing", "gradients are not clipped", "steps", "the gradients agree, adam.m is longer",
        "clip between backward and step", where(lambda s: kept_moving(s) and s.steps.get("clip"), lambda s, e: {"": Optimiser(clip="never")})),
    Bug("gradients-not-zeroed", "gradients of earlier steps are still there", "steps", "the first step agrees, the second does not",
        "zero_grad() before each backward", where(lambda s: kept_moving(s) and s.steps.get("steps", 1) > 1, lambda s, e: {"": Optimiser(zeroed=False)})),
    Bug("adam-without-bias-correction", "Adam's moments are not corrected for their beginning at zero", "steps", "adam.m and adam.v agree, after.* does not",
        "divide m by 1 - β1^t, v by 1 - β2^t", where(kept_moving, lambda s, e: {"": Optimiser(corrected=False)})),
    Bug("adam-eps-inside-root", "Adam's ε stands inside the root", "steps", "adam.m and adam.v agree, after.* differs a little",
        "√v̂ + ε", where(kept_moving, lambda s, e: {"": Optimiser(inside=True)})),
    Bug("teacher-in-train-mode", "the teacher drops out", "chance", "again.loss differs from loss, again.logits equals logits",
        "teacher.eval()", rule=drawing_teacher),
    Bug("encoder-in-train-mode", "the encoder drops out while it is baked", "chance", "again.prompt differs from prompt; or again.logits do, and hidden.0 does not",
        "encoder.eval() before it is baked or saved", rule=drawing_encoder),
    Bug("model-in-train-mode", "the model drops out", "chance", "again.logits differ from logits", "model.eval(), also inside a training loop: it is frozen",
        rule=drawing_model),
]  # fmt: skip
