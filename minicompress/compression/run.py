"""One compression from a context's text to trained slots, resumable at every step."""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import array_module, like, to_host
from minicompress.compression.gradient import train_slots
from minicompress.compression.objectives import check_loss
from minicompress.compression.queries import ROWS, START, file_queries, hold_out, self_study
from minicompress.compression.teacher import Teacher
from minicompress.gpt2 import Config
from minicompress.gpt2.prefix import read_tokens
from minicompress.prompts.initialise import initialise
from minicompress.prompts.soft_prompt import SoftPrompt, text_hash
from minicompress.training.adamw import adamw_init
from minicompress.training.checkpoints import load_own, save_tree
from minicompress.trees import tree_map

QUERY_TOKENS = 48  # room for a question and its answer


class Model(NamedTuple):
    """The pair (params, config) that the mathematics takes, the tokenizer, and what gives the hash of the weights."""

    pair: tuple[dict, Config]
    tokenizer: Any
    hashed: Callable[[], str]

    @property
    def hash(self):
        """Of the weights. All of their files are read for it, so only where it is asked for."""
        return self.hashed()

    @property
    def wte(self):
        return self.pair[0]["wte"]["weight"]


def check_positions(config, **parts):
    """Raises ValueError with the arithmetic where the parts do not fit: context_tokens=1010, slots=20."""
    need = sum(parts.values())
    if need > config.n_positions:
        words = " + ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in parts.items())
        raise ValueError(f"n_positions is {config.n_positions:,}; {words} need {need:,}")


def place(slots, wte):
    """A copy of host slots, an array or a tree, where the embeddings are, and of their dtype."""
    return tree_map(lambda x: like(np.array(x, dtype=wte.dtype), wte), slots)


def copied(slots):
    return tree_map(lambda x: x.copy(), slots)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what `compress` makes, as it is written into the prompt's file."""

    slots: int = 8
    loss: str = "kl"
    temperature: float = 1.0
    steps: int = 200
    lr: float = 0.03
    rows: int = 32
    seed: int = 0
    init: str = "text"
    self_study: int = 192
    carrier: str = "embeddings"
    positions: str = "compact"
    beta: bool = False
    top_k: int | None = None  # of the losses that read the teacher's likeliest tokens alone


def gather_queries(teacher, context_prefix, recipe, shards, queries_file=None):
    """The training and the held-out queries, of a file or written by the teacher as it reads the context."""
    rng = np.random.default_rng((recipe.seed, 1))
    if queries_file is None:
        room = teacher.pair[1].n_positions - context_prefix.length - len(teacher.tokenizer.encode(START).ids)
        groups = [min(ROWS, recipe.self_study - i) for i in range(0, recipe.self_study, ROWS)]
        rngs = rng.spawn(len(groups))
        written = shards.map(
            lambda part: [
                self_study(teacher.pair, teacher.tokenizer, context_prefix, n, r, min(QUERY_TOKENS, room))
                for n, r in zip(groups[part], rngs[part], strict=True)
            ],
            len(groups),
        )
        unique = {tuple(q.ids): q for group in written for some in group for q in some}
        return hold_out(list(unique.values()), 0.2, rng)
    return hold_out(file_queries(teacher, context_prefix, queries_file), 0.2, rng)


def initial_slots(model, context_ids, recipe):
    """The slots before the first step, as `initialise` names them; `text` means the context's own tokens."""
    rng = np.random.default_rng((recipe.seed, 2))
    slots = initialise(model.pair, model.tokenizer, recipe.init, recipe.slots, recipe.carrier, rng, context_ids)
    if not recipe.beta:
        return slots
    return {"slots": slots, "beta": array_module(slots).zeros_like(slots[:, 0, ..., 0])}


class Run:
    """One compression, from a context's text to trained slots; `progress(step, steps, loss)` is told of each step."""

    def __init__(self, model, teacher, text, recipe, queries_file=None, evaluate_on=None, shards=None):
        self.model, self.teacher, self.text, self.recipe, self.shards = model, teacher, text, recipe, shards
        if model.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise ValueError("teacher and student have different vocabularies; distillation needs the same tokens")
        check_loss(recipe.loss, recipe.top_k, model.pair[1].vocab_size)
        self.ids = model.tokenizer.encode(text).ids
        for reader in (teacher, model):
            check_positions(reader.pair[1], context_tokens=len(self.ids), tokens_of_a_query=QUERY_TOKENS)
        self.check_room(tokens_of_a_query=QUERY_TOKENS)
        self.files = queries_file, evaluate_on
        self.hashes = {"model": model.hash, "teacher": teacher.hash, "context": text_hash(text)}
        self.start, self.seconds_training = time.perf_counter(), 0.0
        self.read = read_tokens(*teacher.pair, self.ids)
        self.train, self.held = gather_queries(teacher, self.read, recipe, shards, queries_file)
        if evaluate_on:
            self.held, written = file_queries(teacher, self.read, evaluate_on), self.train + self.held
            asked = {q.key for q in self.held}
            self.train = [q for q in written if q.key not in asked]
        if not self.train or not self.held:
            raise ValueError(
                f"{len(self.train) + len(self.held)} queries are too few to train on some and hold out others"
            )
        longest = max(len(q.ids) for q in self.train + self.held)
        for reader in (teacher, model):
            check_positions(reader.pair[1], context_tokens=len(self.ids), tokens_of_the_longest_query=longest)
        self.check_room(tokens_of_the_longest_query=longest)
        self.expects = Teacher(teacher.pair, self.read, self.train, shards, temperature=recipe.temperature)
        self.initial = initial_slots(model, self.ids, recipe)
        self.slots, self.state = copied(self.initial), adamw_init({"slots": self.initial})
        self.completed = self.snapshot()

    def check_room(self, **query):
        """Raises ValueError where slots and a query do not fit; only behind compact slots do they count together."""
        query = query if self.recipe.positions == "compact" else {}
        check_positions(self.model.pair[1], slots=self.recipe.slots, **query)

    def facts(self):
        """What this run is, as far as its numbers depend on it; an option that says nothing is left out."""
        said = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        return self.hashes | {"recipe": said, "shards": self.shards.n}

    def train_slots(self, checkpoint=None, progress=None, every=50):
        """Trains to the last step; the checkpoint is kept up to date, also when interrupted."""
        recipe = self.recipe
        began = time.perf_counter() - self.seconds_training  # a resumed run goes on counting

        def on_step(step, loss, norm):
            self.seconds_training = time.perf_counter() - began
            self.completed = self.snapshot()
            if progress:
                progress(step, recipe.steps, loss)
            if checkpoint and step % every == 0:
                self.save(checkpoint)

        try:
            train_slots(self.model.pair, self.slots, self.state, self.train, self.expects, recipe.steps,
                        shards=self.shards, loss=recipe.loss, temperature=recipe.temperature, lr=recipe.lr,
                        rows=recipe.rows, seed=recipe.seed, on_step=on_step, door=self.door,
                        top_k=recipe.top_k)  # fmt: skip
        except KeyboardInterrupt:
            if checkpoint:
                self.save(checkpoint)
            raise
        self.seconds = time.perf_counter() - self.start

    def snapshot(self):
        """Slots, moments and step, copied: an interruption may come in the middle of an update."""
        m, v = self.state["m"]["slots"], self.state["v"]["slots"]
        return {"slots": copied(self.slots), "m": copied(m), "v": copied(v)}, self.state["step"]

    def save(self, checkpoint):
        """Writes the last completed step."""
        tree, step = self.completed
        seconds = [time.perf_counter() - self.start, self.seconds_training]
        queries = [q.ids for q in self.train]
        save_tree(checkpoint, tree, step=step, seconds=seconds, train=queries, **self.facts())

    def resume(self, checkpoint):
        """Takes up the run whose checkpoint this is; raises ValueError where it was another run's."""
        tree, facts = load_own(checkpoint, **self.facts(), train=[q.ids for q in self.train])
        self.slots, m, v = (place(tree[name], self.model.wte) for name in ("slots", "m", "v"))
        self.state = {"step": facts["step"], "m": {"slots": m}, "v": {"slots": v}}
        self.completed = self.snapshot()
        spent, self.seconds_training = facts["seconds"]
        self.start -= spent

    def with_start(self, slots, **changes):
        """The same queries and teacher, from other slots and by a changed recipe."""
        other = copy(self)
        other.recipe, other.initial, other.slots = replace(self.recipe, **changes), slots, copied(slots)
        other.state, other.start, other.seconds_training = adamw_init({"slots": slots}), time.perf_counter(), 0.0
        other.completed = other.snapshot()
        return other

    @property
    def door(self):
        return self.as_prompt(self.slots).door

    def as_prompt(self, slots, **provenance):
        """The SoftPrompt of these slots by this run's recipe; `logical`: tokens stand as after the context."""
        slots, beta = (slots["slots"], slots["beta"]) if self.recipe.beta else (slots, None)
        offset = len(self.ids) if self.recipe.positions == "logical" else None
        return SoftPrompt(slots, self.recipe.carrier, self.recipe.positions, offset, beta, provenance=provenance)

    def prompt(self):
        """The slots as they are now, and as they began, on the host; and where they come from."""
        sizes = {"context_tokens": len(self.ids), "queries": len(self.train)}
        began = self.as_prompt(tree_map(to_host, self.initial)).slots
        return replace(self.as_prompt(tree_map(to_host, self.slots), **self.facts(), **sizes), initial=began)
