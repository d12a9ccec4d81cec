"""`compress` by a trained compressor: one reading of the context, and the same table."""

import time
from dataclasses import replace
from pathlib import Path

from minicompress.cli.common import aside
from minicompress.cli.compressors import open_compressor
from minicompress.compression.compressor import Compressor
from minicompress.compression.problem import QUERY_TOKENS, Model, Problem
from minicompress.evaluation.baselines import evaluate
from minicompress.prompts.soft_prompt import SoftPrompt, text_hash


def compress_once(folder: Path, kind: str | None, slots: int | None, model: Model, text: str, device: str, out: Path,
                  problem: tuple) -> dict:  # fmt: skip
    """The text by the compressor in a folder -> a prompt's file; its facts, and the table where there can be one.

    problem: the recipe, files of queries and shards. There is no table of a context that no teacher can read.
    """
    compressor, reader = open_compressor(folder, model, device)
    if kind and kind != compressor.kind:
        raise ValueError(f"{folder} holds a compressor of the kind {compressor.kind}; --producer is {kind}")
    began = time.perf_counter()
    ids = model.tokenizer.encode(text).ids
    made = compressor.compress(reader.pair, ids, slots)
    seconds = time.perf_counter() - began
    made = replace(made, provenance=provenance(compressor, reader, text, len(ids)))
    made.check_model(reader.pair[1], str(out))
    made.save(out)
    facts = {"out": str(out), "producer": compressor.kind, "context_tokens": len(ids), "slots": made.length,
             "seconds": seconds, "segments": -(-len(ids) // compressor.segment)}  # fmt: skip
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


def provenance(compressor: Compressor, reader: Model, text: str, tokens: int) -> dict:
    """Whom the prompt is for, and what made it."""
    recipe = {"producer": compressor.kind, "segment": compressor.segment}
    return {"model": reader.hash, "context": text_hash(text), "context_tokens": tokens, "recipe": recipe}
