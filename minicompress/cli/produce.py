"""`compress` where nothing is trained: by a trained compressor, or by selection; and the same table."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicompress.arrays import to_host
from minicompress.cli.common import aside
from minicompress.cli.compressors import open_compressor
from minicompress.compression.matching import attention_matching
from minicompress.compression.problem import QUERY_TOKENS, Model, Problem, place
from minicompress.compression.select import SELECTORS
from minicompress.evaluation.baselines import evaluate
from minicompress.prompts.soft_prompt import text_hash

MATCHING = "attention-matching"


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


def by_matching(problem: Problem, slots: int, choose: str) -> tuple:
    """The same, of Attention Matching; its reference rows are the queries to train on."""
    rows = [query.ids for query in problem.train]
    make = lambda ids: attention_matching(problem.model.pair, ids, slots, rows, choose)
    return make, problem.model, {"producer": MATCHING, "choose": choose, "queries": len(rows)}


def compress_once(way: tuple, model: Model, text: str, out: Path, pose: Callable) -> dict:
    """The text in one of these ways -> a prompt's file; its facts, and the table where there can be one.

    pose(made) gives the Problem that it is judged by. There is no table of a context that no teacher can read.
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
    with aside.status("the teacher reads the context; evaluating on the held-out queries"):
        problem = pose(made)
        problem.seconds = seconds
        return facts | evaluate(problem, made={"sigma": made}, reader=reader.pair)
