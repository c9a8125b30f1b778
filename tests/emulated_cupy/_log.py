"""What the stand-in did, for tests to assert: launches, products, copies, allocations, waits.

A result that is right can still have cost a hidden copy or a synchronisation. The log makes such
costs visible: one entry for each thing a real device would have been asked to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel of a RawModule; ``counters`` is what the emulator counted, None in a rehearsal;
    ``code`` is the source it was compiled from.
    """

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    device: int
    stream: int
    counters: Any
    code: str | None = field(repr=False)


@dataclass(frozen=True)
class Product:
    """A cuBLAS call, in cuBLAS's own (column-major) terms; types are CUDA's and cuBLAS's names."""

    function: str
    transa: int
    transb: int
    m: int
    n: int
    k: int
    batch: int
    a_type: str
    b_type: str
    c_type: str
    compute_type: str
    alpha: float
    beta: float
    bytes_read: int
    bytes_written: int
    device: int
    stream: int


@dataclass(frozen=True)
class Operation:
    """A kernel of CuPy's own (under the name CuPy gives it), a memset or a copy on the device."""

    name: str
    bytes_read: int
    bytes_written: int
    device: int
    stream: int


@dataclass(frozen=True)
class Allocation:
    """Device memory taken: the bytes asked for, before a pool rounds them up."""

    nbytes: int
    device: int


@dataclass(frozen=True)
class Transfer:
    """A copy between host and device; ``direction`` is "to device" or "to host"."""

    direction: str
    nbytes: int
    device: int


@dataclass(frozen=True)
class Synchronisation:
    """The host waits; ``what`` names what was waited for: device, stream or event."""

    what: str
    device: int


class Log:
    """Entries in the order they were made, by any thread."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()

    def of(self, kind: type) -> list[Any]:
        """Return the entries of one class."""
        return [entry for entry in list(self.entries) if isinstance(entry, kind)]

    @property
    def launches(self) -> list[Launch]:
        return self.of(Launch)

    @property
    def products(self) -> list[Product]:
        return self.of(Product)

    @property
    def operations(self) -> list[Operation]:
        return self.of(Operation)

    @property
    def allocations(self) -> list[Allocation]:
        return self.of(Allocation)

    @property
    def transfers(self) -> list[Transfer]:
        return self.of(Transfer)

    @property
    def synchronisations(self) -> list[Synchronisation]:
        return self.of(Synchronisation)


log = Log()
_open = [log]


def record(entry: Any) -> None:
    """Add an entry to the log and to every recording under way."""
    for each in list(_open):
        each.entries.append(entry)


@contextmanager
def recorded() -> Iterator[Log]:
    """Give a log of its own to a block of code."""
    own = Log()
    _open.append(own)
    try:
        yield own
    finally:
        _open[:] = [each for each in _open if each is not own]
