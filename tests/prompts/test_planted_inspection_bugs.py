"""Bugs planted in the inspection, one edit each, that a check of `inspecting.py` must catch."""

import pytest
from inspecting import CHECKS

from minicompress.compression import run
from minicompress.prompts import inspection, nearest, soft_prompt
from test_planted_bugs import Bug, plant

BUGS = [
    # nearest tokens
    Bug("the farthest by cosine", "nearest, embeddings", nearest.nearest,
        "-cosine(rows, slot)", "cosine(rows, slot)"),
    Bug("the opposite of the cosine", "nearest, embeddings", nearest.nearest,
        "-opposite", "opposite"),
    Bug("short tokens instead of near ones", "nearest, embeddings", nearest.nearest,
        "norm(rows - slot)", "norm(rows)"),
    Bug("ids counted from each part's start", "nearest, embeddings", nearest.nearest,
        "xp.arange(words.start, words.stop)", "xp.arange(words.stop - words.start)"),
    Bug("the last part of the vocabulary alone", "nearest, embeddings", nearest.closest,
        "if before is not None", "if False"),
    Bug("one token too few kept", "nearest, embeddings", nearest.closest,
        '[:k]', '[: k - 1]'),
    Bug("a cosine without the token's length", "nearest, embeddings", nearest.cosine,
        "norm(x) * norm(y)", "norm(y) * norm(y)"),
    Bug("hidden: tokens without a place", "nearest, hidden", nearest.compared,
        "wte[words] + place(p)", "wte[words]"),
    Bug("hidden: all tokens in the first place", "nearest, hidden", nearest.compared,
        "wpe[min(p, len(wpe) - 1)]", "wpe[0]"),
    Bug("hidden: the last layer", "nearest, hidden", nearest.compared,
        "prompt.slots[0], lambda", "prompt.slots[-1], lambda"),
    Bug("kv: keys without a place", "nearest, kv", nearest.first_keys,
        "turned + there @ scaled", "turned"),
    Bug("kv: a word's length without its place", "nearest, kv", nearest.first_keys,
        "x = words + there", "x = words"),
    Bug("kv: the place not around its mean", "nearest, kv", nearest.first_keys,
        "there = middle(place(p))", "there = place(p)"),
    Bug("kv: values", "nearest, kv", nearest.first_keys,
        'kv["weight"][:, : config.n_embd], kv["bias"][: config.n_embd]', 'kv["weight"][:, config.n_embd :], kv["bias"][config.n_embd :]'),
    Bug("kv: no bias", "nearest, kv", nearest.first_keys,
        '@ weight + bias', "@ weight"),
    Bug("kv: not normalised", "nearest, kv", nearest.first_keys,
        " / length + shift", " + shift"),
    Bug("kv: slots and heads mixed up", "nearest, kv", nearest.compared,
        "prompt.slots[0, 0].swapaxes(0, 1)", "prompt.slots[0, 0]"),
    # the way from the first slots
    Bug("relative to where it is now", "moved", inspection.moved,
        "norm(now - then), norm(then)", "norm(now - then), norm(now)"),
    Bug("slots told apart along another axis", "moved", inspection.moved,
        "SLOT_AXIS[prompt.carrier]", "-2 if prompt.carrier == 'embeddings' else 0"),
    Bug("the first slots' cosine with themselves", "moved", inspection.moved,
        "cosine(now, then)", "cosine(then, then)"),
    Bug("the trained slots are kept as the first ones", "initial", run.Run,
        "self.as_prompt(tree_map(to_host, self.initial)).slots", "self.as_prompt(tree_map(to_host, self.slots)).slots"),
    Bug("the first slots are not written", "initial", soft_prompt.SoftPrompt,
        'arrays |= {} if self.initial is None else {"initial": self.initial}', "pass"),
    Bug("the first slots are not read", "initial", soft_prompt.SoftPrompt,
        'tensors.get("initial")', "tensors.get(carrier)"),
    # rows
    Bug("slots in reverse order", "left out, embeddings", inspection.place_rows,
        "-1 - np.arange(P)", "np.arange(P) - P"),
    Bug("slots without positions", "left out, embeddings", inspection.place_rows,
        "prompt.slots + positions(params, P)", "prompt.slots"),
    Bug("tokens begin behind the slots whatever is said", "attention, embeddings, unshifted", inspection.place_rows,
        "embed(params, ids, prompt.start,", "embed(params, ids, P,"),
    Bug("a place said to be elsewhere is overlooked", "attention, hidden, logical", inspection.place_rows,
        "embed(params, ids, prompt.start,", "embed(params, ids, 0,"),
    Bug("the first token never scored", "left out, embeddings", inspection.place_rows,
        ">= np.array(starts)", "> np.array(starts)"),
    Bug("everything scored", "left out, later starts", inspection.place_rows,
        "scored = text & (np.arange(ids.shape[1]) >= np.array(starts)[:, None])", "scored = text.copy()"),
    Bug("slots of a template are scored", "left out, embeddings in rows", inspection.place_rows,
        " & (ids >= 0)", ""),
    Bug("padding is read as text", "attention, kv", inspection.place_rows,
        "text = (np.arange(ids.shape[1]) < lengths[:, None]) & (ids >= 0)", "text = ids >= 0"),
    Bug("the state of the token itself", "left out, kv", inspection.place_rows,
        "np.flatnonzero(scored) - 1", "np.flatnonzero(scored)"),
    # attention
    Bug("what slots look at is counted too", "attention, embeddings", inspection.attention_received,
        "like(rows.text, x)", "like(rows.text | (rows.ids < 0), x)"),
    Bug("every layer is the first", "attention, hidden", inspection.attention_received,
        "x, _, cache = block(", "_, _, cache = block("),
    Bug("the first layer's keys in every layer", "attention, kv", inspection.attention_received,
        "rows.past[layer]", "rows.past[0]"),
    Bug("the average of the rows' averages", "attention, kv", inspection.attention_received,
        "(probs * asking).sum(2)", "(probs * asking).sum(2) / asking.sum(2) * rows.text.sum() / len(rows.text)"),
    Bug("a tied slot counted at its first place", "attention, embeddings in rows", inspection.attention_received,
        "like(rows.keys[..., None] == np.arange(slots), x)",
        "like((rows.keys[..., None] == np.arange(slots)) & "
        "((rows.keys[..., None] == np.arange(slots)).cumsum(1) == 1), x)"),
    # the logit lens
    Bug("without the last LayerNorm", "lens, embeddings", inspection.lens,
        "logits(params, hidden)", "logits(params, x)"),
    Bug("logarithms for probabilities", "lens, hidden", inspection.lens,
        "np.exp(to_host(logp.max(-1)))", "to_host(logp.max(-1))"),
    Bug("states before ln_f at the end only", "lens, embeddings", inspection.residuals,
        "for x in stream]", "for x in stream[-1:]]"),
    Bug("the columns after the slots", "lens, embeddings", inspection.residuals,
        "(rows.ids[0] == -1 - p).argmax()", "(rows.ids[0] == -1 - p).argmax() + 1"),
    Bug("the last place of a tied slot", "lens, embeddings in rows", inspection.residuals,
        "(rows.ids[0] == -1 - p).argmax()", "np.flatnonzero(rows.ids[0] == -1 - p)[-1]"),
    # leaving out
    Bug("the key's neighbour is left out", "left out, kv", inspection.without,
        "np.arange(rows.before) != slot", "np.arange(rows.before) != (slot + 1) % rows.before"),
    Bug("left out of the first layer alone", "left out, kv", inspection.without,
        "a.take(index, axis=2) for a in layer", "(a.take(index, axis=2) if layer is rows.past[0] else a) for a in layer"),
    Bug("everything behind the slot is left out too", "left out, embeddings", inspection.without,
        "rows.ids != -1 - slot", "(rows.ids != -1 - slot) & (rows.ids != -1 - (slot + 1) % 3)"),
    Bug("the slot is emptied, not left out", "left out, embeddings", inspection.without,
        "return rows._replace(x=x, ids=rows.ids[row, column], text=rows.text[row, column]), kept.reshape(-1)",
        "return rows._replace(x=rows.x * like(kept, rows.x)[..., None]), np.ones(kept.size, bool)"),
    Bug("KL the other way round", "left out, hidden", inspection.left_out,
        "(chance * lost)", "(array_module(lost).exp(before - lost) * -lost)"),
    Bug("nats", "left out, hidden", inspection.left_out,
        "kl[slot] += BITS * to_host", "kl[slot] += to_host"),
    Bug("the loss falls", "left out, kv", inspection.left_out,
        "loss[slot] += ", "loss[slot] -= "),
    Bug("targets not shifted", "left out, kv", inspection.left_out,
        "[rows.places + 1]", "[rows.places]"),
    Bug("places that nothing predicts are counted", "left out, embeddings", inspection.left_out,
        "counted.sum(1)", "np.full(slots, len(rows.places))"),
    Bug("columns numbered as if nothing were gone", "left out, embeddings", inspection.left_out,
        "(np.cumsum(kept) - 1)[rows.places[still]]", "rows.places[still] % kept.sum()"),
    # over all rows
    Bug("the last rows alone", "batches", inspection.over_texts,
        "lost = lost + ", "lost = "),
    Bug("the lens of the last rows", "batches", inspection.over_texts,
        "if not some.start and ", "if "),
    Bug("a sum of attention, not a mean", "attention, embeddings", inspection.over_texts,
        "attention / tokens", "attention"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    plant(bug, monkeypatch)
    try:
        error = CHECKS[bug.caught_by]()
    except (ValueError, IndexError):
        return  # caught as it ran
    assert not error <= 1e-10
