"""The GPU twin, as the pipelines call it; _cpu.py has the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ._arrays import Array, compute_dtype, cupy_of
from ._columns_gpu import Image, im2col, locate, tile_of_columns, write_columns
from ._geometry import Geometry
from ._matmul_gpu import (
    add_grad_weight,
    grad_columns,
    sum_planes,
    weight_from_matrix,
    weight_matrix,
    write_output,
)
from ._plan import Plan, Tile, Tiles
from ._plan_gpu import allocate_chunks, plan_chunks
from ._pullback_gpu import Pullback
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
    """Return the dtype of a chunk's columns: half types stay as they are, for the tensor cores."""
    return dtype


def make_plan(
    geometry: Geometry,
    out_channels: int,
    dtype: np.dtype[Any],
    workspace_bytes: int,
    backward: bool,
    arrays: Iterable[Array | None],
    elements: int,
) -> Plan:
    """Cut a call into chunks; ``arrays`` and one of so many ``elements`` are what it indexes."""
    extents = [extent(array) for array in arrays if array is not None]
    return plan_chunks(
        geometry, out_channels, dtype.itemsize, compute_dtype(dtype).itemsize, workspace_bytes,
        backward, (elements, *extents),
    )  # fmt: skip


def extent(array: Array) -> int:
    """Return the elements an array has, or spans in memory if that is more."""
    steps = zip(array.shape, array.strides, strict=True)
    reach = sum(max(size - 1, 0) * abs(stride) for size, stride in steps)
    return max(array.size, int(reach) // array.itemsize + 1)


def allocate(plan: Plan, like: Array) -> tuple[Workspace, list[Workspace]]:
    """Allocate a plan's temporary memory from CuPy's current allocator."""
    return allocate_chunks(plan, cupy_of(like))


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Allocate an array that the call returns."""
    return cupy_of(like).empty(shape, like.dtype)  # type: ignore[no-any-return]


def on_device(array: Array) -> AbstractContextManager[object]:
    """Make the array's device the current one, for a while."""
    device: AbstractContextManager[object] = array.device  # type: ignore[assignment]
    return device


def spread(
    work: Callable[[Iterable[Tile], Workspace], object],
    tiles: Tiles,
    workspaces: Sequence[Workspace],
) -> None:
    """Queue the chunks one after the other on the current stream."""
    work(tiles, workspaces[0])
