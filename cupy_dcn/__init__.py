"""Deformable convolution v1/v2 for array programs: forward, every gradient, and the stages."""

from ._columns import deform_col2im, deform_coord_grad, deform_im2col
from .functional import Gradients, deform_conv2d, deform_conv2d_backward
from .offsets import pack_offset, sampling_grid, unpack_offset

__version__ = "0.1.0"

__all__ = [
    "Gradients",
    "deform_col2im",
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_coord_grad",
    "deform_im2col",
    "pack_offset",
    "sampling_grid",
    "unpack_offset",
]
