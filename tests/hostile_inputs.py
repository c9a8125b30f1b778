"""Arrays and attributes that nobody should pass: by values, layout in memory, type and shape."""

import math

import numpy as np


class Subclass(np.ndarray):
    """An array like any other."""


VALUES = {
    "NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "minus zero": -0.0,
    "denormal": 1e-310, "small": 1e-40, "huge": 1e30, "whole": 3.0, "minus one": -1.0,
}  # fmt: skip


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def spread_out(array):
    wide = np.full([2 * n + 1 for n in array.shape], 7, array.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
    view[...] = array
    return view


def backwards(array):
    every = (slice(None, None, -1),) * array.ndim
    return array[every].copy()[every]


def repeated(array):
    return np.broadcast_to(array[:1], array.shape)


def overlapping(array):
    """Rows that share all elements but one with the next."""
    if array.size == 0:
        return array
    steps = (array.itemsize,) * array.ndim
    memory = np.resize(array.reshape(-1), sum(n - 1 for n in array.shape) + 1)
    return np.lib.stride_tricks.as_strided(memory, array.shape, steps)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "Fortran order": np.asfortranarray, "misaligned": misaligned, "spread out": spread_out,
    "backwards": backwards, "repeated": repeated, "overlapping": overlapping,
    "read-only": read_only, "subclass": lambda array: array.view(Subclass),
}  # fmt: skip
# Of these none is an array of numbers as the library takes them.
TYPES = {
    "masked": np.ma.masked_invalid, "objects": lambda a: a.astype(object),
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "complex": lambda a: a.astype(complex), "integers": lambda a: np.zeros(a.shape, int),
    "booleans": lambda a: np.zeros(a.shape, bool), "text": lambda a: a.astype(str),
    "long double": lambda a: a.astype(np.longdouble), "list": lambda a: a.tolist(),
    "records": lambda a: a.view([("re", a.dtype)]), "times": lambda a: np.zeros(a.shape, "m8[s]"),
    "scalar": lambda a: a.dtype.type(1), "0-d": lambda a: np.array(1, a.dtype),
    "number": lambda a: 1.0, "word": lambda a: "x", "function": lambda a: len,
    "bytes": lambda a: a.tobytes(), "class": lambda a: np.ndarray,
    "matrix": lambda a: a.reshape(1, -1).view(np.matrix),
    "another dtype": lambda a: a.astype("f4" if a.dtype == "f8" else "f8"),
}  # fmt: skip
SHAPES = {
    "one axis less": lambda a: a[0] if len(a) else a.reshape((*a.shape[1:-1], 0)),
    "one axis more": lambda a: a[None], "flat": lambda a: a.reshape(-1),
    "transposed": lambda a: a.T,
    **{f"axis {i} longer": lambda a, i=i: np.concatenate([a, a[:, :, :1] if i else a[:1]], min(
        i, a.ndim - 1)) if i in (0, 2) and a.ndim > i and a.shape[i] else a[None] for i in (0, 2)},
    **{f"axis {i} empty": lambda a, i=i: a[(slice(None),) * min(i, a.ndim - 1) + (slice(0),)]
       for i in range(4)},
}  # fmt: skip
# What an attribute must not be, and what it may be besides plain numbers.
NO_ATTRIBUTES = (
    -1, 1.0, 2.5, "1", b"1", math.nan, math.inf, 1j, [], (), (1,) * 3, (1,) * 5, (1, 2.0), (1,
    "1"), (1, (1,)), ((1, 1), 1), {1, 2}, {"a": 1}, object(), len, np.array([1.0, 2.0]),
    np.array([1, 1]), np.float64(1), np.array([[1, 1]]), np.nan, (True, 1), (None, 1), 2**31,
    2**40, 2**63, 2**64, -(2**63), 10**30, (1, 2**63), (2**62, 2**62), range(3), (None, None),
    "SOME", np.array(["1", "1"]), Ellipsis,
)  # fmt: skip
FORMS = (
    np.int8,
    np.uint64,
    np.int32,
    lambda n: (n, n),
    lambda n: [n, n],
    lambda n: (np.int16(n), n),
)
