"""One compression by gradient, from a context's text to trained slots, resumable at every step."""

import time
from copy import copy
from dataclasses import replace

import numpy as np

from minicompress.arrays import array_module, to_host
from minicompress.compression.gradient import train_slots
from minicompress.compression.objectives import check_loss
from minicompress.compression.problem import Problem, copied, place
from minicompress.compression.teacher import Teacher
from minicompress.prompts.initialise import initialise
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.adamw import adamw_init
from minicompress.training.checkpoints import load_own, save_tree
from minicompress.trees import tree_map


def initial_slots(model, context_ids, recipe):
    """The slots before the first step, as `initialise` names them; `text` means the context's own tokens."""
    rng = np.random.default_rng((recipe.seed, 2))
    slots = initialise(model.pair, model.tokenizer, recipe.init, recipe.slots, recipe.carrier, rng, context_ids)
    if not recipe.beta:
        return slots
    return {"slots": slots, "beta": array_module(slots).zeros_like(slots[:, 0, ..., 0])}


class Run(Problem):
    """A problem, and slots that follow the gradient; `progress(step, steps, loss)` is told of each step."""

    def __init__(self, model, teacher, text, recipe, queries_file=None, evaluate_on=None, shards=None):
        check_loss(recipe.loss, recipe.top_k, model.pair[1].vocab_size)
        super().__init__(model, teacher, text, recipe, queries_file, evaluate_on, shards)
        self.seconds_training = 0.0
        self.expects = Teacher(teacher.pair, self.read, self.train, shards, temperature=recipe.temperature)
        self.initial = initial_slots(model, self.ids, recipe)
        self.slots, self.state = copied(self.initial), adamw_init({"slots": self.initial})
        self.completed = self.snapshot()

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

    def made(self):
        """What the table shows of this run: the slots as they began, and as they are."""
        return {"init": self.as_prompt(self.initial), "sigma": self.as_prompt(self.slots)}

    def prompt(self):
        """The slots as they are now, and as they began, on the host; and where they come from."""
        sizes = {"context_tokens": len(self.ids), "queries": len(self.train)}
        began = self.as_prompt(tree_map(to_host, self.initial)).slots
        return replace(self.as_prompt(tree_map(to_host, self.slots), **self.facts(), **sizes), initial=began)
