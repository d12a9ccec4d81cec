"""`compress`: a text file becomes a soft prompt, and a table says what it is worth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, show
from minicompress.cli.many import compress_many, tell_many
from minicompress.cli.options import ONCE, job_of, options_of
from minicompress.cli.produce import MATCHING, REFERENCES
from minicompress.compression.matching import BUDGETS, CHOOSE
from minicompress.compression.objectives import LOSSES, TOP_K
from minicompress.compression.segments import METHODS
from minicompress.compression.sources import SOURCES
from minicompress.compression.texts import read_pieces
from minicompress.evaluation.baselines import summary
from minicompress.report.table import cost_line, evaluation_table
from minicompress.training.shards import Shards


@app.command()
def compress(
    ctx: typer.Context,
    context: Annotated[
        str, typer.Argument(help="a text file, or - for standard input; many: a folder of .txt files, or a .jsonl file")
    ],
    out: Annotated[Path, typer.Option(help="where the soft prompt goes (.safetensors); of many contexts a folder")],
    model: ModelDir = None,
    teacher: Annotated[
        Path | None, typer.Option(help="another model of the same vocabulary; default: the model itself")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="how many vectors; default: 8, or all that a compressor or --init has")
    ] = None,
    carrier: Annotated[
        str | None, typer.Option(help="what slots are: embeddings (the default), hidden, kv; or lora: weights")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="where tokens begin: compact (after the slots), logical (the context), unshifted")
    ] = None,
    beta: Annotated[bool, typer.Option("--beta", help="kv: train a log-mass for every key as well")] = False,
    producer: Annotated[
        str | None, typer.Option(help=f"gradient; {', '.join(ONCE)}; or of a --compressor: {', '.join(METHODS)}")
    ] = None,
    choose: Annotated[str | None, typer.Option(help=f"{MATCHING}: keys by {' or '.join(CHOOSE)}; default: rms")] = None,
    budget: Annotated[
        str | None, typer.Option(help=f"{MATCHING}: keys of a head: {' or '.join(BUDGETS)}; default: even")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help=f"{MATCHING}: rows that ask: {' or '.join(REFERENCES)}; default: queries")
    ] = None,
    compressor: Annotated[
        Path | None, typer.Option(help="a folder that train-compressor made: slots in one reading")
    ] = None,
    queries: Annotated[
        str, typer.Option(help=f'{", ".join(SOURCES)}; or a file of lines {{"question": …, "answer": …}} or text')
    ] = "self-study",
    seed_prompt: Annotated[
        list[str] | None, typer.Option(help="from which lines are written, may be given more than once; default: Q:")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="tokens: of the context that a writer reads at a time; or in a row of the text")
    ] = None,
    continuation_share: Annotated[
        float | None, typer.Option(help="of continuation: the text's last part, which is no context; default: 0.3")
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="the teacher's own to a question: greedy or sampled; default: as was written")
    ] = None,
    places: Annotated[
        str, typer.Option(help="scored in training: all, first:N, or changed (the likeliest token, by the context)")
    ] = "all",
    refresh: Annotated[
        int | None, typer.Option(help="of on-policy: steps until the student writes again; default: 50")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="a folder for what the teacher writes: the same is written once")
    ] = None,
    evaluate_on: Annotated[Path | None, typer.Option(help="a file of queries to evaluate on, never trained on")] = None,
    self_study: Annotated[int, typer.Option(help="question-and-answer lines that the teacher writes")] = 192,
    init: Annotated[
        str, typer.Option(help="text (of the context), first, vocab, vocab:N, noise, uniform, zero, words, or a prompt")
    ] = "text",
    any_prefix: Annotated[bool, typer.Option("--any-prefix", help="train the first few to do alone as well")] = False,
    freeze_first: Annotated[bool, typer.Option("--freeze-first", help="leave the first slot as it began")] = False,
    loss: Annotated[
        str, typer.Option(help=f"{', '.join(LOSSES)}; js:0.3 with its β; or a sum such as kl+0.5*likelihood")
    ] = "kl",
    top_k: Annotated[
        int | None, typer.Option(help=f"of {', '.join(TOP_K)}: how many of the teacher's tokens; default: 20")
    ] = None,
    temperature: Annotated[float, typer.Option(help="of teacher and student, for all losses but likelihood")] = 1.0,
    steps: Annotated[int, typer.Option(help="of Adam")] = 200,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate; default: 0.03, of lora 0.003")] = None,
    rows: Annotated[int, typer.Option(help="queries a step")] = 32,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    baselines: Annotated[
        str, typer.Option(help="cheap; selected: a row for each selector, too; all: and two trained controls")
    ] = "cheap",
    other: Annotated[Path | None, typer.Option(help="the different context of --baselines all")] = None,
    threads: Annotated[
        int | None, typer.Option(help="over which rows, or many contexts, are spread; default: all cores")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from OUT.checkpoint, or OUT")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress a CONTEXT into a soft prompt, and print what it is worth."""
    asked = options_of(ctx)
    job = job_of(asked)
    if asked.many:
        return tell_many(compress_many(job, context, out, threads), out, as_json)
    text = read_pieces(context) if compressor else commands.read_text(context)
    with Shards(threads) as shards:
        tell(job.make(job.open(), text, out, shards), as_json)


def tell(result: dict, as_json: bool) -> None:
    """The table, if there is one, and the costs; or all of it as JSON."""
    result |= summary(result) if "rows" in result else {}
    if "rows" in result and not as_json:
        Console().print(evaluation_table(result))
    made = f"{result['context_tokens']:,} tokens in {result['slots']} slots, {result['seconds']:.2f} s to make"
    reader = f"; the model that reads it is in {result['reader']}" if "reader" in result else ""
    show(result, as_json, (cost_line(result) if "rows" in result else made) + f"\nwritten to {result['out']}{reader}")
