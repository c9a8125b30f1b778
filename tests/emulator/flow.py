"""Basic blocks, what follows what, and which registers live from one block to the next.

A block ends where lanes may part or must meet: at a branch, a barrier, a shuffle or a vote. Only
registers that live across blocks are kept; all others are local variables of the code made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from .errors import Place, UnsupportedInstruction
from .ptx import WIDTHS, Address, Function, Instruction, Not, Operand, Pair, Reg, Symbol, Vector

LEAVING = {"ret", "exit"}
MEETING = {"bar", "barrier"}
WARP = {"shfl", "vote", "match", "redux", "activemask"}
ENDING = LEAVING | MEETING | WARP | {"bra", "brx", "trap"}
WITHOUT_RESULT = {"st", "red", "bra", "brx", "ret", "exit", "trap", "membar", "fence", "prefetch"}
WITHOUT_RESULT |= {"prefetchu", "cp", "nanosleep", "griddepcontrol", "call", "discard", "pmevent"}


@dataclass
class Block:
    """Instructions that run one after the other; ``end`` decides what comes next."""

    index: int
    body: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    follows: list[int] = field(default_factory=list)
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)

    @cached_property
    def instructions(self) -> list[Instruction]:
        """All of them."""
        return self.body if self.end is None else [*self.body, self.end]


def registers(operand: Operand) -> list[str]:
    """Return the registers an operand names."""
    if isinstance(operand, Reg):
        return [operand.name]
    if isinstance(operand, Not):
        return [operand.operand.name]
    if isinstance(operand, Address):
        return [operand.base.name] if isinstance(operand.base, Reg) else []
    if isinstance(operand, Vector):
        return [name for part in operand.parts for name in registers(part)]
    if isinstance(operand, Pair):
        return registers(operand.first) + registers(operand.second)
    return []


def results(instruction: Instruction) -> list[str]:
    """Return the registers an instruction writes."""
    if instruction.opcode in WITHOUT_RESULT or not instruction.operands:
        return []
    if instruction.opcode in MEETING and not instruction.has("red"):
        return []
    return registers(instruction.operands[0])


def sources(instruction: Instruction) -> list[str]:
    """Return the registers an instruction reads; under a guard it keeps what it does not write."""
    written = results(instruction)
    operands = instruction.operands[1:] if written else instruction.operands
    if instruction.opcode in {"ld", "ldu", "atom", "shfl", "vote"}:
        operands = instruction.operands[1:]
    names = [name for operand in operands for name in registers(operand)]
    names += registers(instruction.guard)
    return names + written if instruction.guard is not None else names


class Flow:
    """The blocks of a function in the order of the text, and the registers between them."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.blocks = self._cut()
        self._liveness()
        self.slots: dict[str, int] = {}
        for block in self.blocks:
            for name in sorted(block.live_in):
                self.slots.setdefault(name, len(self.slots))

    def _cut(self) -> list[Block]:
        body, labels = _branch_around(self.function)
        starts = {0, *labels.values()}
        starts |= {at + 1 for at, instruction in enumerate(body) if _ends(instruction)}
        meeting = MEETING | WARP  # alone in its block: lanes wait before it
        starts |= {at for at, instruction in enumerate(body) if instruction.opcode in meeting}
        ordered = sorted(start for start in starts if start < len(body))
        at_start = {start: index for index, start in enumerate(ordered)}
        at_start[len(body)] = len(ordered)
        blocks = []
        for index, start in enumerate(ordered):
            stop = ordered[index + 1] if index + 1 < len(ordered) else len(body)
            block = Block(index, body[start:stop])
            if _ends(block.body[-1]):
                block.end = block.body.pop()
            block.follows = self._next(block, {name: at_start[at] for name, at in labels.items()})
            blocks.append(block)
        blocks.append(Block(len(blocks)))  # the end of the text returns
        return blocks

    def _next(self, block: Block, labels: dict[str, int]) -> list[int]:
        """Return the blocks after this one: the next in the text first, then the targets."""
        end, after = block.end, block.index + 1
        if end is None or end.opcode in MEETING | WARP:
            return [after]
        if end.opcode == "bra":
            target = end.operands[0]
            assert isinstance(target, Symbol)
            return [labels[target.name]] if end.guard is None else [after, labels[target.name]]
        if end.opcode == "brx":
            table = end.operands[1]
            assert isinstance(table, Symbol)
            return [labels[name] for name in self.function.tables[table.name]]
        return []

    def _liveness(self) -> None:
        reads, writes = [], []
        for block in self.blocks:
            read: set[str] = set()
            written: set[str] = set()
            for instruction in block.instructions:
                read |= {name for name in sources(instruction) if name not in written}
                written |= set(results(instruction))
            reads.append(read)
            writes.append(written)
        changed = True
        while changed:
            changed = False
            for block in reversed(self.blocks):
                out = set().union(*(self.blocks[index].live_in for index in block.follows))
                into = reads[block.index] | (out - writes[block.index])
                if not out <= block.live_out or into != block.live_in:
                    block.live_out |= out
                    block.live_in = into
                    changed = True

    def code(self, name: str) -> str:
        """Return the dtype a register is kept in between blocks."""
        return self._codes.get(name, "u4")

    @cached_property
    def _codes(self) -> dict[str, str]:
        """Floats in untyped registers are common, so how a register is used decides."""
        floats: dict[str, int] = {}
        for instruction in self.function.body:
            if instruction.opcode not in {"mov", "cvt", "ld", "st", "setp", "shfl", "bar"}:
                step = 1 if instruction.kind in {"f32", "f64"} else -1
                for operand in instruction.operands:
                    if not isinstance(operand, Address):
                        for name in registers(operand):
                            floats[name] = floats.get(name, 0) + step
        codes = {}
        for name, kind in self.function.registers.items():
            width = WIDTHS[kind]
            if kind == "pred":
                codes[name] = "?"
            elif width >= 4 and (kind[0] == "f" or floats.get(name, 0) > 0) and "x2" not in kind:
                codes[name] = f"f{width}"
            else:
                codes[name] = f"u{width}"
        return codes


def _ends(instruction: Instruction) -> bool:
    return instruction.opcode in ENDING


def _branch_around(function: Function) -> tuple[list[Instruction], dict[str, int]]:
    """Put a branch before everything guarded that ends a block, so that no end but a branch is."""
    body: list[Instruction] = []
    moved = {}
    labels = {}
    for at, instruction in enumerate(function.body):
        moved[at] = len(body)
        guard = instruction.guard
        if guard is None or instruction.opcode == "bra" or not _ends(instruction):
            body.append(instruction)
            continue
        if instruction.opcode == "brx":
            raise UnsupportedInstruction(
                "a guarded brx", Place(function.name, instruction.line, instruction.text)
            )
        assert isinstance(guard, Reg | Not)
        inverse = guard.operand if isinstance(guard, Not) else Not(guard)
        skip = f"after {at}"
        where = instruction.line, instruction.text, instruction.source
        body.append(Instruction("bra", (), (Symbol(skip),), inverse, *where))
        body.append(
            Instruction(
                instruction.opcode, instruction.modifiers, instruction.operands, None, *where
            )
        )
        labels[skip] = len(body)
    moved[len(function.body)] = len(body)
    labels |= {name: moved[at] for name, at in function.labels.items()}
    return body, labels
