"""What is drawn at random where it should not be, as two passes of the same show."""

import numpy as np

from minicompress.arrays import pad_rows
from minicompress.verification.catalogue.bug import Bug


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
    """The prompt is drawn anew: itself, or all that comes of it and nothing else."""
    drawn, setup = again(evidence), evidence.setup
    if "prompt" in drawn:
        return 1.0
    if "again.prompt" in evidence.suspect and "prompt" in evidence.suspect:
        return 0.0
    if "prompt" in evidence.differing:
        return 0.8
    if "logits" not in drawn or setup is None or setup.prompt is None or not setup.prompt.raw:
        return 0.0
    if setup.prompt.in_rows:
        tokens = pad_rows(setup.rows, 0) >= 0
        pair = [evidence.suspect.get(name) for name in ("hidden.0", "again.hidden.0")]
        return 0.95 * float("hidden.0" in drawn and np.array_equal(*(x[tokens] for x in pair)))
    return 0.1 if "hidden.0" in drawn else 0.95 if only_slots_differ(evidence) else 0.1


def only_slots_differ(evidence):
    """Whether attention.0 is the reference's but for how much falls on the slots; True where it is not known."""
    ours, theirs = (side.get("attention.0") for side in (evidence.reference, evidence.suspect))
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return True
    P = ours.shape[-1] - ours.shape[-2]
    shares = [x[..., P:] / np.maximum(x[..., P:].sum(-1, keepdims=True), 1e-30) for x in (ours, theirs)]
    return "attention.0" in evidence.differing and bool(np.allclose(*shares, rtol=1e-3, atol=1e-5))


def drawing_teacher(evidence):
    """The loss is drawn anew while the student's logits stay; or it differs, and nothing else explains it."""
    drawn = again(evidence)
    if drawn & {"loss", "losses", "teacher_log_probs"} and not drawn & {"logits", "first_logits"}:
        return 1.0
    setup = evidence.setup
    distils = setup is not None and setup.teacher_context
    return 0.25 * float(bool(distils) and evidence.first_name in ("teacher_log_probs", "losses", "loss"))


BUGS = [
    Bug(
        "teacher-in-train-mode",
        "the teacher drops out",
        "chance",
        "again.loss differs from loss, again.logits equals logits",
        "teacher.eval()",
        rule=drawing_teacher,
    ),
    Bug(
        "encoder-in-train-mode",
        "the encoder drops out while it is baked",
        "chance",
        "again.prompt differs from prompt; or again.logits do, and hidden.0 does not",
        "encoder.eval() before it is baked or saved",
        rule=drawing_encoder,
    ),
    Bug(
        "model-in-train-mode",
        "the model drops out",
        "chance",
        "again.logits differ from logits",
        "model.eval(), also inside a training loop: it is frozen",
        rule=drawing_model,
    ),
]
