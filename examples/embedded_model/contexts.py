"""Contexts with questions, one a line, for `minicompress train-compressor --data`: the ladder's notes and shown tasks.

    python examples/embedded_model/contexts.py --count 20000 --out contexts.jsonl
"""

import argparse
import json
from pathlib import Path

import numpy as np

from notes import notes
from tasks import task


def contexts(rng, count, held_out=False):
    """{"context", "queries"}: four notes on one to four people for each task."""
    for number in range(count):
        people = int(rng.integers(1, 5))
        made = task(rng, held_out) if number % 5 == 4 else notes(rng, people, int(rng.integers(people, people * 4 + 1)), held_out)
        yield {"context": made.text, "queries": [{"question": q.question, "answer": q.answer} for q in made.questions]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lines = contexts(np.random.default_rng(args.seed), args.count, args.held_out)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
