"""Two notes, each compressed alone: what their slots are worth side by side, and what they do to other questions.

    python examples/embedded_model/composition.py --pairs 5 --seeds 3

One JSON line for each pair, seed and way. `own` are the questions about the note whose slots stand there, in bits of KL
from the model that reads that note alone. `strangers` are asked about in a third note's questions, and `prose` is
passages of books: there in bits of KL from the model that has read nothing. All are means over both notes of a pair.
"""

import argparse
import json

import numpy as np

from compressors import asked
from minicompress.commands import open_model
from minicompress.compression.matching import attention_matching
from minicompress.compression.problem import Recipe
from minicompress.compression.queries import Query
from minicompress.compression.run import Run
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2.prefix import Prefix, read_tokens
from minicompress.prompts.soft_prompt import concatenate
from minicompress.training.shards import Shards
from notes import NAMES, notes
from prose import passages

WAYS = {
    "embeddings": {},
    "kv": {"carrier": "kv"},
    "kv, logical": {"carrier": "kv", "positions": "logical"},
    "attention-matching": {"positions": "logical", "carrier": "kv"},
}


def people(text):
    return {name for name in NAMES if name in text}


def triples(count):
    """Of held-out notes three at a time, on people who are in none of the other two."""
    rng, found = np.random.default_rng(21), []
    while len(found) < count:
        three = [notes(rng, 2, 6, held_out=True) for _ in range(3)]
        named = [people(note.text) for note in three]
        if sum(map(len, named)) == len(set.union(*named)):
            found.append(three)
    return found


def slots_of(way, model, note, seed, shards):
    """Eight slots by one of WAYS, by self-study alone."""
    run = Run(model, model, note.text, Recipe(seed=seed, **WAYS[way]), shards=shards)
    if way == "attention-matching":
        return attention_matching(model.pair, run.ids, 8, [q.ids for q in run.train])
    run.train_slots()
    return run.as_prompt(run.slots)


def measure(way, model, three, prose, seed, shards):
    texts = [model.tokenizer.encode(note.text).ids for note in three]
    made = [slots_of(way, model, note, seed, shards) for note in three[:2]]
    reads = lambda prompt: prompt.prefix(*model.pair)
    both = lambda n: [made[n], made[1 - n]]

    def kl(prefix, queries, knows):
        teacher = Teacher(model.pair, knows, queries, shards)
        return score(model.pair, model.tokenizer, prefix, queries, teacher, shards).mean_kl

    def over(make, queries=None):
        """The mean over both notes of make(n), a prefix: on the note's questions, or others that no note answers."""
        knows = lambda n: Prefix() if queries else read_tokens(*model.pair, texts[n])
        return float(np.mean([kl(make(n), queries or asked(model, three[n]), knows(n)) for n in (0, 1)]))

    text = lambda n: read_tokens(*model.pair, texts[n] + texts[1 - n])
    return {
        "none": over(lambda n: Prefix()),
        "own": over(lambda n: reads(made[n])),
        "own, other": over(lambda n: reads(concatenate(both(n)))),
        "other, own": over(lambda n: reads(concatenate(both(1 - n)))),
        "other": over(lambda n: reads(made[1 - n])),
        "texts: own, other": over(text),
        "texts: other, own": over(lambda n: text(1 - n)),
        "strangers": over(lambda n: reads(made[n]), asked(model, three[2])),
        "strangers, by the text": over(lambda n: read_tokens(*model.pair, texts[n]), asked(model, three[2])),
        "prose": over(lambda n: reads(made[n]), prose),
        "prose, by the text": over(lambda n: read_tokens(*model.pair, texts[n]), prose),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    model = open_model()
    prose = [Query(ids, 1) for ids in passages(model.tokenizer, np.random.default_rng(0), "valid", 16, 48)]
    with Shards() as shards:
        for way in args.ways:
            for seed in range(args.seeds):
                for number, three in enumerate(triples(args.pairs)):
                    found = measure(way, model, three, prose, seed, shards)
                    line = {"way": way, "pair": number, "seed": seed} | {k: round(v, 4) for k, v in found.items()}
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
