"""The tokenizer: GPT-2's ids, any text back again, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from weights_loader import EMBEDDED, LoadError, load_tokenizer


@pytest.fixture(scope="module")
def gpt2(data):
    return load_tokenizer(data / "gpt2_tokenizer")


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer(EMBEDDED)


@pytest.fixture
def pair(tmp_path):
    """A folder with a small vocab.json and merges.txt: every byte, one merge, the end of text."""
    vocab = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), "he", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n", "utf-8")
    return tmp_path


def test_gpt2_ids(gpt2):
    assert gpt2.encode("Hello world").ids == [15496, 995]
    assert gpt2.get_vocab_size() == 50257
    assert gpt2.encode("a<|endoftext|>b").ids == [64, 50256, 65]
    assert gpt2.encode("  don't  stop\n\n").tokens == ["Ġ", "Ġdon", "'t", "Ġ", "Ġstop", "ĊĊ"]


@given(text=st.text())
def test_gpt2_gives_any_text_back(gpt2, text):
    assert gpt2.decode(gpt2.encode(text).ids, skip_special_tokens=False) == text


@given(text=st.text())
def test_the_embedded_tokenizer_gives_any_text_back(embedded, text):
    assert embedded.decode(embedded.encode(text).ids, skip_special_tokens=False) == text


def test_vocab_and_merges_are_byte_level_bpe(pair):
    tokenizer = load_tokenizer(pair)
    assert tokenizer.encode("he he").tokens == ["he", "Ġ", "he"]
    assert tokenizer.decode(tokenizer.encode("été 🙂").ids) == "été 🙂"
    assert tokenizer.encode("<|endoftext|>").ids == [257]


def test_tokenizer_json_neither_truncates_nor_pads(pair, tmp_path):
    tokenizer = load_tokenizer(pair)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(pair).encode("abcde").ids) == 5


BROKEN = [
    ("tokenizer.json", "{}", ["tokenizer cannot be read"]),
    ("vocab.json", "{", ["vocab.json", "not valid JSON"]),
    ("vocab.json", '{"a": 0}', ["vocab.json", "255 of the 256 bytes"]),
    ("vocab.json", None, ["no tokenizer.json and no vocab.json"]),
    ("merges.txt", "a b c d\n", ["tokenizer cannot be read"]),
    ("merges.txt", "x y\n", ["tokenizer cannot be read"]),
    ("merges.txt", None, ["no tokenizer.json and no merges.txt"]),
]


@pytest.mark.parametrize(("name", "text", "words"), BROKEN, ids=range(len(BROKEN)))
def test_broken_tokenizers_are_refused(pair, name, text, words):
    (pair / name).unlink(missing_ok=True)
    if text is not None:
        (pair / name).write_text(text)
    with pytest.raises(LoadError) as caught:
        load_tokenizer(pair)
    assert all(word in str(caught.value) for word in [str(pair), *words]) and "\n" not in str(caught.value)


def test_no_folder_no_tokenizer(tmp_path):
    with pytest.raises(LoadError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
