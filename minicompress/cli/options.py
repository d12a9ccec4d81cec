"""The options of `compress`: what each may be, which go together, and the Job that they make."""

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import typer

from minicompress import commands
from minicompress.cli.many import is_many
from minicompress.cli.produce import MATCHING, REFERENCES, Job
from minicompress.compression.matching import BUDGETS, CHOOSE
from minicompress.compression.objectives import DIVERGENCES, TOP_K, read_loss
from minicompress.compression.places import read_places
from minicompress.compression.problem import Recipe
from minicompress.compression.run import PROMPT_FILE
from minicompress.compression.segments import METHODS
from minicompress.compression.select import SELECTORS
from minicompress.compression.sources import ANSWERS, SOURCES
from minicompress.prompts.carriers import DOORS, POSITIONS
from minicompress.prompts.low_rank_weights import LORA
from minicompress.prompts.soft_prompt import SoftPrompt

ONCE = (MATCHING, *SELECTORS)  # producers that train nothing
OF_MATCHING: dict[str, Collection[str]] = {"choose": CHOOSE, "budget": BUDGETS, "reference": REFERENCES}
CHOICES = OF_MATCHING | {
    "carrier": (*DOORS, LORA),
    "positions": POSITIONS,
    "producer": ("gradient", *ONCE, *METHODS),
    "answers": ANSWERS,
    "baselines": ("cheap", "selected", "all"),
}
OF_SLOTS = ("beta", "any_prefix", "freeze_first")
OF_GRADIENT = (*OF_SLOTS, "carrier", "positions", "init", "loss", "top_k", "temperature", "places", "steps", "lr",
               "rows", "refresh", "resume", "baselines")  # fmt: skip
OTHER_CONTEXT = Path(commands.__file__).parent / "report" / "other_context.txt"


def options_of(ctx: typer.Context) -> SimpleNamespace:
    """All options by their names; which of them were `typed`, whether contexts are `many`, slots by gradient `trained`.

    Raises ValueError with what is wrong with them, alone or together.
    """
    o = SimpleNamespace(**ctx.params)
    o.typed = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    o.many, o.trained = is_many(o.context), not o.compressor and o.producer in (None, "gradient")
    check_each(o)
    check_producer(o)
    take_over(o)
    check_together(o)
    return o


def check_each(o: SimpleNamespace) -> None:
    """Whatever the others are."""
    for name, known in CHOICES.items():
        if (given := getattr(o, name)) is not None:
            commands.check_choice(f"--{name}", given, *known)
    read_loss(o.loss)
    read_places(o.places)
    commands.check_at_least(0, steps=o.steps, seed=o.seed)
    commands.check_at_least(1, slots=o.slots, rows=o.rows, threads=o.threads, top_k=o.top_k, chunk=o.chunk,
                            refresh=o.refresh)  # fmt: skip
    commands.check_at_least(2, self_study=o.self_study)
    commands.check_at_least(1e-6, temperature=o.temperature, lr=o.lr, continuation_share=o.continuation_share)
    if not o.many:
        commands.check_out(o.out)
    said = [("--seed-prompt", words) for words in o.seed_prompt or ()]
    for name, words in (("--init", o.init), ("--queries", o.queries), *said):
        commands.check_words(name, words)
    if not o.init.endswith(PROMPT_FILE) and len(o.init) < 256 and "." in o.init and Path(o.init).is_file():
        raise ValueError(f"--init {o.init} is a file; one that holds a prompt has a name that ends with {PROMPT_FILE}")


def check_producer(o: SimpleNamespace) -> None:
    """That nothing was asked of a producer which it does not read."""
    if o.producer in METHODS and not o.compressor:
        raise ValueError(f"--producer {o.producer} is trained first: name its folder with --compressor DIR")
    if o.producer not in (None, *METHODS) and o.compressor:
        raise ValueError(f"--compressor makes slots in its own way, and --producer is {o.producer}; leave out one")
    if o.producer != MATCHING and (idle := [name for name in OF_MATCHING if getattr(o, name)]):
        raise ValueError(f"--{idle[0]} belongs to --producer {MATCHING}; leave it out")
    fits = {"resume": o.many, "baselines": o.baselines != "all"}  # of all producers, in these cases
    idle = [name for name in OF_GRADIENT if name in o.typed and not fits.get(name)]
    if idle and not o.trained:
        words = "belongs to slots by gradient; leave it out, or --producer and --compressor"
        raise ValueError(f"--{idle[0].replace('_', '-')} {words}")
    if o.queries == "on-policy" and not o.trained:
        raise ValueError("--queries on-policy are what slots by gradient write while they learn; name another source")


def take_over(o: SimpleNamespace) -> None:
    """What the options leave open is as the prompt in --init has it, or by default; so is the offset of its tokens."""
    given = SoftPrompt.load(o.init) if o.init.endswith(PROMPT_FILE) and o.carrier != LORA else None
    if given:
        o.beta |= given.beta is not None and o.carrier in (None, given.carrier)
    o.offset = given.offset if given and o.positions in (None, given.positions) else None
    o.size = o.slots or (given.length if given else Recipe.slots)
    o.carrier = o.carrier or (given.carrier if given else "embeddings")
    o.positions = o.positions or (given.positions if given else "compact")


def check_together(o: SimpleNamespace) -> None:
    """That the options of slots by gradient fit to one another."""
    terms = {term.name for term in read_loss(o.loss)}
    if o.other and o.baselines != "all":
        raise ValueError("--other is the text of a control, which is only trained with --baselines all")
    if o.carrier == LORA and (o.positions != "compact" or o.baselines == "all"):
        raise ValueError("--carrier lora takes no position and trains no controls; leave out --positions, --baselines")
    if o.carrier == LORA and o.init.endswith(PROMPT_FILE):
        raise ValueError(f"--carrier lora begins as nothing, not as {o.init}; leave out --init")
    if o.carrier == LORA and (idle := [name for name in OF_SLOTS if name in o.typed]):
        raise ValueError(f"--carrier lora has no slots, to which --{idle[0].replace('_', '-')} belongs; leave out one")
    if o.beta and o.carrier != "kv":
        raise ValueError(f"--beta is the mass of a key, which --carrier kv has and {o.carrier} has not")
    if not terms & {*DIVERGENCES} and o.temperature != 1:
        raise ValueError(f"--temperature softens distributions; --loss {o.loss} has none to soften")
    if o.top_k and not terms & {*TOP_K}:
        raise ValueError(f"--top-k belongs to --loss {' or '.join(TOP_K)}; {o.loss} reads no such choice of tokens")


def job_of(o: SimpleNamespace) -> Job:
    """Options that fit together -> what is to be done with each context."""
    source, file = (o.queries, None) if o.queries in SOURCES else ("file", Path(o.queries))
    terms = {term.name for term in read_loss(o.loss)}
    top = (o.top_k or 20) if terms & {*TOP_K} else None  # 20 as in Cartridges
    rate = o.lr or (0.003 if o.carrier == LORA else Recipe.lr)
    recipe = Recipe(o.size, o.loss, o.temperature, o.steps, rate, o.rows, o.seed, o.init, o.self_study, o.carrier,
                    o.positions, o.beta, top, source, o.answers, tuple(o.seed_prompt or ()) or None, o.chunk,
                    o.continuation_share, o.refresh, o.places, o.offset, o.any_prefix, o.freeze_first)  # fmt: skip
    other = commands.read_text(o.other or OTHER_CONTEXT) if o.baselines == "all" else None
    matching = tuple((name, getattr(o, name)) for name in OF_MATCHING if getattr(o, name))
    return Job(recipe, o.producer, o.slots, matching, o.model, o.teacher, o.compressor, file, o.evaluate_on, o.cache,
               other, o.baselines != "cheap", o.device, o.resume)  # fmt: skip
