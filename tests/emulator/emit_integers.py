"""Code for integer arithmetic, bits, predicates, comparisons and moves."""

from __future__ import annotations

from . import integers  # noqa: F401 - what the code made calls
from .emitter import CODES, HANDLERS, Emitter, emits
from .layout import WINDOWS
from .ptx import Imm, Instruction, Pair, Vector

INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def integer(e: Emitter, i: Instruction) -> None:
    """Emit what is integer arithmetic by its type."""
    INTEGER[i.opcode](e, i)


def _wide(e: Emitter, i: Instruction, at: int) -> tuple[str, str]:
    code = CODES[i.kind]
    wide = f"{code[0]}{2 * int(code[1])}"
    return f"{e.use(i.operands[at], code)}.astype({wide})", wide


def _add(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    if i.has("sat"):
        a, b = (f"{e.use(operand, 'i4')}.astype(i8)" for operand in i.operands[1:3])
        value = f"np.clip({a} {INFIX[i.opcode]} {b}, -2**31, 2**31 - 1).astype(i4)"
        e.define(i.operands[0], code, value, i.guard)
        return
    if i.has("cc"):
        e.refuse(i)
    a, b = (e.use(operand, code) for operand in i.operands[1:3])
    e.define(i.operands[0], code, f"{a} {INFIX[i.opcode]} {b}", i.guard)


def _mul(e: Emitter, i: Instruction) -> None:
    e.define(i.operands[0], *_product(e, i), i.guard)


def _product(e: Emitter, i: Instruction) -> tuple[str, str]:
    code = CODES[i.kind]
    if i.has("wide"):
        (a, wide), (b, _) = _wide(e, i, 1), _wide(e, i, 2)
        return wide, f"{a} * {b}"
    a, b = (e.use(operand, code) for operand in i.operands[1:3])
    if i.has("hi"):
        return code, f"multiply_high({a}, {b})"
    if i.opcode in {"mul24", "mad24"}:
        eight = e.number("u4", 8)
        a, b = (f"(({value} << {eight}) >> {eight})" for value in (a, b))
    return code, f"{a} * {b}"


def _mad(e: Emitter, i: Instruction) -> None:
    if i.has("sat") or i.has("cc"):
        e.refuse(i)
    code, product = _product(e, i)
    c = e.use(i.operands[3], code)
    e.define(i.operands[0], code, f"{product} + {c}", i.guard)


def _call(name: str, *, result: str = "") -> object:
    def emit(e: Emitter, i: Instruction) -> None:
        code = CODES[i.kind]
        values = ", ".join(e.use(operand, code) for operand in i.operands[1:])
        e.define(i.operands[0], result or code, f"{name}({values})", i.guard)

    return emit


def _sad(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    a, b, c = (e.use(operand, code) for operand in i.operands[1:4])
    e.define(i.operands[0], code, f"np.maximum({a}, {b}) - np.minimum({a}, {b}) + {c}", i.guard)


INTEGER = {
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "mad": _mad,
    "mul24": _mul,
    "mad24": _mad,
    "div": _call("divide"),
    "rem": _call("remainder"),
    "min": _call("np.minimum"),
    "max": _call("np.maximum"),
    "abs": _call("np.abs"),
    "neg": _call("np.negative"),
}

for _opcode in ("mul24", "mad24", "rem"):
    HANDLERS[_opcode] = integer
HANDLERS["sad"] = _sad


@emits("and", "or", "xor")
def _logic(e: Emitter, i: Instruction) -> None:
    _add(e, i)


@emits("not")
def _not(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    e.define(i.operands[0], code, f"~{e.use(i.operands[1], code)}", i.guard)


@emits("cnot")
def _cnot(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    value = e.use(i.operands[1], code)
    e.define(i.operands[0], code, f"({value} == {e.number(code, 0)}).astype({code})", i.guard)


@emits("shl", "shr")
def _shift(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    value, amount = e.use(i.operands[1], code), i.operands[2]
    left = i.opcode == "shl"
    if isinstance(amount, Imm) and amount.value < 8 * int(code[1]):
        expression = f"{value} {'<<' if left else '>>'} {e.number(code, amount.value)}"
    else:
        name = "shift_left" if left else "shift_right"
        expression = f"{name}({value}, {e.use(amount, 'u4')})"
    e.define(i.operands[0], code, expression, i.guard)


@emits("shf")
def _funnel(e: Emitter, i: Instruction) -> None:
    low, high, amount = (e.use(operand, "u4") for operand in i.operands[1:4])
    flags = f"{i.has('l')}, {i.has('clamp')}"
    e.define(i.operands[0], "u4", f"funnel({low}, {high}, {amount}, {flags})", i.guard)


@emits("popc", "clz")
def _count(e: Emitter, i: Instruction) -> None:
    name = {"popc": "population", "clz": "leading_zeros"}[i.opcode]
    value = e.use(i.operands[1], CODES[i.kind])
    e.define(i.operands[0], "u4", f"{name}({value})", i.guard)


@emits("brev")
def _reverse(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    e.define(i.operands[0], code, f"reverse_bits({e.use(i.operands[1], code)})", i.guard)


@emits("bfind")
def _find(e: Emitter, i: Instruction) -> None:
    value = e.use(i.operands[1], CODES[i.kind])
    e.define(i.operands[0], "u4", f"find_bit({value}, {i.has('shiftamt')})", i.guard)


@emits("bfe")
def _extract(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    value = e.use(i.operands[1], code)
    start, length = (e.use(operand, "u4") for operand in i.operands[2:4])
    e.define(i.operands[0], code, f"extract_field({value}, {start}, {length})", i.guard)


@emits("bfi")
def _insert(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    field, into = (e.use(operand, code) for operand in i.operands[1:3])
    start, length = (e.use(operand, "u4") for operand in i.operands[3:5])
    e.define(i.operands[0], code, f"insert_field({field}, {into}, {start}, {length})", i.guard)


@emits("prmt")
def _permute(e: Emitter, i: Instruction) -> None:
    if i.kind != "b32":
        e.refuse(i)
    a, b, selector = (e.use(operand, "u4") for operand in i.operands[1:4])
    e.define(i.operands[0], "u4", f"permute({a}, {b}, {selector})", i.guard)


@emits("lop3")
def _table(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.use(operand, "u4") for operand in i.operands[1:4])
    table = i.operands[4]
    assert isinstance(table, Imm)
    e.define(i.operands[0], "u4", f"any_logic({a}, {b}, {c}, {table.value})", i.guard)


@emits("dp4a")
def _dot(e: Emitter, i: Instruction) -> None:
    a, b, c = (e.use(operand, "u4") for operand in i.operands[1:4])
    signed_a, signed_b = (kind == "s32" for kind in i.modifiers[-2:])
    c = e.use(i.operands[3], "i4" if signed_a or signed_b else "u4")
    e.define(i.operands[0], "u4", f"dot_bytes({a}, {b}, {c}, {signed_a}, {signed_b})", i.guard)


def comparison(e: Emitter, i: Instruction, kind: str, first: str, second: str) -> str:
    """Return the expression of an integer comparison."""
    del e, kind
    name = UNSIGNED.get(i.modifiers[0], i.modifiers[0])
    return f"{first} {COMPARISONS[name]} {second}"


@emits("slct")
def _slct(e: Emitter, i: Instruction) -> None:
    code = CODES[i.modifiers[-2]]
    a, b = (e.use(operand, code) for operand in i.operands[1:3])
    sign = CODES[i.kind]
    chooser = e.use(i.operands[3], sign)
    condition = f"{chooser} >= {e.number(sign, 0)}"
    e.define(i.operands[0], code, f"select({condition}, {a}, {b})", i.guard)


@emits("selp")
def _selp(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    a, b = (e.use(operand, code) for operand in i.operands[1:3])
    condition = e.use(i.operands[3], "?")
    clean = e.is_clean(a) and e.is_clean(b)
    e.define(i.operands[0], code, f"select({condition}, {a}, {b})", i.guard, clean)


@emits("mov")
def _mov(e: Emitter, i: Instruction) -> None:
    target, value = i.operands
    if isinstance(target, Pair):
        e.refuse(i)
    code = CODES[i.kind] if i.kind in CODES else e.refuse(i)
    if isinstance(value, Imm) and value.code == "f4":
        code = "f4"
    expression = e.use(value, code)
    clean = not isinstance(value, Vector) and e.is_clean(expression)
    e.define(target, code, expression, i.guard, clean)


@emits("cvta")
def _cvta(e: Emitter, i: Instruction) -> None:
    """Move an address between a state space and the generic one: windows lie high up."""
    space = next(
        name for name in i.modifiers if name in {"global", "shared", "local", "const", "param"}
    )
    value = e.use(i.operands[1], "u8")
    if space == "global":
        e.define(i.operands[0], "u8", value, i.guard)
        return
    window = e.number("u8", WINDOWS[space])
    sign = "-" if i.has("to") else "+"
    e.define(i.operands[0], "u8", f"{value} {sign} {window}", i.guard)


@emits("isspacep")
def _isspacep(e: Emitter, i: Instruction) -> None:
    address = e.use(i.operands[1], "u8")
    window = f"{address} >> {e.number('u8', 40)}"
    if i.kind == "global":
        inside = [f"({window} != {e.number('u8', base >> 40)})" for base in WINDOWS.values()]
        e.define(i.operands[0], "?", " & ".join(inside), i.guard)
        return
    e.define(i.operands[0], "?", f"{window} == {e.number('u8', WINDOWS[i.kind] >> 40)}", i.guard)


@emits("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard")
def _nothing(e: Emitter, i: Instruction) -> None:
    """Lanes step together, so memory is always in order."""
