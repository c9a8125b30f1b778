"""ONNX's DeformConv: the operator by its own names, and a class for onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._arrays import AnyArray, Array
from ._attributes import came, is_integer
from .functional import deform_conv2d


def deform_conv(
    X: AnyArray,
    W: AnyArray,
    offset: AnyArray,
    B: AnyArray | None = None,
    mask: AnyArray | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    offset_group: int = 1,
) -> Array:
    """Evaluate a DeformConv node of ONNX, opset 19 or 22, with two spatial axes.

    ``Y(p) = sum_k W_k * X(p + p_k + offset_k(p)) * mask_k(p) + B``

    Parameters
    ----------
    X : ndarray, shape (N, C, H, W)
        Images; all arrays have its dtype, float64, float32, float16 or (opset 22) bfloat16.
    W : ndarray, shape (oC, C/group, kH, kW)
        The weight.
    offset : ndarray, shape (N, offset_group*kH*kW*2, oH, oW)
        Displacements in pixels, (dy, dx) pairs by tap, as in `deform_conv2d`.
    B : ndarray, shape (oC,), optional
        The bias.
    mask : ndarray, shape (N, offset_group*kH*kW, oH, oW), optional
        Factors of the samples.
    kernel_shape : (int, int), optional
        (kH, kW). W has it already: another one is an error.
    strides, dilations : (int, int)
        Vertical and horizontal, at least 1.
    pads : (int, int, int, int)
        (top, left, bottom, right), in ONNX's order: begins first.
    group, offset_group : int
        ``groups`` and ``deformable_groups`` of `deform_conv2d`.

    Returns
    -------
    Y : ndarray, shape (N, oC, oH, oW)
        Of X's dtype and library.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, before any work; and where ``pads`` are not four integers or
        ``kernel_shape`` is not W's.

    Notes
    -----
    Precision and borders are those of `deform_conv2d`: a sample fades to zero over one pixel
    outside the image, as onnxruntime and the reference evaluator have it.

    References
    ----------
    .. [1] https://onnx.ai/onnx/operators/onnx__DeformConv.html

    Examples
    --------
    The first of the examples in ONNX's own text, where one tap looks half a pixel lower and
    another 0.1 pixels to the left:

    >>> import numpy as np
    >>> from cupy_dcn.onnx import deform_conv
    >>> X = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> W = np.ones((1, 1, 2, 2), np.float32)
    >>> offset = np.zeros((1, 8, 4, 4), np.float32)
    >>> offset[0, 0, 0, 0], offset[0, 5, 1, 2] = 0.5, -0.1
    >>> deform_conv(X, W, offset, kernel_shape=(2, 2), pads=(1, 1, 1, 1))[0, 0]
    array([[ 0. ,  1. ,  3. ,  2. ],
           [ 3. ,  8. , 11.9,  7. ],
           [ 9. , 20. , 24. , 13. ],
           [ 6. , 13. , 15. ,  8. ]], dtype=float32)
    """
    top, left, bottom, right = _pads(pads)
    if kernel_shape is not None:
        _check_kernel(kernel_shape, W)
    return deform_conv2d(
        X, offset, W, B, stride=strides, padding=(top, bottom, left, right), dilation=dilations,
        deformable_groups=offset_group, groups=group, mask=mask,
    )  # fmt: skip


def _pads(pads: object) -> tuple[int, ...]:
    if not isinstance(pads, (tuple, list)) or len(pads) != 4 or not all(map(is_integer, pads)):
        raise ValueError(
            f"pads is {came(pads)}, expected four integers (top, left, bottom, right): ONNX's pads"
            " are all begins, then all ends"
        )
    return tuple(pads)


def _check_kernel(kernel_shape: object, weight: object) -> None:
    found = getattr(weight, "shape", ())[2:]
    if not isinstance(kernel_shape, (tuple, list)) or tuple(kernel_shape) != tuple(found):
        raise ValueError(
            f"kernel_shape is {came(kernel_shape)}, expected {tuple(found)}, the last axes of W;"
            " leave it out to have it read from there"
        )


def __getattr__(name: str) -> Any:
    """Make DeformConv when it is asked for: it needs the package onnx, the function does not."""
    if name == "DeformConv":
        from ._onnx_reference import DeformConv

        return DeformConv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
