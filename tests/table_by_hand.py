"""A compression's table from the definitions, row by row and query by query, and how far `evaluate` is from it."""

from dataclasses import replace

import numpy as np

from generating import read_at_once, written_anew
from minicompress.compression.queries import FORM, pad
from minicompress.evaluation.baselines import evaluate
from outer_checks import letters_run


def prepare(run):
    """Trained, and evaluated on five queries, of which two are answered as the full context makes one answer, one in part."""
    run.train_slots()
    run.held = (run.held + run.train)[:5]
    full = fronts(run)["full"]
    for i, part in ((1, slice(None)), (2, slice(4)), (3, slice(None))):
        run.held[i] = replace(run.held[i], answer=answer_by_hand(run, full, run.held[i])[part])


def fronts(run):
    """What stands before the questions in each row, as embeddings."""
    wte, ids, k = run.model.wte, run.ids, run.recipe.slots
    return {"none": wte[:0], "full": wte[ids], "first": wte[ids[:k]], "last": wte[ids[len(ids) - k :]],
            "init": run.initial, "sigma": run.slots}  # fmt: skip


def answer_by_hand(run, front, query):
    """Greedy up to the first line end, everything read anew for each token."""
    tokenizer = run.model.tokenizer
    new, _ = written_anew(run.model.pair, tokenizer.encode(FORM.format(question=query.question)).ids, 32, front)
    return tokenizer.decode(new).split("\n")[0].strip()


def places(run, front, query):
    """log2 of what is expected at each scored place of one query: (n, V)."""
    logits = read_at_once(*run.model.pair, front, query.ids)[0]
    read = logits[len(front) + query.start - 1 : len(front) + len(query.ids) - 1]
    return np.log2(np.exp(read) / np.exp(read).sum(-1, keepdims=True))


def row_by_hand(run, front):
    """Bits of KL over all places, their 95% quantile, agreement of the likeliest tokens, recall of known answers."""
    full = fronts(run)["full"]
    theirs, ours = (np.concatenate([places(run, f, q) for q in run.held]) for f in (full, front))
    kl = (np.exp2(theirs) * (theirs - ours)).sum(-1)
    recalled = [answer_by_hand(run, front, q) == q.answer for q in run.held if q.answer is not None]
    return {"positions": len(front), "kl": kl.mean(), "kl_p95": np.quantile(kl, 0.95),
            "top1_agreement": (theirs.argmax(-1) == ours.argmax(-1)).mean(), "recall": np.mean(recalled)}  # fmt: skip


def table_error():
    with letters_run() as run:
        prepare(run)
        found = evaluate(run)["rows"]
        by_hand = {name: row_by_hand(run, front) for name, front in fronts(run).items()}
    errors = [float(found.keys() != by_hand.keys())]
    for name, row in by_hand.items():
        row["gap_closed"] = 1 - row["kl"] / by_hand["none"]["kl"]
        errors += [abs(found[name][number] - truth) / max(1, abs(truth)) for number, truth in row.items()]
    return max(errors)


def pad_error():
    """Answers, and nothing else, are scored: of every query just the tokens that its places foretell."""
    with letters_run() as run:
        ids, scored = pad(run.train)
        wanted = [q.ids[q.start :] for q in run.train]
    return float([ids[row][scored[row]].tolist() for row in range(len(wanted))] != wanted)


CHECKS = {"table": table_error, "scored tokens": pad_error}
