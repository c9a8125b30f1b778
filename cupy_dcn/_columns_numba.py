"""Stage 4 by compiled loops: im2col, col2im and the coordinate gradient of one tile.

The memory orders of columns and windows are those of _samples_cpu.py, and so the products of
_matmul_cpu.py serve here too. The loops read offset and mask in place if their rows are side by
side, and work out the sampling points again for each use: that costs less than to remember them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import _loops_numba as loops
from ._arrays import Array
from ._columns_cpu import part_of_columns
from ._cut import Cut, Tile
from ._cut_cpu import BORDER, WINDOW_CELLS
from ._geometry import Geometry
from ._windows_cpu import Box, Image, Window, is_planar
from ._workspace import Workspace


class Flat(NamedTuple):
    """A tile of an array (N, C, OH, OW): its values from the first on, and how to step in them.

    ``strides`` lead from image to image and from channel to channel; the pixels of a channel lie
    side by side, as a tile is whole rows or a part of one.
    """

    values: Array
    strides: tuple[int, int]

    @classmethod
    def in_place(cls, array: Array, tile: Tile, dtype: np.dtype[Any]) -> Flat | None:
        """Return a tile as it lies in memory, None where that is not in order or of the dtype."""
        if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned):
            return None
        _, channels, height, width = array.shape
        plane = height * width
        first = tile.images.start * channels * plane
        first += tile.rows.start * width + tile.columns.start
        return cls(array.reshape(-1)[first:], (channels * plane, plane))

    @classmethod
    def whole(cls, part: Array) -> Flat:
        """Return all of a C-contiguous array."""
        plane = part.shape[2] * part.shape[3]
        return cls(part.reshape(-1), (part.shape[1] * plane, plane))

    @classmethod
    def read(cls, array: Array, tile: Tile, dtype: np.dtype[Any], workspace: Workspace) -> Flat:
        """Return a tile in some dtype, a copy if need be."""
        part = cls.in_place(array, tile, dtype)
        if part is not None:
            return part
        view = array[tile.images, :, tile.rows, tile.columns]
        return cls.whole(workspace.cast(view, dtype))

    @classmethod
    def nothing(cls, dtype: np.dtype[Any]) -> Flat:
        """Return what the loops take for an array that is not there."""
        return cls(np.empty(0, dtype), (0, 0))


@dataclass
class Samples:
    """The sampling points of one tile, as the loops take them."""

    cut: Cut
    tile: Tile
    workspace: Workspace
    planar: bool
    dtype: np.dtype[Any]
    offset: Flat
    mask: Flat
    scratch: tuple[Array, Array, Array]
    _numbers: tuple[int, ...]

    @property
    def geometry(self) -> Geometry:
        """The geometry of the call."""
        return self.cut.geometry

    @property
    def columns_shape(self) -> tuple[int, int, int]:
        """Shape of the tile's columns in its memory order."""
        taps, channels = self.geometry.taps, self.geometry.channels
        if self.planar:
            return channels, taps, self.tile.pixels
        return self.tile.pixels, taps, channels

    @property
    def bounds(self) -> Box:
        """A box of cells that holds those of all points inside the open box; never empty."""
        everything = whole_box(self.geometry)
        if self.cut.holds_whole:
            return everything
        found = np.array((-1, 0, -1, 0))
        kind = self.offset.values.dtype
        limits = _limits(everything, self.geometry)
        loops.bounds(kind, self.dtype, *self.offset, self._numbers, (*limits, 0, 0, 0, 0), found)
        return Box(*found.tolist())

    def arguments(self, window: Window, values: Array, first: bool) -> tuple[Any, ...]:
        """Return the dtypes, and what all loops over columns take first."""
        kind = self.offset.values.dtype
        height, width = window.size
        of_window = (
            *_limits(window.box, self.geometry), window.top, window.box.left, width,
            height * width,
        )  # fmt: skip
        return (
            kind, self.dtype, *self.offset, *self.mask, self._numbers, of_window, values,
            *self.scratch, first,
        )  # fmt: skip


def whole_box(geometry: Geometry) -> Box:
    """Return the box of a window that holds a whole image."""
    return Box(-BORDER, geometry.height + 1, -BORDER, geometry.width + 1)


def _limits(box: Box, geometry: Geometry) -> tuple[int, int, int, int]:
    """Return the half-open range of rows and of columns that are in a box and inside."""
    return (
        max(box.top, -1), min(box.bottom, geometry.height),
        max(box.left, -1), min(box.right, geometry.width),
    )  # fmt: skip


def locate(
    offset: Array,
    mask: Array | None,
    cut: Cut,
    tile: Tile,
    dtype: np.dtype[Any],
    workspace: Workspace,
) -> Samples:
    """Return where the tile's output pixels sample, py = y*stride - pad + i*dilation + dy."""
    geometry = cut.geometry
    exact = geometry.farthest < WINDOW_CELLS  # else float32 can't count so far
    numbers = (
        tile.image_count, tile.rows.stop - tile.rows.start,
        tile.columns.stop - tile.columns.start, geometry.kernel_height, geometry.kernel_width,
        geometry.deformable_groups, geometry.deformable_channels,
        tile.rows.start * geometry.stride_y - geometry.pad_top,
        tile.columns.start * geometry.stride_x - geometry.pad_left,
        geometry.stride_y, geometry.stride_x, geometry.dilation_y, geometry.dilation_x,
    )  # fmt: skip
    location = dtype if exact else np.dtype(np.float64)
    scratch = (
        workspace.empty(loops.GRID, location), workspace.empty(loops.POINTS, np.int32),
        workspace.empty(loops.TABLE, dtype),
    )  # fmt: skip
    factor = Flat.nothing(dtype) if mask is None else Flat.read(mask, tile, dtype, workspace)
    return Samples(
        cut, tile, workspace, is_planar(geometry), dtype,
        Flat.read(offset, tile, location, workspace), factor, scratch, numbers,
    )  # fmt: skip


def im2col(image: Image, samples: Samples) -> Array:
    """Return the tile's columns: mask * the bilinear mean of the four corners."""
    columns = samples.workspace.empty(samples.columns_shape, samples.dtype)
    loop = loops.im2col_planes if samples.planar else loops.im2col_rows
    first = True
    for window in image.windows(samples.tile.images, samples.bounds, samples.workspace):
        values = window.values.reshape(-1)
        loop(*samples.arguments(window, values, first), columns.reshape(-1))
        first = False
    return columns


def write_columns(image: Image, samples: Samples, columns: Array) -> None:
    """Sample a tile into its part of (N, G, OH*OW, K, C_in/G)."""
    part = part_of_columns(columns, samples.geometry, samples.tile)
    np.copyto(part, im2col(image, samples).reshape(part.shape), casting="same_kind")


def pull_back(
    samples: Samples,
    grad_columns: Array,
    window: Window,
    *,
    first: bool = True,
    values: Array | None = None,
    image: Array | None = None,
    columns: Array | None = None,
    grad_offset: Flat | None = None,
    grad_mask: Flat | None = None,
) -> None:
    """Work back from ``grad_columns`` to what is given of the rest, for the points in a window.

    ``values`` are the window's; what is scattered is added to ``image``, of the same cells;
    ``columns`` may be ``grad_columns`` itself. After the ``first`` window of a tile only what
    that one did not hold is written.
    """
    none = Flat.nothing(samples.dtype)
    values, image, columns = (
        none.values if array is None else array.reshape(-1) for array in (values, image, columns)
    )
    loop = loops.pullback_planes if samples.planar else loops.pullback_rows
    loop(
        *samples.arguments(window, values, first), grad_columns.reshape(-1), columns, image,
        *(grad_offset or none), *(grad_mask or none),
    )  # fmt: skip
