"""The forward of layers with few channels a group, without columns (GPU): when, and the launch.

One kernel samples, multiplies and adds up in registers: 2 to 5 bytes of DRAM a column element
instead of 10 to 13, which are written, read and multiplied by a weight of few rows. It costs a
multiply-add a column element and output channel of its group, as the product does at best, and a
quarter of a load from shared memory. The rule, all of it:

- a vector of channels, what one load takes (16 bytes), or all of a deformable group's where one
  thread has them, holds whole groups: C_in/G is 1, 2 or 4 (8 of the half types), or the
  deformable group has no more channels than a vector: photographs;
- C_out/G <= 16: up to there it is ahead on every device by the roofline (benchmarks/roofline.py),
  also where the product is the tensor cores': at 32, 8 channels of float16 are not, on an A100;
- its sums, of a vector, take 64 bytes in the type of x: in registers, beside a sampling point;
- the sampling points of all taps, and the weights of a deformable group, fit into shared memory:
  together 32 KiB, so that three blocks find room, or 12 KiB of weights beside more points.

Worked examples: picoseconds a column element by the roofline, with columns / without, of pictures
of 32x32 pixels, caches cold between the kernels:

                3 -> 8, 5x5    64 -> 64, 3x3, G 16    8 -> 16, 3x3, float16
    V100        17.9 / 12.1         13.5 / 6.6               8.0 / 4.9
    A100         8.6 / 5.3           6.7 / 3.0               4.0 / 2.6
    H100         5.8 / 4.2           4.2 / 2.2               2.5 / 1.7
    RTX 4090    13.1 / 7.5          10.0 / 4.3               6.0 / 3.2
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ._arrays import Array
from ._columns_gpu import Image, Samples, of_tile
from ._geometry import Geometry
from ._specialisation import POINT_BYTES, sampling_macros

MOST_OUTPUTS = 16  # channels of a group
SUM_BYTES = 64  # of a vector's sums, in the type of x
WEIGHT_BYTES = 12 * 1024  # of shared memory, beside the 32 KiB of sampling points


@functools.lru_cache(maxsize=256)
def is_direct(geometry: Geometry, out_channels: int, dtype: np.dtype[Any]) -> bool:
    """Tell whether a forward is one kernel a chunk, without columns and products."""
    channels, outputs = geometry.group_channels, out_channels // geometry.groups
    if not 0 < outputs <= MOST_OUTPUTS or geometry.deformable_channels % channels:
        return False
    macros = sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int64))
    alone = macros.lanes == 1
    vector = geometry.deformable_channels if alone else macros.vector
    if vector % channels or vector // channels * outputs * dtype.itemsize > SUM_BYTES:
        return False
    pixels, number = macros.block // macros.lanes, macros.sum_bytes
    points = 0 if alone else pixels * geometry.taps * (4 * number + 8)
    weights = geometry.taps * macros.copy_shared * outputs * number
    return points <= POINT_BYTES and weights <= max(WEIGHT_BYTES, POINT_BYTES - points)


def convolve_directly(
    weight: Array, image: Image, samples: Samples, bias: Array | None, out: Array
) -> bool:
    """Write a tile of out (N, C_out, OH, OW) if the layer allows it; tell whether it does.

    ``weight`` and ``bias`` are as for write_output.
    """
    if not samples.cut.direct:
        return False
    tile, outputs = samples.tile, weight.shape[1]
    arrays = image.of_images(tile.images), samples.offset, samples.mask, weight, bias
    samples.launch("deform_direct", None, *arrays, of_tile(out, tile), outputs=outputs)
    return True
