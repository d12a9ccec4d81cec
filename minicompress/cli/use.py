"""`ask` and `generate`: the frozen model writes behind soft prompts."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, show
from minicompress.compression.problem import check_positions
from minicompress.compression.queries import FORM, line_ends, write_lines
from minicompress.gpt2.generate import generate as write
from minicompress.prompts.low_rank_weights import LowRankWeights
from minicompress.prompts.soft_prompt import concatenate
from minicompress.prompts.tenants import read_many
from minicompress.tuning.scores import likeliest


@app.command()
def ask(
    prompt: Annotated[Path, typer.Argument(help="a soft prompt, or a PEFT folder")],
    question: Annotated[str, typer.Argument(help="in words")],
    also: Annotated[list[Path] | None, typer.Option(help="a prompt that stands behind it; several in a row")] = None,
    model: ModelDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Ask a soft PROMPT a QUESTION: in the form `Q: …`, `A:`, or as the prompt's own template has it.

    Low-rank weights are asked alike. A prompt that was tuned on labels answers with the likeliest of them.
    """
    commands.check_words("QUESTION", question)
    opened = commands.open_model(model, device)
    opened, stands = commands.open_standing(prompt, opened)
    if also and isinstance(stands, LowRankWeights):
        raise ValueError(f"{prompt} holds low-rank weights, behind which no prompt stands; leave out --also")
    stands = concatenate([stands, *(commands.open_prompt(path, opened) for path in also)]) if also else stands
    asked = question if stands.template else FORM.format(question=question)
    ids = commands.row_of(stands, opened.tokenizer, asked)
    check_positions(opened.pair[1], **commands.before(stands), question_tokens=len(ids), answer_tokens=1)
    prefix, labels = stands.prefix(*opened.pair), commands.labels_of(stands, opened.tokenizer)
    if labels:
        longest = max(map(len, labels.values()))
        check_positions(opened.pair[1], **commands.before(stands), question_tokens=len(ids), label_tokens=longest)
        answer = likeliest(opened.pair, prefix, ids, labels)
    else:
        answer = write_lines(opened.pair, opened.tokenizer, prefix, [ids])[0]
    show({"answer": answer}, as_json, answer)


@app.command()
def generate(
    text: Annotated[str | None, typer.Argument(help="what to continue")] = None,
    prompt: Annotated[
        list[Path] | None, typer.Option(help="a soft prompt that stands in front; several stand in a row")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help='instead of TEXT: lines {"prompt": FILE or null, "text": …}, continued together')
    ] = None,
    tokens: Annotated[int, typer.Option(help="how many to write")] = 40,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="draw among the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw among the likeliest of that mass")] = None,
    lines: Annotated[int | None, typer.Option(help="stop after so many line ends")] = None,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    model: ModelDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Continue TEXT, or the rows of a --batch, each behind a prompt of its own."""
    if (text is None) == (batch is None) or (batch and prompt):
        raise ValueError("give TEXT, with --prompt or without, or --batch, whose lines name their own prompts")
    commands.check_words("TEXT", text or "")
    commands.check_at_least(0, seed=seed)
    commands.check_at_least(1, tokens=tokens, lines=lines, top_k=top_k)
    commands.check_at_least(1e-6, temperature=temperature or None, top_p=top_p)
    if top_p is not None and top_p > 1:
        raise ValueError(f"--top-p is {top_p}; it must be at most 1")
    opened = commands.open_model(model, device)
    params, config = opened.pair
    if batch:
        texts, prompts, rows = commands.read_batch(batch, opened, tokens)
    else:
        stands = [commands.open_prompt(path, opened) for path in prompt or ()]
        texts, prompts = [text or ""], [concatenate(stands) if stands else None]
        rows = [commands.row_with_room(opened, prompts[0], texts[0], tokens)]
    prefix, _ = read_many(params, config, prompts)
    stop = line_ends(opened.tokenizer, lines) if lines else None
    sampling: dict[str, Any] = {
        "rng": np.random.default_rng(seed),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    new = write(params, config, rows, tokens, prefix, stop, **sampling)
    written = [opened.tokenizer.decode(ids) for ids in new]
    if not batch:
        return show({"text": written[0], "tokens": new[0]}, as_json, texts[0] + written[0])
    told = [{"texts": written, "tokens": new}] if as_json else [a + b for a, b in zip(texts, written, strict=True)]
    for line in told:
        print(json.dumps(line, ensure_ascii=as_json))
