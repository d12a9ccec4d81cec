"""What a tuning looks like from outside, and what is suspicious about it, in plain lines.

A loss that does not fall looks the same for many reasons. Here each reason is measured by itself: do the
slots feel a gradient, have they moved, does attention look at nothing else, is the answer always the same,
do the labels of the data and of the verbalizer agree. A healthy tuning gives no line.
"""

from collections import Counter
from itertools import permutations

import numpy as np

from minicompress.arrays import to_host
from minicompress.compression.queries import pad
from minicompress.gpt2 import embed, forward
from minicompress.layers.attention import probabilities
from minicompress.prompts.soft_prompt import SLOT_AXIS
from minicompress.tuning.scores import majority

ROWS = 16  # of the training rows, to measure on
LEARNED = 1e-2  # nats: below it, a gradient may be gone because nothing is left to learn
DEAF = 1e-4  # of the loss: what a slot's length would change of it, to first order
UNMOVED = 1e-2  # of the slots' length
FULL = 0.99  # of one head's attention
LONG = {"embeddings": 40, "hidden": 10}  # times as long as the model's own; tunings that learn had up to 26, and 2


def diagnose(run):
    """-> what was measured, a dict ready for JSON, and the lines, of a Tuning that has ended."""
    measured = measure(run)
    lines = data_lines(run.task, run.model.tokenizer)
    if measured["loss"] > LEARNED:
        lines += gradient_lines(measured["felt"], measured["through_encoder"])
    lines += movement_lines(measured["moved"], measured["attention_on_slots"])
    lines += length_lines(run.recipe.carrier, measured["length_ratio"])
    lines += prediction_lines(run.history[run.best_at], run.task)
    if run.task.words:
        lines += frequency_lines(run.history[-1]["train_loss"], run.task)
    if len(run.history) > 1 and run.best_at == 0:
        lines.append("no evaluation was better than the untrained slots, which are what is saved")
    return measured, lines


def measure(run):
    """Of the slots after the last step: gradient, movement, and the attention that rests on them."""
    slots, axis = run.bake(run.raw)[0], SLOT_AXIS[run.recipe.carrier]
    queries = run.task.train[:ROWS]
    loss, dslots = run.gradient(queries, slots)
    _, draw = run.gradient(queries)
    lengths, slopes = (np.linalg.norm(by_slot(x, axis), axis=1) for x in (slots, dslots))
    begun = by_slot(run.initial, axis)
    moved = np.linalg.norm(by_slot(slots, axis) - begun) / (np.linalg.norm(begun) or 1)
    felt = slopes * (np.median(lengths) or 1) / (loss or 1)
    share, stream = attention_on_slots(run, slots, queries)
    return {
        "loss": loss,
        "felt": felt.tolist(),
        "through_encoder": bool(to_host(draw["embedding"]["weight"]).any()) if "embedding" in draw else None,
        "moved": float(moved),
        "attention_on_slots": float((share > FULL).mean()),
        "length_ratio": length_ratio(run, to_host(slots), stream),
    }


def by_slot(slots, axis):
    """Slots of any carrier -> (P, numbers of one slot) on the host."""
    host = np.moveaxis(to_host(slots).astype(np.float64), axis, 0)
    return host.reshape(len(host), -1)


def length_ratio(run, slots, stream):
    """How long slots are beside embeddings, or hidden states beside those of some rows; None for keys and values."""
    if run.recipe.carrier == "kv":
        return None
    length = lambda x: np.linalg.norm(x, axis=-1)
    if run.recipe.carrier == "embeddings":
        return float(length(slots).mean() / length(to_host(run.model.wte)).mean())
    return float(np.mean([length(own).mean() / np.median(length(x)) for own, x in zip(slots, stream, strict=True)]))


def attention_on_slots(run, slots, queries):
    """As the first token of each answer is predicted, how much of each head's attention rests on slots: (L, B, H).

    And the residual stream before each layer, a list of (B, T, C).
    """
    (params, config), prompt = run.model.pair, run.as_prompt(slots)
    prefix, (ids, _) = prompt.prefix(params, config), pad(queries)
    x = embed(params, ids, prefix.start, prefix.slots)
    stream = []
    _, _, (caches, _) = forward(params, config, x, prefix.past, watch=stream)
    on_slots = np.concatenate([np.ones((len(ids), prefix.length), bool), ids < 0], axis=1)  # (B, S)
    rows, places = np.arange(len(ids)), np.array([max(0, q.start - 1) for q in queries])
    probs = [to_host(probabilities(cache["attn"]["attention"]))[rows, :, places] for cache in caches]  # each (B, H, S)
    return np.stack([(p * on_slots[:, None]).sum(-1) for p in probs]), [to_host(x) for x in stream[:-1]]


def gradient_lines(felt, through=None):
    """felt: for each slot, what a slot's usual length of it would change of the loss, as a share of the loss.

    through: whether any of it passes an encoder, to what it begins with; None where there is no encoder.
    """
    deaf = [slot for slot, share in enumerate(felt) if not share > DEAF]
    if len(deaf) == len(felt):
        return ["no slot feels a gradient: nothing between the slots and the answer depends on them"]
    lines = ["the encoder lets no gradient through: all of its units are off; lower --lr"] if through is False else []
    if deaf:
        lines.append(f"{len(deaf)} of {len(felt)} slots feel no gradient: {listed(deaf)}")
    return lines


def movement_lines(moved, full):
    """moved: of the slots' length. full: the share of heads that attend to slots alone."""
    lines = [f"the slots moved by {moved:.2g} of their length: --lr or --steps is too small"] * (moved < UNMOVED)
    if full > 0.5:
        heads = f"{full:.0%} of the heads attend to slots alone ({FULL:.0%} and more)"
        lines.append(f"{heads}, not to the text; lower --lr")
    return lines


def length_lines(carrier, ratio):
    """A LayerNorm takes the length off: very long slots hardly turn any more, whatever the gradient."""
    if ratio is None or ratio <= LONG[carrier]:
        return []
    own = {"embeddings": "embeddings", "hidden": "hidden states"}[carrier]
    return [f"the slots are {ratio:.0f} times as long as the model's own {own}, and saturate it; lower --lr"]


def prediction_lines(best, task):
    """What the best evaluation answered."""
    if not task.words:
        asked = {q.answer for q in task.held[: best["written"]]}
        return ["every answer that is written is the same"] if best["different"] == 1 < len(asked) else []
    said = [label for label, count in best["predicted"].items() if count]
    right, common, classes = best["accuracy"], majority(task.held), {q.answer for q in task.held}
    if len(said) == 1 and len(classes) > 1:
        return [f"every prediction is {said[0]!r}: accuracy {right:.1%}, where the commonest label has {common:.1%}"]
    if right <= common and len(classes) > 1:
        return [f"accuracy {right:.1%} is not above {common:.1%}, the commonest label's share"]
    return []


def frequency_lines(loss, task):
    """The loss of whoever knows how often each label occurs, and nothing else, is the labels' entropy.

    loss: the mean over the last steps; None where there was none.
    """
    counts = Counter(q.answer for q in task.train)
    shares = np.array(list(counts.values())) / len(task.train)
    tokens = sum(n * len(task.words[answer]) for answer, n in counts.items()) / len(task.train)
    guess = float(-(shares * np.log(shares)).sum() / tokens)
    if loss is None or len(shares) < 2 or loss < guess:
        return []
    return [f"the training loss, {loss:.3f}, is not below {guess:.3f}, that of always giving the labels' frequencies"]


def data_lines(task, tokenizer):
    """Labels without a word, words spelled in bytes or not to be told apart, labels that training never shows."""
    lines = [f"the label {label!r} is not in the verbalizer; its own word stands for it" for label in task.unnamed]
    lines += [f"the verbalizer names {label!r}, which no example has" for label in task.unused]
    for label, ids in task.words.items():
        if any("\ufffd" in tokenizer.decode([token]) for token in ids):  # a piece that is no whole character
            lines.append(
                f"label outside the vocabulary: {label!r}, whose word is spelled in {len(ids)} bytes and pieces"
            )
    lines += collisions(task.words)
    known = {q.key for q in task.train}
    if shared := sum(q.key in known for q in task.held):
        lines.append(f"{shared:,} of {len(task.held):,} held-out texts are trained on as well")
    taught = {q.answer for q in task.train}
    for label in sorted({q.answer for q in task.held if task.words} - taught):
        lines.append(f"the label {label!r} is held out, but no training example has it")
    return lines


def collisions(words):
    """Words that begin alike, and words that are the whole beginning of others."""
    begun, lines = {}, []
    for label, ids in words.items():
        begun.setdefault(ids[0], []).append(label)
    for alike in begun.values():
        if len(alike) > 1:
            lines.append(f"the words of {listed(map(repr, alike))} begin with the same token")
        for short, long in permutations(alike, 2):
            if words[long][: len(words[short])] == words[short]:
                lines.append(f"the word of {long!r} begins with the whole word of {short!r}, which is always likelier")
    return lines


def listed(many, most=8):
    """0, 1, 2, … of many."""
    first = [*map(str, many)]
    return ", ".join(first[:most]) + (", …" if len(first) > most else "")
