"""`compress` where nothing is trained: by a trained compressor, in closed form, or by selection; and the same table."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

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


class Way(NamedTuple):
    """How a context is compressed: make(ids) gives a SoftPrompt for the model `reader`."""

    make: Callable
    reader: Model
    recipe: dict  # as the prompt's file will have it
    problem: Problem | None = None  # where its queries were needed to make anything


def by_compressor(folder: Path, kind: str | None, slots: int | None, model: Model, device: str) -> Way:
    """By a folder that `train-compressor` made. Raises ValueError where it is of another kind than is asked for."""
    compressor, reader = open_compressor(folder, model, device)
    if kind and kind != compressor.kind:
        raise ValueError(f"{folder} holds a compressor of the kind {compressor.kind}; --producer is {kind}")
    recipe = {"producer": compressor.kind, "segment": compressor.segment}
    return Way(lambda ids: compressor.compress(reader.pair, ids, slots), reader, recipe)


def by_selection(name: str, slots: int, model: Model, seed: int) -> Way:
    """By one of SELECTORS."""
    rng = np.random.default_rng(seed)
    return Way(lambda ids: SELECTORS[name](model.pair, ids, slots, rng), model, {"producer": name, "seed": seed})


def by_matching(pose: Callable, slots: int, choose: str) -> Way:
    """By Attention Matching; its reference rows are the queries to train on of pose(), a Problem."""
    with aside.status("the teacher reads the context, and what is asked of it"):
        problem = pose()
    rows = [query.ids for query in problem.train]
    make = lambda ids: attention_matching(problem.model.pair, ids, slots, rows, choose)
    return Way(make, problem.model, {"producer": MATCHING, "choose": choose, "queries": len(rows)}, problem)


def compress_once(way: Way, model: Model, text: str, out: Path, pose: Callable) -> dict:
    """The text in one of these ways -> a prompt's file; its facts, and the table where there can be one.

    pose(slots=…, positions=…) gives the Problem that it is judged by. There is no table of a context that no teacher
    can read.
    """
    began, ids = time.perf_counter(), model.tokenizer.encode(text).ids
    made = way.make(ids)
    seconds = time.perf_counter() - began
    said = {"model": way.reader.hash, "context": text_hash(text), "context_tokens": len(ids), "recipe": way.recipe}
    made = replace(made, slots=to_host(made.slots), provenance=said)
    made.check_model(way.reader.pair[1], str(out))
    made.save(out)
    facts = {"out": str(out), "producer": way.recipe["producer"], "context_tokens": len(ids), "slots": made.length,
             "seconds": seconds}  # fmt: skip
    room = model.pair[1].n_positions
    if len(ids) + QUERY_TOKENS > room:
        aside.print(f"no table: n_positions is {room:,}, so no teacher can read {len(ids):,} tokens and a query")
        return facts
    with aside.status("the teacher reads the context; evaluating on the held-out queries"):
        problem = way.problem or pose(slots=made.length, positions=made.positions)
        problem.seconds = seconds
        made = replace(made, slots=place(made.slots, model.wte))
        return facts | evaluate(problem, made={"sigma": made}, reader=way.reader.pair)
