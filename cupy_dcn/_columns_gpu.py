"""im2col, col2im and the coordinate gradients (GPU): the launches of the kernels in cuda/.

The image is sampled from a channels-last copy with a border of zeros (``Image``); a tile's sampling
points are worked out by the kernels themselves, so ``locate`` only says where the tile is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Array, address_of, compute_dtype, cupy_of
from ._geometry import Geometry
from ._kernels import kernel
from ._plan import Plan, Tile
from ._plan_gpu import copy_cells
from ._specialisation import (
    TILE_WIDTH,
    TRANSPOSE_THREADS,
    VECTOR_BYTES,
    sampling_macros,
    transpose_macros,
)
from ._workspace import Workspace

NO_STRIDES = (0, 0, 0, 0)


@dataclass(frozen=True)
class Samples:
    """One tile's sampling points: the arrays' views, and what the kernels are told about them."""

    plan: Plan
    tile: Tile
    workspace: Workspace
    dtype: np.dtype[Any]  # of the columns
    offset: Array
    mask: Array | None

    @property
    def columns_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the tile's columns."""
        geometry, tile = self.plan.geometry, self.tile
        depth = geometry.taps, geometry.group_channels
        return (tile.image_count, geometry.groups, tile.image_pixels, *depth)

    def launch(
        self,
        name: str,
        columns: Array,
        *arrays: Array | None,
        wants: tuple[bool, bool, bool] | None = None,
    ) -> None:
        """Run a kernel over the tile's points; ``columns`` is one of its arguments, ``arrays``."""
        tile, geometry, index = self.tile, self.plan.geometry, self.plan.index
        mask_dtype = None if self.mask is None else self.mask.dtype
        macros = sampling_macros(geometry, self.dtype, self.offset.dtype, mask_dtype, index, wants)
        rows, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        grid = (
            -(-width // TILE_WIDTH) * geometry.deformable_groups,
            -(-rows // macros.tile_height),
            tile.image_count,
        )
        settings = launch_geometry(
            geometry,
            index,
            rectangle=(tile.rows.start, tile.columns.start, rows, width),
            column_pixels=group_pixels(columns),
            offset=element_strides(self.offset),
            mask=NO_STRIDES if self.mask is None else element_strides(self.mask),
        )
        run = kernel(cupy_of(columns), name, macros)
        # Not None, which CuPy before 14 passes as an address of its own.
        arguments = (0 if array is None else array for array in arrays)
        run(grid, (macros.block,), (settings, *arguments))


def locate(
    offset: Array,
    mask: Array | None,
    plan: Plan,
    tile: Tile,
    dtype: np.dtype[Any],
    workspace: Workspace,
) -> Samples:
    """Aim the kernels at a tile."""
    part = None if mask is None else of_tile(mask, tile)
    return Samples(plan, tile, workspace, dtype, of_tile(offset, tile), part)


class Image:
    """Some images of x, channels last with a border of zeros, as the kernels sample them."""

    def __init__(
        self, x: Array, images: slice, plan: Plan, dtype: np.dtype[Any], workspace: Workspace
    ) -> None:
        geometry = plan.geometry
        self.first = images.start
        self.values = workspace.empty(copy_shape(geometry, images), dtype)
        part = x[images]
        settings = launch_geometry(geometry, plan.index, x=element_strides(part))
        _transpose(
            "to_channels_last", geometry, plan.index, dtype, settings, part, self.values,
            copy_cells(geometry),
        )  # fmt: skip

    def of_images(self, images: slice) -> Array:
        """Return the copies of some of the images."""
        return self.values[images.start - self.first : images.stop - self.first]


class GradImage:
    """The gradient of some images in the layout of their copies, summed in the compute dtype."""

    def __init__(
        self, images: slice, plan: Plan, dtype: np.dtype[Any], workspace: Workspace
    ) -> None:
        self.plan, self.images, self.dtype = plan, images, dtype
        self.values = workspace.zeros(copy_shape(plan.geometry, images), compute_dtype(dtype))

    def of_images(self, images: slice) -> Array:
        """Return the sums of some of the images."""
        return self.values[images.start - self.images.start : images.stop - self.images.start]

    def write(self, grad_x: Array) -> None:
        """Write the sums to their images of grad_x, less the border."""
        geometry, index = self.plan.geometry, self.plan.index
        settings = launch_geometry(geometry, index)
        into = grad_x[self.images]
        _transpose(
            "from_channels_last", geometry, index, self.dtype, settings, self.values, into,
            geometry.height * geometry.width,
        )  # fmt: skip


def im2col(image: Image, samples: Samples) -> Array:
    """Return the tile's columns (images, G, pixels, K, C_in/G)."""
    columns = samples.workspace.empty(samples.columns_shape, samples.dtype)
    _sample(image, samples, columns)
    return columns


def write_columns(image: Image, samples: Samples, columns: Array) -> None:
    """Sample a tile into its part of the whole array of columns."""
    _sample(image, samples, part_of_columns(columns, samples.plan.geometry, samples.tile))


def _sample(image: Image, samples: Samples, columns: Array) -> None:
    values = image.of_images(samples.tile.images)
    samples.launch("deform_im2col", columns, values, samples.offset, samples.mask, columns)


def col2im(grad_columns: Array, samples: Samples, grad_image: GradImage) -> None:
    """Add a tile's columns, times mask and weight, to the corners they were sampled from."""
    values = grad_image.of_images(samples.tile.images)
    samples.launch(
        "deform_col2im", grad_columns, grad_columns, samples.offset, samples.mask, values
    )


def coord_grad(
    grad_columns: Array,
    image: Image,
    samples: Samples,
    grad_offset: Array | None,
    grad_mask: Array | None,
) -> None:
    """Write a tile's gradients of offset and mask, those that are not None."""
    samples.launch(
        "deform_coord_grad",
        grad_columns,
        grad_columns,
        image.of_images(samples.tile.images),
        samples.offset,
        samples.mask,
        None if grad_offset is None else of_tile(grad_offset, samples.tile),
        None if grad_mask is None else of_tile(grad_mask, samples.tile),
    )


def backward(
    columns: Array,
    image: Image | None,
    samples: Samples,
    grad_image: GradImage | None,
    grad_offset: Array | None,
    grad_mask: Array | None,
    resample: bool,
) -> None:
    """Do what col2im and coord_grad do, and turn grad_columns into the columns, in one pass."""
    images, tile = samples.tile.images, samples.tile
    coordinates = grad_offset is not None or grad_mask is not None
    samples.launch(
        "deform_backward",
        columns,
        columns,
        None if image is None else image.of_images(images),
        samples.offset,
        samples.mask,
        None if grad_image is None else grad_image.of_images(images),
        None if grad_offset is None else of_tile(grad_offset, tile),
        None if grad_mask is None else of_tile(grad_mask, tile),
        wants=(grad_image is not None, coordinates, resample),
    )


def tile_of_columns(
    columns: Array, plan: Plan, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return a tile of the whole array of columns, copied only if it is not laid out as one."""
    part = part_of_columns(columns, plan.geometry, tile)
    if columns.flags.c_contiguous and address_of(columns) % VECTOR_BYTES == 0:
        return part
    return workspace.cast(part, dtype)


def part_of_columns(columns: Array, geometry: Geometry, tile: Tile) -> Array:
    """View a tile of the columns (N, G, OH*OW, K, C_in/G)."""
    first = tile.rows.start * geometry.out_width + tile.columns.start
    return columns[tile.images, :, first : first + tile.image_pixels]


def group_pixels(columns: Array) -> int:
    """Return how many pixels a group has in the array that these columns are a part of.

    Only strides of axes longer than 1 say so: those of the others may be anything.
    """
    images, groups, pixels, taps, channels = columns.shape
    pixel_bytes = taps * channels * columns.itemsize
    if groups > 1:
        return int(columns.strides[1] // pixel_bytes)
    return int(columns.strides[0] // pixel_bytes) if images > 1 else int(pixels)


def of_tile(array: Array, tile: Tile) -> Array:
    """View a tile of an array (N, channels, OH, OW)."""
    return array[tile.images, :, tile.rows, tile.columns]


def copy_shape(geometry: Geometry, images: slice) -> tuple[int, int, int]:
    """Shape of the channels-last copies of some images."""
    return (images.stop - images.start, copy_cells(geometry), geometry.channels)


def element_strides(array: Array) -> tuple[int, ...]:
    """Return strides in elements; where an axis is of length 1, one step of it is never taken."""
    return tuple(
        stride // array.itemsize if size > 1 else 0
        for stride, size in zip(array.strides, array.shape, strict=True)
    )


def launch_geometry(
    geometry: Geometry,
    index: np.dtype[Any],
    *,
    rectangle: tuple[int, int, int, int] = (0, 0, 0, 0),
    column_pixels: int = 0,
    x: tuple[int, ...] = NO_STRIDES,
    offset: tuple[int, ...] = NO_STRIDES,
    mask: tuple[int, ...] = NO_STRIDES,
) -> Array:
    """Return struct Geometry of geometry.cuh, field by field, as one value for a launch."""
    fields = (
        geometry.height, geometry.width, *rectangle, geometry.out_height, geometry.out_width,
        geometry.stride_y, geometry.stride_x, geometry.pad_top, geometry.pad_left,
        geometry.dilation_y, geometry.dilation_x, column_pixels, *x, *offset, *mask,
    )  # fmt: skip
    return np.array(fields, index).view(np.dtype((np.void, len(fields) * index.itemsize)))


def _transpose(
    name: str,
    geometry: Geometry,
    index: np.dtype[Any],
    dtype: np.dtype[Any],
    settings: Array,
    source: Array,
    target: Array,
    pixels: int,
) -> None:
    macros = transpose_macros(geometry.channels, dtype, index)
    blocks_a_pixel = -(-geometry.channels // (macros.vector * macros.block_vectors))
    grid = (-(-pixels // macros.pixels) * blocks_a_pixel, 1, len(source))
    kernel(cupy_of(source), name, macros)(grid, (TRANSPOSE_THREADS,), (settings, source, target))
