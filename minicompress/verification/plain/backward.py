"""The loss of the plain GPT-2, and its gradient, op by op."""

from dataclasses import replace

import numpy as np

from minicompress.layers.losses import log_softmax
from minicompress.prompts.layout import flat_from_kv
from minicompress.prompts.parameterisations import kind_of
from minicompress.trees import flatten
from minicompress.verification.plain.costs import Asked
from minicompress.verification.plain.forward import RIGHT, forward, head, tensors
from minicompress.verification.trace import scored_rows


def answer(setup, way=RIGHT, gradients=True, tape=None, down_to=None):
    """{name: tensor}, as `trace` gives them, of one way to do it.

    tape: the forward pass, where it is there already. down_to: the block at whose input the backward may stop.
    """
    tape = tape or forward(setup.model, setup.rows, setup.prompt, way)
    asked = what_is_asked(setup, way, tape)
    found, places = tensors(tape), way.places(asked)
    picked, expected, power = tape.end["logits"][places.row, places.column], None, 0
    picked = picked.astype(way.loss_dtype or picked.dtype)
    warmth = (1.0, 1.0)
    if asked.teacher is not None:
        warmth, power = way.temperatures(setup.temperature), way.power
        expected = log_softmax(asked.teacher[places.row, places.guide] / warmth[1])
        expected = expected.astype(way.loss_dtype or expected.dtype)
        found["teacher_log_probs"] = np.zeros_like(tape.layout.tokens(tape.end["logits"]))
        found["teacher_log_probs"][places.row, places.t] = expected
    losses, dpicked = (part * setup.temperature**power for part in way.cost(picked, places.target, expected, warmth[0]))
    found |= {"losses": np.zeros(asked.scored.shape, picked.dtype), "loss": (losses * places.weight).sum()}
    inside = places.t >= 0
    found["losses"][places.row[inside], places.t[inside]] = losses[inside]
    if gradients:
        dlogits = np.zeros_like(tape.end["logits"])
        np.add.at(dlogits, (places.row, places.column), dpicked * places.weight[:, None].astype(picked.dtype))
        if not way.last_slot:
            dlogits[:, : tape.layout.P] = 0
        found |= backward(tape, dlogits, way, setup.gradients == "all", down_to)
    return found


def what_is_asked(setup, way, tape):
    _, _, scored, targets = scored_rows(setup.model, setup.rows, setup.prompt, setup.labels)
    first = tape.layout.P > 0 and tape.prompt.carrier == "embeddings"
    scored = scored & ((np.arange(tape.layout.T) > 0) | first)
    guide = teacher_logits(setup, way) if setup.teacher_context else None
    return Asked(tape.layout, targets, scored, tape.ids < 0, first, guide)


def teacher_logits(setup, way):
    """(B, T + 1, V), for every token and one more, of the teacher that reads the context first, and no slots."""
    context = list(way.context(setup.teacher_context))
    rows = [context + [i for i in row if i >= 0] for row in setup.rows]
    gap = lambda layout: np.arange(layout.T)[None] + way.teacher_gap * (np.arange(layout.T) >= len(context))
    way = replace(way, left=False, positions=gap if way.teacher_gap else way.positions)
    logits = forward(setup.teacher or setup.model, rows, None, way).end["logits"]
    T = max(map(len, setup.rows))
    hard = [[sum(i >= 0 for i in row[:t]) + max(0, t - len(row)) for t in range(T + 1)] for row in setup.rows]
    before = np.clip(len(context) + np.array(hard) - 1, 0, logits.shape[1] - 1)
    return logits[np.arange(len(rows))[:, None], before]


def backward(tape, dlogits, way=RIGHT, of_weights=True, down_to=None):
    """dlogits (B, S, V) -> the gradients by name. of_weights: those of the model too. down_to: a block to stop at."""
    (params, config), layout, P, prompt = tape.model, tape.layout, tape.layout.P, tape.prompt
    grads = {name: np.zeros_like(w) for name, w in flatten(params).items()} if of_weights else None
    dend, dx = finish_backward(dlogits, tape, way, grads)
    last, found = len(tape.layers), {"grad.ln_f": layout.tokens(dend)}
    found[f"grad.hidden.{last}"], dslots, dbeta = layout.tokens(dx), [None] * last, [None] * last
    for number in reversed(range(last)):
        at, H = tape.layers[number], config.n_head
        weights, name = params["h"][str(number)], f"h.{number}"
        here = way if way.only in (None, number) else RIGHT
        dx, dkv, dbeta[number] = block_backward(dx, at, weights, H, layout, prompt, here, grads, name)
        if P and prompt.carrier == "hidden" and way.has_slots(number):
            dslots[number] = dx[:, :P].copy()
            dx[:, :P] = 0
        elif P and prompt.carrier == "kv":
            dslots[number] = dkv
        elif P and prompt.carrier == "hidden":
            dslots[number] = np.zeros_like(dx[:, :P])
        found[f"grad.hidden.{number}"] = layout.tokens(dx)
        if number == down_to:
            return found
    if of_weights:
        embeddings_backward(tape, dx, way, grads)
        found |= {f"grad.model.{name}": g for name, g in grads.items()}
    if prompt is not None:
        dslots = dx if prompt.carrier == "embeddings" else np.stack(dslots, axis=1)
        found |= prompt_gradients(tape, dslots, dbeta, way)
    return found


def finish_backward(dlogits, tape, way, grads):
    """dlogits (B, S, V) -> what is asked of ln_f's output and of the last block's, each (B, S, C)."""
    (params, config), cache = tape.model, tape.end["ln_f"]
    if grads is not None:
        rows = dlogits.reshape(-1, dlogits.shape[-1])
        grads[head_name(params)] += way.tied[0] * (rows.T @ tape.end["hidden"].reshape(len(rows), -1))
    dend = way.product(dlogits, head(params))
    if cache is None:
        return dend, dend
    here = way if way.only in (None, config.n_layer) else RIGHT
    if way.final_norm == "bare":
        return dend, norm_backward(dend, (*cache[:-1], np.ones_like(cache[-1])), here, None, "")
    return dend, norm_backward(dend, cache, here, grads, "ln_f")


def head_name(params):
    return "lm_head.weight" if "lm_head" in params else "wte.weight"


def linear_backward(dout, x, params, way, grads, name):
    if grads is not None:
        flat, rows = dout.reshape(-1, dout.shape[-1]), x.reshape(-1, x.shape[-1])
        grads[f"{name}.weight"] += way.product(rows.T, flat)
        grads[f"{name}.bias"] += flat.sum(0)
    return way.product(dout, params["weight"].T)


def norm_backward(dout, cache, way, grads, name):
    """out = w d r + b with r = r(var): dx = r (g - mean g) + (Σ g d) r' 2 d / n, g = w dout."""
    d, var, r, slope, n, weight = cache
    sharp = 1 / np.sqrt(np.maximum(var, np.finfo(var.dtype).tiny))  # r without eps
    if grads is not None:
        grads[f"{name}.weight"] += (dout * d * (sharp if way.norm_backward == "no eps, recomputed" else r)).sum((0, 1))
        grads[f"{name}.bias"] += dout.sum((0, 1))
    g = dout * weight
    if way.norm_backward == "no means":
        return g * r
    if way.norm_backward in ("no eps", "no eps, recomputed"):
        r, slope = sharp, -(sharp**3) / 2
    if way.norm_backward == "no eps in 1/σ":
        r, slope = sharp, -sharp * r * r / 2
    if way.norm_backward == "no eps in the stretch":
        slope = -r * sharp * sharp / 2
    return r * (g - g.mean(-1, keepdims=True)) + (g * d).sum(-1, keepdims=True) * slope * 2 * d / n


def block_backward(dout, at, params, H, layout, prompt, way, grads, name):
    """-> dx (B, S, C); where the block's keys and values are slots, dkv (B, 2, H, P, D), dβ (B, H, P)."""
    (B, S, C), P = dout.shape, layout.P
    d = linear_backward(dout, at["gelu"], params["mlp"]["c_proj"], way, grads, f"{name}.mlp.c_proj")
    d = d * (way.gelu_slope or way.gelu.slope)(at["fc"])
    d = linear_backward(d, at["ln_2"], params["mlp"]["c_fc"], way, grads, f"{name}.mlp.c_fc")
    dmiddle = way.residual[0] * dout + norm_backward(d, at["norm_2"], way, grads, f"{name}.ln_2")
    d = linear_backward(dmiddle, at["attended"], params["attn"]["c_proj"], way, grads, f"{name}.attn.c_proj")
    d = d.reshape(B, S, H, C // H).swapaxes(1, 2)  # (B, H, S, D)
    q, k, v, probs = (at[part] for part in ("q", "k", "v", "probs"))
    dv, dprobs = way.product(probs.swapaxes(-1, -2), d), way.product(d, v.swapaxes(-1, -2))
    dscores = probs * (dprobs - ((probs * dprobs).sum(-1, keepdims=True) if way.softmax_sum else 0))
    scale_q, scale_k = way.scale_backward(way.scale(C // H, C))
    dq = way.product(dscores, k) * scale_q
    if not way.reaches_slots[0]:
        dscores[:, :, P:, :P] = 0
    if not way.reaches_slots[1]:
        dv[:, :, :P] = way.product(probs[:, :, :P, :P].swapaxes(-1, -2), d[:, :, :P])
    dk = way.product(dscores.swapaxes(-1, -2), q) * scale_k
    if way.swapped:
        dk[:, :, :P], dv[:, :, :P] = dv[:, :, :P].copy(), dk[:, :, :P].copy()
    of_q, of_k = way.scale_of_each(C // H)
    dq *= of_q
    dkv = dbeta = None
    if prompt is not None and prompt.carrier == "kv":
        dkv, dbeta = np.stack([dk[:, :, :P], dv[:, :, :P]], axis=1), dscores[..., :P].sum(-2)
        dk[:, :, :P] = dv[:, :, :P] = 0
    dk *= of_k
    dsplit = np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, S, 3 * C)
    dqkv = np.zeros_like(dsplit)
    dqkv[..., way.columns(H, C)] = dsplit
    d = linear_backward(dqkv, at["ln_1"], params["attn"]["c_attn"], way, grads, f"{name}.attn.c_attn")
    return way.residual[1] * dmiddle + norm_backward(d, at["norm_1"], way, grads, f"{name}.ln_1"), dkv, dbeta


def embeddings_backward(tape, dx, way, grads):
    """dx (B, S, C) of the first block's input, into wte and wpe."""
    layout, P = tape.layout, tape.layout.P
    row, t = np.nonzero(layout.real & (tape.ids >= 0))
    d, ids = way.tied[1] * dx[row, layout.columns[row, t]], tape.ids[row, t]
    if way.repeated == "added":
        np.add.at(grads["wte.weight"], ids, d)
    else:
        one, order = np.zeros_like(grads["wte.weight"]), slice(None, None, 1 if way.repeated == "last" else -1)
        one[ids[order]] = d[order]
        grads["wte.weight"] += one
    own = way.slot_positions(P)
    row, t = np.nonzero(layout.real & ((own is not None) | (tape.ids >= 0)))
    np.add.at(grads["wpe.weight"], tape.positions[row, t], dx[row, layout.columns[row, t]])
    if P and tape.prompt.carrier == "embeddings" and own is not None:
        np.add.at(grads["wpe.weight"], own, dx[:, :P].sum(0))


def prompt_gradients(tape, dslots, dbeta, way):
    """The slots' gradient, of all rows together, and what it asks of a parameterisation's raw arrays."""
    prompt, B = tape.prompt, len(tape.ids)
    if prompt.in_rows:
        each, (row, t) = np.zeros((B, *prompt.slots.shape), dslots.dtype), np.nonzero(tape.ids < 0)
        np.add.at(each, (row, -1 - tape.ids[row, t]), dslots[row, tape.layout.columns[row, t]])
    else:
        each = dslots[:, : tape.layout.P] if prompt.carrier == "embeddings" else dslots
    d = way.prompt_gradient(each, B)
    found = {"grad.prompt": flat_from_kv(d) if prompt.carrier == "kv" else d}
    if prompt.beta is not None:
        found["grad.beta"] = way.prompt_gradient(np.stack(dbeta, axis=1), B)
    if prompt.raw:
        bake, bake_backward = kind_of(prompt.raw, tape.model[1])
        found |= flatten(bake_backward(d, bake(prompt.raw)[1]), "grad.raw")
    return found
