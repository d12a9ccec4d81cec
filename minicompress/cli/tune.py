"""`tune`: slots learn a task from examples with their answers."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, aside, bar, show, take_up
from minicompress.compression.problem import Model
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.prompts.template import parse
from minicompress.report.tuning import tuning_lines, tuning_table
from minicompress.training.shards import Shards
from minicompress.tuning.outcome import outcome
from minicompress.tuning.recipe import METHODS, Recipe
from minicompress.tuning.rows import read_verbalizer
from minicompress.tuning.run import Tuning
from minicompress.tuning.scores import hits
from minicompress.tuning.start import recycle

PARAMETERISATIONS = list(dict.fromkeys(name for _, fitting in METHODS.values() for name in fitting))


@app.command()
def tune(
    data: Annotated[Path, typer.Option(help='lines {"text": …, "label": …} or {"input": …, "output": …}')],
    out: Annotated[Path, typer.Option(help="where the soft prompt goes (.safetensors)")],
    method: Annotated[str, typer.Option(help="prompt, prefix, deep or p-tuning")] = "prompt",
    valid: Annotated[Path | None, typer.Option(help="held-out examples; default: a fifth of the data")] = None,
    model: ModelDir = None,
    slots: Annotated[int | None, typer.Option(help="how many vectors; default 8, or those of --template")] = None,
    parameterisation: Annotated[
        str | None, typer.Option(help="direct, low-rank, mlp, lstm or cartridge; default: the method's own")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="mlp, lstm: their width; default: the model's")] = None,
    rank: Annotated[int | None, typer.Option(help="low-rank: how many directions; default 4")] = None,
    frozen: Annotated[int | None, typer.Option(help="cartridge: first slots that stay; default 1")] = None,
    init: Annotated[
        str | None,
        typer.Option(help="vocab (default), vocab:N, labels:A,B, noise, uniform, normal, zero, or any words"),
    ] = None,
    init_from: Annotated[Path | None, typer.Option(help="begin at another prompt's slots, not its template")] = None,
    init_model: Annotated[Path | None, typer.Option(help="the model of --init-from, where it is another one")] = None,
    template: Annotated[
        str | None, typer.Option(help=r"the pattern of a row; default 'Q: {text}\nA:'. [4] in it places slots")
    ] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="a word for each label: positive=great,negative=terrible; default: the labels")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="where tokens begin: compact (after the slots) or unshifted")
    ] = "compact",
    steps: Annotated[int, typer.Option(help="of Adam")] = Recipe.steps,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate; default: what fits the method")] = None,
    rows: Annotated[int, typer.Option(help="examples a step")] = Recipe.rows,
    warmup: Annotated[int, typer.Option(help="steps in which the rate rises")] = Recipe.warmup,
    weight_decay: Annotated[float, typer.Option(help="decoupled, times the rate")] = Recipe.weight_decay,
    clip: Annotated[float, typer.Option(help="the gradient's greatest length; 0: any")] = 1.0,
    evaluate_every: Annotated[int, typer.Option(help="steps between two evaluations")] = Recipe.evaluate_every,
    patience: Annotated[int | None, typer.Option(help="stop after so many evaluations without a better one")] = None,
    best_by: Annotated[
        str, typer.Option(help="what the saved slots are best by, held out: loss, or accuracy (outputs: exact match)")
    ] = "loss",
    decode: Annotated[int, typer.Option(help="outputs: answers that an evaluation writes out")] = Recipe.decode,
    seed: Annotated[int, typer.Option(help="of everything drawn at random")] = 0,
    threads: Annotated[int | None, typer.Option(help="over which rows are spread; default: all cores")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from OUT.checkpoint")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Tune a soft prompt on examples with their answers."""
    commands.check_choice("--method", method, *METHODS)
    commands.check_choice("--parameterisation", parameterisation or "direct", *PARAMETERISATIONS)
    commands.check_choice("--positions", positions, "compact", "unshifted")
    commands.check_choice("--best-by", best_by, "accuracy", "loss")
    commands.check_at_least(0, steps=steps, seed=seed, warmup=warmup, frozen=frozen)
    commands.check_at_least(0, weight_decay=weight_decay, clip=clip)
    commands.check_at_least(1, slots=slots, hidden=hidden, rank=rank, rows=rows, evaluate_every=evaluate_every)
    commands.check_at_least(1, patience=patience, decode=decode, threads=threads)
    commands.check_at_least(1e-6, lr=lr)
    commands.check_out(out)
    for name, words in (("--init", init), ("--template", template), ("--verbalizer", verbalizer)):
        commands.check_words(name, words or "")
    if init_model and not init_from:
        raise ValueError("--init-model is the model of --init-from, which is not given")
    recipe = Recipe(method, parameterisation, slots, hidden, rank, frozen, init, template,
                    read_verbalizer(verbalizer) if verbalizer is not None else None, positions, steps, lr, rows, warmup,
                    weight_decay, clip or None, evaluate_every, patience, best_by, decode, seed)  # fmt: skip
    opened = commands.open_model(model, device)
    given = open_start(init_from, init_model, opened, device) if init_from else None
    checkpoint = out.with_name(out.name + ".checkpoint")
    with Shards(threads) as shards:
        with aside.status("reading the examples"):
            run = Tuning(opened, recipe, data, valid, given, shards)
        take_up(run, checkpoint, resume)
        if given:
            tell_differences(given, run.recipe)
        aside.print(f"{len(run.task.train):,} examples to train on, {len(run.task.held):,} held out")
        train(run, checkpoint)
        run.prompt().save(out)
        checkpoint.unlink(missing_ok=True)
        with aside.status("looking at what was learned"):
            result = outcome(run) | {"out": str(out)}
    if not as_json:
        Console().print(tuning_table(result))
    show(result, as_json, tuning_lines(result) + f"\nwritten to {out}\n{next_command(run, out, model)}")


def next_command(run: Tuning, out: Path, model: Path | None) -> str:
    """The line that answers one more text; nothing where a template needs several texts."""
    if len(parse(run.recipe.template).fields) > 1:
        return ""
    named = f" --model {quote(str(model))}" if model else ""
    return f'minicompress ask {quote(str(out))} "a text"{named}'


def open_start(path: Path, folder: Path | None, opened: Model, device: str) -> SoftPrompt:
    """The prompt that --init-from names, as one for this model."""
    if not folder:
        return commands.open_prompt(path, opened)
    source = commands.open_model(folder, device)
    return recycle(commands.open_prompt(path, source), source, opened)


def tell_differences(given: SoftPrompt, recipe: Recipe) -> None:
    """Slots are all that is taken over: says where texts stood otherwise in the prompt that they come from."""
    if given.template not in (None, recipe.template):
        aside.print(f"--init-from was made with the template {given.template!r}; this one is {recipe.template!r}")
    if given.positions != recipe.positions:
        aside.print(f"--init-from was made with --positions {given.positions}; this one is {recipe.positions}")


def train(run: Tuning, checkpoint: Path) -> None:
    """Trains with a bar that shows the loss of the last step and the last evaluation."""
    with bar() as progress:
        task = progress.add_task("slots", total=run.recipe.steps, completed=run.state["step"], loss="")

        def told(run: Tuning) -> None:
            last = run.history[-1]
            scores = f"loss {run.recent[-1]:.3f}, held out {last['loss']:.3f}, right {hits(last):.1%}"
            progress.update(task, completed=run.state["step"], loss=scores)

        try:
            run.train(checkpoint, told)
        except KeyboardInterrupt:
            progress.console.print(f"stopped; {checkpoint} keeps the last step saved, and --resume goes on from it")
            raise
