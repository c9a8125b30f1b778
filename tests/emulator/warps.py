"""Instructions of a warp: shuffles, votes, matches, reductions and ``bar.warp.sync``.

Values are arranged in rows of 32, one for each warp that takes part, with a mask of the lanes
present. All lanes that a mask names have to be there; exited ones may be missing from
``bar.warp.sync`` alone, since what a shuffle or a vote gets from them is nothing to rely on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .emitter import CODES
from .errors import BarrierDivergence, UnsupportedInstruction
from .ptx import Instruction, Pair

if TYPE_CHECKING:
    from .machine import Batch

LANES = np.arange(32)
BITS = (np.uint32(1) << LANES.astype(np.uint32)).astype(np.uint32)
ALL = np.uint32(0xFFFFFFFF)
REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum}
REDUCTIONS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


class _Rows:
    """The active lanes as rows of warps."""

    def __init__(self, batch: Batch) -> None:
        lanes = batch.lanes(None)
        self.whole = lanes is None and batch.whole_warps
        if self.whole:
            self.count = batch.W // 32
            self.present = np.full(self.count, ALL)
            return
        lanes = np.arange(batch.size) if lanes is None else lanes
        self.warp, self.lane = batch.warp_and_lane(lanes)
        self.numbers, self.row = np.unique(self.warp, return_inverse=True)
        self.count = self.numbers.size
        self.active = self.table(np.ones(lanes.size, bool), False)
        self.present = (self.active * BITS).sum(axis=1, dtype=np.uint32)

    def table(self, value: Any, missing: Any) -> Any:
        """Arrange a value: (warps, 32)."""
        if type(value) is not np.ndarray:
            return np.full((self.count, 32), value)
        if self.whole:
            return value.reshape(-1, 32)
        table = np.full((self.count, 32), missing, value.dtype)
        table[self.row, self.lane] = value
        return table

    def back(self, table: Any) -> Any:
        """Return what a table says for the active lanes; a column speaks for a whole warp."""
        table = np.broadcast_to(table, (self.count, 32))
        return table.reshape(-1) if self.whole else table[self.row, self.lane]


def meet(batch: Batch, at: int, mask: Any) -> None:
    """Run an instruction of the warp for those warps that are complete; the others wait."""
    end = batch.kernel.blocks[at].end
    assert end is not None
    rows = _Rows(batch)
    if end.opcode == "activemask":
        batch.kernel.set_result(batch, end.operands[0], rows.back(rows.present[:, None]))
        batch.arrive(at + 1, mask)
        return
    members = batch.kernel.operand(batch, end.operands[0 if end.has("warp") else -1], "u4")
    if not (rows.whole and type(members) is not np.ndarray and members == ALL):
        missing = _missing(batch, end, rows, members)
        if missing.any():
            _hold(batch, at, mask, missing)
            return
    HANDLERS[end.opcode](batch, end, rows)
    batch.arrive(at + 1, mask)


def _missing(batch: Batch, end: Instruction, rows: _Rows, members: Any) -> Any:
    """Return for each active lane whether somebody it names is not here."""
    members = rows.table(members, 0)
    if (rows.back(members & BITS) == 0).any():
        _blame(batch, end, rows.back(members & BITS) == 0, "a mask without the lane itself")
    expected = members
    if end.has("warp"):
        expected = members & _alive(batch, rows)[:, None]
    # Members of one meeting share a mask; lanes of one warp may meet in several groups.
    return rows.back((expected & ~rows.present[:, None]) != 0)


def _alive(batch: Batch, rows: _Rows) -> Any:
    """Return the lanes of each row's warp that have not exited."""
    lanes = np.arange(batch.size) if batch.ids is None else batch.ids
    if batch.dead is not None:
        lanes = lanes[~batch.dead]
    warp, lane = batch.warp_and_lane(lanes)
    alive = np.zeros(batch.warps, np.uint32)
    np.bitwise_or.at(alive, warp, BITS[lane])
    return alive if rows.whole else alive[rows.numbers]


def _hold(batch: Batch, at: int, mask: Any, missing: Any) -> None:
    """Let incomplete warps wait for more lanes; the others come back at once and are complete."""
    positions = np.arange(batch.N) if mask is None else np.flatnonzero(mask)
    held = np.zeros(batch.N, bool)
    held[positions[missing]] = True
    batch.held[at] = None if held.all() else held
    if not missing.all():
        rest = np.zeros(batch.N, bool)
        rest[positions[~missing]] = True
        batch.waiting[at] = rest


def _blame(batch: Batch, end: Instruction, bad: Any, what: str) -> None:
    place = replace(batch.kernel.place_of(end), thread=batch.thread_of_active(int(np.argmax(bad))))
    raise BarrierDivergence(what, place)


def _sync(batch: Batch, end: Instruction, rows: _Rows) -> None:
    lanes = batch.lanes(None)
    warps = np.arange(batch.warps) if lanes is None else np.unique(batch.warp_and_lane(lanes)[0])
    epoch = np.array(np.broadcast_to(batch.warp_epoch, batch.warps))
    epoch[warps] += 1
    batch.warp_epoch = epoch
    del end, rows


def _shuffle(batch: Batch, end: Instruction, rows: _Rows) -> None:
    """``shfl.sync``: every lane reads a register of another lane of its segment."""
    mode = next(name for name in end.modifiers if name in {"up", "down", "bfly", "idx"})
    operand = batch.kernel.operand
    value, b, c = (operand(batch, end.operands[at], "u4") for at in (1, 2, 3))
    if type(value) is not np.ndarray:
        value = np.full(batch.W, value)
    if rows.whole and type(b) is not np.ndarray and type(c) is not np.ndarray:
        source, inside = _source(mode, LANES, int(b), int(c))
        result = value.reshape(-1, 32)[:, source].reshape(-1)
        valid = np.broadcast_to(inside, (rows.count, 32)).reshape(-1)
    else:
        b, c = (rows.table(part, 0).astype(np.int64) for part in (b, c))
        source, inside = _source(mode, LANES, b, c)
        source = np.broadcast_to(source, (rows.count, 32))
        if not rows.whole:
            there = np.take_along_axis(rows.active, source & 31, axis=1)
            if not rows.back(there).all():
                _blame(batch, end, ~rows.back(there), "a shuffle reads a lane that takes no part")
        table = np.take_along_axis(rows.table(value, 0), source & 31, axis=1)
        result, valid = rows.back(table), rows.back(inside)
    target = end.operands[0]
    if isinstance(target, Pair):
        batch.kernel.set_result(batch, target.second, valid)
        target = target.first
    batch.kernel.set_result(batch, target, result)


def _source(mode: str, lane: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """Return the lane to read, and whether it lies in the segment; the lane itself if not."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    last = (lane & segment) | (clamp & ~segment & 31)
    first = lane & segment
    if mode == "up":
        source = lane - b
        inside = source >= last
    else:
        source = {"down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment & 31)}[mode]
        inside = source <= last
    return np.where(inside, source, lane), inside


def _vote(batch: Batch, end: Instruction, rows: _Rows) -> None:
    """``vote.sync``: what all lanes of the mask think of a predicate."""
    table = rows.table(batch.kernel.operand(batch, end.operands[1], "?"), False)
    members = _groups(batch, end, rows)
    chosen = members if members is not None else ALL
    ballot = (table * BITS).sum(axis=1, dtype=np.uint32)[:, None] & chosen
    if end.has("ballot"):
        answer = ballot
    elif end.has("any"):
        answer = ballot != 0
    elif end.has("all"):
        answer = ballot == (chosen & rows.present[:, None])
    else:
        answer = (ballot == 0) | (ballot == (chosen & rows.present[:, None]))
    batch.kernel.set_result(batch, end.operands[0], rows.back(answer))


def _groups(batch: Batch, end: Instruction, rows: _Rows) -> Any:
    """Return the mask each lane gave, or None where it named all of a whole warp."""
    members = batch.kernel.operand(batch, end.operands[-1], "u4")
    if type(members) is not np.ndarray and members == ALL:
        return None
    return rows.table(members, 0)


def _match(batch: Batch, end: Instruction, rows: _Rows) -> None:
    """``match.sync``: which lanes of the mask hold the same value."""
    table = rows.table(batch.kernel.operand(batch, end.operands[1], CODES[end.modifiers[-1]]), 0)
    members = _groups(batch, end, rows)
    members = rows.present[:, None] if members is None else members
    same = table[:, :, None] == table[:, None, :]
    equal = (same * BITS).sum(axis=2, dtype=np.uint32) & members
    target = end.operands[0]
    if end.has("any"):
        batch.kernel.set_result(batch, target, rows.back(equal))
        return
    agreed = equal == members
    result = np.where(agreed, members, np.uint32(0))
    if isinstance(target, Pair):
        batch.kernel.set_result(batch, target.second, rows.back(agreed))
        target = target.first
    batch.kernel.set_result(batch, target, rows.back(result))


def _reduce(batch: Batch, end: Instruction, rows: _Rows) -> None:
    """``redux.sync``: an integer operation over all lanes of the mask."""
    name = next(name for name in end.modifiers if name in REDUCTIONS)
    code = CODES[end.kind]
    if code[0] == "f":
        raise UnsupportedInstruction("a float reduction", batch.kernel.place_of(end))
    table = rows.table(batch.kernel.operand(batch, end.operands[1], code), 0)
    members = _groups(batch, end, rows)
    members = np.broadcast_to(ALL if members is None else members, (rows.count, 32))
    answer = np.zeros((rows.count, 32), code)
    for mask in np.unique(rows.back(members)):
        inside = (mask & BITS) != 0
        value = REDUCTIONS[name].reduce(table[:, inside], axis=1, dtype=code)
        answer = np.where(members == mask, value[:, None], answer)
    batch.kernel.set_result(batch, end.operands[0], rows.back(answer).view("u4"))


HANDLERS = {"shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce}
HANDLERS |= {"bar": _sync, "barrier": _sync}
