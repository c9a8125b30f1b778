"""The memory of one device: allocations at high addresses with guard gaps, and what was written.

Addresses start far above 32 bits, so one that passed through an ``int`` lands nowhere. They are
never used twice, so an access after ``free`` lands nowhere either, and can say whose memory it was.

Large allocations take memory of this machine only where they are touched, so a test can have arrays
of hundreds of gigabytes and work at their far ends.
"""

from __future__ import annotations

import bisect
import mmap
import sys
from collections import deque

import numpy as np
import numpy.typing as npt

from .errors import OutOfBounds

ALIGNMENT = 512
GUARD = 4096
POISON = 0xFF  # all ones is a NaN in every float type, and an index far out of bounds
REMEMBERED = 4096  # freed allocations that an error can still name
SPARSE_BYTES = 1 << 26  # from here on allocations are sparse: neither poisoned nor ever complete
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which mmap does not name


def zeros(shape: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray:
    """Return zeros; many of them are pages that the system makes when they are touched."""
    nbytes = shape * np.dtype(dtype).itemsize
    if nbytes < SPARSE_BYTES:
        return np.zeros(shape, dtype)
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.frombuffer(mmap.mmap(-1, nbytes), dtype, shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype, shape)


class Allocation:
    """Bytes from ``base`` on, and a flag for each: was it ever written?"""

    def __init__(self, base: int, nbytes: int, kind: str = "global", stride: int = 0) -> None:
        self.base = base
        self.kind = kind
        self.stride = stride
        self.nbytes = nbytes
        padded = -(-nbytes // 32) * 32  # whole elements of every width, in views of it all
        self.sparse = padded >= SPARSE_BYTES
        self.bytes = zeros(padded) if self.sparse else np.full(padded, POISON, np.uint8)
        self.written = zeros(padded)
        self.complete = False
        self._views: dict[str, npt.NDArray] = {"u1": self.bytes}
        self._flags: dict[str, npt.NDArray] = {"u1": self.written}

    def view(self, code: str) -> npt.NDArray:
        """Return all bytes as elements of one dtype."""
        view = self._views.get(code)
        if view is None:
            view = self._views[code] = self.bytes.view(code)
        return view

    def flags(self, code: str) -> npt.NDArray:
        """Return the flags of all bytes, as many to an unsigned integer as it has bytes."""
        flags = self._flags.get(code)
        if flags is None:
            flags = self._flags[code] = self.written.view(code)
        return flags

    def refresh(self) -> None:
        """Find out whether every byte is written, after which no read need ask."""
        if not self.complete and not self.sparse:
            self.complete = bool(self.written[: self.nbytes].all())

    def __str__(self) -> str:
        return f"the allocation of {self.nbytes} bytes at {self.base:#x}"


class Memory:
    """The allocations of one device."""

    def __init__(self, base: int = 0x7F00_0000_0000) -> None:
        self._next = base
        self._bases: list[int] = []
        self._live: list[Allocation] = []
        self._freed: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self.symbols: dict[tuple[str, str], int] = {}
        self.used_bytes = 0
        self.peak_bytes = 0

    def allocate(self, nbytes: int) -> int:
        """Return the address of fresh bytes, none of them written."""
        address = self._next
        self._next += -(-(nbytes + GUARD) // ALIGNMENT) * ALIGNMENT
        self._bases.append(address)
        self._live.append(Allocation(address, nbytes))
        self.used_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return address

    def free(self, address: int) -> None:
        """Give an allocation back; its address is never handed out again."""
        index = bisect.bisect_left(self._bases, address)
        if index == len(self._bases) or self._bases[index] != address:
            raise OutOfBounds(f"free of {address:#x}: {self.describe(address)}")
        self._freed.append((address, self._live[index].nbytes))
        self.used_bytes -= self._live[index].nbytes
        del self._bases[index], self._live[index]

    def reset_peak(self) -> None:
        """Measure the peak anew from what is in use now."""
        self.peak_bytes = self.used_bytes

    def data(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return the bytes themselves; who writes them says so in `written`."""
        allocation, first = self._part(address, nbytes)
        return allocation.bytes[first : first + nbytes]

    def written(self, address: int, nbytes: int) -> npt.NDArray[np.bool_]:
        """Return the flags of the bytes."""
        allocation, first = self._part(address, nbytes)
        allocation.complete = False  # the caller may clear flags
        return allocation.written[first : first + nbytes].view(np.bool_)

    def find(self, address: int) -> Allocation | None:
        """Return the live allocation that holds the byte at ``address``."""
        index = bisect.bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        allocation = self._live[index]
        return allocation if address < allocation.base + allocation.nbytes else None

    def describe(self, address: int) -> str:
        """Say what lies at or next to an address, for a message."""
        if address < 1 << 16:
            return "a null pointer"
        allocation = self.find(address)
        if allocation is not None:
            return f"byte {address - allocation.base} of {allocation}"
        for base, nbytes in self._freed:
            if base <= address < base + max(nbytes, 1):
                return f"byte {address - base} of {nbytes} bytes that were freed ({base:#x})"
        index = bisect.bisect_right(self._bases, address) - 1
        if index < 0:
            return "below every allocation"
        last = self._live[index]
        return f"{address - last.base - last.nbytes} bytes after the end of {last}"

    def _part(self, address: int, nbytes: int) -> tuple[Allocation, int]:
        index = bisect.bisect_right(self._bases, address) - 1
        if index >= 0:
            allocation = self._live[index]
            first = address - allocation.base
            if first + nbytes <= allocation.nbytes:
                return allocation, first
        raise OutOfBounds(f"{nbytes} bytes at {address:#x}: {self.describe(address)}")
