"""The CPU twin, as the pipelines call it; _gpu.py has the same names."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ._arrays import Array, compute_dtype
from ._columns_cpu import im2col, tile_of_columns, write_columns
from ._geometry import Geometry
from ._matmul_cpu import (
    add_grad_weight,
    grad_columns,
    sum_planes,
    weight_from_matrix,
    weight_matrix,
    write_output,
)
from ._parallel import spread, thread_count
from ._plan import Plan
from ._pullback_cpu import Pullback
from ._samples_cpu import locate
from ._windows_cpu import Image
from ._workspace import Workspace

__all__ = [
    "Image",
    "Pullback",
    "add_grad_weight",
    "allocate",
    "columns_dtype",
    "empty",
    "grad_columns",
    "im2col",
    "locate",
    "make_plan",
    "on_device",
    "spread",
    "sum_planes",
    "tile_of_columns",
    "weight_from_matrix",
    "weight_matrix",
    "write_columns",
    "write_output",
]


def columns_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of a tile's columns."""
    return compute_dtype(dtype)


def make_plan(
    geometry: Geometry,
    out_channels: int,
    dtype: np.dtype[Any],
    workspace_bytes: int,
    backward: bool,
    arrays: Iterable[Array | None],
    elements: int,
) -> Plan:
    """Cut a call into tiles; ``arrays`` and one of so many ``elements`` are what it indexes."""
    del arrays, elements  # NumPy counts in 64 bits
    return Plan.of(
        geometry, out_channels, dtype.itemsize, workspace_bytes, thread_count(), backward
    )


def allocate(plan: Plan, like: Array) -> tuple[Workspace, list[Workspace]]:
    """Allocate a plan's temporary memory."""
    del like
    return plan.allocate()


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Allocate an array that the call returns."""
    return np.empty(shape, like.dtype)


def on_device(array: Array) -> AbstractContextManager[object]:
    """Nothing to switch to."""
    del array
    return nullcontext()
