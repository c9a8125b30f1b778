"""What a test may choose about the emulated machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Settings:
    """The machine; ``count``, ``check`` and ``schedule`` go to the emulator's launches.

    Without ``execute`` kernels, products and memsets are refused and logged as ever but do nothing,
    and what they would have written may be read: a rehearsal of calls too large to be emulated.
    With ``last_blocks`` only so many blocks of each launch run, the last ones.
    """

    compute_capability: str = "90"
    devices: int = 2
    total_memory: int = 80 * 2**30
    multiprocessors: int = 132
    shared_bytes_optin: int = 227 * 1024
    l2_bytes: int = 50 * 2**20
    clock_khz: int = 1_980_000
    memory_khz: int = 2_619_000
    memory_bits: int = 5120
    count: bool = False
    check: bool = True
    execute: bool = True
    last_blocks: int | None = None
    schedule: int | None = None


settings = Settings()


@contextmanager
def configure(**changes: Any) -> Iterator[Settings]:
    """Change settings for a block of code."""
    unknown = set(changes) - {field.name for field in fields(settings)}
    if unknown:
        raise TypeError(f"no setting is called {', '.join(sorted(unknown))}")
    before = {name: getattr(settings, name) for name in changes}
    _assign(changes)
    try:
        yield settings
    finally:
        _assign(before)


def _assign(values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(settings, name, value)
