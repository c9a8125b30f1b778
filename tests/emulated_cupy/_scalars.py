"""Python and NumPy scalars as CuPy takes them: a dtype, and whether it gives way to an array's."""

from __future__ import annotations

from typing import Any

import numpy as np


class Scalar:
    """A scalar argument; ``weak`` is the Python type of one that gives way, else False."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.dtype, self.weak = _dtype_of(value)

    def as_array(self, dtype: np.dtype[Any]) -> Any:
        """Return a 0-d NumPy array; raises OverflowError for an int that does not fit."""
        if type(self.value) is int and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if not limits.min <= self.value <= limits.max:
                raise OverflowError(f"Python integer {self.value} out of bounds for {dtype}")
        return np.array(self.value, dtype)

    def to_bytes(self) -> bytes:
        """Return the bytes a kernel's parameter gets."""
        return self.as_array(self.dtype).tobytes()


def _dtype_of(value: Any) -> tuple[np.dtype[Any], Any]:
    kind = type(value)
    if kind is bool:
        return np.dtype(np.bool_), False
    if kind is float:
        return np.dtype(np.float64), float
    if kind is complex:
        return np.dtype(np.complex128), complex
    if kind is int:
        return np.dtype(np.uint64 if value >= 2**63 else np.int64), int
    if isinstance(value, np.generic):
        return value.dtype, False
    raise TypeError(f"Unsupported type {kind}")
