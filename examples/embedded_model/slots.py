"""What a few slots keep of contexts that the model was never trained on, by self-study alone.

    python examples/embedded_model/slots.py --contexts 20 --tasks 10
    python examples/embedded_model/slots.py --contexts 5 --tasks 0 --slots 1 2 4 8 16 32 --seeds 3

One JSON line a run, then the medians. The questions of the evaluation, in phrasings that are held
out like the facts, are dropped from what the teacher wrote.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from minicompress.commands import open_model
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.evaluation.baselines import evaluate
from minicompress.training.shards import Shards
from notes import notes
from tasks import task


def contexts(count, tasks):
    """Held-out notes of three and four people, then held-out tasks."""
    rng = np.random.default_rng(7)
    found = [("notes", notes(rng, 3 + i % 2, 8 + i % 7, held_out=True)) for i in range(count)]
    return found + [("task", task(rng, held_out=True)) for _ in range(tasks)]


def compress(model, context, recipe, shards, folder):
    """The table of one run, evaluated on the context's own questions."""
    asked = Path(folder) / "asked.jsonl"
    asked.write_text("\n".join(json.dumps({"question": q.question, "answer": q.answer}) for q in context.questions))
    run = Run(model, model, context.text, recipe, evaluate_on=asked, shards=shards)
    run.train_slots()
    return evaluate(run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--slots", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    args = parser.parse_args()
    model, results = open_model(args.model), []
    with Shards() as shards, tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for slots in args.slots:
                for number, (kind, context) in enumerate(contexts(args.contexts, args.tasks)):
                    result = compress(model, context, Recipe(slots=slots, seed=seed, steps=args.steps), shards, folder)
                    full, sigma, none = (result["rows"][name] for name in ("full", "sigma", "none"))
                    facts = {"kind": kind, "number": number, "slots": slots, "seed": seed, "tokens": result["context_tokens"],
                             "gap_closed": sigma["gap_closed"], "kl": sigma["kl"], "kl_none": none["kl"],
                             "recall": sigma["recall"], "recall_full": full["recall"], "recall_none": none["recall"],
                             "top1": sigma["top1_agreement"], "seconds": result["seconds"]}
                    results.append(facts)
                    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}), flush=True)
    for kind in ("notes", "task"):
        for slots in args.slots:
            rows = [r for r in results if (r["kind"], r["slots"]) == (kind, slots)]
            if rows:
                gap, seconds = (float(np.median([r[name] for r in rows])) for name in ("gap_closed", "seconds"))
                mean = {name: float(np.mean([r[name] for r in rows])) for name in ("gap_closed", "recall", "recall_full", "recall_none")}
                print(json.dumps({"median": kind, "slots": slots, "runs": len(rows), "gap_closed": gap, "seconds": seconds, "mean": mean}))


if __name__ == "__main__":
    main()
