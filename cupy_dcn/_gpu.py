"""The GPU twin, as the pipelines call it; _cpu.py has the same names."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ._arguments import GRADIENTS
from ._arrays import Array, compute_dtype, cupy_of, on_device
from ._chunk_gpu import chip_of
from ._columns_gpu import Image, im2col, locate, tile_of_columns, write_columns
from ._cut import DEFAULT_WORKSPACE, Cut, Memory, Tile, Tiles, allocate_block
from ._cut_gpu import cut_chunks, fit_index
from ._direct_backward_gpu import block_sums
from ._direct_gpu import convolve_directly, is_direct
from ._geometry import Geometry
from ._matmul_gpu import (
    add_grad_weight,
    grad_columns,
    sum_planes,
    weight_from_matrix,
    weight_matrix,
    write_output,
)
from ._order_gpu import pays, reduces_vectors
from ._pullback_gpu import Pullback
from ._warmup import layer_kernels, load
from ._workspace import Workspace

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
    """Return the dtype of a chunk's columns: half types stay as they are, for the tensor cores."""
    return dtype


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
    """Cut a call into chunks, on the current device; under no budget but the default by a model.

    ``wanted``: the gradients of a backward. With several ``sets`` of temporaries, as of second
    derivatives, there are always columns, and no model.
    """
    sums, chip = compute_dtype(dtype).itemsize, None
    if workspace_bytes is None:
        workspace_bytes = DEFAULT_WORKSPACE
        if out_channels and sets == 1:
            cupy = sys.modules["cupy"]
            chip = chip_of(cupy, cupy.cuda.runtime.getDevice(), dtype.itemsize)
    # The stages, without output channels, never do either.
    of_blocks = None
    if backward and not deterministic and sets == 1:
        of_blocks = block_sums(geometry, out_channels, dtype, workspace_bytes)
    direct = is_direct(geometry, out_channels, dtype) if not backward else of_blocks is not None
    sorts = (
        backward and not deterministic and out_channels > 0 and not direct and sets == 1
        and "x" in wanted and len(wanted) > 1
        and pays(geometry, dtype, reduces_vectors(sys.modules["cupy"]))
    )  # fmt: skip
    return cut_chunks(
        geometry, out_channels, dtype.itemsize, sums, workspace_bytes, backward, chip, sorts,
        direct, of_blocks, wanted, backward and deterministic and "x" in wanted,
        sets,
    )  # fmt: skip


def allocate(cuts: Sequence[Cut], like: Array) -> list[Memory]:
    """Allocate, from CuPy's current allocator, the memory of cuts at work one at a time."""
    return allocate_block(cuts, cupy_of(like), fixed_bytes=0)


def load_kernels(
    cut: Cut,
    dtype: np.dtype[Any],
    offset: np.dtype[Any],
    mask: np.dtype[Any] | None,
    backward: bool,
    weight: Array,
) -> None:
    """Compile a layer's kernels for the current device."""
    outputs = len(weight) // cut.geometry.groups if cut.direct else 0
    wanted = layer_kernels(
        cut.geometry, dtype, offset, mask, cut.index, backward, cut.sorts_here, outputs,
        cut.deterministic,
    )  # fmt: skip
    load(cupy_of(weight), wanted)


class Turns:
    """One call at a time on the same memory, each on the stream that is current then.

    Threads wait for each other while they queue; a stream waits, on the device, for the call
    before, which may have gone to another.
    """

    def __init__(self, like: Array) -> None:
        self._cuda = cupy_of(like).cuda
        self._lock = threading.Lock()
        self._done = self._cuda.Event(disable_timing=True)

    def __enter__(self) -> None:
        with ExitStack() as held:
            held.enter_context(self._lock)
            self._stream = self._cuda.get_current_stream()
            self._stream.wait_event(self._done)
            self._held = held.pop_all()

    def __exit__(self, *error: object) -> None:
        with self._held:
            self._stream.record(self._done)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Allocate an array that the call returns."""
    return cupy_of(like).empty(shape, like.dtype)  # type: ignore[no-any-return]


def spread(
    work: Callable[[Iterable[Tile], Workspace], object],
    tiles: Tiles,
    workspaces: Sequence[Workspace],
) -> None:
    """Queue the chunks one after the other on the current stream."""
    work(tiles, workspaces[0])
