"""What Attention Matching keeps of held-out notes, by self-study alone, and its time over the length of a context.

    python examples/embedded_model/matching.py --contexts 5 --seeds 3

One JSON line for each context, seed, kind of reference rows, budget of heads, way of choosing keys and number of slots;
then the times. The questions are the notes' own, in phrasings that are held out like their facts.
"""

import argparse
import json
import time
from itertools import product

import numpy as np

from compressors import asked
from minicompress.commands import open_model
from minicompress.compression.matching import attention_matching, repeat_prefill
from minicompress.compression.problem import Problem, Recipe
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2.prefix import Prefix
from minicompress.training.shards import Shards
from slots import contexts

WAYS = [("self-study", "even", "rms"), ("self-study", "even", "omp"), ("self-study", "by-need", "rms"),
        ("self-study", "by-need", "omp"), ("repeat-prefill", "even", "rms")]  # fmt: skip


def of_context(model, number, context, seed, shards):
    problem = Problem(model, model, context.text, Recipe(seed=seed), shards=shards)
    queries, pair, ids = asked(model, context), model.pair, problem.ids
    references = {"self-study": [q.ids for q in problem.train], "repeat-prefill": repeat_prefill(ids, pair[1])}
    teacher = Teacher(pair, problem.read, queries, shards)
    worth = lambda prefix: score(pair, model.tokenizer, prefix, queries, teacher, shards)
    none, full = worth(Prefix()), worth(problem.read)
    sizes = (1, 2, 4, 8, 16, 32, len(ids) // 4)
    for (reference, budget, choose), slots in product(WAYS, sizes):
        rows, began = references[reference], time.perf_counter()
        made = attention_matching(pair, ids, slots, rows, choose, budget=budget)
        seconds, found = time.perf_counter() - began, worth(made.prefix(*pair))
        yield {"number": number, "seed": seed, "reference": reference, "budget": budget, "choose": choose, "slots": slots,
               "wide": made.length, "tokens": len(ids), "kl": round(found.mean_kl, 4),
               "kl_none": round(none.mean_kl, 4), "recall": round(found.recall, 4),
               "recall_full": round(full.recall, 4), "rows": len(rows), "seconds": round(seconds, 4)}  # fmt: skip


def of_length(model, tokens):
    """The seconds for a context of so many tokens, whatever they say, at four tokens a slot and 128 rows of 24."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, model.pair[1].vocab_size, tokens).tolist()
    rows = rng.integers(1, model.pair[1].vocab_size, (128, min(24, model.pair[1].n_positions - tokens))).tolist()
    began = time.perf_counter()
    attention_matching(model.pair, ids, tokens // 4, rows)
    return {"tokens": tokens, "slots": tokens // 4, "seconds": round(time.perf_counter() - began, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    model = open_model()
    with Shards() as shards:
        for seed in range(args.seeds):
            for number, (_, context) in enumerate(contexts(args.contexts, 0)):
                for line in of_context(model, number, context, seed, shards):
                    print(json.dumps(line), flush=True)
    for tokens in (64, 128, 256, 488):
        print(json.dumps(of_length(model, tokens)), flush=True)


if __name__ == "__main__":
    main()
