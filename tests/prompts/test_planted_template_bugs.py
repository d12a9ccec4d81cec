"""Bugs planted in templates, one edit each, that a check of `templating.py` must catch."""

import pytest
from templating import CHECKS

from minicompress.prompts import template
from test_planted_bugs import Bug, planted_error

BUGS = [
    # slots and their numbers
    Bug("tied slots are copies", "rows", template.Template,
        "(key := part.name or place)", "(key := place)"),
    Bug("all slots without a name are tied", "rows", template.Template,
        "(key := part.name or place)", "(key := part.name)"),
    Bug("blocks tied by their look", "beginnings", template.Template,
        "(key := part.name or place)", "(key := part)"),
    Bug("tied slots counted each time", "beginnings", template.Template,
        "len({slot for block in self.blocks(tokenizer) for slot in block})", "sum(map(len, self.blocks(tokenizer)))"),
    Bug("each block numbered from 0", "rows", template.Template,
        "P += len(tokens)", "pass"),
    Bug("slot 0 stands as token 0", "rows", template.Template,
        "-1 - slot for", "-slot for"),
    Bug("a name forgotten", "rows", template.read_slots,
        "named[name] = found", "pass"),
    # where slots begin
    Bug("the words' last tokens", "beginnings", template.Slots,
        "np.resize(ids, self.count or len(ids))", "np.resize(ids[-(self.count or 0) :], self.count or len(ids))"),
    Bug("the last token repeated, not the words", "beginnings", template.Slots,
        "np.resize(ids, self.count or len(ids))", "np.array((ids + ids[-1:] * 9)[: self.count or len(ids)])"),
    Bug("a slot for each word, not for each token", "beginnings", template.Slots,
        "self.count or len(ids)", "self.count or len(self.words.split())"),
    Bug("the words' space dropped", "beginnings", template.Slots,
        "encode(self.words)", "encode(self.words.strip())"),
    Bug("words' slots counted among the words only", "beginnings", template.Template,
        "dict(enumerate(tokens, P))", "dict(enumerate(tokens))"),
    # tokens across pieces
    Bug("each piece tokenised by itself", "boundaries", template.Template,
        'piece = "".join(texts[part.name] if isinstance(part, Field) else part for part in parts)\n'
        "                row += tokenizer.encode(piece).ids",
        "for part in parts:\n"
        "                    row += tokenizer.encode(texts[part.name] if isinstance(part, Field) else part).ids"),
    Bug("pieces joined by spaces", "boundaries", template.Template,
        'piece = "".join(', 'piece = " ".join('),
    Bug("a field read as a template", "boundaries", template.field_texts,
        "{name: fields[name] for name in names}", '{name: fields[name].replace("\\\\n", "\\n") for name in names}'),
    # room
    Bug("cut from the front", "room", template.Template,
        "text[: len(tokenizer.decode(ids[name][:m]))]", "text[len(text) - len(tokenizer.decode(ids[name][:m])) :]"),
    Bug("one token too many", "room", template.Template,
        "range(1, longest + 1)", "range(longest + 1)"),
    Bug("one token too few", "room", template.Template,
        "bisect_right(", "-1 + bisect_right("),
    Bug("short fields decide", "room", template.Template,
        "longest = max(", "longest = min("),
    Bug("room for one more", "room", template.Template,
        "len(row) <= room", "len(row) <= room + 1"),
    Bug("as many characters as tokens", "cuts", template.Template,
        "text[: len(tokenizer.decode(ids[name][:m]))]", "text[: 2 * m]"),
    Bug("half a character", "cuts", template.Template,
        "text[: len(tokenizer.decode(ids[name][:m]))]", "tokenizer.decode(ids[name][:m])"),
    Bug("too long all the same", "fillings", template.Template,
        "len(bare := kept(0)) > room", "len(bare := kept(0)) > room and False"),
    # reading
    Bug("a line end read as n", "escape", template.read_text,
        '"\\n" if pair[1] == "n" else pair[1]', "pair[1]"),
    Bug("a line end left in", "escape", template.escape,
        '.replace("\\n", "\\\\n")', ""),
    Bug("the backslash not escaped", "escape", template.escape,
        "[\\[\\]{}\\\\]", "[\\[\\]{}]"),
    Bug("columns from 0", "mistakes", template.mistake,
        "{at + 1}", "{at}"),
    Bug("every template places slots", "patterns", template.Template,
        "any(isinstance(part, Slots) for part in self.parts)", "True"),
    Bug("a template places slots only where it begins with some", "patterns", template.Template,
        "any(isinstance(part, Slots) for part in self.parts)", "isinstance(self.parts[0], Slots)"),
    Bug("zero slots", "mistakes", template.read_slots,
        " or not int(digits)", ""),
    Bug("any number of slots", "mistakes", template.read_slots,
        "len(digits) > 4 or ", ""),
    Bug("a name given twice", "mistakes", template.read_slots,
        "if name in named:", "if name in named and text.startswith(']', head.end(1)):"),
    Bug("nothing to begin at", "mistakes", template.read_slots,
        "if not words:", "if False:"),
    Bug("a bracket never closed", "mistakes", template.read_end,
        "not text.startswith(bracket, at)", "at < len(text) and not text.startswith(bracket, at)"),
    Bug("the backslash blamed, not what follows it", "mistakes", template.read_text,
        "found.end() + 1", "found.end()"),
    Bug("a missing field is empty", "fillings", template.field_texts,
        "if name not in fields:", "if fields.setdefault(name, '') is None:"),
    Bug("halves of characters pass", "fillings", template.field_texts,
        "SURROGATE.search(fields[name])", "None"),
    # common templates
    Bug("the entity without its space", "common", template.around_entity,
        'f" {{{field}}}"', 'f"{{{field}}}"'),
    Bug("infix in front", "common", template.infix,
        'f"{{{field}}}" + block(slots)', 'block(slots) + f"{{{field}}}"'),
    Bug("both sides alike", "common", template.both_sides,
        "block(after)", "block(before)"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, (ValueError, IndexError)) <= 0
