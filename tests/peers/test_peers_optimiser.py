"""AdamW and clipping against PyTorch's own."""

import numpy as np
import pytest
from peer_models import assert_equal, to_numpy, torch

from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.trees import flatten, tree_map, unflatten
from minicompress.verification.oracles import relative_error

pytestmark = pytest.mark.peers


def random_tree(rng):
    return {"w": rng.standard_normal((4, 3)), "deep": {"b": rng.standard_normal(5), "w": rng.standard_normal((2, 2))}}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_twenty_steps_of_adamw(decay, limit, betas, rng):
    """Matrices decay, vectors do not; the learning rate changes as it goes."""
    ours = random_tree(rng)
    theirs = {name: torch.tensor(w, requires_grad=True) for name, w in flatten(ours).items()}
    groups = [
        {"params": [w for w in theirs.values() if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in theirs.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser, state = torch.optim.AdamW(groups, betas=betas), adamw_init(ours)
    for step in range(20):
        grads, lr = random_tree(rng), 0.1 / (1 + step)
        for name, g in flatten(grads).items():
            theirs[name].grad = torch.tensor(g)
        if limit:
            torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
            clip_by_global_norm(grads, limit)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        adamw_step(ours, grads, state, lr, betas, weight_decay=decay)
    # clip_grad_norm_ divides by the norm + 1e-6, so clipped gradients differ by as much
    assert_equal(ours, unflatten(tree_map(to_numpy, theirs)), 1e-7 if limit else 1e-12)


@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_clipping(limit, rng):
    ours = random_tree(rng)
    theirs = {name: torch.tensor(g) for name, g in flatten(ours).items()}
    weights = [torch.nn.Parameter(torch.zeros_like(g)) for g in theirs.values()]
    for weight, g in zip(weights, theirs.values(), strict=True):
        weight.grad = g
    before = torch.nn.utils.clip_grad_norm_(weights, limit)
    assert relative_error(clip_by_global_norm(ours, limit), before) <= 1e-15
    for a, weight in zip(flatten(ours).values(), weights, strict=True):
        assert relative_error(a, weight.grad) <= 2e-6
    assert np.isclose(np.sqrt(sum((a * a).sum() for a in flatten(ours).values())), min(limit, float(before)))
