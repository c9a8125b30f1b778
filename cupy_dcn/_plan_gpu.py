"""Stage 3 on the GPU: chunks under a byte budget, and how wide an index has to be.

Temporary memory is one chunk of columns, used again by the resampled columns in the backward, and
the channels-last copies of the images being sampled (backward: and the sums of their gradients):

    chunk:  pixels * itemsize * (K*C_in + C_out)
    copies: images * (H + 3) * (W + 1) * C_in * itemsize (backward: + the itemsize of the sums)

Both stay under the budget, except that one image's copies may come on top of half of it: an image
cannot be sampled in part. Worked examples at 64 MiB, float32: x (2, 64, 56, 56) -> 64, 3x3: both
images in one chunk; x (8, 256, 64, 64) -> 256, 3x3: one image a chunk, 38 MB of columns beside a
copy of 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ._geometry import Geometry
from ._plan import Plan
from ._workspace import ALIGNMENT, Workspace

# The limits of a launch: blocks along y and z; the fewest output rows of a block (geometry.cuh).
MOST_BLOCKS = 2**16 - 1
LEAST_TILE_HEIGHT = 4
LARGEST_DIMENSION = 2**31 - 1  # cuBLAS takes the sizes of matrices as int


def copy_cells(geometry: Geometry) -> int:
    """Return the cells of an image's channels-last copy, its border included."""
    return (geometry.height + 3) * (geometry.width + 1)


def plan_chunks(
    geometry: Geometry,
    out_channels: int,
    itemsize: int,
    sum_itemsize: int,
    workspace_bytes: int,
    backward: bool,
    extents: Iterable[int],
) -> Plan:
    """Cut a call into chunks of several images, or of one image's rows.

    ``extents`` are the elements that the arrays of the call span.
    """
    elements = geometry.taps * geometry.channels
    pixel_bytes = itemsize * (elements + out_channels)
    cell_bytes = geometry.channels * (itemsize + (sum_itemsize if backward else 0))
    copy_bytes = copy_cells(geometry) * cell_bytes
    least = 2 * pixel_bytes
    if workspace_bytes < least:
        raise ValueError(
            f"workspace_bytes is {workspace_bytes}, expected at least {least}: twice one output"
            f" pixel's columns and values ({geometry.channels} channels * {geometry.taps} taps +"
            f" {out_channels}, of {itemsize} bytes);"
            f" pass workspace_bytes={least} or more"
        )
    together = workspace_bytes // (geometry.out_pixels * pixel_bytes + copy_bytes)
    rows = LEAST_TILE_HEIGHT * MOST_BLOCKS
    held = max(min(together, geometry.images, MOST_BLOCKS), 1)
    if geometry.out_pixels > LARGEST_DIMENSION or geometry.out_height > rows:
        held = 1
    if held > 1:
        tile_pixels = held * geometry.out_pixels
    else:
        available = max(workspace_bytes - copy_bytes, workspace_bytes // 2)
        tile_pixels = min(
            available // pixel_bytes,
            rows * geometry.out_width,
            geometry.out_pixels,
            LARGEST_DIMENSION,
        )
    sizes = (*extents, tile_pixels * elements, held * copy_cells(geometry) * geometry.channels)
    index = index_dtype(sizes, geometry)
    return Plan(
        geometry, held, None, tile_pixels, 1, held * copy_bytes, tile_pixels * pixel_bytes, index
    )


def index_dtype(sizes: Iterable[int], geometry: Geometry) -> np.dtype[Any]:
    """Return int32 where it counts the elements of every array and every location, else int64."""
    # A location within reach, 2^30 to either side, must not overflow either (bilinear.cuh).
    narrow = max(sizes, default=0) <= 2**31 - 1 and geometry.farthest < 2**30
    return np.dtype(np.int32 if narrow else np.int64)


def allocate_chunks(plan: Plan, library: Any) -> tuple[Workspace, list[Workspace]]:
    """Allocate a plan's temporary memory in one piece: the copies' part and the chunk's."""
    image_bytes, chunk_bytes = plan.image_bytes + 3 * ALIGNMENT, plan.worker_bytes + 3 * ALIGNMENT
    block = Workspace.of(image_bytes + chunk_bytes + 2 * ALIGNMENT, library)
    return block.part(image_bytes), [block.part(chunk_bytes)]
