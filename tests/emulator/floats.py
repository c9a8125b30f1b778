"""Floating-point arithmetic as the PTX ISA defines it, on arrays and on scalars.

float32 goes through float64 where a device rounds once and NumPy would round twice (fma); the
double rounding left over differs from the device's by one unit in 2^-29 of all cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .emitter import runtime

TINY = np.float32(1.1754943508222875e-38)
F0, F1 = np.float32(0), np.float32(1)
SPLITTER = np.float64(134217729)  # 2^27 + 1 cuts a float64 into two halves


@runtime
def flush(x: Any) -> Any:
    """Set subnormal float32 numbers to zero; the sign stays."""
    small = np.abs(x) < TINY
    if np.count_nonzero(small):  # three times faster than any() on a few lanes
        if type(x) is not np.ndarray:
            return np.copysign(F0, x)
        return np.where(small, np.copysign(F0, x), x)
    return x


@runtime
def saturate(x: Any) -> Any:
    """Clamp to [0, 1]; a NaN becomes 0."""
    zero = x.dtype.type(0)
    return np.fmin(np.fmax(x, zero), x.dtype.type(1)) + zero


@runtime
def fma4(a: Any, b: Any, c: Any) -> Any:
    """Multiply and add in float32, rounding once."""
    wide = np.float64
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float32)


@runtime
def fma8(a: Any, b: Any, c: Any) -> Any:
    """Multiply and add in float64: the errors of both steps are computed and added at the end."""
    product = a * b
    a_high = a * SPLITTER - (a * SPLITTER - a)
    b_high = b * SPLITTER - (b * SPLITTER - b)
    a_low, b_low = a - a_high, b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    part = total - product
    lost_too = (product - (total - part)) + (c - part)
    exact = total + (lost + lost_too)
    return np.where(np.isfinite(exact), exact, total)[()]


@runtime
def directed(exact: Any, mode: str) -> Any:
    """Round float64 to float32 towards zero (rz), down (rm) or up (rp)."""
    near = exact.astype(np.float32)
    wide = near.astype(np.float64)
    infinity = np.float32(np.inf)
    over, under = wide > exact, wide < exact
    if mode == "rz":
        over, under = over & (exact > 0), under & (exact < 0)
    elif mode == "rm":
        under = under & False
    else:
        over = over & False
    near = np.where(over, np.nextafter(near, -infinity), near)
    return np.where(under, np.nextafter(near, infinity), near)[()]


@runtime
def wide_function(function: Any, x: Any) -> Any:
    """Compute in float64 what a device approximates in float32."""
    return function(x.astype(np.float64)).astype(np.float32)


@runtime
def reciprocal_root(x: Any) -> Any:
    """Return 1 / sqrt(x)."""
    return np.float64(1) / np.sqrt(x)


@runtime
def minimum(a: Any, b: Any) -> Any:
    """Return the smaller; a NaN counts as missing, and -0 as smaller than 0."""
    less = np.fmin(a, b)
    return np.where(a == b, np.where(np.signbit(a), a, b), less)[()]


@runtime
def maximum(a: Any, b: Any) -> Any:
    """Return the larger; a NaN counts as missing, and -0 as smaller than 0."""
    more = np.fmax(a, b)
    return np.where(a == b, np.where(np.signbit(a), b, a), more)[()]


@runtime
def minimum_nan(a: Any, b: Any) -> Any:
    """Return the smaller, or a NaN if there is one."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), minimum(a, b))[()]


@runtime
def maximum_nan(a: Any, b: Any) -> Any:
    """Return the larger, or a NaN if there is one."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), maximum(a, b))[()]


@runtime
def to_integer(x: Any, mode: str, code: str) -> Any:
    """Round to an integer, clamp it to the type's range; a NaN becomes 0."""
    rounded = ROUND[mode](x.astype(np.float64))
    info = np.iinfo(code)
    dtype = np.dtype(code).type
    # The highest number of 64 bits is no float64: what is not below 2^63 or 2^64 is set apart.
    top = float(info.max) + 1 if info.max > 2**53 else float(info.max)
    inside = (rounded > info.min) & (rounded < top)
    value = np.where(inside, rounded, 0.0).astype(dtype)
    value = np.where(rounded >= top, dtype(info.max), value)
    return np.where(rounded <= float(info.min), dtype(info.min), value)[()]


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@runtime
def to_whole(x: Any, mode: str) -> Any:
    """Round to a whole number that stays a float."""
    return ROUND[mode](x)


@runtime
def test_property(x: Any, kind: str) -> Any:
    """Tell what sort of number it is."""
    tiny = np.finfo(x.dtype).tiny
    if kind == "finite":
        return np.isfinite(x)
    if kind == "infinite":
        return np.isinf(x)
    if kind == "number":
        return ~np.isnan(x)
    if kind == "notanumber":
        return np.isnan(x)
    if kind == "normal":
        return np.isfinite(x) & (np.abs(x) >= tiny)
    return (np.abs(x) < tiny) & (x != 0)
