"""What cannot be computed says so, with the numbers."""

import json
import math

import numpy as np
import pytest

from helpers import TINY, random_params
from minicompress.gpt2 import Config, embed
from minicompress.gpt2.init import init, shapes
from minicompress.trees import flatten


@pytest.mark.parametrize("ids", [[[0, 17]], [[-1, 3]]])
def test_ids_outside_the_vocabulary(ids, rng):
    with pytest.raises(ValueError, match=r"token ids span .*(17|-1).*0\.\.16"):
        embed(random_params(TINY, rng), ids)


@pytest.mark.parametrize("offset", [21, [0, 21]])
def test_positions_past_the_end(offset, rng):
    with pytest.raises(ValueError, match="n_positions is 24; 25 positions are needed"):
        embed(random_params(TINY, rng), [[1, 2, 3, 4]] * 2, offset)


def test_the_last_position_is_allowed(rng):
    assert embed(random_params(TINY, rng), [[1, 2, 3, 4]], 20).shape == (1, 4, 12)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="n_embd is 12, which n_head 5"):
        Config(n_embd=12, n_head=5)


def test_config_passes_over_what_does_not_shape_the_model():
    raw = json.loads('{"n_layer": 3, "n_inner": null, "model_type": "gpt2", "bos_token_id": 50256}')
    assert Config.from_dict(raw) == Config(n_layer=3)
    assert Config().width == 3072 and Config(n_inner=7).width == 7


def test_init_makes_what_shapes_say(rng):
    made = flatten(init(TINY, rng))
    assert {name: w.shape for name, w in made.items()} == shapes(TINY)
    assert all(w.dtype == np.float32 for w in made.values())


def test_gpt2_small_has_124_million_weights():
    assert sum(map(math.prod, shapes(Config()).values())) == 124_439_808
