"""A kernel ready to run: its layout, and the code of its blocks, made when a block first runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import emit_conversions, emit_floats, emit_integers, emit_memory  # noqa: F401
from .counters import CLASSES, classify
from .emitter import Emitter
from .errors import Place, Trap
from .flow import Block, Flow
from .layout import SHARED_BASE
from .ptx import Function, Imm, Instruction, Not, Operand, Program, Reg, Variable

if TYPE_CHECKING:
    from .machine import Batch

UNGUARDED = {"bra"}


class Kernel:
    """A kernel: what a launch has to give it, and what a batch runs."""

    def __init__(self, program: Program, function: Function) -> None:
        self.program = program
        self.name = function.name
        self.function = function
        variables = [*program.variables, *function.variables]
        self.symbols, self.static_shared, self.local_bytes = _lay_out(variables)
        self.parameters, self.parameter_bytes = _parameters(function, self.symbols)
        self.max_threads = int(np.prod(function.max_threads)) if function.max_threads else 1024
        self._flow: Flow | None = None

    def prepare(self) -> None:
        """Find the blocks; a kernel never launched is never looked at."""
        if self._flow is not None:
            return
        self._flow = Flow(self.function)
        self.blocks = self._flow.blocks
        self.slots = self._flow.slots
        self.emitter = _Emitter(self.function, self._flow, self.symbols, self.program.files)
        made = [self.emitter.block(block) for block in self.blocks]
        self._full = [first for first, _ in made]
        self._some = [second for _, second in made]
        self._ready: dict[tuple[str, int], Callable] = {}
        self.poison = [_poison(self._flow.code(name)) for name in self.slots]
        self.grains = self._grains()
        self.syncs_warps = any(
            block.end is not None and block.end.opcode == "bar" and block.end.has("warp")
            for block in self.blocks
        )
        self.class_matrix = _class_matrix(self.blocks)

    @property
    def wanted_parameters(self) -> dict[tuple[int, str], int]:
        """Where to find each value loaded from the parameters: offset and dtype."""
        return self.emitter.parameters

    def full(self, at: int) -> Callable:
        """Return the code of a block for all lanes."""
        return self._ready.get(("full", at)) or self._make("full", at, self._full[at])

    def some(self, at: int) -> Callable:
        """Return the code of a block for some lanes."""
        return self._ready.get(("some", at)) or self._make("some", at, self._some[at])

    def _make(self, kind: str, at: int, source: str) -> Callable:
        names = self.emitter.names
        exec(compile(source, f"<{self.name} {kind} {at}>", "exec"), names)
        made = self._ready[kind, at] = names[f"{kind}{at}"]
        return made

    def operand(self, batch: Batch, operand: Operand, code: str) -> Any:
        """Return an operand of an instruction that the machine runs itself."""
        if isinstance(operand, Imm):
            return (
                np.bool_(operand.value)
                if code == "?"
                else np.uint64(operand.value % (1 << 64)).astype(code)
            )
        if isinstance(operand, Not):
            return ~self.operand(batch, operand.operand, code)
        assert isinstance(operand, Reg)
        if operand.name not in self.slots:
            return batch.special(operand.name)
        value = batch.R[self.slots[operand.name]]
        if type(value) is np.ndarray and batch.S is not None:
            value = value[batch.S]
        return value.view(code) if code != "?" else value

    def set_result(self, batch: Batch, operand: Operand, value: Any) -> None:
        """Give a register its value in the active lanes."""
        if not isinstance(operand, Reg) or operand.name not in self.slots:
            return
        slot = self.slots[operand.name]
        code = self._flow.code(operand.name)
        value = value.view(code) if code != "?" else value
        batch.R[slot] = value if batch.S is None else batch.put(batch.R[slot], value, batch.S)

    def place(self, block: Block) -> Place:
        """Say where a block ends."""
        return self.place_of(block.instructions[-1]) if block.instructions else Place(self.name)

    def place_of(self, instruction: Instruction) -> Place:
        """Say where an instruction stands."""
        source = self.emitter.source_of(instruction)
        return Place(self.name, instruction.line, instruction.text, source)

    def trap(self, batch: Batch, end: Instruction) -> NoReturn:
        """Raise for the first active lane."""
        raise Trap(
            "the kernel gave up", replace(self.place_of(end), thread=batch.thread_of_active(0))
        )

    def _grains(self) -> dict[str, int]:
        """Return the width of the narrowest access to global and shared memory."""
        grains = {"global": 8, "shared": 8}
        for access in self.emitter.accesses:
            width = 2 if access.operation.endswith("16") else int(access.code[1])
            for kind in grains:
                if access.space in {kind, "generic"}:
                    grains[kind] = min(grains[kind], width)
        return grains


class _Emitter(Emitter):
    """Counts guarded instructions as they run, and knows the source's files."""

    def __init__(self, function: Function, flow: Flow, symbols: Any, files: dict[int, str]) -> None:
        super().__init__(function, flow, symbols)
        self.files = files

    def source_of(self, instruction: Instruction) -> str:
        number, line = instruction.source
        return f"{os.path.basename(self.files.get(number, ''))}:{line}" if line else ""


def _class_matrix(blocks: list[Block]) -> Any:
    """Return how many instructions of each class a block has, guarded ones left out."""
    matrix = np.zeros((len(blocks), len(CLASSES)), np.int64)
    for block in blocks:
        for instruction in block.instructions:
            if instruction.guard is None or instruction.opcode in UNGUARDED:
                matrix[block.index, classify(instruction)] += 1
    return matrix


def _poison(code: str) -> Any:
    """Return what a register holds before anything is written: ones, a NaN for floats."""
    if code == "?":
        return np.bool_(True)
    return np.frombuffer(b"\xff" * np.dtype(code).itemsize, code)[0]


def _lay_out(variables: list[Variable]) -> tuple[dict[str, tuple[str, int]], int, int]:
    """Give every variable an address in its space; extern shared memory follows the static."""
    symbols: dict[str, tuple[str, int]] = {}
    used = {"shared": 0, "local": 0, "const": 0}
    for variable in sorted(variables, key=lambda variable: variable.size == 0):
        if variable.space == "global":
            symbols[variable.name] = "global", 0
            continue
        first = -(-used[variable.space] // variable.alignment) * variable.alignment
        base = SHARED_BASE if variable.space == "shared" else 0
        symbols[variable.name] = variable.space, base + first
        used[variable.space] = first + variable.size
    return symbols, used["shared"], used["local"]


def constants_of(program: Program, symbols: dict[str, tuple[str, int]]) -> bytes:
    """Return the content of constant memory."""
    content = b""
    for variable in program.variables:
        if variable.space == "const":
            data = variable.content or bytes(variable.size)
            content = content.ljust(symbols[variable.name][1], b"\0") + data
    return content


def _parameters(
    function: Function, symbols: dict[str, tuple[str, int]]
) -> tuple[list[tuple[str, int, int]], int]:
    offset, found = 0, []
    for variable in function.parameters:
        offset = -(-offset // variable.alignment) * variable.alignment
        symbols[variable.name] = "param", offset
        found.append((variable.name, variable.size, variable.alignment))
        offset += variable.size
    return found, offset
