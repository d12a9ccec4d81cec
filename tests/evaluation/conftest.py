"""Small runs over letters."""

import pytest

import letters
from minicompress.training.shards import Shards


@pytest.fixture
def shards():
    with Shards(2) as threads:
        yield threads


@pytest.fixture
def new_run(shards, tmp_path):
    """new_run(text, **changes to the recipe) -> a Run on the letters' questions."""
    return lambda *text, **options: letters.run(tmp_path, shards, *text, **options)
