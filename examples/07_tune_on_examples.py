"""Slots learn a task from examples with their answers: words sorted into groups, asked for words never trained on."""

import json
import tempfile
from pathlib import Path

from miniature import groups
from minicompress.commands import open_model
from minicompress.training.shards import Shards
from minicompress.tuning.outcome import outcome
from minicompress.tuning.recipe import Recipe
from minicompress.tuning.run import Tuning

model, task = open_model(), groups(seed=0)
with tempfile.TemporaryDirectory() as folder, Shards() as shards:
    files = []
    for name, pairs in zip(("train", "valid"), task, strict=True):
        files.append(Path(folder) / f"{name}.jsonl")
        files[-1].write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs))
    run = Tuning(model, Recipe(template="{text}", init="uniform", steps=100, evaluate_every=25), *files, shards=shards)
    run.train()
    result = outcome(run)
print(f"{run.prompt().length} slots, {len(task.train)} examples; held out, by steps:")
for row in run.history:
    print(f"  {row['step']:4}  loss {row['loss']:.3f}  accuracy {row['accuracy']:.0%}")
print(*(result["diagnosis"] or ["nothing suspicious"]), sep="\n")
