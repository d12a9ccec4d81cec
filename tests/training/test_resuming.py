"""Training stopped, saved and taken up again, bit for bit; a batch in parts adds up to the whole."""

import numpy as np
import pytest

from helpers import TINY
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.checkpoints import load_tree, save_tree
from minicompress.training.language_model import language_model_step
from minicompress.training.schedules import warmup_cosine
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import relative_error
from outer_checks import batch

STEPS = 8


def trained(params, state, last, shards):
    """Adam on a new batch each step, clipped, at a rate that rises and falls."""
    while state["step"] < last:
        _, tokens, weights = batch(state["step"])
        _, grads = language_model_step(params, TINY, tokens, weights, shards)
        clip_by_global_norm(grads, 1.0)
        adamw_step(params, grads, state, warmup_cosine(state["step"], STEPS, 0.05, warmup=3), weight_decay=0.1)
    return {name: p.tobytes() for name, p in flatten({"params": params, "m": state["m"], "v": state["v"]}).items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_stopped_saved_and_taken_up_again_equals_never_stopped(stop, dtype, tmp_path):
    begin = lambda: tree_map(lambda p: p.astype(dtype), batch()[0])
    with Shards(2) as shards:
        whole = begin()
        expected = trained(whole, adamw_init(whole), STEPS, shards)
        params = begin()
        state = adamw_init(params)
        trained(params, state, stop, shards)
        save_tree(tmp_path / "c", {"params": params, "m": state["m"], "v": state["v"]}, step=state["step"])
        tree, facts = load_tree(tmp_path / "c")
        assert facts["step"] == stop
        assert trained(tree["params"], {"step": facts["step"], "m": tree["m"], "v": tree["v"]}, STEPS, shards) == expected


@pytest.mark.parametrize("cuts", [[2], [1, 4], [1, 2, 3, 4]])
def test_a_batch_in_parts_adds_up_to_the_whole(cuts):
    """Each part is a mean over its own weights; weighted by them, losses and gradients are the batch's."""
    params, tokens, weights = batch()
    weights[1, 0] = 0.5  # each part has something to score
    with Shards(1) as shards:
        loss, grads = language_model_step(params, TINY, tokens, weights, shards)
        parts = [(w.sum() / weights.sum(), *language_model_step(params, TINY, t, w, shards))
                 for t, w in zip(np.split(tokens, cuts), np.split(weights, cuts), strict=True)]  # fmt: skip
    assert relative_error(sum(share * mean for share, mean, _ in parts), loss) <= 1e-13
    for name, g in flatten(grads).items():
        assert relative_error(sum(share * flatten(part)[name] for share, _, part in parts), g) <= 1e-12, name
