"""Where tokens begin behind slots, how much room there is for both, and prompts in a row."""

from dataclasses import replace

import numpy as np
import pytest
from carrying import random_model, states

from helpers import TINY
from minicompress.gpt2.generate import generate
from minicompress.prompts.carriers import DOORS, placed, start_of
from minicompress.prompts.soft_prompt import concatenate
from reading import KINDS, random_prompt

each_kind = pytest.mark.parametrize("kind", KINDS)


def test_where_tokens_begin():
    assert (start_of("compact", 5), start_of("unshifted", 5), start_of("logical", 5, 70)) == (5, 0, 70)
    assert start_of("logical", 5, 0) == 0


@pytest.mark.parametrize("positions, offset, words", [
    ("spread", None, "positions are 'spread'; they can be compact, logical, unshifted"),
    ("logical", None, "positions are 'logical', the offset is None; an offset belongs to 'logical' alone"),
    ("compact", 3, "positions are 'compact', the offset is 3"), ("unshifted", 0, "positions are 'unshifted', the offset is 0"),
])  # fmt: skip
def test_positions_that_do_not_exist(positions, offset, words):
    with pytest.raises(ValueError, match=words):
        start_of(positions, 4, offset)


def test_a_placed_door_moves_the_tokens_alone():
    model, prompt = random_model(), random_prompt("kv", TINY, 3, np.random.default_rng(0))
    here, there = (placed(DOORS["kv"], start).read(*model, prompt.slots)[0] for start in (3, 11))
    assert (here.start, there.start, there.length) == (3, 11, 3)
    assert all((a == b).all() for one, two in zip(here.past, there.past, strict=True) for a, b in zip(one, two, strict=True))


# A prompt that fits no model, or leaves no room: n_positions is 24.

ROOM = [  # carrier, P, positions, offset, the arithmetic of what is refused, or None
    ("embeddings", 23, "compact", None, None),
    ("embeddings", 24, "compact", None, "24 slots and a token from position 24 on need 25"),
    ("embeddings", 24, "unshifted", None, None),
    ("embeddings", 25, "unshifted", None, "25 slots need 25"),
    ("embeddings", 3, "logical", 23, None),
    ("embeddings", 3, "logical", 24, "3 slots and a token from position 24 on need 25"),
    ("embeddings", 30, "logical", 2, "30 slots need 30"),
    ("hidden", 23, "compact", None, None),
    ("hidden", 30, "compact", None, "30 slots and a token from position 30 on need 31"),
    ("hidden", 30, "unshifted", None, None),
    ("hidden", 30, "logical", 2, None),
    ("kv", 23, "compact", None, None),
    ("kv", 24, "compact", None, "24 slots and a token from position 24 on need 25"),
    ("kv", 1000, "unshifted", None, None),
    ("kv", 1000, "logical", 23, None),
    ("kv", 1000, "logical", 1023, "1,000 slots and a token from position 1,023 on need 1,024"),
]


@pytest.mark.parametrize("carrier, P, positions, offset, words", ROOM)
def test_room_for_slots_and_a_token(carrier, P, positions, offset, words):
    """What passes can be read with one token behind it; what is refused cannot, and says why with the numbers."""
    model = random_model()
    prompt = replace(random_prompt(carrier, TINY, P, np.random.default_rng(0)), positions=positions, offset=offset)
    if words is None:
        prompt.check_model(TINY)
        assert np.isfinite(states(model, prompt, [[1]])).all()
        return
    with pytest.raises(ValueError, match=f"some prompt: n_positions is 24; {words}$"):
        prompt.check_model(TINY, "some prompt")
    with pytest.raises(ValueError, match="positions are needed"):
        states(model, prompt, [[1]])


@pytest.mark.parametrize("kind, words", [
    ("embeddings", r"p: its embeddings are \[3, 10\]; this model needs \[3, 12\]"),
    ("hidden", r"p: its hidden are \[1, 3, 10\]; this model needs \[2, 3, 12\]"),
    ("kv", r"p: its kv are \[1, 2, 2, 3, 5\]; this model needs \[2, 2, 3, 3, 4\]"),
])  # fmt: skip
def test_a_prompt_of_another_model_s_size(kind, words):
    other = replace(TINY, n_embd=10, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=words):
        random_prompt(kind, other, 3, np.random.default_rng(0)).check_model(TINY, "p")


@each_kind
def test_the_last_position_can_be_written_at_and_no_more(kind):
    rng, model = np.random.default_rng(0), random_model()
    prompt = random_prompt(kind, TINY, 3, rng)
    row = [-1, -2, -3, 5] if prompt.in_rows else [5, 6]
    most = 24 - prompt.start - len(row)
    prefix = prompt.prefix(*model)
    assert len(generate(*model, [row], most, prefix)[0]) == most
    words = rf"n_positions is 24; {prompt.start} of prefix \+ {len(row)} of text \+ {most + 1} new tokens need 25"
    with pytest.raises(ValueError, match=words):
        generate(*model, [row], most + 1, prefix)


# In a row.


def test_prompts_of_different_kinds_are_no_row():
    rng = np.random.default_rng(0)
    of = lambda kind: random_prompt(kind, TINY, 2, rng)
    for one, two, words in [
        ("kv", "hidden", r"kv \(compact\), hidden \(compact\)"),
        ("kv", "kv, unshifted", r"kv \(compact\), kv \(unshifted\)"),
        ("embeddings", "in rows", r"embeddings \(compact\), embeddings \(template\)"),
        ("in rows", "in rows", "template"),
    ]:
        with pytest.raises(ValueError, match=f"must be of one carrier and one kind of positions; these are .*{words}"):
            concatenate([of(one), of(two)])
    for offsets in ((3, 8, 5), (8, 3, 5)):
        row = concatenate([replace(of("kv, logical"), offset=offset) for offset in offsets])
        assert row.offset == row.start == 8 and row.length == 6, "behind the longest context"
    alone = of("in rows")
    assert concatenate([alone]) is alone


def test_a_row_of_prompts_remembers_its_parts():
    one = replace(random_prompt("kv", TINY, 2, np.random.default_rng(0)), provenance={"model": "a", "steps": 3})
    two = replace(one, provenance={"model": "a", "steps": 4})
    assert concatenate([one, two]).provenance == {"model": "a", "parts": [one.provenance, two.provenance]}
