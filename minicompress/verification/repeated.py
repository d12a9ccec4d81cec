"""What one pass cannot show: whether it comes out the same again, what a cache makes of it, where steps lead.

    again.*                      a second forward of the same: the prompt, hidden.*, logits, losses, loss and what the
                                 teacher expects; where they differ from the first, something is drawn at random
    decoded, decoded_logits      [B,n] the likeliest continuation, token by token; [B,n,V] what chose it
    steps.loss, steps.norm       [n], before each step: the loss, and the length of the whole gradient
    after.*, adam.m.*, adam.v.*  what is trained, and Adam's two moments, after n steps
"""

import math
from dataclasses import replace

import numpy as np

from minicompress.arrays import like, to_host
from minicompress.gpt2.generate import generate
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations import kind_of
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.trees import flatten, unflatten
from minicompress.tuning.recipe import trained
from minicompress.verification.trace import trace

AGAIN = ("prompt", "teacher_log_probs", "logits", "first_logits", "losses", "loss")


def again(model, rows, prompt=None, *args, **options):
    """A second `trace` of the same, of which the tensors that show chance are kept."""
    return as_again(trace(model, rows, prompt, *args, **options))


def as_again(tensors):
    """Those of a second pass's tensors that show chance, by their names."""
    return {f"again.{name}": x for name, x in tensors.items() if name in AGAIN or name.startswith("hidden.")}


def decoded(model, rows, prompt=None, tokens=8):
    """Each row continued by its likeliest tokens, with the cache. Raises ValueError past n_positions."""
    expected, prefix = [], prompt and prompt.prefix(*model)
    written = generate(*model, rows, tokens, prefix, watch=expected)
    return {"decoded": np.array(written, dtype=np.int64), "decoded_logits": np.stack(expected, axis=1)}


def stepped(model, rows, prompt=None, *args, steps=1, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
            clip=None, **options):  # fmt: skip
    """`steps` steps of AdamW on one batch: of a prompt's raw arrays, else its slots, else the model's weights.

    clip: the joint length that all gradients together may have, or None.
    """
    moving = {name: array.copy() for name, array in trainable(model, prompt).items()}
    state, found = adamw_init(moving), {"loss": [], "norm": []}
    for _ in range(steps):
        tensors = trace(*moved(model, rows, prompt, moving), *args, **options, gradients="prompt" if prompt else "all")
        grads = {name: like(tensors[f"grad.{name}"], array) for name, array in moving.items()}
        found["loss"].append(tensors["loss"])
        found["norm"].append(clip_by_global_norm(grads, clip or math.inf))
        adamw_step(moving, grads, state, lr, betas, eps, weight_decay)
    named = {f"steps.{name}": np.array(values) for name, values in found.items()}
    for name, arrays in (("after", moving), ("adam.m", state["m"]), ("adam.v", state["v"])):
        named |= {f"{name}.{part}": to_host(array) for part, array in arrays.items()}
    return named


def trainable(model, prompt=None):
    """{name: array} of what is trained, under the names of its gradients without `grad.`, laid out like them."""
    if prompt is None:
        return flatten(model[0], "model")
    if prompt.raw:
        return flatten(trained(prompt.raw), "raw")
    slots = flat_from_kv(prompt.slots) if prompt.carrier == "kv" else prompt.slots
    return {"prompt": slots} | ({} if prompt.beta is None else {"beta": prompt.beta})


def moved(model, rows, prompt, arrays):
    """The model, the rows and the prompt, with these arrays in the place of `trainable`'s."""
    (_, config), tree = model, unflatten(arrays)
    if prompt is None:
        return (tree["model"], config), rows, None
    if prompt.raw:
        raw = prompt.raw | tree["raw"]
        return model, rows, replace(prompt, slots=kind_of(raw, config)[0](raw)[0], raw=raw)
    slots = kv_from_flat(tree["prompt"], config.n_layer, config.n_head) if prompt.carrier == "kv" else tree["prompt"]
    return model, rows, replace(prompt, slots=slots, beta=tree.get("beta"))
