"""`inspect`: what a soft prompt has become, as numbers, tables and a picture."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, bar, show
from minicompress.compression.problem import Model, check_positions
from minicompress.compression.queries import Query, file_queries
from minicompress.prompts.inspection import batches, moved, over_texts
from minicompress.prompts.nearest import WORDS, nearest
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.report.inspection import WIDTH, figure, plain, tables

SENTENCES = (
    "The sun rose over the hills and the village woke.",
    "She opened the letter and read it twice.",
    "There is a small house at the end of the road.",
    "He said that the train would leave at noon.",
    "Most of the water had gone by the evening.",
    "What they found in the garden was an old key.",
)
FORMATS = ("png", "svg", "pdf")


@app.command()
def inspect(
    prompt: Annotated[Path, typer.Argument(help="a soft prompt, or a PEFT folder")],
    model: ModelDir = None,
    text: Annotated[Path | None, typer.Option(help="a text to read with it; default: a few sentences")] = None,
    queries: Annotated[Path | None, typer.Option(help='lines {"question": …, "answer": …} or text')] = None,
    k: Annotated[int, typer.Option("--nearest", help="how many tokens near each slot")] = 5,
    out: Annotated[Path | None, typer.Option(help="a picture to draw (.png, .svg, .pdf)")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show what the slots of a soft PROMPT resemble, who looks at them, and what is lost without each."""
    commands.check_at_least(1, nearest=k)
    if text and queries:
        raise ValueError("--text and --queries are two ways to say what is read; give one")
    if out:
        check_picture(out)
    opened = commands.open_model(model, device)
    stands = commands.open_prompt(prompt, opened)
    rows = texts(stands, opened, prompt, text, queries)
    check_positions(opened.pair[1], **commands.before(stands), text_tokens=max(len(row.ids) for row in rows))
    result = {"prompt": prompt.resolve().name, "carrier": stands.carrier, "positions": stands.positions}
    result |= {"template": stands.template, "slots": stands.length, "layers": opened.pair[1].n_layer}
    result |= {"texts": len(rows)} | plain(numbers(stands, opened, rows, k), opened.tokenizer.decode)
    if not (text or queries) or any(row.question and row.answer is None for row in rows):
        result["left_out"]["loss"] = None  # nobody said what should stand there
    if out:
        figure(result, out)
        result["out"] = str(out)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if as_json:
        show(result, as_json, None)
    else:
        console.print(*tables(result), *([f"\ndrawn in {out}"] if out else []), sep="\n", markup=False)


def check_picture(out: Path) -> None:
    """Raises ValueError where no picture of that name can be drawn."""
    commands.check_out(out)
    if out.suffix[1:] not in FORMATS:
        raise ValueError(f"--out {out} must end in .{', .'.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise ValueError("--out needs matplotlib, which is not installed; pip install 'minicompress[cli]'")


def texts(prompt: SoftPrompt, model: Model, name: Path, text: Path | None, queries: Path | None) -> list[Query]:
    """The rows that are read with the prompt, placed by its template where it has one."""
    if queries:
        if prompt.template:
            raise ValueError(f"{name} has a template of its own, {prompt.template!r}; fill it with --text")
        return file_queries(model, prompt.prefix(*model.pair), queries)
    given = [commands.read_text(text)] if text else SENTENCES
    return [Query(commands.row_of(prompt, model.tokenizer, one), 0) for one in given]


def numbers(prompt: SoftPrompt, model: Model, rows: list[Query], k: int) -> dict[str, Any]:
    """Everything that `inspection` knows of the prompt, with a progress bar where it takes its time."""
    ids, starts = [row.ids for row in rows], [row.start for row in rows]
    parts = math.ceil(len(model.wte) / WORDS) + len(batches(ids, prompt.length))
    with waiting(parts * prompt.length) as advance:
        near = nearest(*model.pair, prompt, k, advance)
        return {"nearest": near, "moved": moved(prompt)} | over_texts(*model.pair, prompt, ids, starts, advance)


@contextmanager
def waiting(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar that is seen only where the work takes more than two seconds."""
    progress, began, seen = bar(), time.monotonic(), False
    task = progress.add_task("inspecting", total=total, loss="")

    def advance() -> None:
        nonlocal seen
        progress.advance(task)
        if not seen and time.monotonic() - began > 2:
            progress.start()
            seen = True

    try:
        yield advance
    finally:
        if seen:
            progress.stop()
