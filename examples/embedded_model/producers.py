"""What slots by gradient keep of held-out notes, in every carrier, and where they begin as another producer's result.

    python examples/embedded_model/producers.py kv --contexts 5 --seeds 3 --slots 1 2 4 8 16 32

One JSON line a run. The way `any-prefix` is one training of the most slots, of which the first few are evaluated each
time, and `cut` is the same for slots that were not trained for it; `matched` and `pooled` are a quarter of the steps, from Attention Matching's slots or from means. The teacher's
questions are the same for all ways; the notes' own, in phrasings that are held out like their facts, are what is asked.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from compressors import asked
from minicompress.commands import open_model
from minicompress.compression.matching import attention_matching
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.compression.select import SELECTORS
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import score
from minicompress.gpt2.prefix import Prefix
from minicompress.training.shards import Shards
from slots import contexts

KV = {"carrier": "kv", "init": "text"}
LATER = {"carrier": "kv", "positions": "logical", "steps": 50, "lr": 0.01}
FIRST = ("any-prefix", "cut")
WAYS = {
    "embeddings": {},
    "hidden": {"carrier": "hidden"},
    "kv": KV,
    "kv, logical": KV | {"positions": "logical"},
    "kv, first frozen": KV | {"init": "first", "freeze_first": True},
    "kv, hidden matched": KV | {"loss": "hidden"},
    "kv, attention matched": KV | {"loss": "attention"},
    "kv, kl and hidden": KV | {"loss": "kl+0.1*hidden"},
    "kv, kl and attention": KV | {"loss": "kl+0.1*attention"},
    "lora": {"carrier": "lora", "lr": 0.003},
    "any-prefix": KV | {"any_prefix": True},
    "cut": KV,
    "matched": LATER | {"beta": True},
    "pooled": LATER,
}


def begun(way, model, ids, rows, slots):
    """The prompt whose slots a way begins as; None where it begins by itself."""
    if way == "matched":
        return attention_matching(model.pair, ids, slots, rows)
    return SELECTORS["pooled-kv"](model.pair, ids, slots, None) if way == "pooled" else None


def run(way, model, context, slots, seed, shards, cache):
    """A trained Run of one way, and the prompt that it began as, where this is another producer's."""
    recipe = replace(Recipe(slots=slots, seed=seed), **WAYS[way])
    made = Run(model, model, context.text, recipe, shards=shards, cache=cache)
    if first := begun(way, model, made.ids, [q.ids for q in made.train], slots):
        made = made.with_start(first.tree)
    made.train_slots()
    return made, first


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    model, trained = open_model(), args.slots[-1:] if args.way in FIRST else args.slots
    with Shards() as shards, tempfile.TemporaryDirectory() as folder:
        for seed, slots in ((seed, slots) for seed in range(args.seeds) for slots in trained):
            for number, (_, context) in enumerate(contexts(args.contexts, 0)):
                made, first = run(args.way, model, context, slots, seed, shards, args.cache or Path(folder))
                queries = asked(model, context)
                teacher = Teacher(model.pair, made.read, queries, shards)
                worth = lambda prefix, pair=model.pair: score(pair, model.tokenizer, prefix, queries, teacher, shards)  # noqa: B023
                none, full, prompt = worth(Prefix()), worth(made.read), made.as_prompt(made.slots)
                for size in args.slots if args.way in FIRST else [slots]:
                    part = prompt if made.low_rank else prompt.first(size)
                    found = worth(part.prefix(*made.model.pair), made.reader)
                    line = {"way": args.way, "number": number, "seed": seed, "slots": size, "tokens": len(made.ids),
                            "kl": found.mean_kl, "kl_none": none.mean_kl, "recall": found.recall,
                            "recall_full": full.recall, "seconds": made.seconds_training}  # fmt: skip
                    line |= {"kl_begun": worth(first.prefix(*model.pair)).mean_kl} if first else {}
                    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    main()
