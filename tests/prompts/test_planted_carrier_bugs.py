"""Bugs planted in the carriers, one edit each, that a check of `carrying.py`, `beginning.py` or a trace must catch."""

import beginning
import carrying
import pytest

import checks
import tracing
from minicompress.gpt2 import generate, model, prefix
from minicompress.layers import attention
from minicompress.prompts import carriers, gradient, initialise, soft_prompt
from minicompress.verification import trace
from test_planted_bugs import Bug, planted_error

CHECKS = carrying.CHECKS | beginning.CHECKS | checks.CHECKS | tracing.CHECKS
BUGS = [
    # log-masses
    Bug("the mass instead of its logarithm", "a mass of 1", attention.attention,
        "before = before + past[2]", "before = before * past[2]"),
    Bug("masses have no gradient", "gradient of kv with masses", attention.attention_backward,
        "dscores[..., :-T].sum(-2)", "0 * dscores[..., :-T].sum(-2)"),
    Bug("a mass's gradient from the last query alone", "gradient of attention, shared past, masses",
        attention.attention_backward, "dscores[..., :-T].sum(-2)", "dscores[..., -1, :-T]"),
    Bug("a mass's gradient of the probabilities", "gradient of attention, past per row, masses",
        attention.attention_backward, "dscores[..., :-T].sum(-2)", "dprobs[..., :-T].sum(-2)"),
    Bug("masses of the first layer in all layers", "gradient of kv with masses", carriers.read_kv,
        "(b[None],) for b in beta", "(beta[0][None],) for b in beta"),
    Bug("masses are forgotten as the text goes on", "generation after kv with masses", generate.Memory,
        "zip(arrays, past, strict=False):\n                array[:, :, :P] = before",
        "zip(arrays[:2], past, strict=False):\n                array[:, :, :P] = before"),
    Bug("of two prompts the one without masses has none at all", "masses in a row", soft_prompt.concatenate,
        "zeros(p) if p.beta is None", "zeros(p) - np.inf if p.beta is None"),
    # hidden states
    Bug("hidden states without their LayerNorm", "hard text as hidden", carriers.read_hidden,
        "x, cache_ln = layernorm(", "_, cache_ln = layernorm("),
    Bug("each layer's LayerNorm is the first's", "embeddings as hidden", carriers.read_hidden,
        'weights = params["h"][str(layer)]\n        x, cache_ln = layernorm(x[None], **weights["ln_1"]',
        'weights = params["h"][str(layer)]\n        x, cache_ln = layernorm(x[None], **params["h"]["0"]["ln_1"]'),
    Bug("queries where keys belong", "hard text as hidden", carriers.keys_and_values,
        'c_attn["weight"][:, C:]', 'c_attn["weight"][:, : 2 * C]'),
    Bug("biases of keys and values dropped", "hard text as hidden", carriers.keys_and_values,
        'c_attn["bias"][C:]', '0 * c_attn["bias"][C:]'),
    Bug("a LayerNorm's way back left out", "gradient of hidden", carriers.read_hidden_backward,
        'layernorm_backward(dx, cache_ln, weights and weights["ln_1"])[0]', "dx[0]"),
    Bug("gradients of keys and values confused", "gradient of hidden", carriers.read_hidden_backward,
        "stack([dk, dv])", "stack([dv, dk])"),
    Bug("heads and slots confused on the way back", "gradient of hidden, unshifted", carriers.read_hidden_backward,
        "transpose(1, 3, 0, 2, 4)", "transpose(1, 3, 0, 4, 2)"),
    Bug("layers in the opposite order", "gradient of hidden", carriers.read_hidden_backward,
        "stack(dslots)", "stack(dslots[::-1])"),
    Bug("the weights' part in hidden slots is left out", "trace, gradient of the weights, hidden",
        carriers.read_hidden_backward, 'weights = grads and grads["h"][str(layer)]', "weights = None"),
    Bug("hidden slots keep nothing for the weights", "trace, gradient of the weights, hidden",
        carriers.read_hidden_backward, "weights and keys_and_values(weights)",
        'weights and {n: w.copy() for n, w in keys_and_values(weights).items()}'),
    # keys and values
    Bug("values before keys", "hard text as kv", carriers.read_kv,
        "(k[None], v[None], *b) for", "(v[None], k[None], *b) for"),
    Bug("values' gradient where the keys' belongs", "gradient of kv", carriers.read_kv_backward,
        "stack([dk[0], dv[0]])", "stack([dv[0], dk[0]])"),
    Bug("a gradient from the first row alone", "gradient of kv, logical", attention.shared,
        "d.sum(0, keepdims=True)", "d[:1]"),
    Bug("the length is the number of heads", "generation after kv", carriers.read_kv,
        "P = kv.shape[3]", "P = kv.shape[2]"),
    # another carrier, a row of prompts
    Bug("lifted hidden states one layer late", "embeddings as hidden", carriers.lift,
        "stream[:-1]", "stream[1:]"),
    Bug("lifted values are the keys", "embeddings as kv", carriers.lift,
        "stack([k[0], v[0]])", "stack([k[0], k[0]])"),
    Bug("prompts in a row the other way round", "embeddings in a row", soft_prompt.concatenate,
        "[p.slots for p in prompts]", "[p.slots for p in prompts[::-1]]"),
    Bug("masses in a row along the heads", "kv with masses in a row", soft_prompt.concatenate,
        "for p in prompts], axis=-1)", "for p in prompts[::-1]], axis=-1)"),
    # positions
    Bug("unshifted tokens stand behind the slots", "positions of kv", carriers.start_of,
        '"unshifted": 0', '"unshifted": slots'),
    Bug("logical tokens stand behind the slots", "gradient of hidden, logical", carriers.start_of,
        '"logical": offset', '"logical": slots'),
    Bug("a door forgets where tokens begin", "predictors after embeddings, unshifted", carriers.placed,
        "prefix._replace(start=start)", "prefix"),
    Bug("new tokens counted from the slots", "generation after kv, logical", generate.generate,
        "prefix.start + lengths + step", "prefix.length + lengths + step"),
    Bug("slots themselves are moved", "positions of embeddings", prefix.read_slots,
        "slots[None] + positions(params, P)", "slots[None] + positions(params, P, 1)"),
    # slots in rows
    Bug("slots counted from the end", "slots in rows, in front", model.look_up,
        "slots[like(np.maximum(-1 - ids, 0), wte)]", "slots[like(np.minimum(ids, -1) + len(slots), wte)]"),
    Bug("a slot in two places counted once", "tied slots", model.embed_slots_backward,
        "add_at(dslots, like(-1 - ids.reshape(-1)[soft], dx), ",
        "dslots.__setitem__(like(-1 - ids.reshape(-1)[soft], dx), "),
    Bug("a slot gets its neighbour's gradient", "gradient of in rows", model.embed_slots_backward,
        "[like(soft, dx)]", "[like(soft - 1, dx)]"),
    Bug("slots' gradient falls on a token", "trace, gradient of the weights, in rows", model.embed_backward,
        "dx if ids.min() >= 0 else", "dx if True else"),
    Bug("slots in rows stand in front as well", "slots in rows, infix", soft_prompt.SoftPrompt,
        "IN_ROWS if self.in_rows else", "IN_ROWS if False else"),
    Bug("rows with slots begin behind them", "slots in rows, in front", carriers.read_in_rows,
        "Prefix(slots=slots)", "Prefix(slots=slots, start=len(slots))"),
    Bug("what the rows asked of their slots is from the first shard", "gradient of in rows", gradient.total,
        "sum(parts[1:], parts[0])", "parts[0]"),
    # traces and doors
    Bug("a trace's slots are the first token", "trace, forward, in rows", trace.run_both_ways,
        "embed(params, ids, prefix.start, prefix.slots)", "embed(params, np.maximum(ids, 0), prefix.start)"),
    Bug("a trace's keys and values by layer", "trace, gradient of kv", trace.prompt_tensors,
        'laid = flat_from_kv if', 'laid = (lambda kv: kv.reshape(kv.shape[3], -1)) if'),
    Bug("hidden states predict a first token", "trace, gradient of hidden", trace.scored_rows,
        'prompt.carrier == "embeddings"', 'prompt.carrier != "kv"'),
    Bug("the teacher reads slots as token 0", "trace, gradient of in rows", trace.without_slots,
        'np.argsort(ids < 0, axis=1, kind="stable")', "np.argsort(ids < -99, axis=1, kind='stable')"),
    Bug("a map's gradient before the door's", "gradient through a map", carriers.through,
        "bake_backward(door.read_backward(asked, caches[1], grads), caches[0])",
        "door.read_backward(asked, caches[1], grads)[:3]"),
    # beginnings
    Bug("first words spread evenly", "beginnings", initialise.from_words,
        "np.resize(np.asarray(ids), slots)", "np.resize(np.asarray(ids)[np.linspace(0, len(ids) - 1, slots).round().astype(int)], slots)"),
    Bug("labels summed", "beginnings", initialise.from_labels,
        ".mean(0)", ".sum(0)"),
    Bug("the whole vocabulary whatever is asked for", "beginnings", initialise.from_vocabulary,
        "len(wte) if most is None else min(most, len(wte))", "len(wte)"),
    Bug("only positive numbers", "beginnings", initialise.from_uniform,
        "rng.uniform(-bound, bound,", "rng.uniform(0, bound,"),
    Bug("the last slot said again", "beginnings", initialise.from_prompt,
        "np.arange(slots) % given.shape[axis]", "np.minimum(np.arange(slots), given.shape[axis] - 1)"),
    Bug("the map from the other model", "beginnings", initialise.recycling_map,
        "lstsq(wte_from[:n], wte_to[:n], rcond=None)", "lstsq(wte_to[:n], wte_from[:n], rcond=None)"),
    Bug("embeddings whatever the carrier", "named beginnings", initialise.initialise,
        "return lift(params, config, embeddings, carrier)", 'return lift(params, config, embeddings, "kv")'),
    Bug("the first tokens for spread ones", "named beginnings", initialise.initialise,
        'if how == "text" else from_words', 'if how == "first" else from_words'),
    # files
    Bug("masses are not saved", "file of kv with masses", soft_prompt.SoftPrompt,
        '{} if self.beta is None else {"beta": self.beta}', "{}"),
    Bug("the offset is not saved", "file of kv, logical", soft_prompt.SoftPrompt,
        '{"offset": str(self.offset)} if self.offset is not None else {}', "{}"),
    Bug("an offset of 0 is none", "unfit prompts", carriers.start_of,
        "(offset is not None)", "bool(offset)"),
    Bug("where slots stand is not saved", "file of in rows", soft_prompt.SoftPrompt,
        '{"template": self.template} if self.template else {}', "{}"),
    Bug("masses of other slots are taken", "unfit prompts", soft_prompt.SoftPrompt,
        "self.beta.shape != wanted", "False"),
    Bug("infinite masses are taken", "unfit prompts", soft_prompt.SoftPrompt,
        " or not (self.beta < np.inf).all()", ""),
    Bug("masses of embeddings are taken", "unfit prompts", soft_prompt.SoftPrompt,
        'self.carrier != "kv" or ', ""),
    Bug("templates of keys and values are taken", "unfit prompts", soft_prompt.SoftPrompt,
        'self.in_rows and self.carrier != "embeddings"', "False"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, (ValueError, IndexError)) <= 1e-10
