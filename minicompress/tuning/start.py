"""Where tuning begins: drawn, at words of the template, or at the slots of another prompt, even of another model."""

from dataclasses import replace

import numpy as np

from minicompress.arrays import to_host
from minicompress.compression.problem import place
from minicompress.prompts.carriers import lift
from minicompress.prompts.initialise import from_prompt, initialise, recycling_map
from minicompress.prompts.soft_prompt import SLOT_AXIS
from minicompress.prompts.template import parse
from minicompress.trees import flatten
from minicompress.tuning.recipe import ENCODERS, parameterise


def begin(model, recipe, door, given=None):
    """The first raw arrays where the model is, the door that takes them, and bake. given: a SoftPrompt to begin at."""
    if given:
        check_given(given)
    rng = np.random.default_rng((recipe.seed, 2))
    encoder = recipe.parameterisation in ENCODERS
    start = None if encoder else to_host(initial_slots(model, recipe, rng, given))
    raw, door, bake = parameterise(recipe, model.pair[1], door, rng, start, model.wte.dtype)
    if encoder and given:
        raw = kept_by(given, raw, recipe.parameterisation)
    return place(raw, model.wte), door, bake


def check_given(given):
    """Raises ValueError where another prompt is more than its slots: begun at them alone, it would be another one."""
    if given.beta is not None and to_host(given.beta).any():
        raise ValueError("--init-from has log-masses of its keys (β), which tune has not; give one made without --beta")
    if given.positions == "logical":
        where = f"has texts begin at position {given.offset:,} (logical), which tune does not"
        raise ValueError(f"--init-from {where}; give one of --positions compact or unshifted")


def initial_slots(model, recipe, rng, given=None):
    """The first slots of a carrier; those that the template lets begin at words are the words' embeddings."""
    if given is None:
        slots = initialise(model.pair, model.tokenizer, recipe.init, recipe.slots, recipe.carrier, rng)
    elif given.carrier == recipe.carrier:
        slots = from_prompt(given.slots, recipe.slots, SLOT_AXIS[recipe.carrier])
    elif given.carrier == "embeddings":
        slots = lift(*model.pair, from_prompt(given.slots, recipe.slots), recipe.carrier)
    else:
        raise ValueError(f"--init-from has slots as {given.carrier}; --method {recipe.method} needs {recipe.carrier}")
    for slot, token in parse(recipe.template).initial_text_slots(model.tokenizer).items():
        slots[slot] = model.wte[token]
    return slots


def kept_by(given, raw, how):
    """The raw arrays that another prompt's file keeps; raises ValueError where they are not of this shape."""
    kept = given.raw or {}
    shapes = [{name: a.shape for name, a in flatten(tree).items()} for tree in (kept, raw)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"--init-from keeps no {how} of this size to go on from; its slots alone do not make one")
    return kept


def recycle(prompt, source, model):
    """A prompt of one model for another of the same vocabulary (Lester et al. 2022). Both as `Model`s.

    Raises ValueError for another vocabulary, and for slots that are no embeddings.
    """
    if prompt.carrier != "embeddings":
        raise ValueError(f"--init-model maps embeddings from model to model; --init-from has {prompt.carrier}")
    if source.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ValueError("--init-model has another vocabulary; a map between embeddings needs the same tokens")
    there, here = (to_host(m.wte).astype(np.float64) for m in (source, model))
    slots = to_host(prompt.slots).astype(np.float64) @ recycling_map(there, here)
    return replace(prompt, slots=place(slots, model.wte), raw=None, initial=None)
