"""Sampling points ordered by the cell they start from (GPU): when that pays, and the launches.

The backward adds every column element to four corners, in memory that all threads share. Points of
one cell that follow one another are added together first, and read their corners once. The rule:
the order pays where

- a cell has four points or more on average, K * OH * OW >= 4 * H * W: a 3x3 kernel of stride 1 has
  nine, of stride 2 two; a 1x1 kernel never has any to join;
- a point has 32 channels or more; 16 where four additions are not one instruction, before compute
  capability 9.0 and for double: the order costs about 75 instructions and 24 bytes a point, and
  three quarters of four additions and four reads a channel are saved;
- no group cuts through a deformable group, and indices have 32 bits;
- the counts of an image's cells fit into a quarter of the workspace (_cut_gpu.py).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ._arrays import Array, cupy_of
from ._cut import Cut, Tile
from ._cut_gpu import copy_cells
from ._geometry import Geometry
from ._kernels import kernel
from ._launch_gpu import element_strides, order_launch
from ._workspace import Workspace

LEAST_CHANNELS = 16
THREADS = 256  # of start_cells and order_samples, in sample_order.cu
CELLS = 4 * THREADS  # of a block of start_cells


def reduces_vectors(cupy: ModuleType) -> bool:
    """Tell whether the current device adds four floats by one instruction."""
    return int(cupy.cuda.device.get_compute_capability()) >= 90


def may_pay(geometry: Geometry) -> bool:
    """Tell whether the order can pay for a layer, whatever the images and the device."""
    return (
        geometry.taps >= 4
        and geometry.deformable_channels >= LEAST_CHANNELS
        and geometry.group_channels % geometry.deformable_channels == 0
    )


def pays(geometry: Geometry, dtype: np.dtype[Any], vectors: bool) -> bool:
    """Tell whether a backward is to order its sampling points; ``vectors``: see reduces_vectors."""
    points = geometry.taps * geometry.out_pixels
    least = 2 * LEAST_CHANNELS if vectors and dtype != np.float64 else LEAST_CHANNELS
    return (
        may_pay(geometry)
        and geometry.deformable_channels >= least
        and points >= 4 * geometry.height * geometry.width
    )


def sample_order(
    cut: Cut, offset: Array, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return the numbers of a tile's sampling points, those of one cell side by side.

    ``offset`` is the tile's. The number is ((image * DG + group) * K + tap) * pixels + pixel.
    """
    geometry, cupy = cut.geometry, cupy_of(offset)
    planes = tile.image_count * geometry.deformable_groups
    points, cells = planes * geometry.taps * tile.image_pixels, planes * copy_cells(geometry)
    order = workspace.empty(points, np.int32)
    rows, columns = tile.rows, tile.columns
    rectangle = (
        rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    )  # fmt: skip
    launch = order_launch(
        geometry, dtype, rectangle, tile.image_count, offset.dtype, element_strides(offset)
    )
    with workspace.scope():
        counts = workspace.zeros(cells + 1, np.int32)
        places = workspace.empty((points, 2), np.int32)
        launch.run(cupy, "count_samples", (offset, counts, places))
        for name, size, each, arrays in (
            ("start_cells", cells, CELLS, (counts,)),
            ("order_samples", points, THREADS, (counts, places, order)),
        ):
            run = kernel(cupy, name, launch.macros)
            run((-(-size // each),), (THREADS,), (np.int32(size), *arrays))
    return order
