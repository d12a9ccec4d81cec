"""What goes wrong between the logits and the loss, and what is another convention there."""

import math

import numpy as np

from minicompress.layers.losses import log_softmax
from minicompress.verification.catalogue.bug import Bug, for_carriers, where
from minicompress.verification.plain import costs
from minicompress.verification.plain.forward import Way

distils = lambda setup: bool(setup.teacher_context)
on_tokens = lambda setup: not setup.teacher_context
warm = lambda setup: distils(setup) and setup.temperature != 1


def likeliest_label(evidence, places):
    """The label whose cost at the last of `places(label)` gives the suspect's loss: solved for, not guessed.

    -> labels to try: the solution, and what people take.
    """
    asked, V = evidence.asked, evidence.tape.end["logits"].shape[-1]
    tries = {0, V - 1, (-100) % V}
    if evidence.suspect_loss is not None:
        with_label = places(0)(asked)
        own = len(costs.scored_places(asked).row)
        logp = -log_softmax(evidence.tape.end["logits"][with_label.row, with_label.column])
        known = (logp[np.arange(own), with_label.target[:own]] * with_label.weight[:own]).sum()
        extra = (logp[own:] * with_label.weight[own:, None]).sum(0)  # (V,), for each label
        tries.add(int(np.abs(known + extra - evidence.suspect_loss).argmin()))
    return sorted(tries)


def scored_as(evidence, places_of, **fields):
    """Ways that score more places under each of the likely labels: within the mean, or beside it."""
    found = {}
    for name, share in (("in the mean", True), ("beside the mean", False)):
        places = lambda label, share=share: places_of(label, share=share)
        if len(places(0)(evidence.asked).row) > len(costs.scored_places(evidence.asked).row):
            ways = {v: Way(places=places(v), **fields) for v in likeliest_label(evidence, places)}
            found |= {f"as token {v}, {name}": way for v, way in ways.items()}
    return found


def ignored_counted(setup, evidence):
    found = {} if distils(setup) else scored_as(evidence, costs.with_ignored)
    if found:  # there are such places, and whoever counts them may count padding as well
        both = lambda label, share: costs.with_ignored(label, None, share)
        found |= {f"{name}, padding too": way for name, way in scored_as(evidence, both).items()}
    B, T, P, real = (
        len(setup.rows),
        evidence.tape.layout.T,
        evidence.tape.layout.P,
        int(evidence.tape.layout.real.sum()),
    )
    numbers = {"all real tokens": real, "all real tokens but the first": real - B, "all places": B * T,
               "all places but the first": B * (T - 1), "all columns": B * (P + T),
               "all columns but one": B * (P + T - 1)}  # fmt: skip
    return found | {
        f"mean over {name}": Way(places=costs.divided_by(lambda *_, n=n: n)) for name, n in numbers.items() if n
    }


def slots_scored(setup, evidence):
    found, N, B = scored_as(evidence, costs.with_slots), int(evidence.asked.scored.sum()), len(setup.rows)
    for slots in (setup.prompt.length, setup.prompt.length - 1):
        found[f"{slots} slots counted, at no cost"] = Way(places=costs.divided_by(lambda *_, n=N + B * slots: n))
    if for_carriers("embeddings")(setup) and setup.prompt.length > 1 and on_tokens(setup):
        found["as the row's first token"] = Way(places=costs.with_slots(None))
    return found


def padding_scored(setup, evidence):
    """Padding of token 0 or the last, scored as itself; of another label; or, against a teacher, as it stands."""
    if len(set(map(len, setup.rows))) == 1:
        return {}
    last = len(setup.model[0]["wte"]["weight"]) - 1
    found = {f"of token {pad}": Way(places=costs.with_ignored(pad, padding=True), pad=pad) for pad in (0, last)}
    if on_tokens(setup):
        found |= scored_as(evidence, lambda label, share: costs.with_ignored(label, padding=True, share=share))
        found |= {f"the first, of token {v}": Way(places=costs.with_ignored(v, "first"), pad=v) for v in (0, last)}
    return found


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


def in_single(evidence):
    """Whether in float64 the loss alone is off, by what float32 rounds, and all that follows by little more."""
    errors = evidence.differing
    own = [errors[name] for name in ("teacher_log_probs", "losses", "loss") if name in errors]
    small = evidence.tolerances.bytes == 8 and evidence.first_stage == "loss" and max(own) < 1e-6
    return 0.9 * float(small and evidence.agrees("logits") and max(errors.values()) < 1e-4)


LOSS = "logits agree, loss differs"
BUGS = [
    Bug(
        "labels-not-shifted",
        "each token is held against the logits behind itself",
        "loss",
        LOSS + ", grad.hidden too",
        "logits[:, :-1] predict labels[:, 1:]",
        lambda s, e: {
            "without the first": Way(places=costs.not_shifted(False)),
            "with the first": Way(places=costs.not_shifted(True)),
            "the wrong way": Way(places=costs.shifted_on),
        },
    ),
    Bug(
        "labels-shifted-twice",
        "labels are shifted by hand, and by the model again",
        "loss",
        LOSS + ", grad.hidden too",
        "Transformers shifts labels itself: hand in the tokens as they are",
        where(on_tokens, lambda s, e: {"": Way(places=costs.shifted_twice)}),
    ),
    Bug(
        "slots-scored",
        "the slots' own places are scored",
        "loss",
        LOSS + "; grad.prompt differs by what is asked of the slots",
        "labels for the slots are -100",
        where(
            lambda s: on_tokens(s) and s.prompt is not None and s.prompt.carrier == "embeddings",
            slots_scored,
        ),
    ),
    Bug(
        "kl-without-t2",
        "the factor T² is missing",
        "loss",
        LOSS + " by the factor T², all gradients by the same",
        "multiply by T² (Hinton et al. 2015), or the gradient shrinks as T grows",
        where(warm, lambda s, e: {"1": Way(power=0), "T": Way(power=1)}),
    ),
    Bug(
        "mean-of-row-means",
        "the mean of each row's mean, in place of the mean over all targets",
        "loss",
        LOSS + "; short rows weigh as much as long ones",
        "divide the sum over the batch by the number of its targets",
        lambda s, e: {
            "rows with targets": Way(places=costs.mean_of_row_means(False)),
            "all rows": Way(places=costs.mean_of_row_means(True)),
            "by position": Way(places=costs.mean_by_position),
        },
    ),
    Bug(
        "ignored-labels-counted",
        "places without a label (-100) are counted",
        "loss",
        LOSS + "; smaller by a ratio of counts, or by their cost",
        "ignore_index=-100; divide by the number of labels that are not -100",
        ignored_counted,
    ),
    Bug(
        "padding-scored",
        "padding is scored as if it were text",
        "loss",
        LOSS + "; in the shorter rows",
        "labels of padding are -100",
        padding_scored,
    ),
    Bug(
        "first-token-unscored",
        "the first token behind the slots is not scored",
        "loss",
        LOSS + "; grad.prompt lacks the last slot's own prediction",
        "prompt tuning's last slot predicts the first token: T targets count; a prefix scores T - 1",
        where(for_carriers("embeddings"), lambda s, e: {"": Way(places=costs.without_the_first)}),
        convention=lambda s: True,
    ),
    Bug(
        "loss-summed",
        "the loss is a sum, or a sum over each row, in place of the mean",
        "loss",
        LOSS + " by a whole factor, all gradients by the same",
        "a convention: divide by the number of targets",
        lambda s, e: {
            "summed": Way(places=costs.divided_by(lambda asked, n: 1)),
            "divided by the rows": Way(places=costs.divided_by(lambda asked, n: len(asked.targets))),
        },
        convention=lambda s: True,
    ),
    Bug(
        "loss-in-bits",
        "the loss is in bits",
        "loss",
        LOSS + " by the factor 1/ln 2",
        "a convention: nats are bits times ln 2",
        lambda s, e: {"": Way(cost=costs.times(1 / math.log(2)))},
        convention=lambda s: True,
    ),
    Bug(
        "loss-in-float32",
        "logits are cast to float32 before the loss",
        "loss",
        "logits agree, loss differs by about 1e-7",
        "Transformers does so for a float64 model too: compute the loss from the logits",
        lambda s, e: {"": Way(loss_dtype=np.float32)},
        in_single,
        convention=lambda s: True,
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
            lambda s, e: (
                {"": Way(context=lambda ids: [])} if s.labels is None or not e.asked.scored[:, 0].any() else {}
            ),
        ),
    ),
]
