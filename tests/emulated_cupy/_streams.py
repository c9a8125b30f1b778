"""Streams and events. Work is done at once, so a stream is an identity, and may be capturing.

Which stream is current is a matter of the thread and of the device, as in CuPy.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._devices import CUDARuntimeError, get_device_id
from ._log import Synchronisation, record

STREAM_LEGACY = 1
STREAM_PER_THREAD = 2

_thread = threading.local()
_pointers = itertools.count(0x5000_0000, 0x100)
_capturing: set[int] = set()


def _stacks() -> dict[int, list[Stream]]:
    if not hasattr(_thread, "stacks"):
        _thread.stacks, _thread.current, _thread.entered = {}, {}, []
    stacks: dict[int, list[Stream]] = _thread.stacks
    return stacks


class Stream:
    """A CUDA stream."""

    null: Stream
    ptds: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        if null:
            self.ptr, self.device_id = 0, -1
        elif ptds:
            self.ptr, self.device_id = STREAM_PER_THREAD, -1
        else:
            self.ptr, self.device_id = next(_pointers), get_device_id()
        self._non_blocking = bool(non_blocking) and self.ptr > STREAM_PER_THREAD
        self._priority = 0 if priority is None else priority

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def __enter__(self) -> Stream:
        device = self._matched_device()
        stacks = _stacks()
        stacks.setdefault(device, [Stream.null]).append(self)
        _thread.entered.append(device)
        _thread.current[device] = self
        return self

    def __exit__(self, *args: Any) -> None:
        stacks = _stacks()
        device = _thread.entered.pop()
        stacks[device].pop()
        _thread.current[device] = stacks[device][-1]

    def use(self) -> Stream:
        """Make this stream current."""
        device = self._matched_device()
        _stacks()
        _thread.current[device] = self
        return self

    def _matched_device(self) -> int:
        current = get_device_id()
        if self.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id})"
                f" does not match with the current device ({current})"
            )
        return current

    @property
    def done(self) -> bool:
        return True

    @property
    def is_non_blocking(self) -> bool:
        return self._non_blocking

    @property
    def priority(self) -> int:
        return self._priority

    def synchronize(self) -> None:
        """Wait for the work queued so far."""
        synchronize_stream(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        """Record an event, a new one by default."""
        return Event() if event is None else event

    def wait_event(self, event: Event) -> None:
        """Let the work queued from now on wait for an event."""
        if not isinstance(event.ptr, int):
            raise TypeError(f"an event is needed, got {event!r}")

    def is_capturing(self) -> bool:
        """Tell whether a CUDA graph is being captured."""
        return self.ptr in _capturing


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


class Event:
    """A CUDA event."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self.ptr = next(_pointers)

    @property
    def done(self) -> bool:
        return True

    def record(self, stream: Stream | None = None) -> None:
        """Record the event in a stream, the current one by default."""
        (get_current_stream() if stream is None else stream).record(self)

    def synchronize(self) -> None:
        """Wait for the work before the event."""
        record(Synchronisation("event", get_device_id()))


def get_current_stream(device_id: int = -1) -> Stream:
    """Return the current stream of a device, by default of the current one."""
    _stacks()
    stream: Stream = _thread.current.get(
        get_device_id() if device_id == -1 else device_id, Stream.null
    )
    return stream


def current_pointer() -> int:
    """Return the pointer of the current stream of the current device."""
    return get_current_stream().ptr


def pointer_of(stream: Stream | None) -> int:
    """Return the pointer of a stream, of the current one for None."""
    return current_pointer() if stream is None else stream.ptr


def synchronize_stream(pointer: int) -> None:
    """Wait for a stream."""
    if pointer in _capturing:
        raise CUDARuntimeError(900)
    record(Synchronisation("stream", get_device_id()))


def is_capturing(pointer: int) -> bool:
    """Tell whether the stream of that pointer is capturing."""
    return pointer in _capturing


@contextmanager
def capturing(stream: Stream) -> Iterator[None]:
    """Put a stream into capture; its work is done at once all the same, and makes no graph."""
    if stream.ptr in (0, STREAM_LEGACY):
        raise RuntimeError("cannot capture on the default (legacy) stream")
    _capturing.add(stream.ptr)
    try:
        yield
    finally:
        _capturing.discard(stream.ptr)
