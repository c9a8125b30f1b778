"""Stage 5 on the GPU: the three grouped products, by cuBLAS through CuPy.

    output       (C_out/G, pixels)    = weight @ columns^T + bias
    grad_columns (pixels, K*C_in/G)   = grad_output^T @ weight
    grad_weight  (C_out/G, K*C_in/G) += grad_output @ columns

for every image and group. cuBLAS is called directly rather than by cupy.matmul, which copies
operands that have a batch axis, casts float16 to float32 and ignores CUPY_TF32 there, and can
neither add to what the result holds (the bias, the sum over images) nor write a part of NCHW in
place. Here transposes are flags, a shared operand has a stride of 0, and the output is written
where it stays.

cuBLAS counts column by column: it sees the transpose of a C-contiguous (rows, columns) array.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, address_of, compute_dtype, cupy_of
from ._columns_gpu import empty_columns, of_tile
from ._copy_gpu import assign
from ._cut import Tile
from ._cut_gpu import LARGEST_DIMENSION
from ._geometry import Geometry
from ._specialisation import is_planar
from ._workspace import Sum, Workspace

# Of NVIDIA's library_types.h (cudaDataType) and cublas_api.h (compute type, algorithm).
DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE_TYPES = {"float32": 68, "float64": 70}
PEDANTIC = 1  # added to either
COMPUTE_32F_FAST_TF32 = 77
DEFAULT_ALGORITHM = -1
# CuPy's own codes for what products are asked to be computed in: by CUPY_TF32 or set_compute_type.
CUPY_PEDANTIC, CUPY_TF32 = 2, 7

# cuBLAS may add up a product's terms one after the other in float32: of so many positive ones it is
# off by 2e-6 of the sum, of 10^7 by 3e-5. Longer sums come in parts, added up in float64. A part
# costs C_out*K*C_in numbers to write and read, beside LONGEST_SUM*(K*C_in + C_out) that it reads.
LONGEST_SUM = 2**14

# The factors of the product and of what the result holds, read by cuBLAS from the host's memory.
FACTORS = {name: np.array([0, 1], name) for name in ("float32", "float64")}


class Matrices(NamedTuple):
    """One matrix an image and group: the distances of rows, images and groups in elements.

    ``first`` elements of the array come before the first matrix.
    """

    array: Array
    row: int
    image: int
    group: int
    transposed: bool = False
    first: int = 0


def weight_matrix(
    weight: Array, geometry: Geometry, dtype: np.dtype[Any], out: Array | None = None
) -> Array:
    """Return the weight as (G, C_out/G, K*C_in/G), channels fastest as in the columns."""
    groups, depth = geometry.groups, geometry.group_channels * geometry.taps
    shape = (groups, len(weight) // groups, depth)
    matrix: Array = cupy_of(weight).empty(shape, dtype) if out is None else out
    assign(weight_from_matrix(matrix, geometry), weight, geometry)
    return matrix


def weight_from_matrix(matrix: Array, geometry: Geometry) -> Array:
    """View what ``weight_matrix`` makes of a weight as (C_out, C_in/G, KH, KW) again."""
    taps, channels = geometry.taps, geometry.group_channels
    by_channel = matrix.reshape(geometry.groups, -1, taps, channels).transpose(0, 1, 3, 2)
    return by_channel.reshape(-1, channels, geometry.kernel_height, geometry.kernel_width)


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
    """Write weight @ columns^T + bias into a tile of out (N, C_out, OH, OW).

    ``add``: to what the tile holds, in the place of the bias.
    """
    images, groups, pixels = columns.shape[:3]
    channels, depth = weight.shape[1:]
    part = of_tile(out, tile)
    target, spacing = part, geometry.out_pixels
    if spacing > LARGEST_DIMENSION and channels > 1:  # too far for cuBLAS from plane to plane
        target, spacing = workspace.empty(part.shape, out.dtype), pixels
    if bias is not None:
        assign(target, bias[:, None, None], geometry)
    elif add and target is not part:
        assign(target, part, geometry)
    _multiply(
        (pixels, channels, depth),
        _columns(columns, geometry, transposed=True),
        _shared(weight),
        _planes(target, groups, spacing),
        (images, groups),
        add=add or bias is not None,
    )
    if target is not part:
        assign(part, target, geometry)


def grad_columns(
    weight: Array, grad_output: Array, tile: Tile, geometry: Geometry, workspace: Workspace
) -> Array:
    """Return the gradient of a tile's columns, grad_output^T @ weight."""
    _, channels, depth = weight.shape
    columns = empty_columns(geometry, tile, weight.dtype, workspace)
    images, groups, pixels = columns.shape[:3]
    with workspace.scope():
        grad = _read_tile(grad_output, tile, geometry, workspace)
        if is_planar(geometry, weight.itemsize):
            sizes = pixels, depth, channels
            a, b = grad, _shared(weight)._replace(transposed=True)
        else:
            sizes = depth, pixels, channels
            a, b = _shared(weight), grad._replace(transposed=True)
        _multiply(sizes, a, b, _columns(columns, geometry), (images, groups))
    return columns


def add_grad_weight(
    grad_output: Array,
    tile: Tile,
    columns: Array,
    geometry: Geometry,
    workspace: Workspace,
    total: Sum,
) -> None:
    """Add grad_output @ columns of a tile to (G, C_out/G, K*C_in/G), in the compute dtype."""
    images, groups, pixels, taps, per_group = columns.shape
    channels, depth = grad_output.shape[1] // groups, taps * per_group
    samples = _columns(columns, geometry)
    if images > 1 and groups == 1 and _sums_cost_more(columns, geometry):
        part = of_tile(grad_output, tile)
        with workspace.scope():
            planes = workspace.empty((channels, images, *part.shape[2:]), part.dtype)
            planes[...] = part.transpose(1, 0, 2, 3)
            grad = Matrices(planes, images * pixels, 0, 0)
            _add_product((depth, channels, images * pixels), samples, grad, workspace, total)
        return
    grad = _read_tile(grad_output, tile, geometry, workspace)
    for image in range(images):  # one after the other: they add to the same sums
        _add_product(
            (depth, channels, pixels),
            samples._replace(array=columns[image]),
            grad._replace(array=grad.array[image]),
            workspace,
            total,
        )


def _add_product(
    sizes: tuple[int, int, int], samples: Matrices, grad: Matrices, workspace: Workspace, total: Sum
) -> None:
    """Add the product of each group, over one image's pixels, to (G, C_out/G, K*C_in/G)."""
    depth, channels, pixels = sizes
    sums = total.array
    groups, step = len(sums), 1 if samples.transposed else samples.row  # from pixel to pixel
    whole, rest = divmod(pixels, LONGEST_SUM)
    if pixels <= LONGEST_SUM or sums.dtype == np.float64:
        _multiply(sizes, samples, grad, _shared(sums), (1, groups), add=not total.empty)
    else:
        with workspace.scope():
            parts = workspace.empty((whole + (rest > 0) + 1, *sums.shape), sums.dtype)
            parts[-1] = 0 if total.empty else sums
            shared = _shared(parts[0])._replace(array=parts, image=sums.size)
            _multiply(
                (depth, channels, LONGEST_SUM),
                samples._replace(image=step * LONGEST_SUM),
                grad._replace(image=LONGEST_SUM),
                shared,
                (whole, groups),
            )
            if rest:
                done = whole * LONGEST_SUM
                _multiply(
                    (depth, channels, rest),
                    samples._replace(first=step * done),
                    grad._replace(first=done),
                    shared._replace(first=whole * sums.size),
                    (1, groups),
                )
            parts.sum(axis=0, dtype=np.float64, out=sums)
    total.empty = False


def _sums_cost_more(columns: Array, geometry: Geometry) -> bool:
    """Tell whether a product an image moves more bytes, to add to the sums, than it saves.

    Read and written for every image they are 8 bytes an element of the weight (float32). The
    other way is one product over all images, of grad_output copied plane by plane, read and
    written once: 1024 channels of 14x14 pixels in float16, 75 MB an image against 0.8.
    """
    _, _, pixels, taps, channels = columns.shape
    if is_planar(geometry, columns.itemsize):  # images of columns do not follow one another
        return False
    sums = compute_dtype(columns.dtype).itemsize * taps * channels
    return bool(sums > pixels * columns.itemsize)


def sum_planes(grad_output: Array, grad_bias: Array) -> None:
    """Write the gradient of the bias (C_out,): CuPy's threads add up thousands of numbers each."""
    grad_output.sum(axis=(0, 2, 3), dtype=np.float64, out=grad_bias)


def _columns(columns: Array, geometry: Geometry, transposed: bool = False) -> Matrices:
    """Take (images, G, pixels, K, C_in/G) as matrices (pixels, K*C_in/G), or their transposes."""
    _, groups, pixels, taps, channels = columns.shape
    depth = taps * channels
    planar = is_planar(geometry, columns.itemsize)
    row = pixels if planar else depth
    return Matrices(columns, row, groups * pixels * depth, pixels * depth, transposed != planar)


def _shared(weight: Array) -> Matrices:
    """Take (G, rows, columns) as matrices shared by all images."""
    _, rows, columns = weight.shape
    return Matrices(weight, columns, 0, rows * columns)


def _planes(part: Array, groups: int, spacing: int) -> Matrices:
    """Take (images, C, rows, columns), planes so far apart, as matrices (C/G, pixels)."""
    channels, rows, columns = part.shape[1:]
    # A single row lies at no distance from another, and cuBLAS could not take a large one.
    row = spacing if channels > groups else rows * columns
    return Matrices(part, row, channels * spacing, channels // groups * spacing)


def _read_tile(array: Array, tile: Tile, geometry: Geometry, workspace: Workspace) -> Matrices:
    """Take a tile of (N, C, OH, OW) as matrices (C/G, pixels), copied only if need be."""
    part = of_tile(array, tile)
    if array.flags.c_contiguous and geometry.out_pixels <= LARGEST_DIMENSION:
        return _planes(part, geometry.groups, geometry.out_pixels)
    return _planes(workspace.cast(part, array.dtype), geometry.groups, tile.image_pixels)


def _multiply(
    sizes: tuple[int, int, int],
    a: Matrices,
    b: Matrices,
    c: Matrices,
    batch: tuple[int, int],
    add: bool = False,
) -> None:
    """Compute C (m, n) = op(A) (m, k) @ op(B) (k, n), plus C, as cuBLAS counts, for a whole batch.

    The longer of the batch's two axes, images and groups, is cuBLAS's own; the other is a loop.
    """
    # This form of the import loads libcublas first, wherever it was installed.
    from cupy_backends.cuda.libs import cublas

    cupy = cupy_of(c.array)
    inner, outer = ("image", "group") if batch[0] >= batch[1] else ("group", "image")
    factors = FACTORS[compute_dtype(a.array.dtype).name]
    zero, one = factors.ctypes.data, factors.ctypes.data + factors.itemsize
    for step in range(min(batch)):

        def operand(matrices: Matrices, step: int = step) -> tuple[int, int, int, int]:
            array = matrices.array
            first = matrices.first + step * getattr(matrices, outer)
            address = address_of(array) + first * array.itemsize
            return address, DATA_TYPES[array.dtype.name], matrices.row, getattr(matrices, inner)

        cublas.gemmStridedBatchedEx(
            cupy.cuda.device.get_cublas_handle(), int(a.transposed), int(b.transposed), *sizes,
            one, *operand(a), *operand(b), one if add else zero, *operand(c),
            max(batch), compute_type(cupy, a.array.dtype), DEFAULT_ALGORITHM,
        )  # fmt: skip


def compute_type(cupy: ModuleType, dtype: np.dtype[Any]) -> int:
    """Return what cuBLAS computes in: what CuPy would ask for, float32 sums for the half types."""
    asked = cupy._core.get_compute_type(dtype)
    if asked == CUPY_TF32 and dtype == np.float32:
        return COMPUTE_32F_FAST_TF32
    return COMPUTE_TYPES[compute_dtype(dtype).name] + (PEDANTIC if asked == CUPY_PEDANTIC else 0)
