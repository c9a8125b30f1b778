"""Barriers of a block: who waits, who is let go, and who waits in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BarrierDivergence, UnsupportedInstruction
from .ptx import Imm, Instruction, Reg

if TYPE_CHECKING:
    from .machine import Batch

KNOWN = {"sync", "red", "or", "and", "popc", "pred", "u32", "aligned", "cta"}


def release(batch: Batch) -> bool:
    """Let go every block whose threads have all arrived; tell whether anybody can go on.

    It is called when no lane can do anything but wait, so a block of which only a part waits here
    has the rest waiting elsewhere.
    """
    if batch.held:
        _stuck_in_warp(batch)
    if not batch.parked:
        return False
    parked, batch.parked = batch.parked, {}
    alive = _alive_by_block(batch)
    for at, mask in sorted(parked.items()):
        end = batch.kernel.blocks[at].end
        assert end is not None
        _check_known(batch, at, end)
        positions = np.arange(batch.N) if mask is None else np.flatnonzero(mask)
        lanes = positions if batch.ids is None else batch.ids[positions]
        here = np.bincount(batch.blocks_of(lanes), minlength=batch.blocks)
        incomplete = (here > 0) & (here != alive)
        if incomplete.any():
            _waits_in_vain(batch, at, int(np.argmax(incomplete)), here, alive)
        _check_count(batch, at, end, here)
        if end.has("red"):
            _reduce(batch, end, mask, positions, lanes, here)
        batch.arrive(at + 1, mask)
        if here.all():
            batch.epoch = batch.epoch + 1
        else:
            batch.epoch = np.broadcast_to(batch.epoch, here.shape) + (here > 0)
    return True


def _alive_by_block(batch: Batch) -> Any:
    if batch.ids is None and batch.dead is None:
        return np.full(batch.blocks, batch.threads)
    lanes = np.arange(batch.size) if batch.ids is None else batch.ids
    if batch.dead is not None:
        lanes = lanes[~batch.dead]
    return np.bincount(batch.blocks_of(lanes), minlength=batch.blocks)


def _check_known(batch: Batch, at: int, end: Instruction) -> None:
    if not set(end.modifiers) <= KNOWN:
        raise UnsupportedInstruction(
            "a barrier it lacks", batch.kernel.place(batch.kernel.blocks[at])
        )


def _check_count(batch: Batch, at: int, end: Instruction, here: Any) -> None:
    """Compare a count of threads, if the barrier names one, with those that came."""
    operands = end.operands[1:-1] if end.has("red") else end.operands
    if len(operands) < 2:
        return
    count = operands[1]
    if isinstance(count, Reg):
        value = batch.R[batch.kernel.slots[count.name]]
        expected = int(np.max(value))
    else:
        assert isinstance(count, Imm)
        expected = count.value
    wrong = (here > 0) & (here != expected)
    if wrong.any():
        block = int(np.argmax(wrong))
        place = replace(
            batch.kernel.place(batch.kernel.blocks[at]),
            thread=batch.thread_name(block * batch.threads),
        )
        what = f"a barrier for {expected} threads, reached by {here[block]}"
        raise BarrierDivergence(what, place)


def _waits_in_vain(batch: Batch, at: int, block: int, here: Any, alive: Any) -> None:
    place = replace(
        batch.kernel.place(batch.kernel.blocks[at]),
        thread=batch.thread_name(block * batch.threads).split(" thread")[0],
    )
    what = f"{here[block]} of {alive[block]} threads wait at a barrier, the others elsewhere"
    raise BarrierDivergence(what, place)


def _stuck_in_warp(batch: Batch) -> None:
    at, mask = min(batch.held.items(), key=lambda item: item[0])
    batch._select(mask)
    place = batch.kernel.place(batch.kernel.blocks[at])
    place = replace(place, thread=batch.thread_of_active(0))
    raise BarrierDivergence("a lane named by the mask never takes part", place)


def _reduce(
    batch: Batch, end: Instruction, mask: Any, positions: Any, lanes: Any, here: Any
) -> None:
    """Combine the predicates of each block, as ``__syncthreads_or`` and its kin do."""
    batch._select(mask)
    value = batch.kernel.operand(batch, end.operands[-1], "?")
    value = np.broadcast_to(value, positions.shape)
    block = batch.blocks_of(lanes)
    total = np.bincount(block, weights=value, minlength=batch.blocks).astype(np.int64)
    if end.has("popc"):
        result = total.astype(np.uint32)
    else:
        result = total > 0 if end.has("or") else total == here
    answer: Any = result[block]
    if (answer == answer[0]).all():
        answer = answer[0]
    batch.kernel.set_result(batch, end.operands[0], answer)
