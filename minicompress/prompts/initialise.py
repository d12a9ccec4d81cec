"""Where the slots begin: rows of embeddings (P, C), which for a deep carrier the model reads first.

Keys and values, or hidden states, that the model makes of some embeddings say what these say: so one
list of beginnings serves all carriers, and a prefix begun from a text's tokens begins as that text.
"""

import numpy as np

from minicompress.arrays import like, to_host
from minicompress.prompts.carriers import lift, slots_shape


def from_tokens(wte, ids, slots):
    """Embeddings of `slots` tokens evenly spaced over ids; a shorter text is repeated."""
    ids = np.asarray(ids)
    if len(ids) < slots:
        ids = np.resize(ids, slots)
    picked = ids[np.linspace(0, len(ids) - 1, slots).round().astype(int)]
    return wte[like(picked, wte)].copy()


def from_words(wte, ids, slots):
    """Embeddings of the first `slots` tokens; a shorter text is repeated (as PEFT begins from a text)."""
    return wte[like(np.resize(np.asarray(ids), slots), wte)].copy()


def from_vocabulary(wte, slots, rng, most=None):
    """Embeddings of distinct tokens drawn from the vocabulary, or from its first `most` (Lester et al. 2021,
    section 3.2: 5,000). A BPE's ids follow its merges, so the first are about the most frequent.
    """
    n = len(wte) if most is None else min(most, len(wte))
    return wte[like(rng.choice(n, slots, replace=slots > n), wte)].copy()


def from_labels(wte, labels, slots, rng):
    """One slot a class: the mean of its label's subword embeddings, labels a list of lists of ids; slots left over
    are drawn from the vocabulary, labels left over not used (Lester et al. 2021, section 3.2).
    """
    drawn = from_vocabulary(wte, slots, rng)
    for slot, ids in zip(range(slots), labels, strict=False):
        drawn[slot] = wte[like(np.asarray(ids), wte)].mean(0)
    return drawn


def from_noise(wte, slots, rng):
    """Normal noise with the embeddings' own mean and spread."""
    mean, spread = float(to_host(wte.mean())), float(to_host(wte.std()))
    return like((mean + spread * rng.standard_normal((slots, wte.shape[1]))).astype(wte.dtype), wte)


def from_uniform(wte, slots, rng, bound=0.5):
    """Uniform between -0.5 and 0.5 (Lester et al. 2021, section 3.2)."""
    return like(rng.uniform(-bound, bound, (slots, wte.shape[1])).astype(wte.dtype), wte)


def from_prompt(given, slots, axis=0):
    """The slots of another prompt, cut or repeated along their axis: transfer between tasks (Vu et al. 2022)."""
    return given.take(like(np.arange(slots) % given.shape[axis], given), axis=axis)


def recycling_map(wte_from, wte_to):
    """The least-squares map (C, C') from one model's embeddings to another's, over the tokens both have.

    Slots of the one model times this map are slots for the other (Lester et al. 2022, "Reducing
    Retraining by Recycling Parameter-Efficient Prompts"). Both tables must be of one vocabulary.
    """
    n = min(len(wte_from), len(wte_to))
    return np.linalg.lstsq(wte_from[:n], wte_to[:n], rcond=None)[0]


def initialise(pair, tokenizer, how, slots, carrier, rng, context_ids=()):
    """The first slots of a carrier by the name of a beginning.

    how: `text`, tokens spread evenly over the context; `first`, the context's first tokens; `vocab` or
    `vocab:N`, drawn tokens; `labels:good,bad`; `noise`; `uniform`; `normal`, N(0, 1) in the carrier
    itself, as PEFT begins; `zero`, there too; or any other words, whose tokens it takes. Raises
    ValueError where there is no token to begin with.
    """
    params, config = pair
    wte, (name, _, rest) = params["wte"]["weight"], how.partition(":")
    if how in ("zero", "normal"):
        shape = slots_shape(carrier, config, slots)
        values = np.zeros(shape) if how == "zero" else rng.standard_normal(shape)
        return like(values.astype(wte.dtype), wte)
    if how in ("noise", "uniform"):
        embeddings = {"noise": from_noise, "uniform": from_uniform}[how](wte, slots, rng)
    elif name == "vocab" and (rest.isdecimal() or how == "vocab"):
        if rest and not int(rest):
            raise ValueError(f"--init is {how!r}; the vocabulary's first tokens must be at least 1")
        embeddings = from_vocabulary(wte, slots, rng, int(rest) if rest else None)
    elif name == "labels" and rest:
        words = [tokenizer.encode(" " + label.strip()).ids for label in rest.split(",") if label.strip()]
        if not words:
            raise ValueError(f"--init is {how!r}, which names no label; write labels:good,bad")
        embeddings = from_labels(wte, words, slots, rng)
    else:
        ids = context_ids if how in ("text", "first") else tokenizer.encode(how).ids
        if not len(ids):
            raise ValueError(f"--init is {how!r}, which has no token to begin with")
        embeddings = (from_tokens if how == "text" else from_words)(wte, ids, slots)
    return lift(params, config, embeddings, carrier)
