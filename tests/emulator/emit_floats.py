"""Code for floating-point arithmetic of all widths, comparisons included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import floats, halves
from .emit_integers import COMPARISONS, INTEGER, UNSIGNED, comparison, integer
from .emitter import CODES, Emitter, emits
from .ptx import Instruction, Pair

FLOATS = {"f32", "f64", "f16", "bf16", "f16x2", "bf16x2"}
HALVES = {"f16", "bf16", "f16x2", "bf16x2"}
UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
FUNCTIONS = {"ex2": "np.exp2", "lg2": "np.log2", "sin": "np.sin", "cos": "np.cos"}
FUNCTIONS |= {"tanh": "np.tanh", "rsqrt": "reciprocal_root", "sqrt": "np.sqrt"}


def operand(e: Emitter, i: Instruction, at: int) -> str:
    """Return a float operand, flushed if the instruction says so and it may be subnormal."""
    code = CODES[i.kind]
    value = e.use(i.operands[at], code)
    if i.has("ftz") and code == "f4" and not e.is_clean(value):
        flushed = e.fresh(f"flush({value})")
        e.clean.add(flushed)
        return flushed
    return value


def finish(e: Emitter, i: Instruction, expression: str, exact: bool = False) -> None:
    """Saturate and flush a result; an ``exact`` one cannot become subnormal by itself."""
    code = CODES[i.kind]
    if i.has("sat"):
        expression = f"saturate({expression})"
    flushes = i.has("ftz") and code == "f4"
    if flushes and not exact:
        expression = f"flush({expression})"
    e.define(i.operands[0], code, expression, i.guard, clean=flushes)


def _mode(i: Instruction) -> str:
    return next((mode for mode in ("rz", "rm", "rp") if i.has(mode)), "rn")


@emits("add", "sub", "mul")
def _binary(e: Emitter, i: Instruction) -> None:
    if i.kind not in FLOATS:
        integer(e, i)
        return
    sign = {"add": "+", "sub": "-", "mul": "*"}[i.opcode]
    if i.kind in HALVES:
        half(e, i, {"+": np.add, "-": np.subtract, "*": np.multiply}[sign], 2)
        return
    a, b = operand(e, i, 1), operand(e, i, 2)
    if _mode(i) != "rn":
        if i.kind == "f64":
            e.refuse(i, "rounding of float64 other than to nearest")
        finish(e, i, f"directed({a}.astype(f8) {sign} {b}.astype(f8), {_mode(i)!r})")
        return
    finish(e, i, f"{a} {sign} {b}")


@emits("fma", "mad")
def _fma(e: Emitter, i: Instruction) -> None:
    if i.kind not in FLOATS:
        INTEGER["mad"](e, i)
        return
    if i.kind in HALVES:
        half(e, i, lambda a, b, c: a * b + c, 3)
        return
    a, b, c = (operand(e, i, at) for at in (1, 2, 3))
    if i.kind == "f64":
        finish(e, i, f"fma8({a}, {b}, {c})")
    elif _mode(i) != "rn":
        exact = f"{a}.astype(f8) * {b}.astype(f8) + {c}.astype(f8)"
        finish(e, i, f"directed({exact}, {_mode(i)!r})")
    else:
        finish(e, i, f"fma4({a}, {b}, {c})")


@emits("div")
def _div(e: Emitter, i: Instruction) -> None:
    if i.kind not in FLOATS:
        integer(e, i)
        return
    a, b = operand(e, i, 1), operand(e, i, 2)
    if _mode(i) != "rn":
        finish(e, i, f"directed({a}.astype(f8) / {b}.astype(f8), {_mode(i)!r})")
        return
    finish(e, i, f"{a} / {b}")


@emits("rcp")
def _rcp(e: Emitter, i: Instruction) -> None:
    finish(e, i, f"{e.constant(CODES[i.kind], int(_one(i.kind)))} / {operand(e, i, 1)}")


def _one(kind: str) -> int:
    return 0x3F800000 if kind == "f32" else 0x3FF0000000000000


@emits("ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "sqrt")
def _function(e: Emitter, i: Instruction) -> None:
    name = FUNCTIONS[i.opcode]
    if i.kind in HALVES:
        half(e, i, getattr(np, name.partition(".")[2]), 1)
        return
    value = operand(e, i, 1)
    if i.kind == "f64" or i.opcode == "sqrt":
        finish(e, i, f"{name}({value})")
    else:
        finish(e, i, f"wide_function({name}, {value})")


@emits("abs", "neg")
def _sign(e: Emitter, i: Instruction) -> None:
    if i.kind not in FLOATS:
        integer(e, i)
        return
    function = {"abs": np.abs, "neg": np.negative}[i.opcode]
    if i.kind in {"f16x2", "bf16x2", "f16", "bf16"}:
        # Only the sign bit changes, for a NaN too.
        code = "u4" if i.kind.endswith("x2") else "u2"
        sign = e.number(code, 0x80008000 if code == "u4" else 0x8000)
        value = e.use(i.operands[1], code)
        change = f"{value} ^ {sign}" if i.opcode == "neg" else f"{value} & ~{sign}"
        e.define(i.operands[0], code, change, i.guard)
        return
    finish(e, i, f"np.{function.__name__}({operand(e, i, 1)})", exact=True)


@emits("min", "max")
def _extreme(e: Emitter, i: Instruction) -> None:
    if i.kind not in FLOATS:
        integer(e, i)
        return
    name = {"min": "minimum", "max": "maximum"}[i.opcode] + ("_nan" if i.has("NaN") else "")
    if i.kind in HALVES:
        half(e, i, getattr(floats, name), 2)
        return
    values = ", ".join(operand(e, i, at) for at in range(1, len(i.operands)))
    if len(i.operands) != 3:
        e.refuse(i, "a minimum of three")
    finish(e, i, f"{name}({values})", exact=True)


@emits("copysign")
def _copysign(e: Emitter, i: Instruction) -> None:
    code = CODES[i.kind]
    a, b = (e.use(value, code) for value in i.operands[1:3])
    e.define(i.operands[0], code, f"np.copysign({b}, {a})", i.guard)


@emits("testp")
def _testp(e: Emitter, i: Instruction) -> None:
    value = e.use(i.operands[1], CODES[i.kind])
    e.define(i.operands[0], "?", f"test_property({value}, {i.modifiers[0]!r})", i.guard)


def half(e: Emitter, i: Instruction, function: Callable, count: int) -> None:
    """Emit an operation on float16 or bfloat16, alone or in pairs."""
    single = i.kind.removesuffix("x2")
    wide = i.opcode == "fma"  # rounds once, so it is computed in float64
    if single == "bf16":
        of_bits = halves.on_bf16(function, wide)
    elif wide:
        of_bits = halves.on_f16(
            lambda a, b, c: function(*(part.astype(np.float64) for part in (a, b, c))).astype("f2")
        )
    else:
        of_bits = halves.on_f16(function)
    name = e.thing(_modified(of_bits, i, single))
    code = "u4" if i.kind.endswith("x2") else "u2"
    values = ", ".join(e.use(value, code) for value in i.operands[1 : 1 + count])
    expression = f"twice({name}, {values})" if code == "u4" else f"{name}({values})"
    e.define(i.operands[0], code, expression, i.guard)


def _modified(of_bits: Callable, i: Instruction, single: str) -> Callable:
    """Apply what follows the operation: saturation, relu, flushing of float16."""
    if not (i.has("sat") or i.has("relu") or i.has("ftz")):
        return of_bits

    def modified(*bits: Any) -> Any:
        if i.has("ftz") and single == "f16":
            bits = tuple(_flush_f16(part) for part in bits)
        result = of_bits(*bits)
        wrap = halves.on_f16 if single == "f16" else halves.on_bf16
        if i.has("sat"):
            result = wrap(floats.saturate)(result)
        if i.has("relu"):
            result = wrap(_relu)(result)
        return _flush_f16(result) if i.has("ftz") and single == "f16" else result

    return modified


def _relu(x: Any) -> Any:
    return np.where(np.isnan(x), x, floats.maximum(x, x.dtype.type(0)))[()]


def _flush_f16(bits: Any) -> Any:
    subnormal = (bits & np.uint16(0x7C00)) == 0
    return np.where(subnormal, bits & np.uint16(0x8000), bits)[()]


@emits("setp", "set")
def _compare(e: Emitter, i: Instruction) -> None:
    kind = i.kind
    name = i.modifiers[0]
    if kind.endswith("x2"):
        _compare_pair(e, i)
        return
    if kind in FLOATS:
        value = _float_comparison(name, *_comparands(e, i, kind))
    else:
        code = CODES[kind]
        if name in UNSIGNED:
            code = code.replace("i", "u")
        a, b = (e.use(operand, code) for operand in i.operands[1:3])
        value = comparison(e, i, kind, a, b)
    result = e.fresh(_combined(e, i, f"({value})"))
    if i.opcode == "set":
        code = CODES[i.modifiers[-2]]
        yes = e.constant(code, -1 if code[0] != "f" else _one(i.modifiers[-2]))
        e.define(i.operands[0], code, f"select({result}, {yes}, {e.constant(code, 0)})", i.guard)
        return
    target = i.operands[0]
    if isinstance(target, Pair):
        opposite = _combined(e, i, f"~({value})")
        e.define(target.second, "?", opposite, i.guard)
        target = target.first
    e.define(target, "?", result, i.guard)


def _comparands(e: Emitter, i: Instruction, kind: str) -> tuple[str, str]:
    if kind == "bf16":
        a, b = (f"widen_bf16({e.use(value, 'u2')})" for value in i.operands[1:3])
        return e.fresh(a), e.fresh(b)
    return operand(e, i, 1), operand(e, i, 2)


def _float_comparison(name: str, a: str, b: str) -> str:
    if name == "num":
        return f"({a} == {a}) & ({b} == {b})"
    if name == "nan":
        return f"({a} != {a}) | ({b} != {b})"
    if name == "ne":  # ordered: false for a NaN, unlike NumPy's
        return f"({a} < {b}) | ({a} > {b})"
    if name == "neu":
        return f"{a} != {b}"
    if name in UNORDERED:
        inverse = UNORDERED[name]
        if inverse == "ne":
            return f"~(({a} < {b}) | ({a} > {b}))"
        return f"~({a} {COMPARISONS[inverse]} {b})"
    return f"{a} {COMPARISONS[name]} {b}"


def _combined(e: Emitter, i: Instruction, value: str) -> str:
    """Return a comparison combined with a third operand, if there is one."""
    sign = {"and": "&", "or": "|", "xor": "^"}.get(i.modifiers[1] if len(i.modifiers) > 1 else "")
    if sign is None or len(i.operands) < 4:
        return value
    return f"{value} {sign} {e.use(i.operands[3], '?')}"


def _compare_pair(e: Emitter, i: Instruction) -> None:
    """Compare both halves: a predicate for each, or a register with all ones or 1.0 in each."""
    codes = [e.use(value, "u4") for value in i.operands[1:3]]
    answers = []
    for shift in (0, 16):
        parts = [f"({code} >> {e.number('u4', shift)}).astype(u2)" for code in codes]
        if i.kind == "bf16x2":
            a, b = (e.fresh(f"widen_bf16({part})") for part in parts)
        else:
            a, b = (e.fresh(f"{part}.view(f2)") for part in parts)
        answers.append(e.fresh(_combined(e, i, f"({_float_comparison(i.modifiers[0], a, b)})")))
    target = i.operands[0]
    if i.opcode == "setp":
        first, second = (
            (target.first, target.second) if isinstance(target, Pair) else (target, None)
        )
        e.define(first, "?", answers[0], i.guard)
        e.define(second, "?", answers[1], i.guard)
        return
    result = i.modifiers[-2]
    yes = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(result, 0xFFFF)
    parts = [f"select({answer}, {e.number('u2', yes)}, {e.number('u2', 0)})" for answer in answers]
    e.define(target, "u4", f"join({parts[0]}, {parts[1]})", i.guard)
