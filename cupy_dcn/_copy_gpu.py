"""Copies from one layout to another (GPU), by CuPy or, where it compiles nothing, by a kernel."""

from __future__ import annotations

import math

import numpy as np

from ._arrays import Array, cupy_of
from ._geometry import Geometry
from ._kernels import kernel
from ._launch_gpu import element_strides
from ._nvrtc import why_not_nvrtc
from ._specialisation import TRANSPOSE_THREADS, transpose_macros

AXES = 5  # of struct Walk in channels_last.cu


def assign(target: Array, source: Array, geometry: Geometry) -> None:
    """Do ``target[...] = source`` for arrays of one dtype, that of a layer's image.

    CuPy has a kernel of its own for every such copy, which it compiles in each process: without
    NVRTC it could not lay out a weight. Then a kernel of the layer copies, built ahead with it.
    """
    cupy = cupy_of(target)
    if not why_not_nvrtc(cupy) or target.dtype != source.dtype:
        target[...] = source
        return
    spread = cupy.broadcast_to(source, target.shape)
    if not target.size:
        return
    sizes = (1,) * (AXES - target.ndim) + target.shape
    strides = [(0,) * (AXES - target.ndim) + element_strides(each) for each in (spread, target)]
    # A walk goes no farther than this from its first element, and passes the last by less than a
    # block.
    reach = max(int(np.abs(each) @ np.array(sizes)) for each in strides)
    wide = max(reach, target.size + TRANSPOSE_THREADS) >= 2**31
    index = np.dtype(np.int64 if wide else np.int32)
    fields = np.array((sizes, *strides), index).ravel()
    walk = fields.view(np.dtype((np.void, fields.nbytes)))
    copying = kernel(cupy, "copy_elements", transpose_macros(geometry, target.dtype, index))
    blocks = math.ceil(target.size / TRANSPOSE_THREADS)
    copying((blocks,), (TRANSPOSE_THREADS,), (walk, index.type(target.size), spread, target))
