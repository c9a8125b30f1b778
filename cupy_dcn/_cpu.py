"""The CPU twin, as the pipelines call it; _numba.py and _gpu.py have the same names."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from ._arguments import GRADIENTS
from ._arrays import Array, compute_dtype, on_device
from ._columns_cpu import im2col, tile_of_columns, write_columns
from ._cut import DEFAULT_WORKSPACE, Cut, Memory, allocate_block
from ._cut_cpu import FIXED_BYTES, cut_tiles
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
from ._pullback_cpu import Pullback
from ._samples_cpu import locate
from ._windows_cpu import Image

__all__ = [
    "Image",
    "Pullback",
    "Turns",
    "add_grad_weight",
    "allocate",
    "columns_dtype",
    "convolve_directly",
    "empty",
    "fit_index",
    "grad_columns",
    "im2col",
    "load_kernels",
    "locate",
    "make_cut",
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


def convolve_directly(
    weight: Array, image: Image, samples: object, bias: Array | None, out: Array
) -> bool:
    """Tell that there is no way here but columns and a product."""
    del weight, image, samples, bias, out
    return False


def make_cut(
    geometry: Geometry,
    out_channels: int,
    dtype: np.dtype[Any],
    workspace_bytes: int | None,
    backward: bool,
    wanted: Collection[str] = GRADIENTS,
    deterministic: bool = False,
    sets: int = 1,
) -> Cut:
    """Cut a call into tiles, for as many threads as there are; all sums are in a fixed order.

    ``wanted``: the gradients of a backward; ``sets``: see _cut_cpu.py.
    """
    del deterministic
    budget = DEFAULT_WORKSPACE if workspace_bytes is None else workspace_bytes
    threads = thread_count()
    cut = cut_tiles(geometry, out_channels, dtype.itemsize, budget, threads, backward, sets)
    return cut if "weight" in wanted else replace(cut, weight_bytes=0)


def fit_index(cut: Cut, arrays: Iterable[Array]) -> Cut:
    """Return the cut as it is: NumPy counts in 64 bits."""
    del arrays
    return cut


def allocate(cuts: Sequence[Cut], like: Array) -> list[Memory]:
    """Allocate the temporary memory of cuts of which one at a time is at work."""
    del like
    return allocate_block(cuts, np, FIXED_BYTES)


def load_kernels(
    cut: Cut,
    dtype: np.dtype[Any],
    offset: np.dtype[Any],
    mask: np.dtype[Any] | None,
    backward: bool,
    weight: Array,
) -> None:
    """Nothing to compile."""
    del cut, dtype, offset, mask, backward, weight


def Turns(like: Array) -> AbstractContextManager[object]:
    """One call at a time on the same memory."""
    del like
    return threading.Lock()


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Allocate an array that the call returns."""
    return np.empty(shape, like.dtype)
