"""`compress` where nothing is trained: by a trained compressor, or by selection; and the same table."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicompress.arrays import to_host
from minicompress.cli.common import aside
from minicompress.cli.compressors import open_compressor
from minicompress.compression.problem import QUERY_TOKENS, Model, Problem, place
from minicompress.compression.select import SELECTORS
from minicompress.evaluation.baselines import evaluate
from minicompress.prompts.soft_prompt import SoftPrompt, text_hash


def by_compressor(folder: Path, kind: str | None, slots: int | None, model: Model, device: str) -> tuple:
    """-> what makes a prompt of token ids, the model that reads it, and the recipe's words."""
    compressor, reader = open_compressor(folder, model, device)
    if kind and kind != compressor.kind:
        raise ValueError(f"{folder} holds a compressor of the kind {compressor.kind}; --producer is {kind}")
    recipe = {"producer": compressor.kind, "segment": compressor.segment}
    return (lambda ids: compressor.compress(reader.pair, ids, slots)), reader, recipe


def by_selection(name: str, slots: int, model: Model, seed: int) -> tuple:
    """The same, of a selector."""
    rng = np.random.default_rng(seed)
    return (lambda ids: SELECTORS[name](model.pair, ids, slots, rng)), model, {"producer": name, "seed": seed}


def compress_once(way: tuple, model: Model, text: str, out: Path, problem: tuple) -> dict:
    """The text in one of these ways -> a prompt's file; its facts, and the table where there can be one.

    problem: the recipe, files of queries and shards. There is no table of a context that no teacher can read.
    """
    make, reader, recipe = way
    began, ids = time.perf_counter(), model.tokenizer.encode(text).ids
    made = make(ids)
    seconds = time.perf_counter() - began
    said = {"model": reader.hash, "context": text_hash(text), "context_tokens": len(ids), "recipe": recipe}
    made = replace(made, slots=to_host(made.slots), provenance=said)
    made.check_model(reader.pair[1], str(out))
    made.save(out)
    facts = {"out": str(out), "producer": recipe["producer"], "context_tokens": len(ids), "slots": made.length,
             "seconds": seconds}  # fmt: skip
    made = replace(made, slots=place(made.slots, model.wte))
    room = model.pair[1].n_positions
    if len(ids) + QUERY_TOKENS > room:
        aside.print(f"no table: n_positions is {room:,}, so no teacher can read {len(ids):,} tokens and a query")
        return facts
    return facts | table(model, text, problem, made, reader, seconds)


def table(model: Model, text: str, problem: tuple, made: SoftPrompt, reader: Model, seconds: float) -> dict:
    """The rows of `evaluate`."""
    recipe, queries, evaluate_on, shards = problem
    recipe = replace(recipe, slots=made.length, positions=made.positions)
    with aside.status("the teacher reads the context, and writes questions" if not queries else "the teacher reads"):
        asked = Problem(model, model, text, recipe, queries, evaluate_on, shards)
        asked.seconds = seconds
        return evaluate(asked, made={"sigma": made}, reader=reader.pair)
