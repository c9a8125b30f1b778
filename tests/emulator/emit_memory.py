"""Code for loads, stores and atomics: each becomes one call of the machine, with an `Access`."""

from __future__ import annotations

from .access import Access
from .emitter import CODES, Emitter, emits
from .errors import Place
from .flow import registers
from .ptx import Address, Imm, Instruction, Operand, Reg, Symbol, Vector

SPACES = {"global", "shared", "local", "const", "param"}
VECTORS = {"v2": 2, "v4": 4, "v8": 8}
ATOMICS = {"add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"}
MEMORY_CODES = CODES | {"f16": "u2", "b128": "u8"}


def _access(e: Emitter, i: Instruction, kind: str) -> Access:
    if i.kind not in MEMORY_CODES:
        e.refuse(i)
    plain = tuple(name.partition("::")[0] for name in i.modifiers)
    space = next((name for name in plain if name in SPACES), "generic")
    count = next((VECTORS[name] for name in plain if name in VECTORS), 1)
    operation = next((name for name in plain if name in ATOMICS), "")
    operation += {"f16x2": " f16", "f16": " f16", "bf16x2": " bf16", "bf16": " bf16"}.get(
        i.kind, ""
    )
    place = Place(e.function.name, i.line, i.text, e.source_of(i))
    access = Access(place, kind, space, MEMORY_CODES[i.kind], count, operation)
    e.accesses.append(access)
    return access


def _address(e: Emitter, operand: Operand) -> tuple[str, int]:
    """Return the expression of an address, and what to add to it."""
    assert isinstance(operand, Address)
    if operand.base is None:
        return e.number("u8", 0), operand.offset
    if isinstance(operand.base, Symbol):
        return e.address_of(operand.base.name, "u8"), operand.offset
    wide = e.function.registers.get(operand.base.name, "b64").endswith("64")
    return e.use(operand.base, "u8" if wide else "u4"), operand.offset


def _where(e: Emitter, i: Instruction) -> str:
    return e.use(i.guard, "?") if i.guard is not None else "None"


def _parts(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def _receive(e: Emitter, i: Instruction, access: Access, value: str) -> None:
    """Give the registers of a vector what was read."""
    parts = _parts(i.operands[0])
    for at, part in enumerate(parts):
        expression = f"{value}[{at}]" if access.count > 1 else value
        e.define(part, access.code, expression, i.guard)


@emits("ld", "ldu")
def _load(e: Emitter, i: Instruction) -> None:
    access = _access(e, i, "load")
    operand = i.operands[1]
    assert isinstance(operand, Address)
    if access.space == "param" and isinstance(operand.base, Symbol):
        if operand.base.name not in e.symbols:
            e.refuse(i, "the result of a call")
        _parameter(e, i, access, e.symbols[operand.base.name][1] + operand.offset)
        return
    address, access.offset = _address(e, operand)
    value = e.fresh(f"m.load({e.thing(access)}, {address}, {_where(e, i)})")
    _receive(e, i, access, value)


def _parameter(e: Emitter, i: Instruction, access: Access, offset: int) -> None:
    size = int(access.code[1])
    for at, part in enumerate(_parts(i.operands[0])):
        key = offset + at * size, access.code
        slot = e.parameters.setdefault(key, len(e.parameters))
        e.define(part, access.code, f"m.parameters[{slot}]", i.guard)


@emits("st")
def _store(e: Emitter, i: Instruction) -> None:
    access = _access(e, i, "store")
    if access.space == "param":
        e.refuse(i, "a call of a device function that was not inlined")
    address, access.offset = _address(e, i.operands[0])
    values = _values(e, i.operands[1], access)
    e.line(f"m.store({e.thing(access)}, {address}, {values}, {_where(e, i)})")


def _values(e: Emitter, operand: Operand, access: Access) -> str:
    parts = _parts(operand) if access.count > 1 else (operand,)
    return "(" + "".join(f"{e.use(part, access.code)}, " for part in parts) + ")"


@emits("atom", "red")
def _atomic(e: Emitter, i: Instruction) -> None:
    access = _access(e, i, "atomic")
    if not access.operation:
        e.refuse(i)
    access.flushes = i.kind == "f32" and access.space == "global"
    returns = i.opcode == "atom"
    operands = i.operands[1:] if returns else i.operands
    address, access.offset = _address(e, operands[0])
    values = _values(e, operands[1], access)
    third = e.use(operands[2], access.code) if len(operands) > 2 else "None"
    needed = e.live[e.position]
    access.returns = returns and any(name in needed for name in registers(i.operands[0]))
    call = f"m.atomic({e.thing(access)}, {address}, {values}, {third}, {_where(e, i)})"
    if access.returns:
        _receive(e, i, access, e.fresh(call))
    else:
        e.line(call)
        for name in registers(i.operands[0]) if returns else []:
            e.define(Reg(name), access.code, e.constant(access.code, 0), i.guard)


@emits("cp")
def _copy(e: Emitter, i: Instruction) -> None:
    """Copy from global to shared memory at once; the waits for it have nothing to do."""
    if not i.has("async") or i.has("bulk") or i.has("mbarrier"):
        e.refuse(i)
    if i.has("commit_group") or i.has("wait_group") or i.has("wait_all"):
        return
    size = i.operands[2]
    if not isinstance(size, Imm) or len(i.operands) > 3:
        e.refuse(i)
    place = Place(e.function.name, i.line, i.text, e.source_of(i))
    count = size.value // 4
    load = Access(place, "load", "global", "u4", count, "")
    store = Access(place, "store", "shared", "u4", count, "")
    e.accesses += [load, store]
    target, store.offset = _address(e, i.operands[0])
    origin, load.offset = _address(e, i.operands[1])
    where = _where(e, i)
    value = e.fresh(f"m.load({e.thing(load)}, {origin}, {where})")
    values = value if count > 1 else f"({value},)"
    e.line(f"m.store({e.thing(store)}, {target}, {values}, {where})")
