"""`ask` and `generate`: the frozen model writes behind soft prompts."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, show
from minicompress.compression.queries import FORM, answer_greedily, line_ends
from minicompress.compression.run import check_positions
from minicompress.gpt2.generate import generate as write
from minicompress.gpt2.prefix import Prefix
from minicompress.prompts.soft_prompt import concatenate


@app.command()
def ask(
    prompt: Annotated[Path, typer.Argument(help="a soft prompt, or a PEFT prompt-tuning folder")],
    question: Annotated[str, typer.Argument(help="in words")],
    model: ModelDir = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Ask a soft PROMPT a QUESTION."""
    commands.check_words("QUESTION", question)
    opened = commands.open_model(model, device)
    stands = commands.open_prompt(prompt, opened)
    if stands.template:
        raise ValueError(f"{prompt} has a template of its own, {stands.template!r}; use generate --prompt to fill it")
    prefix = stands.prefix(*opened.pair)
    length = len(opened.tokenizer.encode(FORM.format(question=question)).ids)
    check_positions(opened.pair[1], **commands.before(stands), question_tokens=length, answer_tokens=1)
    answer = answer_greedily(opened.pair, opened.tokenizer, prefix, [question])[0]
    show({"answer": answer}, as_json, answer)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="what to continue")],
    prompt: Annotated[
        list[Path] | None, typer.Option(help="a soft prompt that stands in front; several stand in a row")
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
    """Continue TEXT."""
    commands.check_words("TEXT", text)
    commands.check_at_least(0, seed=seed)
    commands.check_at_least(1, tokens=tokens, lines=lines, top_k=top_k)
    commands.check_at_least(1e-6, temperature=temperature or None, top_p=top_p)
    if top_p is not None and top_p > 1:
        raise ValueError(f"--top-p is {top_p}; it must be at most 1")
    opened = commands.open_model(model, device)
    prompts = [commands.open_prompt(path, opened) for path in prompt or ()]
    stands = concatenate(prompts) if prompts else None
    prefix = stands.prefix(*opened.pair) if stands else Prefix()
    stop = line_ends(opened.tokenizer, lines) if lines else None
    ids = commands.row_of(stands, opened.tokenizer, text)
    check_positions(opened.pair[1], **commands.before(stands), text_tokens=len(ids), new_tokens=tokens)
    sampling: dict[str, Any] = {
        "rng": np.random.default_rng(seed),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    params, config = opened.pair
    new = write(params, config, [ids], tokens, prefix, stop, **sampling)[0]
    written = opened.tokenizer.decode(new)
    show({"text": written, "tokens": new}, as_json, text + written)
