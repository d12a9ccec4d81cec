"""`compress`: a text file becomes a soft prompt, and a table says what it is worth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minicompress import commands
from minicompress.cli.common import Device, Json, ModelDir, app, show
from minicompress.cli.many import compress_many, is_many, tell_many
from minicompress.cli.produce import MATCHING, REFERENCES, Job
from minicompress.compression.matching import BUDGETS, CHOOSE
from minicompress.compression.objectives import DIVERGENCES, LOSSES, TOP_K, read_loss
from minicompress.compression.places import read_places
from minicompress.compression.problem import Recipe
from minicompress.compression.run import PROMPT_FILE
from minicompress.compression.segments import METHODS
from minicompress.compression.select import SELECTORS
from minicompress.compression.sources import ANSWERS, SOURCES
from minicompress.compression.texts import read_pieces
from minicompress.evaluation.baselines import summary
from minicompress.prompts.carriers import DOORS, POSITIONS
from minicompress.prompts.low_rank_weights import LORA
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.report.table import cost_line, evaluation_table
from minicompress.training.shards import Shards

ONCE = (MATCHING, *SELECTORS)  # producers that train nothing
OF_SLOTS = ("beta", "any_prefix", "freeze_first")
OF_GRADIENT = (*OF_SLOTS, "carrier", "positions", "init", "loss", "top_k", "temperature", "places", "steps", "lr",
               "rows", "refresh", "resume", "baselines")  # fmt: skip
OTHER_CONTEXT = Path(commands.__file__).parent / "report" / "other_context.txt"


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
    commands.check_choice("--carrier", carrier or "kv", *DOORS, LORA)
    commands.check_choice("--positions", positions or "compact", *POSITIONS)
    commands.check_choice("--producer", producer or "gradient", "gradient", *ONCE, *METHODS)
    of_matching: list[tuple] = [("choose", choose, CHOOSE), ("budget", budget, BUDGETS)]
    of_matching.append(("reference", reference, REFERENCES))
    for name, given, known in of_matching:
        commands.check_choice(f"--{name}", given or next(iter(known)), *known)
        if given and producer != MATCHING:
            raise ValueError(f"--{name} belongs to --producer {MATCHING}; leave it out")
    if producer in METHODS and not compressor:
        raise ValueError(f"--producer {producer} is trained first: name its folder with --compressor DIR")
    if producer not in (None, *METHODS) and compressor:
        raise ValueError(f"--compressor makes slots in its own way, and --producer is {producer}; leave out one")
    if answers is not None:
        commands.check_choice("--answers", answers, *ANSWERS)
    terms = {term.name for term in read_loss(loss)}
    read_places(places)
    commands.check_choice("--baselines", baselines, "cheap", "selected", "all")
    commands.check_at_least(0, steps=steps, seed=seed)
    commands.check_at_least(1, slots=slots, rows=rows, threads=threads, top_k=top_k, chunk=chunk, refresh=refresh)
    commands.check_at_least(2, self_study=self_study)
    commands.check_at_least(1e-6, temperature=temperature, lr=lr, continuation_share=continuation_share)
    if not (many := is_many(context)):
        commands.check_out(out)
    for name, words in (("--init", init), ("--queries", queries), *(("--seed-prompt", s) for s in seed_prompt or ())):
        commands.check_words(name, words)
    trained = not compressor and producer in (None, "gradient")
    asked = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    asked -= {"resume"} if many else set()
    asked -= {"baselines"} if baselines != "all" else set()
    if not trained and (idle := [name for name in OF_GRADIENT if name in asked]):
        words = "belongs to slots by gradient; leave it out, or --producer and --compressor"
        raise ValueError(f"--{idle[0].replace('_', '-')} {words}")
    if not trained and queries == "on-policy":
        raise ValueError("--queries on-policy are what slots by gradient write while they learn; name another source")
    if not init.endswith(PROMPT_FILE) and len(init) < 256 and "." in init and Path(init).is_file():
        raise ValueError(f"--init {init} is a file; one that holds a prompt has a name that ends with {PROMPT_FILE}")
    size, carrier, positions, offset, beta = as_given(init, slots, carrier, positions, beta)
    if other and baselines != "all":
        raise ValueError("--other is the text of a control, which is only trained with --baselines all")
    if carrier == LORA and (positions != "compact" or baselines == "all"):
        raise ValueError("--carrier lora takes no position and trains no controls; leave out --positions, --baselines")
    if carrier == LORA and (idle := [name for name in OF_SLOTS if name in asked]):
        raise ValueError(f"--carrier lora has no slots, to which --{idle[0].replace('_', '-')} belongs; leave out one")
    if beta and carrier != "kv":
        raise ValueError(f"--beta is the mass of a key, which --carrier kv has and {carrier} has not")
    if not terms & {*DIVERGENCES} and temperature != 1:
        raise ValueError(f"--temperature softens distributions; --loss {loss} has none to soften")
    if top_k and not terms & {*TOP_K}:
        raise ValueError(f"--top-k belongs to --loss {' or '.join(TOP_K)}; {loss} reads no such choice of tokens")
    source, file = (queries, None) if queries in SOURCES else ("file", Path(queries))
    top = (top_k or 20) if terms & {*TOP_K} else None  # 20 as in Cartridges
    rate = lr or (0.003 if carrier == LORA else Recipe.lr)
    recipe = Recipe(size, loss, temperature, steps, rate, rows, seed, init, self_study, carrier,
                    positions, beta, top, source, answers, tuple(seed_prompt or ()) or None, chunk, continuation_share,
                    refresh, places, offset, any_prefix, freeze_first)  # fmt: skip
    other_text = commands.read_text(other or OTHER_CONTEXT) if baselines == "all" else None
    matching = tuple((name, given) for name, given, _ in of_matching if given)
    job = Job(recipe, producer, slots, matching, model, teacher, compressor, file, evaluate_on, cache, other_text,
              baselines != "cheap", device, resume)  # fmt: skip
    if many:
        return tell_many(compress_many(job, context, out, threads), out, as_json)
    text = read_pieces(context) if compressor else commands.read_text(context)
    with Shards(threads) as shards:
        tell(job.make(job.open(), text, out, shards), as_json)


def as_given(
    init: str, slots: int | None, carrier: str | None, positions: str | None, beta: bool
) -> tuple[int, str, str, int | None, bool]:
    """What the options leave open: as the prompt in --init has it, or by default; and the offset of its tokens."""
    if not init.endswith(PROMPT_FILE):
        return slots or Recipe.slots, carrier or "embeddings", positions or "compact", None, beta
    if carrier == LORA:
        raise ValueError(f"--carrier lora begins as nothing, not as {init}; leave out --init")
    given = SoftPrompt.load(init)
    offset = given.offset if positions in (None, given.positions) else None
    beta = beta or (given.beta is not None and carrier in (None, given.carrier))
    return slots or given.length, carrier or given.carrier, positions or given.positions, offset, beta


def tell(result: dict, as_json: bool) -> None:
    """The table, if there is one, and the costs; or all of it as JSON."""
    result |= summary(result) if "rows" in result else {}
    if "rows" in result and not as_json:
        Console().print(evaluation_table(result))
    made = f"{result['context_tokens']:,} tokens in {result['slots']} slots, {result['seconds']:.2f} s to make"
    reader = f"; the model that reads it is in {result['reader']}" if "reader" in result else ""
    show(result, as_json, (cost_line(result) if "rows" in result else made) + f"\nwritten to {result['out']}{reader}")
