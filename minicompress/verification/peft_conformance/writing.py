"""Greedy text: with and without their cache, alone and in a batch padded on the left, as `generate` wants it."""

import numpy as np

from minicompress.gpt2 import embed, forward
from minicompress.gpt2 import logits as head
from minicompress.gpt2.generate import generate
from minicompress.gpt2.model import look_up, positions
from minicompress.verification.oracles import relative_error
from minicompress.verification.peft_conformance.bench import (
    CONFIG,
    ROWS,
    P,
    asked,
    encoder_of,
    ours,
    prompt_of,
    to_numpy,
    tuned,
)
from minicompress.verification.peft_conformance.finding import DEFECT, SINGLE, Finding

TOKENS = 6
REPAIR = (
    "pass use_cache=False, or keep Transformers below 5.24: that one calls past_key_values `cache`, and PEFT 0.21.2 "
    "looks for the old name"
)
ANEW = "the prompt is put in anew before every later token"
LOST = "the prefix is lost, and the text is the plain model's at positions n, n+1, ..."


def their_text(lib, model, kind, rows, **options):
    """-> what they write behind each row (B, n), and the logits that chose it (B, n, V), cast to float32."""
    return greedy(model, asked(lib, kind, rows, left=True) | options)


def greedy(model, arguments):
    out = model.generate(**arguments, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
                         return_dict_in_generate=True, output_logits=True)  # fmt: skip
    return to_numpy(out.sequences)[:, -TOKENS:].tolist(), np.stack([to_numpy(x) for x in out.logits], axis=1)


def choosing(model, prompt, row, text):
    """Our logits (n, V) that choose each token of a text behind a row, everything read at once."""
    params, prefix = ours(model)[0], prompt.prefix(*ours(model))
    hidden, _, _ = forward(params, CONFIG, embed(params, [row + text[:-1]], prefix.start), prefix.past, keep="nothing")
    return head(params, hidden)[0, len(row) - 1 :]


def compared(lib, kind, rows, words, **options):
    """Our greedy text and theirs, of a row that differs; the difference is that of the logits, given their text."""
    model = tuned(lib, kind)
    return judged(model, rows, *their_text(lib, model, kind, rows, **options), words)


def judged(model, rows, texts, found, words=""):
    """Their texts and logits against ours."""
    prompt = prompt_of(encoder_of(model))
    mine = generate(*ours(model), rows, TOKENS, prompt.prefix(*ours(model)))
    expected = [choosing(model, prompt, row, text) for row, text in zip(rows, texts, strict=True)]
    error = max(relative_error(theirs, each) for theirs, each in zip(found, expected, strict=True))
    shown = next((b for b in range(len(rows)) if mine[b] != texts[b]), 0)
    if error > SINGLE and callable(words):
        words = words(model, prompt, rows, texts, found)
    return Finding(spelled(mine[shown]), spelled(texts[shown]), error, SINGLE, DEFECT, words)


def spelled(ids):
    return " ".join(map(str, ids))


def uncached(lib, kind):
    """One row, everything read again for each token."""
    return compared(lib, kind, ROWS[:1], "", use_cache=False)


def cached(lib, kind):
    """One row, as `generate` does it unless told otherwise."""
    return compared(lib, kind, ROWS[:1], what_the_cache_made)


def left_batch(lib, kind):
    """Rows of unequal length in one batch, without a cache."""
    words = "the prompt stands left of the pads; put the pads before it, by inputs_embeds"
    return compared(lib, kind, ROWS, words, use_cache=False)


def left_by_hand(lib):
    """The batch without PEFT's `generate`: the pads before the slots, by inputs_embeds, and with the cache."""
    model, width = tuned(lib, "prompt tuning"), P + max(map(len, ROWS))
    gpt, slots = model.get_base_model(), model.get_prompt(1)[0]
    x, mask = slots.new_zeros(len(ROWS), width, CONFIG.n_embd), lib.torch.zeros(len(ROWS), width, dtype=lib.torch.long)
    for b, row in enumerate(ROWS):
        x[b, -P - len(row) :] = lib.torch.cat([slots, gpt.transformer.wte(lib.torch.as_tensor(row))])
        mask[b, -P - len(row) :] = 1
    return judged(model, ROWS, *greedy(gpt, {"inputs_embeds": x.detach(), "attention_mask": mask}))


def what_the_cache_made(model, prompt, rows, texts, found):
    """Says which wrong computation their cached logits are, where it is the one that is known."""
    other = plain_behind if prompt.carrier == "kv" else anew_behind
    if relative_error(found[0], other(ours(model)[0], prompt, rows[0], texts[0])) <= SINGLE:
        return f"{LOST if prompt.carrier == 'kv' else ANEW}; {REPAIR}"
    return "pass use_cache=False"


def plain_behind(params, prompt, row, text):
    """The logits (n, V) of the text without any prompt, at the positions that it has behind one."""
    hidden, _, _ = forward(params, CONFIG, embed(params, [row + text[:-1]], prompt.start), keep="nothing")
    return head(params, hidden)[0, len(row) - 1 :]


def anew_behind(params, prompt, row, text):
    """The logits (n, V) where the slots are read again before every token after the first, and all of it is kept."""
    past, found = None, []
    for ids in [row, *([token] for token in text[:-1])]:
        x = np.concatenate([prompt.slots[None], look_up(params["wte"]["weight"], np.array([ids]))], axis=1)
        before = past[0][0].shape[2] if past else 0
        hidden, present, _ = forward(params, CONFIG, x + positions(params, x.shape[1], before), past, keep="nothing")
        past = joined(past, present) if past else present
        found.append(head(params, hidden)[0, -1])
    return np.stack(found)


def joined(past, present):
    """Keys and values of two pieces, one behind the other."""
    both = zip(past, present, strict=True)
    return [tuple(np.concatenate(pair, axis=2) for pair in zip(*layers, strict=True)) for layers in both]
