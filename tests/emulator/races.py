"""Races: two threads at one byte, one of them writing, with nothing that orders the two.

What orders accesses: a barrier, for threads of one block; ``bar.warp.sync``, for lanes of one warp.
Threads of different blocks are never ordered. Atomics do not race with one another.

The order of accesses does not matter, only who made them, so they are judged in bulk. A `Table`
holds for every element who wrote it, who changed it atomically and who read it: nobody, one party,
or several. What counts as one party depends on what may order it:

- threads of a block, within one epoch between two barriers (and one between two ``bar.warp.sync``);
- warps of a block, within one epoch between two barriers, where a kernel has ``bar.warp.sync``;
- blocks, within the launch: the one table that outlives a batch.

A write is compared with everyone, a read with writers only, so memory that a batch only reads needs
the table of blocks alone. An element is the narrowest access of the kernel, so neighbours do not
clash.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import Race
from .memory import zeros

if TYPE_CHECKING:
    from .access import Access
    from .journal import Entry
    from .machine import Batch
    from .memory import Allocation

NOBODY, SEVERAL = 0, -1  # parties count from 1, so that a table begins as zeros
KINDS = ("store", "atomic", "load")
Key = tuple[Any, int, int, int]  # store, epoch, and which of its tables


class Touch(NamedTuple):
    """The elements that lanes touched in one step, and the party each lane belongs to."""

    access: Access
    element: Any
    lanes: Any
    party: Any


class Table:
    """Who wrote, changed and read each element."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.who: dict[str, Any] = {}
        self.touched: list[tuple[str, Any]] = []

    def add(self, kind: str, element: Any, party: Any) -> None:
        """Note parties at elements."""
        who = self.who.get(kind)
        if who is None:
            who = self.who[kind] = zeros(self.size, np.int32)
        self.touched.append((kind, element))
        before = who[element]
        mixed = (before != NOBODY) & (before != party)
        who[element] = party
        mixed |= who[element] != party
        if mixed.any():
            who[element[mixed]] = SEVERAL

    def clash(self, kind: str, element: Any, party: Any) -> Any:
        """Tell for each access whether somebody else's conflicts with it."""
        bad = np.zeros(element.shape, bool)
        for other, who in self.who.items():
            if "store" in (kind, other) or {kind, other} == {"atomic", "load"}:
                found = who[element]
                bad |= (found != NOBODY) & (found != party)
        return bad

    def clear(self) -> None:
        """Forget everything, at the price of what was touched and not of the size."""
        for kind, element in self.touched:
            self.who[kind][element] = NOBODY
        self.touched.clear()


class Races:
    """Judges the accesses of a launch."""

    def __init__(self) -> None:
        self.blocks: dict[Allocation, Table] = {}
        self.open: dict[Key, Table] = {}
        self.spare: dict[int, list[Table]] = defaultdict(list)

    def judge(self, batch: Batch, entries: list[Entry], final: bool) -> None:
        """Judge the accesses of a batch: the last of them, or a part while it runs."""
        stores: dict[Allocation, list[Entry]] = defaultdict(list)
        for entry in entries:
            stores[entry.store].append(entry)
        over = math.inf if final else int(np.min(batch.epoch))
        for store, some in stores.items():
            written = any(entry.access.kind != "load" for entry in some)
            if written or not final or any(key[0] is store for key in self.open):
                self._within_blocks(batch, store, some, over)
            if store.kind == "global" and batch.launch.blocks_in_grid > 1:
                self._between_blocks(batch, store, some)
        for key in [key for key in self.open if key[1] < over]:
            self._take_back(key)

    def _between_blocks(self, batch: Batch, store: Allocation, entries: list[Entry]) -> None:
        grain = batch.kernel.grains[store.kind]
        table = self.blocks.get(store)
        if table is None:
            table = self.blocks[store] = Table(store.bytes.size // grain)
        touches = [
            _touch(batch, entry, grain, lambda lanes: batch.first_block + lanes // batch.threads)
            for entry in entries
        ]
        _search(batch, table, touches, "nothing orders blocks")
        table.touched.clear()  # it is never cleared

    def _within_blocks(
        self, batch: Batch, store: Allocation, entries: list[Entry], over: float
    ) -> None:
        grain = batch.kernel.grains[store.kind]
        threads = [_touch(batch, entry, grain, lambda lanes: lanes) for entry in entries]
        epochs = [_epoch_of(batch, e, t) for e, t in _pairs(entries, threads)]
        if not batch.kernel.syncs_warps:
            self._each(batch, store, _divided(threads, epochs), over, "no barrier between them")
            return
        warps = [_touch(batch, entry, grain, _warp_of(batch)) for entry in entries]
        self._each(batch, store, _divided(warps, epochs), over, "no barrier between them")
        both = [
            (epoch, _warp_epoch_of(batch, entry, touch))
            for epoch, (entry, touch) in zip(epochs, _pairs(entries, threads), strict=True)
        ]
        numbers = [(epoch << 32) + warp_epoch for epoch, warp_epoch in both]
        parts = _divided(threads, numbers)
        self._each(batch, store, parts, over, "no __syncwarp between them", 32)

    def _each(
        self,
        batch: Batch,
        store: Allocation,
        parts: dict[int, list[Touch]],
        over: float,
        reason: str,
        shift: int = 0,
    ) -> None:
        """Judge epoch by epoch; the table of one that is over serves for the next."""
        size = store.bytes.size // batch.kernel.grains[store.kind]
        for number, touches in parts.items():
            key = store, number >> shift, shift, number
            _search(batch, self._table(size, key), touches, reason)
            if key[1] < over:
                self._take_back(key)

    def _table(self, size: int, key: Key) -> Table:
        """Return the table of an epoch, which is open as long as the epoch is."""
        if key not in self.open:
            self.open[key] = self.spare[size].pop() if self.spare[size] else Table(size)
        return self.open[key]

    def _take_back(self, key: Key) -> None:
        table = self.open.pop(key)
        table.clear()
        self.spare[table.size].append(table)


def _pairs(entries: list[Entry], touches: list[Touch]) -> Any:
    return zip(entries, touches, strict=True)


def _warp_of(batch: Batch) -> Callable:
    return lambda lanes: batch.warp_and_lane(lanes)[0]


def _touch(batch: Batch, entry: Entry, grain: int, party: Callable) -> Touch:
    """Divide an access into elements, lane by lane."""
    access = entry.access
    lanes = np.arange(batch.size) if entry.lanes is None else entry.lanes
    element = np.broadcast_to(entry.index, lanes.shape)
    many = access.width // grain
    if many > 1:
        element = (element[:, None] * many + np.arange(many)).ravel()
        lanes = np.repeat(lanes, many)
    return Touch(access, element, lanes, party(lanes).astype(np.int32) + 1)


def _epoch_of(batch: Batch, entry: Entry, touch: Touch) -> Any:
    epoch = entry.epoch[0]
    return epoch[touch.lanes // batch.threads] if type(epoch) is np.ndarray else epoch


def _warp_epoch_of(batch: Batch, entry: Entry, touch: Touch) -> Any:
    epoch = entry.epoch[1]
    if type(epoch) is not np.ndarray:
        return epoch
    return epoch[batch.warp_and_lane(touch.lanes)[0]]


def _divided(touches: list[Touch], numbers: list[Any]) -> dict[int, list[Touch]]:
    """Divide touches by a number that all their lanes share, or each has for itself."""
    groups: dict[int, list[Touch]] = defaultdict(list)
    for touch, number in zip(touches, numbers, strict=True):
        if type(number) is not np.ndarray:
            groups[int(number)].append(touch)
            continue
        for value in np.unique(number):
            at = number == value
            some = Touch(touch.access, touch.element[at], touch.lanes[at], touch.party[at])
            groups[int(value)].append(some)
    return groups


def _search(batch: Batch, table: Table, touches: list[Touch], reason: str) -> None:
    """Add the touches to a table and look for clashes."""
    merged = {}
    for kind in KINDS:
        some = [touch for touch in touches if touch.access.kind == kind]
        if some:
            element = np.concatenate([touch.element for touch in some])
            party = np.concatenate([touch.party for touch in some])
            merged[kind] = element, party
            table.add(kind, element, party)
    if "store" not in table.who and "atomic" not in table.who:
        return
    for kind, (element, party) in merged.items():
        bad = table.clash(kind, element, party)
        if bad.any():
            _accuse(batch, touches, kind, int(element[np.argmax(bad)]), reason)


def _accuse(batch: Batch, touches: list[Touch], kind: str, element: int, reason: str) -> None:
    """Raise, naming two threads at the element where both are at hand."""
    found = []
    for touch in touches:
        at = np.flatnonzero(touch.element == element)[:64]
        found += [(touch.access, int(touch.lanes[k]), int(touch.party[k])) for k in at]
    access, lane, party = next(item for item in found if item[0].kind == kind)
    space = "shared" if access.space == "shared" else "global"
    what = f"a {kind} in {space} memory"
    for other, thread, whose in found:
        if whose != party and ("store" in (kind, other.kind) or kind != other.kind):
            what += f" and a {other.kind} by {batch.thread_name(thread)}"
            what += f" (PTX line {other.place.line} '{other.place.instruction}')"
            break
    what += f" meet at byte {element * batch.kernel.grains[space]}"
    raise Race(f"{what}: {reason}", replace(access.place, thread=batch.thread_name(lane)))
