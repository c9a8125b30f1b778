"""The backward of layers with few channels a group without columns (GPU): when, and the launch.

With one channel a group each product of columns has one row and one column: cuBLAS multiplies
little and moves much. One kernel samples, multiplies and adds up instead. The rule: as many
channels of a group out as in, 1, 2 or 4; a forward without columns (_direct_gpu.py); and besides

- no more than 16 weights of a vector at a tap: 4 channels a group of float32, 2 of the half types;
- two vectors of channels or more in a deformable group: a thread alone at a pixel would add up the
  gradient of the weight with all others of its block, tap after tap;
- room for the sums of that gradient, those of each block, in half of the workspace.

Worked example: picoseconds a column element by the roofline (benchmarks/roofline.py), with columns
/ without, of 64 -> 64 channels in 16 groups, 32x32 pixels, caches cold between the kernels (warm):

    V100 23.5 / 13.1 (13.4 / 10.4)        A100      13.6 / 6.3 (5.8 / 4.5)
    H100  6.8 / 4.3 (4.7 / 3.6)           RTX 4090  20.9 / 9.1 (8.1 / 6.3)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array, compute_dtype
from ._columns_gpu import GradImage, Image, Samples, of_tile
from ._cut import BlockSums
from ._direct_gpu import is_direct
from ._geometry import Geometry
from ._specialisation import Wants, direct_backward_macros
from ._workspace import Sum, Workspace

INDEX = np.dtype(np.int64)  # of which points take most


def block_sums(
    geometry: Geometry, out_channels: int, dtype: np.dtype[Any], workspace_bytes: int
) -> BlockSums | None:
    """Return what a backward without columns sums in every block; None where there is none."""
    alike = geometry.group_channels in (1, 2, 4) and out_channels == geometry.channels
    if not alike or not is_direct(geometry, out_channels, dtype):
        return None
    macros = direct_backward_macros(
        geometry, dtype, dtype, None, INDEX, Wants(True, True, True, True)
    )
    if macros is None or macros.vector * geometry.group_channels > 16:
        return None
    rows, columns = macros.tile
    across = -(-geometry.out_width // columns) * geometry.deformable_groups
    numbers = geometry.taps * geometry.group_channels * macros.copy_shared
    nbytes = numbers * macros.sum_bytes
    sums = BlockSums(across, -(-geometry.out_height // rows), nbytes)
    return sums if across * nbytes <= workspace_bytes // 2 else None


def pull_back_directly(
    weight: Array,
    grad_output: Array,
    image: Image | None,
    samples: Samples,
    grad_image: GradImage | None,
    grad_offset: Array | None,
    grad_mask: Array | None,
    total: Sum | None,
) -> None:
    """Do what the products of a backward and the kernels between them do, for a tile.

    ``weight`` and ``total`` are as for grad_columns and add_grad_weight.
    """
    tile, geometry, workspace = samples.tile, samples.cut.geometry, samples.workspace
    wants = Wants(
        grad_image is not None, grad_offset is not None, grad_mask is not None, total is not None
    )
    sampled = None if image is None else image.of_images(tile.images)
    sums = None if grad_image is None else grad_image.of_images(tile.images)
    into = [None if grad is None else of_tile(grad, tile) for grad in (grad_offset, grad_mask)]
    with workspace.scope():
        partial = None if total is None else _empty_sums(samples)
        grad = of_tile(grad_output, tile)
        inputs = grad, weight, sampled, samples.offset, samples.mask
        samples.launch(
            "deform_direct_backward", None, *inputs, sums, *into, partial,
            wants=wants, planes=grad,
        )  # fmt: skip
        if total is not None and partial is not None:
            _add_sums(partial, geometry, workspace, total)


def _empty_sums(samples: Samples) -> Array:
    """Make room for what each block sums: (blocks of a deformable group, its taps and channels)."""
    sums, tile, groups = (
        samples.cut.block_sums,
        samples.tile,
        samples.cut.geometry.deformable_groups,
    )
    assert sums is not None
    dtype = compute_dtype(samples.dtype)
    blocks = tile.image_count * sums.down * sums.across // groups
    return samples.workspace.empty((blocks, groups * sums.nbytes // dtype.itemsize), dtype)


def _add_sums(partial: Array, geometry: Geometry, workspace: Workspace, total: Sum) -> None:
    # In float64: there may be thousands of blocks, and this is little beside the rest.
    whole = workspace.empty(partial.shape[1:], np.float64)
    partial.sum(axis=0, dtype=np.float64, out=whole)
    # (DG, K, C_out/G, C_in/DG), zeros behind, to (G, C_out/G, K*C_in/G).
    groups, taps, few = geometry.deformable_groups, geometry.taps, geometry.group_channels
    by_tap = whole.reshape(groups, taps, few, -1)[..., : geometry.deformable_channels]
    by_group = by_tap.reshape(groups, taps, few, -1, few).transpose(0, 3, 2, 1, 4)
    into = total.array.reshape(by_group.shape)
    if total.empty:
        into[...] = by_group
    else:
        into += by_group
    total.empty = False
