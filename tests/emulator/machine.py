"""Runs a batch of blocks: all their threads as lanes, the lowest block of code first.

Lanes that part at a branch wait at their places in the text, and whoever is furthest behind goes
on, so that they meet again by themselves. Lanes wait at a barrier for the rest of their block, and
at a shuffle or a vote for the lanes of their warp that it names. When nobody can go on and somebody
still waits, that is a crime.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .access import Accesses
from .barriers import release
from .errors import EndlessLoop
from .flow import MEETING, WARP
from .journal import Journal
from .memory import Allocation
from .warps import meet

if TYPE_CHECKING:
    from .launch import Launch

COMPACTIONS = 8  # so often lanes that are done are dropped at once; later only if half are


class Batch(Accesses):
    """Lanes in the order of their threads, and their registers."""

    def __init__(self, launch: Launch, first_block: int, blocks: int) -> None:
        self.launch = launch
        self.kernel = launch.kernel
        self.parameters = launch.parameters
        self.first_block = first_block
        self.blocks = blocks
        self.threads = launch.threads
        self.size = blocks * self.threads
        self.whole_warps = self.threads % 32 == 0
        self.warps = blocks * -(-self.threads // 32)
        self.ids: Any = None  # which threads the lanes are, once some are gone
        self.N = self.size
        self.dead: Any = None
        self.compactions = 0
        self.S: Any = None
        self.W = self.N
        self.epoch: Any = 0
        self.warp_epoch: Any = 0
        self.waiting: dict[int, Any] = {0: None}
        self.parked: dict[int, Any] = {}
        self.held: dict[int, Any] = {}
        self.R: list[Any] = list(self.kernel.poison)
        self._specials: dict[str, Any] = {}
        self._lanes: Any = None
        self.shared_bytes = launch.shared_bytes
        self.local_bytes = self.kernel.local_bytes
        self.shared = _private("shared", self.shared_bytes, blocks)
        self.local = _private("private", self.local_bytes, self.size)
        self.log = Journal(self)

    def run(self) -> None:
        """Run until every lane is done."""
        blocks = self.kernel.blocks
        steps = 0
        while True:
            if not self.waiting and not release(self):
                break
            steps += 1
            if steps > self.launch.step_limit:
                place = self.kernel.place(blocks[min(self.waiting)])
                raise EndlessLoop(f"more than {self.launch.step_limit} steps", place)
            at = min(self.waiting)
            mask = self.waiting.pop(at)
            end = blocks[at].end
            self._select(mask)
            self._tally(at)
            if end is not None and end.opcode in MEETING and not end.has("warp"):
                _unite(self.parked, at, mask, self.N)
            elif end is not None and end.opcode in MEETING | WARP:
                meet(self, at, mask)
            else:
                self._go_on(at, mask, self._execute(at))
        self.log.flush()

    def _execute(self, at: int) -> Any:
        if self.S is None:
            return self.kernel.full(at)(self, self.R)
        return self.kernel.some(at)(self, self.R, self.S)

    def _go_on(self, at: int, mask: Any, answer: Any) -> None:
        block = self.kernel.blocks[at]
        if not block.follows:
            if block.end is not None and block.end.opcode == "trap":
                self.kernel.trap(self, block.end)
            self._leave(mask)
        elif len(block.follows) == 1 and answer is None:
            self.arrive(block.follows[0], mask)
        elif block.end is not None and block.end.opcode == "brx":
            for number in np.unique(answer):
                self._send(block.follows[int(number)], mask, answer == number)
        elif type(answer) is not np.ndarray:
            self.arrive(block.follows[1 if answer else 0], mask)
        else:
            taken = int(np.count_nonzero(answer))
            if taken == self.W:
                self.arrive(block.follows[1], mask)
            elif taken == 0:
                self.arrive(block.follows[0], mask)
            else:
                self._send(block.follows[1], mask, answer)
                self._send(block.follows[0], mask, ~answer)

    def _send(self, at: int, mask: Any, which: Any) -> None:
        """Send those of the active lanes on to a block."""
        if type(which) is not np.ndarray:
            if which:
                self.arrive(at, mask)
            return
        part = np.zeros(self.N, bool)
        part[slice(None) if self.S is None else self.S] = which
        self.arrive(at, part)

    def arrive(self, at: int, mask: Any) -> None:
        """Let lanes wait for their turn at a block, with those held there."""
        _unite(self.waiting, at, mask, self.N)
        if at in self.held:
            _unite(self.waiting, at, self.held.pop(at), self.N)

    def _select(self, mask: Any) -> None:
        """Make lanes the active ones: all, a slice, or the numbers of them."""
        self._lanes = None
        if mask is None:
            self.S, self.W = None, self.N
            return
        count = int(np.count_nonzero(mask))
        first = int(mask.argmax())
        if mask[first : first + count].all():
            self.S = slice(first, first + count)
        else:
            self.S = np.flatnonzero(mask)
        self.W = count

    def _leave(self, mask: Any) -> None:
        """Drop lanes that are done, so that those left are all lanes again."""
        if mask is None:
            self.dead = None
            self.N = 0
            return
        gone = mask if self.dead is None else self.dead | mask
        left = self.N - int(np.count_nonzero(gone))
        if left and self.compactions >= COMPACTIONS and 2 * left > self.N:
            self.dead = gone
            return
        self.compactions += 1
        keep = np.flatnonzero(~gone)
        self.ids = keep if self.ids is None else self.ids[keep]
        self.N, self.dead = left, None
        self.R = [value[keep] if type(value) is np.ndarray else value for value in self.R]
        self._specials.clear()
        for group in (self.waiting, self.parked, self.held):
            for at, others in group.items():
                part = None if others is None else others[keep]
                group[at] = None if part is None or part.all() else part

    def put(self, old: Any, new: Any, where: Any) -> Any:
        """Return a register with new values in some lanes; arrays are never changed in place."""
        if type(old) is not np.ndarray:
            if type(new) is not np.ndarray and (new == old or self.W == self.N):
                return new
            old = np.full(self.N, old)
        else:
            old = old.copy()
        old[where] = new
        return old

    def lanes(self, chosen: Any) -> Any:
        """Return which threads of the batch the active lanes are; None for all of them."""
        if self.S is None and self.ids is None:
            return chosen
        if self._lanes is None:
            if self.ids is not None:
                self._lanes = self.ids if self.S is None else self.ids[self.S]
            elif isinstance(self.S, slice):
                self._lanes = np.arange(self.S.start, self.S.stop)
            else:
                self._lanes = self.S
        return self._lanes if chosen is None else self._lanes[chosen]

    def warp_and_lane(self, lanes: Any) -> tuple[Any, Any]:
        """Return the number of the warp in the batch, and of the lane in the warp."""
        if self.whole_warps:
            return lanes >> 5, lanes & 31
        block, thread = np.divmod(lanes, self.threads)
        return block * -(-self.threads // 32) + (thread >> 5), thread & 31

    def _tally(self, at: int) -> None:
        launch = self.launch
        if not launch.count:
            return
        launch.threads_at[at] += self.W
        lanes = self.lanes(None)
        if lanes is None:
            launch.warps_at[at] += self.warps
        else:
            warp, _ = self.warp_and_lane(lanes)
            launch.warps_at[at] += 1 + int(np.count_nonzero(warp[1:] != warp[:-1]))

    def guarded(self, number: int, guard: Any) -> None:
        """Count an instruction for the lanes whose guard holds."""
        if self.launch.count:
            many = np.count_nonzero(guard) if type(guard) is np.ndarray else self.W * bool(guard)
            self.launch.classes_at[number] += int(many)

    def special(self, name: str) -> Any:
        """Return a special register of the active lanes."""
        value = self._specials.get(name)
        if value is None:
            value = self.launch.special(self, name)
            if type(value) is np.ndarray and self.ids is not None:
                value = value[self.ids]
            self._specials[name] = value
        if self.S is None or type(value) is not np.ndarray:
            return value
        return value[self.S]

    def symbol(self, name: str) -> Any:
        """Return the address of a variable in global memory."""
        return np.uint64(self.launch.symbols[name])

    def first_of_part(self, space: str, shift: int) -> Any:
        """Return the number of the first element of each active lane's part."""
        if space == "shared":
            if self.blocks == 1:
                return 0
            lanes = self.lanes(None)
            blocks = _block_of(self.size, self.threads) if lanes is None else lanes // self.threads
            return blocks * (self.shared.stride >> shift)
        if space == "local":
            lanes = self.lanes(None)
            return (np.arange(self.size) if lanes is None else lanes) * (self.local.stride >> shift)
        return 0

    def blocks_of(self, lanes: Any) -> Any:
        """Return the block in the batch that threads belong to."""
        return lanes // self.threads

    def thread_of_active(self, lane: int) -> str:
        """Name the thread of an active lane."""
        lanes = self.lanes(None)
        return self.thread_name(lane if lanes is None else int(lanes[lane]))

    def thread_name(self, thread: int) -> str:
        """Name a thread of the batch."""
        block, within = divmod(thread, self.threads)
        x, y, _ = self.launch.grid
        number = self.launch.schedule.block(self.first_block + block)
        where = number % x, number // x % y, number // x // y
        bx, by, _ = self.launch.block
        return f"block {where} thread {(within % bx, within // bx % by, within // bx // by)}"


def _unite(group: dict[int, Any], at: int, mask: Any, lanes: int) -> None:
    """Add lanes to those at a block; None stands for all there are."""
    if at not in group:
        group[at] = mask
        return
    other = group[at]
    if mask is None or other is None:
        group[at] = None
        return
    both = mask | other
    group[at] = None if int(np.count_nonzero(both)) == lanes else both


def _private(kind: str, nbytes: int, parts: int) -> Allocation:
    stride = -(-nbytes // 32) * 32
    return Allocation(0, stride * parts, kind, stride)


@functools.lru_cache(maxsize=32)
def _block_of(size: int, threads: int) -> Any:
    return np.arange(size) // threads
