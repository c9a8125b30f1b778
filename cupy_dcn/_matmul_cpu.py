"""Stage 5: the three grouped products, and the columns as the matrices they multiply.

    output       (G, pixels, C_out/G)    = columns^T @ weight^T
    grad_columns (G, K*C_in/G, pixels)   = weight^T @ grad_output
    grad_weight  (G, C_out/G, K*C_in/G)  = grad_output @ columns^T

The columns come in one of two memory orders (_samples_cpu.py); the weight's rows are put in the
same order once a call, so that a product is BLAS on views wherever there is one group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array
from ._cut import Tile
from ._cut_cpu import rows_at_once
from ._geometry import Geometry
from ._windows_cpu import is_planar
from ._workspace import Sum, Workspace

# BLAS adds up in float32: a sum of 10^7 times 0.01 was wrong by 2e-5 of it (grad_weight) to 9e-4
# (over channels), all roundings going the same way. Parts so long, added up in float64: by 4e-6.
LONGEST_SUM = 4096


def weight_matrix(
    weight: Array, geometry: Geometry, dtype: np.dtype[Any], out: Array | None = None
) -> Array:
    """Return the weight as (G, C_out/G, K*C_in/G), its rows in the order of the columns."""
    groups, channels, taps = geometry.groups, geometry.group_channels, geometry.taps
    shape = (groups, len(weight) // groups, channels * taps)
    matrix = np.empty(shape, dtype) if out is None else out
    weight_from_matrix(matrix, geometry)[...] = weight
    return matrix


def weight_from_matrix(matrix: Array, geometry: Geometry) -> Array:
    """View what ``weight_matrix`` makes of a weight as (C_out, C_in/G, KH, KW) again."""
    channels, taps = geometry.group_channels, geometry.taps
    if not is_planar(geometry):
        matrix = matrix.reshape(geometry.groups, -1, taps, channels).transpose(0, 1, 3, 2)
    else:
        matrix = matrix.reshape(geometry.groups, -1, channels, taps)
    return matrix.reshape(-1, channels, geometry.kernel_height, geometry.kernel_width)


def columns_matrix(columns: Array, geometry: Geometry, workspace: Workspace) -> Array:
    """Return a tile's columns as (G, K*C_in/G, pixels); a copy only in rows order with groups."""
    groups, taps = geometry.groups, geometry.taps
    if is_planar(geometry):
        return columns.reshape(groups, -1, columns.shape[2])
    pixels = len(columns)
    by_group = columns.reshape(pixels, taps, groups, -1).transpose(2, 0, 1, 3)
    if groups > 1:
        by_group = workspace.cast(by_group, columns.dtype)
    return by_group.reshape(groups, pixels, -1).transpose(0, 2, 1)


def write_output(
    weight: Array,
    columns: Array,
    bias: Array | None,
    out: Array,
    tile: Tile,
    geometry: Geometry,
    workspace: Workspace,
    add: bool = False,
) -> None:
    """Write weight @ columns + bias into a tile of out, rounding to its dtype.

    ``add``: to what the tile holds, in the place of the bias.

    The product is columns^T @ weight^T: OpenBLAS makes that 1.1 to 2 times faster than weight @
    columns (C_out 16: 170 against 74 GFLOP/s on one core), which the transposing copy into NCHW
    does not eat up.
    """
    columns = columns_matrix(columns, geometry, workspace)
    product = workspace.empty((len(weight), columns.shape[2], weight.shape[1]), weight.dtype)
    _multiply(columns.transpose(0, 2, 1), weight.transpose(0, 2, 1), product, workspace)
    part = out[tile.images, :, tile.rows, tile.columns].swapaxes(0, 1)
    images, height, width = part.shape[1:]
    by_channel = product.swapaxes(1, 2).reshape(-1, images, height, width)
    if add:
        np.add(part, by_channel, out=part, casting="same_kind")
    elif bias is None:
        np.copyto(part, by_channel, casting="same_kind")
    else:
        np.add(by_channel, bias[:, None, None, None], out=part, casting="same_kind")


def grad_columns(
    weight: Array, grad_output: Array, tile: Tile, geometry: Geometry, workspace: Workspace
) -> Array:
    """Return the gradient of a tile's columns, weight^T @ grad_output, in their memory order."""
    grad = read_tile(grad_output, geometry.groups, tile, weight.dtype, workspace)
    groups, _, pixels = grad.shape
    if is_planar(geometry):
        out = workspace.empty((groups, weight.shape[2], pixels), weight.dtype)
        _multiply(weight.transpose(0, 2, 1), grad, out, workspace)
        return out.reshape(geometry.channels, geometry.taps, pixels)
    out = workspace.empty((groups, pixels, weight.shape[2]), weight.dtype)
    _multiply(grad.transpose(0, 2, 1), weight, out, workspace)
    if groups > 1:
        by_group = out.reshape(groups, pixels, geometry.taps, -1)
        out = workspace.cast(by_group.transpose(1, 2, 0, 3), out.dtype)
    return out.reshape(pixels, geometry.taps, geometry.channels)


def add_grad_weight(
    grad_output: Array,
    tile: Tile,
    columns: Array,
    geometry: Geometry,
    workspace: Workspace,
    total: Sum,
) -> None:
    """Add grad_output @ columns^T of a tile to (G, C_out/G, K*C_in/G)."""
    grad = read_tile(grad_output, geometry.groups, tile, columns.dtype, workspace)
    columns = columns_matrix(columns, geometry, workspace)
    groups, channels, depth = total.array.shape
    rows = rows_at_once(groups, channels, depth, columns.itemsize)
    for first in range(0, channels, rows):
        part = slice(first, first + rows)
        with workspace.scope():
            product = _grad_weight(grad[:, part], columns, is_planar(geometry), workspace)
            if total.empty:
                np.copyto(total.array[:, part], product)
            else:
                total.array[:, part] += product
    total.empty = False


def _grad_weight(grad: Array, columns: Array, planar: bool, workspace: Workspace) -> Array:
    groups, channels, _ = grad.shape
    depth = columns.shape[1]
    if planar:  # transposed it is twice as fast (8 x 75: 67 against 31 GFLOP/s)
        transposed = workspace.empty((groups, depth, channels), columns.dtype)
        _multiply(columns, grad.transpose(0, 2, 1), transposed, workspace)
        return transposed.transpose(0, 2, 1)
    product = workspace.empty((groups, channels, depth), columns.dtype)
    _multiply(grad, columns.transpose(0, 2, 1), product, workspace)
    return product


def _multiply(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    """Write a @ b, of float32 in parts of LONGEST_SUM terms that are added up in float64."""
    terms = a.shape[2]
    if terms <= LONGEST_SUM or out.dtype == np.float64:
        np.matmul(a, b, out=out)
        return
    with workspace.scope():
        total = workspace.zeros(out.shape, np.float64)
        for first in range(0, terms, LONGEST_SUM):
            part = slice(first, first + LONGEST_SUM)
            np.matmul(a[:, :, part], b[:, part], out=out)
            total += out
        np.copyto(out, total, casting="same_kind")


def sum_planes(grad_output: Array, grad_bias: Array) -> None:
    """Write the gradient of the bias (C_out,)."""
    sums = grad_output.sum(axis=(0, 2, 3), dtype=np.float64)
    np.copyto(grad_bias, sums, casting="same_kind")


def tile_matrix(array: Array, groups: int, tile: Tile, dtype: np.dtype[Any]) -> Array | None:
    """View a tile of (N, C, OH, OW) as (groups, C/groups, pixels), None where no view does."""
    if tile.images.stop - tile.images.start != 1 or array.dtype != dtype:
        return None
    image: Array = array[tile.images.start]
    if not image.flags.c_contiguous or not image.flags.aligned:
        return None
    channels, _, width = image.shape
    first = tile.rows.start * width + tile.columns.start
    return image.reshape(groups, channels // groups, -1)[:, :, first : first + tile.pixels]


def read_tile(
    array: Array, groups: int, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return a tile of (N, C, OH, OW) as (groups, C/groups, pixels), copied if need be."""
    view = tile_matrix(array, groups, tile, dtype)
    if view is not None:
        return view
    part = array[tile.images, :, tile.rows, tile.columns].swapaxes(0, 1)
    return workspace.cast(part, dtype).reshape(groups, array.shape[1] // groups, -1)
