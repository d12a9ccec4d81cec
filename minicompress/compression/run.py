"""One compression by gradient, from a context's text to trained slots, resumable at every step."""

import time
from copy import copy
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from minicompress.arrays import to_host, zeros_like
from minicompress.compression.gradient import train_slots
from minicompress.compression.inside import TeacherInside
from minicompress.compression.objectives import INSIDE, check_loss, read_loss
from minicompress.compression.places import choose_places, read_places
from minicompress.compression.problem import Problem, copied, place
from minicompress.compression.queries import Query
from minicompress.compression.sources import study
from minicompress.compression.teacher import Teacher
from minicompress.prompts.carriers import cut, frozen, leading, lift, through
from minicompress.prompts.initialise import initialise
from minicompress.prompts.low_rank_weights import LORA, LowRankWeights, init, rank_at_equal_size
from minicompress.prompts.soft_prompt import SoftPrompt, bytes_hash
from minicompress.training.adamw import adamw_init
from minicompress.training.checkpoints import load_own, save_tree
from minicompress.training.schedules import any_prefix
from minicompress.trees import tree_map

PROMPT_FILE = ".safetensors"  # how --init ends where it names another prompt


def initial_slots(model, context_ids, recipe):
    """The slots before the first step, as `initialise` names them; `text` means the context's own tokens.

    A file's name means the slots of that prompt, whoever made them. Low-rank weights begin as nothing, and have as many
    numbers as that many slots of keys and values.
    """
    rng = np.random.default_rng((recipe.seed, 2))
    if recipe.carrier == LORA:
        return init(rng, model.pair[0], rank_at_equal_size(recipe.slots))
    if recipe.init.endswith(PROMPT_FILE):
        slots, beta = from_file(model, recipe)
    else:
        how = recipe.init, recipe.slots, recipe.carrier
        slots, beta = initialise(model.pair, model.tokenizer, *how, rng, context_ids), None
    if not recipe.beta:
        return slots
    return {"slots": slots, "beta": zeros_like(slots[:, 0, ..., 0]) if beta is None else beta}


def from_file(model, recipe):
    """The first slots of the prompt in `recipe.init`, and their masses or None; embeddings become another carrier.

    Raises ValueError where it is another model's, has fewer slots, or is of a carrier that cannot become this one.
    """
    given, wanted = SoftPrompt.load(recipe.init), recipe.carrier
    if (made_for := given.provenance.get("model")) != model.hash:
        raise ValueError(f"--init {recipe.init} was made for the model {made_for}; this one is {model.hash}")
    given.check_model(model.pair[1], recipe.init)
    if given.template or given.carrier not in ("embeddings", wanted):
        words = "a template" if given.template else given.carrier
        raise ValueError(f"--init {recipe.init} has {words}, from which --carrier {wanted} cannot begin")
    if given.length < recipe.slots:
        raise ValueError(f"--init {recipe.init} has {given.length} slots, from which {recipe.slots} cannot begin")
    if given.beta is not None and not recipe.beta:
        raise ValueError(f"--init {recipe.init} has a mass for every key; add --beta")
    given = given.first(recipe.slots)
    slots = place(given.slots, model.wte)
    slots = slots if given.carrier == wanted else lift(*model.pair, slots, wanted)
    return slots, None if given.beta is None else place(given.beta, model.wte)


def hash_of_init(recipe):
    """{"init": of the prompt's file to begin as}, since another file of that name is another run; or {}."""
    named = recipe.init.endswith(PROMPT_FILE)
    return {"init": bytes_hash(Path(recipe.init).read_bytes())} if named else {}


def check_recipe(recipe, student, teacher):
    """Raises ValueError where a loss, the places or the queries do not go together; student, teacher: their configs."""
    check_loss(recipe.loss, recipe.top_k, student.vocab_size)
    read_places(recipe.places)
    terms = {term.name for term in read_loss(recipe.loss)}
    sizes = [(config.n_layer, config.n_embd) for config in (student, teacher)]
    if terms & {*INSIDE} and sizes[0] != sizes[1]:
        words = " and ".join(f"{layers} layers of {width}" for layers, width in sizes)
        raise ValueError(f"--loss {recipe.loss} compares layer by layer; the model and its teacher have {words}")
    if recipe.freeze_first and recipe.slots == 1:
        raise ValueError("--freeze-first leaves nothing to train of one slot; take more --slots")
    if recipe.queries == "on-policy" and "likelihood" in terms:
        raise ValueError("--queries on-policy: the student writes no answers; leave likelihood out of --loss")


class Run(Problem):
    """A problem, and slots that follow the gradient; `progress(step, steps, loss)` is told of each step."""

    asked = ()  # what is trained on now

    def __init__(self, model, teacher, text, recipe, queries_file=None, evaluate_on=None, shards=None, cache=None):
        check_recipe(recipe, model.pair[1], teacher.pair[1])
        super().__init__(model, teacher, text, recipe, queries_file, evaluate_on, shards, cache)
        self.hashes |= hash_of_init(recipe)
        self.seconds_training = 0.0
        self.ask(self.train)
        if not self.asked:
            raise ValueError(f"--places {recipe.places} leaves nothing to train on: the context changes no token")
        self.initial = initial_slots(model, self.ids, recipe)
        self.slots, self.state = copied(self.initial), adamw_init({"slots": self.initial})
        self.completed = self.snapshot()

    def ask(self, queries):
        """These are trained on from now on, at the recipe's places; where none is left, those of before."""
        recipe, teacher = self.recipe, self.teacher.pair
        if queries := choose_places(recipe.places, queries, teacher, self.read, self.shards):
            self.asked = queries
            self.expects = Teacher(teacher, self.read, queries, self.shards, temperature=recipe.temperature)
            within = any(term.name in INSIDE for term in read_loss(recipe.loss))
            self.inside = TeacherInside(teacher, self.read, queries, self.shards) if within else None

    def ask_student(self):
        """What the student writes behind its present slots is trained on, but for what is held out."""
        student, held = self.model._replace(pair=self.reader), {q.key for q in self.held}
        prefix = self.as_prompt(self.slots).prefix(*self.model.pair)
        rng = np.random.default_rng((self.recipe.seed, 3, self.state["step"]))
        room = min(student.pair[1].n_positions - prefix.start, self.teacher.pair[1].n_positions - self.read.length)
        found = study(student, [prefix], self.recipe, rng, self.shards, room)
        self.ask([q for q in found if q.key not in held])

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
            while (step := self.state["step"]) < recipe.steps:
                if recipe.refresh and step % recipe.refresh == 0:
                    self.ask_student()
                until = step + recipe.refresh - step % recipe.refresh if recipe.refresh else None
                train_slots(self.model.pair, self.slots, self.state, self.asked, self.expects, recipe.steps,
                            shards=self.shards, loss=recipe.loss, temperature=recipe.temperature, lr=recipe.lr,
                            rows=recipe.rows, seed=recipe.seed, on_step=on_step, door=self.door,
                            top_k=recipe.top_k, until=until, inside=self.inside,
                            fewer=self.fewer if recipe.any_prefix else None)  # fmt: skip
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
        asked = [astuple(q) for q in self.asked] if self.recipe.refresh else None
        queries = [q.ids for q in self.train]
        save_tree(checkpoint, tree, step=step, seconds=seconds, asked=asked, train=queries, **self.facts())

    def resume(self, checkpoint):
        """Takes up the run whose checkpoint this is; raises ValueError where it was another run's."""
        tree, facts = load_own(checkpoint, **self.facts(), train=[q.ids for q in self.train])
        self.slots, m, v = (place(tree[name], self.model.wte) for name in ("slots", "m", "v"))
        self.state = {"step": facts["step"], "m": {"slots": m}, "v": {"slots": v}}
        self.completed = self.snapshot()
        if facts["asked"]:
            self.ask([Query(*parts) for parts in facts["asked"]])
        spent, self.seconds_training = facts["seconds"]
        self.start -= spent

    def with_start(self, slots, **changes):
        """The same queries and teacher, from other slots and by a changed recipe."""
        other, changes = copy(self), {"refresh": None} | changes  # the queries of the beginning
        other.recipe, other.initial, other.slots = replace(self.recipe, **changes), slots, copied(slots)
        other.state, other.start, other.seconds_training = adamw_init({"slots": slots}), time.perf_counter(), 0.0
        other.completed = other.snapshot()
        if self.recipe.refresh:
            other.ask(other.train)
        return other

    @property
    def low_rank(self):
        return self.recipe.carrier == LORA

    @property
    def door(self):
        """How a step reads the slots; None where they are weights."""
        if self.low_rank:
            return None
        door = self.as_prompt(self.slots).door
        return through(*frozen(1), door) if self.recipe.freeze_first else door

    def fewer(self, rng):
        """How a step of any-prefix training reads them: some of the first alone, where these would stand alone."""
        used = any_prefix(self.recipe.slots, rng)
        door = through(*leading(used), self.as_prompt(cut(self.slots, used)).door)
        return through(*frozen(1), door) if self.recipe.freeze_first else door

    @property
    def reader(self):
        """The pair that reads the result: the model, but where the result is weights of it."""
        return self.as_prompt(self.slots).reader(*self.model.pair) if self.low_rank else self.model.pair

    def as_prompt(self, slots, **provenance):
        """The SoftPrompt of these slots by this run's recipe; `logical`: tokens stand as after the context."""
        if self.low_rank:
            return LowRankWeights(slots, provenance=provenance)
        slots, beta = (slots["slots"], slots["beta"]) if self.recipe.beta else (slots, None)
        told = self.recipe.offset
        offset = (len(self.ids) if told is None else told) if self.recipe.positions == "logical" else None
        return SoftPrompt(slots, self.recipe.carrier, self.recipe.positions, offset, beta, provenance=provenance)

    def made(self):
        """What the table shows of this run: the slots as they began, and as they are."""
        begun = {} if self.low_rank else {"init": self.as_prompt(self.initial)}
        return begun | {"sigma": self.as_prompt(self.slots)}

    def prompt(self):
        """The slots as they are now, and as they began, on the host; and where they come from."""
        sizes = {"context_tokens": len(self.ids), "queries": len(self.train)}
        made = self.as_prompt(tree_map(to_host, self.slots), **self.facts(), **sizes)
        return made if self.low_rank else replace(made, initial=self.as_prompt(tree_map(to_host, self.initial)).slots)
