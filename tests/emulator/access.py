"""Loads, stores and atomics of a batch of lanes, checked before they happen.

An address becomes an element number in a store: an allocation of global memory, or the batch's
shared or local memory, where each block or lane has its own part. The checks look at all lanes at
once: lowest and highest address, the low bits of all of them, and whether the bytes read were
written. What was touched is logged for the counters and for the search for races, which work on
many accesses at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import atomics
from .errors import Crime, Misaligned, OutOfBounds, Place, Uninitialised, UnsupportedInstruction
from .layout import SHARED_BASE, WINDOWS
from .memory import Allocation

if TYPE_CHECKING:
    from .launch import Launch

FULL = {1: np.uint8(1), 2: np.uint16(0x0101), 4: np.uint32(0x01010101)}
FULL[8] = np.uint64(0x0101010101010101)
WINDOW_BITS = np.uint64(40)


@dataclass(eq=False)
class Access:
    """An instruction that touches memory, as far as it is known before it runs."""

    place: Place
    kind: str
    space: str
    code: str
    count: int
    operation: str
    offset: int = 0
    returns: bool = False
    flushes: bool = False
    width: int = field(init=False)
    shift: int = field(init=False)
    inside: dict[str, Access] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.width = int(self.code[1]) * self.count
        self.shift = self.width.bit_length() - 1

    def within(self, space: str) -> Access:
        """Return the same access in the state space a generic address turned out to be in."""
        if space not in self.inside:
            self.inside[space] = replace(self, space=space, offset=self.offset - WINDOWS[space])
        return self.inside[space]


class _Apart(Exception):
    """The lanes of one access touch several stores: ``keys`` says which lane which."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys


class Accesses:
    """What a batch does to memory."""

    launch: Launch
    log: Any
    W: int
    shared: Allocation
    local: Allocation
    shared_bytes: int
    local_bytes: int

    def load(self, access: Access, address: Any, where: Any = None) -> Any:
        """Return what lies at the addresses: an array, or a tuple of arrays for a vector."""
        chosen = _chosen(where)
        if chosen is None:
            near = address
        elif not chosen.size:
            return _spread(access, None, chosen, self.W)
        else:
            near = _pick(address, chosen)
        try:
            store, index = self._resolve(access, near, chosen)
        except _Apart as apart:
            return self._load_apart(access, address, where, apart.keys, chosen)
        if not store.complete:
            self._demand_written(access, store, index, chosen)
        self.log.add(access, store, index, chosen)
        values = _take(store, access, index)
        return values if chosen is None else _spread(access, values, chosen, self.W)

    def store(self, access: Access, address: Any, values: tuple, where: Any = None) -> None:
        """Write to the addresses."""
        chosen = _chosen(where)
        near, given = address, values
        if chosen is not None:
            if not chosen.size:
                return
            near, given = _pick(address, chosen), tuple(_pick(value, chosen) for value in values)
        try:
            store, index = self._resolve(access, near, chosen)
        except _Apart as apart:
            for part in self._parts(apart.keys, chosen):
                self.store(access, address, values, part)
            return
        if store is self.launch.constants or store is self.launch.parameter_store:
            self._blame(OutOfBounds, "a store to read-only memory", access, chosen, 0)
        index = self._each(index, chosen)
        _put(store, access, index, given)
        if not store.complete:
            _mark(store, access.width, index)
        self.log.add(access, store, index, chosen)

    def atomic(
        self, access: Access, address: Any, values: tuple, third: Any, where: Any = None
    ) -> Any:
        """Change what lies at the addresses, one lane after the other; return what was there."""
        chosen = _chosen(where)
        near, given, last = address, values, third
        if chosen is not None:
            if not chosen.size:
                return _spread(access, None, chosen, self.W)
            near, given = _pick(address, chosen), tuple(_pick(value, chosen) for value in values)
            last = _pick(third, chosen)
        try:
            store, index = self._resolve(access, near, chosen)
        except _Apart as apart:
            if access.returns:
                raise UnsupportedInstruction("old values of several places", access.place) from None
            for part in self._parts(apart.keys, chosen):
                self.atomic(access, address, values, third, part)
            return None
        index = self._each(index, chosen)
        if not store.complete:
            self._demand_written(access, store, index, chosen)
        self.log.add(access, store, index, chosen)
        turns = self.launch.schedule.turns(index.size)
        old = atomics.apply(access, store, index, given, last, turns)
        if not access.returns:
            return None
        old = old if access.count > 1 else old[0]
        return old if chosen is None else _spread(access, old, chosen, self.W)

    def _load_apart(self, access: Access, address: Any, where: Any, keys: Any, chosen: Any) -> Any:
        del where
        total = None
        for part in self._parts(keys, chosen):
            values = self.load(access, address, part)
            values = values if access.count > 1 else (values,)
            if total is None:
                total = values
            else:
                total = tuple(
                    np.where(part, new, old) for new, old in zip(values, total, strict=True)
                )
        assert total is not None
        return total if access.count > 1 else total[0]

    def _parts(self, keys: Any, chosen: Any) -> list[Any]:
        """Return a mask over all lanes for each of the stores touched."""
        lanes = np.arange(self.W) if chosen is None else chosen
        parts = []
        for key in np.unique(keys):
            part = np.zeros(self.W, bool)
            part[lanes[keys == key]] = True
            parts.append(part)
        return parts

    def _each(self, index: Any, chosen: Any) -> Any:
        """Return an element number for each lane that takes part."""
        if type(index) is np.ndarray:
            return index
        return np.full(self.W if chosen is None else chosen.size, index)

    def _resolve(self, access: Access, address: Any, chosen: Any) -> tuple[Allocation, Any]:
        space = access.space
        if space == "global":
            return self._resolve_global(access, address, chosen)
        if space == "shared":
            return self._resolve_part(access, address, chosen, self.shared)
        if space == "local":
            return self._resolve_part(access, address, chosen, self.local)
        if space == "const":
            return self._resolve_part(access, address, chosen, self.launch.constants)
        if space == "param":
            return self._resolve_part(access, address, chosen, self.launch.parameter_store)
        return self._resolve_generic(access, address, chosen)

    def _resolve_generic(self, access: Access, address: Any, chosen: Any) -> tuple[Allocation, Any]:
        windows = (address + np.uint64(access.offset % (1 << 64))) >> WINDOW_BITS
        if type(windows) is np.ndarray:
            if windows.min() != windows.max():
                raise _Apart(windows)
            window = int(windows[0])
        else:
            window = int(windows)
        for space, base in WINDOWS.items():
            if base >> 40 == window:
                return self._resolve(access.within(space), address, chosen)
        return self._resolve_global(access, address, chosen)

    def _resolve_global(self, access: Access, address: Any, chosen: Any) -> tuple[Allocation, Any]:
        several = type(address) is np.ndarray
        offset = access.offset
        low = int(address.min() if several else address) + offset
        high = (int(address.max()) + offset if several else low) + access.width
        last = self.launch.last
        store = last.get(access)
        if store is None or low < store.base or high > store.base + store.nbytes:
            store = self.launch.memory.find(low)
            if store is None or high > store.base + store.nbytes:
                self._astray(access, address, chosen)
            last[access] = store
        if not several:
            if low & access.width - 1:
                self._misaligned(access, address, chosen)
            return store, np.intp((low - store.base) >> access.shift)
        index = address - np.uint64((store.base - offset) % (1 << 64))
        if access.width > 1:
            if int(np.bitwise_or.reduce(index)) & access.width - 1:
                self._misaligned(access, address, chosen)
            index >>= np.uint64(access.shift)
        return store, index.view(np.int64)

    def _resolve_part(
        self, access: Access, address: Any, chosen: Any, store: Allocation
    ) -> tuple[Allocation, Any]:
        """Find the element in memory that each block or lane has a part of."""
        start = np.int64(access.offset - (SHARED_BASE if access.space == "shared" else 0))
        several = type(address) is np.ndarray
        index = address.astype(np.int64) + start
        size = self._part_size(access.space)
        low, high = (int(index.min()), int(index.max())) if several else (int(index),) * 2
        if low < 0 or high + access.width > size:
            self._outside(access, index, chosen, size)
        low_bits = int(np.bitwise_or.reduce(index)) if several else int(index)
        if low_bits & access.width - 1:
            self._misaligned(access, address, chosen)
        index = index >> np.int64(access.shift)
        first = self.first_of_part(access.space, access.shift)
        if type(first) is np.ndarray and chosen is not None:
            first = first[chosen]
        return store, index + first

    def first_of_part(self, space: str, shift: int) -> Any:
        """Return the number of the first element of each active lane's part."""
        raise NotImplementedError

    def _part_size(self, space: str) -> int:
        if space == "shared":
            return self.shared_bytes
        if space == "local":
            return self.local_bytes
        if space == "const":
            return self.launch.constants.nbytes
        return self.launch.parameter_store.nbytes

    def _demand_written(self, access: Access, store: Allocation, index: Any, chosen: Any) -> None:
        if store not in self.launch.asked:  # memory written to the full need not be asked again
            self.launch.asked.add(store)
            store.refresh()
        width = min(access.width, 8)
        flags = store.flags(f"u{width}")
        if access.width > 8:
            good = (flags.reshape(-1, access.width // 8)[index] == FULL[8]).all(axis=-1)
        else:
            good = flags.take(index) == FULL[width]
        if good.all():
            return
        at = int(np.argmin(np.atleast_1d(good)))
        element = int(np.atleast_1d(index)[at]) * access.width
        what = f"{access.width} bytes that nobody wrote, "
        what += self._name(access, store, element)
        self._blame(Uninitialised, what, access, chosen, at)

    def _name(self, access: Access, store: Allocation, element: int) -> str:
        if store is self.shared:
            return f"byte {element % store.stride} of shared memory"
        if store is self.local:
            return f"byte {element % store.stride} of local memory"
        return (
            f"byte {element} of {store}" if access.space != "const" else f"byte {element} of const"
        )

    def _astray(self, access: Access, address: Any, chosen: Any) -> NoReturn:
        """Raise for the first lane that is outside; else its lanes are in several allocations."""
        memory, width = self.launch.memory, access.width
        keys = []
        for at, value in enumerate(np.atleast_1d(address).tolist()):
            place = value + access.offset
            store = memory.find(place)
            if store is None or place + width > store.base + store.nbytes:
                what = f"{width} bytes at {place:#x}: {memory.describe(place)}"
                self._blame(OutOfBounds, what, access, chosen, at)
            keys.append(store.base)
        raise _Apart(np.array(keys))

    def _outside(self, access: Access, index: Any, chosen: Any, size: int) -> NoReturn:
        bad = np.atleast_1d((index < 0) | (index + access.width > size))
        at = int(np.argmax(bad))
        first = int(np.atleast_1d(index)[at])
        what = f"{access.width} bytes at byte {first} of {size} of {access.space} memory"
        self._blame(OutOfBounds, what, access, chosen, at)

    def _misaligned(self, access: Access, address: Any, chosen: Any) -> NoReturn:
        places = np.atleast_1d(address).astype(np.uint64) + np.uint64(access.offset % (1 << 64))
        at = int(np.argmax((places & np.uint64(access.width - 1)) != 0))
        what = f"{access.width} bytes at {int(places[at]):#x}, no multiple of {access.width}"
        self._blame(Misaligned, what, access, chosen, at)

    def _blame(
        self, crime: type[Crime], what: str, access: Access, chosen: Any, at: int
    ) -> NoReturn:
        """Raise, naming the thread of the ``at``-th lane that takes part."""
        lane = at if chosen is None else int(chosen[at])
        raise crime(what, replace(access.place, thread=self.thread_of_active(lane)))

    def thread_of_active(self, lane: int) -> str:
        """Name the thread of an active lane."""
        raise NotImplementedError


def _chosen(where: Any) -> Any:
    """Return which active lanes take part: None for all of them."""
    if where is None:
        return None
    if type(where) is not np.ndarray:
        return None if where else np.zeros(0, np.intp)
    chosen = np.flatnonzero(where)
    return None if chosen.size == where.size else chosen


def _pick(value: Any, chosen: Any) -> Any:
    return value[chosen] if type(value) is np.ndarray else value


def _spread(access: Access, values: Any, chosen: Any, lanes: int) -> Any:
    """Put the values of some lanes among all active ones."""
    parts = values if access.count > 1 else (values,)
    spread = []
    for at in range(access.count):
        whole = np.zeros(lanes, access.code)
        if values is not None:
            whole[chosen] = parts[at]
        spread.append(whole)
    return tuple(spread) if access.count > 1 else spread[0]


def _take(store: Allocation, access: Access, index: Any) -> Any:
    view = store.view(access.code)
    if access.count == 1:
        return view.take(index)
    rows = view.reshape(-1, access.count)
    if type(index) is not np.ndarray:
        return tuple(rows[index])
    return tuple(np.ascontiguousarray(rows.take(index, axis=0).T))


def _put(store: Allocation, access: Access, index: Any, values: tuple) -> None:
    view = store.view(access.code)
    if access.count == 1:
        view[index] = values[0]
        return
    rows = np.empty((index.size, access.count), access.code)
    for at, value in enumerate(values):
        rows[:, at] = value
    view.reshape(-1, access.count)[index] = rows


def _mark(store: Allocation, width: int, index: Any) -> None:
    if width <= 8:
        store.flags(f"u{width}")[index] = FULL[width]
    else:
        store.flags("u8").reshape(-1, width // 8)[index] = FULL[8]
