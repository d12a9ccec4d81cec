"""What selection keeps of held-out notes: every selector, over the number of slots.

    python examples/embedded_model/selection.py --contexts 20 --seeds 3

One JSON line for each context and selector, and for each seed where chance chooses; its lists go over the numbers of
slots. The questions are the notes' own, in phrasings that are held out like their facts. Three controls stand beside
the selectors: snapkv without its pool; the last keys and values as they were read, whatever attends to them; and
snapkv whose window is the question, chosen anew for each.
"""

import argparse
import json
from dataclasses import replace
from functools import partial

import numpy as np

from compressors import asked
from minicompress.commands import open_model
from minicompress.compression.select import SELECTORS, evicted, greatest, looked_at, observed
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import Scores, score
from minicompress.gpt2.prefix import Prefix, read_tokens
from minicompress.training.shards import Shards
from slots import contexts

SIZES = [4, 8, 16, 32, 64]


def newest(probs, k):
    """The last k places, in every head."""
    H, _, T = probs.shape
    return np.tile(np.arange(T - k, T), (H, 1))


MEASURED = SELECTORS | {"snapkv, no pool": partial(evicted, partial(observed, width=1)), "last kv": partial(evicted, newest)}


def asked_first(pair, ids, query, k):
    """Of the context's keys and values the k that the question's tokens attend to most, with their neighbours."""
    question = query.ids[: query.start]
    choose = lambda probs, k: greatest(*looked_at(probs, len(question)), k, 0)
    return replace(evicted(choose, pair, ids + question, k, None), offset=len(ids))


def of_context(model, number, context, seeds, shards):
    ids, queries = model.tokenizer.encode(context.text).ids, asked(model, context)
    read = read_tokens(*model.pair, ids)
    teacher = Teacher(model.pair, read, queries, shards)
    worth = lambda prefix: score(model.pair, model.tokenizer, prefix, queries, teacher, shards)
    none, full = worth(Prefix()), worth(read)
    facts = {"number": number, "tokens": len(ids), "kl_none": round(none.mean_kl, 4), "recall_full": round(full.recall, 4)}
    for name, select in MEASURED.items():
        for seed in range(seeds if name == "random" else 1):
            prompts = [select(model.pair, ids, slots, np.random.default_rng(seed)) for slots in SIZES]
            found = [worth(prompt.prefix(*model.pair)) for prompt in prompts]
            yield {"selector": name, "seed": seed, **facts, **lists(found)}
    alone = [(query, Teacher(model.pair, read, [query], shards)) for query in queries]
    worth = lambda query, teacher, k: score(model.pair, model.tokenizer, asked_first(model.pair, ids, query, k).prefix(*model.pair), [query], teacher, shards)
    found = [together([worth(*one, slots) for one in alone]) for slots in SIZES]
    yield {"selector": "snapkv, asked", "seed": 0, **facts, **lists(found)}


def together(parts):
    """The scores of one query each, as those of all."""
    return Scores([kl for part in parts for kl in part.kl], [agree for part in parts for agree in part.agree], float(np.mean([part.recall for part in parts])))


def lists(found):
    parts = (("kl", "mean_kl"), ("p95", "p95_kl"), ("top1", "agreement"), ("recall", "recall"))
    return {name: [round(getattr(scores, part), 4) for scores in found] for name, part in parts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    model = open_model()
    with Shards() as shards:
        for number, (_, context) in enumerate(contexts(args.contexts, 0)):
            for line in of_context(model, number, context, args.seeds, shards):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
