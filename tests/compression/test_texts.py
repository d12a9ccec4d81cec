"""A text in pieces has the tokens, the hash and the mistakes of the text at once."""

import io
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weights_loader
from minicompress.compression import texts
from minicompress.compression.texts import Stream, read_pieces, read_text
from minicompress.prompts.soft_prompt import text_hash
from test_planted_bugs import Bug, plant

EMBEDDED = weights_loader.load_tokenizer(weights_loader.EMBEDDED)
HARD = "".join(["Tom's      red\n\n dog ", "we'll 12,345 \t x ", "  é\u00a0ß 中文 字 ", "<|endoftext|> a <|endoftext|>b "]) * 3
WORDS = st.text(st.sampled_from(["a", "b", "'", "s", " ", " ", "\n", "\t", "9", ".", "é", "中", "\u00a0", "\u2003"]), max_size=60)


def pieces_of(text, size):
    """As a file of it is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(text))
        return list(read_pieces("-", size))


def tokens_differ(tokenizer, text, size):
    """Whether pieces of so many characters have other tokens than the text at once."""
    pieces = pieces_of(text, size)
    stream = Stream(pieces, tokenizer, 10**9)
    ids, at_once = list(stream.ids()), tokenizer.encode(text).ids
    told = (stream.count, stream.hash, stream.text) == (len(at_once), text_hash(text), text)
    return ids != at_once or "".join(pieces) != text or not told


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000, -1])
def test_the_tokens_are_those_of_the_text_at_once(size):
    assert not tokens_differ(EMBEDDED, HARD, size)


@given(WORDS, st.integers(1, 9))
def test_whatever_the_text(text, size):
    if text.strip():
        assert not tokens_differ(EMBEDDED, text, size)


def test_of_the_real_tokenizer_too(data):
    tokenizer = weights_loader.load_tokenizer(data / "gpt2_tokenizer")
    text = (data / "text/tinyshakespeare.txt").read_text()[:60_000] + HARD
    for size in (64, 1001):
        assert not tokens_differ(tokenizer, text, size)


@pytest.mark.parametrize("bug", [
    Bug("cut anywhere", "", texts.read_pieces, "BETWEEN_WORDS.finditer(held)", "__import__('re').finditer('.', held)"),
    Bug("cut behind the space", "", texts.read_pieces, "match.start()", "match.end()"),
    Bug("the end is lost", "", texts.read_pieces, "yield held\n", "pass\n"),
    Bug("every piece's tokens counted twice", "", Stream, "self.count += len(found)", "self.count += 2 * len(found)"),
    Bug("the hash of the last piece", "", Stream, "self.digest.update(piece.encode())", "self.digest = __import__('hashlib').sha256(piece.encode())"),
], ids=lambda bug: bug.name)  # fmt: skip
def test_planted_bugs(bug, monkeypatch):
    plant(bug, monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "Stream", texts.Stream)
    assert any(tokens_differ(EMBEDDED, HARD, size) for size in (1, 3, 50))


def test_a_long_text_is_not_held(monkeypatch):
    text = "Tom has a red dog. " * 20_000
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    stream = Stream(read_pieces("-", 4096), EMBEDDED, most=500)
    tracemalloc.start()
    count = sum(1 for _ in stream.ids())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.text is None and count == stream.count > 100_000 and stream.hash == text_hash(text)
    assert most < len(text) / 2, "nothing of the length of the text is kept"


@pytest.mark.parametrize("read", [read_text, lambda path: list(read_pieces(path, 3))], ids=["at once", "in pieces"])
@pytest.mark.parametrize("content, said", [
    (None, "No such file"), (b"", "is empty; some text is needed"), (b" \n \n  ", "is empty; some text is needed"),
    (b"good words caf\xe9", "is not UTF-8 text (unexpected end of data at byte"),
], ids=["none", "empty", "blank", "not UTF-8"])  # fmt: skip
def test_mistakes(read, content, said, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as reason:
        read(path)
    assert str(path) in str(reason.value) and said in str(reason.value)


def test_blank_lines_before_the_first_word_are_kept():
    assert pieces_of("\n\n   a b", 2) == ["\n\n   a", " b"]
