"""Temporary memory of one call: a single block, handed out from the front and taken back.

Allocating every temporary apart cost up to half of a forward: each is fresh memory, and at 3
microseconds a page fault x (4, 16, 128, 128) spent 20 of 35 ms in the kernel. NumPy asks for huge
pages from 4 MiB up, so one block is almost free of faults, and its size is the bound promised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Array, address_of

ALIGNMENT = 128  # a line of any cache here


class Workspace:
    """Hands out arrays from a block of bytes; a block too small is helped out by the library."""

    def __init__(self, block: Array, library: Any = np) -> None:
        self._block = block
        self._library = library
        self._address = address_of(block)
        self._used = 0

    @classmethod
    def of(cls, nbytes: int, library: Any = np) -> Workspace:
        """Allocate a workspace of arrays of NumPy or CuPy."""
        return cls(library.empty(nbytes, np.uint8), library)

    def part(self, nbytes: int) -> Workspace:
        """Hand out a workspace of its own, for another thread or purpose."""
        return Workspace(self.empty(nbytes, np.uint8), self._library)

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an uninitialised C-contiguous array."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) if isinstance(shape, tuple) else shape
        nbytes *= dtype.itemsize
        first = self._used + (-(self._address + self._used)) % ALIGNMENT
        if first + nbytes > self._block.size:
            return self._library.empty(shape, dtype)  # type: ignore[no-any-return]
        self._used = first + nbytes
        if self._library is np:
            return np.ndarray(shape, dtype, self._block, first)  # a third of a view's time
        memory = self._block.data + first  # type: ignore[operator]  # a CuPy memory pointer
        return self._library.ndarray(shape, dtype, memory)  # type: ignore[no-any-return]

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous array of zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def cast(self, array: Array, dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous copy of another dtype."""
        copy = self.empty(array.shape, dtype)
        self._library.copyto(copy, array, casting="unsafe")
        return copy

    def scope(self) -> Scope:
        """Take back at the end of a ``with`` what was handed out inside."""
        return Scope(self)


class Scope:
    """What a workspace hands out inside, it takes back at the end."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __enter__(self) -> None:
        self._used = self._workspace._used

    def __exit__(self, *error: object) -> None:
        self._workspace._used = self._used


@dataclass
class Sum:
    """A sum over tiles, which the first of them writes and the others add to."""

    array: Array
    empty: bool = True
