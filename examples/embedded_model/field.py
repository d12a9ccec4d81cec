"""Every way to compress, on the same held-out notes and shown tasks, at about as many slots: one table.

    python examples/embedded_model/field.py --contexts 10 --tasks 5 --slots 16 --compressors runs/gist runs/rmt

One JSON line for each context and producer: KL from the reader of the whole text on the context's own questions, in
phrasings that are held out like its facts, and how many answers are right to the letter. What is trained per context
learns from self-study alone. A compressor leaves so many slots a segment that all together come closest to `--slots`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from compressors import asked
from minicompress.cli.compressors import open_compressor
from minicompress.commands import open_model
from minicompress.compression.matching import attention_matching
from minicompress.compression.problem import Problem, Recipe
from minicompress.compression.select import SELECTORS
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2.prefix import Prefix
from minicompress.training.shards import Shards
from producers import run
from slots import contexts

GRADIENT = ("embeddings", "hidden", "kv", "lora", "matched")


def a_segment(compressor, tokens, slots):
    """How many slots a segment, so that there are about `slots` in all."""
    segments = -(-tokens // compressor.segment) if compressor.method.merge == "concatenate" else 1
    return min(compressor.slots, max(1, round(slots / segments)))


def made_of(model, context, slots, seed, shards, cache, compressors, ways):
    """(name, pair that reads, prefix, slots, seconds) of every producer, and first the Problem."""
    problem = Problem(model, model, context.text, Recipe(seed=seed), shards=shards, cache=cache)
    yield problem
    pair, ids, rows = model.pair, problem.ids, [q.ids for q in problem.train]
    slots = min(slots, len(ids))
    once = {name: lambda f=f: f(pair, ids, slots, np.random.default_rng(seed)) for name, f in SELECTORS.items()}
    once["attention-matching"] = lambda: attention_matching(pair, ids, slots, rows)
    once["attention-matching, by need"] = lambda: attention_matching(pair, ids, slots, rows, budget="by-need")
    readers = dict.fromkeys(once, pair)
    for name, (compressor, reader) in compressors.items():
        size = a_segment(compressor, len(ids), slots)
        once[name] = lambda c=compressor, r=reader, n=size: c.compress(r.pair, ids, n)
        readers[name] = reader.pair
    for name, make in once.items():
        began = time.perf_counter()
        prompt = make()
        yield name, readers[name], prompt.prefix(*readers[name]), prompt.length, time.perf_counter() - began
    for way in ways:
        began = time.perf_counter()
        trained, _ = run(way, model, context, slots, seed, shards, cache)
        prompt = trained.as_prompt(trained.slots)
        seconds, prefix = time.perf_counter() - began, prompt.prefix(*model.pair)
        yield f"gradient, {way}", trained.reader, prefix, prompt.length, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=list(GRADIENT))
    parser.add_argument("--compressors", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    model = open_model()
    opened = {path.name: open_compressor(path, model, "cpu") for path in args.compressors}
    with Shards() as shards, tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        for number, (kind, context) in enumerate(contexts(args.contexts, args.tasks)):
            problem, *made = made_of(model, context, args.slots, args.seed, shards, cache, opened, args.ways)
            queries = asked(model, context)
            teacher = Teacher(model.pair, problem.read, queries, shards)
            rows = [("none", model.pair, Prefix(), 0, 0.0), ("full", model.pair, problem.read, len(problem.ids), 0.0)]
            for name, pair, prefix, slots, seconds in rows + made:
                found = score(pair, model.tokenizer, prefix, queries, teacher, shards)
                line = {"kind": kind, "number": number, "producer": name, "tokens": len(problem.ids), "slots": slots,
                        "kl": round(found.mean_kl, 4), "recall": round(found.recall, 4), "seconds": round(seconds, 3)}  # fmt: skip
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
