"""One context to compress: who reads it, what it will be asked, and what the answers should be."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import like
from minicompress.compression.cache import kept
from minicompress.compression.queries import file_queries
from minicompress.compression.sources import QUERY_TOKENS, gather, settled, split, split_text
from minicompress.gpt2 import Config
from minicompress.gpt2.prefix import read_tokens
from minicompress.prompts.soft_prompt import text_hash
from minicompress.trees import tree_map


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
    queries: str = "self-study"  # one of SOURCES, or "file"
    answers: str | None = None  # the teacher's own anew, greedy or sampled
    seed_prompt: tuple | None = None  # texts from which self-study begins
    chunk: int | None = None  # tokens of the context that are read, or of the text that are scored, at a time
    continuation_share: float | None = None
    refresh: int | None = None  # steps between two writings of the student's
    places: str = "all"  # that are scored in training: all, changed or first:N
    offset: int | None = None  # of logical positions; None: the context's length
    any_prefix: bool = False  # whether half of the steps train the first few slots alone
    freeze_first: bool = False  # whether the first slot stays as it began (Cartridges, Eyuboglu et al. 2025)


class Problem:
    """A context's text, the models, and the queries: what every producer of slots is given, and judged by.

    `ids` is the context in tokens, `read` the teacher's prefix after it; `train` and `held` are the queries
    to learn from and to be judged by. Raises ValueError where the parts do not fit together.
    """

    def __init__(self, model, teacher, text, recipe, queries_file=None, evaluate_on=None, shards=None, cache=None):
        self.model, self.teacher, self.text, self.shards = model, teacher, text, shards
        self.recipe = recipe = settled(recipe, queries_file)
        if model.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise ValueError("teacher and student have different vocabularies; distillation needs the same tokens")
        self.ids, after = split_text(model.tokenizer.encode(text).ids, recipe)
        for reader in (teacher, model):
            check_positions(reader.pair[1], context_tokens=len(self.ids), tokens_of_a_query=QUERY_TOKENS)
        self.check_room(tokens_of_a_query=QUERY_TOKENS)
        self.files = queries_file, evaluate_on
        self.hashes = {"model": model.hash, "teacher": teacher.hash, "context": text_hash(text)}
        self.start, self.seconds = time.perf_counter(), 0.0  # of what is made of it
        self.read = read_tokens(*teacher.pair, self.ids)
        keep = partial(kept, cache, recipe, self.hashes, len(teacher.wte))
        queries = gather(teacher, self.ids, after, self.read, recipe, shards, queries_file, keep)
        self.train, self.held = split(queries, recipe)
        if evaluate_on:
            written = self.train + [q for q in self.held if q not in self.train]
            self.held = file_queries(teacher, self.read, evaluate_on)
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

    def check_room(self, **query):
        """Raises ValueError where slots and a query do not fit; only behind compact slots do they count together."""
        query = query if self.recipe.positions == "compact" else {}
        check_positions(self.model.pair[1], slots=self.recipe.slots, **query)

    def facts(self):
        """What this is, as far as numbers depend on it; an option that says nothing is left out."""
        said = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        said |= {"seed_prompt": list(self.recipe.seed_prompt)} if self.recipe.seed_prompt else {}  # as JSON has it
        return self.hashes | {"recipe": said, "shards": self.shards.n}
