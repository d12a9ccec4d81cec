"""Templates: rows by hand, any template written out and read back, tokenisation across its pieces, every mistake."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from templating import CHECKS, COMMON, EMBEDDED, FILLINGS, LETTERS, MISTAKES, boundaries_error, cuts_error, mistake_of

import weights_loader
from minicompress.prompts.template import Field, Slots, Template, escape, front, parse

texts = st.text(st.characters(codec="utf-8")) | st.text("[]{}\\n: 3at", min_size=1)
names = st.from_regex(r"[^\W\d]\w*", fullmatch=True) | st.sampled_from(["a", "b", "text"])
counts = st.integers(1, 9) | st.just(9999)
words = texts.filter(bool)


@pytest.fixture(scope="module")
def gpt2(data):
    return weights_loader.load_tokenizer(data / "gpt2_tokenizer")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_by_hand(check):
    assert check() == 0


# What is written is what is read.


@st.composite
def part_lists(draw, words=words, counts=counts, names=names):
    """Parts of a template, no two texts side by side, named slots at times again."""
    parts, named = [], {}
    for kind in draw(st.lists(st.sampled_from(["text", "field", "slots", "again"]), max_size=8)):
        if kind == "text" and not (parts and isinstance(parts[-1], str)):
            parts.append(draw(words))
        elif kind == "field":
            parts.append(Field(draw(names)))
        elif kind == "again" and named:
            parts.append(named[draw(st.sampled_from(sorted(named)))])
        elif kind == "slots":
            count, begin = draw(st.tuples(counts, st.none() | words) | st.tuples(st.none(), words))
            parts.append(Slots(count, begin, draw(st.none() | names.filter(lambda name: name not in named))))
            if parts[-1].name:
                named[parts[-1].name] = parts[-1]
    return parts


def written(parts):
    """The text of these parts."""
    pieces, seen = [], set()
    for part in parts:
        if isinstance(part, str):
            pieces.append(escape(part))
        elif isinstance(part, Field):
            pieces.append("{" + part.name + "}")
        elif part.name in seen:
            pieces.append(f"[{part.name}]")
        else:
            head = " ".join(str(value) for value in (part.name, part.count) if value is not None)
            pieces.append(f"[{head}" + (f":{escape(part.words)}]" if part.words else "]"))
            seen |= {part.name} - {None}
    return "".join(pieces)


@given(parts=part_lists())
def test_any_template_written_out_is_read_back(parts):
    text = written(parts)
    assert parse(text) == Template(text, tuple(parts))


@given(text=texts)
def test_any_text_escaped_comes_back_and_takes_one_line(text):
    assert "\n" not in escape(text)
    assert "".join(part for part in parse(escape(text) + "[1]").parts if isinstance(part, str)) == text


@given(text=texts)
def test_a_line_end_may_stand_as_it_is(text):
    as_it_is = re.sub(r"([\[\]{}\\])", r"\\\1", text)
    assert parse("[1]" + as_it_is).parts == parse("[1]" + escape(text)).parts


# Mistakes.


@pytest.mark.parametrize(
    "text, column, before, expected, found", MISTAKES, ids=[ascii(case[0])[:40] for case in MISTAKES]
)
def test_a_mistake_is_said_with_its_column_in_one_line(text, column, before, expected, found):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value) == mistake_of(column, before, expected, found)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@given(text=st.text("[]{}\\n: 3a0é\n", max_size=12) | st.text() | st.text(st.characters(categories=["Cs", "L", "P"])))
@example("[" * 3000)
@example("[1]" * 3000)
@example("\\\\" * 50_000)
@example("a" * 100_000 + "]")
def test_whatever_the_text_it_is_read_or_refused_in_one_line(text):
    try:
        found = parse(text)
    except ValueError as error:
        place = re.match(r"template, column (\d+)(, after .*)?: expected .*, found ", str(error))
        assert place and 1 <= int(place[1]) <= len(text) + 1, error
        assert len(str(error).splitlines()) == 1
    else:
        assert found.text == text and found.places_slots == (set(map(type, found.parts)) - {str, Field} == {Slots})


@given(parts=part_lists(), data=st.data())
def test_what_stands_before_a_mistake_is_not_blamed(parts, data):
    """A bracket too many: the column is that of the bracket, whatever else the template holds."""
    text = written(parts)
    with pytest.raises(
        ValueError, match=rf"template, column {len(text) + 1}(, after .*)?: expected text, or .*, found '\]'"
    ):
        parse(text + "]" + data.draw(texts))


@pytest.mark.parametrize("text, fields, room, told", FILLINGS, ids=range(len(FILLINGS)))
def test_what_cannot_be_filled_is_said_with_the_example_s_place(text, fields, room, told):
    template = parse(text)
    with pytest.raises(ValueError) as error:
        template.row(LETTERS, fields, room, where="data.jsonl, line 12")
    assert str(error.value) == told.replace("f, line 3", "data.jsonl, line 12") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^the example"):
        template.row(LETTERS, fields, room)


class Mute:
    def encode(self, text):
        return type("Encoding", (), {"ids": []})


def test_words_without_a_token_give_no_slots():
    with pytest.raises(ValueError, match="^template: the words ' x' have no token for slots to begin at$"):
        parse("[: x]").slots(Mute())


# Rows.


def reference(parts, values, tokenizer):
    """The row made another way: the filled text is split at its slots, and each piece tokenised."""
    pieces, starts, total = [[""]], {}, 0
    for place, part in enumerate(parts):
        if isinstance(part, Slots):
            key = ("name", part.name) if part.name else place
            if key not in starts:
                size = part.count or len(tokenizer.encode(part.words).ids)
                starts[key], total = range(total, total + size), total + size
            pieces += [[-1 - slot] for slot in starts[key]] + [[""]]
        else:
            pieces[-1][0] += values[part.name] if isinstance(part, Field) else part
    row = []
    for (piece,) in pieces:
        row += tokenizer.encode(piece).ids if isinstance(piece, str) else [piece]
    return row, total


small = part_lists(counts=st.integers(1, 4), names=st.sampled_from(["a", "b", "c"]), words=st.text(min_size=1))


def filled_in(data, parts, texts=texts):
    return {part.name: data.draw(texts) for part in parts if isinstance(part, Field)}


@given(parts=small, data=st.data())
def test_rows_are_pieces_between_slots_tokenised_whole(parts, data):
    template, values = parse(written(parts)), filled_in(data, parts)
    row, total = reference(parts, values, EMBEDDED)
    assert template.row(EMBEDDED, values) == row
    assert template.slots(EMBEDDED) == total and set(template.fields) == set(values)


@given(parts=small, data=st.data())
def test_slots_are_numbered_from_0_and_each_stands_in_the_row(parts, data):
    template = parse(written(parts))
    soft = [-1 - token for token in template.row(EMBEDDED, filled_in(data, parts)) if token < 0]
    P = template.slots(EMBEDDED)
    assert list(dict.fromkeys(soft)) == list(range(P))  # first met in their order
    assert set(template.initial_text_slots(EMBEDDED)) <= set(range(P))
    blocks = [part for part in parts if isinstance(part, Slots)]
    assert len(soft) == sum(part.count or len(EMBEDDED.encode(part.words).ids) for part in blocks)
    assert (len(soft) == P) == (len({part.name or i for i, part in enumerate(blocks)}) == len(blocks))


@given(before=texts, text=texts, after=texts)
def test_without_its_slots_a_row_is_the_plain_tokens_of_the_filled_text(before, text, after):
    template = parse(f"[3]{escape(before)}{{text}}{escape(after)}")
    assert template.row(EMBEDDED, {"text": text}) == [-1, -2, -3, *EMBEDDED.encode(before + text + after).ids]
    assert Template("", template.parts[1:]).row(EMBEDDED, {"text": text}) == EMBEDDED.encode(before + text + after).ids


@given(words=words, count=st.integers(1, 12))
def test_slots_begin_at_the_first_tokens_of_their_words(words, count):
    ids = EMBEDDED.encode(words).ids
    assert parse(f"[:{escape(words)}]").initial_text_slots(EMBEDDED) == dict(enumerate(ids))
    found = parse(f"[1][{count}:{escape(words)}]").initial_text_slots(EMBEDDED)
    assert found == {1 + slot: ids[slot % len(ids)] for slot in range(count)}


# Room.


@given(parts=small, data=st.data(), room=st.integers(0, 60))
def test_a_row_that_must_be_cut_fits_and_could_not_be_longer(parts, data, room):
    values = filled_in(data, parts, st.text("dogs and cats 🙂é\n", max_size=40))
    template, ids = parse(written(parts)), {name: EMBEDDED.encode(text).ids for name, text in values.items()}

    def first(m):
        starts = {name: text[: len(EMBEDDED.decode(ids[name][:m]))] for name, text in values.items()}
        return reference(parts, starts, EMBEDDED)[0]

    rows = [first(m) for m in range(1 + max(map(len, ids.values()), default=0))]
    if len(rows[-1]) <= room:
        assert template.row(EMBEDDED, values, room) == rows[-1]
    elif len(rows[0]) > room:
        soft = sum(token < 0 for token in rows[0])
        sizes = f"{soft} (slots) + {len(rows[0]) - soft} (text) = {len(rows[0])} tokens"
        with pytest.raises(ValueError, match=re.escape(f"takes {sizes} without its fields; there is room for {room}")):
            template.row(EMBEDDED, values, room)
    else:
        found = template.row(EMBEDDED, values, room)
        assert len(found) <= room
        assert any(row == found and len(longer) > room for row, longer in zip(rows, rows[1:], strict=False))


def test_fields_that_fit_are_not_cut():
    template = parse("[2]{a} {b}")
    whole = template.row(LETTERS, {"a": "ab", "b": "c"})
    assert template.row(LETTERS, {"a": "ab", "b": "c"}, len(whole)) == whole
    assert template.row(LETTERS, {"a": "ab", "b": "c"}, 10**9) == whole


# The real vocabulary.


def test_ids_of_gpt2(gpt2):
    assert parse("[1]Hello{x}").row(gpt2, {"x": " world"}) == [-1, 15496, 995]
    assert parse("[1]Hel{x}").row(gpt2, {"x": "lo"}) == [-1, 15496]
    assert parse("{x}[1] world").row(gpt2, {"x": "Hello"}) == [15496, -1, 995]
    assert parse("[2: world Hello]").initial_text_slots(gpt2) == dict(enumerate(gpt2.encode(" world Hello").ids))
    assert parse("[: world]").initial_text_slots(gpt2) == {0: 995}
    assert parse("{x}[1]").row(gpt2, {"x": "a<|endoftext|>b"}) == [64, 50256, 65, -1]


def test_boundaries_and_cuts_with_gpt2(gpt2):
    assert cuts_error(gpt2) == 0
    assert boundaries_error(gpt2) == 0


@given(parts=small, data=st.data())
def test_rows_of_gpt2_are_pieces_between_slots_tokenised_whole(gpt2, parts, data):
    values = filled_in(data, parts)
    assert parse(written(parts)).row(gpt2, values) == reference(parts, values, gpt2)[0]


# The common ones.


@pytest.mark.parametrize("text", [text for *_, text in COMMON])
def test_common_templates_can_be_read(text):
    template = parse(text)
    assert template.text == text and len(template.fields) == 1 and template.slots(LETTERS) > 0


def test_a_template_without_slots_is_a_pattern():
    pattern = parse(front(0))
    assert not pattern.places_slots and parse(front(1)).places_slots
    assert pattern.slots(LETTERS) == 0 and pattern.row(LETTERS, {"text": "ab"}) == LETTERS.encode("ab").ids
    assert not parse("").places_slots and not parse(escape("[1]")).places_slots


def test_templates_are_values():
    assert parse("[2]{a}") == parse("[2]{a}") != parse("[3]{a}")
    assert len({parse("[2]{a}"), parse("[2]{a}")}) == 1
    with pytest.raises(AttributeError):
        parse("[2]{a}").text = ""
