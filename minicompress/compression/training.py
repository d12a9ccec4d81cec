"""One training of a compressor: many contexts from a file, resumable at every step."""

import json
from dataclasses import asdict, dataclass

import numpy as np

from minicompress.compression.amortised import Asked, Example, compressor_gradient
from minicompress.compression.compressor import Compressor, begin
from minicompress.compression.problem import check_positions, place
from minicompress.compression.queries import Query, question_query
from minicompress.compression.segments import METHODS
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.checkpoints import load_own, save_tree
from minicompress.training.schedules import any_prefix, warmup_cosine

MOST = 8  # queries of one context in one step


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what `train-compressor` makes."""

    producer: str = "gist"
    slots: int = 32
    segment: int = 128
    loss: str = "kl"  # from the teacher's distributions, or the likelihood of the data
    reconstruction: float = 0.0  # the weight of each place of the last segment, written out again
    rank: int = 16
    steps: int = 1000
    contexts: int = 8
    lr: float = 1e-3
    warmup: int = 50
    horizon: int | None = None
    any_prefix: bool = True
    seed: int = 0


def read_record(line, where):
    """A line {"context": …, "queries": [{"question": …, "answer": …}, …]} or {"text": …} -> {"context", "queries"} or
    {"text"}, the queries as pairs. Raises ValueError with `where` it stands.
    """
    try:
        record = json.loads(line)
        pairs = [] if "text" in record else [(q["question"], q["answer"]) for q in record["queries"]]
        texts = [record["text"]] if "text" in record else [record["context"], *(t for pair in pairs for t in pair)]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise TypeError("a text is empty, or none")
        if "text" not in record and not pairs:
            raise TypeError("it has no query")
    except (ValueError, KeyError, TypeError, RecursionError) as reason:
        reason = f"it has no {reason}" if isinstance(reason, KeyError) else reason
        form = '{"text": "…"} or {"context": "…", "queries": [{"question": "…", "answer": "…"}]}'
        raise ValueError(f"{where}: {reason}; write {form}") from None
    return {"text": texts[0]} if "text" in record else {"context": texts[0], "queries": pairs}


def read_records(lines, name):
    """`read_record` of every line that is not empty. Raises ValueError with the file's name and line."""
    found = [read_record(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{name} holds no context")
    return found


def segments_of(ids, recipe, rng):
    """Into segments; where one is read behind the others' state, of lengths from half of the longest to the longest.

    Lengths drawn at random are AutoCompressor's (Chevalier et al. 2023, section 3.2).
    """
    segments, least = [], max(1, recipe.segment // 2) if METHODS[recipe.producer].sees else recipe.segment
    while ids:
        n = int(rng.integers(least, recipe.segment + 1))
        segments.append(ids[:n])
        ids = ids[n:]
    return segments


def example(record, tokenizer, recipe, rng, room):
    """A record -> Example: its queries behind all segments; or of a plain text each segment behind those before it.

    room: how many tokens the teacher can read. A text is cut there at random.
    """
    if "context" in record:
        segments = segments_of(tokenizer.encode(record["context"]).ids, recipe, rng)
        drawn = rng.permutation(len(record["queries"]))[:MOST]
        queries = [question_query(tokenizer, *record["queries"][i]) for i in drawn]
        asked = [Asked(len(segments) - 1, queries, recipe.loss)]
    else:
        ids = tokenizer.encode(record["text"]).ids
        start = int(rng.integers(max(1, len(ids) - room)))
        segments = segments_of(ids[start : start + room], recipe, rng)
        following = zip(range(len(segments)), segments[1:], strict=False)
        asked = [Asked(step, [Query(ids, 1)], recipe.loss) for step, ids in following if len(ids) > 1]
        segments = segments[:-1] if len(segments) > 1 else segments
    if recipe.reconstruction and len(segments[-1]) > 1:
        again = Query(segments[-1], 1)
        asked.append(Asked(len(segments) - 1, [again], "likelihood", recipe.reconstruction))
    return Example(segments, asked)


def check_records(records, tokenizer, recipe, config):
    """Raises ValueError for a text that asks nothing, or a context that a teacher cannot read with its longest query.

    What is asked of a text is each segment behind those before it, so it must have more than one. The likelihood has no
    teacher: a context may then be longer than the window.
    """
    count = lambda text: len(tokenizer.encode(text).ids)
    for number, record in enumerate(records, 1):
        if "text" in record:
            tokens, least = count(record["text"]), recipe.segment + 2
            if tokens < least and not recipe.reconstruction:
                words = f"with segments of {recipe.segment} it needs {least}"
                raise ValueError(f"--data, record {number}: a text of {tokens} tokens asks nothing; {words}")
        elif recipe.loss == "kl":
            longest = max(len(question_query(tokenizer, *pair).ids) for pair in record["queries"])
            try:
                check_positions(config, context_tokens=count(record["context"]), tokens_of_the_longest_query=longest)
            except ValueError as reason:
                raise ValueError(f"--data, record {number}: {reason}") from None


class Training:
    """A compressor as it is learned; `model` as `open_model` gives it, records as `read_records`.

    Raises ValueError where a segment and its slots do not fit into the model.
    """

    def __init__(self, model, records, recipe, shards, data_hash):
        self.model, self.records, self.recipe, self.shards = model, records, recipe, shards
        check_positions(model.pair[1], tokens_of_a_segment=recipe.segment, slots=recipe.slots)
        check_records(records, model.tokenizer, recipe, model.pair[1])
        self.facts = {"model": model.hash, "data": data_hash, "recipe": asdict(recipe), "shards": shards.n}
        rng = np.random.default_rng((recipe.seed, 0))
        self.raw = begin(recipe.producer, model.pair, recipe.slots, rng, recipe.rank)
        self.state = adamw_init(self.raw)

    def batch(self, step):
        """The examples of a step, and how many slots it uses: of the seed and the step alone."""
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, 1, step))
        room = self.model.pair[1].n_positions - recipe.segment
        made = []
        while not any(one.asked for one in made):  # a text may happen to be cut where nothing is left to ask
            numbers = rng.integers(len(self.records), size=recipe.contexts)
            made = [example(self.records[n], self.model.tokenizer, recipe, rng, room) for n in numbers]
        slots = any_prefix(recipe.slots, rng) if recipe.any_prefix else recipe.slots
        return [one for one in made if one.asked], slots

    def train(self, checkpoint=None, on_step=None, every=100):
        """To the last step; the checkpoint is kept up to date, also when interrupted.

        But where an interruption comes in the middle of an update, of numbers too many to keep twice, the last
        checkpoint stays.
        """
        recipe, method, whole = self.recipe, METHODS[self.recipe.producer], True
        try:
            while (step := self.state["step"]) < recipe.steps:
                examples, slots = self.batch(step)
                loss, grads = compressor_gradient(
                    self.raw, self.model.pair, method, examples, self.shards, slots, recipe.horizon
                )
                norm = clip_by_global_norm(grads, 1.0)
                rate = warmup_cosine(step, recipe.steps, recipe.lr, recipe.warmup, final=0.05)
                whole = False
                adamw_step(self.raw, grads, self.state, rate, betas=(0.9, 0.99))
                whole = True
                if on_step:
                    on_step(step + 1, loss, norm)
                if checkpoint and (step + 1) % every == 0:
                    self.save(checkpoint)
        except KeyboardInterrupt:
            if checkpoint and whole:
                self.save(checkpoint)
            raise

    def save(self, checkpoint):
        tree = {"raw": self.raw, "m": self.state["m"], "v": self.state["v"]}
        save_tree(checkpoint, tree, step=self.state["step"], **self.facts)

    def resume(self, checkpoint):
        """Takes up the training whose checkpoint this is; raises ValueError where it was another's."""
        tree, facts = load_own(checkpoint, **self.facts)
        self.raw, m, v = (place(tree[name], self.model.wte) for name in ("raw", "m", "v"))
        self.state = {"step": facts["step"], "m": m, "v": v}

    def compressor(self):
        """As it is now."""
        return Compressor(self.recipe.producer, self.raw, self.recipe.segment, self.facts)
