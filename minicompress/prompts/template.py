r"""Templates: where soft slots stand among hard tokens, in one line of text.

    [8]Review: {text}\nVerdict:[end 2: it is]

    template = (text | field | slots)*    without slots it is a pattern, and they stand in front or in every layer
    text     = characters that stand for themselves; \[ \] \{ \} \\ are [ ] { } \, and \n ends a line
    field    = {name}                     a text of the example
    slots    = [3]                        three new slots
             | [3: words]                 three that begin at the words' first tokens; fewer tokens are repeated
             | [: words]                  one for each token of the words
             | [name 3], [name 3: words], [name: words]   the same, named
             | [name]                     the named slots once more: the very same ones, tied

No space is dropped: [: it is] begins with the token of " it", as within a text, and [:it is] with that of "it".
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import groupby

import numpy as np

TEXT = re.compile(r"([^\[\]{}\\]+|\\[\[\]{}\\n])*")
NAME = re.compile(r"([^\W\d]\w*)?")
HEAD = re.compile(r"(?:([^\W\d]\w*)( ?))?([0-9]*)")  # of slots: name, space, number
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which is no text


@dataclass(frozen=True)
class Field:
    """A place that a text of the example fills."""

    name: str


@dataclass(frozen=True)
class Slots:
    """A block of slots: how many (None: one for each token of the words), where they begin, and their name."""

    count: int | None
    words: str | None = None
    name: str | None = None

    def begin(self, tokenizer):
        """For each slot the token whose embedding it begins at, or None."""
        if self.words is None:
            return [None] * self.count
        ids = tokenizer.encode(self.words).ids
        if not ids:
            raise ValueError(f"template: the words {quoted(self.words)} have no token for slots to begin at")
        return np.resize(ids, self.count or len(ids)).tolist()


@dataclass(frozen=True)
class Template:
    """What `parse` made of a text; parts are hard texts (str), `Field`s and `Slots`, in their order."""

    text: str
    parts: tuple

    @property
    def fields(self):
        """The names of the fields, each once, in their order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def places_slots(self):
        """Whether there are slots in it; without any it is a pattern of hard text and fields."""
        return any(isinstance(part, Slots) for part in self.parts)

    def blocks(self, tokenizer):
        """For each block of slots {slot number: the token it begins at, or None}; tied blocks are one dict."""
        known, found, P = {}, [], 0
        for place, part in enumerate(self.parts):
            if not isinstance(part, Slots):
                continue
            if (key := part.name or place) not in known:
                tokens = part.begin(tokenizer)
                known[key] = dict(enumerate(tokens, P))
                P += len(tokens)
            found.append(known[key])
        return found

    def slots(self, tokenizer):
        """P: how many different slots there are."""
        return len({slot for block in self.blocks(tokenizer) for slot in block})

    def initial_text_slots(self, tokenizer):
        """{slot number: token id} of the slots that begin at words."""
        pairs = [pair for block in self.blocks(tokenizer) for pair in block.items()]
        return {slot: token for slot, token in pairs if token is not None}

    def row(self, tokenizer, fields, room=None, where="the example"):
        """An example's fields {name: text} -> its token ids, in which -1 - j is slot j.

        Hard text and fields between two slots are tokenised as one string: without its slots, a row is
        the tokens of the filled text. Where it has more than `room` tokens, each field keeps its first
        m tokens, the same m for all: short fields stay whole, and with m + 1 the row would be too long.
        Raises ValueError, in which `where` names the example, for a field that is missing or no text,
        and where even empty fields leave the row too long.
        """
        texts = field_texts(self.fields, fields, where)
        row = self.fill(tokenizer, texts)
        return row if room is None or len(row) <= room else self.cut(tokenizer, texts, room, where)

    def fill(self, tokenizer, texts):
        """`row` of texts that are known to be there."""
        row, blocks = [], iter(self.blocks(tokenizer))
        for is_slots, parts in groupby(self.parts, lambda part: isinstance(part, Slots)):
            if is_slots:
                row += [-1 - slot for _ in parts for slot in next(blocks)]
            else:
                piece = "".join(texts[part.name] if isinstance(part, Field) else part for part in parts)
                row += tokenizer.encode(piece).ids
        return row

    def cut(self, tokenizer, texts, room, where):
        """`row` of texts that are too long for the room."""
        ids = {name: tokenizer.encode(text).ids for name, text in texts.items()}

        def kept(m):  # of the texts themselves: a character cut in half would decode as another one
            starts = {name: text[: len(tokenizer.decode(ids[name][:m]))] for name, text in texts.items()}
            return self.fill(tokenizer, starts)

        if len(bare := kept(0)) > room:
            soft = sum(token < 0 for token in bare)
            sizes = f"{soft} (slots) + {len(bare) - soft} (text) = {len(bare)}"
            raise ValueError(f"{where}: the template takes {sizes} tokens without its fields; there is room for {room}")
        longest = max(map(len, ids.values()))
        return kept(bisect_right(range(1, longest + 1), room, key=lambda m: len(kept(m))))


def field_texts(names, fields, where):
    """{name: text} of the fields that a template names; raises ValueError where one is missing or no text."""
    for name in names:
        if name not in fields:
            there = ", ".join(map(repr, fields)) or "none"
            raise ValueError(f"{where} has no field '{name}', which the template names; its fields: {there}")
        if not isinstance(fields[name], str):
            raise ValueError(f"{where}: its field '{name}' is of type {type(fields[name]).__name__}; a text is needed")
        if half := SURROGATE.search(fields[name]):
            raise ValueError(f"{where}: its field '{name}' is no text: {half[0]!r} is half of a surrogate pair")
    return {name: fields[name] for name in names}


# Texts of common templates, for `parse`. A block of no slots is left out.


def block(slots):
    return f"[{slots}]" if slots else ""


def front(slots, field="text"):
    """[PREFIX; x; y] of Li & Liang 2021, section 7.3: slots, then the text; the answer y follows the row."""
    return block(slots) + f"{{{field}}}"


def infix(slots, field="text"):
    """[x; INFIX; y] of the same section: the text, then slots; they act on the answer alone."""
    return f"{{{field}}}" + block(slots)


def both_sides(before, after, field="text"):
    """Slots before the text and other ones after it."""
    return front(before, field) + block(after)


def around_entity(before=3, between=3, field="entity"):
    """(3, sub, 3, obj) of P-tuning for a GPT (Liu et al. 2021, "GPT Understands, Too"); the object is predicted.

    The last 3 of its (3, sub, 3, obj, 3) is for models that look both ways. A GPT predicts the object
    before it reads anything behind it: slots there would have no gradient. The space before the subject
    makes it a word within a text, as in the authors' own rows; the object should begin with one too.
    """
    return block(before) + f" {{{field}}}" + block(between)


def escape(text):
    r"""Text -> a template's text that stands for it, in one line."""
    return re.sub(r"[\[\]{}\\]", r"\\\g<0>", text).replace("\n", "\\n")


def parse(text):
    """Text -> Template. Raises ValueError with the column, what is expected there and what was found."""
    if half := SURROGATE.search(text):
        raise mistake(text, half.start(), "text", "half of a surrogate pair")
    parts, named, at = [], {}, 0
    while at < len(text):
        if text[at] == "{":
            part, at = read_field(text, at + 1)
        elif text[at] == "[":
            part, at = read_slots(text, at + 1, named)
        elif text[at] in "]}":
            raise mistake(text, at, f"text, or \\{text[at]} for the bracket itself")
        else:
            part, at = read_text(text, at)
        parts.append(part)
    return Template(text, tuple(parts))


# Each reads on from column `at` and gives, with what it read, the column after it.


def read_text(text, at):
    found = TEXT.match(text, at)
    if text.startswith("\\", found.end()):
        raise mistake(text, found.end() + 1, "[ ] { } \\ or n after \\")
    return re.sub(r"\\(.)", lambda pair: "\n" if pair[1] == "n" else pair[1], found[0]), found.end()


def read_field(text, at):
    name = NAME.match(text, at)
    if not name[0]:
        raise mistake(text, at, "a field's name, as in {text}")
    return Field(name[0]), read_end(text, name.end(), "}", "} after the field's name")


def read_slots(text, at, named):
    """named: {name: its block} of those read before; a new one is added."""
    head = HEAD.match(text, at)
    (name, space, digits), at, words = head.groups(), head.end(), None
    if name in named:
        return named[name], read_end(text, head.end(1), "]", f"] because [{name}] has its slots from before")
    if digits and (len(digits) > 4 or not int(digits)):
        raise mistake(text, head.start(3), "a number from 1 to 9999", digits[:12])
    if space and not digits:
        raise mistake(text, at, "a number of slots")
    if text.startswith(":", at):
        words, at = read_text(text, at + 1)
        if not words:
            raise mistake(text, at, "words after the colon")
    elif name and not digits:
        raise mistake(text, at, f"a space and a number, or a colon and words, because [{name}] has no slots yet")
    elif not digits:
        raise mistake(text, at, "a number of slots, a name, or a colon and words")
    found = Slots(int(digits) if digits else None, words, name)
    if name:
        named[name] = found
    return found, read_end(text, at, "]", "] after the words" if words else "] or a colon and words")


def read_end(text, at, bracket, expected):
    if not text.startswith(bracket, at):
        raise mistake(text, at, expected)
    return at + 1


def mistake(text, at, expected, found=None):
    """The error, in one line, of a template that is wrong at the character `at`."""
    found = found or (quoted(text[at]) if at < len(text) else "the end")
    before = f", after {quoted('…' * (at > 30) + text[max(0, at - 30) : at])}" if at else ""
    return ValueError(f"template, column {at + 1}{before}: expected {expected}, found {found}")


def quoted(text):
    """Text in quotes, as it stands if it can be printed."""
    return f"'{text}'" if text.isprintable() else repr(text)
