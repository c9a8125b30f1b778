"""The backward of depthwise layers without columns (GPU): when, and the launch.

With one channel a group each product of columns has one row and one column: cuBLAS multiplies
little and moves much. One kernel samples, multiplies and adds up instead. The rule: one channel a
group, in and out; a forward without columns (_direct_gpu.py); and besides

- two vectors of channels or more in a deformable group: a thread alone at a pixel would add up the
  gradient of the weight with all others of its block, tap after tap;
- room for the sums of that gradient, those of each block, in half of the workspace.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array, compute_dtype
from ._columns_gpu import GradImage, Image, Samples, of_tile
from ._cut import BlockSums
from ._direct_gpu import is_direct
from ._geometry import Geometry
from ._specialisation import Wants, depthwise_macros
from ._workspace import Sum, Workspace

INDEX = np.dtype(np.int64)  # of which points take most


def block_sums(
    geometry: Geometry, out_channels: int, dtype: np.dtype[Any], workspace_bytes: int
) -> BlockSums | None:
    """Return what a backward without columns sums in every block; None where there is none."""
    depthwise = geometry.group_channels == 1 and out_channels == geometry.channels
    if not depthwise or not is_direct(geometry, out_channels, dtype):
        return None
    macros = depthwise_macros(geometry, dtype, dtype, None, INDEX, Wants(True, True, True, True))
    if macros is None:
        return None
    rows, columns = macros.tile
    across = -(-geometry.out_width // columns) * geometry.deformable_groups
    nbytes = geometry.taps * macros.copy_shared * macros.sum_bytes
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
            "deform_depthwise_backward", None, *inputs, sums, *into, partial,
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
    by_tap = whole.reshape(geometry.deformable_groups, geometry.taps, -1)
    by_channel = by_tap[..., : geometry.deformable_channels].transpose(0, 2, 1)
    into = total.array.reshape(by_channel.shape)
    if total.empty:
        into[...] = by_channel
    else:
        into += by_channel
    total.empty = False
