"""Trained compressors against PyTorch: the gist under its mask in one pass, and the gradient through a recurrence."""

import numpy as np
import pytest
from peer_models import SHAPES, TOLERANCES, assert_equal, peer, to_numpy, torch, tree_of

from minicompress.compression.amortised import Asked, Example, compressor_gradient
from minicompress.compression.queries import Query
from minicompress.compression.segments import METHODS
from minicompress.training.shards import Shards

pytestmark = pytest.mark.peers
CONFIGS = [SHAPES[0], SHAPES[3]]
K, START = 2, 2
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def drawn(config, segments, seed=0):
    """Segments of three or four tokens, and two rows of which all but the first two tokens are scored."""
    rng = np.random.default_rng(seed)
    row = lambda n: rng.integers(config.vocab_size, size=n).tolist()
    return [row(3 + i % 2) for i in range(segments)], [row(5), row(4)], 0.5 * rng.standard_normal((K, config.n_embd))


def ours(kind, model, config, segments, rows, slots):
    asked = Asked(len(segments) - 1, [Query(row, START) for row in rows], "likelihood")
    raw, method = {"slots": slots, "params": tree_of(model)}, METHODS[kind]
    with Shards(1) as shards:
        loss, draw = compressor_gradient(raw, (raw["params"], config), method, [Example(segments, [asked])], shards)
    return {"loss": np.asarray(loss), "slots": draw["slots"], "params": draw["params"]}


def theirs(model, slots, losses):
    loss = torch.cat(losses).mean()
    loss.backward()
    return {"loss": to_numpy(loss), "slots": to_numpy(slots.grad), "params": tree_of(model, lambda weight: weight.grad)}


def scored(logits, row):
    """logits (T, V), of which [t] was made after token t."""
    return torch.nn.functional.cross_entropy(logits[START - 1 : -1], torch.tensor(row[START:]), reduction="none")


@each_config
@each_dtype
def test_the_gist_under_its_mask(config, dtype):
    (context,), rows, slots = drawn(config, 1)
    model = peer(config, 0, dtype)
    slots = torch.tensor(slots, dtype=dtype, requires_grad=True)
    wte, losses, n = model.transformer.wte, [], len(context)
    for row in rows:
        x = torch.cat([wte(torch.tensor(context)), slots, wte(torch.tensor(row))])[None]
        seen = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        seen[n + K :, :n] = False  # behind the slots nothing sees what stands before them
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        logits = model(inputs_embeds=x, attention_mask=mask[None, None]).logits[0]
        losses.append(scored(logits[n + K :], row))
    found = ours("gist", model, config, [context], rows, to_numpy(slots))
    assert_equal(found, theirs(model, slots, losses), 10 * TOLERANCES[dtype] if dtype == torch.float32 else 1e-10)


def read_by_peer(model, kind, slots, segments):
    """The last state, by whole passes over [state, segment, slots]."""
    state = slots if kind == "rmt" else None
    for ids in segments:
        behind = state if kind == "rmt" else slots
        parts = [model.transformer.wte(torch.tensor(ids)), behind]
        x = torch.cat(parts if state is None else [state, *parts])[None]
        left = model.transformer(inputs_embeds=x).last_hidden_state[0, -len(behind) :]
        state = left if kind == "rmt" or state is None else torch.cat([state, left])
    return state


@pytest.mark.parametrize("kind", ["autocompressor", "rmt"])
@pytest.mark.parametrize("segments", [1, 3])
@each_config
def test_the_gradient_through_the_recurrence(kind, segments, config):
    cut, rows, slots = drawn(config, segments)
    model = peer(config, 1)
    slots = torch.tensor(slots, requires_grad=True)
    state, losses = read_by_peer(model, kind, slots, cut), []
    for row in rows:
        x = torch.cat([state, model.transformer.wte(torch.tensor(row))])[None]
        losses.append(scored(model(inputs_embeds=x).logits[0, len(state) :], row))
    assert_equal(ours(kind, model, config, cut, rows, to_numpy(slots)), theirs(model, slots, losses), 1e-10)
