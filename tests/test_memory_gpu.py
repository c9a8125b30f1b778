"""Temporary memory on a GPU: what a call takes from the allocator, beside what the docstrings say.

Rehearsed on the stand-in, which allocates, launches and frees as CuPy does and computes nothing, so
that batches of 64 and images of 4096 x 4096 pixels take less than a second: of all chunks, which
use the same memory one after the other, the first and the last. The rest beside the budget is: the
copies of one image, as far as they take more than half of it; the weight's copies; 1 MiB.
"""

import itertools
import math

import numpy as np
import pytest
from cases import Case
from emulated_cupy import configure, recorded
from libraries import dcn
from test_gpu import Meter

import cupy_dcn
from cupy_dcn._arguments import GRADIENTS
from cupy_dcn._cut import Parts, Tiles
from cupy_dcn._geometry import Geometry
from cupy_dcn._specialisation import copy_channels

MIB = 2**20
PAD = (1, 1, 1, 1)


def layer(images, channels, size, out_channels, **more):
    return Case(images, channels, size, out_channels, (3, 3), padding=PAD, **more)


# Shapes and dtypes: large batches, large images, large weights; each kind of kernel.
LAYERS = {
    "1 image": (layer(1, 64, (56, 56), 64), np.float32),
    "64 images": (layer(64, 64, (56, 56), 64), np.float32),
    "64 images of half precision": (layer(64, 48, (40, 41), 30, groups=3), np.float16),
    "a photograph": (layer(2, 3, (4096, 4096), 2), np.float32),
    "64 photographs": (layer(64, 3, (600, 800), 2, masked=False), np.float32),
    "3 channels": (layer(2, 3, (600, 500), 17), np.float32),
    "a large image": (layer(1, 32, (4096, 4096), 4), np.float16),
    "a long image": (layer(2, 1, (3, 10**6), 2), np.float64),
    "1024 channels": (layer(64, 1024, (14, 14), 1024), np.float32),
    "1024 halves": (layer(3, 1024, (14, 14), 1024), np.float16),
    "ordered points": (layer(4, 64, (700, 700), 16, deformable_groups=2), np.float32),
    "too many cells": (layer(2, 64, (2100, 2100), 2), np.float32),
    "depthwise": (layer(64, 64, (112, 112), 64, groups=64), np.float32),
    "a large depthwise image": (layer(1, 24, (4096, 4096), 24, groups=24), np.float16),
}


@pytest.fixture(autouse=True, scope="module")
def cupy():
    with dcn.running_on("emulated"), configure(execute=False, total_memory=2**44):
        yield dcn.array_module


@pytest.fixture(autouse=True)
def first_and_last(monkeypatch):
    """Leave out the groups of images and the tiles between the first and the last of them."""

    def ends(parts):
        return iter([parts[at] for at in sorted({0, len(parts) - 1}) if len(parts)])

    monkeypatch.setattr(Parts, "__iter__", ends)
    monkeypatch.setattr(Tiles, "__iter__", ends)


def arrays(case, dtype):
    """Return arrays of a case's shapes that nobody fills."""
    taps = 9 * case.deformable_groups
    shapes = {
        "x": (case.images, case.channels, *case.size),
        "offset": (case.images, 2 * taps, *case.size),
        "weight": (case.out_channels, case.channels // case.groups, 3, 3),
        "mask": (case.images, taps, *case.size),
        "grad_output": (case.images, case.out_channels, *case.size),
    }
    found = {name: dcn.array_module.empty(shape, dtype) for name, shape in shapes.items()}
    if not case.masked:
        found["mask"] = None
    return found


def temporary(function, *args, **more):
    """Return the peak of memory of a call less its results, and the kernels launched."""
    meter = Meter(dcn.array_module)
    with dcn.array_module.cuda.using_allocator(meter), recorded() as log:
        results = function(*args, **more)
    given = results if isinstance(results, tuple) else (results,)
    held = sum(-(-array.nbytes // 512) * 512 for array in given if array is not None)
    assert meter.used == held
    return meter.peak - held, {launch.name for launch in log.launches}


def image_bytes(case, dtype, copies, sums):
    """What an image's copies and the sums of its gradient take."""
    height, width = case.size
    itemsize, wide = np.dtype(dtype).itemsize, max(np.dtype(dtype).itemsize, 4)
    geometry = Geometry(
        1, case.channels, *case.size, 3, 3, *case.size, 1, 1, 1, 1, 1, 1, case.groups,
        case.deformable_groups,
    )  # fmt: skip
    cells = (height + 3) * (width + 1) * copy_channels(geometry, itemsize)
    return cells * (itemsize * copies + wide * sums)


def limit(budget, image, weight_copies):
    budget = 64 * MIB if budget is None else budget
    return budget + max(image - budget // 2, 0) + weight_copies + MIB


NEEDS = [
    *[(name,) for name in GRADIENTS], *itertools.combinations(("x", "offset", "weight"), 2),
    ("offset", "mask"), GRADIENTS,
]  # fmt: skip


# The others are measured by `make test-memory`.
FEW = ["64 images of half precision", "a large image", "ordered points", "a large depthwise image"]
SIZES = [
    pytest.param(name, budget, marks=[] if name in FEW and budget is None else pytest.mark.memory)
    for name in LAYERS
    for budget in (None, 8 * MIB)
]


@pytest.mark.parametrize(("name", "budget"), SIZES)
def test_memory_of_a_call(name, budget):
    case, dtype = LAYERS[name]
    given = arrays(case, dtype)
    grad_output, weight = given.pop("grad_output"), given["weight"]
    settings = {**case.attributes, "workspace_bytes": budget}
    used, launched = temporary(cupy_dcn.deform_conv2d, **given, **settings)
    assert used <= limit(budget, image_bytes(case, dtype, 1, 0), weight.nbytes)
    if "depthwise" in name:
        assert "deform_direct" in launched
    wide = weight.size * max(weight.itemsize, 4)
    for needs in NEEDS:
        call = {**given, **settings, "needs": needs}
        used, launched = temporary(cupy_dcn.deform_conv2d_backward, grad_output, **call)
        image = image_bytes(case, dtype, needs != ("x",), "x" in needs)
        # As the products take it, and the sums of its gradient.
        copies = weight.nbytes + wide * ("weight" in needs)
        assert used <= limit(budget, image, copies), needs
        sorts = "deform_backward_sorted" in launched
        if name == "ordered points" and budget is None:
            assert sorts == ("x" in needs and len(needs) > 1)
        if name == "too many cells":
            assert not sorts


SOME = [
    pytest.param(name, marks=marks)
    for name, marks in (
        ("64 images", pytest.mark.memory), ("a photograph", []), ("depthwise", pytest.mark.memory),
        ("1024 halves", pytest.mark.memory),
    )
]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_memory_of_a_plan(name):
    case, dtype = LAYERS[name]
    given = arrays(case, dtype)
    weight, inputs = given["weight"], [given[each] for each in ("x", "offset", "mask")]
    meter = Meter(dcn.array_module)
    with dcn.array_module.cuda.using_allocator(meter):
        plan = cupy_dcn.Plan(inputs[0].shape, weight, **case.attributes, backward=True)
        image = image_bytes(case, dtype, 1, 1)
        copies = weight.nbytes + weight.size * max(weight.itemsize, 4)
        assert plan.nbytes <= meter.used <= limit(None, image, copies)
        out = plan(*inputs)
        grads = plan.backward(given["grad_output"], *inputs)
        held = meter.used
        plan(*inputs, out=out)
        plan.backward(given["grad_output"], *inputs, out=grads)
        assert meter.peak == held == meter.used
        results = sum(each.nbytes for each in (out, *grads) if each is not None)
        assert held <= limit(None, image, copies) + results


@pytest.mark.memory
@pytest.mark.parametrize("budget", [None, 8 * MIB])
@pytest.mark.parametrize("name", ["64 images", "a photograph", "1024 halves", "a long image"])
def test_memory_of_the_stages(name, budget):
    case, dtype = LAYERS[name]
    given = arrays(case, dtype)
    x, offset, mask = (given[each] for each in ("x", "offset", "mask"))
    shape = case.images, case.groups, math.prod(case.size), 9, case.channels // case.groups
    columns = dcn.array_module.empty(shape, dtype)
    more = {"padding": 1, "mask": mask, "workspace_bytes": budget}
    for function, arguments, copies in (
        (cupy_dcn.deform_im2col, (x, offset, 3), (1, 0)),
        (cupy_dcn.deform_col2im, (columns, offset, case.size, 3), (1, 1)),
        (cupy_dcn.deform_coord_grad, (columns, x, offset, 3), (1, 1)),
    ):
        extra = {"groups": case.groups} if function is cupy_dcn.deform_im2col else {}
        used, _ = temporary(function, *arguments, **more, **extra)
        assert used <= limit(budget, image_bytes(case, dtype, *copies), 0)


@pytest.mark.parametrize("name", SOME)
def test_memory_does_not_grow_with_the_batch(name):
    case, dtype = LAYERS[name]
    peaks = []
    for images in (16, 64):
        batch = layer(images, case.channels, case.size, case.out_channels, groups=case.groups)
        given = arrays(batch, dtype)
        grad_output = given.pop("grad_output")
        peaks.append(
            (
                temporary(cupy_dcn.deform_conv2d, **given, **batch.attributes)[0],
                temporary(
                    cupy_dcn.deform_conv2d_backward, grad_output, **given, **batch.attributes
                )[0],
            )
        )
    for few, many in zip(*peaks, strict=True):
        assert many <= max(1.01 * few, 65 * MIB)
