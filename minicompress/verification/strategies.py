"""Hypothesis strategies for this project's arguments: shapes, arrays, models, rows, labels, soft prompts, setups.

Hypothesis draws sizes and a seed; numbers come from `default_rng(seed)`. So an example shrinks to small
sizes, and its numbers stay ordinary: no zero bias, no weight of one, nothing that hides a forgotten term.

    @given(normals("BTC", "C", "C"))
    def test_layernorm(arrays):
        check_gradient(layernorm, layernorm_backward, *arrays, leave_out=("weight", "bias"))
"""

import numpy as np
from hypothesis import strategies as st

from minicompress.gpt2 import Config
from minicompress.verification.cases import KINDS, random_params, random_prompt, with_slots
from minicompress.verification.setup import Setup

SIZES = {"B": (1, 3), "T": (1, 6), "S": (1, 8), "P": (1, 4), "C": (2, 12), "H": (1, 3), "D": (3, 5), "V": (2, 20),
         "L": (1, 3)}  # fmt: skip
IGNORED = -100


def seeds():
    """A seed for default_rng."""
    return st.integers(0, 2**32 - 1)


def sizes(letters, **ranges):
    """{letter: size} of each letter of "BTC": batch, tokens, keys, slots, channels, heads, width, vocabulary, layers.

    ranges: other ones than SIZES, as T=(2, 9), and of other letters. A range of one number is that number.
    """
    known = SIZES | {letter: one if isinstance(one, tuple) else (one, one) for letter, one in ranges.items()}
    return st.fixed_dictionaries({letter: st.integers(*known[letter]) for letter in letters})


@st.composite
def normals(draw, *shapes, scale=1.0, dtype=np.float64, **ranges):
    """A list of arrays of normal numbers, one for each shape: "BTC" or "1HPD"; a letter is one size in all of them."""
    letters = sorted({letter for shape in shapes for letter in shape if not letter.isdigit()})
    found, rng = draw(sizes(letters, **ranges)), np.random.default_rng(draw(seeds()))
    size = lambda letter: int(letter) if letter.isdigit() else found[letter]
    return [(scale * rng.standard_normal([size(letter) for letter in shape])).astype(dtype) for shape in shapes]


@st.composite
def configs(draw, **fixed):
    """A tiny GPT-2's Config: tied or not, its MLP 4 C wide or of another width. fixed: fields that are not drawn."""
    H = fixed.get("n_head") or draw(st.integers(*SIZES["H"]))
    fields = {
        "vocab_size": st.integers(*SIZES["V"]),
        "n_positions": st.integers(16, 24),
        "n_embd": st.integers(*SIZES["D"]).map(lambda D: H * D),
        "n_layer": st.integers(*SIZES["L"]),
        "n_head": st.just(H),
        "n_inner": st.sampled_from([None, 5]),
        "tie_word_embeddings": st.booleans(),
    }
    return Config(**{name: draw(field) for name, field in fields.items() if name not in fixed} | fixed)


@st.composite
def models(draw, dtype=np.float64, **fixed):
    """(params, config): random weights of a drawn config."""
    config = draw(configs(**fixed))
    return random_params(config, np.random.default_rng(draw(seeds())), dtype), config


@st.composite
def ragged_rows(draw, vocabulary, most_rows=4, most_tokens=6):
    """Lists of token ids, one to `most_rows` of them, of unequal lengths; the first has two tokens or more."""
    rng, B = np.random.default_rng(draw(seeds())), draw(st.integers(1, most_rows))
    lengths = [draw(st.integers(1 + (b == 0), most_tokens)) for b in range(B)]
    return [rng.integers(vocabulary, size=n).tolist() for n in lengths]


@st.composite
def ragged_labels(draw, rows, vocabulary):
    """For each id of the rows a label, -100 where it is ignored; a slot is. The first row's last token is scored."""
    rng, share = np.random.default_rng(draw(seeds())), draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    drop = lambda: rng.random() < share
    labels = [[IGNORED if i < 0 or drop() else int(rng.integers(vocabulary)) for i in row] for row in rows]
    last = max(place for place, i in enumerate(rows[0]) if i >= 0)
    labels[0][last] = int(rng.integers(vocabulary))
    return labels


@st.composite
def soft_prompts(draw, config, kinds=tuple(KINDS), most_slots=4, room=6):
    """A SoftPrompt of a drawn kind: its carrier, its positions, with log-masses or without, or placed by a template.

    Wherever its tokens begin, `room` of them have a position.
    """
    P, kind = draw(st.integers(1, most_slots)), draw(st.sampled_from(kinds))
    offset = draw(st.integers(0, config.n_positions - room))
    return random_prompt(kind, config, P, np.random.default_rng(draw(seeds())), offset=offset)


@st.composite
def setups(draw, kinds=(None, *KINDS), losses=("ce", "kl"), **fixed):
    """A Setup: a model, ragged rows with labels, and before them a prompt of one of the kinds (None: no prompt).

    With "kl" there is a teacher's context. fixed: fields of the Config that are not drawn.
    """
    model = draw(models(**fixed))
    kind, V = draw(st.sampled_from(kinds)), model[1].vocab_size
    prompt = draw(soft_prompts(model[1], (kind,))) if kind else None
    rows = draw(ragged_rows(V))
    if prompt is not None and prompt.in_rows:
        rows = with_slots(rows, prompt.length, np.random.default_rng(draw(seeds())))
    labels = draw(st.none() | ragged_labels(rows, V))
    contexts = {"ce": st.none(), "kl": st.lists(st.integers(0, V - 1), min_size=1, max_size=6)}
    return Setup(model, rows, prompt, labels, teacher_context=draw(contexts[draw(st.sampled_from(losses))]))
