"""Checks of templates, each a function that returns how many cases are not as by hand, which planted bugs share."""

import weights_loader
from letters import Letters
from minicompress.prompts import template

LETTERS = Letters()  # "\n" 0, " " 1, "." 3, ":" 4, "Q" 5, "A" 6, "a" 7, "b" 8, ...
EMBEDDED = weights_loader.load_tokenizer(weights_loader.EMBEDDED)

ROWS = [
    ("[2]ab", {}, [-1, -2, 7, 8]),
    ("{t}[2]", {"t": "ab"}, [7, 8, -1, -2]),
    (r"Q: {t}\nA:[end 2][: no]", {"t": "cat"}, [5, 4, 1, 9, 7, 26, 0, 6, 4, -1, -2, -3, -4, -5]),
    ("[a 2]b[c 1][a]{t}[c][1]", {"t": "d"}, [-1, -2, 8, -3, -1, -2, 10, -3, -4]),
    ("[end:ab]c[end]", {}, [-1, -2, 9, -1, -2]),
    ("[3:ab][1]", {}, [-1, -2, -3, -4]),
    ("{t}{t}[1]{t}", {"t": "a"}, [7, 7, -1, 7]),
    ("[1] {t} [1]", {"t": "a"}, [-1, 1, 7, 1, -2]),
    ("[1]{t}", {"t": ""}, [-1]),
    ("{t}[1]", {"t": "b", "not named": 3}, [8, -1]),
    ("[ä_1 2]{ß}[ä_1]", {"ß": "a"}, [-1, -2, 7, -1, -2]),
    ("", {}, []),
    ("ab", {}, [7, 8]),
    (r"Q: {t}\nA:", {"t": "cat"}, [5, 4, 1, 9, 7, 26, 0, 6, 4]),
]
BEGINNINGS = [  # slots, {slot: token}
    ("[2]", 2, {}),
    ("[:ab]", 2, {0: 7, 1: 8}),
    ("[: ab]", 3, {0: 1, 1: 7, 2: 8}),
    ("[3: abcde]", 3, {0: 1, 1: 7, 2: 8}),
    ("[1:abc]", 1, {0: 7}),
    ("[5:ab]", 5, {0: 7, 1: 8, 2: 7, 3: 8, 4: 7}),
    ("[2][end 2:ab]x[end][:c]", 5, {2: 7, 3: 8, 4: 9}),
    (r"[:a\nb]", 3, {0: 7, 1: 0, 2: 8}),
    ("[:d][:d][1][1]", 4, {0: 10, 1: 10}),
    ("[a:d]{t}[1][b:d][a]", 3, {0: 10, 2: 10}),  # equal words are not tied; names are
    ("", 0, {}),
    ("Q: {t}", 0, {}),
]
BOUNDARIES = [  # template, {field: text}, the texts that are each tokenised as a whole
    ("[1]the{x}", {"x": "re"}, ["there"]),
    ("{x}{y}[1]", {"x": "th", "y": "ere"}, ["there"]),
    ("[1]the[1]re", {}, ["the", "re"]),
    ("{x}[1]{y}", {"x": "the", "y": "re"}, ["the", "re"]),
    ("[1]It is{x}.[1] ", {"x": " a dog"}, ["It is a dog.", " "]),
    ("[2][a 1]{x} [a]{x}s", {"x": "dog"}, ["dog ", "dogs"]),
    ("[1]{x}", {"x": "[3] {x} \\n <|endoftext|>"}, ["[3] {x} \\n <|endoftext|>"]),
]
ROOM = [  # template, room, the filled text that is kept, where field a is "abcde" and b "xy"
    ("[2]{a}:{b}", 11, "abcde:xy"),
    ("[2]{a}:{b}", 10, "abcde:xy"),
    ("[2]{a}:{b}", 9, "abcd:xy"),
    ("[2]{a}:{b}", 7, "ab:xy"),
    ("[2]{a}:{b}", 6, "a:x"),
    ("[2]{a}:{b}", 5, "a:x"),
    ("[2]{a}:{b}", 3, ":"),
    ("{b}{a}[1]", 6, "xyabc"),
    ("{a}{a}[1]", 8, "abcabc"),
    ("[1]{a}[1]{b}.", 5, "ax."),
    ("[1]{a}[1]{b}.", 4, "."),
]
CUTS = ["🙂🙂🙂", "a🙂b", "naïve café", "日本語", "dogs and cats"]
TEXTS = ["", "a", "a b", "[3]", "{t}", "\\", "\\n", "\n", "\n\\\n", "]}{[", "\\[", "ü🙂 \t\r\x00", "[: a]", "a\\"]
SLOT_START = "a number of slots, a name, or a colon and words"
UNKNOWN = "a space and a number, or a colon and words, because [a] has no slots yet"
KNOWN = "] because [a] has its slots from before"
NUMBER = "a number from 1 to 9999"
MISTAKES = [  # text, column, what is read before it, expected, found
    ("a]", 2, "a", r"text, or \] for the bracket itself", "']'"),
    ("}", 1, None, r"text, or \} for the bracket itself", "'}'"),
    ("[1]]", 4, "[1]", r"text, or \] for the bracket itself", "']'"),
    ("\\", 2, "\\", "[ ] { } \\ or n after \\", "the end"),
    ("x\\z[3]", 3, "x\\", "[ ] { } \\ or n after \\", "'z'"),
    ("[: a\\t]", 6, "[: a\\", "[ ] { } \\ or n after \\", "'t'"),
    ("{", 2, "{", "a field's name, as in {text}", "the end"),
    ("{}", 2, "{", "a field's name, as in {text}", "'}'"),
    ("{1}", 2, "{", "a field's name, as in {text}", "'1'"),
    ("{ a}", 2, "{", "a field's name, as in {text}", "' '"),
    ("{a b}", 3, "{a", "} after the field's name", "' '"),
    ("{a", 3, "{a", "} after the field's name", "the end"),
    ("[", 2, "[", SLOT_START, "the end"),
    ("[]", 2, "[", SLOT_START, "']'"),
    ("[ 3]", 2, "[", SLOT_START, "' '"),
    ("[-3]", 2, "[", SLOT_START, "'-'"),
    ("[[3]]", 2, "[", SLOT_START, "'['"),
    ("[٣]", 2, "[", SLOT_START, "'٣'"),
    ("[0]", 2, "[", NUMBER, "0"),
    ("ab[10000]", 4, "ab[", NUMBER, "10000"),
    ("[a 0]", 4, "[a ", NUMBER, "0"),
    ("[" + "9" * 5000 + "]", 2, "[", NUMBER, "9" * 12),
    ("[3", 3, "[3", "] or a colon and words", "the end"),
    ("[3x]", 3, "[3", "] or a colon and words", "'x'"),
    ("[3 ]", 3, "[3", "] or a colon and words", "' '"),
    ("[a 3", 5, "[a 3", "] or a colon and words", "the end"),
    ("[a 3.5]", 5, "[a 3", "] or a colon and words", "'.'"),
    ("[a]", 3, "[a", UNKNOWN, "']'"),
    ("[b 2][a]", 8, "[b 2][a", UNKNOWN, "']'"),
    ("[a", 3, "[a", UNKNOWN, "the end"),
    ("[a-b]", 3, "[a", UNKNOWN, "'-'"),
    ("[a ]", 4, "[a ", "a number of slots", "']'"),
    ("[a b]", 4, "[a ", "a number of slots", "'b'"),
    ("[a : b]", 4, "[a ", "a number of slots", "':'"),
    ("[:]", 3, "[:", "words after the colon", "']'"),
    ("[3:", 4, "[3:", "words after the colon", "the end"),
    ("[a 3:{]", 6, "[a 3:", "words after the colon", "'{'"),
    ("[: a", 5, "[: a", "] after the words", "the end"),
    ("[2: a[3]]", 6, "[2: a", "] after the words", "'['"),
    ("[a 3][a 3]", 8, "[a 3][a", KNOWN, "' '"),
    ("[a: b][a: b]", 9, "[a: b][a", KNOWN, "':'"),
    ("[a 3][a", 8, "[a 3][a", KNOWN, "the end"),
    ("[1]\udc80", 4, "[1]", "text", "half of a surrogate pair"),
    ("[1]\n}", 5, "[1]\\n", r"text, or \} for the bracket itself", "'}'"),
    ("[1]{a\n}", 6, "[1]{a", "} after the field's name", r"'\n'"),
    ("[1]" + "abc " * 7 + "]", 32, "…1]" + "abc " * 7, r"text, or \] for the bracket itself", "']'"),
    ("[1]" + "abc " * 20 + "]", 84, "…" + ("abc " * 20)[-30:], r"text, or \] for the bracket itself", "']'"),
]  # fmt: skip
BARE = "the template takes 2 (slots) + 1 (text) = 3 tokens without its fields; there is room for 2"
FILLINGS = [  # template, fields, room, what is said
    ("[1]{a}", {}, None, "f, line 3 has no field 'a', which the template names; its fields: none"),
    ("[1]{a}{b}", {"a": "", "c": ""}, None, "f, line 3 has no field 'b', which the template names; its fields: 'a', 'c'"),
    ("[1]{a}", {"a": 3}, None, "f, line 3: its field 'a' is of type int; a text is needed"),
    ("[1]{a}", {"a": None}, None, "f, line 3: its field 'a' is of type NoneType; a text is needed"),
    ("[1]{a}", {"a": "x\ud83d"}, None, r"f, line 3: its field 'a' is no text: '\ud83d' is half of a surrogate pair"),
    ("[2]{a}:", {"a": "x"}, 2, f"f, line 3: {BARE}"),
    ("[a 1]:[a]", {}, 2, f"f, line 3: {BARE}"),
    ("[1]", {}, 0, "f, line 3: the template takes 1 (slots) + 0 (text) = 1 tokens without its fields; there is room for 0"),
]  # fmt: skip
COMMON = [  # function, its arguments, the text
    ("front", (8,), "[8]{text}"),
    ("front", (1, "input"), "[1]{input}"),
    ("infix", (8,), "{text}[8]"),
    ("infix", (2, "x"), "{x}[2]"),
    ("both_sides", (3, 5), "[3]{text}[5]"),
    ("both_sides", (3, 0, "x"), "[3]{x}"),
    ("around_entity", (), "[3] {entity}[3]"),
    ("around_entity", (0, 2, "subject"), " {subject}[2]"),
]


def rows_error():
    return sum(template.parse(text).row(LETTERS, fields) != told for text, fields, told in ROWS)


def beginnings_error():
    wrong = 0
    for text, slots, told in BEGINNINGS:
        found = template.parse(text)
        wrong += found.slots(LETTERS) != slots or found.initial_text_slots(LETTERS) != told
    return wrong


def boundaries_error(tokenizer=EMBEDDED, cases=BOUNDARIES):
    wrong = 0
    for text, fields, wholes in cases:
        hard = [token for token in template.parse(text).row(tokenizer, fields) if token >= 0]
        wrong += hard != [token for whole in wholes for token in tokenizer.encode(whole).ids]
    return wrong


def room_error():
    wrong = 0
    for text, room, told in ROOM:
        row = template.parse(text).row(LETTERS, {"a": "abcde", "b": "xy"}, room)
        wrong += LETTERS.decode([token for token in row if token >= 0]) != told
    return wrong


def cuts_error(tokenizer=EMBEDDED):
    """Whatever the room: a row that fits, of the field's first tokens, and never of half a character."""
    wrong, parsed = 0, template.parse("[1]{t}")
    for text in CUTS:
        for room in range(1, 2 + len(tokenizer.encode(text).ids)):
            row = parsed.row(tokenizer, {"t": text}, room)
            wrong += len(row) > room or not text.startswith(tokenizer.decode(row[1:]))
            wrong += text.isascii() and row[1:] != tokenizer.encode(text).ids[: room - 1]
    return wrong


def escape_error():
    wrong = 0
    for text in TEXTS:
        written = template.escape(text)
        expected = (template.Slots(1), text) if text else (template.Slots(1),)
        wrong += "\n" in written or template.parse("[1]" + written).parts != expected
        wrong += bool(text) and template.parse(f"[:{written}]").parts != (template.Slots(None, text),)
    return wrong


def said(f, *arguments, **options):
    """What a ValueError says; None where there is none."""
    try:
        f(*arguments, **options)
    except ValueError as reason:
        return str(reason)


def mistake_of(column, before, expected, found):
    place = f"column {column}" + (f", after '{before}'" if before else "")
    return f"template, {place}: expected {expected}, found {found}"


def mistakes_error():
    return sum(said(template.parse, text) != mistake_of(*told) for text, *told in MISTAKES)


def fillings_error():
    wrong = 0
    for text, fields, room, told in FILLINGS:
        wrong += said(template.parse(text).row, LETTERS, dict(fields), room, where="f, line 3") != told
    return wrong


def patterns_error():
    cases = {"{t}": False, r"a\[1\]{t}": False, "[1]{t}": True, "{t}[1]": True, "a[: b]": True}
    return sum(template.parse(text).places_slots != told for text, told in cases.items())


def common_error():
    return sum(getattr(template, name)(*arguments) != text for name, arguments, text in COMMON)


CHECKS = {
    "rows": rows_error,
    "beginnings": beginnings_error,
    "boundaries": boundaries_error,
    "room": room_error,
    "cuts": cuts_error,
    "escape": escape_error,
    "mistakes": mistakes_error,
    "fillings": fillings_error,
    "common": common_error,
    "patterns": patterns_error,
}
