"""Temporary memory of one call: a single block, handed out from the front and taken back.

Allocating every temporary apart cost up to half of a forward: each is fresh memory, and at 3
microseconds a page fault x (4, 16, 128, 128) spent 20 of 35 ms in the kernel. NumPy asks for huge
pages from 4 MiB up, so one block is almost free of faults, and its size is the bound promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ._arrays import Array

ALIGNMENT = 64


class Workspace:
    """Hands out arrays from a block of bytes; a block too small is helped out by NumPy."""

    def __init__(self, block: npt.NDArray[np.uint8]) -> None:
        self._block = block
        self._used = 0

    @classmethod
    def of(cls, nbytes: int) -> Workspace:
        """Allocate a workspace."""
        return cls(np.empty(nbytes, np.uint8))

    def part(self, nbytes: int) -> Workspace:
        """Hand out a workspace of its own, for another thread."""
        return Workspace(self.empty(nbytes, np.uint8))

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an uninitialised C-contiguous array."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) if isinstance(shape, tuple) else shape
        nbytes *= dtype.itemsize
        first = self._used + (-(self._block.ctypes.data + self._used)) % ALIGNMENT
        if first + nbytes > self._block.size:
            return np.empty(shape, dtype)
        self._used = first + nbytes
        return self._block[first : self._used].view(dtype).reshape(shape)

    def zeros(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous array of zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def cast(self, array: Array, dtype: npt.DTypeLike) -> Array:
        """Return a C-contiguous copy of another dtype."""
        copy = self.empty(array.shape, dtype)
        np.copyto(copy, array, casting="unsafe")
        return copy

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Take back at the end what was handed out inside."""
        used = self._used
        try:
            yield
        finally:
            self._used = used
