"""What goes wrong between a teacher and the loss: directions, temperatures, what the teacher has read."""

import numpy as np

from minicompress.layers.losses import log_softmax
from minicompress.verification.catalogue.bug import LOSS, Bug, where
from minicompress.verification.plain import costs
from minicompress.verification.plain.forward import Way

distils = lambda setup: bool(setup.teacher_context)
warm = lambda setup: distils(setup) and setup.temperature != 1


def top_k(*sides):
    """Ways for the k that fits the suspect's loss best, with each of these choices of what is renormalised."""

    def ways(setup, evidence):
        places, T, found = costs.scored_places(evidence.asked), setup.temperature, {}
        teacher = evidence.asked.teacher[places.row, places.guide]
        p, q = log_softmax(teacher / T), log_softmax(evidence.tape.end["logits"][places.row, places.column] / T)
        order = np.argsort(-p, -1)
        p, q = np.take_along_axis(p, order, 1), np.take_along_axis(q, order, 1)
        mass, share = np.exp(p).cumsum(1), np.exp(q).cumsum(1)
        kept = (np.exp(p) * (p - q)).cumsum(1)
        by_k = {"neither": kept, "teacher": kept / mass - np.log(mass)}
        by_k["both"] = by_k["teacher"] + np.log(share)
        for side in sides:
            ks = {5, 10, 20}
            if evidence.suspect_loss is not None:
                ks = {int(np.abs(T * T * by_k[side].mean(0) - evidence.suspect_loss).argmin()) + 1}
            named = "" if len(sides) == 1 else f", {side} renormalised"
            found |= {f"k = {k}{named}": Way(cost=costs.top_k(k, side)) for k in ks if 0 < k < p.shape[1]}
        return found

    return ways


def one_side(setup, evidence):
    sides = {"the student's alone": lambda T: (T, 1.0), "the teacher's alone": lambda T: (1.0, T)}
    powers = (2, 1, 0)
    return {f"{name}, T^{n}": Way(temperatures=which, power=n) for name, which in sides.items() for n in powers}


def ignored_temperature(setup, evidence):
    return {f"T^{power}": Way(temperatures=lambda T: (1.0, 1.0), power=power) for power in (0, 2)}


BUGS = [
    Bug(
        "kl-without-t2",
        "the factor T² is missing",
        "loss",
        LOSS + " by the factor T², all gradients by the same",
        "multiply by T² (Hinton et al. 2015), or the gradient shrinks as T grows",
        where(warm, lambda s, e: {"1": Way(power=0), "T": Way(power=1)}),
    ),
    Bug(
        "kl-reversed",
        "KL(student ‖ teacher) in place of KL(teacher ‖ student)",
        "loss",
        LOSS,
        "F.kl_div(student log-probabilities, teacher probabilities): the teacher is the target",
        where(distils, lambda s, e: {"": Way(cost=costs.reversed_kl)}),
    ),
    Bug(
        "kl-temperature-one-side",
        "the temperature divides the logits of one side alone",
        "loss",
        LOSS + "; not by a factor",
        "both the student's and the teacher's logits are divided by T",
        where(warm, one_side),
    ),
    Bug(
        "kl-temperature-ignored",
        "the temperature is not applied",
        "loss",
        LOSS + "; not by a factor",
        "divide both sides' logits by T",
        where(warm, ignored_temperature),
    ),
    Bug(
        "kl-top-k",
        "KL over the teacher's k likeliest tokens, not renormalised",
        "loss",
        LOSS + "; smaller, or negative",
        "a convention (Cartridges): it is least at a sharpened student; take all, or a bucket for the tail",
        where(distils, top_k("neither")),
        convention=lambda s: True,
    ),
    Bug(
        "kl-top-k-renormalised",
        "KL between the two distributions renormalised on the teacher's k likeliest tokens",
        "loss",
        LOSS + "; smaller",
        "a convention: blind to what lies outside the k",
        where(distils, top_k("both", "teacher")),
        convention=lambda s: True,
    ),
    Bug(
        "kl-as-cross-entropy",
        "the teacher's entropy is not taken off",
        "loss",
        "logits agree, loss is larger by a constant; every gradient agrees",
        "a convention: -Σ p log q has the same gradient",
        where(distils, lambda s, e: {"": Way(cost=costs.teacher_cross_entropy)}),
        convention=lambda s: True,
    ),
    Bug(
        "teacher-misses-last-token",
        "the teacher does not read the context's last token",
        "loss",
        "logits agree, teacher_log_probs and loss differ",
        "context[:-1] is for labels; the teacher reads all of it",
        where(
            lambda s: distils(s) and len(s.teacher_context) > 1,
            lambda s, e: {
                "the last": Way(context=lambda ids: ids[:-1]),
                "the last, its position kept": Way(context=lambda ids: ids[:-1], teacher_gap=1),
                "the first": Way(context=lambda ids: ids[1:]),
            },
        ),
    ),
    Bug(
        "teacher-without-context",
        "the teacher does not read the context",
        "loss",
        "logits agree, teacher_log_probs and loss differ",
        "the teacher reads context + row, the student slots + row",
        where(
            distils,
            lambda s, e: (  # a first token has no state before it then, and its own stands in
                {"": Way(context=lambda ids: [])} if s.labels is None or not e.asked.scored[:, 0].any() else {}
            ),
        ),
    ),
]
