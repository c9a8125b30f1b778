"""What is compiled into a kernel: types, channels, groups, taps, and how threads share the work."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from ._arrays import compute_dtype
from ._geometry import Geometry

VECTOR_BYTES = 16  # the widest load from sm_75 to sm_90, and twice that from sm_100
MOST_LANES = 8  # 8 lanes * 16 bytes are one line of the cache
TRANSPOSE_THREADS = 256  # of a block in channels_last.cu
MOST_SIDE = 16  # of them at one pixel
# Of sampling points in shared memory: two or more blocks of any kernel fit beside each other.
POINT_BYTES = 32 * 1024
DTYPES = {"float": "float32", "double": "float64"}  # the others have one name
SHARED_BYTES = 48 * 1024  # that a block may have on every architecture


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
    rows_at_once: int
    columns_at_once: int

    @property
    def tile(self) -> tuple[int, int]:
        """How many output rows and columns a block is at, as in geometry.cuh."""
        width = 16 if self.lanes == 1 else 8
        return self.block // self.lanes // width, width

    @property
    def copy_shared(self) -> int:
        """How many channels a deformable group has in the copy."""
        return -(-self.channels // self.deformable_groups // self.vector) * self.vector

    @property
    def sum_bytes(self) -> int:
        """Bytes of a number that is computed with."""
        return 8 if self.data == "double" else 4

    @property
    def summed_channels(self) -> int:
        """How many channels a cell's threads sum at once, as in deform_col2im_ordered.cu."""
        return self.lanes * 64 // self.sum_bytes

    @property
    def whole(self) -> bool:
        """Whether the points of all taps are worked on at once."""
        taps = self.kernel_height * self.kernel_width
        return self.rows_at_once * self.columns_at_once == taps or self.lanes == 1


@dataclass(frozen=True)
class DirectMacros(SamplingMacros):
    """Macros of the kernel without columns; see deform_direct.cu."""

    outputs: int  # C_out/G


class Wants(NamedTuple):
    """What a kernel that pulls gradients back is to fill."""

    grad_x: bool = False
    grad_offset: bool = False
    grad_mask: bool = False
    columns: bool = False  # or, without columns, grad_weight


@dataclass(frozen=True)
class PullbackMacros(SamplingMacros):
    """Macros of the kernels that pull gradients back; see pullback.cuh."""

    grad_x: int
    grad_offset: int
    grad_mask: int
    columns: int

    @property
    def points(self) -> int:
        """How many ordered sampling points a block is at, as in deform_backward_sorted.cu."""
        groups = self.block // self.lanes
        return groups * min(2048 // (groups * self.sum_bytes), 8)

    @property
    def direct_backward_bytes(self) -> int:
        """Shared memory of a block of deform_direct_backward.cu."""
        vectors, pixels = self.copy_shared // self.vector, self.block // self.lanes
        steps, taps = -(-vectors // self.lanes), self.kernel_height * self.kernel_width
        outputs = self.channels // self.groups
        held = min(steps, 1 if self.vector > 4 or outputs > 1 else 2)
        channels = held * self.lanes * self.vector
        numbers = taps * outputs * self.copy_shared
        numbers += pixels * ((1 + outputs) * channels + self.vector)
        numbers += pixels * taps * (10 if steps > held else 6) + pixels * 16 * (self.lanes + 1)
        return numbers * self.sum_bytes + pixels * taps * np.dtype(self.index).itemsize


@dataclass(frozen=True)
class TransposeMacros(Macros):
    """Macros of the kernels between an image and its channels-last copy; see channels_last.cu."""

    deformable_groups: int
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
    wants: Wants | None = None,
    outputs: int = 0,
    most_threads: int = 256,
) -> SamplingMacros:
    """Specialise a sampling kernel; ``wants`` is what it fills, None of deform_im2col.

    ``outputs``: C_out/G of deform_direct, which multiplies what it samples.
    """
    vector = vector_width(geometry, dtype.itemsize)
    vectors = -(-geometry.deformable_channels // vector)
    lanes = lane_count(vectors)
    # A block at fewer pixels where a thread needs more registers (geometry.cuh).
    block = min(128 if lanes == 1 or vector > 4 else 256, most_threads)
    if wants and vectors == 4 and vector <= 4 and geometry.groups < geometry.channels:
        # Two lanes take two vectors each: fewer threads to set out and to sum dots over, 27
        # instructions an element for 31 at 16 floats. The block is at as many pixels as with four.
        lanes, block = 2, 128
    # Four weights that turn into dots, for these two fractions, and a cell.
    words = 6 if wants and (wants.grad_offset or wants.grad_mask) else 4
    point_bytes = words * compute_dtype(dtype).itemsize + index.itemsize
    rows, columns = taps_at_once(geometry, POINT_BYTES // (block // lanes * point_bytes))
    values = (
        type_name(dtype), index.name, geometry.channels, type_name(offset),
        type_name(dtype if mask is None else mask), int(mask is not None), geometry.groups,
        geometry.deformable_groups, geometry.kernel_height, geometry.kernel_width, vector, lanes,
        block, rows, columns,
    )  # fmt: skip
    if wants is not None:
        return PullbackMacros(*values, *map(int, wants))
    return DirectMacros(*values, outputs) if outputs else SamplingMacros(*values)


def direct_backward_macros(
    geometry: Geometry,
    dtype: np.dtype[Any],
    offset: np.dtype[Any],
    mask: np.dtype[Any] | None,
    index: np.dtype[Any],
    wants: Wants,
) -> PullbackMacros | None:
    """Specialise a backward without columns; None where it does not fit into a block."""
    for threads in (256, 128):
        macros = sampling_macros(geometry, dtype, offset, mask, index, wants, most_threads=threads)
        assert isinstance(macros, PullbackMacros)
        if macros.lanes > 1 and macros.whole and macros.direct_backward_bytes <= SHARED_BYTES:
            return macros
    return None


def order_macros(
    geometry: Geometry, dtype: np.dtype[Any], offset: np.dtype[Any], index: np.dtype[Any]
) -> SamplingMacros:
    """Specialise the kernels of sample_order.cu: threads alone at a pixel."""
    data, kind = type_name(compute_dtype(dtype)), type_name(offset)
    groups, size = geometry.deformable_groups, (geometry.kernel_height, geometry.kernel_width)
    return SamplingMacros(
        data, index.name, groups, kind, data, 0, 1, groups, *size, 1, 1, 128, *size
    )  # fmt: skip


def taps_at_once(geometry: Geometry, most: int) -> tuple[int, int]:
    """Cut the taps into parts of at most so many, about equal: whole rows, or parts of a row."""
    height, width = geometry.kernel_height, geometry.kernel_width
    if width > most:
        return 1, -(-width // -(-width // most))
    return -(-height // -(-height // (most // width))), width


def transpose_macros(
    geometry: Geometry, dtype: np.dtype[Any], index: np.dtype[Any]
) -> TransposeMacros:
    """Specialise a transposing kernel: a thread moves up to 16 of a pixel's channels."""
    vector = vector_width(geometry, dtype.itemsize)
    vectors = copy_channels(geometry, dtype.itemsize) // vector
    at_once = min(vectors, 16 // vector)
    side = 1
    while side < MOST_SIDE and side * at_once < vectors:
        side *= 2
    return TransposeMacros(
        type_name(dtype), index.name, geometry.channels, geometry.deformable_groups, vector,
        at_once, side,
    )  # fmt: skip


def vector_width(geometry: Geometry, itemsize: int) -> int:
    """Return how many channels one load takes: a power of two, up to 16 bytes.

    The channels of a deformable group are followed by zeros in the copy, up to a whole number of
    vectors: at most a third as many.
    """
    channels, width = geometry.deformable_channels, VECTOR_BYTES // itemsize
    while -(-channels // width) * width * 3 > channels * 4:
        width //= 2
    return width


def copy_channels(geometry: Geometry, itemsize: int) -> int:
    """Return the channels of an image's channels-last copy, with the zeros between groups."""
    width = vector_width(geometry, itemsize)
    return -(-geometry.deformable_channels // width) * width * geometry.deformable_groups


def lane_count(vectors: int) -> int:
    """Return how many threads share a sampling point of so many vectors.

    One takes one; else the most of 8, 4, 2 that leave no more than a fifth of the threads idle in
    the last step.
    """
    lanes = MOST_LANES if vectors > 1 else 1
    while lanes > 2 and -(-vectors // lanes) * lanes * 4 > vectors * 5:
        lanes //= 2
    return lanes


def is_planar(geometry: Geometry, itemsize: int) -> bool:
    """Tell whether columns are planes of pixels on the GPU: where one vector has all channels."""
    return geometry.deformable_channels <= vector_width(geometry, itemsize)


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype in cuda/."""
    return next((name for name, its in DTYPES.items() if its == dtype.name), dtype.name)


def command(name: str, macros: Macros, capability: str) -> str:
    """Return the command line that builds a layer's kernels ahead, as far as macros say."""
    ordering = name.endswith("_samples") or name == "start_cells"
    options: dict[str, object] = {"arch": f"sm_{capability}"}
    options["channels"] = "C" if ordering else macros.channels
    options["dtype"] = DTYPES.get(macros.data, macros.data)
    options["deformable-groups"] = getattr(macros, "deformable_groups", 1)
    if isinstance(macros, SamplingMacros):
        options["kernel-size"] = f"{macros.kernel_height}x{macros.kernel_width}"
        options["groups"] = "G" if ordering else macros.groups
        for part, data in (("offset", macros.offset_data), ("mask", macros.mask_data)):
            if data != macros.data and not ordering:
                options[f"{part}-dtype"] = DTYPES.get(data, data)
    else:
        options |= {"kernel-size": "KHxKW", "groups": "G"}  # any will do for this kernel
    if isinstance(macros, DirectMacros):
        options["out-channels"] = macros.outputs * macros.groups
    flags = [f"--{option} {value}" for option, value in options.items()]
    flags += ["--wide"] * (macros.index == "int64")
    flags += ["--no-mask"] * (not ordering and getattr(macros, "masked", 1) == 0)
    in_order = name in ("rank_samples", "deform_col2im_ordered")  # and then no other sums grad_x
    in_order |= name == "deform_backward" and getattr(macros, "grad_x", 1) == 0
    flags += ["--deterministic"] * in_order
    return f"`python -m cupy_dcn build-kernels {' '.join(flags)} --out DIR`"
