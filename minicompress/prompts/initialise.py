"""Where the slots begin: each function returns (P, C) in the embeddings' dtype."""

import numpy as np

from minicompress.arrays import like, to_host


def from_tokens(wte, ids, slots):
    """Embeddings of `slots` tokens evenly spaced over ids; a shorter text is repeated."""
    ids = np.asarray(ids)
    if len(ids) < slots:
        ids = np.resize(ids, slots)
    picked = ids[np.linspace(0, len(ids) - 1, slots).round().astype(int)]
    return wte[like(picked, wte)].copy()


def from_vocabulary(wte, slots, rng):
    """Embeddings of distinct tokens drawn from the whole vocabulary (Lester et al. 2021, section 3.2)."""
    return wte[like(rng.choice(len(wte), slots, replace=slots > len(wte)), wte)].copy()


def from_noise(wte, slots, rng):
    """Normal noise with the embeddings' own mean and spread."""
    mean, spread = float(to_host(wte.mean())), float(to_host(wte.std()))
    return like((mean + spread * rng.standard_normal((slots, wte.shape[1]))).astype(wte.dtype), wte)
