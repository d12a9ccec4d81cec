"""One step of training an autocompressor: segments, slots, questions behind the last state, every weight's gradient, AdamW.

A GPT-2 of 6 layers, 512 wide, with 8,192 words; four contexts of four segments of 32 tokens, 8 slots a
segment, no horizon; behind each last state four rows of 24 tokens, of which the last 8 are scored. Ours is
`compressor_gradient`, `clip_by_global_norm` and `adamw_step`.

- `usual` is the recurrence as one writes it: for each context whole passes over [state, segment, slots],
  the last states joined to the state, one more pass over [state, row] for each row.
- `careful` is the best we could write in PyTorch with Transformers: all contexts in one batch, since here
  their segments are equally long; a state is read once for its rows, and its keys and values, with their
  gradient, expanded to them; the head is applied only at scored places; GELU and AdamW are fused.

Fair, because all three start from the same weights and slots, train all of them, clip, decay nothing, and
compute the same loss and the same gradient. Ours takes contexts one by one, each in a thread, as in
training, where segments differ in length.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.compression.amortised import Asked, Example, compressor_gradient
from minicompress.compression.queries import Query
from minicompress.compression.segments import METHODS
from minicompress.gpt2 import Config
from minicompress.training.adamw import adamw_init, adamw_step, clip_by_global_norm
from minicompress.training.shards import Shards

BETAS, SCORED = (0.9, 0.99), 8


class Size(NamedTuple):
    config: Any
    contexts: int
    segments: int
    segment: int
    slots: int
    rows: int
    tokens: int  # of a row; the last SCORED are scored


MODERATE = Config(vocab_size=8192, n_positions=512, n_embd=512, n_layer=6, n_head=8)
FULL = Size(MODERATE, contexts=4, segments=4, segment=32, slots=8, rows=4, tokens=24)
TINY = Size(models.TINY, contexts=3, segments=3, segment=5, slots=2, rows=2, tokens=12)


def data(size):
    """Contexts (E, S, T), rows (E, B, T) and first slots (K, C)."""
    rng, V = np.random.default_rng(0), size.config.vocab_size
    contexts = rng.integers(V, size=(size.contexts, size.segments, size.segment))
    rows = rng.integers(V, size=(size.contexts, size.rows, size.tokens))
    return contexts, rows, 0.1 * rng.standard_normal((size.slots, size.config.n_embd), np.float32)


@contextmanager
def ours(size):
    contexts, rows, slots = data(size)
    raw = {"slots": slots, "params": models.our_params(size.config)}
    asked = lambda some: [Asked(size.segments - 1, [Query(row, size.tokens - SCORED) for row in some], "likelihood")]
    examples = [Example(c, asked(r)) for c, r in zip(contexts.tolist(), rows.tolist(), strict=True)]
    state, pair = adamw_init(raw), (raw["params"], size.config)
    with Shards() as shards:

        def step():
            loss, grads = compressor_gradient(raw, pair, METHODS["autocompressor"], examples, shards)
            of_slots, norm = float(np.linalg.norm(grads["slots"])), clip_by_global_norm(grads, 1.0)
            adamw_step(raw, grads, state, models.LR, BETAS)
            return loss, of_slots, norm

        yield step


def pytorch(read, fused, **options):
    """read(model, slots, contexts, rows) gives the loss."""

    @contextmanager
    def side(size):
        import torch

        model = models.torch_model(size.config, **options)
        contexts, rows, slots = map(torch.from_numpy, data(size))
        learned = [slots.requires_grad_(), *(weight.requires_grad_() for weight in model.parameters())]
        optimiser = torch.optim.AdamW(learned, models.LR, BETAS, weight_decay=0.0, fused=fused)

        def step():
            optimiser.zero_grad()
            loss = read(model, slots, contexts, rows)
            loss.backward()
            of_slots = slots.grad.norm().item()
            norm = torch.nn.utils.clip_grad_norm_(learned, 1.0).item()
            optimiser.step()
            return loss.item(), of_slots, norm

        yield step

    return side


def one_by_one(model, slots, contexts, rows):
    """Each context alone, whole passes over everything that is seen."""
    import torch
    from torch.nn.functional import cross_entropy

    wte, losses = model.transformer.wte, []
    for segments, asked in zip(contexts, rows, strict=True):
        state = slots[:0]
        for ids in segments:
            x = torch.cat([state, wte(ids), slots])[None]
            state = torch.cat([state, model.transformer(inputs_embeds=x).last_hidden_state[0, -len(slots) :]])
        for row in asked:
            logits = model(inputs_embeds=torch.cat([state, wte(row)])[None]).logits[0, -SCORED - 1 : -1]
            losses.append(cross_entropy(logits, row[-SCORED:]))
    return torch.stack(losses).mean()


def all_at_once(model, slots, contexts, rows):
    """All contexts in a batch; the last states are read once, for all of their rows."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import DynamicCache

    wte, (E, B, _), state = model.transformer.wte, rows.shape, slots[:0].expand(len(contexts), -1, -1)
    for ids in contexts.unbind(1):
        x = torch.cat([state, wte(ids), slots.expand(E, -1, -1)], 1)
        state = torch.cat([state, model.transformer(inputs_embeds=x).last_hidden_state[:, -len(slots) :]], 1)
    read = model.transformer(inputs_embeds=state, use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in read.layers]  # each (E, H, P, D)
    past = DynamicCache([tuple(x.repeat_interleave(B, 0) for x in pair) for pair in pairs])
    ids = rows.flatten(0, 1)
    hidden = model.transformer(ids[:, :-1], past_key_values=past, use_cache=True).last_hidden_state[:, -SCORED:]
    return cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, -SCORED:].flatten())


BENCHMARK = Benchmark(
    "compressor-step", "autocompressor, one training step: 4 x 4 segments of 32 tokens, 8 slots, 4 x 4 rows", FULL, TINY,
    {"ours": ours, "usual": pytorch(one_by_one, fused=None), "careful": pytorch(all_at_once, fused=True, **models.CAREFUL)},
    [*time_and_memory("usual"), *time_and_memory("careful")],
    list,
)  # fmt: skip
