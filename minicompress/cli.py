"""The command line: options, progress, and one plain line for whatever goes wrong."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minicompress import commands
from minicompress.compression.queries import FORM, answer_greedily, line_ends
from minicompress.compression.run import Recipe, Run, check_positions, place
from minicompress.evaluation.baselines import evaluate, trained_prefixes
from minicompress.gpt2.generate import generate as write
from minicompress.report.table import cost_line, evaluation_table
from minicompress.training.checkpoints import save_arrays
from minicompress.training.shards import Shards

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=(
    "Learns soft prompts by compressing a context: a long text becomes a few vectors with which a frozen GPT-2 answers."
))  # fmt: skip
aside = Console(stderr=True)

ModelDir = Annotated[
    Path | None, typer.Option("--model", help="folder in Hugging Face layout; default: the embedded model")
]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
OTHER_CONTEXT = Path(commands.__file__).parent / "report" / "other_context.txt"


def show(result: Any, as_json: bool, text: Any) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        Console().print(text)


def bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeRemainingColumn(), console=aside)


@app.command()
def compress(
    context: Annotated[str, typer.Argument(help="a text file, or - for standard input")],
    out: Annotated[Path, typer.Option(help="where the soft prompt goes (.safetensors)")],
    model: ModelDir = None,
    teacher: Annotated[
        Path | None, typer.Option(help="another model of the same vocabulary; default: the model itself")
    ] = None,
    slots: Annotated[int, typer.Option(help="how many vectors")] = 8,
    carrier: Annotated[str, typer.Option(help="where slots enter: embeddings")] = "embeddings",
    producer: Annotated[str, typer.Option(help="how slots are made: gradient")] = "gradient",
    queries: Annotated[
        Path | None, typer.Option(help='lines {"question": …, "answer": …} or text; default: self-study')
    ] = None,
    evaluate_on: Annotated[Path | None, typer.Option(help="a file of queries to evaluate on, never trained on")] = None,
    self_study: Annotated[int, typer.Option(help="question-and-answer lines that the teacher writes")] = 192,
    init: Annotated[str, typer.Option(help="text (the context's tokens), vocab, noise, or any words")] = "text",
    loss: Annotated[str, typer.Option(help="kl (teacher's distributions) or likelihood (teacher's answers)")] = "kl",
    temperature: Annotated[float, typer.Option(help="of teacher and student in the KL")] = 1.0,
    steps: Annotated[int, typer.Option(help="of Adam")] = 200,
    lr: Annotated[float, typer.Option(help="Adam's learning rate")] = 0.03,
    rows: Annotated[int, typer.Option(help="queries a step")] = 32,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    baselines: Annotated[str, typer.Option(help="cheap, or all: train two controls as well")] = "cheap",
    other: Annotated[Path | None, typer.Option(help="the different context of --baselines all")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from OUT.checkpoint")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress a CONTEXT into a soft prompt, and print what it is worth."""
    commands.check_choice("--carrier", carrier, "embeddings")
    commands.check_choice("--producer", producer, "gradient")
    commands.check_choice("--loss", loss, "kl", "likelihood")
    commands.check_choice("--baselines", baselines, "cheap", "all")
    commands.check_at_least(0, steps=steps, seed=seed)
    commands.check_at_least(1, slots=slots, rows=rows)
    commands.check_at_least(2, self_study=self_study)
    commands.check_at_least(1e-6, temperature=temperature, lr=lr)
    commands.check_out(out)
    commands.check_words("--init", init)
    if other and baselines != "all":
        raise ValueError("--other is the text of a control, which is only trained with --baselines all")
    if loss == "likelihood" and temperature != 1:
        raise ValueError("--temperature softens distributions; --loss likelihood has none to soften")
    text = commands.read_text(context)
    student = commands.open_model(model, device)
    reader = commands.open_model(teacher, device) if teacher else student
    recipe = Recipe(slots, loss, temperature, steps, lr, rows, seed, init, self_study)
    checkpoint = out.with_name(out.name + ".checkpoint")
    with Shards() as shards:
        with aside.status("the teacher reads the context and writes questions" if not queries else "the teacher reads"):
            run = Run(student, reader, text, recipe, queries, evaluate_on, shards)
        if resume and checkpoint.exists():
            run.resume(checkpoint)
        elif resume or checkpoint.exists():
            aside.print(
                f"there is no {checkpoint}; starting afresh"
                if resume
                else f"{checkpoint} of an earlier run will be overwritten; --resume would have gone on from it"
            )
        aside.print(f"{len(run.ids):,} tokens; {len(run.train)} queries to train on, {len(run.held)} held out")
        extra = train(run, checkpoint, (other or OTHER_CONTEXT) if baselines == "all" else None)
        run.prompt().save(out)
        checkpoint.unlink(missing_ok=True)
        with aside.status("evaluating on the held-out queries"):
            result = evaluate(run, extra)
    result |= summary(result) | {
        "steps": steps,
        "out": str(out),
        "seconds_per_step": run.seconds_training / max(1, steps),
    }
    if not as_json:
        Console().print(evaluation_table(result))
    show(result, as_json, cost_line(result) + f"\nwritten to {out}")


def train(run: Run, checkpoint: Path, other: Path | None) -> dict | None:
    """Trains the slots and, where another context is given, the two controls -> prefixes of the controls."""
    steps = run.recipe.steps
    with bar() as progress:
        task = progress.add_task("slots", total=steps, completed=run.state["step"], loss="")
        try:
            run.train_slots(
                checkpoint, lambda step, _, loss: progress.update(task, completed=step, loss=f"loss {loss:.4f}")
            )
        except KeyboardInterrupt:
            progress.console.print(f"stopped; {checkpoint} keeps the last step saved, and --resume goes on from it")
            raise
        if not other:
            return None
        task = progress.add_task("controls", total=2 * steps, loss="")
        return trained_prefixes(run, commands.read_text(other), lambda *_: progress.advance(task))


def summary(result: dict) -> dict:
    """The table's main numbers under flat names."""
    rows = result["rows"]
    flat = {f"kl_{name}": rows[name]["kl"] for name in ("none", "init", "sigma")}
    flat |= {f"recall_{name}": rows[name]["recall"] for name in ("full", "none", "sigma")}
    return flat | {name: rows["sigma"][name] for name in ("gap_closed", "gap_closed_interval", "top1_agreement")}


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
    prefix = commands.prompt_prefix(opened, commands.open_prompt(prompt, opened))
    length = len(opened.tokenizer.encode(FORM.format(question=question)).ids)
    check_positions(opened.pair[1], slots=prefix.length, question_tokens=length, answer_tokens=1)
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
    import numpy as np

    commands.check_words("TEXT", text)
    commands.check_at_least(0, seed=seed)
    commands.check_at_least(1, tokens=tokens, lines=lines, top_k=top_k)
    commands.check_at_least(1e-6, temperature=temperature or None, top_p=top_p)
    if top_p is not None and top_p > 1:
        raise ValueError(f"--top-p is {top_p}; it must be at most 1")
    opened = commands.open_model(model, device)
    slots = [commands.open_prompt(path, opened) for path in prompt or ()]
    prefix = commands.prompt_prefix(opened, np.concatenate(slots)) if slots else None
    stop = line_ends(opened.tokenizer, lines) if lines else None
    ids = opened.tokenizer.encode(text).ids
    check_positions(opened.pair[1], slots=prefix.length if prefix else 0, text_tokens=len(ids), new_tokens=tokens)
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


@app.command()
def trace(
    tokens: Annotated[Path, typer.Option(help="JSON: rows of token ids, ragged allowed")],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
    model: ModelDir = None,
    prompt: Annotated[Path | None, typer.Option(help="a soft prompt, or a PEFT prompt-tuning folder")] = None,
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
    from minicompress.verification.trace import trace as trace_tensors

    commands.check_trace_options(loss, dtype, gradients, teacher_context, teacher)
    commands.check_out(out)
    opened = commands.open_model(model, device, dtype, words=False)
    rows, wanted, context = commands.read_trace_rows(tokens, labels, teacher_context)
    slots = place(commands.open_prompt(prompt, opened), opened.wte) if prompt else None
    check_positions(opened.pair[1], slots=0 if slots is None else len(slots), tokens=max(map(len, rows)))
    guide = commands.open_model(teacher, device, dtype, words=False).pair if teacher else None
    if guide and guide[1].vocab_size != opened.pair[1].vocab_size:
        sizes = f"{guide[1].vocab_size:,} tokens and the model {opened.pair[1].vocab_size:,}"
        raise ValueError(f"the teacher has {sizes}; distillation needs one vocabulary")
    if context:
        check_positions((guide or opened.pair)[1], teacher_context=len(context), tokens=max(map(len, rows)))
    tensors = trace_tensors(opened.pair, rows, slots, wanted, guide, context, gradients)
    save_arrays(out, tensors)
    result = {"out": str(out), "loss": float(tensors["loss"]), "tensors": len(tensors)}
    show(result, as_json, f"loss {result['loss']:.10g}; {len(tensors)} tensors written to {out}")


def main() -> None:
    """Runs a command; a user's mistake costs one line and exit code 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, MemoryError) as reason:
        print(f"minicompress: {reason or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
