"""What a launch did, in numbers that a profiler would give and in some that it would not."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .ptx import Instruction

CLASSES = (
    "float",
    "integer",
    "conversion",
    "control",
    "load global",
    "store global",
    "atomic global",
    "load shared",
    "store shared",
    "atomic shared",
    "local",
    "move",
    "barrier",
    "parameter",
    "other",
)

FLOAT_KINDS = {"f16", "f32", "f64", "bf16", "f16x2", "bf16x2"}
MOVES = {"mov", "cvta"}
CONTROL = {"bra", "brx", "ret", "exit", "trap", "setp", "selp", "slct", "set", "testp", "isspacep"}
BARRIERS = {"bar", "barrier", "shfl", "vote", "match", "redux", "activemask", "membar", "fence"}
MEMORY = {"ld": "load", "ldu": "load", "st": "store", "atom": "atomic", "red": "atomic"}
OTHER = {"prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard", "cp"}


@dataclass
class Counters:
    """The counts of one launch, or the sum of several.

    ``thread_instructions`` counts an instruction once for each thread that executes it;
    ``warp_instructions`` once for each warp. A thread whose guard is false does not count, but a
    branch counts for every thread that reaches it, taken or not. ``classes`` divides the former:

    - float: arithmetic on any floating-point type; integer: arithmetic and logic of integers and
      predicates, addresses included; conversion: ``cvt``;
    - control: branches, returns, comparisons (``setp``) and choices (``selp``);
    - load, store and atomic, global and shared; a generic address counts as global; a ``red`` is an
      atomic; local: all accesses to local memory;
    - move: ``mov`` and ``cvta``, which mostly vanish in machine code; parameter: loads of
      parameters and constants, which there are operands;
    - barrier: barriers, fences, shuffles and votes; other: the rest.

    A *request* is a warp's execution of a memory instruction (one for each allocation it touches);
    its *sectors* are the distinct 32-byte sectors its threads touch. ``bank_conflicts`` are the
    extra wavefronts of shared memory. ``bytes_read``, ``bytes_written`` and the ``sectors_`` beside
    them count every byte or sector of global memory once a launch; atomics count as written, and
    the ``_updated`` are those among them that atomics touched.
    """

    launches: int = 0
    blocks: int = 0
    threads: int = 0
    thread_instructions: int = 0
    warp_instructions: int = 0
    global_load_requests: int = 0
    global_load_sectors: int = 0
    global_store_requests: int = 0
    global_store_sectors: int = 0
    global_atomic_requests: int = 0
    global_atomic_sectors: int = 0
    shared_load_requests: int = 0
    shared_store_requests: int = 0
    shared_atomic_requests: int = 0
    bank_conflicts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    sectors_read: int = 0
    sectors_written: int = 0
    bytes_updated: int = 0
    sectors_updated: int = 0
    classes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))

    def __add__(self, other: Counters) -> Counters:
        total = Counters()
        for item in fields(self):
            if item.name != "classes":
                value = getattr(self, item.name) + getattr(other, item.name)
                setattr(total, item.name, value)
        total.classes = {name: self.classes[name] + other.classes[name] for name in CLASSES}
        return total

    __radd__ = __add__


def classify(instruction: Instruction) -> int:
    """Return the number of an instruction's class."""
    return CLASSES.index(_class(instruction))


def _class(instruction: Instruction) -> str:
    opcode = instruction.opcode
    if opcode in MEMORY:
        names = {name.partition("::")[0] for name in instruction.modifiers}
        if names & {"param", "const"}:
            return "parameter"
        if "local" in names:
            return "local"
        return f"{MEMORY[opcode]} {'shared' if 'shared' in names else 'global'}"
    if opcode in MOVES:
        return "move"
    if opcode == "cvt":
        return "conversion"
    if opcode in CONTROL:
        return "control"
    if opcode in BARRIERS:
        return "barrier"
    if opcode in OTHER:
        return "other"
    return "float" if instruction.kind in FLOAT_KINDS else "integer"


def rows_of(index: Any, warp: Any, lane: Any) -> Any:
    """Arrange element numbers by warp request: a row each, -1 where a lane does not take part."""
    starts = np.empty(warp.size, np.int64)
    starts[0] = 0
    np.not_equal(warp[1:], warp[:-1], out=starts[1:])
    request = np.cumsum(starts)
    rows = np.full((int(request[-1]) + 1, 32), -1, np.int64)
    rows[request, lane] = index
    return rows


def count_sectors(rows: Any, width: int) -> int:
    """Count the distinct sectors of each row."""
    shift = 5 - (width.bit_length() - 1)
    sectors = rows >> shift
    if int(rows.min()) >= 0:
        steps = sectors[:, 1:] - sectors[:, :-1]
        if int(steps.min()) >= 0:  # in order, as neighbours mostly are
            return rows.shape[0] + int(np.count_nonzero(steps))
    sectors = np.sort(sectors, axis=1)
    new = sectors[:, 1:] != sectors[:, :-1]
    return int(np.count_nonzero(new & (sectors[:, 1:] >= 0))) + int(
        np.count_nonzero(sectors[:, 0] >= 0)
    )


def count_conflicts(rows: Any, width: int) -> int:
    """Count the wavefronts beyond one for each phase: a whole, half or quarter warp by width."""
    units = rows if width >= 4 else rows >> (1 if width == 2 else 2)
    banks = 32 if width <= 4 else 128 // width
    units = units.reshape(-1, banks)
    spread = units.max(axis=1) - units.min(axis=1)
    units = units[spread >= banks]  # the others lie within one round of all banks
    if not units.size:
        return 0
    units = np.sort(units, axis=1)
    new = np.ones(units.shape, bool)
    np.not_equal(units[:, 1:], units[:, :-1], out=new[:, 1:])
    new &= units >= 0
    bank = units % banks + np.arange(units.shape[0])[:, None] * banks
    load = np.bincount(bank[new], minlength=units.size).reshape(-1, banks).max(axis=1)
    return int(np.maximum(load - 1, 0).sum())
