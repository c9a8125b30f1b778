"""How many output pixels a chunk has where nobody says: a model of DRAM, products, launches (GPU).

Small chunks keep their columns in the L2 cache between the sampling and the product; large ones
give the product enough tiles for every multiprocessor, and fewer launches. The least of

    time(pixels) = chunks * (columns that miss the L2 / DRAM + products + launches)

    columns    pixels * K * C_in * itemsize, moved 2 times forward, 4 times backward. They miss the
               L2 from half of its size on, all of them from its size on.
    products   whole rounds of tiles of 128 x 128 or 64 x 64, a tile a multiprocessor: 2 * area *
               depth / FLOPS, at three quarters of the peak for the small ones. The gradient of the
               weight sums over pixels, which cuBLAS splits at will: FLOP / peak, and its sums are
               read and written by every chunk.
    launches   3 microseconds each, 2 forward, 4 backward

Chunks follow one another on one stream. To sample one while the product of the one before runs
would take two chunks of columns, so chunks of half the size in the same cache, and both kernels
fill every multiprocessor by themselves. By the roofline sampling is a quarter of a forward in
float32 (256 channels, H100), where both want the same arithmetic units, and two thirds in float16:
what of that a second stream would hide only a GPU can show, so there is none.

Peaks come from the device's clocks and width of memory; FLOPS a cycle by compute capability. It is
a model, and no time was measured. Examples, forward / backward, of x (8, 256, 64, 64) -> 256,
3x3: 32768 pixels of output, 302 MB of columns in float32; 64 MiB would hold 6553 and 13107:

    pixels a chunk        float32        float16
    V100              4096 / 4096    8192 / 8192
    A100              1408 / 2048    4096 / 4096
    H100              2048 / 4096    4096 / 4096
    RTX 4090          4096 / 4096    8192 / 8192
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

from ._geometry import Geometry

LAUNCH_SECONDS = 3e-6
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = 2, 4
FORWARD_MOVES, BACKWARD_MOVES = 2, 4
TILES = ((128, 1.0), (64, 0.75))  # edge, share of the peak
# Multiply-adds a cycle and multiprocessor, by compute capability: of float32, and of the half types
# in tensor cores with sums in float32 (CUDA C++ Programming Guide; NVIDIA's architecture papers).
FLOATS = {70: 64, 75: 64, 80: 64, 86: 128, 89: 128, 90: 128, 100: 128, 120: 128}
HALVES = {70: 512, 75: 512, 80: 1024, 86: 512, 89: 512, 90: 2048, 100: 4096, 120: 512}
# cudaDeviceAttr
CLOCK_KHZ, MULTIPROCESSORS, MEMORY_KHZ, MEMORY_BITS, L2_BYTES = 13, 16, 36, 37, 38
MAJOR, MINOR = 75, 76


class Chip(NamedTuple):
    """What the model knows of a device."""

    multiprocessors: int
    l2_bytes: int
    dram: float  # bytes a second
    flops: float  # a second, of one multiprocessor


@functools.cache
def chip_of(cupy: ModuleType, device: int, itemsize: int) -> Chip | None:
    """Return what is known of a device for numbers of so many bytes; None if it does not say."""
    values = [
        cupy.cuda.runtime.deviceGetAttribute(each, device)
        for each in (CLOCK_KHZ, MEMORY_KHZ, MEMORY_BITS, L2_BYTES, MULTIPROCESSORS, MAJOR, MINOR)
    ]
    if not all(values[:6]):
        return None
    clock, memory, bits, l2_bytes, multiprocessors, major, minor = values
    table = HALVES if itemsize == 2 else FLOATS
    known = max((each for each in table if each <= 10 * major + minor), default=70)
    rate = table[known] / (2 if itemsize == 8 else 1)
    return Chip(multiprocessors, l2_bytes, 2e3 * memory * bits / 8, 2e3 * clock * rate)


@functools.lru_cache(maxsize=256)
def chunk_pixels(
    geometry: Geometry, out_channels: int, itemsize: int, most: int, backward: bool, chip: Chip
) -> int:
    """Return how many output pixels, at most ``most``, make the call shortest by the model."""
    work = geometry, out_channels, itemsize, backward, chip
    return min(sizes(geometry, most), key=lambda pixels: seconds(pixels, *work))


def sizes(geometry: Geometry, most: int) -> list[int]:
    """Return how large chunks can be, largest first: equal numbers of images, or of rows of one."""
    images, height, width = geometry.images, geometry.out_height, geometry.out_width
    whole = {-(-images // chunks) * height * width for chunks in range(1, images + 1)}
    rows = {-(-height // parts) * width for parts in range(1, height + 1)}
    found = {pixels for pixels in whole | rows if pixels <= most}
    return sorted(found, reverse=True) or [most]  # a part of a row


def seconds(
    pixels: int,
    geometry: Geometry,
    out_channels: int,
    itemsize: int,
    backward: bool,
    chip: Chip,
) -> float:
    """Return the time of a whole call by the model, of what depends on the size of its chunks."""
    groups, rows = geometry.groups, -(-out_channels // geometry.groups)
    depth = geometry.taps * geometry.group_channels
    if pixels < geometry.out_pixels:
        chunks = geometry.images * -(-geometry.out_pixels // pixels)
    else:
        chunks = -(-geometry.images // (pixels // geometry.out_pixels))
    columns = pixels * geometry.taps * geometry.channels * itemsize
    missing = min(max(2 * columns / chip.l2_bytes - 1, 0.0), 1.0)
    moves = BACKWARD_MOVES if backward else FORWARD_MOVES
    time = moves * columns * missing / chip.dram
    if backward:
        time += _product(depth, pixels, rows, groups, chip)
        weight = groups * rows * depth
        time += 2 * weight * pixels / (chip.flops * chip.multiprocessors)
        time += 2 * weight * max(itemsize, 4) / chip.dram
        time += BACKWARD_LAUNCHES * LAUNCH_SECONDS
    else:
        time += _product(rows, pixels, depth, groups, chip)
        time += FORWARD_LAUNCHES * LAUNCH_SECONDS
    return chunks * time


def _product(height: int, width: int, depth: int, groups: int, chip: Chip) -> float:
    def by(edge: int, share: float) -> float:
        tiles = groups * -(-height // edge) * -(-width // edge)
        rounds = -(-tiles // chip.multiprocessors)
        return rounds * 2 * edge * edge * depth / (share * chip.flops)

    return min(by(*tile) for tile in TILES)
