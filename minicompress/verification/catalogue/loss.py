"""What goes wrong between the logits and the loss: which places are scored, as what, and with what weight."""

import math

import numpy as np

from minicompress.layers.losses import log_softmax
from minicompress.verification.catalogue.bug import LOSS, Bug, for_carriers, where
from minicompress.verification.plain import costs
from minicompress.verification.plain.forward import Way

on_tokens = lambda setup: not setup.teacher_context


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
    found = scored_as(evidence, costs.with_ignored) if on_tokens(setup) else {}
    if found:  # there are such places, and whoever counts them may count padding as well
        both = lambda label, share: costs.with_ignored(label, None, share)
        found |= {f"{name}, padding too": way for name, way in scored_as(evidence, both).items()}
    layout = evidence.tape.layout
    B, T, P, real = len(setup.rows), layout.T, layout.P, int(layout.real.sum())
    numbers = {"all real tokens": real, "all real tokens but the first": real - B, "all places": B * T,
               "all places but the first": B * (T - 1), "all columns": B * (P + T),
               "all columns but one": B * (P + T - 1)}  # fmt: skip
    means = {name: Way(places=costs.divided_by(lambda *_, n=n: n)) for name, n in numbers.items() if n}
    return found | {f"mean over {name}": way for name, way in means.items()}


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


def in_single(evidence):
    """Whether in float64 the loss alone is off, by what float32 rounds, and all that follows by little more."""
    errors = evidence.differing
    own = [errors[name] for name in ("teacher_log_probs", "losses", "loss") if name in errors]
    small = evidence.tolerances.bytes == 8 and evidence.first_stage == "loss" and max(own) < 1e-6
    return 0.9 * float(small and evidence.agrees("logits") and max(errors.values()) < 1e-4)


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
]
