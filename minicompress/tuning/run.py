"""One tuning, from a file of examples to the best slots, resumable at every step."""

import json
import math
import time
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from minicompress.arrays import like, to_host
from minicompress.compression.objectives import likelihood
from minicompress.compression.problem import copied, place
from minicompress.compression.queries import pad
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.soft_prompt import SoftPrompt, bytes_hash, text_hash
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.checkpoints import load_own, save_tree
from minicompress.training.schedules import warmup_cosine
from minicompress.trees import tree_map
from minicompress.tuning.examples import read_examples
from minicompress.tuning.recipe import settled, trained
from minicompress.tuning.rows import make_task
from minicompress.tuning.scores import better, evaluate
from minicompress.tuning.start import begin

KEEP_EVERY = 50  # steps between two checkpoints, where no evaluation comes before
RECENT = 20  # last steps, whose mean loss stands in the history


class Tuning:
    """One tuning. `history` holds its evaluations, `best_at` is the number of the best of them.

    data, valid: files of examples; without `valid` some of the data are held out. given: a SoftPrompt to begin at.
    """

    def __init__(self, model, recipe, data, valid=None, given=None, shards=None):
        kind, examples = read_examples(data)
        other, held = read_examples(valid) if valid else (kind, None)
        if other != kind:
            raise ValueError(f"{data} has {kind}s and {valid} has {other}s; they must be of one kind")
        self.model, self.shards, self.kind = model, shards, kind
        self.recipe = settled(recipe, kind, model.tokenizer, model.pair[1], given is not None)
        shell = self.as_prompt(np.zeros(slots_shape(self.recipe.carrier, model.pair[1], self.recipe.slots)))
        self.task = make_task(model, self.recipe, shell, kind, examples, held)
        self.raw, self.door, self.bake = begin(model, self.recipe, shell.door, given)
        self.initial = self.bake(self.raw)[0]
        self.hashes = {"data": hash_of(examples), "valid": held and hash_of(held)}
        self.hashes |= {"model": model.hash, "start": bytes_hash(to_host(self.initial).tobytes())}
        self.state = adamw_init(trained(self.raw))
        self.best, self.best_at, self.history, self.recent = copied(self.raw), 0, [], []
        self.seconds = {"steps": 0.0, "evaluations": 0.0}
        self.completed = self.snapshot()

    def facts(self):
        """What this tuning is, as far as its numbers depend on it."""
        return self.hashes | {"recipe": asdict(self.recipe), "shards": self.shards.n}

    @property
    def finished(self):
        """Whether all steps are done, or too many evaluations have not been better than the best."""
        patience = self.recipe.patience
        tired = patience is not None and len(self.history) - 1 - self.best_at >= patience
        return self.state["step"] >= self.recipe.steps or tired

    def train(self, checkpoint=None, progress=None):
        """Trains to the end, progress(self) after each step; the checkpoint is up to date, also when interrupted."""
        try:
            if not self.history:
                self.evaluate()
            while not self.finished:
                with self.timed("steps"):
                    self.recent = [*self.recent, self.take_step()][-RECENT:]
                step = self.state["step"]
                if due := step % self.recipe.evaluate_every == 0 or step == self.recipe.steps:
                    self.evaluate()
                self.completed = self.snapshot()
                if checkpoint and (due or step % KEEP_EVERY == 0):
                    self.save(checkpoint)
                if progress:
                    progress(self)
        except KeyboardInterrupt:
            if checkpoint:
                self.save(checkpoint)
            raise

    def take_step(self):
        """One step of Adam in place, on a batch that seed and step alone decide -> its loss."""
        recipe, step, train = self.recipe, self.state["step"], self.task.train
        rng = np.random.default_rng((recipe.seed, step))
        numbers = np.sort(rng.choice(len(train), min(recipe.rows, len(train)), replace=False))
        loss, draw = self.gradient([train[i] for i in numbers])
        clip_by_global_norm(trained(draw), recipe.clip or math.inf)
        rate = warmup_cosine(step, recipe.steps, recipe.lr, recipe.warmup, final=0.05)
        adamw_step(trained(self.raw), trained(draw), self.state, rate, weight_decay=recipe.weight_decay)
        return loss

    def gradient(self, queries, slots=None):
        """The mean loss of the answers' tokens, and its gradient in the raw arrays, or in slots that are given."""
        (ids, scored), wte = pad(queries), self.model.wte
        door, tree = (self.door, self.raw) if slots is None else (self.as_prompt(slots).door, slots)

        def objective(part, weight):
            return likelihood(like(ids[part][scored[part]], wte), weight)

        return slots_gradient(self.model.pair, tree, ids, scored, objective, self.shards, door)

    def evaluate(self):
        """Adds an evaluation of the slots as they are to the history, and keeps them where they are the best."""
        with self.timed("evaluations"):
            result = self.score(self.as_prompt(self.bake(self.raw)[0]).prefix(*self.model.pair), self.task.held)
        mean = float(np.mean(self.recent)) if self.recent else None
        self.history.append({"step": self.state["step"], "train_loss": mean} | result)
        if better(result, self.history[self.best_at] if len(self.history) > 1 else None, self.recipe.best_by):
            self.best, self.best_at = copied(self.raw), len(self.history) - 1

    @contextmanager
    def timed(self, what):
        """Adds the seconds within to those spent on it; a resumed run goes on counting."""
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began

    def score(self, prefix, queries):
        pair, tokenizer, _ = self.model
        return evaluate(pair, tokenizer, prefix, queries, self.task.words, self.shards, self.recipe.decode)

    def snapshot(self):
        """Everything that training changes, copied: an interruption may come in the middle of an update."""
        tree = copied({"raw": self.raw, "m": self.state["m"], "v": self.state["v"]})
        tree |= {"best": self.best}  # replaced by a better one, never changed in place
        counted = {"step": self.state["step"], "best_at": self.best_at, "seconds": dict(self.seconds)}
        return tree, counted | {"history": list(self.history), "recent": list(self.recent)}

    def save(self, checkpoint):
        """Writes the last completed step."""
        tree, counted = self.completed
        save_tree(checkpoint, tree, **counted, **self.facts())

    def resume(self, checkpoint):
        """Takes up the tuning whose checkpoint this is; raises ValueError where it was another's."""
        tree, counted = load_own(checkpoint, **self.facts())
        tree = place(tree, self.model.wte)
        self.raw, self.best = tree["raw"], tree["best"]
        self.state = {"step": counted["step"], "m": tree["m"], "v": tree["v"]}
        self.best_at, self.history, self.recent = counted["best_at"], counted["history"], counted["recent"]
        self.seconds = counted["seconds"]
        self.completed = self.snapshot()

    def as_prompt(self, slots, **more):
        """The SoftPrompt of these slots by this recipe."""
        recipe = self.recipe
        return SoftPrompt(slots, recipe.carrier, recipe.positions, template=recipe.template, **more)

    def prompt(self):
        """The best slots, baked and raw, on the host; and where they come from."""
        found = {"steps": self.state["step"], "best_step": self.history[self.best_at]["step"], "history": self.history}
        words = {label: self.model.tokenizer.decode(tokens) for label, tokens in self.task.words.items()}
        slots, raw = to_host(self.bake(self.best)[0]), tree_map(to_host, self.best)
        provenance = self.facts() | found | {"verbalizer": words}
        return self.as_prompt(slots, raw=raw, initial=to_host(self.initial), provenance=provenance)


def hash_of(examples):
    """16 hexadecimal digits that tell these examples from others."""
    return text_hash(json.dumps([[example.fields, example.answer] for example in examples]))
