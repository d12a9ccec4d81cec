"""One context becomes a soft prompt: by the gradient, by a trained compressor, in closed form, or by selection."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicompress import commands
from minicompress.cli.common import aside, bar, take_up
from minicompress.cli.compressors import open_compressor
from minicompress.compression.cache import DECIDES
from minicompress.compression.compressor import Compressor
from minicompress.compression.matching import attention_matching, repeat_prefill
from minicompress.compression.problem import QUERY_TOKENS, Model, Problem, Recipe, check_positions
from minicompress.compression.run import Run
from minicompress.compression.select import SELECTORS
from minicompress.compression.sources import settled, split_text
from minicompress.compression.texts import Stream
from minicompress.evaluation.baselines import evaluate, selected, trained_prefixes
from minicompress.training.shards import Shards

STEP = 256  # tokens, from one word of progress to the next
MATCHING, REFERENCES = "attention-matching", ("queries", "repeat-prefill")


@dataclass(frozen=True)
class Job:
    """What `compress` does with each context that it is given; a worker in another process is sent one."""

    recipe: Recipe
    producer: str | None = None
    slots: int | None = None  # as they were asked for; None: the recipe's, or all that a compressor has
    matching: tuple = ()  # what was asked of Attention Matching, name and value
    model: Path | None = None
    teacher: Path | None = None
    compressor: Path | None = None
    queries: Path | None = None  # the file to train on
    evaluate_on: Path | None = None
    cache: Path | None = None
    other: str | None = None  # the text of a control
    selected: bool = False  # whether the table has a row for each selector
    device: str = "cpu"
    resume: bool = False

    @property
    def trained(self) -> bool:
        """Whether slots follow the gradient."""
        return not self.compressor and self.producer in (None, "gradient")

    def open(self) -> "Opened":
        """Reads the models from disk, once for all contexts."""
        student = commands.open_model(self.model, self.device)
        teacher = commands.open_model(self.teacher, self.device) if self.teacher else student
        compressor = open_compressor(self.compressor, student, self.device) if self.compressor else None
        if compressor and self.producer and self.producer != (kind := compressor[0].kind):
            words = f"{self.compressor} holds a compressor of the kind {kind}"
            raise ValueError(f"{words}; --producer is {self.producer}")
        return Opened(student, teacher, compressor)

    def make(self, opened: "Opened", text: str | Iterable[str], out: Path, shards: Shards, asked: Any = None) -> dict:
        """Writes the prompt's file -> its facts, and the table where there can be one; asked: else `evaluate_on`.

        text: a compressor takes its pieces as well, as they come.
        """
        given = self.queries, asked or self.evaluate_on, shards, self.cache
        if self.trained:
            return by_gradient(self, opened, text, out, given)
        stream = Stream(text, opened.student.tokenizer, opened.student.pair[1].n_positions)
        pose = lambda **fits: Problem(opened.student, opened.teacher, stream.text, replace(self.recipe, **fits), *given)
        if opened.compressor:
            way = by_compressor(self.compressor, *opened.compressor, self.slots)
        elif self.producer == MATCHING:
            way = by_matching(pose, self.recipe.slots, **dict(self.matching))
        else:
            way = by_selection(str(self.producer), self.recipe.slots, opened.student, self.recipe.seed)
        return compress_once(way, opened.student, stream, out, pose, settled(self.recipe, self.queries), self.selected)


class Opened(NamedTuple):
    """The models of a job; and its compressor, with the model that reads what this makes."""

    student: Model
    teacher: Model
    compressor: tuple[Compressor, Model] | None = None


def by_gradient(job: Job, opened: Opened, text: Any, out: Path, given: tuple) -> dict:
    """Trains, from OUT.checkpoint on where that is wanted, and evaluates."""
    checkpoint = out.with_name(out.name + ".checkpoint")
    with aside.status("the teacher reads" if job.queries else "the teacher reads the context and writes questions"):
        run = Run(opened.student, opened.teacher, text, job.recipe, *given)
    take_up(run, checkpoint, job.resume)
    aside.print(f"{len(run.ids):,} tokens; {len(run.train)} queries to train on, {len(run.held)} held out")
    check_controls(run, job.other)
    train(run, checkpoint)
    run.prompt().save(out)
    checkpoint.unlink(missing_ok=True)
    extra = (selected(run) if job.selected else {}) | (train_controls(run, job.other) if job.other else {})
    with aside.status("evaluating on the held-out queries"):
        result = evaluate(run, extra)
    steps = run.recipe.steps
    return result | {"steps": steps, "out": str(out), "seconds_per_step": run.seconds_training / max(1, steps)}


def check_controls(run: Run, other: str | None) -> None:
    """Raises ValueError, before anything is trained, where the other context does not fit in the model."""
    if other:
        length = len(run.model.tokenizer.encode(other).ids)
        check_positions(run.model.pair[1], tokens_of_the_other_context=length, tokens_of_a_query=QUERY_TOKENS)


def train(run: Run, checkpoint: Path) -> None:
    """Trains the slots, with a progress bar; an interruption keeps the last step."""
    with bar() as progress:
        task = progress.add_task("slots", total=run.recipe.steps, completed=run.state["step"], loss="")
        told = lambda step, _, loss: progress.update(task, completed=step, loss=f"loss {loss:.4f}")
        try:
            run.train_slots(checkpoint, told)
        except KeyboardInterrupt:
            progress.console.print(f"stopped; {checkpoint} keeps the last step saved, and --resume goes on from it")
            raise


def train_controls(run: Run, other: str) -> dict:
    """Trains the slots of another context, and those of the answers alone -> their prefixes."""
    with bar() as progress:
        task = progress.add_task("controls", total=2 * run.recipe.steps, loss="")
        return trained_prefixes(run, other, lambda *_: progress.advance(task))


class Way(NamedTuple):
    """How a context is compressed where nothing is trained.

    make(ids) gives a SoftPrompt for the model `reader`, of token ids that come one by one.
    """

    make: Callable
    reader: Model
    recipe: dict  # as the prompt's file will have it
    began: float  # when, since what makes the slots may have had to be made itself
    problem: Problem | None = None  # where its queries were needed to make anything
    folder: Path | None = None  # where the reader is, if it is not the model itself


def by_compressor(folder: Path | None, compressor: Compressor, reader: Model, slots: int | None) -> Way:
    """By a compressor that `train-compressor` made."""
    recipe = {"producer": compressor.kind, "segment": compressor.segment}
    make = lambda ids: compressor.compress(reader.pair, counted(ids), slots)
    own = folder if compressor.method.adapts == "all" else None
    return Way(make, reader, recipe, time.perf_counter(), folder=own)


def counted(ids: Iterable[int]) -> Iterator[int]:
    """The same ids; of more than a few it is shown how many have passed, since nobody knows how many will."""
    ids = iter(ids)
    yield from islice(ids, STEP)
    with bar() as progress:
        task = progress.add_task("tokens", total=None, loss="")
        while some := list(islice(ids, STEP)):
            yield from some
            progress.advance(task, STEP)


def by_selection(name: str, slots: int, model: Model, seed: int) -> Way:
    """By one of SELECTORS."""
    rng, recipe = np.random.default_rng(seed), {"producer": name, "seed": seed}
    return Way(lambda ids: SELECTORS[name](model.pair, list(ids), slots, rng), model, recipe, time.perf_counter())


def by_matching(
    pose: Callable, slots: int, choose: str = "rms", budget: str = "even", reference: str = "queries"
) -> Way:
    """By Attention Matching; its reference rows are the queries to train on of pose(), a Problem, or the context."""
    began = time.perf_counter()
    with aside.status("the teacher reads the context, and what is asked of it"):
        problem = pose()
    pair, rows = problem.model.pair, [query.ids for query in problem.train]
    rows = repeat_prefill(problem.ids, pair[1]) if reference == "repeat-prefill" else rows
    make = lambda ids: attention_matching(pair, list(ids), slots, rows, choose, budget=budget)
    recipe = {"producer": MATCHING, "choose": choose, "budget": budget, "reference": reference, "rows": len(rows)}
    recipe |= {"teacher": problem.hashes["teacher"]} | {name: getattr(problem.recipe, name) for name in DECIDES}
    return Way(make, problem.model, recipe, began, problem)


def compress_once(
    way: Way, model: Model, stream: Stream, out: Path, pose: Callable, recipe: Recipe, rows: bool
) -> dict:
    """A text in one of these ways -> a prompt's file; its facts, and the table where there can be one.

    pose(slots=…, positions=…) gives the Problem that it is judged by; rows: whether beside all selectors. There is no
    table of a context that no teacher can read. Nothing is written before all is known to be right.
    """
    ids = stream.ids() if recipe.queries != "continuation" else iter(split_text(list(stream.ids()), recipe)[0])
    made = way.make(ids)
    seconds, room = time.perf_counter() - way.began, model.pair[1].n_positions
    made.check_model(way.reader.pair[1], str(out))
    problem = None
    if stream.count + QUERY_TOKENS <= room:
        with aside.status("the teacher reads the context, and what is asked of it"):
            problem = way.problem or pose(slots=made.length, positions=made.positions)
        problem.seconds, problem.recipe = seconds, replace(problem.recipe, slots=made.length)
    count = len(problem.ids) if problem else stream.count
    said = {"model": way.reader.hash, "context": stream.hash, "context_tokens": count, "recipe": way.recipe}
    said |= {"compressor": made.provenance} if made.provenance else {}
    replace(made, provenance=said).save(out)
    facts = {"out": str(out), "producer": way.recipe["producer"], "context_tokens": count, "slots": made.length,
             "seconds": seconds} | ({"reader": str(way.folder)} if way.folder else {})  # fmt: skip
    if problem is None:
        aside.print(f"no table: n_positions is {room:,}, so no teacher can read {count:,} tokens and a query")
        return facts
    with aside.status("evaluating on the held-out queries"):
        extra = selected(problem) if rows else None
        return facts | evaluate(problem, extra, made={"sigma": made}, reader=way.reader.pair)
