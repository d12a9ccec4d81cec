"""`trace`: every tensor of a forward and a backward. `diff`: two such traces, and where they part."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, aside, show
from minicompress.report.difference import difference_report
from minicompress.verification.compare import compare
from minicompress.verification.trace_file import read_trace, write_trace


@app.command()
def trace(
    tokens: Annotated[Path, typer.Option(help="JSON: rows of token ids, ragged allowed")],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
    model: ModelDir = None,
    prompt: Annotated[Path | None, typer.Option(help="a soft prompt, or a PEFT folder")] = None,
    labels: Annotated[Path | None, typer.Option(help="JSON as --tokens, -100 where nothing is scored")] = None,
    teacher_context: Annotated[
        Path | None, typer.Option(help="JSON: ids that the teacher reads before every row")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="the teacher's folder; default: the model")] = None,
    loss: Annotated[str, typer.Option(help="ce or kl")] = "ce",
    temperature: Annotated[float, typer.Option(help="of --loss kl: T² KL between both sides' logits / T")] = 1.0,
    dtype: Annotated[str, typer.Option(help="float64 or float32")] = "float64",
    gradients: Annotated[str, typer.Option(help="prompt or all")] = "prompt",
    twice: Annotated[bool, typer.Option("--twice", help="a second forward too, as again.*")] = False,
    decode: Annotated[int, typer.Option(help="continue each row by this many likeliest tokens: decoded")] = 0,
    steps: Annotated[int, typer.Option(help="steps of AdamW on the prompt, else on the weights: after.*, adam.*")] = 0,
    lr: Annotated[float, typer.Option(help="of --steps")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="of --steps")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="of --steps: the joint length of all gradients")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write every intermediate tensor, the loss and the gradients of a model on some TOKENS."""
    commands.check_trace_options(loss, dtype, gradients, teacher_context, teacher, temperature)
    commands.check_at_least(0, decode=decode, steps=steps, lr=lr, weight_decay=weight_decay, clip=clip)
    if clip == 0:
        raise ValueError("--clip is 0, which leaves no gradient; give a length above 0, or leave it out")
    commands.check_out(out)
    rows, wanted, context = commands.read_trace_rows(tokens, labels, teacher_context)
    asked = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "clip": clip} if steps else None
    paths = {"model": model, "prompt": prompt, "teacher": teacher}
    facts: dict[str, Any] = {name: path and str(path.resolve()) for name, path in paths.items()}
    facts |= {"tokens": rows, "labels": wanted, "teacher_context": context, "temperature": temperature, "dtype": dtype}
    facts |= {"gradients": gradients, "twice": twice, "decode": decode, "steps": asked}
    with aside.status("tracing"):
        setup, facts["hashes"] = commands.open_setup(facts, device)
        tensors = setup.tensors()
        write_trace(out, tensors, facts)
    result = {"out": str(out), "loss": float(tensors["loss"]), "tensors": len(tensors)}
    show(result, as_json, f"loss {result['loss']:.10g}; {len(tensors)} tensors written to {out}")


@app.command()
def diff(
    reference: Annotated[Path, typer.Argument(help="a trace that is taken for right")],
    suspect: Annotated[Path, typer.Argument(help="a trace of the same: safetensors or .npz, names of any kind")],
    model: Annotated[Path | None, typer.Option(help="the model's folder, where it is not where it was")] = None,
    prompt: Annotated[Path | None, typer.Option(help="the prompt, where it is not where it was")] = None,
    teacher: Annotated[Path | None, typer.Option(help="the teacher's folder, where it is not where it was")] = None,
    whole: Annotated[bool, typer.Option("--all", help="a line for every tensor")] = False,
    as_json: Json = False,
) -> None:
    """Name the first tensor in which two traces differ, and the likeliest cause. Exit code 0: equal; 1: not."""
    (ours, facts), (theirs, their_facts) = read_trace(reference), read_trace(suspect)
    commands.check_same_question(facts, their_facts)
    if their_facts and not facts:
        ours, theirs, facts = theirs, ours, their_facts
        aside.print(f"{suspect} says what it is a trace of, {reference} does not: it is taken for the reference")
    if missing := [path for path in (model, prompt, teacher) if path and not path.exists()]:
        raise ValueError(f"there is no {missing[0]}")
    named = {"model": model, "prompt": prompt, "teacher": teacher}
    setup, why = commands.setup_again(facts, {name: str(path) for name, path in named.items() if path})
    found = watched(lambda progress: compare(ours, theirs, setup, progress))
    if why and not found.equal:
        aside.print(f"causes that must be run to be seen are not named: {why}")
    for part in [""] if as_json else difference_report(found, whole):  # one object, or a table and some lines
        show(found.as_dict(), as_json, part)
    raise typer.Exit(0 if found.equal else 1)


def watched(work: Any) -> Any:
    """work(progress), with a bar while causes are tried."""
    columns = (TextColumn("trying causes"), BarColumn(), TextColumn("{task.fields[cause]}"))
    shown = Progress(*columns, console=aside, transient=True)
    task = shown.add_task("", total=None, cause="")

    def progress(number: int, of: int, cause: str) -> None:
        shown.start()
        shown.update(task, completed=number, total=of, cause=cause)

    try:
        return work(progress)
    finally:
        if shown.live.is_started:
            shown.stop()
