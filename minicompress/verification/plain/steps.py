"""What the plain GPT-2 writes without a cache, and how AdamW moves what is trained."""

from dataclasses import dataclass

import numpy as np

from minicompress.verification.plain.backward import answer
from minicompress.verification.plain.forward import RIGHT, forward
from minicompress.verification.repeated import moved, trainable


def decode(setup, way=RIGHT):
    """{decoded, decoded_logits}, as `decoded` gives them: all tokens are read anew for each new one."""
    if not way.left_over:
        parts = [written_on(setup, setup.rows, way)]
    else:
        parts, memory = [], None
        for row in setup.rows:
            parts.append(written_on(setup, [row], way, memory))
            memory = [(at["k"], at["v"], at["masses"]) for at in parts[-1][2].layers]
    names = ("decoded", "decoded_logits")
    return {name: np.concatenate([part[n] for part in parts]) for n, name in enumerate(names)}


def written_on(setup, rows, way, memory=None):
    """-> the rows' likeliest continuations (B, n), what chose them (B, n, V), and the last pass."""
    rows, found, longest = [list(row) for row in rows], [], max(map(len, rows))
    for written in range(setup.decode):
        if way.keeps_padding and written == 1:
            rows = [row[:-1] + [way.pad] * (longest - len(row) + 1) + row[-1:] for row in rows]
        tape = forward(setup.model, rows, setup.prompt, way, written=written, memory=memory)
        ends = tape.layout.columns[np.arange(len(rows)), tape.layout.lengths - 1]
        found.append(tape.end["logits"][np.arange(len(rows)), ends])
        for row, token in zip(rows, found[-1].argmax(-1), strict=True):
            row.append(int(token))
    return np.array([row[-setup.decode :] for row in rows]), np.stack(found, axis=1), tape


@dataclass(frozen=True)
class Optimiser:
    """One way to take the steps; the defaults are right."""

    decay: float | None = None  # in place of the one asked for
    coupled: bool = False  # decay is added to the gradient (L2), not taken off the weights
    corrected: tuple = (True, True)  # the beginning at zero of m and of v is made up for
    clip: str = "together"  # or "each", "always", "by layer", "by number", "as PyTorch", "never"
    late: int = 0  # steps by which the correction's count is off
    zeroed: bool = True  # gradients begin anew at each step
    inside: bool = False  # eps stands inside the root


def take_steps(setup, how=Optimiser(), way=RIGHT):
    """{after.*, adam.*, steps.*}, as `stepped` gives them."""
    asked = {"steps": 1, "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "clip": None}
    asked |= setup.steps
    moving = {name: w.copy() for name, w in trainable(setup.model, setup.prompt).items()}
    m, v, kept = ({name: np.zeros_like(w) for name, w in moving.items()} for _ in range(3))
    losses, norms, found, gradients = [], [], {}, "prompt" if setup.prompt else "all"
    for t in range(1, asked["steps"] + 1):
        model, _, prompt = moved(setup.model, setup.rows, setup.prompt, moving)
        tensors = answer(setup._replace(model=model, prompt=prompt, gradients=gradients), way)
        for name, d in kept.items():
            d[...] = tensors[f"grad.{name}"] + (0 if how.zeroed else d)
        losses.append(tensors["loss"])
        norms.append(np.sqrt(sum((g * g).sum(dtype=np.float64) for g in kept.values())))
        clipped = clip(kept, asked["clip"], how.clip)
        for name, w in moving.items():
            move(w, clipped[name], m[name], v[name], t + how.late, how, asked)
    for name in moving:
        found |= {f"after.{name}": moving[name], f"adam.m.{name}": m[name], f"adam.v.{name}": v[name]}
    return found | {"steps.loss": np.array(losses), "steps.norm": np.array(norms)}


def clip(grads, limit, how):
    """The gradients, no longer than the limit: together, each by itself, layer by layer, or number by number."""
    if limit is None or how == "never":
        return {name: g.copy() for name, g in grads.items()}
    if how == "by number":
        return {name: np.clip(g, -limit, limit) for name, g in grads.items()}
    group = {"each": lambda name: name, "always": lambda name: name, "by layer": lambda name: name.split(".")[:3]}
    of, clipped = group.get(how, lambda name: ""), {}
    for name, g in grads.items():
        norm = np.sqrt(sum((other * other).sum() for n, other in grads.items() if of(n) == of(name)))
        factor = limit / max(norm + 1e-6 * (how == "as PyTorch"), 1e-30)
        clipped[name] = g * g.dtype.type(factor if how == "always" else min(1, factor))
    return clipped


def move(w, g, m, v, t, how, asked):
    """One step of AdamW on one array, in place (Loshchilov & Hutter 2019, algorithm 2)."""
    (b1, b2), lr, eps = asked["betas"], asked["lr"], asked["eps"]
    decay = asked["weight_decay"] if how.decay is None else how.decay
    decay = decay if w.ndim > 1 else 0
    g = g + decay * w if how.coupled else g
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * g * g
    one, two = (1 - b**t if made_up else 1 for b, made_up in zip((b1, b2), how.corrected, strict=True))
    w *= 1 if how.coupled else 1 - lr * decay
    w -= lr * (m / one) / (np.sqrt(v / two + eps) if how.inside else np.sqrt(v / two) + eps)
