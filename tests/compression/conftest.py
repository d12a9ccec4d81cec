"""A model with words: the embedded tokenizer over small random weights."""

import numpy as np
import pytest

import weights_loader
from helpers import random_params
from minicompress.compression.problem import Model, Recipe
from minicompress.compression.run import Run
from minicompress.gpt2 import Config
from minicompress.training.shards import Shards

SMALL = Config(vocab_size=2048, n_positions=128, n_embd=24, n_layer=2, n_head=2)
TEXT = "Tom has a red dog. The dog is called Rex. Ann lives in Rome and plays the drum."


@pytest.fixture(scope="session")
def small_model():
    tokenizer = weights_loader.load_tokenizer(weights_loader.EMBEDDED)
    return Model((random_params(SMALL, np.random.default_rng(0), np.float32), SMALL), tokenizer, lambda: "0" * 16)


@pytest.fixture
def shards():
    with Shards(2) as threads:
        yield threads


@pytest.fixture
def new_run(small_model, shards, tmp_path):
    """new_run(**changes to the recipe) -> a Run on queries of a file, which is quicker than self-study."""
    lines = [f'{{"question": "Who is {name}?", "answer": "the {name} of Rome"}}' for name in "abcdefgh"]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))

    def run(**changes):
        recipe = Recipe(**{"slots": 3, "steps": 6, "rows": 4} | changes)
        return Run(small_model, small_model, TEXT, recipe, tmp_path / "queries.jsonl", shards=shards)

    return run
