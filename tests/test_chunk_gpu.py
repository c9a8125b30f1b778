"""The model that chooses the size of chunks on a GPU: its own minimum, its limits, its examples."""

import re

import numpy as np
import pytest
from libraries import dcn

import cupy_dcn
from cupy_dcn import _chunk_gpu
from cupy_dcn._chunk_gpu import Chip, chunk_pixels, seconds
from cupy_dcn._cut import Cut
from cupy_dcn._cut_gpu import cut_chunks
from cupy_dcn._geometry import Geometry

# Public figures: multiprocessors, L2, DRAM, clock; multiply-adds a cycle in float32 and the halves.
CHIPS = {
    "V100": (80, 6 * 2**20, 900e9, 1.53e9, 64, 512),
    "A100": (108, 40 * 2**20, 1555e9, 1.41e9, 64, 1024),
    "H100": (132, 50 * 2**20, 3350e9, 1.98e9, 128, 2048),
    "RTX 4090": (128, 72 * 2**20, 1008e9, 2.52e9, 128, 512),
}


def chip(name, itemsize):
    multiprocessors, l2_bytes, dram, clock, floats, halves = CHIPS[name]
    rate = halves if itemsize == 2 else floats
    return Chip(multiprocessors, l2_bytes, dram, 2 * clock * rate)


def layer(images, channels, size, kernel=3, groups=1):
    pad = kernel // 2
    return Geometry(
        images, channels, size, size, kernel, kernel, size, size, 1, 1, pad, pad, 1, 1, groups, 1
    )


LAYERS = {
    "256 channels": (layer(8, 256, 64), 256),
    "64 channels": (layer(1, 64, 256), 64),
    "1x1": (layer(8, 512, 28, 1), 256),
    "groups": (layer(4, 64, 96, groups=8), 64),
    "tiny": (layer(1, 3, 5), 2),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("about", LAYERS)
def test_no_other_size_is_better(about, name, itemsize, backward):
    geometry, out_channels = LAYERS[about]
    work = geometry, out_channels, itemsize, backward, chip(name, itemsize)
    most = min(2**26 // (itemsize * (geometry.taps * geometry.channels + out_channels)),
               geometry.images * geometry.out_pixels)  # fmt: skip
    found = chunk_pixels(geometry, out_channels, itemsize, most, backward, work[-1])
    assert 0 < found <= most
    # What chunks can be, by way of the cut: whole images, or rows of one.
    others = set()
    for pixels in range(geometry.out_width, most + 1, geometry.out_width):
        cut = Cut(geometry, geometry.images, None, pixels, 1, 0, 0)
        others |= {max(tile.pixels for tile in cut.tiles(slice(0, geometry.images)))}
    assert found in others
    assert seconds(found, *work) == min(seconds(pixels, *work) for pixels in others)


def test_extremes():
    geometry, out_channels = LAYERS["256 channels"]
    slow_memory = Chip(132, 50 * 2**20, 1e9, 5e11)
    columns = chunk_pixels(geometry, out_channels, 4, 6553, False, slow_memory) * 9 * 256 * 4
    assert columns <= 25 * 2**20  # all that matters is to stay in the cache
    fast_memory = Chip(132, 50 * 2**20, 1e18, 5e11)
    assert chunk_pixels(geometry, out_channels, 4, 6553, False, fast_memory) >= 4096  # a round


def test_worked_examples():
    geometry, out_channels = LAYERS["256 channels"]
    for name in CHIPS:
        row = re.search(rf"{name} +(\d+) / (\d+) +(\d+) / (\d+)", _chunk_gpu.__doc__)
        found = []
        for itemsize in (4, 2):
            most = 2**26 // (itemsize * 10 * 256)
            for backward in (False, True):
                known = chip(name, itemsize)
                found.append(chunk_pixels(geometry, out_channels, itemsize, most, backward, known))
        assert [int(value) for value in row.groups()] == found


def test_chunks_are_of_that_size():
    geometry, out_channels = LAYERS["256 channels"]
    known = chip("H100", 4)
    whole = cut_chunks(geometry, out_channels, 4, 4, 2**26, False)
    cut = cut_chunks(geometry, out_channels, 4, 4, 2**26, False, known)
    assert cut.tile_pixels == 2048 < whole.tile_pixels
    tiles = [tile for images in cut.image_groups() for tile in cut.tiles(images)]
    assert {tile.pixels for tile in tiles} == {2048}
    assert sum(tile.pixels for tile in tiles) == geometry.images * geometry.out_pixels


def test_a_budget_overrides_the_model():
    """Rehearsed on the stand-in: what a device says is asked for, and a given budget is used."""
    emulated_cupy = pytest.importorskip("emulated_cupy")
    x, offset = np.zeros((2, 64, 128, 128), "f4"), np.zeros((2, 18, 128, 128), "f4")
    weight = np.zeros((64, 64, 3, 3), "f4")

    def chunks(memory_khz, **settings):
        _chunk_gpu.chip_of.cache_clear()
        with (
            emulated_cupy.configure(execute=False, memory_khz=memory_khz),
            dcn.running_on("emulated"),
            emulated_cupy.recorded() as log,
        ):
            inputs = map(dcn.array_module.asarray, (x, offset, weight))
            cupy_dcn.deform_conv2d(*inputs, padding=1, **settings)
        _chunk_gpu.chip_of.cache_clear()
        return [launch.name for launch in log.launches].count("deform_im2col")

    whole = chunks(100_000, workspace_bytes=2**26)
    assert chunks(100_000) > whole  # slow memory: columns stay in the L2
    assert chunks(0) == whole  # a driver that does not say how fast it is
