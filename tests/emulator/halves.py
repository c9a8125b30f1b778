"""float16 and bfloat16: bit patterns in integer registers, one or two to a register.

float16 is NumPy's. bfloat16 is the upper half of a float32, and rounding to it is done on the bits.
A register of two is a view of twice as many halves, so one operation serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .emitter import runtime

SIXTEEN = np.uint32(16)
CANONICAL_NAN = np.uint32(0x7FFF)


@runtime
def widen_bf16(bits: Any) -> Any:
    """Return the float32 of a bfloat16's bits."""
    return (bits.astype(np.uint32) << SIXTEEN).view(np.float32)


@runtime
def narrow_bf16(x: Any, mode: str = "rn") -> Any:
    """Return the bits of the nearest bfloat16, or of the one towards zero."""
    bits = x.view(np.uint32)
    rounded = bits
    if mode == "rn":
        rounded = bits + np.uint32(0x7FFF) + ((bits >> SIXTEEN) & np.uint32(1))
    return np.where(np.isnan(x), CANONICAL_NAN, rounded >> SIXTEEN)[()].astype(np.uint16)


@runtime
def bf16_from_wide(x: Any) -> Any:
    """Return the bits of the bfloat16 nearest to a float64, rounding once."""
    near = x.astype(np.float32)
    # Rounding to odd on the way keeps what decides a tie.
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = (wide != x) & np.isfinite(near)
    too_far = inexact & (np.abs(wide) > np.abs(x))
    bits = np.where(too_far, bits - np.uint32(1), bits)
    bits = np.where(inexact, bits | np.uint32(1), bits)[()]
    return narrow_bf16(bits.view(np.float32))


@runtime
def narrow_f16(x: Any, mode: str = "rn") -> Any:
    """Return the float16 nearest to a float, or the one towards zero."""
    near = x.astype(np.float16)
    if mode == "rn":
        return near
    away = np.abs(near.astype(np.float64)) > np.abs(x.astype(np.float64))
    return np.where(away, np.nextafter(near, np.float16(0)), near)[()]


@runtime
def join(low: Any, high: Any) -> Any:
    """Put two 16-bit patterns into one register."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << SIXTEEN)


@runtime
def twice(function: Callable, *registers: Any) -> Any:
    """Apply a function of 16-bit patterns to both halves of registers."""
    lanes = [register for register in registers if type(register) is np.ndarray]
    shape = lanes[0].shape if lanes else (1,)
    parts = [np.ascontiguousarray(np.broadcast_to(register, shape)) for register in registers]
    result = function(*(part.view(np.uint16) for part in parts)).view(np.uint32)
    return result if lanes else result[0]


def on_f16(function: Callable) -> Callable:
    """Make a function of float16 one of bit patterns."""

    def of_bits(*bits: Any) -> Any:
        return function(*(part.view(np.float16) for part in bits)).view(np.uint16)

    return of_bits


def on_bf16(function: Callable, wide: bool = False) -> Callable:
    """Make a function of float32 (or float64) one of bfloat16's bit patterns."""

    def of_bits(*bits: Any) -> Any:
        values = [widen_bf16(part) for part in bits]
        if wide:
            return bf16_from_wide(function(*(value.astype(np.float64) for value in values)))
        return narrow_bf16(function(*values))

    return of_bits
