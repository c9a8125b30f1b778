"""The accesses of a batch, kept until there are many: counting and the search for races are cheap
for a million accesses at once and dear one instruction at a time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .counters import Counters, count_conflicts, count_sectors, rows_of

if TYPE_CHECKING:
    from .access import Access
    from .machine import Batch
    from .memory import Allocation

LIMIT = 4_000_000
USES = {"load": ("read",), "store": ("written",), "atomic": ("written", "updated")}


class Entry(NamedTuple):
    """What the active lanes did in one step; ``lanes`` is None for all of the batch."""

    access: Access
    store: Allocation
    index: Any
    lanes: Any
    epoch: Any


class Journal:
    """Collects entries and hands them on."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.entries: list[Entry] = []
        self.size = 0
        launch = batch.launch
        self.active = launch.count or launch.check

    def add(self, access: Access, store: Allocation, index: Any, chosen: Any) -> None:
        """Note an access to global or shared memory."""
        if not self.active or store.kind == "private":
            return
        batch = self.batch
        epochs = batch.epoch, batch.warp_epoch
        self.entries.append(Entry(access, store, index, batch.lanes(chosen), epochs))
        self.size += batch.W
        if self.size > LIMIT:
            self.flush(final=False)

    def flush(self, final: bool = True) -> None:
        """Count and judge what was noted."""
        launch = self.batch.launch
        if launch.check:
            launch.races.judge(self.batch, self.entries, final)
        if launch.count:
            groups: dict[tuple[Access, Allocation], list[Entry]] = defaultdict(list)
            for entry in self.entries:
                groups[entry.access, entry.store].append(entry)
            for (access, store), entries in groups.items():
                self._count(launch.counters, access, store, entries)
        self.entries.clear()
        self.size = 0

    def _count(
        self, counters: Counters, access: Access, store: Allocation, entries: list[Entry]
    ) -> None:
        requests, sectors, conflicts = 0, 0, 0
        for rows in self._rows(entries):
            requests += rows.shape[0]
            if store.kind == "global":
                sectors += count_sectors(rows, access.width)
            else:
                conflicts += count_conflicts(rows, access.width)
        same = sum(
            self.batch.warps
            for entry in entries
            if entry.lanes is None and type(entry.index) is not np.ndarray
        )
        name = f"{store.kind}_{access.kind}"
        setattr(
            counters, f"{name}_requests", getattr(counters, f"{name}_requests") + requests + same
        )
        if store.kind == "global":
            total = getattr(counters, f"{name}_sectors") + sectors + same
            setattr(counters, f"{name}_sectors", total)
            self._touch(access, store, entries)
        else:
            counters.bank_conflicts += conflicts

    def _rows(self, entries: list[Entry]) -> list[Any]:
        """Return the element numbers by warp request."""
        batch = self.batch
        whole = [e.index for e in entries if e.lanes is None and type(e.index) is np.ndarray]
        parts = [e for e in entries if e.lanes is not None]
        found = []
        if whole and batch.whole_warps:
            found.append(np.concatenate(whole).reshape(-1, 32))
        elif whole:
            every = np.arange(batch.size)
            parts += [
                Entry(entries[0].access, entries[0].store, index, every, 0) for index in whole
            ]
        if parts:
            lanes = np.concatenate([part.lanes for part in parts])
            index = np.concatenate(
                [np.broadcast_to(part.index, part.lanes.shape) for part in parts]
            )
            step = np.repeat(np.arange(len(parts)), [part.lanes.size for part in parts])
            warp, lane = batch.warp_and_lane(lanes)
            found.append(rows_of(index, warp + step * batch.warps, lane))
        return found

    def _touch(self, access: Access, store: Allocation, entries: list[Entry]) -> None:
        """Mark the bytes read or written, once a launch."""
        width = min(access.width, 8)
        for use in USES[access.kind]:
            marks = self.batch.launch.touched(store, use)
            view = marks.view(f"u{width}").reshape(-1, access.width // width)
            for entry in entries:
                view[entry.index] = np.iinfo(view.dtype).max // 255
