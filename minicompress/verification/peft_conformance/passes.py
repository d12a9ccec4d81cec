"""One pass forward and back: logits, loss, gradients; rows of unequal length; positions."""

import numpy as np

from minicompress.prompts.carriers import lift, slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten
from minicompress.verification.oracles import relative_error
from minicompress.verification.peft_conformance.bench import (
    CONFIG,
    KV,
    ROWS,
    P,
    asked,
    bake_of,
    config_of,
    encoder_of,
    flat,
    laid,
    our_logits,
    ours,
    peer,
    prompt_of,
    raw_of,
    their_logits,
    their_losses,
    to_numpy,
    traced,
    tuned,
)
from minicompress.verification.peft_conformance.finding import CONVENTION, DEFECT, EXACT, SINGLE, Finding


def held(mine, theirs, tolerance=EXACT, otherwise=DEFECT, words=""):
    """The Finding of two arrays, or two lists of them: their lengths are shown, and the worst relative error."""
    pairs = list(zip(mine, theirs, strict=True)) if isinstance(mine, list) else [(mine, theirs)]
    size = lambda which: float(np.sqrt(sum(np.square(pair[which]).sum() for pair in pairs)))
    return Finding(size(0), size(1), max(relative_error(*pair) for pair in pairs), tolerance, otherwise, words)


# Every kind of prompt.


def logits(lib, kind):
    """Rows of unequal length, padded on the right."""
    model = tuned(lib, kind)
    return held(our_logits(model), their_logits(model, asked(lib, kind, ROWS)))


def loss(lib, kind):
    """The loss that the library itself returns: Transformers computes it in float32."""
    model, arguments = tuned(lib, kind), asked(lib, kind, ROWS)
    labels = arguments["input_ids"].masked_fill(arguments["attention_mask"] == 0, -100)
    mine, theirs = float(traced(model)["loss"]), float(model(**arguments, labels=labels).loss)
    words = "the context's own labels are scored with the row's; to compare, compute losses from the logits"
    otherwise = (CONVENTION, words) if kind == "CPT" else (DEFECT,)
    return Finding(mine, theirs, relative_error(theirs, mine), SINGLE, *otherwise)


def gradient(lib, kind):
    """The gradient of everything that is trained, encoders included, of a loss in float64."""
    model = tuned(lib, kind)
    their_losses(lib, model, asked(lib, kind, ROWS)).backward()
    encoder = encoder_of(model)
    bake, bake_backward = bake_of(raw := raw_of(encoder))
    mine = flatten(bake_backward(laid(traced(model)["grad.prompt"]), bake(raw)[1]))
    theirs = flatten(raw_of(encoder, lambda weight: weight.grad))
    return held(list(mine.values()), [theirs[name] for name in mine])


def rows_alone(lib, kind):
    """A batch of theirs against its rows alone; "ours" are the rows alone."""
    model = tuned(lib, kind)
    alone = [their_logits(model, asked(lib, kind, [row]))[0] for row in ROWS]
    return held(alone, their_logits(model, asked(lib, kind, ROWS)))


def left(lib, kind):
    """The same rows padded on the left, and nothing said of positions."""
    model = tuned(lib, kind)
    if kind in KV:
        words = "Transformers counts positions by column; give position_ids from the mask"
        return held(our_logits(model), their_logits(model, asked(lib, kind, ROWS, left=True)), EXACT, CONVENTION, words)
    words = "the prompt stands left of the pads, and the text behind a gap; pad on the right"
    return held(our_logits(model), their_logits(model, asked(lib, kind, ROWS, left=True)), EXACT, DEFECT, words)


def left_with_positions(lib, kind):
    """And with each real token's number in its row as its position."""
    model, arguments = tuned(lib, kind), asked(lib, kind, ROWS, left=True)
    numbers = (arguments["attention_mask"].cumsum(1) - 1).clamp(min=0)
    words = "position_ids are dropped with a warning, so padding on the left cannot be made right; pad on the right"
    return held(our_logits(model), their_logits(model, arguments | {"position_ids": numbers}), EXACT, DEFECT, words)


def numbers_trained(lib, kind):
    """As PEFT counts them; ours are the numbers of the raw arrays that get a gradient."""
    model = tuned(lib, kind)
    tree = raw_of(encoder_of(model))
    frozen = ("frozen", "embedding") if kind == "CPT" else ("frozen",)
    mine = sum(x.size for name, x in flatten(tree).items() if name.split(".")[0] not in frozen)
    return Finding(mine, model.get_nb_trainable_parameters()[0])


# Positions, padding, identities.


def left_by_hand(lib):
    """Left padding without PEFT's forward: slots and embeddings side by side, positions from the mask."""
    kind = "prompt tuning"
    model, arguments = tuned(lib, kind), asked(lib, kind, ROWS, left=True)
    gpt, mask = model.get_base_model(), arguments["attention_mask"]
    x = lib.torch.cat([model.get_prompt(len(ROWS)), gpt.transformer.wte(arguments["input_ids"])], dim=1)
    whole = lib.torch.cat([mask.new_ones(len(ROWS), P), mask], dim=1)
    numbers = (whole.cumsum(1) - 1).clamp(min=0)
    out = gpt(inputs_embeds=x, attention_mask=whole, position_ids=numbers).logits[:, P:]
    theirs = [to_numpy(row[real]) for row, real in zip(out, mask.bool(), strict=True)]
    return held(our_logits(model), theirs)


def positions_given(lib, kind):
    """position_ids 3, 4, ...: ours stand there as well, behind the slots of PEFT's own count where it adds them."""
    model, row, start = tuned(lib, kind), ROWS[0], 3
    own, offset = prompt_of(encoder_of(model)), start + (P if kind in KV else 0)
    mine = our_logits(model, [row], SoftPrompt(own.slots, own.carrier, "logical", offset))
    numbers = lib.torch.arange(start, start + len(row))[None]
    words = (
        "position_ids are dropped, with a warning: tokens stay at n, n+1, ...; to place them elsewhere, call the model "
        "inside with inputs_embeds"
    )
    return held(mine, their_logits(model, asked(lib, kind, [row], position_ids=numbers)), EXACT, CONVENTION, words)


def text_in_front(lib, kind):
    """A prompt made of a text says what the text says: against their plain model, which reads text and row."""
    text, model = [7, 2, 9, 4], tuned(lib, kind)
    carrier, embeddings = "kv" if kind in KV else "embeddings", ours(model)[0]["wte"]["weight"][text]
    prompt = SoftPrompt(lift(*ours(model), embeddings, carrier), carrier)
    encoder_of(model).embedding.weight.data.copy_(lib.torch.as_tensor(flat(prompt)))
    theirs = their_logits(model, asked(lib, kind, ROWS))
    plain = [to_numpy(peer(lib)(lib.torch.as_tensor([text + row])).logits[0, len(text) :]) for row in ROWS]
    return held(plain, theirs)


def zero_prefix(lib):
    """`init_weights="zero"`, which the configuration's own help calls a no-op, against no prompt at all."""
    plain = [to_numpy(peer(lib)(lib.torch.as_tensor([row])).logits[0]) for row in ROWS]
    words = "zero keys take their share of the softmax, and tokens move to n, n+1, ...: a beginning, and no no-op"
    return held(plain, their_logits(zeros_of(lib), asked(lib, "prefix tuning", ROWS)), EXACT, DEFECT, words)


def zero_prefix_as_keys(lib):
    """The same against our keys and values of zeros."""
    model = zeros_of(lib)
    zeros = SoftPrompt(np.zeros(slots_shape("kv", CONFIG, P)), "kv")
    return held(our_logits(model, prompt=zeros), their_logits(model, asked(lib, "prefix tuning", ROWS)))


def zeros_of(lib):
    """PEFT's own zero prefix."""
    return lib.peft.get_peft_model(peer(lib), config_of(lib, "prefix tuning", init_weights="zero")).double().eval()


def loss_dtype(lib):
    """Of a float64 model: what precision its loss has."""
    model, arguments = tuned(lib, "prompt tuning"), asked(lib, "prompt tuning", ROWS[:1])
    theirs = model(**arguments, labels=arguments["input_ids"]).loss.dtype
    words = (
        "Transformers casts logits before the cross-entropy: about 1e-7 in a loss, 3e-8 in a gradient; for float64, "
        "compute the loss from the logits"
    )
    mine = traced(model)["loss"].dtype
    return Finding(str(mine), str(theirs).removeprefix("torch."), otherwise=CONVENTION, words=words)
