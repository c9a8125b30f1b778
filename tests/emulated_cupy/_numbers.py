"""Cython's conversions of arguments to C integers, which raise where Python's integers don't end.

CuPy's functions declare int, size_t and the like, so a count of 2**31 fails before cuBLAS or the
driver sees it; a test of large sizes needs to see that failure.
"""

from __future__ import annotations

import operator
from typing import Any


def c_int(value: Any) -> int:
    """Convert to a C int."""
    return _ranged(value, -(2**31), 2**31 - 1, "int")


def c_longlong(value: Any) -> int:
    """Convert to a C long long (and Py_ssize_t, intptr_t)."""
    return _ranged(value, -(2**63), 2**63 - 1, "long long")


def c_size(value: Any) -> int:
    """Convert to a C size_t."""
    number = operator.index(value)
    if number < 0:
        raise OverflowError("can't convert negative value to size_t")
    return _ranged(number, 0, 2**64 - 1, "size_t")


def _ranged(value: Any, least: int, most: int, name: str) -> int:
    number = operator.index(value)
    if not least <= number <= most:
        raise OverflowError(f"value too large to convert to {name}")
    return number
