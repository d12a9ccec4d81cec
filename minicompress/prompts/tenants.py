"""Many tenants, one model: each row of a batch stands behind a prompt of its own.

Whatever its carrier, a prompt ends as keys and values in front of a row. So rows that differ in their
prompts differ in numbers alone: `spread` lays each row's keys and values into one array, padded on
the right, with a mask where a row's own prompt is shorter. A row's tokens count on from its own
start. It sees nothing of the other rows, and there is no left padding that could come between a
prompt and its text.
"""

from operator import add

import numpy as np

from minicompress.arrays import array_module, like, to_host, zeros_like
from minicompress.gpt2.model import backward, forward, positions
from minicompress.gpt2.prefix import Door, Prefix, check_first
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.gradient import asked_by_rows, over_shards
from minicompress.trees import tree_map


def read_many(params, config, prompts, keep="nothing"):
    """One SoftPrompt a row, None for a row without; the same object may stand for many rows -> Prefix, cache."""
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    number = {id(prompt): n for n, prompt in enumerate(distinct)}
    return read_numbered(params, config, distinct, [number[id(prompt)] for prompt in prompts], keep)


def read_many_backward(asked, cache):
    """What the rows asked of the prefix -> dslots of each distinct prompt, in order of first appearance.

    Each is as its prompt's `tree`, summed over the rows that share the prompt; None for the rows without.
    """
    readings, prefixes, numbers = cache
    asked, dslots = spread_backward(asked, prefixes, numbers), [None] * len(prefixes)
    for door, chosen, cache in readings:
        found = door.read_backward([asked[n] for n in chosen], cache)
        for n, d in zip(chosen, found, strict=True):
            dslots[n] = d
    return dslots


def read_numbered(params, config, prompts, numbers, keep="nothing"):
    """As `read_many`, where row b has prompts[numbers[b]]. Each prompt is read once, many of a kind together."""
    prefixes, readings, doors = [Prefix()] * len(prompts), [], [prompt and door_of(prompt) for prompt in prompts]
    for door in filter(None, dict.fromkeys(doors)):
        chosen = [n for n, other in enumerate(doors) if other is door]
        found, cache = door.read(params, config, [prompts[n] for n in chosen], keep)
        for n, prefix in zip(chosen, found, strict=True):
            prefixes[n] = prefix._replace(start=prompts[n].start)
        readings.append((door, chosen, cache))
    numbers = np.asarray(numbers)
    return spread(prefixes, numbers), (readings, prefixes, numbers)


def predicts_first(prompt):
    """Whether a prompt has a last state, which predicts the first token of its rows."""
    return prompt is not None and prompt.carrier == "embeddings" and not prompt.in_rows


# One prefix a row.


def spread(prefixes, numbers):
    """N prefixes of one row each, of which row b has prefixes[numbers[b]] -> one Prefix for all B rows.

    Where there is but one, it serves them all as it is.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    lengths, past, last = np.array([p.length for p in prefixes]), None, None
    if some := next((p.past for p in prefixes if p.past), None):
        nothing = [tuple(x[:, :, :0] for x in layer) for layer in some]
        past = [spread_layer(layers, numbers) for layers in zip(*(p.past or nothing for p in prefixes), strict=True)]
    if (some := next((p.last for p in prefixes if p.last is not None), None)) is not None:
        zeros = array_module(some).zeros_like(some)
        last = padded([zeros if p.last is None else p.last for p in prefixes], 1)[like(numbers, some)]
    mask = np.arange(lengths.max()) < lengths[numbers][:, None]
    return Prefix(
        past,
        last,
        int(lengths.max()),
        start=np.array([p.start for p in prefixes])[numbers],
        mask=None if mask.all() else like(mask, past[0][0]),
        slots=[prefixes[n].slots for n in numbers] if any(p.slots is not None for p in prefixes) else None,
        predicts=np.array([p.last is not None for p in prefixes])[numbers],
    )


def spread_backward(asked, prefixes, numbers):
    """What the B rows ask of their prefix -> what each of the N is asked, the sum over its rows."""
    if len(prefixes) == 1:
        return [asked]
    dpast, dlast, dslots = asked

    def own(n, prefix):
        rows = np.flatnonzero(numbers == n)
        summed = lambda d: d[like(rows, d)].sum(0, keepdims=True)
        past = prefix.past and [
            tuple(summed(d)[:, :, : prefix.length] for d, _ in zip(dlayer, layer, strict=False))  # no dβ without a β
            for dlayer, layer in zip(dpast, prefix.past, strict=True)
        ]
        last = None if prefix.last is None else summed(dlast)
        return past, last, None if prefix.slots is None else sum(dslots[row] for row in rows)

    return [own(n, prefix) for n, prefix in enumerate(prefixes)]


def spread_layer(layers, numbers):
    """(k, v) or (k, v, β) of N prefixes, each (1, H, P, D) -> of B rows. β is 0 where a prefix has none."""
    xp = array_module(layers[0][0])
    if any(len(layer) == 3 for layer in layers):
        layers = [layer if len(layer) == 3 else (*layer, xp.zeros_like(layer[0][..., 0])) for layer in layers]
    return tuple(padded(parts, 2)[like(numbers, parts[0])] for parts in zip(*layers, strict=True))


def padded(arrays, axis):
    """Arrays (1, ...) one below the other, with zeros at the end of `axis` where another is longer."""
    xp, size = array_module(arrays[0]), max(x.shape[axis] for x in arrays)
    fill = lambda x: [(0, (size - n) * (a == axis)) for a, n in enumerate(x.shape)]
    return xp.concatenate([x if x.shape[axis] == size else xp.pad(x, fill(x)) for x in arrays])


# Doors for N prompts at once: read(params, config, prompts, keep) -> N prefixes, cache. The weights are frozen here.


def read_padded(params, config, prompts, keep="nothing"):
    """Embeddings (P, C) in one batch: no slot sees the padding behind it."""
    lengths = [prompt.length for prompt in prompts]
    x = padded([prompt.slots[None] for prompt in prompts], 1)  # (N, P, C)
    hidden, past, cache = forward(params, config, x + positions(params, x.shape[1]), keep=keep)
    own = lambda n, P: [tuple(x[n : n + 1, :, :P] for x in layer) for layer in past]
    found = [Prefix(own(n, P), hidden[n : n + 1, P - 1 : P], P) for n, P in enumerate(lengths)]
    return found, (cache, lengths)


def read_padded_backward(asked, cache):
    (cache, lengths), (dpasts, dlasts, _) = cache, zip(*asked, strict=True)
    dpast = [[padded(parts, 2) for parts in zip(*layers, strict=True)] for layers in zip(*dpasts, strict=True)]
    dhidden = array_module(dlasts[0]).zeros_like(cache[1][0])
    for n, P in enumerate(lengths):
        dhidden[n, P - 1] = dlasts[n][0, 0]
    dx, _ = backward(dhidden, cache, dpast)
    return [dx[n, :P] for n, P in enumerate(lengths)]


def read_joined(params, config, prompts, keep="nothing"):
    """Hidden states (L, P, C) as those of one long prompt: within a layer none sees another."""
    xp, ends = array_module(prompts[0].slots), np.cumsum([prompt.length for prompt in prompts])[:-1].tolist()
    slots = xp.concatenate([prompt.slots for prompt in prompts], axis=1)
    prefix, cache = DOORS["hidden"].read(params, config, slots, keep)
    layers = [zip(*(xp.split(x, ends, axis=2) for x in layer), strict=True) for layer in prefix.past]
    own = zip(*layers, strict=True)  # for each prompt (k, v) of each layer
    return [Prefix(list(past), None, prompt.length) for past, prompt in zip(own, prompts, strict=True)], (cache, ends)


def read_joined_backward(asked, cache):
    (cache, ends), (dpasts, *rest) = cache, zip(*asked, strict=True)
    xp = array_module(dpasts[0][0][0])
    joined = [
        [xp.concatenate(parts, axis=2) for parts in zip(*layers, strict=True)] for layers in zip(*dpasts, strict=True)
    ]
    return xp.split(DOORS["hidden"].read_backward((joined, *rest), cache), ends, axis=1)


def read_each(params, config, prompts, keep="nothing"):
    """Each by its own door, where nothing is computed: keys and values, and slots that rows place."""
    found, caches = zip(*(prompt.door.read(params, config, prompt.tree, keep) for prompt in prompts), strict=True)
    return found, [(prompt.door, cache) for prompt, cache in zip(prompts, caches, strict=True)]


def read_each_backward(asked, caches):
    return [door.read_backward(one, cache) for one, (door, cache) in zip(asked, caches, strict=True)]


EACH = Door(read_each, read_each_backward)
TOGETHER = {"embeddings": Door(read_padded, read_padded_backward), "hidden": Door(read_joined, read_joined_backward)}


def door_of(prompt):
    return EACH if prompt.in_rows else TOGETHER.get(prompt.carrier, EACH)


# The gradient of all prompts of a batch.


def tenants_gradient(model, prompts, numbers, ids, scored, make_objective, shards):
    """As `slots_gradient`, but row b stands behind prompts[numbers[b]], a SoftPrompt or None -> loss, [dslots of each].

    The mean is over the scored places of all rows. dslots are as each prompt's `tree`, None of a None.
    Raises ValueError for a row whose first token is scored though its prompt predicts none.
    """
    numbers = np.asarray(numbers)
    check_first(scored, np.array([predicts_first(prompts[n]) for n in numbers]))

    def shard(rows, objective):
        mine, places = np.unique(numbers[rows], return_inverse=True)
        prefix, cache = read_numbered(*model, [prompts[n] for n in mine], places, keep="dx")
        loss, asked = asked_by_rows(model, prefix, ids[rows], scored[rows], objective)
        return loss, mine, read_many_backward(asked, cache)

    losses, parts = 0, [None if prompt is None else tree_map(zeros_like, prompt.tree) for prompt in prompts]
    for loss, mine, found in over_shards(shard, scored, make_objective, shards):
        losses = losses + loss
        for n, d in zip(mine, found, strict=True):
            parts[n] = None if d is None else tree_map(add, parts[n], d)
    return float(to_host(losses)), parts
