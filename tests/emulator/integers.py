"""Integer arithmetic that NumPy lacks, on arrays and on scalars."""

from __future__ import annotations

from typing import Any

import numpy as np

from .emitter import runtime


@runtime
def shift_left(value: Any, amount: Any) -> Any:
    """Shift; from the width on nothing is left."""
    width = value.dtype.itemsize * 8
    if type(value) is not np.ndarray and type(amount) is not np.ndarray:
        return value << value.dtype.type(amount) if amount < width else value.dtype.type(0)
    inside = np.minimum(amount, np.uint32(width - 1)).astype(value.dtype)
    return select_below(amount, width, value << inside, value.dtype.type(0))


@runtime
def shift_right(value: Any, amount: Any) -> Any:
    """Shift; a signed value fills up with its sign."""
    width = value.dtype.itemsize * 8
    inside = np.minimum(amount, np.uint32(width - 1)).astype(value.dtype)
    if value.dtype.kind == "i":
        return value >> inside
    return select_below(amount, width, value >> inside, value.dtype.type(0))


def select_below(amount: Any, width: int, value: Any, other: Any) -> Any:
    """Choose the value where the amount is below the width."""
    if type(amount) is not np.ndarray:
        return value if amount < width else other + value * value.dtype.type(0)
    return np.where(amount < width, value, other)


@runtime
def divide(a: Any, b: Any) -> Any:
    """Divide towards zero; by zero it gives all ones, as devices do."""
    quotient = (a - np.fmod(a, b)) // b
    ones = a.dtype.type(-1) if a.dtype.kind == "i" else ~a.dtype.type(0)
    if type(b) is not np.ndarray:
        return quotient if b else quotient * a.dtype.type(0) + ones
    return np.where(b == 0, ones, quotient)


@runtime
def remainder(a: Any, b: Any) -> Any:
    """Return what division towards zero leaves; the sign is that of ``a``."""
    rest = np.fmod(a, b)
    if type(b) is not np.ndarray:
        return rest if b else a + rest * a.dtype.type(0)
    return np.where(b == 0, a, rest)


@runtime
def multiply_high(a: Any, b: Any) -> Any:
    """Return the upper half of a product."""
    dtype = a.dtype
    if dtype.itemsize < 8:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}").type
        return ((a.astype(wide) * b.astype(wide)) >> wide(8 * dtype.itemsize)).astype(dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.astype(np.uint64), b.astype(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = ((x0 * y0) >> half) + (x1 * y0 & low) + x0 * y1
    high = x1 * y1 + ((x1 * y0) >> half) + (middle >> half)
    if dtype.kind == "u":
        return high
    zero = np.uint64(0)
    high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.astype(np.int64)


@runtime
def population(x: Any) -> Any:
    """Count the ones."""
    x = x.astype(np.uint64)
    for pattern, shift in (
        (0x5555555555555555, 1),
        (0x3333333333333333, 2),
        (0x0F0F0F0F0F0F0F0F, 4),
    ):
        mask = np.uint64(pattern)
        x = (x & mask) + ((x >> np.uint64(shift)) & mask)
    total = (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return total.astype(np.uint32)


@runtime
def highest(x: Any) -> Any:
    """Return the position of the highest one; 0xFFFFFFFF where there is none."""
    x = x.astype(np.uint64)
    for shift in (1, 2, 4, 8, 16, 32):
        x = x | (x >> np.uint64(shift))
    return population(x) - np.uint32(1)


@runtime
def leading_zeros(x: Any) -> Any:
    """Count the zeros before the highest one."""
    return np.uint32(8 * x.dtype.itemsize - 1) - highest(x)


@runtime
def reverse_bits(x: Any) -> Any:
    """Reverse the order of the bits."""
    dtype = x.dtype
    x = x.astype(np.uint64)
    for pattern, shift in (
        (0x5555555555555555, 1),
        (0x3333333333333333, 2),
        (0x0F0F0F0F0F0F0F0F, 4),
        (0x00FF00FF00FF00FF, 8),
        (0x0000FFFF0000FFFF, 16),
        (0x00000000FFFFFFFF, 32),
    ):
        mask, by = np.uint64(pattern), np.uint64(shift)
        x = ((x >> by) & mask) | ((x & mask) << by)
    return (x >> np.uint64(64 - 8 * dtype.itemsize)).astype(dtype)


@runtime
def find_bit(x: Any, shift_amount: bool) -> Any:
    """Return the position of the most significant bit that is no sign."""
    width = np.uint32(8 * x.dtype.itemsize)
    if x.dtype.kind == "i":
        x = x ^ (x >> x.dtype.type(width - 1))
        x = x.view(f"u{x.dtype.itemsize}")
    found = highest(x)
    none = found == np.uint32(0xFFFFFFFF)
    if shift_amount:
        found = np.where(none, found, width - np.uint32(1) - found)[()]
    return found


@runtime
def extract_field(value: Any, start: Any, length: Any) -> Any:
    """Return ``length`` bits from ``start`` on; a signed one repeats its highest bit."""
    width = 8 * value.dtype.itemsize
    start, length = start & np.uint32(255), length & np.uint32(255)
    unsigned = value.view(f"u{value.dtype.itemsize}")
    mask = _ones(length, unsigned.dtype)
    field = shift_right(unsigned, start) & mask
    if value.dtype.kind == "u":
        return field
    start, length = start.astype(np.int64), length.astype(np.int64)
    last = np.minimum(start + length - 1, width - 1)
    mask = _ones(np.maximum(np.minimum(length, width - start), 0).astype(np.uint32), mask.dtype)
    sign = (value >> np.maximum(last, 0).astype(value.dtype)) & value.dtype.type(1)
    negative = (sign == 1) & (length != 0)
    return np.where(negative, field | ~mask, field)[()].view(value.dtype)


@runtime
def insert_field(field: Any, into: Any, start: Any, length: Any) -> Any:
    """Put the lowest ``length`` bits of a field at ``start``."""
    start, length = start & np.uint32(255), length & np.uint32(255)
    mask = shift_left(_ones(length, into.dtype), start)
    return (into & ~mask) | (shift_left(field, start) & mask)


def _ones(length: Any, dtype: Any) -> Any:
    one = dtype.type(1)
    if type(length) is np.ndarray:
        return shift_left(np.full(length.shape, one), length) - one
    return shift_left(one, length) - one


@runtime
def funnel(low: Any, high: Any, amount: Any, left: bool, clamp: bool) -> Any:
    """Shift two registers as one of 64 bits."""
    amount = np.minimum(amount, np.uint32(32)) if clamp else amount & np.uint32(31)
    whole = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    if left:
        return ((whole << amount.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return (whole >> amount.astype(np.uint64)).astype(np.uint32)


@runtime
def permute(a: Any, b: Any, selector: Any) -> Any:
    """Choose four of eight bytes; bit 3 of a choice repeats the byte's sign instead."""
    whole = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.uint32(0)
    for at in range(4):
        choice = (selector >> np.uint32(4 * at)) & np.uint32(15)
        byte = (whole >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(
            255
        )
        byte = byte.astype(np.uint32)
        sign = (byte >> np.uint32(7)) * np.uint32(255)
        replicate = choice >> np.uint32(3)
        byte = byte * (np.uint32(1) - replicate) + sign * replicate
        result = result | (byte << np.uint32(8 * at))
    return result


@runtime
def any_logic(a: Any, b: Any, c: Any, table: int) -> Any:
    """Combine three registers bit by bit with a table of eight results."""
    result = a & ~a
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | term
    return result


@runtime
def dot_bytes(a: Any, b: Any, c: Any, signed_a: bool, signed_b: bool) -> Any:
    """Add the products of four bytes."""
    total = c.astype(np.int64)
    for at in range(4):
        x = (a >> np.uint32(8 * at)).astype(np.int8 if signed_a else np.uint8).astype(np.int64)
        y = (b >> np.uint32(8 * at)).astype(np.int8 if signed_b else np.uint8).astype(np.int64)
        total = total + x * y
    return total.astype(np.uint32)
