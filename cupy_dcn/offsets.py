"""The layout of offsets as code, so that nobody has to know the order of the channels.

Channel ``g*2K + 2k`` of an offset is dy and ``g*2K + 2k + 1`` is dx of tap ``k = i*KW + j`` in
deformable group g, in pixels of x. A mask has one channel, ``g*K + k``, for such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._arrays import (
    AnyArray,
    Array,
    compute_dtype,
    module_of,
    of_one_library,
    on_device,
    require_array,
    require_bytes,
)
from ._attributes import integer_sides, pair


def pack_offset(dy: AnyArray, dx: AnyArray) -> Array:
    """Interleave vertical and horizontal displacements into an offset.

    Parameters
    ----------
    dy, dx : ndarray, shape (N, deformable_groups*KH*KW, OH, OW)
        Arrays of NumPy or of CuPy. Displacement of every tap in pixels, positive downward and to
        the right; channel ``g*KH*KW + i*KW + j`` is tap (i, j) of deformable group g, as in a mask.

    Returns
    -------
    offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
        As `deform_conv2d` takes it.

    Raises
    ------
    TypeError, ValueError
        If the two are not arrays of one shape and dtype.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> dy, dx = np.full((1, 1, 1, 1), 0.5), np.full((1, 1, 1, 1), -2.0)
    >>> cupy_dcn.pack_offset(dy, dx).ravel()
    array([ 0.5, -2. ])
    """
    axes = "(N, deformable_groups*KH*KW, OH, OW)"
    dy, dx = of_one_library({"dy": dy, "dx": dx})
    dy, dx = require_array("dy", dy, axes), require_array("dx", dx, axes)
    if dy.dtype != dx.dtype:
        raise TypeError(
            f"dx has dtype {dx.dtype}, expected dy's dtype {dy.dtype};"
            " convert it with dx.astype(dy.dtype)"
        )
    if dy.shape != dx.shape:
        raise ValueError(
            f"dx has shape {dx.shape}, expected dy's shape {axes} = {dy.shape};"
            " broadcast_to makes one from a constant"
        )
    images, taps, *size = dy.shape
    shape = images, 2 * taps, *size
    require_bytes("the offset", shape, dy.itemsize)
    with on_device(dy):
        stacked: Array = module_of(dy).stack((dy, dx), axis=2)
        return stacked.reshape(shape)


def unpack_offset(offset: AnyArray) -> tuple[Array, Array]:
    """Take an offset apart into vertical and horizontal displacements: undoes `pack_offset`.

    Parameters
    ----------
    offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)

    Returns
    -------
    dy, dx : ndarray, shape (N, deformable_groups*KH*KW, OH, OW)
        Views of ``offset``: writing to them writes to it.

    Raises
    ------
    TypeError, ValueError
        If ``offset`` is not such an array.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> offset = np.zeros((1, 18, 4, 4))
    >>> dy, dx = cupy_dcn.unpack_offset(offset)
    >>> dy[...] = 1.0  # every tap one pixel further down
    >>> dx.shape, float(offset.sum())
    ((1, 9, 4, 4), 144.0)
    """
    offset = require_array("offset", offset, "(N, 2*deformable_groups*KH*KW, OH, OW)")
    if offset.shape[1] % 2:
        raise ValueError(
            f"offset has {offset.shape[1]} channels, expected 2*deformable_groups*KH*KW, an even"
            " number; offsets are (dy, dx) pairs per tap"
        )
    return offset[:, 0::2], offset[:, 1::2]


def sampling_grid(
    offset: AnyArray,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> tuple[Array, Array]:
    """Return where every tap samples, in pixels of x.

    ``py = y*stride - pad_top + i*dilation + dy`` and likewise px; (0, 0) is the centre of the first
    pixel. Samples outside the open box (-1, H) x (-1, W) contribute 0.

    Parameters
    ----------
    offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
    kernel_size, stride, padding, dilation
        As given to `deform_conv2d`; padding as numbers, since 'SAME' depends on the image.

    Returns
    -------
    py, px : ndarray, shape (N, deformable_groups*KH*KW, OH, OW)
        float64 for a float64 offset, else float32: the precision the operator computes them in.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> py, px = cupy_dcn.sampling_grid(np.zeros((1, 18, 5, 5)), 3, padding=1)
    >>> py[0, :, 2, 2].reshape(3, 3)  # the rows that the pixel in the middle reads
    array([[1., 1., 1.],
           [2., 2., 2.],
           [3., 3., 3.]])
    """
    kernel = pair("kernel_size", kernel_size, 1)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = integer_sides(padding, "'SAME' depends on the image: give numbers")
    dy, dx = unpack_offset(offset)
    taps = kernel[0] * kernel[1]
    if dy.shape[1] == 0 or dy.shape[1] % taps:
        raise ValueError(
            f"offset has {2 * dy.shape[1]} channels, expected a multiple of 2*KH*KW = {2 * taps}"
            f" (kernel {kernel[0]}x{kernel[1]}); offsets are (dy, dx) pairs per tap"
        )
    dtype = compute_dtype(dy.dtype)
    grids = []
    for axis, step in enumerate((dy, dx)):
        positions = np.arange(step.shape[2 + axis]) * strides[axis] - pads[2 * axis]
        tap = np.divmod(np.arange(step.shape[1]) % taps, kernel[1])[axis] * dilations[axis]
        base = np.add.outer(tap, positions)
        base = base[:, :, None] if axis == 0 else base[:, None, :]
        with on_device(step):
            grids.append(step.astype(dtype) + module_of(step).asarray(base.astype(dtype)))
    return grids[0], grids[1]
