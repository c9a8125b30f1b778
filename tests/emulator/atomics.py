"""Atomic operations: as if the lanes came one after the other, in their order or another.

Where the old values are not wanted, NumPy's ``ufunc.at`` does just that. Where they are, lanes that
share an address are taken in rounds, one lane to an address in each; for sums of integers, whose
order is of no consequence, at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .floats import flush
from .halves import narrow_bf16, widen_bf16

if TYPE_CHECKING:
    from .access import Access
    from .memory import Allocation

UFUNCS = {"add": np.add, "min": np.minimum, "max": np.maximum}
UFUNCS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def apply(
    access: Access, store: Allocation, index: Any, values: tuple, third: Any, turns: Any = None
) -> tuple:
    """Change the store; return the old values if the access wants them.

    ``turns`` says in which order the lanes come.
    """
    if turns is not None:
        index, third = index[turns], _in_turn(third, turns)
        old = apply(access, store, index, tuple(_in_turn(v, turns) for v in values), third)
        places = np.argsort(turns)
        return tuple(None if each is None else each[places] for each in old)
    view = store.view(access.code)
    old = []
    for at, value in enumerate(values):
        element = index if access.count == 1 else index * access.count + at
        old.append(_one(access, view, element, value, third))
    return tuple(old)


def _in_turn(value: Any, turns: Any) -> Any:
    return value[turns] if type(value) is np.ndarray else value


def _one(access: Access, view: Any, index: Any, value: Any, third: Any) -> Any:
    operation, _, half = access.operation.partition(" ")
    if half:
        return _half_add(access, view, index, value, half)
    if access.flushes:
        value = flush(value)
    ufunc = UFUNCS.get(operation)
    if ufunc is not None and not access.returns:
        ufunc.at(view, index, value)
        if access.flushes:
            view[index] = flush(view[index])
        return None
    value = np.broadcast_to(value, index.shape)
    if operation == "add" and view.dtype.kind in "iu":
        return _sum_with_old(view, index, value)
    third = np.broadcast_to(third, index.shape) if third is not None else None
    return _rounds(view, index, lambda old, lanes: _changed(operation, old, value, third, lanes))


def _changed(operation: str, old: Any, value: Any, third: Any, lanes: Any) -> Any:
    new = value[lanes]
    if operation == "cas":
        return np.where(old == new, third[lanes], old)
    if operation == "exch":
        return new
    if operation == "inc":
        return np.where(old >= new, old.dtype.type(0), old + old.dtype.type(1))
    if operation == "dec":
        return np.where((old == 0) | (old > new), new, old - old.dtype.type(1))
    return UFUNCS[operation](old, new)


def _rounds(view: Any, index: Any, change: Any) -> Any:
    """Apply a change to one lane of each address at a time; return the old values."""
    order = np.argsort(index, kind="stable")
    ranked = index[order]
    starts = np.r_[True, ranked[1:] != ranked[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(index.size), 0))
    rank = np.arange(index.size) - first
    old = np.empty(index.shape, view.dtype)
    by_rank = np.argsort(rank, kind="stable")
    bounds = np.searchsorted(rank[by_rank], np.arange(rank.max() + 2))
    for begin, end in pairwise(bounds):
        lanes = order[by_rank[begin:end]]
        places = index[lanes]
        before = view[places]
        old[lanes] = before
        view[places] = change(before, lanes)
    return old


def _sum_with_old(view: Any, index: Any, value: Any) -> Any:
    order = np.argsort(index, kind="stable")
    ranked, added = index[order], value[order]
    total = np.cumsum(added, dtype=view.dtype)
    before = total - added
    starts = np.r_[True, ranked[1:] != ranked[:-1]]
    group = np.cumsum(starts) - 1
    before = before - before[starts][group]
    old = np.empty(index.shape, view.dtype)
    old[order] = view[ranked] + before
    np.add.at(view, index, value)
    return old


def _half_add(access: Access, view: Any, index: Any, value: Any, half: str) -> Any:
    """Add float16 or bfloat16, each sum rounded, both halves of a register for themselves."""
    if view.dtype.itemsize == 4:
        value = np.ascontiguousarray(np.broadcast_to(value, index.shape)).view(np.uint16)
        index = (index[:, None] * 2 + np.arange(2)).ravel()
        old = _half_add(access, view.view(np.uint16), index, value, half)
        return None if old is None else old.view(np.uint32)
    value = np.broadcast_to(value, index.shape)
    if half == "f16" and not access.returns:
        np.add.at(view.view(np.float16), index, np.ascontiguousarray(value).view(np.float16))
        return None

    def change(old: Any, lanes: Any) -> Any:
        if half == "f16":
            return (old.view(np.float16) + value[lanes].view(np.float16)).view(np.uint16)
        return narrow_bf16(widen_bf16(old) + widen_bf16(value[lanes]))

    old = _rounds(view, index, change)
    return old if access.returns else None
