"""What every command shares: options, output, a progress bar."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=(
    "Learns soft prompts by compressing a context: a long text becomes a few vectors with which a frozen GPT-2 answers."
))  # fmt: skip
aside = Console(stderr=True, markup=False)

ModelDir = Annotated[
    Path | None, typer.Option("--model", help="folder in Hugging Face layout; default: the embedded model")
]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def show(result: Any, as_json: bool, text: Any) -> None:
    """One JSON object, or what a person reads: a text as it is, whatever brackets and long lines are in it."""
    if as_json:
        print(json.dumps(finite(result), allow_nan=False))
    else:
        Console().print(text, markup=False, emoji=False, soft_wrap=isinstance(text, str))


def finite(result: Any) -> Any:
    """Dicts and lists as JSON can hold them: null for a number that is infinite or NaN."""
    if isinstance(result, dict):
        return {name: finite(value) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return [finite(value) for value in result]
    return None if isinstance(result, float) and not math.isfinite(result) else result


def bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeRemainingColumn(), console=aside)


def take_up(run: Any, checkpoint: Path, resume: bool) -> None:
    """The run goes on from its checkpoint where that is wanted and there; else what becomes of either is said."""
    if resume and checkpoint.exists():
        run.resume(checkpoint)
    elif resume:
        aside.print(f"there is no {checkpoint}; starting afresh")
    elif checkpoint.exists():
        aside.print(f"{checkpoint} of an earlier run will be overwritten; --resume would have gone on from it")
