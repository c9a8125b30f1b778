"""What is compiled into a kernel: types, channels, groups, taps, and how threads share the work."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from ._arrays import compute_dtype
from ._geometry import Geometry

VECTOR_BYTES = 16  # the widest load from sm_75 to sm_90, and twice that from sm_100
MOST_LANES = 8  # 8 lanes * 16 bytes are one line of the cache
TRANSPOSE_THREADS = 256  # of a block in channels_last.cu
MOST_SIDE = 16  # of them at one pixel
TILE_WIDTH = 8  # output pixels of a tile side by side, as in geometry.cuh
# Of sampling points in shared memory: two or more blocks of any kernel fit beside each other.
POINT_BYTES = 24 * 1024


@dataclass(frozen=True)
class Macros:
    """Values of the macros of a kernel."""

    data: str
    index: str
    channels: int

    def definitions(self) -> str:
        """Return the macros as lines of a source."""
        names = (field.name.upper() for field in fields(self))
        pairs = zip(names, astuple(self), strict=True)
        return "".join(f"#define {name} {value}\n" for name, value in pairs)


@dataclass(frozen=True)
class SamplingMacros(Macros):
    """Macros of the kernels that sample; see geometry.cuh."""

    offset_data: str
    mask_data: str
    masked: int
    groups: int
    deformable_groups: int
    kernel_height: int
    kernel_width: int
    vector: int
    lanes: int
    block: int
    taps_at_once: int

    @property
    def tile_height(self) -> int:
        """How many output rows a tile has."""
        return self.block // self.lanes // TILE_WIDTH


@dataclass(frozen=True)
class BackwardMacros(SamplingMacros):
    """Macros of the backward in one pass; see deform_backward.cu."""

    grad_x: int
    grad_coordinates: int
    columns: int


@dataclass(frozen=True)
class TransposeMacros(Macros):
    """Macros of the kernels between an image and its channels-last copy; see channels_last.cu."""

    vector: int
    transpose_vectors: int
    transpose_side: int

    @property
    def block_vectors(self) -> int:
        """How many vectors of a pixel a block moves."""
        return self.transpose_vectors * self.transpose_side

    @property
    def pixels(self) -> int:
        """How many pixels a block is at."""
        return TRANSPOSE_THREADS // self.transpose_side


def sampling_macros(
    geometry: Geometry,
    dtype: np.dtype[Any],
    offset: np.dtype[Any],
    mask: np.dtype[Any] | None,
    index: np.dtype[Any],
    wants: tuple[bool, bool, bool] | None = None,
) -> SamplingMacros:
    """Specialise a sampling kernel; ``wants`` grad_x, coordinates and columns of the backward."""
    vector = vector_width(geometry, dtype.itemsize)
    lanes = lane_count(geometry.deformable_channels // vector)
    # At one lane a pixel a tile of 256 would have too many points to hold.
    block = 128 if lanes == 1 else 256
    # Four weights or dots (the backward: both), two fractions and a cell.
    words = 6 if wants is None else 10
    point_bytes = words * compute_dtype(dtype).itemsize + index.itemsize
    rounds = -(-geometry.taps * (block // lanes) * point_bytes // POINT_BYTES)
    values = (
        type_name(dtype), index.name, geometry.channels, type_name(offset),
        type_name(dtype if mask is None else mask), int(mask is not None), geometry.groups,
        geometry.deformable_groups, geometry.kernel_height, geometry.kernel_width, vector, lanes,
        block, -(-geometry.taps // rounds),
    )  # fmt: skip
    return SamplingMacros(*values) if wants is None else BackwardMacros(*values, *map(int, wants))


def transpose_macros(channels: int, dtype: np.dtype[Any], index: np.dtype[Any]) -> TransposeMacros:
    """Specialise a transposing kernel: a thread moves up to 64 bytes of a pixel's channels."""
    vector = math.gcd(channels, VECTOR_BYTES // dtype.itemsize)
    vectors = channels // vector
    at_once = min(vectors, 4 * VECTOR_BYTES // (vector * dtype.itemsize))
    side = 1
    while side < MOST_SIDE and side * at_once < vectors:
        side *= 2
    return TransposeMacros(type_name(dtype), index.name, channels, vector, at_once, side)


def vector_width(geometry: Geometry, itemsize: int) -> int:
    """Return how many channels one load takes: a power of two that no group's edge cuts."""
    unit = math.gcd(geometry.group_channels, geometry.deformable_channels)
    return math.gcd(unit, VECTOR_BYTES // itemsize)


def lane_count(vectors: int) -> int:
    """Return how many threads share a sampling point of so many vectors.

    The most of 8, 4, 2, 1 that leave no more than a fifth of the threads idle in the last step.
    """
    lanes = MOST_LANES
    while -(-vectors // lanes) * lanes * 4 > vectors * 5:
        lanes //= 2
    return lanes


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype in cuda/."""
    return {"float32": "float", "float64": "double"}.get(dtype.name, dtype.name)
