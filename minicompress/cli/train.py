"""`train-compressor`: learned once from many contexts, then one forward pass for each new one."""

from pathlib import Path
from typing import Annotated

import typer

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, aside, bar, show, take_up
from minicompress.cli.compressors import keep_compressor
from minicompress.compression.segments import METHODS
from minicompress.compression.training import Recipe, Training, read_records
from minicompress.prompts.soft_prompt import text_hash
from minicompress.training.shards import Shards


@app.command("train-compressor")
def train_compressor(
    data: Annotated[
        Path, typer.Option(help='lines {"context": …, "queries": [{"question": …, "answer": …}]} or {"text": …}')
    ],
    out: Annotated[Path, typer.Option(help="the compressor's folder")],
    producer: Annotated[str, typer.Option(help=", ".join(METHODS))] = Recipe.producer,
    model: ModelDir = None,
    slots: Annotated[int, typer.Option(help="that a segment leaves, at most")] = Recipe.slots,
    segment: Annotated[int, typer.Option(help="tokens of a segment, at most")] = Recipe.segment,
    loss: Annotated[str, typer.Option(help="kl from the teacher, who reads all; or likelihood")] = "kl",
    reconstruction: Annotated[float, typer.Option(help="weight of writing the last segment out again")] = 0.0,
    rank: Annotated[int, typer.Option(help="of LoRA: icae, 500x, ccm, ccm-mean")] = Recipe.rank,
    steps: Annotated[int, typer.Option(help="of Adam")] = Recipe.steps,
    contexts: Annotated[int, typer.Option(help="a step")] = Recipe.contexts,
    lr: Annotated[float, typer.Option(help="Adam's learning rate")] = Recipe.lr,
    horizon: Annotated[
        int | None, typer.Option(help="segments through which the gradient goes back; default: all of them")
    ] = None,
    any_prefix: Annotated[bool, typer.Option(help="train fewer slots in half of the steps")] = True,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    threads: Annotated[int | None, typer.Option(help="over which contexts are spread; default: all cores")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from OUT/checkpoint.safetensors")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train a compressor: `compress --compressor OUT` then turns any context into slots in one reading."""
    commands.check_choice("--producer", producer, *METHODS)
    commands.check_choice("--loss", loss, "kl", "likelihood")
    commands.check_at_least(0, seed=seed, reconstruction=reconstruction)
    commands.check_at_least(1, slots=slots, rank=rank, steps=steps, contexts=contexts, horizon=horizon, threads=threads)
    commands.check_at_least(2, segment=segment)
    commands.check_at_least(1e-9, lr=lr)
    opened, text = commands.open_model(model, device), commands.read_text(data)
    recipe = Recipe(producer, slots, segment, loss, reconstruction, rank, steps, contexts, lr, Recipe.warmup, horizon,
                    any_prefix, seed)  # fmt: skip
    records = read_records(text.split("\n"), data)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; a compressor is a folder")
    checkpoint = out / "checkpoint.safetensors"
    with Shards(threads) as shards:
        with aside.status("every record is looked at"):
            training = Training(opened, records, recipe, shards, text_hash(text))
        out.mkdir(parents=True, exist_ok=True)
        take_up(training, checkpoint, resume)
        with bar() as progress:
            task = progress.add_task("compressor", total=steps, completed=training.state["step"], loss="")
            told = lambda step, loss, _: progress.update(task, completed=step, loss=f"loss {loss:.4f}")
            training.train(checkpoint, told)
    keep_compressor(training.compressor(), opened, model, out)
    checkpoint.unlink(missing_ok=True)
    show({"out": str(out), "producer": producer, "steps": steps}, as_json, f"written to {out}")
