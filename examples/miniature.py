"""What the slow examples share: small supervised tasks for the embedded model, and prompts tuned on them.

`groups`: words of four kinds have an invented label each; words of the same kinds are asked that were
never trained on. `facts`: who has which pet, job, …; the same facts are asked in words never trained on.
`sentences`: of the data sets Subj or MR, if the data folder is there. Only the answers are scored.
"""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).parent / "embedded_model"))
from corpus import documents as documents  # for the example that trains the model on
from minicompress.compression.gradient import train_slots
from minicompress.compression.queries import FORM, Query, line_ends
from minicompress.gpt2.generate import generate
from minicompress.training.adamw import adamw_init
from notes import KINDS, NAMES, phrasings

DATA = Path(os.environ.get("MINICOMPRESS_DATA", Path(__file__).parents[1] / "../shared/data"))
RESULTS = Path(os.environ.get("MINICOMPRESS_RESULTS", Path(__file__).parent / "results"))
LABELS = {"pet": "drobix", "job": "sturud", "food": "blazel", "place": "mukim"}


class Task(NamedTuple):
    train: list  # of (text, answer)
    test: list


def groups(seed):
    """48 words to train on and 48 others, twelve of each kind."""
    rng, train, test = np.random.default_rng((seed, 1)), [], []
    for kind, label in LABELS.items():
        words = rng.permutation(KINDS[kind].values)
        for part, some in ((train, words[:12]), (test, words[12:])):
            part += [(FORM.format(question=f"Which group has {word}?"), label) for word in some]
    return Task(train, test)


def facts(seed, people=6, each=4):
    """24 facts about six people; three questions each to train on, and one in other words."""
    rng, train, test = np.random.default_rng((seed, 2)), [], []
    for name in rng.choice(NAMES, people, replace=False):
        for kind in rng.choice(list(KINDS), each, replace=False):
            value, asked = str(rng.choice(KINDS[kind].values)), rng.permutation(phrasings(KINDS[kind].questions, False))
            rows = [(FORM.format(question=q.format(n=name)), value) for q in asked[:4]]
            train, test = train + rows[:-1], test + rows[-1:]
    return Task(train, test)


def sentences(seed, name="subj", train=1000, test=400, most=160):
    """Sentences of films: a reviewer's opinion or a story's facts (`subj`), or good and bad ones (`mr`), Pang & Lee 2004/5."""
    rng, parts = np.random.default_rng((seed, 3)), []
    words = {"subj": ("fact", "opinion"), "mr": ("bad", "good")}[name]
    for part, count in (("train", train), ("test", test)):
        rows = [json.loads(line) for line in (DATA / f"tasks/{name}/{part}.jsonl").read_text().splitlines()]
        rows = [row for row in rows if len(row["text"]) < most]
        picked = [rows[i] for i in rng.permutation(len(rows))[:count]]
        parts.append([(f"{row['text']}\nThis is", words[row["label"]]) for row in picked])
    return Task(*parts)


def queries(tokenizer, pairs, place=lambda ids: ids):
    """(text, answer) as rows whose answer and line end are scored; `place` puts slots among a text's tokens."""
    found = []
    for text, answer in pairs:
        before = place(tokenizer.encode(text).ids)
        found.append(Query(before + tokenizer.encode(f" {answer}\n").ids, len(before), answer=answer))
    return found


def tune(model, door, raw, rows, shards, steps=200, lr=0.03, batch=16, seed=0, on_step=None):
    """Adam on a copy of raw arrays, an array or a tree, behind their door -> the trained copy."""
    raw = {name: x.copy() for name, x in raw.items()} if isinstance(raw, dict) else raw.copy()
    train_slots(model.pair, raw, adamw_init({"slots": raw}), rows, None, steps, shards=shards, loss="likelihood",
                lr=lr, rows=batch, seed=seed, on_step=on_step, door=door)  # fmt: skip
    return raw


def accuracy(model, prefix, rows):
    """The share of answers that greedy writing gives word for word."""
    stop = line_ends(model.tokenizer, 1)
    written = generate(*model.pair, [row.ids[: row.start] for row in rows], 8, prefix, stop)
    return float(
        np.mean([model.tokenizer.decode(new).strip() == row.answer for new, row in zip(written, rows, strict=True)])
    )


def once(number, jobs):
    """Runs the jobs {name: function} that results/NUMBER.json has no result of, keeping each as it comes -> all results."""
    path = RESULTS / f"{number}.json"
    RESULTS.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, job in jobs.items():
        if name not in results:
            results[name] = job()
            print(name, json.dumps(results[name]), flush=True)
            path.write_text(json.dumps(results, indent=0) + "\n")
    return results
