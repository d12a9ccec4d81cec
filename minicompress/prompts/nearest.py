"""The tokens nearest to each slot of a soft prompt, where the two are of one kind."""

from minicompress.arrays import array_module, to_host
from minicompress.prompts.carriers import keys_and_values

WORDS = 2048  # of the vocabulary at a time


def nearest(params, config, prompt, k, advance=None):
    """The k tokens nearest to each slot: {"cosine" and "euclidean": (ids (P, k), values (P, k))}, nearest first.

    A slot is compared with each token where the two are of one kind. embeddings: the slot and the token's
    row of wte. hidden: the slot as layer 0 sees it and wte + wpe, the token at the slot's place. kv: their
    keys in layer 0, all heads side by side, again with the token at the slot's place; a slot past the last
    position is given that one. The cosine with a vector of zeros is 0. advance() is called after each slot
    and part of the vocabulary.
    """
    slots, of_tokens = compared(params, config, prompt)
    xp, V, best = array_module(slots), len(params["wte"]["weight"]), {}
    for words in (slice(i, min(i + WORDS, V)) for i in range(0, V, WORDS)):
        at, ids = of_tokens(words), xp.arange(words.start, words.stop)  # (n,)
        for p, slot in enumerate(slots):
            rows = at(p)  # (n, C)
            for measure, apart in (("cosine", -cosine(rows, slot)), ("euclidean", norm(rows - slot))):
                best[measure, p] = closest(k, apart, ids, best.get((measure, p)))
            if advance:
                advance()
    stack = lambda measure, part: to_host(xp.stack([best[measure, p][part] for p in range(len(slots))]))
    (ids, opposite), (others, apart) = ((stack(measure, 1), stack(measure, 0)) for measure in ("cosine", "euclidean"))
    return {"cosine": (ids, -opposite), "euclidean": (others, apart)}


def closest(k, apart, ids, before=None):
    """The k least of `apart` (n,), and their ids, among these and those found before; of equals the first."""
    if before is not None:
        join = array_module(apart).concatenate
        apart, ids = join([before[0], apart]), join([before[1], ids])
    first = array_module(apart).argsort(apart, kind="stable")[:k]
    return apart[first], ids[first]


def compared(params, config, prompt):
    """(P, C), and a function: slice of the vocabulary -> slot number -> (n, C). The two are compared row by row."""
    wte = params["wte"]["weight"]
    if prompt.carrier == "embeddings":
        return prompt.slots, lambda words: lambda p: wte[words]
    wpe = params["wpe"]["weight"]
    place = lambda p: wpe[min(p, len(wpe) - 1)]
    if prompt.carrier == "hidden":
        return prompt.slots[0], lambda words: lambda p: wte[words] + place(p)
    slots = prompt.slots[0, 0].swapaxes(0, 1).reshape(prompt.length, config.n_embd)
    return slots, lambda words: first_keys(params["h"]["0"], config, wte[words], place)


def first_keys(weights, config, words, place):
    """words (n, C), place(p) (C,) -> a function: p -> the words' keys in layer 0 at place p (n, C), heads side by side.

    A LayerNorm is linear but for the length that it divides by. So words and places are multiplied with
    the weights apart, the words once for all places; only the length is of the two together.
    """
    ln, kv, xp = weights["ln_1"], keys_and_values(weights), array_module(words)
    weight, bias = kv["weight"][:, : config.n_embd], kv["bias"][: config.n_embd]
    scaled, shift = ln["weight"][:, None] * weight, ln["bias"] @ weight + bias
    middle = lambda x: x - x.mean(-1, keepdims=True)
    words = middle(words)
    turned = words @ scaled

    def keys(p):
        there = middle(place(p))
        x = words + there
        length = xp.sqrt((x * x).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return (turned + there @ scaled) / length + shift

    return keys


def norm(x):
    """‖x‖ over the last axis."""
    return array_module(x).sqrt((x * x).sum(-1))


def cosine(x, y):
    """x·y / ‖x‖‖y‖ over the last axis; 0 where one of the two has no direction."""
    both = norm(x) * norm(y)
    return (x * y).sum(-1) / array_module(x).where(both > 0, both, 1)
