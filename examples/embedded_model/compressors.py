"""What a trained compressor keeps of contexts that it was never trained on, beside the same number of plain tokens.

    python examples/embedded_model/compressors.py runs/gist --contexts 20 --slots 1 2 4 8 16 32
    python examples/embedded_model/compressors.py runs/autocompressor --stream 24

One JSON line for each context, or length of stream. The questions are the context's own, in phrasings that are held out
like its facts. In a stream one note follows another, and after each every note so far is asked about; the full
context is there the one note that knows, since no window holds them all.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from minicompress.cli.compressors import open_compressor
from minicompress.commands import open_model
from minicompress.compression.queries import question_query
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2.prefix import Prefix, read_tokens
from minicompress.training.shards import Shards
from notes import notes
from slots import contexts


def asked(model, context):
    return [question_query(model.tokenizer, q.question, q.answer, q.answer) for q in context.questions]


def one_context(model, reader, made, context, sizes, shards):
    """KL and recall of each number of slots a segment, and of first and last tokens as many as these are in all."""
    ids, queries = model.tokenizer.encode(context.text).ids, asked(model, context)
    read = read_tokens(*model.pair, ids)
    teacher = Teacher(model.pair, read, queries, shards)

    def worth(pair, prefix):
        found = score(pair, model.tokenizer, prefix, queries, teacher, shards)
        return {"kl": found.mean_kl, "recall": found.recall}

    rows = {"none": worth(model.pair, Prefix()), "full": worth(model.pair, read)}
    for size in sizes:
        began = time.perf_counter()
        prompt = made.compress(reader.pair, ids, size)
        seconds, k = time.perf_counter() - began, prompt.length
        row = {"slots": k, "seconds": seconds, "sigma": worth(reader.pair, prompt.prefix(*reader.pair))}
        cuts = {"first": ids[:k], "last": ids[-k:]}
        row |= {name: worth(model.pair, read_tokens(*model.pair, some)) for name, some in cuts.items()}
        yield {"producer": made.kind, "segment": made.segment, "tokens": len(ids), "per_segment": size, **rows, **row}


def stream(model, reader, made, count, size, shards, rng):
    """After so many notes, what is left of each: KL from the model that reads that one note alone."""
    written = [notes(rng, 1, 3, held_out=True) for _ in range(count)]
    tokens = [model.tokenizer.encode(note.text).ids for note in written]
    queries = [asked(model, note) for note in written]
    for passed in (1, 2, 3, 4, 6, 8, 12, 16, 24):
        if passed > count:
            break
        ids = [i for some in tokens[:passed] for i in some]
        prompt = made.compress(reader.pair, ids, size)
        fits = prompt.start + 48 <= model.pair[1].n_positions
        found = {"none": [], "sigma": [], "last": []}
        for note in range(passed):
            teacher = Teacher(model.pair, read_tokens(*model.pair, tokens[note]), queries[note], shards)
            kl = lambda pair, prefix: score(pair, model.tokenizer, prefix, queries[note], teacher, shards).mean_kl  # noqa: B023
            found["none"].append(kl(model.pair, Prefix()))
            found["last"].append(kl(model.pair, read_tokens(*model.pair, ids[-prompt.length :][-400:])))
            found["sigma"].append(kl(reader.pair, prompt.prefix(*reader.pair)) if fits else None)
        yield {"producer": made.kind, "segment": made.segment, "passed": passed, "tokens": len(ids), "slots": prompt.length, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compressor", type=Path)
    parser.add_argument("--contexts", type=int, default=0)
    parser.add_argument("--slots", type=int, nargs="+", default=[8])
    parser.add_argument("--stream", type=int, default=0)
    args = parser.parse_args()
    model = open_model()
    made, reader = open_compressor(args.compressor, model, "cpu")
    with Shards() as shards:
        for _, context in contexts(args.contexts, 0):
            for line in one_context(model, reader, made, context, args.slots, shards):
                print(json.dumps(line), flush=True)
        for line in stream(model, reader, made, args.stream, args.slots[-1], shards, np.random.default_rng(11)):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
