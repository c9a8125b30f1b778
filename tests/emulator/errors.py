"""What a kernel can do wrong: one exception for each kind, all of them a `Crime`.

A device would answer most of these with wrong numbers, now and then. Here each ends the launch, and
says where: kernel, line of PTX, line of the source (with ``-lineinfo``), instruction and thread.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where it happened."""

    kernel: str = ""
    line: int = 0
    instruction: str = ""
    source: str = ""
    thread: str = ""

    def __str__(self) -> str:
        parts = []
        if self.kernel:
            parts.append(f"kernel {self.kernel}")
        if self.line:
            parts.append(f"PTX line {self.line}")
        if self.source:
            parts.append(f"source {self.source}")
        if self.instruction:
            parts.append(f"instruction '{self.instruction}'")
        if self.thread:
            parts.append(self.thread)
        return ", ".join(parts)


class Crime(Exception):
    """Something no kernel may do; ``place`` says where it did."""

    def __init__(self, what: str, place: Place | None = None) -> None:
        self.what = what
        self.place = place or Place()
        where = str(self.place)
        super().__init__(f"{what} [{where}]" if where else what)


class OutOfBounds(Crime):
    """An access outside one live allocation, or one the state space does not have."""


class Misaligned(Crime):
    """An access at an address that is no multiple of its width."""


class Uninitialised(Crime):
    """A read of memory that nobody wrote."""


class Race(Crime):
    """Two threads at one address, one of them writing, with nothing that orders them."""


class BarrierDivergence(Crime):
    """A barrier, shuffle or vote that some of the threads it names never reach."""


class BadLaunch(Crime):
    """A grid, block, argument list or amount of shared memory that a device refuses."""


class EndlessLoop(Crime):
    """More steps than the launch was allowed."""


class Trap(Crime):
    """The kernel gave up by itself: ``trap``, as a failed ``assert`` makes it."""


class UnsupportedInstruction(Crime):
    """PTX that this emulator does not know; the kernel may be innocent."""
