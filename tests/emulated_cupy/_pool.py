"""CuPy's memory pool: its books, not its blocks.

What a test asks of a pool is how many bytes a call takes from the device, which depends on CuPy's
rules: sizes in units of 512, the smallest free block that fits, split where it is too large, merged
when its neighbours are free, kept apart by stream. A block here is a size in these books; the bytes
themselves are taken from the emulator and given back for every array.
"""

from __future__ import annotations

import gc
from collections import deque
from typing import Any

from . import _devices
from ._devices import CUDARuntimeError, get_device_id
from ._memory import (
    UNIT,
    BaseMemory,
    Memory,
    MemoryPointer,
    OutOfMemoryError,
    _allocate,
    _malloc,
    current_stream_key,
    set_allocator,
)
from ._numbers import c_size
from ._settings import settings
from ._streams import Stream


class _Block:
    """A block, or the part of one that a split left."""

    def __init__(self, size: int, stream: int) -> None:
        self.size, self.stream = size, stream
        self.before: _Block | None = None
        self.after: _Block | None = None

    def split(self, size: int) -> _Block:
        """Keep the first ``size`` bytes and return the rest."""
        rest = _Block(self.size - size, self.stream)
        rest.before, rest.after = self, self.after
        if rest.after is not None:
            rest.after.before = rest
        self.size, self.after = size, rest
        return rest

    def absorb_next(self) -> None:
        """Undo a split."""
        assert self.after is not None
        self.size += self.after.size
        self.after = self.after.after
        if self.after is not None:
            self.after.before = self


class PooledMemory(BaseMemory):
    """Memory whose block goes back to the pool with its object."""

    def __init__(self, block: _Block, pool: _DevicePool, nbytes: int) -> None:
        self.ptr = 0
        self.ptr = _allocate(nbytes, pool.device_id)
        self.size, self.device_id = block.size, pool.device_id
        self._block, self._pool = block, pool

    def __del__(self) -> None:
        if self.ptr:
            _devices.release(self.device_id, self.ptr)
            self._pool.returned.append(self._block)


class _DevicePool:
    """The books of one device."""

    def __init__(self, device_id: int) -> None:
        self.device_id = device_id
        self.limit = self.total = self.used = 0
        self.free: list[_Block] = []
        self.returned: deque[_Block] = deque()  # finalisers run anywhere, so they only append

    def settle(self) -> None:
        """Book what finalisers returned."""
        while self.returned:
            block = self.returned.popleft()
            self.used -= block.size
            while block.after is not None and block.after in self.free:
                self.free.remove(block.after)
                block.absorb_next()
            while block.before is not None and block.before in self.free:
                block = block.before
                self.free.remove(block)
                block.absorb_next()
            self.free.append(block)

    def take(self, size: int, stream: int) -> _Block:
        """Return a block of exactly ``size`` bytes, from the free ones if one of them fits."""
        self.settle()
        fitting = [block for block in self.free if block.stream == stream and block.size >= size]
        if fitting:
            block = min(fitting, key=lambda each: each.size)
            self.free.remove(block)
            if block.size > size:
                self.free.append(block.split(size))
        else:
            self.make_room(size)
            block = _Block(size, stream)
            self.total += size
        self.used += size
        return block

    def make_room(self, size: int) -> None:
        """Raise unless ``size`` more bytes keep to the limit."""
        most = self.limit or settings.total_memory
        if size <= most and self.total + size > most:
            self.drop(None)
        if size <= most and self.total + size > most:
            gc.collect()
            self.drop(None)
        if self.total + size > most:
            raise OutOfMemoryError(size, self.total, self.limit)

    def drop(self, stream: int | None) -> None:
        """Give whole free blocks back to the device."""
        self.settle()
        whole = [
            block
            for block in self.free
            if block.before is None and block.after is None and stream in (None, block.stream)
        ]
        for block in whole:
            self.free.remove(block)
            self.total -= block.size


class MemoryPool:
    """A memory pool over all devices; only over the plain allocator, CuPy's default."""

    def __init__(self, allocator: Any = None) -> None:
        if allocator not in (None, _malloc):
            raise NotImplementedError("a pool over an allocator of one's own is not emulated")
        self._pools: dict[int, _DevicePool] = {}

    def _pool(self) -> _DevicePool:
        device = get_device_id()
        pool = self._pools.setdefault(device, _DevicePool(device))
        pool.settle()
        return pool

    def malloc(self, size: int) -> MemoryPointer:
        """Allocate memory, from the pool if possible."""
        size = c_size(size)
        if size == 0:
            return MemoryPointer(Memory(0), 0)
        with _devices.lock:
            pool = self._pool()
            block = pool.take(-(-size // UNIT) * UNIT, current_stream_key())
            try:
                memory = PooledMemory(block, pool, size)
            except CUDARuntimeError:
                pool.returned.append(block)
                pool.drop(None)
                raise OutOfMemoryError(block.size, pool.total, pool.limit) from None
            return MemoryPointer(memory, 0)

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Give the free blocks back to the device."""
        with _devices.lock:
            self._pool().drop(None if stream is None else stream.ptr)

    def n_free_blocks(self) -> int:
        """Count the free blocks."""
        with _devices.lock:
            return len(self._pool().free)

    def used_bytes(self) -> int:
        """Return the bytes in use."""
        with _devices.lock:
            return self._pool().used

    def free_bytes(self) -> int:
        """Return the bytes taken from the device and not in use."""
        with _devices.lock:
            pool = self._pool()
            return pool.total - pool.used

    def total_bytes(self) -> int:
        """Return the bytes taken from the device."""
        with _devices.lock:
            return self._pool().total

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Limit the bytes taken from the current device; 0 is no limit."""
        if size is not None and fraction is not None:
            raise ValueError("size and fraction cannot be specified at one time")
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"memory limit fraction out of range: {fraction}")
        if size is not None and size < 0:
            raise ValueError(f"memory limit size out of range: {size}")
        if fraction is not None:
            size = int(fraction * settings.total_memory)
        with _devices.lock:
            self._pool().limit = size or 0

    def get_limit(self) -> int:
        """Return the limit of the current device."""
        with _devices.lock:
            return self._pool().limit


default_pool = MemoryPool()
set_allocator(default_pool.malloc)


def get_default_memory_pool() -> MemoryPool:
    """Return the pool behind the default allocator."""
    return default_pool
