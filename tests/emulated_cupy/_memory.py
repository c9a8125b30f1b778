"""Device memory: pointers, allocators and the pool, over the emulator's memory.

Every request is an allocation of its own in the emulator, of exactly the bytes asked for, so that a
step past an array's end is caught even where a real pool would have left room, and reused memory is
as unwritten as new. The pool keeps CuPy's books (rounding, splitting, merging, limits) beside it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from emulator import Uninitialised

from . import _devices
from ._devices import CUDARuntimeError, Device, device_memory, get_device_id
from ._log import Allocation, Operation, Transfer, record
from ._numbers import c_longlong, c_size
from ._settings import settings
from ._streams import Stream, current_pointer, is_capturing, pointer_of

UNIT = 512  # what CuPy's pool rounds sizes up to


class OutOfMemoryError(MemoryError):
    """The device, or the limit set, has no room."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        if limit == 0:
            text = f"Out of memory allocating {size:,} bytes"
            if total != -1:
                text += f" (allocated so far: {total:,} bytes)."
        else:
            text = (
                f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes,"
                f" limit set to: {limit:,} bytes)."
            )
        super().__init__(text)

    def __reduce__(self) -> Any:
        return type(self), (self._size, self._total, self._limit)


class BaseMemory:
    """A range of device memory."""

    ptr: int
    size: int
    device_id: int

    def __int__(self) -> int:
        return self.ptr

    @property
    def device(self) -> Device:
        return Device(self.device_id)


class Memory(BaseMemory):
    """An allocation that is freed with its object."""

    def __init__(self, size: int) -> None:
        self.ptr = 0
        self.size = c_size(size)
        self.device_id = get_device_id()
        if self.size > 0:
            self.ptr = _allocate(self.size, self.device_id)

    def __del__(self) -> None:
        if self.ptr:
            _devices.release(self.device_id, self.ptr)


class UnownedMemory(BaseMemory):
    """Memory that something else owns."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = c_longlong(ptr), c_size(size), owner
        self.device_id = _devices.device_of(ptr) if device_id < 0 else device_id


def _allocate(nbytes: int, device: int) -> int:
    with _devices.lock:
        memory = device_memory(device)
        if memory.used_bytes + nbytes > settings.total_memory:
            raise CUDARuntimeError(2)
        address: int = memory.allocate(nbytes)
    record(Allocation(nbytes, device))
    return address


class MemoryPointer:
    """A place in a range of device memory."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        assert mem.ptr != 0 or offset == 0
        self.ptr = mem.ptr + c_longlong(offset)
        self.device_id = mem.device_id
        self.mem = mem

    def __int__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<{type(self).__name__} 0x{self.ptr:x} device={self.device_id} mem={self.mem!r}>"

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __add__(self, offset: int) -> MemoryPointer:
        assert self.ptr != 0 or offset == 0
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + c_longlong(offset))

    __radd__ = __add__

    def __iadd__(self, offset: int) -> MemoryPointer:
        assert self.ptr != 0 or offset == 0
        self.ptr += c_longlong(offset)
        return self

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def __isub__(self, offset: int) -> MemoryPointer:
        return self.__iadd__(-offset)

    def copy_from_device_async(
        self, src: MemoryPointer, size: int, stream: Stream | None = None
    ) -> None:
        """Copy within a device or between two; what is unwritten stays unwritten."""
        if c_size(size) == 0:
            return
        with _devices.lock:
            source, target = device_memory(src.device_id), device_memory(self.device_id)
            target.data(self.ptr, size)[...] = source.data(src.ptr, size).copy()
            target.written(self.ptr, size)[...] = source.written(src.ptr, size).copy()
        record(Operation("memcpy", size, size, self.device_id, pointer_of(stream)))

    def copy_from_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        """Copy from host memory, an address or a ctypes pointer."""
        _refuse_capturing(pointer_of(stream), "H2D")
        if c_size(size) == 0:
            return
        with _devices.lock:
            memory = device_memory(self.device_id)
            memory.data(self.ptr, size)[...] = _host_bytes(mem, size)
            memory.written(self.ptr, size)[...] = True
        record(Transfer("to device", size, self.device_id))

    def copy_from_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        """Copy from device or host memory."""
        if isinstance(mem, MemoryPointer):
            self.copy_from_device_async(mem, size, stream)
        else:
            self.copy_from_host_async(mem, size, stream)

    def copy_to_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        """Copy to host memory, an address or a ctypes pointer."""
        _refuse_capturing(pointer_of(stream), "D2H")
        if c_size(size) == 0:
            return
        with _devices.lock:
            memory = device_memory(self.device_id)
            require_written(memory.written(self.ptr, size), "a copy to the host")
            _host_bytes(mem, size)[...] = memory.data(self.ptr, size)
        record(Transfer("to host", size, self.device_id))

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        """Fill with one byte value."""
        if c_size(size) == 0:
            return
        with _devices.lock:
            memory = device_memory(self.device_id)
            target, written = memory.data(self.ptr, size), memory.written(self.ptr, size)
            if settings.execute:
                target[...], written[...] = value & 0xFF, True
        record(Operation("memset", 0, size, self.device_id, pointer_of(stream)))


def require_written(written: Any, reader: str) -> None:
    """Raise if any of the bytes to be read has never been written."""
    if not written.all():
        missing = int(written.size - np.count_nonzero(written))
        raise Uninitialised(f"{reader} reads {missing} bytes that nothing has written")


def _host_bytes(mem: Any, size: int) -> Any:
    address = mem if isinstance(mem, int) else mem.value
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _refuse_capturing(pointer: int, direction: str) -> None:
    if is_capturing(pointer):
        raise RuntimeError(
            f"the current stream is capturing, so {direction} transfers are disallowed"
        )


Allocator = Callable[[int], MemoryPointer]


def _malloc(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size), 0)


_thread = threading.local()
_allocators: list[Allocator] = [_malloc]  # one: the allocator of all threads


def alloc(size: int) -> MemoryPointer:
    """Call the current allocator."""
    return get_allocator()(size)


def get_allocator() -> Allocator:
    """Return the current allocator."""
    own: Allocator | None = getattr(_thread, "allocator", None)
    return _allocators[0] if own is None else own


def set_allocator(allocator: Allocator | None = None) -> None:
    """Set the allocator of all threads; None is the one without a pool."""
    if getattr(_thread, "allocator", None) is not None:
        raise ValueError(
            "Can't change the global allocator inside `using_allocator` context manager"
        )
    _allocators[0] = _malloc if allocator is None else allocator


@contextmanager
def using_allocator(allocator: Allocator | None = None) -> Iterator[None]:
    """Set the allocator of this thread for a block of code."""
    before = getattr(_thread, "allocator", None)
    _thread.allocator = _malloc if allocator is None else allocator
    try:
        yield
    finally:
        _thread.allocator = before


def current_stream_key() -> int:
    """Return what a pool keeps its free blocks by."""
    return current_pointer()
