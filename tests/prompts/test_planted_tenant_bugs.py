"""Bugs planted where rows get prompts of their own, one edit each, that a check of `tenanting.py` must catch."""

import pytest
from tenanting import CHECKS

from minicompress.gpt2 import generate, model, prefix
from minicompress.prompts import tenants
from test_planted_bugs import Bug, planted_error

BUGS = [
    # padding, and who sees it
    Bug("shorter prompts padded on the left", "states", tenants.padded,
        "(0, (size - n) * (a == axis))", "((size - n) * (a == axis), 0)"),
    Bug("padding between a prompt and its text is seen", "states", tenants.spread,
        "None if mask.all() else", "None if True else"),
    Bug("the mask of the next row", "states", tenants.spread,
        "lengths[numbers][:, None]", "np.roll(lengths[numbers], 1)[:, None]"),
    Bug("all rows begin behind the longest prompt", "states", tenants.spread,
        "np.array([p.start for p in prefixes])[numbers]", "np.full(len(numbers), lengths.max())"),
    Bug("the prompts in their own order, not the rows'", "states", tenants.spread_layer,
        "[like(numbers, parts[0])]", "[like(numbers * 0 + np.arange(len(numbers)) % len(layers), parts[0])]"),
    Bug("the last states of other rows", "states", tenants.spread,
        "for p in prefixes], 1)[like(numbers, some)]", "for p in prefixes], 1)[like(numbers[::-1].copy(), some)]"),
    Bug("a mass of e instead of 1 where there is none", "states", tenants.spread_layer,
        "xp.zeros_like(layer[0][..., 0])", "1 + xp.zeros_like(layer[0][..., 0])"),
    Bug("slots of the first row for all", "states", model.look_up,
        "zip(ids, slots, strict=True)", "zip(ids, [slots[4]] * len(ids), strict=True)"),
    # reading
    Bug("each prompt's last state where the longest ends", "states", tenants.read_padded,
        "hidden[n : n + 1, P - 1 : P]", "hidden[n : n + 1, -1:]"),
    Bug("prompts without positions", "states", tenants.read_padded,
        "x + positions(params, x.shape[1])", "x"),
    Bug("hidden states cut in equal parts", "two of a kind", tenants.read_joined,
        "np.cumsum([prompt.length for prompt in prompts])[:-1].tolist()", "len(prompts)"),
    Bug("all prompts at compact positions", "states", tenants.read_numbered,
        "start=prompts[n].start", "start=prefix.length"),
    Bug("one kind's prefixes given to the prompts in front", "states", tenants.read_numbered,
        "zip(chosen, found, strict=True)", "zip(range(len(found)), found, strict=True)"),
    # gradients
    Bug("a shared prompt's gradient of one row", "gradient, one shard", tenants.spread_backward,
        "np.flatnonzero(numbers == n)", "np.flatnonzero(numbers == n)[:1]"),
    Bug("every prompt gets what all rows asked", "gradient", tenants.spread_backward,
        "d[like(rows, d)].sum", "d.sum"),
    Bug("a shared prompt's gradient averaged", "gradient, one shard", tenants.spread_backward,
        ".sum(0, keepdims=True)", ".mean(0, keepdims=True)"),
    Bug("the last state's gradient dropped", "complex step", tenants.read_padded_backward,
        "dhidden[n, P - 1] = dlasts[n][0, 0]", "pass"),
    Bug("the last state's gradient at the longest prompt's end", "complex step", tenants.read_padded_backward,
        "dhidden[n, P - 1]", "dhidden[n, -1]"),
    Bug("what the rows asked of the slots is dropped", "complex step", tenants.read_padded_backward,
        "backward(dhidden, cache, dpast)", "backward(dhidden, cache, None)"),
    Bug("gradients of another prompt", "gradient", tenants.read_many_backward,
        "[asked[n] for n in chosen]", "[asked[n] for n in chosen[::-1]]"),
    Bug("gradients of hidden states in another order", "two of a kind", tenants.read_joined_backward,
        "for parts in zip(*layers, strict=True)]", "for parts in zip(*layers[::-1], strict=True)]"),
    Bug("the first shard's gradient alone", "gradient", tenants.tenants_gradient,
        "tree_map(add, parts[n], d)", "parts[n]"),
    Bug("each shard's prompts counted from its own first", "gradient", tenants.tenants_gradient,
        "zip(mine, found, strict=True)", "enumerate(found)"),
    Bug("a placed slot's gradient of its row's neighbour", "gradient", model.embed_slots_backward,
        "zip(dx, ids, slots, strict=True)", "zip(dx[::-1], ids, slots, strict=True)"),
    # writing
    Bug("new tokens at the longest prompt's end", "generation", generate.generate,
        "prefix.start + lengths + step", "np.max(prefix.start) + lengths + step"),
    Bug("shorter prompts' padding is seen while writing", "generation", generate.Memory,
        "if prefix.mask is None else to_host(prefix.mask)", "if True else None"),
    Bug("keys masked as the row above's", "generation", prefix.Prefix,
        "[self.mask, xp.ones((rows, T), bool)]", "[self.mask[::-1], xp.ones((rows, T), bool)]"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, (ValueError, IndexError)) <= 1e-10
