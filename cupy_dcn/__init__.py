"""Deformable convolution v1/v2 for array programs: forward, every gradient, and the stages.

deform_conv2d, deform_conv2d_backward
    The operator and its gradients, on NumPy or CuPy arrays.
deform_conv2d_jvp, deform_conv2d_double_backward
    Derivatives along a direction: forward mode, and second derivatives.
Plan
    The operator prepared once for many calls on arrays of one shape.
DeformConv2D, DeformConv2DPack
    Layers that hold their weights: Paddle's, and one that makes offset and mask itself.
pack_offset, unpack_offset, sampling_grid
    The layout of offsets, and where a kernel samples.
deform_im2col, deform_col2im, deform_coord_grad
    The stages: sampling into columns, its adjoint, and its derivative by the coordinates.
warmup
    Compiles a layer's CUDA kernels before its first call.
plot.draw_sampling, plot.quiver
    Pictures of the sampling points, through one layer or several, and of offsets (matplotlib).
"""

from . import plot as plot
from ._columns import deform_col2im, deform_coord_grad, deform_im2col
from ._prepared import Gradients
from ._tangents import SecondGradients, Tangents
from ._warmup import warmup
from .derivatives import deform_conv2d_double_backward, deform_conv2d_jvp
from .functional import deform_conv2d, deform_conv2d_backward
from .layer import DeformConv2D
from .offsets import pack_offset, sampling_grid, unpack_offset
from .pack import DeformConv2DPack, PackGradients
from .plan import Plan

__version__ = "0.1.0"

__all__ = [
    "DeformConv2D",
    "DeformConv2DPack",
    "Gradients",
    "PackGradients",
    "Plan",
    "SecondGradients",
    "Tangents",
    "deform_col2im",
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_conv2d_double_backward",
    "deform_conv2d_jvp",
    "deform_coord_grad",
    "deform_im2col",
    "pack_offset",
    "sampling_grid",
    "unpack_offset",
    "warmup",
]
