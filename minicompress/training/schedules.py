"""Learning rates as functions of the step."""

import math


def warmup_cosine(step, steps, lr, warmup=0, final=0.0):
    """Up to lr in `warmup` equal steps, then half a cosine down to `final` * lr at `steps`."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def any_prefix(slots, rng):
    """How many of the slots a step uses: in half of the steps all, else evenly on a log scale from 1 on."""
    return slots if rng.random() >= 0.5 else round(math.exp(rng.uniform(0, math.log(slots))))
