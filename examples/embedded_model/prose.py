"""Passages of books, one a line, for `train-compressor --data`; and what a compressor of them says of the next segment.

    python examples/embedded_model/prose.py --write passages.jsonl --count 20000
    python examples/embedded_model/prose.py --compressor runs/prose --count 200

Of held-out books: bits a token of a last segment, given nothing, all that stands before it, as many plain tokens as there
are slots, and the slots. One JSON line for each passage, with the sums that make up the means.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from corpus import read_books
from minicompress.cli.compressors import open_compressor
from minicompress.commands import open_model
from minicompress.compression.queries import Query, pad
from minicompress.evaluation.metrics import BITS
from minicompress.gpt2 import logits
from minicompress.gpt2.prefix import Prefix, predictors, read_tokens
from minicompress.layers.losses import cross_entropy


def passages(tokenizer, rng, split, count, tokens):
    """`count` stretches of so many tokens out of the books of a split, each drawn evenly over all of their tokens."""
    books = [ids for text in read_books(split) if len(ids := tokenizer.encode(text).ids) >= tokens]
    ends = np.cumsum([len(ids) - tokens + 1 for ids in books])
    for place in np.sort(rng.choice(ends[-1], min(count, ends[-1]), replace=False)):
        book = int(np.searchsorted(ends, place, side="right"))
        start = int(place - (ends[book - 1] if book else 0))
        yield books[book][start : start + tokens]


def bits(pair, prefix, ids):
    """Of the tokens behind the first one of the segment, which nothing predicts where nothing stands before it."""
    rows, scored = pad([Query(ids, 1)])
    hidden, _ = predictors(*pair, prefix, rows, scored, keep="nothing")
    losses, _ = cross_entropy(logits(pair[0], hidden), np.asarray(ids[1:]))
    return float(losses.sum()) * BITS


def measure(model, reader, made, ids, segment):
    """bits of the last `segment` tokens by what stands before them."""
    before, last = ids[:-segment], ids[-segment:]
    prompt = made.compress(reader.pair, before)
    k = prompt.length
    read = {"none": [], "full": before, "first": before[:k], "last": before[-k:]}
    row = {name: bits(model.pair, read_tokens(*model.pair, some) if some else Prefix(), last) for name, some in read.items()}
    row["sigma"] = bits(reader.pair, prompt.prefix(*reader.pair), last)
    return {"producer": made.kind, "tokens": len(before), "slots": k, "scored": len(last) - 1, **row}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compressor", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    args = parser.parse_args()
    model, rng = open_model(), np.random.default_rng(0)
    if args.write:
        made = passages(model.tokenizer, rng, "train", args.count, args.tokens[0])
        lines = [json.dumps({"text": model.tokenizer.decode(ids)}) + "\n" for ids in made]
        args.write.write_text("".join(lines[i] for i in rng.permutation(len(lines))), encoding="utf-8")
        return
    made, reader = open_compressor(args.compressor, model, "cpu")
    for tokens in args.tokens:
        for ids in passages(model.tokenizer, rng, "valid", args.count, tokens):
            found = {"compressor": args.compressor.name} | measure(model, reader, made, ids, made.segment)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
