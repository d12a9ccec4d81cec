"""Every number that another implementation can be held against, as one dict of named tensors.

B rows of T tokens, S = P + T keys, the prompt's P first. P is 0 without a prompt, and where the rows place its slots:

    prompt, prompt.beta                  what stands in front, as `grad.prompt` is laid out
    hidden.{l}                           [B,T,C], the residual stream before block l; hidden.{L} after the last
    ln_1.{l}, ln_2.{l}, ln_f             [B,T,C], normalised
    query.{l}, key.{l}, value.{l}        [B,H,T,D], [B,H,S,D], [B,H,S,D]
    attention.{l}                        [B,H,T,S], probabilities
    attended.{l}                         [B,T,C], the heads side by side, before c_proj
    middle.{l}                           [B,T,C], the residual stream between attention and MLP
    fc.{l}, gelu.{l}                     [B,T,4C], before and after GELU
    logits, first_logits                 [B,T,V], what comes after token t; [B,V], the last slot's word on the first
    teacher_log_probs                    [B,T,V], of token t, where it is scored; with a teacher alone
    losses, loss                         [B,T], of token t, 0 where it is not scored; [], their mean
    grad.ln_f, grad.hidden.{l}           [B,T,C], of the loss
    grad.prompt, grad.beta, grad.raw.*   of what is trained: slots, log-masses, an encoder's own arrays
    grad.model.*                         of the weights, under the checkpoint's names
"""

import math

import numpy as np

from minicompress.arrays import array_module, like, pad_rows, to_host
from minicompress.compression.objectives import kl, likelihood
from minicompress.gpt2 import backward, embed, embed_backward, forward, head_loss, logits
from minicompress.gpt2.model import check_ids, embed_slots_backward
from minicompress.gpt2.prefix import Prefix, predictors, read_tokens
from minicompress.layers.attention import probabilities
from minicompress.layers.linear import linear
from minicompress.layers.losses import log_softmax
from minicompress.prompts.layout import flat_from_kv
from minicompress.prompts.parameterisations import kind_of
from minicompress.trees import flatten, tree_map

IGNORED = -100


def trace(model, rows, prompt=None, labels=None, teacher=None, teacher_context=None, gradients="prompt",
          temperature=1.0):  # fmt: skip
    """{name: tensor} for B rows of token ids, padded on the right to T; padding is filled with 0.

    model, teacher: (params, config). prompt: a SoftPrompt; where it has a template, the id -1-j in a
    row is its slot j. labels as rows, -100 unscored, default the rows' tokens. teacher_context: ids;
    the loss is then T² KL(teacher ‖ student) at the temperature T, else cross-entropy.
    """
    params, _ = model
    ids, real, scored, targets = scored_rows(model, rows, prompt, labels)
    grads = tree_map(lambda a: array_module(a).zeros(a.shape, a.dtype), params) if gradients == "all" else None
    objective, expected = make_objective(model, ids, scored, targets, teacher, teacher_context, temperature)
    tensors = run_both_ways(model, ids, real, scored, prompt, objective, grads)
    if expected is not None:
        tensors["teacher_log_probs"] = spread(expected, scored)
    if grads is not None:
        tensors |= {f"grad.model.{name}": grad for name, grad in flatten(grads).items()}
    return {name: np.asarray(to_host(tensor), order="C") for name, tensor in tensors.items()}


def scored_rows(model, rows, prompt=None, labels=None):
    """-> ids (B, T), real (B, T), scored (B, T) and targets (B, T), all on the host.

    Raises ValueError for ids outside the vocabulary, and where no target is scored.
    """
    ids, real = pad_rows(rows, 0), pad_rows([[1] * len(row) for row in rows], 0) == 1
    in_rows = prompt is not None and prompt.in_rows
    check_ids(ids, len(model[0]["wte"]["weight"]), prompt.length if in_rows else 0)
    targets = pad_rows(labels or rows, IGNORED)
    targets[(ids < 0) & (targets < 0)] = IGNORED
    scored = (targets != IGNORED) & real
    scored[:, 0] &= prompt is not None and prompt.carrier == "embeddings" and not in_rows
    if not scored.any():
        raise ValueError("no target is scored: every label is -100, or is a first token that nothing predicts")
    return ids, real, scored, targets


def make_objective(model, ids, scored, targets, teacher, teacher_context, temperature=1.0):
    """The mean over the scored places of cross-entropy, or of KL to a teacher that read the context.

    -> the objective, and what the teacher expects (N, V) in log-probabilities, or None.
    """
    wte, weight = model[0]["wte"]["weight"], 1 / int(scored.sum())
    wanted = targets[scored]
    if wanted.min() < 0 or wanted.max() >= len(wte):
        span = f"labels span {wanted.min()}..{wanted.max()}; the vocabulary is 0..{len(wte) - 1}"
        raise ValueError(f"{span}, and -100 is for what is not scored")
    if teacher_context is None:
        return likelihood(like(wanted, wte), weight), None
    teacher = teacher or model
    prefix, rows = read_tokens(*teacher, teacher_context), without_slots(ids, scored)
    states, _ = predictors(*teacher, prefix, *rows, keep="nothing")
    expected = log_softmax(logits(teacher[0], states) / temperature)
    return kl(expected, weight, temperature), expected


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


def spread(values, scored):
    """values (N, ...) of the scored places, row by row -> (B, T, ...), 0 elsewhere."""
    xp, index = array_module(values), like(np.flatnonzero(scored), values)
    out = xp.zeros((scored.size, *values.shape[1:]), values.dtype)
    out[index] = values
    return out.reshape(*scored.shape, *values.shape[1:])


def run_both_ways(model, ids, real, scored, prompt, objective, grads):
    """Forward with everything kept, the loss, and the gradient back to the slots and, if wanted, the weights."""
    params, config = model
    wte, hidden, dhidden, (B, T) = params["wte"]["weight"], [], [], ids.shape
    prefix, back_prompt = prompt.door.read(params, config, prompt.tree, "grads") if prompt else (Prefix(), None)
    first = like(np.zeros((1, 1, config.n_embd)), wte).astype(wte.dtype) if prefix.last is None else prefix.last
    x = embed(params, ids, prefix.start, prefix.slots)
    out, _, back = forward(params, config, x, prefix.past, keep="grads", watch=hidden)
    xp, mask = array_module(out), like(real, out)
    tensors = {"logits": logits(params, out) * mask[..., None], "ln_f": out * mask[..., None]}
    tensors |= {f"hidden.{layer}": x * mask[..., None] for layer, x in enumerate(hidden)}
    for layer, cache in enumerate(back[0]):
        inside = inside_block(hidden[layer], params["h"][str(layer)], cache, mask)
        tensors |= {f"{name}.{layer}": tensor for name, tensor in inside.items()}

    states = xp.concatenate([xp.broadcast_to(first, (B, 1, config.n_embd)), out[:, :-1]], axis=1).reshape(B * T, -1)
    losses, dscored = head_loss(params, states[like(np.flatnonzero(scored), out)], objective, grads)
    tensors |= {"losses": spread(losses, scored) * len(losses), "loss": losses.sum()}
    dstates = spread(dscored, scored)
    dout = xp.concatenate([dstates[:, 1:], xp.zeros_like(dstates[:, :1])], axis=1)
    dx, dpast = backward(dout, back, grads=grads, watch=dhidden)
    tensors |= {"grad.ln_f": dout} | {f"grad.hidden.{layer}": d for layer, d in enumerate(reversed(dhidden))}
    if grads is not None:
        embed_backward(dx, ids, grads, prefix.start)
    if prefix.last is not None:
        tensors["first_logits"] = xp.broadcast_to(logits(params, first)[:, 0], (B, config.vocab_size))
    if prompt:
        placed = None if prefix.slots is None else embed_slots_backward(dx, ids, prefix.slots)
        asked = dpast, dstates[:, :1].sum(0, keepdims=True), placed
        tensors |= prompt_tensors(prompt, config, prompt.door.read_backward(asked, back_prompt, grads))
    return tensors


def inside_block(x, params, cache, mask):
    """A block's own tensors, by name, from what it kept; mask (B, T), False where a row is over."""
    q, k, v, past, _ = cache["attn"]["attention"]
    xp, (B, *_), D = array_module(x), x.shape, k.shape[-1]
    whole = lambda own, which: own if not past else xp.concatenate(
        [xp.broadcast_to(past[which], (B, *past[which].shape[1:])), own], axis=2)  # fmt: skip
    real = mask if not past else xp.concatenate([xp.ones((B, past[0].shape[2]), bool), mask], axis=1)
    (normed, _), (attended, _) = cache["attn"]["c_attn"], cache["attn"]["c_proj"]
    rows = {"ln_1": normed, "attended": attended, "middle": x + linear(attended, **params["attn"]["c_proj"])[0]}
    rows |= {"ln_2": cache["mlp"]["c_fc"][0], "fc": cache["mlp"]["gelu"], "gelu": cache["mlp"]["c_proj"][0]}
    heads = {"query": xp.concatenate(q, axis=2) * math.sqrt(D) * mask[:, None, :, None]}
    heads |= {name: whole(own, n) * real[:, None, :, None] for n, (name, own) in enumerate((("key", k), ("value", v)))}
    heads["attention"] = probabilities(cache["attn"]["attention"]) * mask[:, None, :, None]
    return {name: tensor * mask[..., None] for name, tensor in rows.items()} | heads


def prompt_tensors(prompt, config, dslots):
    """The prompt and its gradient, keys and values in PEFT's flat rows; log-masses; what the slots are made of."""
    dslots = dslots if prompt.beta is not None else {"slots": dslots}
    laid = flat_from_kv if prompt.carrier == "kv" else lambda slots: slots
    named = {"prompt": laid(prompt.slots), "grad.prompt": laid(dslots["slots"])}
    if "beta" in dslots:
        named |= {"prompt.beta": prompt.beta, "grad.beta": dslots["beta"]}
    if prompt.raw:
        bake, bake_backward = kind_of(prompt.raw, config)
        named |= flatten(bake_backward(dslots["slots"], bake(prompt.raw)[1]), "grad.raw")
    return named
