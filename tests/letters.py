"""A compression in miniature: a tokenizer of single letters, random float64 weights, questions with answers."""

import json
from types import SimpleNamespace

import numpy as np

from helpers import random_params
from minicompress.compression.problem import Model, Recipe
from minicompress.compression.run import Run
from minicompress.gpt2 import Config

LETTERS = "\n ?.:QAabcdefghijklmnopqrstuvwxyz"
CONFIG = Config(vocab_size=len(LETTERS), n_positions=96, n_embd=12, n_layer=2, n_head=3)
TEXT = "tom has a dog. ann has a cat."
OTHER = "the sea is deep and cold."
QUESTIONS = {"who is tom?": "a man", "what has tom?": "a dog", "what has ann?": "a cat", "who is ann?": None,
             "is it cold?": "no", "where is the sea?": None, "who has a cat?": "ann",
             "has tom a cat?": "no", "has ann a cat?": "yes", "who has a dog?": "tom"}  # fmt: skip


class Letters:
    """The part of a tokenizer that compression uses; a token is a letter."""

    def encode(self, text):
        return SimpleNamespace(ids=[LETTERS.index(letter) for letter in text])

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)

    def get_vocab(self):
        return {letter: i for i, letter in enumerate(LETTERS)}


def model(seed=0, dtype=np.float64):
    return Model((random_params(CONFIG, np.random.default_rng(seed), dtype), CONFIG), Letters(), lambda: str(seed))


def write_questions(folder):
    path = folder / "questions.jsonl"
    lines = [json.dumps({"question": q} | ({"answer": a} if a else {})) for q, a in QUESTIONS.items()]
    path.write_text("\n".join(lines))
    return path


def run(folder, shards, text=TEXT, teacher=None, **changes):
    """A Run on the questions, not yet trained; `changes` to its recipe."""
    recipe = Recipe(**{"slots": 4, "steps": 3, "rows": 3} | changes)
    return Run(model(), teacher or model(), text, recipe, write_questions(folder), shards=shards)
