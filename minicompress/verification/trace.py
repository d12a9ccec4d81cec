"""Every number that another implementation can be held against, as one dict of named tensors."""

import numpy as np

from minicompress.arrays import array_module, like, pad_rows, to_host
from minicompress.compression.objectives import kl, likelihood
from minicompress.gpt2 import backward, embed, embed_backward, forward, head_loss, logits
from minicompress.gpt2.model import check_ids, embed_slots_backward
from minicompress.gpt2.prefix import Prefix, predictors, read_tokens
from minicompress.layers.attention import probabilities
from minicompress.layers.losses import log_softmax
from minicompress.prompts.layout import flat_from_kv
from minicompress.trees import flatten, tree_map

IGNORED = -100


def trace(model, rows, prompt=None, labels=None, teacher=None, teacher_context=None, gradients="prompt"):
    """{name: tensor} for B rows of token ids, padded on the right to T; padding is filled with 0.

    model, teacher: (params, config). prompt: a SoftPrompt; where it has a template, the id -1-j in a
    row is its slot j. labels as rows, -100 unscored, default the rows' tokens. teacher_context: ids;
    the loss is then KL(teacher ‖ student), else cross-entropy.
    """
    params, _ = model
    ids, real = pad_rows(rows, 0), pad_rows([[1] * len(row) for row in rows], 0) == 1
    in_rows = prompt is not None and prompt.in_rows
    check_ids(ids, len(params["wte"]["weight"]), prompt.length if in_rows else 0)
    targets = pad_rows(labels or rows, IGNORED)
    targets[(ids < 0) & (targets < 0)] = IGNORED
    scored = (targets != IGNORED) & real
    scored[:, 0] &= prompt is not None and prompt.carrier == "embeddings" and not in_rows
    if not scored.any():
        raise ValueError("no target is scored: every label is -100, or is a first token that nothing predicts")
    grads = tree_map(lambda a: array_module(a).zeros(a.shape, a.dtype), params) if gradients == "all" else None
    objective = make_objective(model, ids, scored, targets, teacher, teacher_context)
    tensors = run_both_ways(model, ids, real, scored, prompt, objective, grads)
    if grads is not None:
        tensors |= {f"grad.model.{name}": grad for name, grad in flatten(grads).items()}
    return {name: np.asarray(to_host(tensor), order="C") for name, tensor in tensors.items()}


def make_objective(model, ids, scored, targets, teacher, teacher_context):
    """The mean over the scored places of cross-entropy, or of KL to a teacher that read the context."""
    wte, weight = model[0]["wte"]["weight"], 1 / int(scored.sum())
    if teacher_context is None:
        wanted = targets[scored]
        if wanted.min() < 0 or wanted.max() >= len(wte):
            raise ValueError(f"labels span {wanted.min()}..{wanted.max()}; the vocabulary is 0..{len(wte) - 1}")
        return likelihood(like(wanted, wte), weight)
    teacher = teacher or model
    prefix, rows = read_tokens(*teacher, teacher_context), without_slots(ids, scored)
    states, _ = predictors(*teacher, prefix, *rows, keep="nothing")
    return kl(log_softmax(logits(teacher[0], states)), weight)


def without_slots(ids, scored):
    """What a teacher reads of rows in which slots stand, and where it is scored: the same tokens, moved together.

    Raises ValueError where a slot's own place is scored: the teacher, which has none, expects nothing there.
    """
    for row, place in np.argwhere((ids < 0) & scored):
        raise ValueError(
            f"row {row}, place {place}: a slot is scored, and the teacher has no token there; label it -100"
        )
    order = np.argsort(ids < 0, axis=1, kind="stable")
    return np.maximum(np.take_along_axis(ids, order, 1), 0), np.take_along_axis(scored, order, 1)


def run_both_ways(model, ids, real, scored, prompt, objective, grads):
    """Forward with everything kept, the loss, and the gradient back to the slots and, if wanted, the weights."""
    params, config = model
    wte, keep, hidden, (B, T) = params["wte"]["weight"], "grads" if grads else "dx", [], ids.shape
    prefix, back_prompt = prompt.door.read(params, config, prompt.tree, keep) if prompt else (Prefix(), None)
    first = like(np.zeros((1, 1, config.n_embd)), wte).astype(wte.dtype) if prefix.last is None else prefix.last
    x = embed(params, ids, prefix.start, prefix.slots)
    out, _, back = forward(params, config, x, prefix.past, keep=keep, watch=hidden)
    xp, mask = array_module(out), like(real, out)
    tensors = {"logits": logits(params, out) * mask[..., None]}
    tensors |= {f"hidden.{layer}": x * mask[..., None] for layer, x in enumerate(hidden)}
    for layer, cache in enumerate(back[0]):
        tensors[f"attention.{layer}"] = probabilities(cache["attn"]["attention"]) * mask[:, None, :, None]

    states = xp.concatenate([xp.broadcast_to(first, (B, 1, config.n_embd)), out[:, :-1]], axis=1).reshape(B * T, -1)
    index = like(np.flatnonzero(scored), out)
    losses, dscored = head_loss(params, states[index], objective, grads)
    tensors["loss"] = losses.sum()
    dstates = xp.zeros_like(states)
    dstates[index] = dscored
    dstates = dstates.reshape(B, T, -1)
    dout = xp.concatenate([dstates[:, 1:], xp.zeros_like(dstates[:, :1])], axis=1)
    dx, dpast = backward(dout, back, grads=grads)
    if grads is not None:
        embed_backward(dx, params, ids, grads, prefix.start)
    if prefix.last is not None:
        tensors["first_logits"] = xp.broadcast_to(logits(params, first)[:, 0], (B, config.vocab_size))
    if prompt:
        placed = None if prefix.slots is None else embed_slots_backward(dx, ids, prefix.slots)
        asked = dpast, dstates[:, :1].sum(0, keepdims=True), placed
        tensors |= prompt_gradients(prompt, prompt.door.read_backward(asked, back_prompt, grads))
    return tensors


def prompt_gradients(prompt, dslots):
    """grad.prompt, for keys and values as PEFT's flat (P, 2 L C); grad.beta where keys have a log-mass."""
    dslots = dslots if prompt.beta is not None else {"slots": dslots}
    named = {"grad.prompt": flat_from_kv(dslots["slots"]) if prompt.carrier == "kv" else dslots["slots"]}
    return named | ({"grad.beta": dslots["beta"]} if "beta" in dslots else {})
