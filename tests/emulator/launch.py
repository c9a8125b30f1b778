"""One launch: what a device would refuse, the arguments, and the batches of blocks one by one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .counters import CLASSES, Counters
from .errors import BadLaunch, Place, UnsupportedInstruction
from .kernel import Kernel
from .machine import Batch
from .memory import Allocation, Memory, zeros
from .races import Races

LANES = 32768  # of a batch: its arrays stay in the second-level cache
PRIVATE_BYTES = 1 << 26  # of the shared or local memory of a batch
SHARED_DEFAULT = 48 << 10
SHARED_MOST = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 101: 227, 103: 227}
SHARED_MOST |= {110: 227, 120: 99, 121: 99}


class Schedule:
    """The order of a launch's blocks, and of lanes that update memory at once: a number's, or none.

    Without a number both come as they are counted.
    """

    def __init__(self, number: int | None, blocks: int) -> None:
        self._random = None if number is None else np.random.default_rng(number)
        self.blocks = None if self._random is None else self._random.permutation(blocks)

    def turns(self, lanes: int) -> Any:
        """Return the order of some lanes, None for their own."""
        return None if self._random is None else self._random.permutation(lanes)

    def block(self, place: int) -> int:
        """Return which block comes at a place."""
        return place if self.blocks is None else int(self.blocks[place])


class Launch:
    """A grid of blocks of a kernel."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        memory: Memory,
        symbols: dict[str, int],
        constants: Allocation,
        *,
        shared_bytes: int,
        shared_limit: int,
        count: bool,
        check: bool,
        step_limit: int,
        first_block: int,
        schedule: int | None,
    ) -> None:
        self.kernel = kernel
        self.grid = _three(grid)
        self.block = _three(block)
        self.memory = memory
        self.symbols = symbols
        self.constants = constants
        self.count = count
        self.check = check
        self.step_limit = step_limit
        self.first_block = first_block
        self.threads = math.prod(self.block)
        self.blocks_in_grid = math.prod(self.grid)
        self.schedule = Schedule(schedule, self.blocks_in_grid)
        self.shared_bytes = kernel.static_shared + shared_bytes
        self._refuse(shared_limit)
        self.parameter_store = self._parameter_store(arguments)
        self.last: dict[Any, Allocation] = {}
        self.asked: set[Allocation] = set()
        self.races = Races()
        self.counters = Counters()
        self._marks: dict[tuple[Allocation, str], Any] = {}

    def run(self) -> Counters:
        """Run all blocks."""
        kernel = self.kernel
        kernel.prepare()
        self.parameters = self._parameter_values()
        self.threads_at = [0] * len(kernel.blocks)
        self.warps_at = [0] * len(kernel.blocks)
        self.classes_at = np.zeros(len(CLASSES), np.int64)
        per_batch = self._blocks_per_batch()
        with np.errstate(all="ignore"):
            for first in range(self.first_block, self.blocks_in_grid, per_batch):
                Batch(self, first, min(per_batch, self.blocks_in_grid - first)).run()
        return self._totals() if self.count else self.counters

    def touched(self, store: Allocation, use: str) -> Any:
        """Return the marks of the bytes this launch read, wrote or updated by atomics."""
        key = store, use
        if key not in self._marks:
            self._marks[key] = zeros(store.bytes.size)
        return self._marks[key]

    def _totals(self) -> Counters:
        counters = self.counters
        counters.launches = 1
        counters.blocks = self.blocks_in_grid
        counters.threads = self.blocks_in_grid * self.threads
        matrix = self.kernel.class_matrix
        classes = np.array(self.threads_at) @ matrix + self.classes_at
        counters.classes = {name: int(classes[at]) for at, name in enumerate(CLASSES)}
        counters.thread_instructions = int(classes.sum())
        sizes = [len(block.instructions) for block in self.kernel.blocks]
        counters.warp_instructions = int(np.dot(self.warps_at, sizes))
        for (_, name), marks in self._marks.items():
            touched = int(np.count_nonzero(marks))
            sectors = int(np.count_nonzero(marks.view(np.uint64).reshape(-1, 4).any(axis=1)))
            setattr(counters, f"bytes_{name}", getattr(counters, f"bytes_{name}") + touched)
            setattr(counters, f"sectors_{name}", getattr(counters, f"sectors_{name}") + sectors)
        return counters

    def _blocks_per_batch(self) -> int:
        lanes = max(1, LANES // self.threads)
        if self.shared_bytes:
            lanes = min(lanes, max(1, PRIVATE_BYTES // self.shared_bytes))
        if self.kernel.local_bytes:
            lanes = min(lanes, max(1, PRIVATE_BYTES // (self.kernel.local_bytes * self.threads)))
        return lanes

    def _refuse(self, shared_limit: int) -> None:
        """Raise for what a device would not start."""
        for axis, size, most in zip("xyz", self.block, (1024, 1024, 64), strict=True):
            self._demand(1 <= size <= most, f"block.{axis} = {size}: expected 1 to {most}")
        for axis, size, most in zip("xyz", self.grid, (2**31 - 1, 65535, 65535), strict=True):
            self._demand(1 <= size <= most, f"grid.{axis} = {size}: expected 1 to {most}")
        self._demand(self.threads <= 1024, f"a block of {self.threads} threads: at most 1024")
        most = self.kernel.max_threads
        self._demand(
            self.threads <= most,
            f"a block of {self.threads} threads: __launch_bounds__ says {most}",
        )
        device = SHARED_MOST.get(_target(self.kernel.program.target), 48) << 10
        self._demand(
            shared_limit <= device,
            f"opted in to {shared_limit} bytes of shared memory, of {device}",
        )
        self._demand(
            self.shared_bytes <= shared_limit,
            f"{self.shared_bytes} bytes of shared memory: at most {shared_limit}",
        )

    def _demand(self, fine: bool, what: str) -> None:
        if not fine:
            raise BadLaunch(what, Place(self.kernel.name))

    def _parameter_store(self, arguments: Sequence[bytes]) -> Allocation:
        expected = self.kernel.parameters
        self._demand(
            len(arguments) == len(expected),
            f"{len(arguments)} arguments: expected {len(expected)}",
        )
        store = Allocation(0, self.kernel.parameter_bytes, "private")
        for value, (name, size, _) in zip(arguments, expected, strict=True):
            self._demand(len(value) == size, f"{name} of {len(value)} bytes: expected {size}")
            first = self.kernel.symbols[name][1]
            store.bytes[first : first + size] = np.frombuffer(value, np.uint8)
        store.complete = True
        return store

    def _parameter_values(self) -> list[Any]:
        data = self.parameter_store.bytes
        return [
            data[offset : offset + int(code[1])].view(code)[0]
            for offset, code in self.kernel.wanted_parameters
        ]

    def special(self, batch: Batch, name: str) -> Any:
        """Return a special register of all threads of a batch, or one value for all of them."""
        register, _, axis = name[1:].partition(".")
        at = "xyz".find(axis) if axis else -1
        if register == "ntid":
            return np.uint32(self.block[at])
        if register == "nctaid":
            return np.uint32(self.grid[at])
        if register == "tid":
            return _thread_index(self.block, batch.blocks, at)
        if register == "ctaid":
            return self._block_index(batch, at)
        if register in {"laneid", "warpid"} or register.startswith("lanemask"):
            return _in_warp(register, self.threads, batch.blocks)
        if register in FIXED:
            return np.uint64(0) if register.endswith(("64", "globaltimer")) else np.uint32(0)
        if register == "nwarpid":
            return np.uint32(-(-self.threads // 32))
        if register == "dynamic_smem_size":
            return np.uint32(self.shared_bytes - self.kernel.static_shared)
        if register == "total_smem_size":
            return np.uint32(self.shared_bytes)
        raise UnsupportedInstruction(f"special register {name}", Place(self.kernel.name))

    def _block_index(self, batch: Batch, at: int) -> Any:
        x, y, _ = self.grid
        divisor, modulus = (1, x, x * y)[at], self.grid[at]
        if self.schedule.blocks is not None:
            numbers = self.schedule.blocks[batch.first_block : batch.first_block + batch.blocks]
            return np.repeat((numbers // divisor % modulus).astype(np.uint32), self.threads)
        first = batch.first_block // divisor
        if (batch.first_block + batch.blocks - 1) // divisor == first:
            return np.uint32(first % modulus)
        numbers = np.arange(batch.first_block, batch.first_block + batch.blocks)
        return np.repeat((numbers // divisor % modulus).astype(np.uint32), self.threads)


FIXED = {"clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "smid", "nsmid", "gridid"}


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*(int(size) for size in sizes), 1, 1, 1)[:3]
    return x, y, z


def _target(name: str) -> int:
    return int("".join(character for character in name if character.isdigit()) or 0)


@functools.lru_cache(maxsize=64)
def _thread_index(block: tuple[int, int, int], blocks: int, at: int) -> Any:
    x, y, z = block
    if block[at] == 1:
        return np.uint32(0)
    index = np.arange(x * y * z) // (1, x, x * y)[at] % block[at]
    return np.tile(index.astype(np.uint32), blocks)


@functools.lru_cache(maxsize=64)
def _in_warp(name: str, threads: int, blocks: int) -> Any:
    thread = np.arange(threads)
    lane = (thread & 31).astype(np.uint32)
    if name == "warpid":
        return np.tile((thread >> 5).astype(np.uint32), blocks)
    one = np.uint32(1)
    below = (one << lane) - one
    value = {
        "laneid": lane,
        "lanemask_eq": one << lane,
        "lanemask_lt": below,
        "lanemask_le": below | one << lane,
        "lanemask_gt": ~(below | one << lane),
        "lanemask_ge": ~below,
    }[name]
    return np.tile(value, blocks)
