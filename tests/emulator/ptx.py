"""PTX text to statements: variables, functions, instructions with their operands.

This reads what NVRTC writes, inline assembly with its scopes included, and keeps line numbers. It
knows no instruction's meaning.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import Place, UnsupportedInstruction

WIDTHS = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
WIDTHS |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4}
WIDTHS |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16}


class Reg(NamedTuple):
    """A register."""

    name: str


class Imm(NamedTuple):
    """A constant: an int, or the bits of a float, which keep a NaN as it was written."""

    value: int
    code: str = ""


class Symbol(NamedTuple):
    """A variable, parameter, function or label."""

    name: str


class Address(NamedTuple):
    """``[base + offset]``."""

    base: Reg | Symbol | None
    offset: int


class Vector(NamedTuple):
    """``{a, b, ...}``."""

    parts: tuple[Operand, ...]


class Pair(NamedTuple):
    """``a|b``: two results."""

    first: Operand
    second: Operand


class Not(NamedTuple):
    """``!p``."""

    operand: Reg


Operand = Reg | Imm | Symbol | Address | Vector | Pair | Not | None  # None is the sink "_"


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction, and where it stands."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Operand
    line: int
    text: str
    source: tuple[int, int]

    @property
    def kind(self) -> str:
        """The type it ends in."""
        return self.modifiers[-1] if self.modifiers else ""

    def has(self, modifier: str) -> bool:
        """Tell whether a modifier is there."""
        return modifier in self.modifiers


@dataclass
class Variable:
    """A variable of a state space; ``size`` is 0 for an extern array."""

    name: str
    space: str
    alignment: int
    size: int
    content: bytes = b""


@dataclass
class Function:
    """A kernel as it is written."""

    name: str
    parameters: list[Variable] = field(default_factory=list)
    max_threads: tuple[int, ...] | None = None
    variables: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    body: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Program:
    """A module as it is written."""

    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_VARIABLE = re.compile(
    r"\.(global|const|shared|local|param)\s+(?:\.align\s+(\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?"
    r"\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?([\w$%]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?(.*)$", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)([\w$%]+)\s+)?([a-z][\w]*)((?:\.[\w:]+)*)\s*(.*)$", re.DOTALL)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.DOTALL)
_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)[^\n]*")
_TOP = re.compile(r"\s*(?:(\.version|\.target|\.address_size|\.file)[^\n]*|(\.section)[^{]*)")


def parse(text: str) -> Program:
    """Read a module."""
    return _Reader(text).program


class _Reader:
    def __init__(self, text: str) -> None:
        # Comments become blanks, so that offsets and lines stay what they are.
        self.text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        self.starts = [0]
        self.starts += [found.end() for found in re.finditer("\n", self.text)]
        self.position = 0
        self.program = Program()
        for found in re.finditer(r'\.file\s+(\d+)\s+"([^"]*)"', self.text):
            self.program.files[int(found[1])] = found[2]
        while self._blank():
            self._top()

    def _blank(self) -> bool:
        """Step over white space; tell whether anything is left."""
        found = re.compile(r"\s*").match(self.text, self.position)
        assert found is not None
        self.position = found.end()
        return self.position < len(self.text)

    def _line(self, position: int) -> int:
        return bisect.bisect_right(self.starts, position)

    def _top(self) -> None:
        found = _TOP.match(self.text, self.position)
        if found:
            if found[1] == ".target":
                self.program.target = found[0].split()[1].rstrip(",")
            self.position = found.end()
            if found[2]:
                self._skip_braces()
            return
        end = min(
            (at for at in (self.text.find(mark, self.position) for mark in ";{") if at >= 0),
            default=len(self.text),
        )
        head = self.text[self.position : end].strip()
        entry = _ENTRY.search(head)
        if entry:
            self.position = end
            if self.text[end : end + 1] == "{":
                self._function(entry)
            return
        if ".func" in head:
            self._device_function(head, end)
            return
        end = self.text.find(";", self.position)
        self.program.variables.append(self._variable(self.text[self.position : end].strip()))
        self.position = end + 1

    def _device_function(self, head: str, end: int) -> None:
        """Step over a function that is not a kernel: a call of it is an error of its own."""
        self.position = end
        if self.text[end : end + 1] == "{":
            self._skip_braces()
        else:
            self.position = end + 1

    def _skip_braces(self) -> None:
        depth, at = 0, self.text.index("{", self.position)
        while True:
            depth += {"{": 1, "}": -1}.get(self.text[at], 0)
            at += 1
            if depth == 0:
                break
        self.position = at

    def _variable(self, text: str) -> Variable:
        found = _VARIABLE.search(text)
        if not found:
            raise UnsupportedInstruction(
                "not understood", Place(line=self._line(self.position), instruction=text)
            )
        space, alignment, kind, name, dimensions, content = found.groups()
        width = size = WIDTHS[kind]
        for dimension in re.findall(r"\[(\d*)\]", dimensions):
            size *= int(dimension or 0)
        data = _initialiser(content, kind).ljust(size, b"\0") if content else b""
        return Variable(name, space, int(alignment or width), size, data)

    def _function(self, entry: re.Match[str]) -> None:
        function = Function(entry[1])
        function.parameters = [
            self._variable(part.strip()) for part in (entry[2] or "").split(",") if part.strip()
        ]
        limit = re.search(r"\.maxntid\s+([\d, ]+)", entry[3])
        if limit:
            function.max_threads = tuple(int(part) for part in limit[1].split(","))
        self.program.functions[function.name] = function
        _Body(self, function)


class _Body:
    """Reads the statements of one function, renaming the registers of inner scopes."""

    def __init__(self, reader: _Reader, function: Function) -> None:
        self.reader = reader
        self.function = function
        self.scopes: list[dict[str, str]] = []
        self.source = (0, 0)
        self.counter = 0
        for statement, position in self._statements():
            self._statement(statement, position)

    def _statements(self) -> Iterator[tuple[str, int]]:
        reader, text = self.reader, self.reader.text
        while reader._blank():
            at = reader.position
            if text[at] == "{":
                self.scopes.append({})
                reader.position += 1
                continue
            if text[at] == "}":
                self.scopes.pop()
                reader.position += 1
                if not self.scopes:
                    return
                continue
            loc = _LOC.match(text, at)
            if loc:
                if int(loc[2]):
                    self.source = int(loc[1]), int(loc[2])
                reader.position = loc.end()
                continue
            label = _LABEL.match(text, at)
            if label:
                reader.position = label.end()
                if not text[label.end() :].lstrip().startswith(".branchtargets"):
                    self.function.labels[label[1]] = len(self.function.body)
                    continue
                end = text.index(";", reader.position)
                targets = text[reader.position : end].split(None, 1)[1]
                self.function.tables[label[1]] = [part.strip() for part in targets.split(",")]
                reader.position = end + 1
                continue
            end = text.index(";", at)
            reader.position = end + 1
            yield text[at:end].strip(), at

    def _statement(self, text: str, position: int) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith("."):
            if not text.startswith((".pragma", ".param")):  # a parameter here is one of a call
                self.function.variables.append(self.reader._variable(text))
        elif text:
            self.function.body.append(self._instruction(text, self.reader._line(position)))

    def _registers(self, text: str) -> None:
        found = _REGISTERS.match(text)
        assert found is not None
        kind = found[1]
        for part in found[2].split(","):
            numbered = re.match(r"\s*([\w$%]+)<(\d+)>", part)
            names = (
                [f"{numbered[1]}{number}" for number in range(int(numbered[2]))]
                if numbered
                else [part.strip()]
            )
            for name in names:
                own = name
                if len(self.scopes) > 1:
                    self.counter += 1
                    own = f"{name}@{self.counter}"
                self.scopes[-1][name] = own
                self.function.registers[own] = kind

    def _instruction(self, text: str, line: int) -> Instruction:
        text = " ".join(text.split())
        found = _INSTRUCTION.match(text)
        if not found:
            raise UnsupportedInstruction("not understood", Place(line=line, instruction=text))
        negated, guard, opcode, modifiers, rest = found.groups()
        condition: Operand = None
        if guard:
            register = Reg(self._register(guard) or guard)
            condition = Not(register) if negated else register
        if opcode == "call":  # its operands have a grammar of their own
            operands: tuple[Operand, ...] = ()
        else:
            operands = tuple(self._operand(part) for part in _split(rest))
        parts = tuple(part for part in modifiers.split(".") if part)
        return Instruction(opcode, parts, operands, condition, line, text, self.source)

    def _register(self, name: str) -> str | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name if name.startswith("%") else None

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text == "_":
            return None
        if text[0] == "{":
            return Vector(tuple(self._operand(part) for part in _split(text[1:-1])))
        if text[0] == "[":
            return self._address(text[1:-1])
        if text[0] == "!":
            return Not(Reg(self._register(text[1:].strip()) or text[1:].strip()))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first), self._operand(second))
        constant = _constant(text)
        if constant is not None:
            return constant
        register = self._register(text)
        return Reg(register) if register else Symbol(text)

    def _address(self, text: str) -> Address:
        base, _, offset = text.partition("+")
        if not offset:
            found = re.match(r"^([\w$%.]+)(-\d+)$", base.strip())
            if found:
                base, offset = found[1], found[2]
        operand = self._operand(base)
        if isinstance(operand, Imm):
            return Address(None, operand.value)
        assert isinstance(operand, Reg | Symbol)
        return Address(operand, int(offset.strip() or "0", 0))


def _split(text: str) -> list[str]:
    """Split at the commas outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _constant(text: str) -> Imm | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Imm(int(text[2:], 16), "f4")
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Imm(int(text[2:], 16), "f8")
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        return Imm(int(text.rstrip("U"), 0) if not re.fullmatch(r"0\d+", text) else int(text, 8))
    if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
        return Imm(int.from_bytes(struct.pack("<d", float(text)), "little"), "f8")
    return None


def _initialiser(text: str, kind: str) -> bytes:
    width = WIDTHS[kind]
    data = b""
    for part in text.strip().strip("{}").split(","):
        constant = _constant(part.strip())
        if constant is None:
            raise UnsupportedInstruction(f"initialiser {part.strip()}")
        data += (constant.value % (1 << 8 * width)).to_bytes(width, "little")
    return data
