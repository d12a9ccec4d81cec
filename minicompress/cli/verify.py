"""`trace`: every tensor of a forward and a backward, to hold another implementation against."""

from pathlib import Path
from typing import Annotated

import typer

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, show
from minicompress.compression.run import check_positions
from minicompress.training.checkpoints import save_arrays
from minicompress.verification.trace import trace as trace_tensors


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
    dtype: Annotated[str, typer.Option(help="float64 or float32")] = "float64",
    gradients: Annotated[str, typer.Option(help="prompt or all")] = "prompt",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write every intermediate tensor, the loss and the gradients of a model on some TOKENS."""
    commands.check_trace_options(loss, dtype, gradients, teacher_context, teacher)
    commands.check_out(out)
    opened = commands.open_model(model, device, dtype, words=False)
    rows, wanted, context = commands.read_trace_rows(tokens, labels, teacher_context)
    stands = commands.open_prompt(prompt, opened) if prompt else None
    check_positions(opened.pair[1], **commands.before(stands), tokens=max(map(len, rows)))
    guide = commands.open_model(teacher, device, dtype, words=False).pair if teacher else None
    if guide and guide[1].vocab_size != opened.pair[1].vocab_size:
        sizes = f"{guide[1].vocab_size:,} tokens and the model {opened.pair[1].vocab_size:,}"
        raise ValueError(f"the teacher has {sizes}; distillation needs one vocabulary")
    if context:
        longest = max(sum(i >= 0 for i in row) for row in rows)  # a teacher reads no slots
        check_positions((guide or opened.pair)[1], teacher_context=len(context), tokens=longest)
    tensors = trace_tensors(opened.pair, rows, stands, wanted, guide, context, gradients)
    save_arrays(out, tensors)
    result = {"out": str(out), "loss": float(tensors["loss"]), "tensors": len(tensors)}
    show(result, as_json, f"loss {result['loss']:.10g}; {len(tensors)} tensors written to {out}")
