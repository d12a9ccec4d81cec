"""Headers that lie, and headers made of noise: a LoadError, or what the safetensors library reads."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weights_loader import LoadError
from weights_loader.safetensors_file import open_tensors, read_array

MANY = settings(max_examples=10 * settings().max_examples)  # these are quick
ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def laid_out(header, data=b"\0" * 8, length=None):
    """The bytes of a file; `header` is raw bytes or anything that JSON can say."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


LIES = {
    "empty file": (b"", "do not hold a header"),
    "seven bytes": (b"1234567", "do not hold a header"),
    "header longer than the file": (laid_out({"a": ONE}, length=1000), "do not hold a header of 1,000 bytes"),
    "header longer than allowed": (laid_out({"a": ONE}, length=2**63), "do not hold a header"),
    "no JSON": (laid_out(b"{nonsense}"), "not valid JSON"),
    "no UTF-8": (laid_out(b'{"\xff": 1}'), "not valid JSON"),
    "no object": (laid_out([1]), "not an object"),
    "deep nesting": (laid_out(b"[" * 100_000), "not valid JSON"),
    "a name twice": (laid_out(b'{"a": 1, "a": 1}'), "a name stands twice"),
    "metadata no table": (laid_out({"__metadata__": 3, "a": ONE}), "__metadata__"),
    "metadata no text": (laid_out({"__metadata__": {"k": 3}, "a": ONE}), "__metadata__"),
    "entry no table": (laid_out({"a": 3}), "'a' lacks"),
    "no dtype": (laid_out({"a": {"shape": [2], "data_offsets": [0, 8]}}), "'a' lacks"),
    "three offsets": (laid_out({"a": ONE | {"data_offsets": [0, 8, 8]}}), "'a' lacks"),
    "shape no list": (laid_out({"a": ONE | {"shape": 2}}), "'a' lacks"),
    "fractional shape": (laid_out({"a": ONE | {"shape": [2.0]}}), "has shape [2.0]"),
    "negative shape": (laid_out({"a": ONE | {"shape": [-2, -1]}}), "has shape [-2, -1]"),
    "true for one": (laid_out({"a": ONE | {"shape": [2, True]}}), "has shape [2, True]"),
    "offset below zero": (laid_out({"a": ONE | {"data_offsets": [-8, 0]}}), "at [-8, 0]"),
    "unknown dtype": (laid_out({"a": ONE | {"dtype": "F4"}}), "dtype 'F4', which is not supported"),
    "offsets reversed": (laid_out({"a": ONE | {"data_offsets": [8, 0]}}), "is given -8 bytes"),
    "size is not shape times dtype": (laid_out({"a": ONE | {"shape": [3]}}), "[3] is given 8 bytes"),
    "enormous shape": (laid_out({"a": ONE | {"shape": [2**62, 2**62]}}), "'a'"),
    "64 enormous axes": (laid_out({"a": ONE | {"shape": [2**62] * 64}}), "is given 8 bytes"),
    "a million axes": (laid_out({"a": ONE | {"shape": [2**62] * 10**6}}), "'a' has shape"),
    "truncated": (laid_out({"a": ONE}, b"\0" * 7), "of 77 bytes, and the file has 76"),
    "trailing bytes": (laid_out({"a": ONE}, b"\0" * 9), "of 77 bytes, and the file has 78"),
    "overlap": (laid_out({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}, b"\0" * 12), "'b' overlaps"),
    "the same place twice": (laid_out({"a": ONE, "b": ONE}), "'b' overlaps"),
    "gap": (laid_out({"a": ONE, "b": ONE | {"data_offsets": [12, 20]}}, b"\0" * 20), "'b' leaves a gap"),
    "beyond the end": (laid_out({"a": ONE | {"data_offsets": [2**40, 2**40 + 8]}}), "'a' leaves a gap"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path, lie):
    raw, message = LIES[lie]
    path = tmp_path / "lie.safetensors"
    path.write_bytes(raw)
    with pytest.raises(LoadError) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_empty_tensors_scalars_and_any_order_are_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": ONE | {"data_offsets": [4, 12]},
              "empty": {"dtype": "F64", "shape": [0, 3], "data_offsets": [4, 4]},
              "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}  # fmt: skip
    path = tmp_path / "small.safetensors"
    path.write_bytes(laid_out(header, np.array([1, 2, 3], "<f4").tobytes()))
    tensors = open_tensors(path)
    assert list(tensors) == ["a", "empty", "b"]
    assert read_array(tensors["a"], "float32") == 1
    assert read_array(tensors["b"], "float64").tolist() == [2, 3]


@pytest.fixture(scope="module")
def spare(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "spare.safetensors"


def as_the_library_reads(raw, path):
    """open_tensors raises nothing but LoadError; what it accepts, the safetensors library reads as the same."""
    from safetensors import deserialize

    path.write_bytes(raw)
    try:
        ours = open_tensors(path)
    except LoadError as refusal:
        assert "\n" not in str(refusal)
        return
    theirs = dict(deserialize(raw))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        size = len(theirs[name]["data"])
        assert (tensor.dtype, list(tensor.shape)) == (theirs[name]["dtype"], list(theirs[name]["shape"]))
        assert tensor.buffer[tensor.start : tensor.start + size] == bytes(theirs[name]["data"])


@given(st.binary(max_size=200), st.booleans())
@MANY
def test_noise_is_refused(spare, noise, framed):
    as_the_library_reads(laid_out(noise) if framed else noise, spare)


numbers = st.integers(-2, 40) | st.integers() | st.floats() | st.none() | st.booleans()
texts = st.sampled_from(["F32", "F16", "U8", "dtype", "shape", "data_offsets", "__metadata__", "a", ""])
anything = st.recursive(numbers | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner))
entries = st.fixed_dictionaries(
    {"dtype": texts, "shape": st.lists(numbers, max_size=2) | anything, "data_offsets": st.lists(numbers, max_size=3)}
)


@given(st.dictionaries(texts, entries | anything, max_size=3), st.binary(max_size=16))
@MANY
def test_any_json_is_a_refusal_or_a_file(spare, header, data):
    as_the_library_reads(laid_out(header, data), spare)


@given(st.data())
@MANY
def test_a_good_file_with_changed_bytes_is_a_refusal_or_a_file(spare, data):
    header = {"a": ONE, "b": {"dtype": "F16", "shape": [1, 3], "data_offsets": [8, 14]}}
    raw = bytearray(laid_out(header, bytes(range(14))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123 "{}[],'))
    as_the_library_reads(bytes(raw), spare)
