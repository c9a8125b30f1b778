"""Code for ``cvt``: between integers, floats and halves, with every rounding."""

from __future__ import annotations

import numpy as np

from .emitter import CODES, Emitter, emits
from .ptx import Instruction

WHOLE = ("rni", "rzi", "rmi", "rpi")
FLOATS = {"f32", "f64", "f16", "bf16"}


@emits("cvt")
def _cvt(e: Emitter, i: Instruction) -> None:
    if i.has("pack") or len(i.modifiers) < 2:
        e.refuse(i)
    to, origin = i.modifiers[-2:]
    if to in {"f16x2", "bf16x2"}:
        _pair(e, i, to)
    elif to not in CODES or origin not in CODES:
        e.refuse(i)
    elif origin in FLOATS:
        _from_float(e, i, to, origin)
    else:
        _from_integer(e, i, to, origin)


def _pair(e: Emitter, i: Instruction, to: str) -> None:
    if i.kind != "f32" or i.has("satfinite"):
        e.refuse(i)
    high, low = (_relu(e, i, _flushed(e, i, e.use(value, "f4"))) for value in i.operands[1:3])
    narrow = "narrow_f16" if to == "f16x2" else "narrow_bf16"
    view = ".view(u2)" if to == "f16x2" else ""
    parts = [f"{narrow}({value}, {_mode(i)!r}){view}" for value in (low, high)]
    e.define(i.operands[0], "u4", f"join({parts[0]}, {parts[1]})", i.guard)


def _relu(e: Emitter, i: Instruction, value: str) -> str:
    return e.fresh(f"maximum({value}, {e.constant('f4', 0)})") if i.has("relu") else value


def _mode(i: Instruction) -> str:
    return next((mode for mode in ("rz", "rm", "rp") if i.has(mode)), "rn")


def _flushed(e: Emitter, i: Instruction, value: str) -> str:
    return e.fresh(f"flush({value})") if i.has("ftz") and not e.is_clean(value) else value


def _from_float(e: Emitter, i: Instruction, to: str, origin: str) -> None:
    value = e.use(i.operands[1], CODES[origin])
    if origin == "bf16":
        value = e.fresh(f"widen_bf16({value})")
    if origin == "f32":
        value = _flushed(e, i, value)
    whole = next((mode for mode in WHOLE if i.has(mode)), None)
    if to not in FLOATS:
        e.define(
            i.operands[0], CODES[to], f"to_integer({value}, {whole!r}, {CODES[to]!r})", i.guard
        )
        return
    if whole:
        value = e.fresh(f"to_whole({value}, {whole!r})")
    code, value = _to_float(e, i, to, origin, value)
    if i.has("sat"):
        if to == "bf16":
            e.refuse(i)
        value = f"saturate({value})"
    flushes = i.has("ftz") and to == "f32"
    if flushes and origin == "f64":
        value = f"flush({value})"
    e.define(i.operands[0], code, value, i.guard, clean=flushes)


def _to_float(e: Emitter, i: Instruction, to: str, origin: str, value: str) -> tuple[str, str]:
    mode = _mode(i)
    if to == origin:
        return CODES[to], f"narrow_bf16({value})" if to == "bf16" else value
    if to == "f64" or (to == "f32" and origin != "f64"):
        return CODES[to], f"{value}.astype({CODES[to]})"
    if to == "f32":
        return "f4", f"{value}.astype(f4)" if mode == "rn" else f"directed({value}, {mode!r})"
    if mode not in {"rn", "rz"}:
        e.refuse(i, "a rounding it lacks")
    value = _relu(e, i, value)
    if to == "f16":
        return "f2", f"narrow_f16({value}, {mode!r})"
    if origin == "f64":
        return "u2", f"bf16_from_wide({value})"
    wide = value if origin in {"f32", "bf16"} else f"{value}.astype(f4)"
    return "u2", f"narrow_bf16({wide}, {mode!r})"


def _from_integer(e: Emitter, i: Instruction, to: str, origin: str) -> None:
    value = e.use(i.operands[1], CODES[origin])
    code = CODES[to]
    if to == "bf16":
        e.define(i.operands[0], "u2", f"bf16_from_wide({value}.astype(f8))", i.guard)
    elif to in FLOATS:
        mode = _mode(i)
        if mode != "rn" and (to != "f32" or origin[1:] == "64"):
            e.refuse(i, "a rounding it lacks")
        rounded = (
            f"{value}.astype({code})" if mode == "rn" else f"directed({value}.astype(f8), {mode!r})"
        )
        e.define(i.operands[0], code, rounded, i.guard, clean=to == "f32")
    elif i.has("sat"):
        low, high = _overlap(code, CODES[origin])
        source = CODES[origin]
        bounds = f"{e.number(source, low)}, {e.number(source, high)}"
        e.define(i.operands[0], code, f"np.clip({value}, {bounds}).astype({code})", i.guard)
    else:
        same = code == CODES[origin]
        e.define(i.operands[0], code, value if same else f"{value}.astype({code})", i.guard)


def _overlap(code: str, source: str) -> tuple[int, int]:
    """Return the values two integer types share."""
    a, b = np.iinfo(code), np.iinfo(source)
    return max(int(a.min), int(b.min)), min(int(a.max), int(b.max))
