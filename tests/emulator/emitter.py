"""Turns a basic block into the source of one Python function, a NumPy call to an instruction.

A value is an array with one element to a lane, or a NumPy scalar where it is the same for all
lanes: constants, parameters and what is computed from them stay scalars, which costs a tenth.
Integer and float views of one register are made on demand and shared within the block.

Handlers are found by opcode in `HANDLERS`; the modules named ``emit_*`` put them there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .counters import classify
from .errors import Place, UnsupportedInstruction
from .flow import Block, Flow, results, sources
from .ptx import WIDTHS, Function, Imm, Instruction, Not, Operand, Reg, Symbol, Vector

CODES = {"pred": "?", "f16": "f2", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4"}
CODES |= {f"b{8 * width}": f"u{width}" for width in (1, 2, 4, 8)}
CODES |= {f"u{8 * width}": f"u{width}" for width in (1, 2, 4, 8)}
CODES |= {f"s{8 * width}": f"i{width}" for width in (1, 2, 4, 8)}
CODES |= {"f32": "f4", "f64": "f8"}
DTYPES = {code: np.dtype(code).type for code in {*CODES.values()}}

Handler = Callable[["Emitter", Instruction], None]
HANDLERS: dict[str, Handler] = {}
NAMESPACE: dict[str, Any] = {code: dtype for code, dtype in DTYPES.items() if code != "?"}
NAMESPACE |= {"np": np, "ndarray": np.ndarray, "where": np.where}


def emits(*opcodes: str) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        for opcode in opcodes:
            HANDLERS[opcode] = handler
        return handler

    return register


def runtime(function: Callable) -> Callable:
    """Let the code made call a function."""
    NAMESPACE[function.__name__] = function
    return function


@runtime
def pick(value: Any, where: Any) -> Any:
    """Return the value of some lanes."""
    return value[where] if type(value) is np.ndarray else value


@runtime
def select(condition: Any, first: Any, second: Any) -> Any:
    """Choose by lane, or at once where all lanes agree."""
    if type(condition) is np.ndarray:
        return np.where(condition, first, second)
    return first if condition else second


def scalar(code: str, bits: int) -> Any:
    """Return the NumPy scalar with these bits."""
    width = np.dtype(code).itemsize
    raw = (bits % (1 << 8 * width)).to_bytes(width, "little")
    return np.frombuffer(raw, code)[0]


class Emitter:
    """Makes the code of the blocks of one kernel."""

    def __init__(self, function: Function, flow: Flow, symbols: dict[str, tuple[str, int]]) -> None:
        self.function = function
        self.flow = flow
        self.symbols = symbols
        self.names: dict[str, Any] = dict(NAMESPACE)
        self.parameters: dict[tuple[int, str], int] = {}
        self.accesses: list[Any] = []
        self.lines: list[str] = []
        self.inputs: list[tuple[str, int]] = []
        self.known: dict[str, dict[str, str]] = {}
        self.clean: set[str] = set()
        self.clean_constants: set[str] = set()
        self.position = 0
        self._constants: dict[tuple[str, int], str] = {}
        self._count = 0
        self.clean_registers = _clean_registers(function)

    def block(self, block: Block) -> tuple[str, str]:
        """Return the source of a block for all lanes, and for some of them."""
        self.lines = []
        self.inputs = []
        self.known = {}
        self.clean = set()
        self.live = self._needed_later(block)
        try:
            for self.position, instruction in enumerate(block.body):
                self._emit(instruction)
            answer, outputs = self._answer(block), self._outputs(block)
        except UnsupportedInstruction as lacking:  # raised when it runs: most never do
            answer, outputs = f"raise {self.thing(lacking)}", []
        full = [f"{name} = R[{slot}]" for name, slot in self.inputs]
        some = [f"{name} = pick(R[{slot}], S)" for name, slot in self.inputs]
        full_out = [f"R[{slot}] = {value}" for slot, value in outputs]
        some_out = [f"R[{slot}] = m.put(R[{slot}], {value}, S)" for slot, value in outputs]
        return (
            _source(f"full{block.index}(m, R)", [*full, *self.lines, *full_out, answer]),
            _source(f"some{block.index}(m, R, S)", [*some, *self.lines, *some_out, answer]),
        )

    def _emit(self, instruction: Instruction) -> None:
        handler = HANDLERS.get(instruction.opcode)
        if handler is None:
            self.refuse(instruction)
        handler(self, instruction)
        if instruction.guard is not None:
            guard = self.use(instruction.guard, "?")
            self.line(f"m.guarded({classify(instruction)}, {guard})")

    def _needed_later(self, block: Block) -> list[set[str]]:
        """Return for each instruction the registers somebody reads after it."""
        after = [set(block.live_out)]
        if block.end is not None:
            after[0] |= set(sources(block.end))
        for instruction in reversed(block.body[1:]):
            after.append((after[-1] - set(results(instruction))) | set(sources(instruction)))
        return after[::-1]

    def _answer(self, block: Block) -> str:
        end = block.end
        if end is not None and end.opcode == "bra" and end.guard is not None:
            return f"return {self.use(end.guard, '?')}"
        if end is not None and end.opcode == "brx":
            return f"return {self.use(end.operands[0], 'u4')}"
        return "return None"

    def _outputs(self, block: Block) -> list[tuple[int, str]]:
        written = {name for instruction in block.body for name in results(instruction)}
        return [
            (self.flow.slots[name], self.use(Reg(name), self.flow.code(name)))
            for name in sorted(written & block.live_out)
        ]

    def refuse(self, instruction: Instruction, why: str = "an instruction it lacks") -> NoReturn:
        """Raise the error for what is not there."""
        source = self.source_of(instruction)
        place = Place(self.function.name, instruction.line, instruction.text, source)
        raise UnsupportedInstruction(why, place)

    def source_of(self, instruction: Instruction) -> str:
        """Return file and line of the source."""
        raise NotImplementedError

    def line(self, text: str) -> None:
        """Add a line."""
        self.lines.append(text)

    def fresh(self, expression: str) -> str:
        """Name a value."""
        self._count += 1
        name = f"v{self._count}"
        self.line(f"{name} = {expression}")
        return name

    def thing(self, value: Any) -> str:
        """Name an object of the emulator."""
        self._count += 1
        name = f"t{self._count}"
        self.names[name] = value
        return name

    def constant(self, code: str, bits: int) -> str:
        """Name a scalar."""
        key = code, bits % (1 << 64)
        if key not in self._constants:
            self._count += 1
            self._constants[key] = name = f"k{self._count}"
            self.names[name] = scalar(code, bits)
            if code == "f4" and (bits & 0x7F800000 or not bits & 0x7FFFFFFF):
                self.clean_constants.add(name)
        return self._constants[key]

    def number(self, code: str, value: int) -> str:
        """Name an integer scalar."""
        return self.constant(code, value)

    def use(self, operand: Operand, code: str) -> str:
        """Return an expression for an operand, as a dtype."""
        if isinstance(operand, Reg):
            return self._register(operand.name, code)
        if isinstance(operand, Not):
            return self.fresh(f"~{self._register(operand.operand.name, '?')}")
        if isinstance(operand, Imm):
            return self._immediate(operand, code)
        if isinstance(operand, Symbol):
            return self.address_of(operand.name, code)
        if isinstance(operand, Vector):
            return self._pack(operand, code)
        raise UnsupportedInstruction(f"operand {operand}", Place(self.function.name))

    def _immediate(self, operand: Imm, code: str) -> str:
        if code == "?":
            return self.thing(np.bool_(operand.value))
        if operand.code == "f8" and code == "f4":
            value = np.frombuffer(operand.value.to_bytes(8, "little"), "f8")[0]
            return self.constant("f4", int(np.float32(value).view(np.uint32)))
        return self.constant(code, operand.value)

    def _register(self, name: str, code: str) -> str:
        views = self.known.get(name)
        if views is None:
            views = self.known[name] = self._input(name)
        if code in views:
            return views[code]
        known, value = next(iter(views.items()))
        if code == "?" or known == "?":
            raise UnsupportedInstruction(f"{name} as {code}", Place(self.function.name))
        wide, narrow = np.dtype(known).itemsize, np.dtype(code).itemsize
        if wide == narrow:
            view = self.fresh(f"{value}.view({code})")
            if value in self.clean:
                self.clean.add(view)
        else:
            bits = self._register(name, f"u{wide}")
            view = self.fresh(f"{bits}.astype(u{narrow})")
            if code != f"u{narrow}":
                view = self.fresh(f"{view}.view({code})")
        views[code] = view
        return view

    def _input(self, name: str) -> dict[str, str]:
        if name.startswith("%") and name not in self.function.registers:
            return {"u8" if name.endswith("64") else "u4": self._special(name)}
        self._count += 1
        value = f"v{self._count}"
        slot = self.flow.slots.setdefault(name, len(self.flow.slots))
        self.inputs.append((value, slot))
        if name in self.clean_registers:
            self.clean.add(value)
        return {self.flow.code(name): value}

    def _special(self, name: str) -> str:
        if name in {"%SP", "%SPL"}:
            return self.constant("u8", 0)
        return self.fresh(f"m.special({name!r})")

    def address_of(self, name: str, code: str) -> str:
        """Return the address of a variable."""
        if name not in self.symbols:
            raise UnsupportedInstruction(f"no variable {name}", Place(self.function.name))
        space, address = self.symbols[name]
        if space != "global":
            return self.constant(code, address)
        return self.fresh(f"m.symbol({name!r})")

    def _pack(self, operand: Vector, code: str) -> str:
        """Put the parts side by side, the first lowest."""
        part = f"u{np.dtype(code).itemsize // len(operand.parts)}"
        total = f"u{np.dtype(code).itemsize}"
        bits = 8 * np.dtype(part).itemsize
        pieces = []
        for at, element in enumerate(operand.parts):
            piece = f"{self.use(element, part)}.astype({total})"
            pieces.append(f"({piece} << {self.number(total, at * bits)})" if at else piece)
        value = self.fresh(" | ".join(pieces))
        return value if code == total else self.fresh(f"{value}.view({code})")

    def define(
        self,
        operand: Operand,
        code: str,
        expression: str,
        guard: Operand = None,
        clean: bool = False,
    ) -> None:
        """Give a register its value, widening it to the register's size."""
        if operand is None:
            return
        if isinstance(operand, Vector):
            self._unpack(operand, code, expression, guard)
            return
        assert isinstance(operand, Reg)
        kind = self.function.registers.get(operand.name)
        if kind is None:
            raise UnsupportedInstruction(f"no register {operand.name}", Place(self.function.name))
        width = 1 if kind == "pred" else WIDTHS[kind]
        if code != "?" and np.dtype(code).itemsize < width:
            if code[0] == "f":
                expression, code = f"({expression}).view(u{code[1]})", f"u{code[1]}"
            wide = f"{code[0]}{width}"
            expression, code = f"({expression}).astype({wide})", wide
        if guard is not None:
            old = self.use(operand, code)
            expression = f"select({self.use(guard, '?')}, {expression}, {old})"
        value = self.fresh(expression)
        self.known[operand.name] = {code: value}
        if clean and guard is None:
            self.clean.add(value)

    def _unpack(self, operand: Vector, code: str, expression: str, guard: Operand) -> None:
        width = np.dtype(code).itemsize
        part = width // len(operand.parts)
        whole = self.fresh(expression if code[0] == "u" else f"({expression}).view(u{width})")
        for at, element in enumerate(operand.parts):
            shifted = f"({whole} >> {self.number(f'u{width}', 8 * part * at)})" if at else whole
            self.define(element, f"u{part}", f"{shifted}.astype(u{part})", guard)

    def is_clean(self, value: str) -> bool:
        """Tell whether a float32 value is surely no subnormal number."""
        return value in self.clean or value in self.clean_constants


def _source(head: str, lines: list[str]) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in lines), ""])


FLUSHING = {"add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin"}
FLUSHING |= {"cos", "tanh", "abs", "neg", "min", "max"}


def _clean_registers(function: Function) -> set[str]:
    """Return the registers that never hold a subnormal float32: all that write them flush."""
    clean = {name for name, kind in function.registers.items() if kind in {"f32", "b32"}}
    changed = True
    while changed:
        dirty = set()
        for instruction in function.body:
            if not _keeps_clean(instruction, clean):
                dirty |= set(results(instruction)) & clean
        clean -= dirty
        changed = bool(dirty)
    return clean


def _keeps_clean(instruction: Instruction, clean: set[str]) -> bool:
    if instruction.kind != "f32":
        immediate = instruction.opcode == "mov" and isinstance(instruction.operands[1], Imm)
        if not immediate:
            return False
    if instruction.opcode in FLUSHING:
        return instruction.has("ftz")
    if instruction.opcode in {"mov", "selp"}:
        values = instruction.operands[1:3]
        return all(
            value.name in clean
            if isinstance(value, Reg)
            else isinstance(value, Imm)
            and (value.value & 0x7F800000 or not value.value & 0x7FFFFFFF)
            for value in values
        )
    return False
