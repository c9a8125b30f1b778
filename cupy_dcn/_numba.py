"""The Numba twin, as the pipelines call it: _cpu.py with compiled loops for stage 4."""

from __future__ import annotations

from ._columns_cpu import tile_of_columns
from ._columns_numba import im2col, locate, write_columns
from ._cpu import (
    Image,
    Turns,
    add_grad_weight,
    allocate,
    columns_dtype,
    convolve_directly,
    empty,
    fit_index,
    grad_columns,
    load_kernels,
    make_cut,
    on_device,
    spread,
    sum_planes,
    weight_from_matrix,
    weight_matrix,
    write_output,
)
from ._pullback_numba import Pullback

__all__ = [
    "Image",
    "Pullback",
    "Turns",
    "add_grad_weight",
    "allocate",
    "columns_dtype",
    "convolve_directly",
    "empty",
    "fit_index",
    "grad_columns",
    "im2col",
    "load_kernels",
    "locate",
    "make_cut",
    "on_device",
    "spread",
    "sum_planes",
    "tile_of_columns",
    "weight_from_matrix",
    "weight_matrix",
    "write_columns",
    "write_output",
]
