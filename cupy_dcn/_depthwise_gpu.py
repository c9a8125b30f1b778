"""The forward of depthwise layers without columns (GPU): when, and the launch.

With one channel a group each product of columns has one row and one column: cuBLAS multiplies
little and moves much. One kernel samples, multiplies and adds up in registers instead: 2 bytes of
DRAM a column element instead of 10. The rule: C_in/G = C_out/G = 1, and the sampling points of all
taps and the weights of a deformable group fit into shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array, compute_dtype
from ._columns_gpu import Image, Samples, of_tile
from ._geometry import Geometry
from ._specialisation import copy_channels, sampling_macros

WEIGHT_BYTES = 12 * 1024  # of shared memory, beside the 32 KiB of sampling points


def is_direct(geometry: Geometry, out_channels: int, dtype: np.dtype[Any]) -> bool:
    """Tell whether a forward is one kernel a chunk, without columns and products."""
    if geometry.group_channels != 1 or out_channels != geometry.channels:
        return False
    macros = sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int64))
    channels = copy_channels(geometry, dtype.itemsize) // geometry.deformable_groups
    whole = macros.rows_at_once * macros.columns_at_once == geometry.taps or macros.lanes == 1
    return whole and geometry.taps * channels * compute_dtype(dtype).itemsize <= WEIGHT_BYTES


def convolve_directly(
    weight: Array, image: Image, samples: Samples, bias: Array | None, out: Array
) -> bool:
    """Write a tile of out (N, C_out, OH, OW) if the layer allows it; tell whether it does.

    ``weight`` and ``bias`` are as for write_output.
    """
    if not samples.cut.direct:
        return False
    tile = samples.tile
    sampled = image.of_images(tile.images), samples.offset, samples.mask
    samples.launch("deform_depthwise", None, *sampled, weight, bias, of_tile(out, tile))
    return True
