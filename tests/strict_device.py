"""A stand-in for a GPU on a machine without one: arrays that refuse every silent transfer.

CuPy lets `float(x)`, `x[host_index]` and `np.exp(x)` pass, and each costs a synchronisation or an
upload that nobody sees. Here each is a TypeError. This module is also the namespace of its arrays:
`strict_device.exp(x)` is NumPy's exp of what x holds, so results are NumPy's to the last bit.
"""

import operator
from numbers import Number
from types import ModuleType, SimpleNamespace

import numpy as np


class Array:
    """One array that lives elsewhere. `asarray` brings it there, `get` fetches it, nothing else does."""

    __array_ufunc__ = None  # NumPy's own functions and operators refuse it

    def __init__(self, held):
        self._held = held

    def get(self):
        return self._held.copy()

    def __getattr__(self, name):  # shape, dtype, T, sum, reshape, swapaxes, ...
        if name.startswith("_") or name in ("item", "tolist", "tobytes", "tofile", "data", "flat", "ctypes"):
            raise TypeError(f"{name!r} would move a device array to the host")
        return lifted(getattr(self._held, name))

    def __len__(self):
        return len(self._held)

    def __iter__(self):
        """Along the first axis, as CuPy permits: `q, k, v = qkv`."""
        return (Array(np.asarray(part)) for part in self._held)

    def __getitem__(self, index):
        return on_device(self._held[place(index)])

    def __setitem__(self, index, value):
        self._held[place(index)] = on_host(value)


def refuse(name):
    def method(self, *_, **__):
        raise TypeError(f"{name} of a device array waits for the device and moves a value to the host")

    return method


def operate(name):
    def method(self, *others):
        result = getattr(operator, name)(self._held, *map(on_host, others))
        return self if result is self._held else on_device(result)

    return method


def swapped(name):
    def method(self, other):
        return on_device(getattr(operator, name)(on_host(other), self._held))

    return method


for name in ("array", "float", "int", "bool", "complex", "index", "array_interface"):
    setattr(Array, f"__{name}__", refuse(f"__{name}__"))
for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(Array, f"__{name}__", operate(f"__{name}__"))
    setattr(Array, f"__i{name}__", operate(f"__i{name}__"))
    setattr(Array, f"__r{name}__", swapped(f"__{name}__"))
for name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Array, f"__{name}__", operate(f"__{name}__"))


def place(index):
    """An index that needs no upload: numbers, slices, None, ..., device arrays, and tuples of these."""
    if isinstance(index, list) or isinstance(index, tuple) and any(isinstance(part, list) for part in index):
        raise TypeError("a list as an index is uploaded; move it with asarray")
    return on_host(index)


def on_host(x):
    """What NumPy may compute with: held arrays, Python's numbers, and names of types. Host arrays raise."""
    if isinstance(x, Array):
        return x._held
    if isinstance(x, np.ndarray | np.generic):
        raise TypeError(f"a host array of shape {x.shape} meets a device array; move it with asarray")
    if isinstance(x, list | tuple):
        return type(x)(on_host(part) for part in x)
    return x


def on_device(x):
    """The arrays in a result, wrapped; a NumPy scalar becomes an array of no dimensions."""
    if isinstance(x, np.ndarray | np.generic):
        return Array(np.asarray(x))
    if isinstance(x, tuple | list) and not all(isinstance(part, Number) for part in x):  # a shape stays as it is
        return type(x)(on_device(part) for part in x)
    return x


def lifted(found):
    """NumPy's function, taking and giving device arrays; anything else that NumPy holds, as fits."""
    if isinstance(found, ModuleType):
        return SimpleNamespace(**{name: lifted(getattr(found, name)) for name in found.__all__})
    if isinstance(found, type) or not callable(found):
        return on_device(found)

    def function(*args, **options):
        return on_device(found(*map(on_host, args), **{name: on_host(x) for name, x in options.items()}))

    if isinstance(found, np.ufunc):
        function.at = lifted(found.at)
    return function


def asarray(x, dtype=None):
    """The one way in."""
    return Array(np.array(x._held if isinstance(x, Array) else x, dtype=dtype))


array = asarray


def __getattr__(name):
    if name.startswith("_") or name == "random":  # randomness is drawn on the host
        raise AttributeError(name)
    return lifted(getattr(np, name))
