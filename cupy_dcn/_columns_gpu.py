"""im2col, col2im and the coordinate gradients (GPU): the launches of the kernels in cuda/.

The image is sampled from a channels-last copy with a border of zeros (``Image``); a tile's sampling
points are worked out by the kernels themselves, so ``locate`` only says where the tile is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Array, address_of, compute_dtype, cupy_of
from ._copy_gpu import assign
from ._cut import Cut, Tile
from ._cut_gpu import copy_cells
from ._geometry import Geometry
from ._launch_gpu import (
    NO_STRIDES,
    Launch,
    element_strides,
    from_channels_last,
    sampling_launch,
    to_channels_last,
)
from ._order_gpu import Order, sample_order
from ._specialisation import VECTOR_BYTES, Wants, copy_channels, is_planar
from ._workspace import Workspace


@dataclass(frozen=True)
class Samples:
    """One tile's sampling points: the arrays' views, and what the kernels are told about them."""

    cut: Cut
    tile: Tile
    workspace: Workspace
    dtype: np.dtype[Any]  # of the columns
    offset: Array
    mask: Array | None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of output pixels."""
        rows, columns = self.tile.rows, self.tile.columns
        return rows.stop - rows.start, columns.stop - columns.start

    def launch(
        self,
        name: str,
        columns: Array | None,
        *arrays: Array | None,
        wants: Wants | None = None,
        planes: Array | None = None,
        outputs: int = 0,
    ) -> None:
        """Run a kernel over the tile's points; ``arrays`` are its arguments.

        Of these, ``columns`` and ``planes`` (of grad_output) say how they are laid out. ``wants``
        and ``outputs`` are as for sampling_macros.
        """
        prepared = self._prepare(columns, wants, planes, outputs)
        if self.cut.block_sums is not None and planes is not None:
            prepared = prepared.down(self.cut.block_sums.down)
        prepared.run(cupy_of(self.offset), name, arrays)

    def launch_sorted(self, columns: Array, *arrays: Array | None, wants: Wants) -> None:
        """Run deform_backward_sorted."""
        points, cupy = np.int32(self.points), cupy_of(self.offset)
        with self.workspace.scope():
            _, order = self._order()
            launch = self._prepare(columns, wants).over_points(self.points)
            launch.run(cupy, "deform_backward_sorted", (points, order, columns, *arrays))

    def add_in_order(self, grad_columns: Array, grad_image: Array) -> None:
        """Do what deform_col2im does in a fixed order: every other cell of every other row."""
        cupy, tile = cupy_of(self.offset), self.tile
        launch = self._prepare(grad_columns, None)
        with self.workspace.scope():
            arrays = *self._order(), grad_columns, self.offset, self.mask, grad_image
            for parity in range(4):
                cells = launch.over_cells(self.cut.geometry, tile.image_count, parity)
                cells.run(cupy, "deform_col2im_ordered", (np.int32(parity), *arrays))

    def _order(self) -> Order:
        return sample_order(self.cut, self.offset, self.tile, self.dtype, self.workspace)

    def _prepare(
        self,
        columns: Array | None,
        wants: Wants | None,
        planes: Array | None = None,
        outputs: int = 0,
    ) -> Launch:
        tile, mask = self.tile, self.mask
        rectangle = (tile.rows.start, tile.columns.start, *self.size)
        pixels = 0 if columns is None else self._group_pixels(columns)
        return sampling_launch(
            self.cut.geometry, self.cut.index, self.dtype, wants, outputs, rectangle,
            tile.image_count, pixels, self.offset.dtype, element_strides(self.offset),
            None if mask is None else mask.dtype,
            NO_STRIDES if mask is None else element_strides(mask),
            None if planes is None else element_strides(planes),
        )  # fmt: skip

    @property
    def points(self) -> int:
        """How many sampling points there are."""
        geometry = self.cut.geometry
        return self.tile.pixels * geometry.taps * geometry.deformable_groups

    def _group_pixels(self, columns: Array) -> int:
        """Return how many pixels a group has in the array that these columns are a part of.

        Only strides of axes longer than 1 say so: those of the others may be anything.
        """
        images, groups, pixels, taps, channels = columns.shape
        if is_planar(self.cut.geometry, columns.itemsize):
            return int(pixels)  # always an array of its own
        pixel_bytes = taps * channels * columns.itemsize
        if groups > 1:
            return int(columns.strides[1] // pixel_bytes)
        return int(columns.strides[0] // pixel_bytes) if images > 1 else int(pixels)


def locate(
    offset: Array,
    mask: Array | None,
    cut: Cut,
    tile: Tile,
    dtype: np.dtype[Any],
    workspace: Workspace,
) -> Samples:
    """Aim the kernels at a tile."""
    part = None if mask is None else of_tile(mask, tile)
    return Samples(cut, tile, workspace, dtype, of_tile(offset, tile), part)


class Image:
    """Some images of x, channels last with a border of zeros, as the kernels sample them."""

    def __init__(
        self, x: Array, images: slice, cut: Cut, dtype: np.dtype[Any], workspace: Workspace
    ) -> None:
        geometry = cut.geometry
        self.first = images.start
        self.values = workspace.empty(copy_shape(geometry, images, dtype), dtype)
        part = x[images]
        launch = to_channels_last(geometry, cut.index, dtype, len(part), element_strides(part))
        launch.run(cupy_of(x), "to_channels_last", (part, self.values))

    def of_images(self, images: slice) -> Array:
        """Return the copies of some of the images."""
        return self.values[images.start - self.first : images.stop - self.first]


class GradImage:
    """The gradient of some images in the layout of their copies, summed in the compute dtype."""

    def __init__(self, images: slice, cut: Cut, dtype: np.dtype[Any], workspace: Workspace) -> None:
        self.cut, self.images, self.dtype = cut, images, dtype
        shape = copy_shape(cut.geometry, images, dtype)
        self.values = workspace.zeros(shape, compute_dtype(dtype))

    def of_images(self, images: slice) -> Array:
        """Return the sums of some of the images."""
        return self.values[images.start - self.images.start : images.stop - self.images.start]

    def write(self, grad_x: Array) -> None:
        """Write the sums to their images of grad_x, less the border."""
        cut, into = self.cut, grad_x[self.images]
        launch = from_channels_last(cut.geometry, cut.index, self.dtype, len(into))
        launch.run(cupy_of(grad_x), "from_channels_last", (self.values, into))


def im2col(image: Image, samples: Samples) -> Array:
    """Return the tile's columns (images, G, pixels, K, C_in/G)."""
    columns = empty_columns(samples.cut.geometry, samples.tile, samples.dtype, samples.workspace)
    _sample(image, samples, columns)
    return columns


def write_columns(image: Image, samples: Samples, columns: Array) -> None:
    """Sample a tile into its part of the whole array of columns."""
    geometry = samples.cut.geometry
    part = part_of_columns(columns, geometry, samples.tile)
    if is_planar(geometry, samples.dtype.itemsize):
        with samples.workspace.scope():
            assign(part, im2col(image, samples), geometry)
    else:
        _sample(image, samples, part)


def _sample(image: Image, samples: Samples, columns: Array) -> None:
    values = image.of_images(samples.tile.images)
    samples.launch("deform_im2col", columns, values, samples.offset, samples.mask, columns)


def col2im(grad_columns: Array, samples: Samples, grad_image: GradImage) -> None:
    """Add a tile's columns, times mask and weight, to the corners they were sampled from."""
    values = grad_image.of_images(samples.tile.images)
    if samples.cut.deterministic:
        samples.add_in_order(grad_columns, values)
        return
    arrays = grad_columns, samples.offset, samples.mask, values
    samples.launch("deform_col2im", grad_columns, *arrays, wants=Wants(grad_x=True))


def coord_grad(
    grad_columns: Array,
    image: Image,
    samples: Samples,
    grad_offset: Array | None,
    grad_mask: Array | None,
) -> None:
    """Write a tile's gradients of offset and mask, those that are not None."""
    backward(grad_columns, image, samples, None, grad_offset, grad_mask, resample=False)


def backward(
    columns: Array,
    image: Image | None,
    samples: Samples,
    grad_image: GradImage | None,
    grad_offset: Array | None,
    grad_mask: Array | None,
    resample: bool,
) -> None:
    """Do what col2im and coord_grad do, and turn grad_columns into the columns, in one pass.

    In two where bits must be the same from run to run: it is the sums for x that depend on timing.
    """
    if grad_image is not None and samples.cut.deterministic:
        col2im(columns, samples, grad_image)
        grad_image = None
    images, tile = samples.tile.images, samples.tile
    wants = Wants(grad_image is not None, grad_offset is not None, grad_mask is not None, resample)
    sampled = None if image is None else image.of_images(images)
    sums = None if grad_image is None else grad_image.of_images(images)
    into = [None if grad is None else of_tile(grad, tile) for grad in (grad_offset, grad_mask)]
    inputs = columns, sampled, samples.offset, samples.mask
    if wants.grad_x and sampled is not None and samples.cut.sorts_here:
        samples.launch_sorted(*inputs, sums, *into, wants=wants)
    elif wants.grad_x or wants.columns:
        samples.launch("deform_backward", columns, *inputs, sums, *into, wants=wants)
    else:
        samples.launch("deform_coord_grad", columns, *inputs, *into, wants=wants)


def tile_of_columns(
    columns: Array, cut: Cut, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return a tile of the whole array of columns, copied only if it is not laid out as one."""
    part = part_of_columns(columns, cut.geometry, tile)
    if is_planar(cut.geometry, dtype.itemsize):
        planes = empty_columns(cut.geometry, tile, dtype, workspace)
        planes[...] = part
        return planes
    if columns.flags.c_contiguous and address_of(columns) % VECTOR_BYTES == 0:
        return part
    return workspace.cast(part, dtype)


def empty_columns(
    geometry: Geometry, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return columns (images, G, pixels, K, C_in/G) of a tile, in memory planes of pixels if few.

    The few are channels: see is_planar.
    """
    images, groups, pixels = tile.image_count, geometry.groups, tile.image_pixels
    taps, channels = geometry.taps, geometry.group_channels
    if is_planar(geometry, dtype.itemsize):
        planes = workspace.empty((images, groups, taps, channels, pixels), dtype)
        return planes.transpose(0, 1, 4, 2, 3)
    return workspace.empty((images, groups, pixels, taps, channels), dtype)


def part_of_columns(columns: Array, geometry: Geometry, tile: Tile) -> Array:
    """View a tile of the columns (N, G, OH*OW, K, C_in/G)."""
    first = tile.rows.start * geometry.out_width + tile.columns.start
    return columns[tile.images, :, first : first + tile.image_pixels]


def of_tile(array: Array, tile: Tile) -> Array:
    """View a tile of an array (N, channels, OH, OW)."""
    return array[tile.images, :, tile.rows, tile.columns]


def copy_shape(geometry: Geometry, images: slice, dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Shape of the channels-last copies of some images."""
    channels = copy_channels(geometry, dtype.itemsize)
    return (images.stop - images.start, copy_cells(geometry), channels)
