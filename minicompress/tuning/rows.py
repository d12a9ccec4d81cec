"""Examples as rows of tokens: the filled template is read, the answer behind it is scored."""

from dataclasses import dataclass

import numpy as np

from minicompress.compression.problem import check_positions
from minicompress.compression.queries import Query, hold_out
from minicompress.prompts.template import parse

SHARE, MOST = 0.2, 500  # held out where no file is given: a fifth, and no more than is quick to read


@dataclass(frozen=True)
class Task:
    """Rows to train on and rows held out, each a Query whose `answer` is as its file gave it."""

    train: list
    held: list
    words: dict  # {label: the tokens that stand for it}; empty where answers are free texts
    cut: int = 0  # how many texts had to be shortened
    unnamed: tuple = ()  # labels of the data that the verbalizer leaves out
    unused: tuple = ()  # labels of the verbalizer that no example has


def read_verbalizer(text):
    """positive=great,negative=terrible -> {"positive": "great", "negative": "terrible"}. Raises ValueError."""
    words = {}
    for pair in text.split(","):
        label, equals, word = (part.strip() for part in pair.partition("="))
        if not (label and equals and word) or label in words:
            raise ValueError(f"--verbalizer has {pair.strip()!r}; write each label once, as in good=great,bad=terrible")
        words[label] = word
    return words


def make_task(model, recipe, prompt, kind, examples, held=None):
    """The Task of some Examples. prompt: a SoftPrompt of the recipe's shape, which says where rows begin.

    Raises ValueError where an example does not fit, or too few are left to hold some out.
    """
    everything = examples + (held or [])
    words = words_of(recipe, kind, everything, model.tokenizer)
    answers = words or {e.answer: model.tokenizer.encode(f" {e.answer}\n").ids for e in everything}
    template, long = parse(recipe.template), []
    room = room_for(model, template, prompt, max(map(len, answers.values())))

    def row(example):
        return row_of(model, template, prompt, example, answers[example.answer], room, long)

    train = [row(example) for example in examples]
    if held is None:
        train, kept = hold_out(train, min(SHARE, MOST / len(train)), np.random.default_rng((recipe.seed, 1)))
    else:
        kept = [row(example) for example in held]
    if not train or not kept:
        raise ValueError(f"{len(train) + len(kept)} examples are too few to train on some and hold out different ones")
    named, found = set(recipe.verbalizer or words), {e.answer for e in everything}
    unnamed, unused = (tuple(sorted(labels)) if words else () for labels in (found - named, named - found))
    return Task(train, kept, words, len(long), unnamed, unused)


def words_of(recipe, kind, examples, tokenizer):
    """{label: tokens of the word for it}, all labels of the data and of the verbalizer in order; {} for outputs."""
    if kind != "label":
        if recipe.verbalizer:
            raise ValueError("--verbalizer gives labels their words; these examples have outputs")
        return {}
    texts = {label: label for label in sorted({e.answer for e in examples})} | (recipe.verbalizer or {})
    owners = {}
    for label, word in texts.items():
        if owners.setdefault(word, label) != label:
            raise ValueError(f"the labels {owners[word]!r} and {label!r} have the same word, {word!r}, in --verbalizer")
    return {label: tokenizer.encode(f" {word}").ids for label, word in texts.items()}


def room_for(model, template, prompt, answer):
    """How many tokens a filled template may have, before the longest answer. Raises ValueError where it has no room."""
    config = model.pair[1]
    bare = template.row(model.tokenizer, dict.fromkeys(template.fields, ""))
    soft = sum(token < 0 for token in bare)
    text = {"tokens_of_the_template": len(bare) - soft, "tokens_of_the_longest_answer": answer}
    check_positions(config, slots=prompt.start + soft, **text)
    return config.n_positions - prompt.start - answer


def row_of(model, template, prompt, example, answer, room, long):
    """One example as a Query; where its text is too long it is shortened, and counted in `long`."""
    row = template.row(model.tokenizer, example.fields, where=example.where)
    if len(row) > room:
        row = template.row(model.tokenizer, example.fields, room, example.where)
        long.append(example)
    if not row and prompt.carrier != "embeddings":
        raise ValueError(f"{example.where}: nothing stands before its answer; --template can put words there")
    shown = "\n".join(example.fields[name] for name in template.fields)
    return Query(row + answer, len(row), shown, example.answer)
