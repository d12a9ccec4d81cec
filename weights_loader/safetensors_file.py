"""The safetensors format: 8 bytes of header length, a JSON header, then the numbers.

Read by hand so that float32 weights stay in the file, mapped into memory: the operating system
brings in the pages that are used, and nothing is held twice. Every claim of the header is checked
before it is believed; what is accepted here the safetensors library accepts too.
"""

import math
import mmap
import os
from collections import namedtuple

import numpy as np

from weights_loader.files import LoadError, parse_json

LONGEST_HEADER = 100_000_000  # bytes, the format's own bound
MOST_AXES = 64  # NumPy's bound
FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}  # what becomes an array; bfloat16 by its bits
BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4,
         "I32": 4, "U64": 8, "I64": 8, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip

Stored = namedtuple("Stored", "name file dtype shape start buffer")  # one tensor, not yet read


def open_tensors(path):
    """{name: Stored} of one safetensors file, in the order of its bytes. Raises LoadError."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as reason:
        raise LoadError(f"{path}: cannot be read ({reason.strerror}); check that it is a readable file") from None
    length = int.from_bytes(buffer[:8], "little")
    if size < 8 or length > LONGEST_HEADER or 8 + length > size:
        _refuse(path, f"{size:,} bytes do not hold a header of {length:,} bytes")
    header = parse_json(buffer[8 : 8 + length], f"{path}: header")
    _check_metadata(header.pop("__metadata__", None), path)
    tensors = [_stored(name, entry, path, 8 + length, buffer) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, _size(tensor)))
    _check_layout(tensors, path, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def read_array(tensor, dtype):
    """The read-only array of a Stored tensor: a view of the mapped file where its dtype is `dtype`,
    else converted. Raises LoadError for anything but floating-point numbers.
    """
    if tensor.dtype not in FLOATS:
        raise LoadError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype}, which is not supported; "
            f"convert the weights to one of {', '.join(FLOATS)}"
        )
    x = np.frombuffer(tensor.buffer, FLOATS[tensor.dtype], math.prod(tensor.shape), tensor.start)
    if tensor.dtype == "BF16":  # the upper half of a float32
        x = (x.astype(np.uint32) << 16).view(np.float32)
    x = np.require(x.reshape(tensor.shape), dtype, "A")  # a file with an odd header length is copied, once
    x.setflags(write=False)
    return x


def _refuse(path, reason):
    raise LoadError(f"{path}: not a whole safetensors file: {reason}; download it again")


def _size(tensor):
    return math.prod(tensor.shape) * BYTES[tensor.dtype]


def _check_metadata(metadata, path):
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        _refuse(path, "__metadata__ is not a table of texts")


def _stored(name, entry, path, data, buffer):
    """One entry of the header, checked by itself, as a Stored; `data` is where the numbers begin."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            sizes = [*shape, begin, end]
        case _:
            _refuse(path, f"the header's entry of {name!r} lacks a dtype, a shape or two data_offsets")
    if len(shape) > MOST_AXES or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        _refuse(path, f"tensor {name!r} has shape {shape[:MOST_AXES]} at {[begin, end]}")
    if dtype not in BYTES:
        raise LoadError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not supported; convert it to F32")
    tensor = Stored(name, path, dtype, tuple(shape), data + begin, buffer)
    if end - begin != _size(tensor):
        _refuse(path, f"tensor {name!r} {dtype} {shape} is given {end - begin:,} bytes, which its shape does not take")
    return tensor


def _check_layout(tensors, path, data, size):
    """The tensors must cover the bytes data .. size, each once."""
    end = data
    for tensor in tensors:
        if tensor.start != end:
            problem = "overlaps" if tensor.start < end else "leaves a gap after"
            _refuse(path, f"tensor {tensor.name!r} {problem} another")
        end += _size(tensor)
    if end != size:
        _refuse(path, f"the header speaks of {end:,} bytes, and the file has {size:,}")
