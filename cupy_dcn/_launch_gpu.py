"""What a launch needs besides its arrays: macros, grid, settings; prepared once for a layout (GPU).

All of it is a pure function of small values, so the host asks a cache, which takes a tenth of the
time of working it out: strides are a call's own, the rest is the same from call to call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._cut_gpu import copy_cells
from ._geometry import Geometry
from ._kernels import kernel
from ._specialisation import (
    TRANSPOSE_THREADS,
    Macros,
    PullbackMacros,
    SamplingMacros,
    Wants,
    copy_channels,
    direct_backward_macros,
    order_macros,
    sampling_macros,
    transpose_macros,
)

NO_STRIDES = (0, 0, 0, 0)
# Of struct Geometry in geometry.cuh; launch_geometry packs it.
FIELDS = (
    "height", "width", "rows", "columns", "origin_y", "origin_x", "stride_y", "stride_x",
    "dilation_y", "dilation_x", "out_height", "out_width", "column_pixels", "copy_pitch",
    "copy_size", *(
        f"{array}.{axis}" for array in ("planes", "offset", "mask")
        for axis in ("image", "channel", "row", "column")
    ),
)  # fmt: skip


class Launch(NamedTuple):
    """What the launches of a kernel have in common for arrays of one layout."""

    macros: Macros
    grid: tuple[int, int, int]
    threads: int
    settings: Array  # struct Geometry; shared, never written to

    def run(self, cupy: ModuleType, name: str, arrays: Iterable[Any]) -> None:
        """Launch the kernel on the current stream."""
        # Not None, which CuPy before 14 passes as an address of its own.
        arguments = (0 if array is None else array for array in arrays)
        kernel(cupy, name, self.macros)(self.grid, (self.threads,), (self.settings, *arguments))

    def down(self, blocks: int) -> Launch:
        """Return a launch of so many blocks below each other, that walk down the image."""
        return self._replace(grid=(self.grid[0], blocks, self.grid[2]))

    def over_points(self, points: int) -> Launch:
        """Return a launch over so many ordered sampling points, instead of tiles of pixels."""
        assert isinstance(self.macros, PullbackMacros)
        return self._replace(grid=(-(-points // self.macros.points), 1, 1))

    def over_cells(self, geometry: Geometry, images: int, parity: int) -> Launch:
        """Return a launch over the cells of images whose row and column have a parity each."""
        macros = self.macros
        assert isinstance(macros, SamplingMacros)
        rows = (geometry.height + 2 - parity // 2) // 2
        cells = rows * ((geometry.width + 2 - parity % 2) // 2)
        blocks = -(-cells * macros.lanes // macros.block) * macros.deformable_groups
        parts = -(-geometry.deformable_channels // macros.summed_channels)
        return self._replace(grid=(blocks, parts, images))


@functools.lru_cache(maxsize=256)
def order_launch(
    geometry: Geometry,
    index: np.dtype[Any],
    dtype: np.dtype[Any],
    rectangle: tuple[int, int, int, int],
    images: int,
    offset_dtype: np.dtype[Any],
    offset_strides: tuple[int, ...],
) -> Launch:
    """Prepare the kernel that counts sampling points."""
    macros = order_macros(geometry, dtype, offset_dtype, index)
    settings = launch_geometry(
        geometry, dtype.itemsize, index, rectangle=rectangle, offset=offset_strides
    )
    return Launch(macros, _grid(macros, rectangle, images), macros.block, settings)


@functools.lru_cache(maxsize=1024)  # a call has one entry a chunk
def sampling_launch(
    geometry: Geometry,
    index: np.dtype[Any],
    dtype: np.dtype[Any],
    wants: Wants | None,
    outputs: int,
    rectangle: tuple[int, int, int, int],
    images: int,
    column_pixels: int,
    offset_dtype: np.dtype[Any],
    offset_strides: tuple[int, ...],
    mask_dtype: np.dtype[Any] | None,
    mask_strides: tuple[int, ...],
    planes: tuple[int, ...] | None = None,
) -> Launch:
    """Prepare a sampling kernel for a ``rectangle`` (row, column, rows, columns) of pixels.

    ``planes``: the strides of grad_output, where it is read as it is, without columns.
    """
    kinds = geometry, dtype, offset_dtype, mask_dtype, index
    macros = sampling_macros(*kinds, wants, outputs)
    if planes is not None and wants is not None:
        macros = direct_backward_macros(*kinds, wants) or macros
    settings = launch_geometry(
        geometry, dtype.itemsize, index, rectangle=rectangle, column_pixels=column_pixels,
        planes=planes or NO_STRIDES, offset=offset_strides, mask=mask_strides,
    )  # fmt: skip
    return Launch(macros, _grid(macros, rectangle, images), macros.block, settings)


def _grid(
    macros: SamplingMacros, rectangle: tuple[int, int, int, int], images: int
) -> tuple[int, int, int]:
    """Return the blocks that cover a rectangle of pixels, for every deformable group."""
    _, _, rows, width = rectangle
    tile_rows, tile_columns = macros.tile
    return -(-width // tile_columns) * macros.deformable_groups, -(-rows // tile_rows), images


@functools.lru_cache(maxsize=256)
def to_channels_last(
    geometry: Geometry,
    index: np.dtype[Any],
    dtype: np.dtype[Any],
    images: int,
    x_strides: tuple[int, ...],
) -> Launch:
    """Prepare the kernel from some images to their copies."""
    settings = launch_geometry(geometry, dtype.itemsize, index, planes=x_strides)
    return _transpose(geometry, index, dtype, images, copy_cells(geometry), settings)


@functools.lru_cache(maxsize=256)
def from_channels_last(
    geometry: Geometry, index: np.dtype[Any], dtype: np.dtype[Any], images: int
) -> Launch:
    """Prepare the kernel from the copies' gradients to those of the images."""
    settings = launch_geometry(geometry, dtype.itemsize, index)
    pixels = geometry.height * geometry.width
    return _transpose(geometry, index, dtype, images, pixels, settings)


def _transpose(
    geometry: Geometry,
    index: np.dtype[Any],
    dtype: np.dtype[Any],
    images: int,
    pixels: int,
    settings: Array,
) -> Launch:
    macros = transpose_macros(geometry, dtype, index)
    vectors = copy_channels(geometry, dtype.itemsize) // macros.vector
    blocks_a_pixel = -(-vectors // macros.block_vectors)
    grid = (-(-pixels // macros.pixels) * blocks_a_pixel, 1, images)
    return Launch(macros, grid, TRANSPOSE_THREADS, settings)


def element_strides(array: Array) -> tuple[int, ...]:
    """Return strides in elements; where an axis is of length 1, one step of it is never taken."""
    return _element_strides(array.shape, array.strides, array.itemsize)


@functools.lru_cache(maxsize=1024)
def _element_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    return tuple(
        stride // itemsize if size > 1 else 0 for stride, size in zip(strides, shape, strict=True)
    )


def launch_geometry(
    geometry: Geometry,
    itemsize: int,
    index: np.dtype[Any],
    *,
    rectangle: tuple[int, int, int, int] = (0, 0, 0, 0),
    column_pixels: int = 0,
    planes: tuple[int, ...] = NO_STRIDES,
    offset: tuple[int, ...] = NO_STRIDES,
    mask: tuple[int, ...] = NO_STRIDES,
) -> Array:
    """Return struct Geometry of geometry.cuh, field by field, as one value for a launch."""
    row, column, rows, columns = rectangle
    channels = copy_channels(geometry, itemsize)
    fields = (
        geometry.height, geometry.width, rows, columns,
        row * geometry.stride_y - geometry.pad_top, column * geometry.stride_x - geometry.pad_left,
        geometry.stride_y, geometry.stride_x, geometry.dilation_y, geometry.dilation_x,
        geometry.out_height, geometry.out_width, column_pixels,
        (geometry.width + 1) * channels, copy_cells(geometry) * channels, *planes, *offset, *mask,
    )  # fmt: skip
    return np.array(fields, index).view(np.dtype((np.void, len(fields) * index.itemsize)))
