"""The internal match against PyTorch: hooks on Transformers' blocks, mean squares by its own functions, gradients by autograd."""

import numpy as np
import pytest
from peer_models import SHAPES, assert_equal, peer, to_numpy, torch, tree_of

from minicompress.compression.gradient import batch_objective
from minicompress.compression.inside import TeacherInside, asked_inside
from minicompress.compression.objectives import read_loss
from minicompress.compression.queries import Query, pad
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import EMBEDDINGS, read_tokens
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards

pytestmark = pytest.mark.peers
CONTEXT, ROWS = [1, 2, 3, 4, 5], [([6, 2, 7, 1], 1), ([5, 3, 3, 2, 8, 4], 3), ([9, 7], 1)]


def inside(model, embeds):
    """One sequence (1, T, C) -> logits (T, V), {"hidden", "attention"}: (L, T, C) each."""
    seen = {"hidden": [], "attention": []}
    hooks = []
    for block in model.transformer.h:
        hooks.append(block.attn.register_forward_hook(lambda _, __, out: seen["attention"].append(out[0][0])))
        hooks.append(
            block.register_forward_hook(
                lambda _, __, out: seen["hidden"].append((out[0] if isinstance(out, tuple) else out)[0])
            )
        )
    logits = model(inputs_embeds=embeds).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, {kind: torch.stack(layers) for kind, layers in seen.items()}


def theirs(model, slots, weights):
    """The weighted sum of the losses named by `weights`, row by row, with teacher and student read whole."""
    wte, found = model.transformer.wte.weight, {"hidden": [], "attention": [], "kl": []}
    scale = {"hidden": [], "attention": []}
    for ids, start in ROWS:
        places = torch.arange(start, len(ids)) - 1
        with torch.no_grad():
            t_logits, teacher = inside(model, wte[torch.tensor([*CONTEXT, *ids])][None])
        s_logits, student = inside(model, torch.cat([slots, wte[torch.tensor(ids)]])[None])
        p, q = (torch.log_softmax(x, -1) for x in (t_logits[len(CONTEXT) + places], s_logits[len(slots) + places]))
        found["kl"].append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        for kind in scale:
            t, s = teacher[kind][:, len(CONTEXT) + places], student[kind][:, len(slots) + places]
            scale[kind].append(t)
            found[kind].append(torch.nn.functional.mse_loss(s, t, reduction="none").mean(-1))  # (L, n)
    parts = {"kl": torch.cat(found["kl"]).mean()}
    for kind in scale:
        square = torch.cat(scale[kind], 1).square().mean((1, 2))  # (L,)
        parts[kind] = (torch.cat(found[kind], 1) / square[:, None]).mean()
    return sum(weight * parts[name] for name, weight in weights.items())


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
@pytest.mark.parametrize("loss, weights", [
    ("hidden", {"hidden": 1}), ("attention", {"attention": 1}), ("0.5*hidden+2*attention+kl", {"hidden": 0.5, "attention": 2, "kl": 1}),
])  # fmt: skip
def test_loss_and_gradient(config, loss, weights):
    model = peer(config, 3)
    pair, slots = (tree_of(model), config), np.random.default_rng(1).standard_normal((3, config.n_embd))
    queries = [Query(ids, start) for ids, start in ROWS]
    (ids, scored), read = pad(queries), read_tokens(*pair, CONTEXT)
    with Shards(2) as shards:
        make = batch_objective(read_loss(loss), np.arange(3), ids, scored, pair, Teacher(pair, read, queries, shards),
                               inside=TeacherInside(pair, read, queries, shards))  # fmt: skip
        mean, dslots = slots_gradient(pair, slots, ids, scored, make, shards, EMBEDDINGS, asked_inside)
    there = torch.tensor(slots, requires_grad=True)
    wanted = theirs(model, there, weights)
    wanted.backward()
    assert_equal(
        {"loss": np.array(mean), "dslots": dslots}, {"loss": to_numpy(wanted), "dslots": to_numpy(there.grad)}, 1e-10
    )
