"""`evaluate`: what a soft prompt, or low-rank weights, keep of a context, whoever made them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, aside, show
from minicompress.compression.problem import Problem, Recipe
from minicompress.evaluation.baselines import evaluate as evaluated
from minicompress.evaluation.baselines import selected, summary
from minicompress.report.table import evaluation_table
from minicompress.training.shards import Shards


@app.command()
def evaluate(
    prompt: Annotated[Path, typer.Argument(help="a soft prompt, low-rank weights, or a PEFT folder")],
    context: Annotated[str, typer.Option(help="the text that it is to stand for, or - for standard input")],
    queries: Annotated[Path | None, typer.Option(help="lines as compress takes them; default: self-study")] = None,
    slots: Annotated[int | None, typer.Option(help="only the first of its slots; default: all")] = None,
    model: ModelDir = None,
    teacher: Annotated[Path | None, typer.Option(help="who reads the context; default: the model itself")] = None,
    self_study: Annotated[int, typer.Option(help="question-and-answer lines that the teacher writes")] = 192,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    baselines: Annotated[str, typer.Option(help="cheap, or selected: a row for each selector too")] = "cheap",
    threads: Annotated[int | None, typer.Option(help="over which rows are spread; default: all cores")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Put a PROMPT into the table of what else could have stood before the same questions."""
    commands.check_choice("--baselines", baselines, "cheap", "selected")
    commands.check_at_least(0, seed=seed)
    commands.check_at_least(1, slots=slots, threads=threads)
    commands.check_at_least(2, self_study=self_study)
    opened, text = commands.open_model(model, device), commands.read_text(context)
    reads = commands.open_model(teacher, device) if teacher else opened
    reader, made = commands.open_standing(prompt, opened)
    if made.template:
        raise ValueError(f"{prompt} has a template of its own; only what stands in front of a question is evaluated")
    made = made.first(slots) if slots and made.length else made
    source = "context" if queries else "self-study"  # what is not asked need not be written
    size = made.length or made.slots_worth(opened.pair[1])
    recipe = Recipe(slots=size, seed=seed, self_study=self_study, queries=source)
    recipe = replace(recipe, positions=made.positions) if made.length else recipe
    with Shards(threads) as shards, aside.status("the teacher reads the context, and what is asked of it"):
        asked = Problem(opened, reads, text, recipe, None, queries, shards)
        extra = selected(asked) if baselines == "selected" else None
        result = evaluated(asked, extra, made={"sigma": made}, reader=reader.pair)
    result |= summary(result) | {"seconds": None, "break_even_queries": None}  # who made it, and how long, is not known
    if not as_json:
        Console().print(evaluation_table(result | {"producer": "the prompt"}, "queries"))
    show(result, as_json, f"{result['context_tokens']:,} tokens; {prompt} takes {made.length} positions")
