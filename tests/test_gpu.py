"""The host's side of a GPU call: what it asks of the device, in which memory, on which stream.

The stand-in for CuPy logs every launch, product, copy, allocation and wait; these tests read that
log. Numbers are compared with the NumPy path, which other tests hold against the oracle. The last
part plants faults in the kernels and demands that the emulator or a comparison notices.
"""

import contextlib
import functools
import itertools
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, Case, assert_close, least_workspace
from directions import Direction
from emulated_cupy import configure, recorded
from emulator import Crime
from libraries import dcn, libraries

import cupy_dcn
from cupy_dcn import Tangents, _cut_gpu, _gpu, _kernels, _launch_gpu, _matmul_gpu, _oracle
from cupy_dcn._geometry import Geometry
from cupy_dcn._specialisation import (
    Wants,
    copy_channels,
    lane_count,
    sampling_macros,
    transpose_macros,
)

BFLOAT16 = ml_dtypes.bfloat16
# What results in a dtype may differ by from float64's, as a share of the largest.
NOISE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 2e-2, BFLOAT16: 1e-1}
DTYPES = list(NOISE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
# The kernels of a forward and a backward of all gradients.
WHOLE = {"to_channels_last", "deform_im2col", "deform_backward", "from_channels_last"}
# Two images, two groups, three deformable groups, all sizes different; and a plain layer.
# More than 16 output channels a group, or there would be no columns (_direct_gpu.py).
SMALL = Case(
    2, 6, (7, 8), 4, (3, 2), (2, 1), (1, 1, 0, 0), deformable_groups=3, groups=2
)  # fmt: skip
PLAIN = Case(3, 4, (5, 6), 17, (3, 3), padding=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def cupy():
    with dcn.running_on("emulated"):
        yield dcn.array_module


@pytest.fixture(scope="module", params=libraries()[1:])
def device(request):
    """The stand-in and, where there is a GPU, CuPy: for tests of numbers, which read no log."""
    with dcn.running_on(request.param):
        yield dcn.array_module


@pytest.fixture
def own_kernels(monkeypatch):
    """A process that has compiled nothing yet."""
    monkeypatch.setattr(_kernels, "_compiled", {})


class Inputs:
    """The arrays of a case on the device, and its two calls."""

    def __init__(self, case, dtype=np.float32, **changes):
        self.case = case
        names = ("x", "offset", "weight", "bias", "mask", "grad_output")
        self.host = dict(zip(names, case.arrays(dtype), strict=True)) | changes
        self.device = {
            name: None if array is None else dcn.to_device(array)
            for name, array in self.host.items()
        }

    def forward(self, **more):
        return self._call(cupy_dcn.deform_conv2d, GRADIENTS, more)

    def backward(self, **more):
        return self._call(cupy_dcn.deform_conv2d_backward, ("grad_output", *GRADIENTS), more)

    def _call(self, function, names, more):
        arrays = {name: self.device[name] for name in names}
        return function(**{**arrays, **self.case.attributes, **more})

    def expected(self):
        """Return the output and the gradients by the NumPy path, in float64."""
        wide = {
            name: None if array is None else array.astype(np.float64)
            for name, array in self.host.items()
        }
        grad_output = wide.pop("grad_output")
        y = cupy_dcn.deform_conv2d(**wide, **self.case.attributes)
        return y, cupy_dcn.deform_conv2d_backward(grad_output, **wide, **self.case.attributes)


def on_host(array):
    return None if array is None else dcn.array_module.asnumpy(array)


def assert_right(inputs, relative, **more):
    """Compare forward and backward with the NumPy path."""
    y, gradients = inputs.expected()
    ours = [inputs.forward(**more), *inputs.backward(**more)]
    for one, reference in zip(ours, (y, *gradients), strict=True):
        assert (one is None) == (reference is None)
        if reference is not None:
            assert_close(on_host(one).astype(np.float64), reference, relative)


def names_of(entries):
    return [entry.name for entry in entries]


def assert_no_waiting(log):
    assert not log.synchronisations
    assert not log.transfers


# What a call asks of the device


@each_dtype
@pytest.mark.parametrize("case", [SMALL, PLAIN], ids=str)
def test_a_forward_is_a_handful_of_launches(cupy, case, dtype):
    inputs = Inputs(case, dtype)
    inputs.forward()
    with recorded() as log:
        y = inputs.forward()
    assert_no_waiting(log)
    assert names_of(log.launches) == ["to_channels_last", "deform_im2col"]
    # The weight, channels last, and the bias, spread out over the output.
    assert [(e.name, e.bytes_written) for e in log.operations] == [
        ("cupy_copy", inputs.host["weight"].nbytes), ("cupy_copy", y.nbytes)
    ]  # fmt: skip
    assert len(log.products) == min(case.images, case.groups)
    assert len(log.launches) + len(log.operations) + len(log.products) == 4 + min(2, case.groups)
    # The output, the weight's copy, and one block for everything else.
    assert len(log.allocations) == 3
    assert log.entries[-1] is log.products[-1]  # it writes NCHW: nothing is left to do


@each_dtype
@pytest.mark.parametrize("case", [SMALL, PLAIN], ids=str)
def test_a_backward_is_a_handful_of_launches(cupy, case, dtype):
    inputs = Inputs(case, dtype)
    inputs.backward()
    with recorded() as log:
        inputs.backward()
    assert_no_waiting(log)
    assert names_of(log.launches) == ["to_channels_last", "deform_backward", "from_channels_last"]
    weight, bias = inputs.host["weight"], inputs.host["bias"]
    sums = case.images * (case.size[0] + 3) * (case.size[1] + 1) * case.channels
    written = [(entry.name, entry.bytes_written) for entry in log.operations]
    sum_size = 8 if dtype is np.float64 else 4
    # In double the copy of grad_output that makes one product of all images is the smaller evil.
    together = case is PLAIN and dtype is np.float64
    assert written == [
        ("cupy_copy", weight.nbytes), ("memset", sums * sum_size),
        *[("cupy_copy", inputs.host["grad_output"].nbytes)] * together,
        ("cupy_copy", weight.nbytes), ("cupy_sum", bias.nbytes),
    ]  # fmt: skip
    # Gradients of the columns for all images at once, those of the weight image by image.
    products = min(case.images, case.groups) + (1 if together else case.images)
    assert len(log.products) == products
    assert len(log.launches) + len(log.operations) + products == 7 + together + products <= 13
    # Five results, the weight's copy, and one block.
    assert len(log.allocations) == 7


@pytest.mark.parametrize("held", [False, True], ids=["function", "plan"])
def test_a_small_call_is_few_launches(cupy, held):
    # Of kernels, of CuPy's own operations and of cuBLAS: each is some microseconds for the host.
    inputs = Inputs(Case(1, 16, (16, 16), 16, (3, 3), padding=(1, 1, 1, 1)))
    device, attributes = inputs.device, inputs.case.attributes
    sampled = device["x"], device["offset"], device["mask"]
    plan = cupy_dcn.Plan(
        device["x"].shape, device["weight"], device["bias"], **attributes, backward=True
    )
    forward, backward = inputs.forward, inputs.backward
    if held:
        forward = functools.partial(plan, *sampled)
        backward = functools.partial(plan.backward, device["grad_output"], *sampled)
    counts = []
    for call in (forward, backward):
        with recorded() as log:
            call()
        assert log.products
        counts.append(len(log.launches) + len(log.operations) + len(log.products))
    # A plan has the weight in its layout.
    assert counts == ([4, 8] if held else [5, 9])
    assert counts[0] <= 8
    assert counts[1] <= 16


def test_launches_are_prepared_once(cupy, monkeypatch):
    inputs = Inputs(SMALL)
    inputs.forward()
    inputs.backward()
    prepared = []
    for name in ("sampling_macros", "transpose_macros", "launch_geometry"):
        monkeypatch.setattr(_launch_gpu, name, lambda *args, **more: prepared.append(args))
    inputs.forward()
    inputs.backward()
    assert not prepared


def test_only_what_is_needed_is_worked_for(cupy):
    inputs = Inputs(PLAIN)
    launches = {}
    for needs in [(), *((name,) for name in GRADIENTS)]:
        with recorded() as log:
            inputs.backward(needs=needs)
        assert_no_waiting(log)
        launches[needs] = names_of(log.launches)
    sampled = ["to_channels_last", "deform_coord_grad"]
    assert launches == {
        (): [], ("x",): ["deform_col2im", "from_channels_last"], ("offset",): sampled,
        ("mask",): sampled, ("weight",): ["to_channels_last", "deform_im2col"], ("bias",): [],
    }  # fmt: skip


def test_two_gradients_are_one_pass(cupy, own_kernels):
    inputs = Inputs(PLAIN)
    pairs = {
        ("x", "offset"): (1, 1, 0, 0), ("x", "mask"): (1, 0, 1, 0), ("x", "weight"): (1, 0, 0, 1),
        ("offset", "weight"): (0, 1, 0, 1), ("mask", "weight"): (0, 0, 1, 1),
        GRADIENTS: (1, 1, 1, 1),
    }  # fmt: skip
    for needs, wants in pairs.items():
        with recorded() as log:
            inputs.backward(needs=needs)
        assert_no_waiting(log)
        written = ["from_channels_last"] * ("x" in needs)
        assert names_of(log.launches) == ["to_channels_last", "deform_backward", *written]
        made = [m for name, m in _kernels.compiled() if name == "deform_backward"]
        assert wants in {(m.grad_x, m.grad_offset, m.grad_mask, m.columns) for m in made}
        # Gradients of the columns, and where the weight's is wanted one product an image.
        assert len(log.products) == 1 + PLAIN.images * ("weight" in needs)
    assert len(made) == len(pairs)
    # Offset and mask come from the same dots.
    with recorded() as log:
        inputs.backward(needs=("offset", "mask"))
    assert names_of(log.launches) == ["to_channels_last", "deform_coord_grad"]


@pytest.mark.parametrize("channels", [4, 8])
def test_the_stages_wait_for_nothing_and_copy_columns_of_few_channels_alone(cupy, channels):
    case = replace(PLAIN, channels=channels)
    x, offset, _, _, mask, _ = map(dcn.to_device, case.arrays(np.float32))
    attributes = {"padding": 1, "mask": mask}
    with recorded() as log:
        columns = cupy_dcn.deform_im2col(x, offset, 3, **attributes)
        cupy_dcn.deform_col2im(columns, offset, case.size, 3, **attributes)
        cupy_dcn.deform_coord_grad(columns, x, offset, 3, **attributes)
    assert_no_waiting(log)
    assert names_of(log.launches) == [
        "to_channels_last", "deform_im2col", "deform_col2im", "from_channels_last",
        "to_channels_last", "deform_coord_grad",
    ]  # fmt: skip
    # The kernels have few channels as planes of pixels: a copy for each stage.
    copied = [("cupy_copy", columns.nbytes)] * 3 if channels == 4 else []
    written = [(entry.name, entry.bytes_written) for entry in log.operations]
    assert [each for each in written if each[0] != "memset"] == copied
    assert names_of(log.operations).count("memset") == 1
    assert not log.products


# Deformable groups, and groups whose edges lie within them; more taps than are held at once.
ANY_NEEDS = [
    SMALL,
    Case(2, 12, (4, 5), 6, (3, 3), padding=(1, 1, 1, 1), deformable_groups=2, groups=3),
    Case(1, 16, (4, 5), 4, (3, 3), padding=(1, 1, 1, 1), groups=2),
    Case(1, 16, (4, 5), 2, (4, 3), padding=(2, 1, 1, 1), deformable_groups=2),
    Case(1, 64, (3, 4), 2, (2, 2), padding=(1, 0, 1, 0), deformable_groups=2),
    Case(1, 48, (3, 4), 2, (2, 2), padding=(1, 0, 1, 0)),
]


def test_layers_of_any_needs_are_of_all_kinds(cupy, own_kernels):
    for case in ANY_NEEDS:
        Inputs(case).backward()
    one_pass = {"deform_backward", "deform_backward_sorted"}
    made = [macros for name, macros in _kernels.compiled() if name in one_pass]
    assert len(made) == len(ANY_NEEDS)
    cut = {(m.channels // m.groups) % (m.channels // m.deformable_groups) != 0 for m in made}
    parts = {m.rows_at_once < m.kernel_height for m in made}
    padded = {m.channels // m.deformable_groups % m.vector != 0 for m in made}
    assert cut == parts == padded == {False, True}
    assert {m.lanes for m in made} == {1, 2, 4, 8}
    assert max(m.deformable_groups for m in made) > 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("masks", ["finite", "broken", "broken outside"])
@pytest.mark.parametrize("case", ANY_NEEDS, ids=str)
def test_any_needs_give_the_same(device, case, masks, dtype):
    _, offset, _, _, mask, _ = case.arrays(dtype)
    far = np.random.default_rng(3).random(mask.shape) < 0.2  # 50 pixels away from the image
    shift = np.repeat(far, 2, axis=1) * dtype(50)
    if masks != "finite":
        # Few, or there is not a number left in the weight's gradient to compare.
        chosen = np.random.default_rng(4).permutation(np.flatnonzero(far))[:2]
        if masks == "broken":
            chosen = np.append(chosen[:1], np.flatnonzero(~far)[::97])
        mask.flat[chosen] = np.resize(np.array([np.nan, np.inf], dtype), chosen.shape)
    inputs = Inputs(case, dtype, offset=offset + shift, mask=mask)
    host = {k: v.astype(np.float64) for k, v in inputs.host.items()}
    with np.errstate(all="ignore"):
        found = _oracle.backward(
            *(host[name] for name in ("grad_output", "x", "offset", "weight")),
            *case.sampling[1:], case.groups, host["mask"],
        )  # fmt: skip
    expected = dict(zip(("x", "offset", "weight", "bias", "mask"), found, strict=True))
    assert np.isfinite(expected["weight"]).any()
    assert np.isfinite(expected["weight"]).all() == (masks == "finite")
    whole = {name: on_host(each) for name, each in zip(GRADIENTS, inputs.backward(), strict=True)}
    for name, each in whole.items():
        assert agree(each, expected[name], NOISE[dtype]), name
    parts = ("x",), ("offset",), ("mask",), ("offset", "mask"), ("weight",)
    for count in range(4 if case is SMALL else 3):  # each set is a kernel to compile
        for chosen in itertools.combinations(parts, count):
            needs = tuple(dict.fromkeys(itertools.chain(*chosen)))
            found = inputs.backward(needs=needs)
            for name, each in zip(GRADIENTS, found, strict=True):
                assert (each is None) == (name not in needs)
                if each is not None:
                    # Sums of other roundings, and of halves: those of the columns.
                    limit = NOISE[dtype] / 4
                    assert agree(on_host(each), whole[name].astype(np.float64), limit), needs


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_an_empty_batch_launches_nothing(cupy, function):
    case = Case(0, 4, (5, 6), 2, (3, 3), padding=(1, 1, 1, 1))
    inputs = Inputs(case)
    with recorded() as log:
        results = getattr(inputs, function)()
    assert not log.launches
    assert not log.products
    assert_no_waiting(log)
    if function == "forward":
        assert results.shape == (0, 2, 5, 6)
    else:
        assert results.x.shape == (0, 4, 5, 6)
        assert not on_host(results.weight).any()
        assert not on_host(results.bias).any()


# Products


CUDA_TYPES = {
    np.float64: "CUDA_R_64F", np.float32: "CUDA_R_32F", np.float16: "CUDA_R_16F",
    BFLOAT16: "CUDA_R_16BF",
}  # fmt: skip


@each_dtype
@pytest.mark.parametrize("channels", [4, 16])
def test_products_read_and_write_in_place(cupy, channels, dtype):
    # Images are the batch; the weight is read once for all of them (a stride of 0).
    inputs, size = Inputs(replace(PLAIN, channels=channels), dtype), np.dtype(dtype).itemsize
    pixels, depth, out = 5 * 6, 9 * channels, PLAIN.out_channels
    planar = channels * size <= 16  # the columns lie in memory as their transpose
    for bias in (None, inputs.device["bias"]):
        with recorded() as log:
            inputs.forward(bias=bias)
        (product,) = log.products
        beta = int(bias is not None)
        assert (product.transa, product.transb) == (int(not planar), 0)
        assert (product.m, product.n, product.k, product.batch) == (pixels, out, depth, 3)
        assert (product.alpha, product.beta) == (1, beta)
        assert product.bytes_written == 3 * pixels * out * size
        assert product.bytes_read == (3 * pixels * depth + depth * out) * size + (
            beta * product.bytes_written
        )
    with recorded() as log:
        inputs.backward()
    columns, *weights = log.products
    assert (columns.transa, columns.transb, columns.beta) == (0, 1, 0)
    # Sums of the weight's gradient are large beside so few pixels: all images are one product.
    together = not planar and 9 * channels * max(size, 4) > pixels * size
    assert together == (channels == 16 or size == 8)
    images = 3 if together else 1
    sizes = (pixels, depth) if planar else (depth, pixels)
    assert (columns.m, columns.n, columns.k, columns.batch) == (*sizes, out, 3)
    assert columns.bytes_read == (3 * pixels * out + depth * out) * size
    assert [(p.transa, p.transb, p.beta, p.batch) for p in weights] == [
        (int(planar), 0, beta, 1) for beta in ((0,) if together else (0, 1, 1))
    ]
    assert {(p.m, p.n, p.k) for p in weights} == {(depth, out, images * pixels)}
    kind = CUDA_TYPES[dtype]
    assert {(p.a_type, p.b_type) for p in log.products} == {(kind, kind)}
    assert columns.c_type == kind
    wide = "CUDA_R_64F" if dtype is np.float64 else "CUDA_R_32F"
    assert {p.c_type for p in weights} == {wide}


@pytest.fixture
def compute_types(cupy):
    """CuPy's choice of how products are computed, put back in the end."""
    before = {dtype: cupy._core.get_compute_type(dtype) for dtype in DTYPES}
    yield cupy._core.set_compute_type
    for dtype, chosen in before.items():
        cupy._core.set_compute_type(dtype, chosen)


def computed_in(dtype):
    inputs = Inputs(PLAIN, dtype)
    with recorded() as log:
        inputs.forward()
        inputs.backward()
    (found,) = {product.compute_type for product in log.products}
    return found.removeprefix("CUBLAS_COMPUTE_")


def test_products_are_computed_in_what_cupy_asks_for(compute_types, monkeypatch):
    plain = {np.float64: "64F", np.float32: "32F", np.float16: "32F", BFLOAT16: "32F"}
    monkeypatch.delenv("CUPY_TF32", raising=False)
    for chosen in (0, 1):  # not chosen yet, and the default
        for dtype in DTYPES:
            compute_types(dtype, chosen)
        assert {dtype: computed_in(dtype) for dtype in DTYPES} == plain
    for dtype in DTYPES:
        compute_types(dtype, 2)
    pedantic = {dtype: f"{name}_PEDANTIC" for dtype, name in plain.items()}
    assert {dtype: computed_in(dtype) for dtype in DTYPES} == pedantic
    # Nothing but float32 has a TF32, and no half type is ever summed in halves.
    for dtype in DTYPES:
        compute_types(dtype, 7)
    assert {dtype: computed_in(dtype) for dtype in DTYPES} == {**plain, np.float32: "32F_FAST_TF32"}
    for dtype in (np.float16, BFLOAT16):
        compute_types(dtype, 3)
        assert computed_in(dtype) == "32F"


@pytest.mark.parametrize(("value", "expected"), [("1", "32F_FAST_TF32"), ("0", "32F")])
def test_tf32_by_the_environment(compute_types, monkeypatch, value, expected):
    monkeypatch.setenv("CUPY_TF32", value)
    for dtype in DTYPES:
        compute_types(dtype, 0)
    assert computed_in(np.float32) == expected
    assert computed_in(np.float64) == "64F"
    assert computed_in(np.float16) == "32F"


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
def test_half_types_are_summed_in_float32(device, dtype):
    # A large number and 40 ones: a sum in the half type would stay at the large number.
    large = 2048 if dtype is np.float16 else 256
    assert dtype(large) + dtype(1) == large
    values = np.full((41, 1, 1, 1), 1)
    values[0] = large
    case = Case(41, 1, (1, 1), 1, (1, 1), masked=False)
    ones = np.ones((41, 1, 1, 1), dtype)
    inputs = Inputs(
        case, dtype, x=ones, grad_output=values.astype(dtype), offset=np.zeros((41, 2, 1, 1), dtype)
    )  # fmt: skip
    least = least_workspace(inputs.backward)
    for budget in (None, least):  # all images at once, and one by one
        gradients = inputs.backward(workspace_bytes=budget)
        assert on_host(gradients.weight).item() == large + 40
        assert on_host(gradients.bias).item() == large + 40
    # The same along one image, whose pixels all look at its first one.
    flat = values.reshape(1, 1, 1, 41).astype(dtype)
    offset = np.zeros((1, 2, 1, 41), dtype)
    offset[0, 1, 0] = -np.arange(41)
    inputs = Inputs(
        Case(1, 1, (1, 41), 1, (1, 1), masked=False), dtype, x=np.ones_like(flat),
        weight=np.ones((1, 1, 1, 1), dtype), grad_output=flat, offset=offset,
    )  # fmt: skip
    for budget in (None, least):
        gradients = inputs.backward(workspace_bytes=budget)
        np.testing.assert_array_equal(on_host(gradients.x).ravel(), [large + 40, *[0] * 40])
        assert on_host(gradients.weight).item() == large + 40


# Streams and devices


def places(log):
    """The device and stream of everything asked for."""
    entries = [*log.launches, *log.products, *log.operations]
    assert entries
    return {(entry.device, entry.stream) for entry in entries}


def test_everything_goes_to_the_current_stream(cupy):
    inputs, stream = Inputs(SMALL), cupy.cuda.Stream(non_blocking=True)
    assert stream.ptr != 0
    for current in (stream, cupy.cuda.Stream.null):
        with current, recorded() as log:
            inputs.forward()
            inputs.backward()
            assert cupy.cuda.get_current_stream() == current
        assert places(log) == {(0, current.ptr)}


def test_the_arrays_device_is_used_and_the_callers_given_back(cupy):
    with cupy.cuda.Device(1):
        inputs, stream = Inputs(SMALL), cupy.cuda.Stream()
    with cupy.cuda.Device(1), stream, cupy.cuda.Device(0), recorded() as log:
        y = inputs.forward()
        gradients = inputs.backward()
        assert cupy.cuda.runtime.getDevice() == 0
        assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    assert places(log) == {(1, stream.ptr)}
    assert {entry.device for entry in log.allocations} == {1}
    assert {array.device.id for array in (y, *gradients)} == {1}
    expected, _ = inputs.expected()
    assert_close(on_host(y).astype(np.float64), expected, NOISE[np.float32])


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_running_out_of_memory_leaves_no_trace(cupy, function):
    with cupy.cuda.Device(1):
        inputs, pool = Inputs(SMALL), cupy.cuda.MemoryPool()
    with recorded() as log:
        getattr(inputs, function)()
    count = len(log.allocations)
    assert count >= 3
    for after in range(count):
        given = []

        def allocate(nbytes, after=after, given=given):
            if len(given) == after:
                raise cupy.cuda.memory.OutOfMemoryError(nbytes, 0)
            given.append(nbytes)
            return pool.malloc(nbytes)

        with cupy.cuda.using_allocator(allocate), contextlib.suppress(MemoryError):
            getattr(inputs, function)()
            pytest.fail(f"{count} allocations were made, {after} sufficed")
        assert len(given) == after
        assert cupy.cuda.runtime.getDevice() == 0
        assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
        with cupy.cuda.Device(1):
            assert pool.used_bytes() == 0
    assert_right(inputs, NOISE[np.float32])


# Memory


class Meter:
    """An allocator that knows the most that was in use at a time."""

    def __init__(self, cupy):
        self._pool, self.peak, self.count = cupy.cuda.MemoryPool(), 0, 0

    def __call__(self, nbytes):
        memory = self._pool.malloc(nbytes)
        self.peak, self.count = max(self.peak, self.used), self.count + 1
        return memory

    @property
    def used(self):
        return self._pool.used_bytes()


def test_all_memory_is_from_the_current_allocator(cupy):
    inputs = Inputs(SMALL)
    for function in (inputs.forward, inputs.backward):
        meter = Meter(cupy)
        with cupy.cuda.using_allocator(meter), recorded() as log:
            results = function()
        assert meter.count == len(log.allocations) > 0
        assert meter.used > 0
        del results
        assert meter.used == 0
        before, meter = cupy.cuda.get_allocator(), Meter(cupy)
        cupy.cuda.set_allocator(meter)
        try:
            function()
        finally:
            cupy.cuda.set_allocator(before)
        assert (meter.count, meter.used) == (len(log.allocations), 0)


def temporary_bytes(cupy, function, **more):
    """Return the results of a call and its peak of memory beside them."""
    meter = Meter(cupy)
    with cupy.cuda.using_allocator(meter):
        results = function(**more)
    arrays = results if isinstance(results, tuple) else (results,)
    held = sum(-(-array.nbytes // 512) * 512 for array in arrays if array is not None)
    assert meter.used == held  # nothing of the rest outlives the call
    return [on_host(array) for array in arrays if array is not None], meter.peak - held


def layer(images, channels, size, out_channels=17):
    return Case(images, channels, size, out_channels, (3, 3), padding=(1, 1, 1, 1))


# Layers, and chunks of so many output pixels: parts of a row, rows, an image, several images.
CHUNKED = [
    (layer(1, 4, (2, 3)), (1,)),
    (layer(1, 4, (6, 7)), (4, 14, 42)),
    (layer(4, 8, (9, 5)), (15, 45, 100)),
    (layer(16, 4, (4, 4)), (16, 64)),
    (layer(64, 2, (3, 3)), (20, 300)),
    (layer(1, 4, (30, 40)), (130, 700)),
    (layer(2, 1, (2, 150)), (60, 150)),
    (layer(2, 16, (12, 12)), (24, 144)),
]


@pytest.mark.parametrize(
    ("case", "chunks"), CHUNKED, ids=[f"{case.images}x{case.size}" for case, _ in CHUNKED]
)
def test_memory_is_bounded_and_results_do_not_depend_on_it(cupy, case, chunks):
    inputs = Inputs(case)
    weight = inputs.host["weight"].nbytes
    cells = (case.size[0] + 3) * (case.size[1] + 1) * case.channels
    # Documented is 1 MiB; here alignment alone, so that small images show what else there is.
    rest = 2**12
    for function, copies, image in (
        (inputs.forward, 1, 4 * cells), (inputs.backward, 3, 8 * cells)
    ):  # fmt: skip
        least = least_workspace(function)
        reference, used = temporary_bytes(cupy, function)
        assert used <= 64 * 2**20 + copies * weight + rest
        for pixels in chunks:
            budget = pixels * least  # twice what the pixels' columns take
            with recorded() as log:
                ours, used = temporary_bytes(cupy, function, workspace_bytes=budget)
            names = names_of(log.launches)
            cut = names.count("deform_im2col") + names.count("deform_backward")
            assert 1 <= cut <= 2 * case.images * max(case.size[0] * case.size[1] // pixels, 1) + 2
            # One image's copies may come on top of half of the budget.
            above = max(image - budget // 2, 0)
            assert used <= budget + above + copies * weight + rest
            for one, other in zip(ours, reference, strict=True):
                assert_close(one, other, 1e-5)


def test_memory_of_the_stages(cupy):
    case = layer(3, 4, (9, 10))
    x, offset, _, _, mask, _ = case.arrays()
    columns = dcn.deform_im2col(x, offset, 3, padding=1, mask=mask)
    sampling = map(dcn.to_device, (columns, x, offset, mask))
    grad, x, offset, mask = sampling
    settings = {"padding": 1, "mask": mask}
    calls = {
        "im2col": lambda **more: cupy_dcn.deform_im2col(x, offset, 3, **settings, **more),
        "col2im": lambda **more: cupy_dcn.deform_col2im(
            grad, offset, case.size, 3, **settings, **more
        ),
        "coord_grad": lambda **more: cupy_dcn.deform_coord_grad(
            grad, x, offset, 3, **settings, **more
        ),
    }
    for name, call in calls.items():
        reference, _ = temporary_bytes(cupy, call)
        image = 12 * 11 * 4 * 8 * (1 if name == "im2col" else 2)
        least = least_workspace(call)
        for budget in (20 * least, 2 * image, 2**24):
            with recorded() as log:
                ours, used = temporary_bytes(cupy, call, workspace_bytes=budget)
            assert used <= budget + max(image - budget // 2, 0) + 2**12
            assert not [e for e in log.operations if e.name not in ("memset",)]
            for one, other in zip(ours, reference, strict=True):
                assert_close(one, other, 1e-13)
        sampled = [n for n in names_of(log.launches) if n.startswith("deform")]
        assert len(sampled) == 1  # the largest budget takes all images at once
        with recorded() as log:
            call(workspace_bytes=12 * least)
        # 12 pixels a chunk or a few more: one row of 10.
        assert len([n for n in names_of(log.launches) if n.startswith("deform")]) in (9, 27)


# Indices


def wide_indices(monkeypatch):
    monkeypatch.setattr(_cut_gpu, "index_dtype", lambda sizes, geometry: np.dtype(np.int64))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_wide_indices_give_the_same(device, own_kernels, monkeypatch, number):
    # Every case, each dtype in turn.
    dtype = DTYPES[number % len(DTYPES)]
    inputs = Inputs(CASES[number], dtype)
    narrow = [inputs.forward(), *inputs.backward()]
    wide_indices(monkeypatch)
    before = {macros for _, macros in _kernels.compiled()}
    wide = [inputs.forward(), *inputs.backward()]
    used = {macros.index for _, macros in _kernels.compiled() if macros not in before}
    assert used == {"int64"}
    for at, (one, other) in enumerate(zip(narrow, wide, strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            # A GPU adds up in any order, and warps come apart at points outside the image.
            if dcn.name == "cupy" or at == 1:
                one, other = (on_host(each).astype(np.float64) for each in (one, other))
                assert_close(one, other, NOISE[dtype])
            else:
                np.testing.assert_array_equal(on_host(one), on_host(other))


def test_wide_indices_come_from_the_plan(cupy, own_kernels, monkeypatch):
    inputs = Inputs(SMALL)
    inputs.forward()
    assert {macros.index for _, macros in _kernels.compiled()} == {"int32"}
    wide_indices(monkeypatch)
    inputs.forward()
    inputs.backward()
    wide = {name for name, macros in _kernels.compiled() if macros.index == "int64"}
    assert wide == WHOLE
    for name in GRADIENTS:
        inputs.backward(needs=(name,))
    assert {macros.index for name, macros in _kernels.compiled() if name not in WHOLE} == {"int64"}
    others = {"count_samples", "start_cells", "order_samples", "deform_backward_sorted"}
    others |= {"deform_direct", "deform_direct_backward"}
    others |= {"rank_samples", "deform_col2im_ordered"}
    others |= {"deform_im2col_tangent", "deform_double_backward", "copy_elements"}
    assert {name for name, _ in _kernels.compiled()} == set(_kernels.FILES) - others


def test_wide_indices_leave_points_in_their_order(cupy, own_kernels, monkeypatch):
    inputs = Inputs(Case(1, 64, (4, 5), 2, (3, 3), padding=(1, 1, 1, 1)))
    inputs.backward()
    assert "deform_backward_sorted" in {name for name, _ in _kernels.compiled()}
    wide_indices(monkeypatch)
    with recorded() as log:
        inputs.backward()
    assert names_of(log.launches) == ["to_channels_last", "deform_backward", "from_channels_last"]


@pytest.mark.parametrize(("far", "index"), [(2**25, "int32"), (2**29, "int64")])
def test_what_is_far_away_is_exact(device, own_kernels, far, index):
    # Padding and dilation cancel for the tap in the middle; the farthest of three taps is four
    # times as far, and from 2^30 on indices are 64 bits.
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)
    offset = np.zeros((1, 18, 4, 4), np.float32)
    columns = dcn.deform_im2col(x, offset, 3, padding=far, dilation=far)
    assert {macros.index for _, macros in _kernels.compiled()} == {index}
    np.testing.assert_array_equal(columns[0, 0, :, 4].T.reshape(x[0].shape), x[0])
    others = [tap for tap in range(9) if tap != 4]
    assert not columns[0, 0][:, others].any()
    back = dcn.deform_col2im(columns, offset, (4, 4), 3, padding=far, dilation=far)
    np.testing.assert_array_equal(back, x)


def test_an_offset_that_undoes_the_padding_is_exact(device):
    # The first output looks 2^25 above and left of the image, and its offset leads back.
    far = 2**25  # float32 has every fourth number from here on
    x = np.arange(1, 37, dtype=np.float32).reshape(1, 1, 6, 6)
    offset = np.zeros((1, 2, 2, 2), np.float32)
    offset[0, :, 0, 0] = far, far + 4
    columns = dcn.deform_im2col(x, offset, 1, stride=2 * far, padding=far)
    np.testing.assert_array_equal(columns.ravel(), [x[0, 0, 0, 4], 0, 0, 0])


def test_planes_too_far_apart_for_cublas(cupy, monkeypatch):
    # An image of more than 2^31 - 1 pixels, by moving the limit down to ten.
    monkeypatch.setattr(_matmul_gpu, "LARGEST_DIMENSION", 10)
    for case in (SMALL, PLAIN, CASES[3], CASES[8]):
        inputs = Inputs(case)
        budget = 12 * least_workspace(inputs.backward)
        meter = Meter(cupy)
        with cupy.cuda.using_allocator(meter), recorded() as log:
            y = inputs.forward(workspace_bytes=budget)
        writes = [e for e in log.operations if e.name in ("cupy_copy", "memcpy")]
        # The weight, and for every chunk the bias and the way from there to the output.
        assert len(writes) == 1 + 2 * names_of(log.launches).count("deform_im2col")
        image = (case.size[0] + 3) * (case.size[1] + 1) * case.channels * 4
        held = -(-y.nbytes // 512) * 512
        assert meter.peak - held <= budget + image + inputs.host["weight"].nbytes + 2**12
        assert_right(inputs, NOISE[np.float32], workspace_bytes=budget)
    monkeypatch.setattr(_matmul_gpu, "LARGEST_DIMENSION", SMALL.images * 10**6)
    assert_right(Inputs(SMALL), NOISE[np.float32])


@pytest.mark.parametrize("function", ["forward", "backward", "plan"])
def test_products_too_large_for_cublas_are_refused_before_any_work(cupy, function):
    # 2^20 channels of 64 x 64 taps, each array one number repeated.
    def repeated(*shape):
        return cupy.broadcast_to(cupy.ones((1,) * len(shape), np.float16), shape)

    x, weight = repeated(1, 2**20, 64, 64), repeated(1, 2**20, 64, 64)
    offset, grad_output = repeated(1, 2 * 64 * 64, 1, 1), repeated(1, 1, 1, 1)
    calls = {
        "forward": lambda **more: cupy_dcn.deform_conv2d(x, offset, weight, **more),
        "backward": lambda **more: cupy_dcn.deform_conv2d_backward(
            grad_output, x, offset, weight, **more
        ),
        "plan": lambda **more: cupy_dcn.Plan(x.shape, weight, masked=False, **more),
    }
    message = (
        r"^C_in/groups\*KH\*KW is 4294967296, expected at most 2\^31 - 1 = 2147483647 on a GPU"
    )
    with recorded() as log:
        with pytest.raises(ValueError, match=message):
            calls[function](workspace_bytes=2**50)
        assert not log.entries


# Views


def strided(array, axes):
    """The same numbers, with memory in another order of axes."""
    order = np.argsort(axes)
    return np.ascontiguousarray(array.transpose(axes)).transpose(order)


VIEWS = {
    "channels last": lambda a: strided(a, (0, 2, 3, 1)),
    "rows last": lambda a: strided(a, (0, 1, 3, 2)),
    "batch last": lambda a: strided(a, (1, 2, 3, 0)),
    "every second": lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
    "one image for all": lambda a: np.broadcast_to(a[:1], a.shape),
    "one number for all": lambda a: np.broadcast_to(a[:1, :1, :1, :1], a.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_in_place(cupy, view):
    names = ("x", "offset", "mask")
    plain = Inputs(SMALL).host
    inputs = Inputs(SMALL, **{name: VIEWS[view](plain[name]) for name in names})
    assert not any(inputs.device[name].flags.c_contiguous for name in names)
    assert all(inputs.device[n].strides == inputs.host[n].strides for n in names)
    with recorded() as log:
        inputs.forward()
        inputs.backward()
    copied = [e.bytes_read for e in log.operations if e.name in ("cupy_copy", "memcpy")]
    # The weight to be multiplied with, twice, its gradient, and the bias.
    weight, bias = inputs.host["weight"].nbytes, inputs.host["bias"].nbytes
    assert sorted(copied) == sorted([weight, weight, weight, bias])
    assert_right(inputs, NOISE[np.float32])
    assert_right(inputs, NOISE[np.float32], workspace_bytes=10 * least_workspace(inputs.backward))


@pytest.mark.parametrize("view", VIEWS)
def test_grad_output_is_copied_chunk_by_chunk(cupy, view):
    case = layer(2, 4, (5, 6), out_channels=3)
    plain = case.arrays(np.float32)[-1]
    inputs = Inputs(case, grad_output=VIEWS[view](plain))
    image = 8 * 7 * 4 * 8
    least = least_workspace(inputs.backward)
    for budget in (6 * least, 2**20):  # a row of six, and everything at once
        meter = Meter(cupy)
        with cupy.cuda.using_allocator(meter), recorded() as log:
            gradients = inputs.backward(workspace_bytes=budget)
        held = sum(-(-array.nbytes // 512) * 512 for array in gradients)
        above = max(image - budget // 2, 0)
        weight = inputs.host["weight"].nbytes
        assert meter.peak - held <= budget + above + 3 * weight + 2**12
        copied = [
            entry
            for entry in log.operations
            if entry.name in ("cupy_copy", "memcpy") and entry.bytes_written not in (weight, 4 * 3)
        ]
        # Once for the columns' gradient and once for the weight's, a chunk at a time.
        launches = names_of(log.launches)
        assert len(copied) == 2 * launches.count("deform_backward")
        assert sum(e.bytes_written for e in copied) == 2 * plain.nbytes
        assert_right(inputs, NOISE[np.float32], workspace_bytes=budget)


COLUMN_VIEWS = {
    "off by one element": None,  # aligned for its elements, not for the kernels' vectors
    "pixels last": lambda a: strided(a, (0, 1, 3, 4, 2)),
    "every second": lambda a: np.repeat(a, 2, axis=4)[..., ::2],
    "one number for all": lambda a: np.broadcast_to(a[:1, :1, :1, :1, :1], a.shape),
}


def shifted(cupy, array):
    """A copy whose first element is no multiple of 16 bytes."""
    memory = cupy.zeros(array.size + 1, array.dtype)
    view = cupy.ndarray(array.shape, array.dtype, memory.data + array.itemsize)
    view[...] = cupy.asarray(array)
    assert view.data.ptr % 16 != 0
    return view


@pytest.mark.parametrize("view", COLUMN_VIEWS)
def test_columns_of_any_layout(device, view):
    case = Case(2, 8, (5, 6), 2, (3, 3), padding=(1, 1, 1, 1), groups=2)
    x, offset, _, _, mask, _ = case.arrays(np.float32)
    columns = np.random.default_rng(1).standard_normal((2, 2, 30, 9, 4)).astype(np.float32)
    if COLUMN_VIEWS[view] is not None:
        columns = COLUMN_VIEWS[view](columns)
        device = dcn.to_device(columns)
        assert not device.flags.c_contiguous
    else:
        device = shifted(device, columns)
    wide = [a.astype(np.float64) for a in (columns, x, offset, mask)]
    on_device = [dcn.to_device(a) for a in (x, offset, mask)]
    settings = {"padding": 1, "mask": wide[3]}
    grad_x = cupy_dcn.deform_col2im(wide[0], wide[2], case.size, 3, **settings)
    grads = cupy_dcn.deform_coord_grad(*wide[:3], 3, **settings)
    settings["mask"] = on_device[2]
    for budget in (None, 2000):
        settings["workspace_bytes"] = budget
        ours = cupy_dcn.deform_col2im(device, on_device[1], case.size, 3, **settings)
        assert_close(on_host(ours), grad_x, 1e-5)
        for one, other in zip(
            cupy_dcn.deform_coord_grad(device, *on_device[:2], 3, **settings), grads, strict=True
        ):
            assert_close(on_host(one), other, 1e-5)


def test_out_may_begin_anywhere(device):
    inputs = Inputs(SMALL)
    expected, _ = inputs.expected()
    out = shifted(device, np.full(expected.shape, np.nan, np.float32))
    assert inputs.forward(out=out) is out
    assert_close(on_host(out), expected, NOISE[np.float32])


# Channels, groups, architectures


def divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


def groupings(channels):
    """Pairs of groups and deformable groups: each divisor at least once as either."""
    found = divisors(channels)
    return sorted({(1, 1), *zip(found, reversed(found), strict=True)})


CHANNELS = [*range(1, 21), 31, 32, 33, 48, 64, 65, 100]
# Where there are many divisors, those in the middle.
LAYERS = [
    (channels, pair)
    for channels in CHANNELS
    for pairs in [groupings(channels)]
    for pair in {pairs[0], pairs[len(pairs) // 2], pairs[-1]}
    if channels <= 12 or pair in (pairs[0], pairs[len(pairs) // 2])
]


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels_and_groups(device, channels):
    layers = [pair for count, pair in LAYERS if count == channels]
    assert layers
    for number, (groups, deformable_groups) in enumerate(layers):
        case = Case(
            1, channels, (3, 4), 2 * groups, (2, 2), deformable_groups=deformable_groups,
            groups=groups, masked=channels % 2 == 0,
        )  # fmt: skip
        dtype = (np.float32, np.float64)[(channels + number) % 2]
        assert_right(Inputs(case, dtype), NOISE[dtype])


def geometry_of(channels, groups=1, deformable_groups=1, kernel=(3, 3)):
    return Geometry(1, channels, 9, 9, *kernel, 9, 9, 1, 1, 0, 0, 1, 1, groups, deformable_groups)


def macros_of(channels, dtype=np.float32, wants=None, **more):
    dtype = np.dtype(dtype)
    geometry = geometry_of(channels, **more)
    return sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int32), wants)


def test_lanes_and_vectors():
    # 16 bytes a load where that takes few zeros, and full lanes for common counts.
    for dtype, width in ((np.float64, 2), (np.float32, 4), (np.float16, 8), (BFLOAT16, 8)):
        for channels in (64, 128, 192, 256, 320, 384, 512, 1024):
            macros = macros_of(channels, dtype)
            block = 128 if width == 8 else 256
            assert (macros.vector, macros.lanes, macros.block) == (width, 8, block)
            assert macros.channels == channels
        for shared in range(1, 300):
            macros = macros_of(3 * shared, dtype, deformable_groups=3)
            vector, lanes = macros.vector, macros.lanes
            assert vector in (1, 2, 4, 8)
            assert vector <= width
            vectors = -(-shared // vector)
            assert vectors * vector <= 4 / 3 * shared
            if vector < width:  # the next would take more zeros than that
                assert -(-shared // (2 * vector)) * 2 * vector > 4 / 3 * shared
            assert (lanes == 1) == (vectors == 1)
            assert lanes in (1, 2, 4, 8)
            idle = -(-vectors // lanes) * lanes - vectors
            assert 5 * idle <= vectors + idle or lanes == 2  # at most a fifth in the last step
            copied = copy_channels(geometry_of(3 * shared, deformable_groups=3), 16 // width)
            assert copied == 3 * vectors * vector
    assert [lane_count(n) for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)] == [
        1, 2, 2, 4, 2, 8, 8, 2, 8, 8, 4
    ]  # fmt: skip


def test_points_fit_in_shared_memory():
    # Two blocks of any kernel beside each other in the 64 KiB of the smallest multiprocessors.
    kernels = (1, 1), (3, 3), (1, 9), (5, 5), (7, 7), (1, 40), (3, 33), (40, 1)
    whole = set()
    for channels, dtype, kernel in itertools.product((1, 2, 4, 7, 8, 16, 32, 64), DTYPES, kernels):
        macros = macros_of(channels, dtype, Wants(grad_offset=True), kernel=kernel)
        tile = macros.block // macros.lanes
        point = 6 * (8 if dtype is np.float64 else 4) + 4
        rows, columns = macros.rows_at_once, macros.columns_at_once
        assert rows * columns * tile * point <= 32 * 1024
        whole.add(columns == kernel[1])
        if columns == kernel[1]:
            parts = -(-kernel[0] // rows)
            fewer = -(-kernel[0] // (parts - 1)) * columns if parts > 1 else 2**15
        else:  # parts of one row
            assert rows == 1
            fewer = -(-kernel[1] // (-(-kernel[1] // columns) - 1))
        assert fewer * tile * point > 32 * 1024  # no fewer parts would do
    assert whole == {False, True}


def test_blocks_of_a_transposition():
    for channels, dtype in itertools.product(range(1, 300), DTYPES):
        dtype = np.dtype(dtype)
        macros = transpose_macros(geometry_of(channels), dtype, np.dtype(np.int32))
        vectors = -(-channels // macros.vector)
        # A thread moves what its registers hold; a block no more vectors than twice what there is.
        assert macros.transpose_vectors == min(vectors, 16 // macros.vector)
        assert macros.transpose_side in (1, 2, 4, 8, 16)
        assert macros.pixels * macros.transpose_side == 256
        assert macros.transpose_side == 16 or macros.block_vectors >= vectors
        assert macros.transpose_side == 1 or macros.block_vectors < 2 * vectors


@each_dtype
@pytest.mark.parametrize("capability", ["75", "80", "120"])
def test_other_architectures(cupy, capability, dtype):
    with configure(compute_capability=capability):
        for case in (SMALL, Case(1, 8, (4, 5), 3, (3, 3), padding=(1, 1, 1, 1))):
            assert_right(Inputs(case, dtype), NOISE[dtype])


# Compilation


class Compilations:
    """CuPy's RawModule, counting, and slow enough for threads to meet in it."""

    def __init__(self, monkeypatch, cupy, seconds=0.0):
        self.codes, self._seconds, self._module = [], seconds, cupy.RawModule
        monkeypatch.setattr(cupy, "RawModule", self)

    def __call__(self, **arguments):
        self.codes.append(arguments["code"])
        time.sleep(self._seconds)
        return self._module(**arguments)


def test_a_layer_is_compiled_once(cupy, own_kernels, monkeypatch):
    compilations = Compilations(monkeypatch, cupy)
    inputs = Inputs(SMALL)
    inputs.forward()
    assert len(compilations.codes) == 2
    inputs.backward()
    assert len(compilations.codes) == len(_kernels.compiled()) == 4
    assert {name for name, _ in _kernels.compiled()} == WHOLE
    inputs.forward()
    inputs.backward()
    # Neither batch nor sizes nor windows nor output channels are compiled in.
    for case in (
        Case(3, 6, (9, 4), 2, (3, 2), deformable_groups=3, groups=2),
        Case(1, 6, (20, 30), 8, (3, 2), (1, 3), (2, 0, 1, 1), (2, 1), 3, 2),
    ):
        other = Inputs(case)
        other.forward()
        other.backward(workspace_bytes=40 * least_workspace(other.backward))
    assert len(compilations.codes) == 4
    Inputs(PLAIN).forward()
    assert len(compilations.codes) == 6
    # Some of the gradients alone have kernels of their own, the weight's the forward's.
    sets = ("x",), ("offset",), ("mask",), ("weight",), ("bias",), ("offset", "mask")
    Inputs(PLAIN).backward()
    before = len(compilations.codes)
    assert before == 8
    counts = []
    for needs in sets:
        Inputs(PLAIN).backward(needs=needs)
        counts.append(len(compilations.codes) - before)
    assert counts == [1, 2, 3, 3, 3, 4]
    joint = ("x", "offset"), ("x", "mask"), ("x", "weight"), ("weight", "mask"), GRADIENTS
    for needs in joint:
        Inputs(PLAIN).backward(needs=needs)
        counts.append(len(compilations.codes) - before)
    assert counts[len(sets) :] == [5, 6, 7, 8, 8]


def test_threads_compile_a_kernel_once(cupy, own_kernels, monkeypatch):
    compilations = Compilations(monkeypatch, cupy, seconds=0.05)
    macros, barrier, found = macros_of(4), threading.Barrier(6), []

    def ask():
        barrier.wait()
        found.append(_kernels.kernel(cupy, "deform_im2col", macros))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations.codes) == 1
    assert len(found) == 6
    assert len(set(map(id, found))) == 1


def test_a_failed_compilation_is_not_kept(cupy, own_kernels, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "source", lambda file: "no CUDA")
        from cupy.cuda.compiler import CompileException

        with pytest.raises(CompileException):
            Inputs(PLAIN).forward()
    assert not _kernels.compiled()
    assert_right(Inputs(PLAIN), NOISE[np.float32])


def test_import_compiles_nothing_and_needs_no_cupy():
    program = (
        "import sys, cupy_dcn; from cupy_dcn import _kernels;"
        " print([n for n in sys.modules if n.split('.')[0] in ('cupy', 'cupy_backends')],"
        " _kernels.compiled(), 'cupy_dcn._gpu' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "[] [] False"


def test_loops_are_unrolled_by_powers_of_two_or_as_a_whole():
    # By 3, NVRTC 13.5 leaves out the checks of the remainder where the trip count is known only at
    # run time: with 5 taps the loop ran into the sixth.
    whole = {"TAPS": "TAPS_AT_ONCE == TAPS", "KERNEL_WIDTH": "COLUMNS_AT_ONCE == KERNEL_WIDTH"}
    counts = []
    for path in sorted(_kernels.folder().glob("*.cu*")):
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            unrolled = re.search(r"^#pragma unroll\W+(\w.*)|\bUNROLLED = ([^,;]*)", line)
            if not unrolled:
                continue
            condition, _, chosen = (unrolled[1] or unrolled[2]).rpartition("?")
            for count in re.findall(r"\w+", chosen):
                where = f"{path.name}:{number}: {line}"
                if count.isdigit():
                    assert int(count) & (int(count) - 1) == 0, where
                elif count != "UNROLLED":  # a name: of a loop of so many rounds, and no others
                    assert whole[count] in condition or f"< {count};" in lines[number], where
                counts.append(count)
    assert {"1", "2", "TAPS", "KERNEL_WIDTH", "UNROLLED"} <= set(counts)


# Faults planted in the kernels


class Fault(NamedTuple):
    """A change of one file of cuda/, which the emulator or a comparison has to notice."""

    file: str
    what: str
    old: str
    new: str


FAULTS = [Fault(*row) for row in (
    ("numeric.cuh", "rounds down to an index the wrong way", "__float2int_rd(value)",
     "__float2int_ru(value)"),
    ("numeric.cuh", "wide index of a narrow number", "T(__float2ll_rd(value))",
     "T(__float2int_rz(value))"),
    ("numeric.cuh", "double rounded up to an index", "__double2int_rd(value)",
     "__double2int_ru(value)"),
    ("numeric.cuh", "float16 cut off, not rounded", "cvt.rn.f16.f32", "cvt.rz.f16.f32"),
    ("numeric.cuh", "two float16 exchanged", ".f16x2.f32 %0, %1, %2;",
     ".f16x2.f32 %0, %2, %1;"),
    ("numeric.cuh", "two float16 cut off", "cvt.rn.f16x2.f32", "cvt.rz.f16x2.f32"),
    ("numeric.cuh", "two bfloat16 exchanged", "bf16x2.f32 %0, %1, %2;", "bf16x2.f32 %0, %2, %1;"),
    ("numeric.cuh", "two bfloat16 cut off", "cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32"),
    ("numeric.cuh", "bfloat16 as its upper bits", "value.bits << 16", "value.bits << 15"),
    ("numeric.cuh", "bfloat16 cut off by hand", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16",
     "bits >> 16"),
    ("numeric.cuh", "ties not to even by hand", "bits + 0x7fffu + ((bits >> 16) & 1u)",
     "bits + 0x8000u"),
    ("numeric.cuh", "vector of unaligned values", "alignas(N * sizeof(T)) Vector",
     "alignas(32) Vector"),
    ("numeric.cuh", "steps of elements as bytes", "int64(elements) * int64(sizeof(T))",
     "int64(elements)"),
    ("numeric.cuh", "steps backwards", "(from) + step.bytes", "(from) - step.bytes"),
    ("numeric.cuh", "four sums at the left corner", 'FIRST + 3]), "n"((AT + FIRST) * 4)',
     'FIRST + 3]), "n"(FIRST * 4)'),
    ("numeric.cuh", "the second four sums onto the first", 'FIRST + 3]), "n"((AT + FIRST) * 4)',
     'FIRST + 3]), "n"(AT * 4)'),
    ("numeric.cuh", "one of four sums twice", '"f"(values[FIRST + 2]),', '"f"(values[FIRST]),'),
    ("numeric.cuh", "two sums at the left corner", 'FIRST + 1]), "n"((AT + FIRST) * 4)',
     'FIRST + 1]), "n"(FIRST * 4)'),
    ("numeric.cuh", "two sums exchanged", '"f"(values[FIRST]), "f"(values[FIRST + 1]), "n"',
     '"f"(values[FIRST + 1]), "f"(values[FIRST]), "n"'),
    ("numeric.cuh", "one sum at the left corner", "atomicAdd(to + AT + FIRST,",
     "atomicAdd(to + FIRST,"),
    ("numeric.cuh", "float stored, not added", "atomicAdd(to + AT + FIRST, values[FIRST]);",
     "to[AT + FIRST] += values[FIRST];"),
    ("numeric.cuh", "double stored, not added", "atomicAdd(to + AT + i, values[i]);",
     "to[AT + i] += values[i];"),
    ("numeric.cuh", "double at the left corner", "atomicAdd(to + AT + i,", "atomicAdd(to + i,"),
    ("numeric.cuh", "the rest of a vector not added", "if constexpr (FIRST + WIDTH < N)",
     "if constexpr (false)"),
    ("numeric.cuh", "lanes next to each other exchange", '"n"(DISTANCE), "r"(members)',
     '"n"(1), "r"(members)'),
    ("numeric.cuh", "the last lane has no partner", "%0, %1, %2, 31, %3;", "%0, %1, %2, 30, %3;"),
    ("numeric.cuh", "lanes next to each other exchange doubles",
     "__shfl_xor_sync(members, value, DISTANCE)", "__shfl_xor_sync(members, value, 1)"),

    ("geometry.cuh", "no zeros behind the channels", "(SHARED_CHANNELS + VECTOR - 1) / VECTOR",
     "SHARED_CHANNELS / VECTOR"),
    ("geometry.cuh", "a step too few", "(VECTORS + LANES - 1) / LANES", "VECTORS / LANES"),
    ("geometry.cuh", "the last vectors beyond the channels", "RAGGED && channel >= COPY_SHARED",
     "RAGGED && channel > COPY_SHARED"),
    ("geometry.cuh", "deformable groups of the copy side by side",
     "DEFORMABLE_GROUPS * COPY_SHARED", "DEFORMABLE_GROUPS * SHARED_CHANNELS"),
    ("geometry.cuh", "zeros that are the last row", "geometry.copy_size - 2 * geometry.copy_pitch",
     "geometry.copy_size - 3 * geometry.copy_pitch"),
    ("geometry.cuh", "a row of pixels further down", "(row + 1) * pitch", "(row + 2) * pitch"),
    ("geometry.cuh", "pixels without the zeros behind them", "(column + 1) * COPY_CHANNELS",
     "(column + 1) * CHANNELS"),
    ("geometry.cuh", "the first image for all", "image(blockIdx.z)", "image(0)"),
    ("geometry.cuh", "rows of another tile", "row(blockIdx.y * TILE_HEIGHT)",
     "row(blockIdx.y * TILE_WIDTH)"),
    ("geometry.cuh", "columns of another tile", "DEFORMABLE_GROUPS) * TILE_WIDTH),",
     "DEFORMABLE_GROUPS) * TILE_HEIGHT),"),
    ("geometry.cuh", "the wrong deformable group", "group(blockIdx.x % DEFORMABLE_GROUPS)",
     "group(0)"),
    ("geometry.cuh", "rows not bounded", "row_of(pixel) < geometry.rows && ", ""),
    ("geometry.cuh", "one column too many", "column_of(pixel) < geometry.columns",
     "column_of(pixel) <= geometry.columns"),
    ("geometry.cuh", "strides of rows for columns", "column_of(pixel) * strides.column",
     "column_of(pixel) * strides.row"),
    ("geometry.cuh", "output's height for its width", "* geometry.out_height + row_of(pixel)",
     "* geometry.out_width + row_of(pixel)"),
    ("geometry.cuh", "planes of pixels as rows of channels", "ALONE ? geometry.column_pixels : 1",
     "1"),
    ("geometry.cuh", "taps of a deformable group", "return GROUP_CHANNELS * channel_stride",
     "return SHARED_CHANNELS * channel_stride"),
    ("geometry.cuh", "groups of columns not apart", "tile.image * GROUPS * geometry.column_pixels",
     "tile.image * geometry.column_pixels"),
    ("geometry.cuh", "planes of the first image", "image * TAPS * GROUP_CHANNELS + at", "at"),
    ("geometry.cuh", "pixels without their taps", "(image + at) * TAPS * GROUP_CHANNELS",
     "(image + at) * GROUP_CHANNELS"),
    ("geometry.cuh", "all groups in the first", "index_t(unsigned(channel) / GROUP_CHANNELS)",
     "index_t(0)"),
    ("geometry.cuh", "channels of a group counted on",
     "index_t(unsigned(channel) % GROUP_CHANNELS)", "index_t(unsigned(channel))"),
    ("geometry.cuh", "groups never cut", "GROUP_CHANNELS % SHARED_CHANNELS == 0;", "true;"),
    ("geometry.cuh", "columns of another deformable group",
     ": column_of_channel(geometry, tile.group * SHARED_CHANNELS + channel)",
     ": column_of_channel(geometry, channel)"),
    ("geometry.cuh", "lanes begin in one place",
     "column_of_channel(geometry, tile.group * SHARED_CHANNELS + lane * VECTOR)",
     "column_of_channel(geometry, tile.group * SHARED_CHANNELS)"),
    ("geometry.cuh", "channels counted from the first lane's", "index_t(channel - lane * VECTOR)",
     "index_t(channel)"),
    ("geometry.cuh", "pieces across the edge of a group",
     "common_divisor(VECTOR, common_divisor(GROUP_CHANNELS, SHARED_CHANNELS))",
     "common_divisor(VECTOR, SHARED_CHANNELS)"),
    ("geometry.cuh", "pieces across the edge of a deformable group",
     "common_divisor(VECTOR, common_divisor(GROUP_CHANNELS, SHARED_CHANNELS))",
     "common_divisor(VECTOR, GROUP_CHANNELS)"),
    ("geometry.cuh", "pieces across planes", "ALONE ? 1 : common_divisor", "common_divisor"),
    ("geometry.cuh", "zeros for channels", "if (!PADDED || channel + i < SHARED_CHANNELS)",
     "if (true)"),
    ("geometry.cuh", "all pieces read to the front", "values.at[i + j] = piece.at[j]",
     "values.at[j] = piece.at[j]"),
    ("geometry.cuh", "the first piece written for all", "piece.at[j] = values.at[i + j]",
     "piece.at[j] = values.at[j]"),
    ("geometry.cuh", "a lane's vectors side by side", "at = step * LANES * VECTOR",
     "at = step * VECTOR"),
    ("geometry.cuh", "parts of a row from its first tap", "return row * KERNEL_WIDTH + column;",
     "return row * KERNEL_WIDTH;"),
    ("geometry.cuh", "every part the last", "return first() + taps() == TAPS;", "return true;"),
    ("geometry.cuh", "rows below the kernel", "min(ROWS_AT_ONCE, KERNEL_HEIGHT - row)",
     "ROWS_AT_ONCE"),
    ("geometry.cuh", "columns right of the kernel", "min(COLUMNS_AT_ONCE, KERNEL_WIDTH - column)",
     "COLUMNS_AT_ONCE"),
    ("geometry.cuh", "the first part of a row alone", "column < KERNEL_WIDTH; column +=",
     "column < 1; column +="),

    ("bilinear.cuh", "one row too many inside", "unsigned_t(whole) + 1 <= unsigned_t(size)",
     "unsigned_t(whole) <= unsigned_t(size)"),
    ("bilinear.cuh", "one row too few inside", "unsigned_t(whole) + 1 <= unsigned_t(size)",
     "unsigned_t(whole) + 1 < unsigned_t(size)"),
    ("bilinear.cuh", "the edge of the box belongs to it", "(whole < 0 ? compute_t(0)",
     "(whole < 0 ? compute_t(-1)"),
    ("bilinear.cuh", "weights exchanged", "upper_right, lower - lower_right,",
     "lower - lower_right, upper_right,"),
    ("bilinear.cuh", "the mask twice", "lower = y * factor", "lower = y * factor * factor"),
    ("bilinear.cuh", "masks of the first group", "index_t(tile.group) * TAPS, pixel)",
     "0, pixel)"),
    ("bilinear.cuh", "infinite masks among the weights", "isfinite(factor) ? factor : compute_t(1)",
     "factor"),
    ("bilinear.cuh", "finite masks again", "isfinite(factor) ? compute_t(1) : factor", "factor"),
    ("bilinear.cuh", "stride of the other axis", "tile.column_of(pixel) * geometry.stride_x",
     "tile.column_of(pixel) * geometry.stride_y"),
    ("bilinear.cuh", "every chunk from the first row on", "+ geometry.origin_y + row *", "+ row *"),
    ("bilinear.cuh", "dilation of the other axis", "row * geometry.dilation_y)",
     "row * geometry.dilation_x)"),
    ("bilinear.cuh", "parts of a row where it begins", "column * geometry.dilation_x)", "0)"),
    ("bilinear.cuh", "offsets of the first group",
     "2 * (tile.group * TAPS + row * KERNEL_WIDTH + column)", "2 * (row * KERNEL_WIDTH + column)"),
    ("bilinear.cuh", "dy of the first tap for dx", "offset_x(offset_y + offset_step)",
     "offset_x(offset_y)"),
    ("bilinear.cuh", "dy of the others for dx", "offset_x = offset_y + offset_step",
     "offset_x = offset_y"),
    ("bilinear.cuh", "masks of a part from the row's first",
     "index_t(row * KERNEL_WIDTH + column) * geometry.mask",
     "index_t(row * KERNEL_WIDTH) * geometry.mask"),
    ("bilinear.cuh", "all taps of a row in one place", "        x += dilation_x;\n", ""),
    ("bilinear.cuh", "one mask for all taps of a row", "mask = mask + mask_step;", ""),
    ("bilinear.cuh", "rows of the kernel side by side", "x -= KERNEL_WIDTH * dilation_x;", ""),
    ("bilinear.cuh", "rows of the kernel in one place", "y += dilation_y;", ""),
    ("bilinear.cuh", "points outside sampled", "inside = row.inside && column.inside",
     "inside = row.inside"),
    ("bilinear.cuh", "a fraction for the other", "y = inside ? row.fraction",
     "y = inside ? column.fraction"),
    ("bilinear.cuh", "fractions that are no numbers", "x = inside ? column.fraction : compute_t(0)",
     "x = column.fraction"),
    ("bilinear.cuh", "points of no pixel",
     "if (tile.holds(geometry, pixel)) {\n        for (int row",
     "if (true) {\n        for (int row"),
    ("bilinear.cuh", "rows of a lane left out", "row < part.rows; row += LANES",
     "row < part.rows; row += 2 * LANES"),
    ("bilinear.cuh", "rows of a part in one place", "pixel * TAPS_AT_ONCE + row * part.columns",
     "pixel * TAPS_AT_ONCE"),
    ("bilinear.cuh", "rows of the first part again", "part.row + row, pixel", "row, pixel"),

    ("channels_last.cu", "a row of zeros too few", "row = index_t(above) - 1",
     "row = index_t(above)"),
    ("channels_last.cu", "the last row taken for a border",
     "unsigned_t(row) < unsigned_t(geometry.height)",
     "unsigned_t(row) + 1 < unsigned_t(geometry.height)"),
    ("channels_last.cu", "the border to the left read", "&& column >= 0", ""),
    ("channels_last.cu", "unsigned strides", "row * geometry.planes.row",
     "row * unsigned_t(geometry.planes.row)"),
    ("channels_last.cu", "blocks of channels mixed up",
     "blockIdx.x % BLOCKS_A_CELL * BLOCK_VECTORS", "blockIdx.x / BLOCKS_A_CELL * BLOCK_VECTORS"),
    ("channels_last.cu", "channels not bounded", "channel < COPY_CHANNELS", "true"),
    ("channels_last.cu", "cells not bounded", "slice.pixel >= cells", "false"),
    ("channels_last.cu", "grad_x's pixels not bounded", "slice.pixel >= plane", "false"),
    ("channels_last.cu", "blocks of pixels mixed up", "* AT_ONCE +", "* THREADS +"),
    ("channels_last.cu", "threads at other pixels", "(ALONG * TRANSPOSE_SIDE) * ALONG",
     "ALONG * ALONG"),
    ("channels_last.cu", "threads at other vectors", "threadIdx.x / ALONG % TRANSPOSE_SIDE)",
     "threadIdx.x % TRANSPOSE_SIDE)"),
    ("channels_last.cu", "a thread's vectors side by side", "at = i * TRANSPOSE_SIDE * VECTOR",
     "at = i * VECTOR"),
    ("channels_last.cu", "zeros for channels", "PADDED ? min", "false ? min"),
    ("channels_last.cu", "channels of the next deformable group",
     "SHARED_CHANNELS - channel % COPY_SHARED", "SHARED_CHANNELS"),
    ("channels_last.cu", "zeros of all groups behind the last",
     "channel / COPY_SHARED * (COPY_SHARED - SHARED_CHANNELS)", "0"),
    ("channels_last.cu", "channels from the copy's first",
     "channel_of(channel) - channel_of(first)", "channel_of(channel - first)"),
    ("channels_last.cu", "borders not written", "    store(image + at, values);",
     "    if (inside) { store(image + at, values); }"),
    ("channels_last.cu", "the zeros of a vector read",
     "if (i < count) {\n                    values", "{\n                    values"),
    ("channels_last.cu", "the zeros of a vector written",
     "if (i < count) {\n                narrow", "{\n                narrow"),
    ("channels_last.cu", "grad_x without the border beside rows", "slice.pixel / width + width",
     "width"),
    ("channels_last.cu", "grad_x's planes too close", "unsigned_t(geometry.height) * width;",
     "unsigned_t(geometry.height) * geometry.height;"),

    ("deform_im2col.cu", "one corner twice", "weight.at[1] * widen(v01",
     "weight.at[1] * widen(v00"),
    ("deform_im2col.cu", "a weight twice", "weight.at[3] * widen", "weight.at[2] * widen"),
    ("deform_im2col.cu", "the row below two rows below", "below = above + pitch",
     "below = above + 2 * pitch"),
    ("deform_im2col.cu", "the neighbour without the zeros behind it",
     "v01 = load<VECTOR>(above + at + COPY_CHANNELS)", "v01 = load<VECTOR>(above + at + CHANNELS)"),
    ("deform_im2col.cu", "no mask where it is kept apart", "FACTORED ? factor * value : value",
     "value"),
    ("deform_im2col.cu", "infinite masks unnoticed", "if (MASKED && factored)", "if (false)"),
    ("deform_im2col.cu", "other parts' masks",
     "mask_of(geometry, tile, mask, pixel) + part.first() * geometry.mask.channel",
     "mask_of(geometry, tile, mask, pixel)"),
    ("deform_im2col.cu", "columns of the first part again",
     "first_column(geometry, tile, pixel, lane) + part.first() * tap_stride(geometry)",
     "first_column(geometry, tile, pixel, lane)"),
    ("deform_im2col.cu", "all lanes at the first channels", "corner + lane * VECTOR", "corner"),
    ("deform_im2col.cu", "no barrier before points are read",
     "factored = __syncthreads_or(factored);", ""),
    ("deform_im2col.cu", "no barrier between parts",
     "if (!part.last()) {\n            __syncthreads();\n        }", ""),
    ("deform_im2col.cu", "planes of the first tap", "column = column + tap_step;", ""),
    ("deform_im2col.cu", "the mask of no thread alone", "sampler.factor(), column, 0",
     "1, column, 0"),
    ("deform_im2col.cu", "the first deformable group for all", "+ tile.group * COPY_SHARED", ""),
    ("deform_im2col.cu", "deformable groups without the zeros between", "tile.group * COPY_SHARED",
     "tile.group * SHARED_CHANNELS"),
    ("deform_im2col.cu", "pixels of no tile",
     "if (tile.holds(geometry, pixel)) {\n            data_t", "if (true) {\n            data_t"),

    ("dots.cuh", "dots of other lanes", "give0 = odd ? dots[0] : dots[2]",
     "give0 = odd ? dots[2] : dots[0]"),
    ("dots.cuh", "a dot kept twice", "(odd ? dots[3] : dots[1])", "dots[1]"),
    ("dots.cuh", "the second half by the first bit", "second(kept(lane & 2))",
     "second(kept(lane & 1))"),
    ("dots.cuh", "the first half by the second bit", "odd(kept(lane & 1))", "odd(kept(lane & 2))"),
    ("dots.cuh", "half of the lanes left out", "dots[0] += exchange<4>(members, dots[0]);", ""),
    ("dots.cuh", "the same lanes twice", "+ exchange<2>(members, give)",
     "+ exchange<1>(members, give)"),
    ("dots.cuh", "four lanes as two", "if (LANES > 2)", "if (LANES > 4)"),
    ("dots.cuh", "four lanes as eight", "if (LANES > 4)", "if (LANES > 2)"),
    ("dots.cuh", "lanes of other pixels expected",
     "((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES)", "0xffffffffu"),
    ("dots.cuh", "the first pixel's lanes for all",
     "((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES)", "(1u << LANES) - 1"),
    ("dots.cuh", "totals in another order", "lane % 2 * 2 + lane / 2 % 2", "lane % 4"),
    ("dots.cuh", "two lanes' totals in one place", "LANES == 2 ? lane * 2", "LANES == 2 ? lane"),
    ("dots.cuh", "totals where weights are still read", "        __syncwarp(members);\n", ""),
    ("dots.cuh", "totals by all lanes", "writes(lane < 4)", "writes(true)"),
    ("dots.cuh", "totals by half of the lanes", "LANES == 4 || writes", "writes && !odd"),
    ("dots.cuh", "one of two totals unwritten", "if (LANES == 2) {", "if (false) {"),
    ("dots.cuh", "the derivative by y for that by x", "narrow(gradients.x,", "narrow(gradients.y,"),
    ("dots.cuh", "a sign", "fx * (s.at[3] - s.at[1])", "fx * (s.at[1] - s.at[3])"),
    ("dots.cuh", "a fraction for the other", "(1 - fy) * (s.at[1] - s.at[0])",
     "(1 - fx) * (s.at[1] - s.at[0])"),
    ("dots.cuh", "the mask's gradient of other corners", "fx * s.at[1])", "fx * s.at[2])"),
    ("dots.cuh", "offsets' gradient without the mask", "x = factor * (", "x = ("),
    ("dots.cuh", "offsets' gradients of the first group", "2 * (tile.group * TAPS + tap)",
     "2 * tap"),
    ("dots.cuh", "the mask's gradients of the first group",
     "\n                    (tile.group * TAPS + tap)", "\n                    tap"),
    ("dots.cuh", "gradients of an image of one deformable group",
     "index_t(DEFORMABLE_GROUPS) * TAPS", "TAPS"),
    ("dots.cuh", "the mask's gradients in one place", "grad_mask = grad_mask + mask_step;", ""),
    ("dots.cuh", "planes of other sizes", "geometry.out_height * geometry.out_width;",
     "geometry.out_width * geometry.out_width;"),

    ("pullback.cuh", "0 outside whatever the mask", "narrow(factor * 0, outside",
     "narrow(compute_t(0), outside"),
    ("pullback.cuh", "columns stored before grad_columns are read",
     "        const auto grad = load_column(",
     "        if (COLUMNS) { store_column(geometry, tile, column, lane, channel, {}); }\n"
     "        const auto grad = load_column("),
    ("pullback.cuh", "corners read only for coordinates", "if (GRAD_COORDINATES || COLUMNS)",
     "if (GRAD_COORDINATES)"),
    ("pullback.cuh", "corners read only for columns", "if (GRAD_COORDINATES || COLUMNS)",
     "if (COLUMNS)"),
    ("pullback.cuh", "one corner twice", "v10 = load<VECTOR>(below + AT)",
     "v10 = load<VECTOR>(above + AT)"),
    ("pullback.cuh", "the neighbour without the zeros behind it",
     "v01 = load<VECTOR>(above + AT + COPY_CHANNELS)", "v01 = load<VECTOR>(above + AT + CHANNELS)"),
    ("pullback.cuh", "the row below two rows below", "*below = above + pitch",
     "*below = above + 2 * pitch"),
    ("pullback.cuh", "dots of the columns", "dots[k] += wide[i] * corners[k]",
     "dots[k] += weight.at[k] * corners[k]"),
    ("pullback.cuh", "the mask's gradient of the columns", "total += wide[i] * sampled[i]",
     "total += sampled[i]"),
    ("pullback.cuh", "the mask's gradient times the mask", "total += wide[i] * sampled[i]",
     "total += wide[i] * sampled[i] * factor"),
    ("pullback.cuh", "columns without infinite masks",
     "stored[i] = FACTORED ? factor * sampled[i] : sampled[i]", "stored[i] = sampled[i]"),
    ("pullback.cuh", "no columns where they are wanted",
     "if (COLUMNS) {\n                store_column(geometry, tile, column, lane, channel, narrowed",
     "if (false) {\n                store_column(geometry, tile, column, lane, channel, narrowed"),
    ("pullback.cuh", "columns where none are wanted",
     "if (COLUMNS) {\n                store_column(geometry, tile, column, lane, channel, narrowed",
     "if (true) {\n                store_column(geometry, tile, column, lane, channel, narrowed"),
    ("pullback.cuh", "grad_x where none is wanted", "if (GRAD_X) {", "if (true) {"),
    ("pullback.cuh", "grad_x left out beside columns", "if (GRAD_X) {",
     "if (GRAD_X && !COLUMNS) {"),
    ("pullback.cuh", "grad_x without infinite masks", "(FACTORED ? factor * wide[i] : wide[i])",
     "wide[i]"),
    ("pullback.cuh", "the neighbour's share without the zeros behind it",
     "<AT + k.value % 2 * COPY_CHANNELS>",
     "<AT + k.value % 2 * CHANNELS>"),
    ("pullback.cuh", "the lower left share in the upper row", "add(Constant<2>{}, grad_below)",
     "add(Constant<2>{}, grad_above)"),
    ("pullback.cuh", "masks of the first part again",
     "mask_of(geometry, tile, mask, pixel) + part.first() * geometry.mask.channel",
     "mask_of(geometry, tile, mask, pixel)"),
    ("pullback.cuh", "columns of the first part again",
     "first_column(geometry, tile, pixel, lane) + part.first() * tap_stride(geometry)",
     "first_column(geometry, tile, pixel, lane)"),
    ("pullback.cuh", "all lanes add to the first channels", "kept(grad_image + lane * VECTOR)",
     "kept(grad_image)"),
    ("pullback.cuh", "points outside like all others", "if (cell < 0)", "if (false)"),
    ("pullback.cuh", "points at the first pixel skipped", "if (cell < 0)", "if (cell <= 0)"),
    ("pullback.cuh", "points outside keep grad_columns",
     "store_outside(geometry, tile, column, lane, factor);", ""),
    ("pullback.cuh", "points outside keep grad_columns where a thread is alone",
     "store_outside(geometry, tile, column, 0, factor);", ""),
    ("pullback.cuh", "dots not summed over lanes",
     "lanes.sum<false, true>(dots, weights[slot]);", ""),
    ("pullback.cuh", "a thread alone beyond the pixels", "if (!tile.holds(geometry, pixel))",
     "if (false)"),
    ("pullback.cuh", "points outside have gradients where a thread is alone", "if (point.inside)",
     "if (true)"),
    ("pullback.cuh", "gradients of points inside alone", "        writer.write(gradients);\n"
     "        column = column", "        if (point.inside) { writer.write(gradients); }\n"
     "        column = column"),
    ("pullback.cuh", "planes of the first tap", "column = column + tap_step;", ""),
    ("pullback.cuh", "the mask of no thread alone", "gradients.set(dots, point.y, point.x, factor)",
     "gradients.set(dots, point.y, point.x, 1)"),
    ("pullback.cuh", "deformable groups without the zeros between", "tile.group * COPY_SHARED",
     "tile.group * SHARED_CHANNELS"),
    ("pullback.cuh", "infinite masks unnoticed", "if (MASKED && factored)", "if (false)"),
    ("pullback.cuh", "infinite masks noticed by their own thread alone",
     "factored = __syncthreads_or(factored);", "__syncthreads();"),
    ("pullback.cuh", "no barrier before points are read",
     "factored = __syncthreads_or(factored);", ""),
    ("pullback.cuh", "no barrier before gradients", "if (GRAD_COORDINATES || !part.last())",
     "if (!part.last())"),
    ("pullback.cuh", "no barrier between parts of grad_x", "if (GRAD_COORDINATES || !part.last())",
     "if (GRAD_COORDINATES)"),
    ("pullback.cuh", "gradients of a row's first taps", "tap = row * KERNEL_WIDTH + part.column",
     "tap = row * KERNEL_WIDTH"),
    ("pullback.cuh", "points outside have dots", "if (cells[at] >= 0)", "if (true)"),
    ("pullback.cuh", "a fraction for the other", "x = fractions[1][at]", "x = fractions[0][at]"),
    ("pullback.cuh", "one mask for all taps of a row", "factor += geometry.mask.channel;", ""),
    ("pullback.cuh", "the first masks whatever the tap",
     "+ tap * geometry.mask.channel;\n        each_column",
     ";\n        each_column"),

    ("deform_backward.cu", "gradients of masks for offsets", "grad_offset, grad_mask);",
     "grad_mask, grad_offset);"),
    ("deform_backward.cu", "no sums", "mask, grad_image, grad_offset, grad_mask);",
     "mask, nullptr, grad_offset, grad_mask);"),
    ("deform_backward.cu", "no image", "(geometry, columns, image, offset,",
     "(geometry, columns, nullptr, offset,"),
    ("deform_col2im.cu", "no sums", "grad_image, nullptr, nullptr)",
     "nullptr, nullptr, nullptr)"),
    ("deform_col2im.cu", "offsets for masks", "nullptr, offset, mask,", "nullptr, offset, offset,"),
    ("deform_col2im.cu", "no offsets", "nullptr, offset, mask,", "nullptr, nullptr, mask,"),
    ("deform_coord_grad.cu", "gradients of masks for offsets", "grad_offset, grad_mask);",
     "grad_mask, grad_offset);"),
    ("deform_coord_grad.cu", "no image", "grad_columns, image, offset,",
     "grad_columns, nullptr, offset,"),
    ("deform_coord_grad.cu", "offsets for masks", "image, offset, mask, nullptr,",
     "image, offset, offset, nullptr,"),

    ("deform_direct.cu", "weights of another tap", "taps + tap * TAP_WEIGHTS, step, lane",
     "taps, step, lane"),
    ("deform_direct.cu", "weights of one tap alone", "                of_tap += TAP_WEIGHTS;\n",
     ""),
    ("deform_direct.cu", "weights of another deformable group",
     "deformable_group * SHARED_CHANNELS + in_row;", "in_row;"),
    ("deform_direct.cu", "weights taps last", "from[tap * GROUP_CHANNELS]",
     "from[tap * GROUP_CHANNELS * OUTPUTS]"),
    ("deform_direct.cu", "weights of one channel", "                             channel % GROUP_"
     "CHANNELS;", "                             0;"),
    ("deform_direct.cu", "weights of one output", "* OUTPUTS + output) * TAPS",
     "* OUTPUTS) * TAPS"),
    ("deform_direct.cu", "weights of one group", "(channel / GROUP_CHANNELS * OUTPUTS + output)",
     "(output)"),
    ("deform_direct.cu", "weights behind the channels",
     "output < OUTPUTS && in_row < SHARED_CHANNELS;", "true;"),
    ("deform_direct.cu", "weights of every other tap", "tap += AT_ONCE", "tap += 2 * AT_ONCE"),
    ("deform_direct.cu", "weights of a block's threads alone", "at += BLOCK", "at += TAP_WEIGHTS"),
    ("deform_direct.cu", "weights not waited for where threads are alone",
     "        __syncthreads();\n        const int pixel", "        const int pixel"),
    ("deform_direct.cu", "points not waited for", "factored = __syncthreads_or(factored);",
     "factored = 0;"),
    ("deform_direct.cu", "the left corner for the right", "above + channel + COPY_CHANNELS",
     "above + channel"),
    ("deform_direct.cu", "the row above for that below", "*below = above + pitch",
     "*below = above"),
    ("deform_direct.cu", "weights of the first row", "weights + first / LIVE * ROW + first",
     "weights + first"),
    ("deform_direct.cu", "a pack cut off", "i < first + PACK && i < OUTPUTS * LIVE",
     "i < first + 1 && i < OUTPUTS * LIVE"),
    ("deform_direct.cu", "sums of another output", "j / GROUP_CHANNELS * OUTPUTS + output]",
     "j / GROUP_CHANNELS * OUTPUTS]"),
    ("deform_direct.cu", "sums of the first group", "sums[j / GROUP_CHANNELS * OUTPUTS + output]",
     "sums[output]"),
    ("deform_direct.cu", "a bias for all", "bias[output]", "bias[0]"),
    ("deform_direct.cu", "the output of another deformable group",
     "(tile.group * SHARED_CHANNELS + channel) /", "channel /"),
    ("deform_direct.cu", "images as far apart as those of x",
     "in_output(geometry, GROUPS * OUTPUTS", "in_output(geometry, CHANNELS"),
    ("deform_direct.cu", "results behind the channels",
     "if (!PADDED || channel + j / OUTPUTS * GROUP_CHANNELS < SHARED_CHANNELS) {", "if (true) {"),
    ("deform_direct.cu", "vectors left out", "step < STEPS; step += HELD",
     "step < 1; step += HELD"),
    ("deform_direct.cu", "a factor left out", "FACTORED ? factor * value : value", "value"),
    ("deform_direct.cu", "the copy of another image", "tile.image * layout.size + ", ""),
    ("deform_direct.cu", "pixels beyond the output",
     "if (tile.holds(geometry, threadIdx.x / LANES)) {", "if (true) {"),

    ("sample_order.cu", "cells of another image", "    counts += images * cells;\n", ""),
    ("sample_order.cu", "points of another image", "places += images * TAPS * pixels + ",
     "places += "),
    ("sample_order.cu", "taps in one place", "        places += pixels;\n", ""),
    ("sample_order.cu", "points of no pixel", "if (!tile.holds(geometry, pixel)) {",
     "if (false) {"),
    ("sample_order.cu", "one cell more than there are", "x.whole + 1 : outside",
     "x.whole + 1 : cells"),
    ("sample_order.cu", "cells a row above", "(y.whole + 1) * pitch", "y.whole * pitch"),
    ("sample_order.cu", "counts that are stored", "atomicAdd(counts + cell, 1)",
     "counts[cell]++"),
    ("sample_order.cu", "starts behind the cell", "start + before - sum + own[i]",
     "start + before + own[i]"),
    ("sample_order.cu", "no barrier among sums",
     "        __syncthreads();\n        before += left;", "        before += left;"),
    ("sample_order.cu", "cells past the end", "        if (first + i < cells) {",
     "        if (true) {"),
    ("sample_order.cu", "all stretches from the start",
     "start = atomicAdd(counts + cells, before);", "start = 0;"),
    ("sample_order.cu", "one point more than there are", "if (sample < samples) {",
     "if (sample <= samples) {"),
    ("sample_order.cu", "points of a cell in one place", "starts[place.cell] + place.rank",
     "starts[place.cell]"),
    ("sample_order.cu", "stretches that end where they start",
     "counts[cells + 1 + blockIdx.x] = start + before;",
     "counts[cells + 1 + blockIdx.x] = start;"),
    ("sample_order.cu", "a point before itself", "order[other] < sample", "order[other] <= sample"),
    ("sample_order.cu", "ranks left unused", "ranked[place] = sample;", "ranked[at] = sample;"),

    ("order.cuh", "one end for all stretches", "cells + 1 + cell / STRETCH", "cells + 1"),
    ("order.cuh", "stretches as they are numbered", "cell % STRETCH == STRETCH - 1 || ", ""),
    ("order.cuh", "points of one image", "Tile(images / DEFORMABLE_GROUPS,", "Tile(0,"),
    ("order.cuh", "one deformable group", "images % DEFORMABLE_GROUPS)", "0)"),
    ("order.cuh", "one tap", "int(plane % TAPS)", "0"),
    ("order.cuh", "planes of images", ", int(plane)}", ", int(images)}"),
    ("order.cuh", "rows of columns", "pixel / unsigned(geometry.columns)",
     "pixel / unsigned(geometry.rows)"),
    ("order.cuh", "taps in one row", "tap / KERNEL_WIDTH, tap % KERNEL_WIDTH",
     "0, tap % KERNEL_WIDTH"),
    ("order.cuh", "channels where there are planes", "tap * tap_stride(geometry)",
     "tap * GROUP_CHANNELS"),

    ("deform_col2im_ordered.cu", "every other row", "number / across * 2 + odd / 2",
     "number / across * 2"),
    ("deform_col2im_ordered.cu", "a cell too few in a row", "(pitch + 1 - odd % 2) / 2",
     "pitch / 2"),
    ("deform_col2im_ordered.cu", "rows beyond the last", "if (row >= rows) {", "if (false) {"),
    ("deform_col2im_ordered.cu", "cells of one image", "plane * cells + row * pitch",
     "row * pitch"),
    ("deform_col2im_ordered.cu", "each lane at the same point", "order[first + lane]",
     "order[first]"),
    ("deform_col2im_ordered.cu", "points of the next cell", "min(LANES, span.last - first)",
     "LANES"),
    ("deform_col2im_ordered.cu", "a factor left out",
     "weights.at[k] *= MASKED ? other_part(factor) : compute_t(1);", ""),
    ("deform_col2im_ordered.cu", "the first channels alone", "blockIdx.y * HELD", "0"),
    ("deform_col2im_ordered.cu", "every lane at the first channels",
     "UNCUT ? lane * VECTOR : 0", "0"),
    ("deform_col2im_ordered.cu", "rights to the left", " + k % 2 * COPY_CHANNELS;", ";"),
    ("deform_col2im_ordered.cu", "the border's two sides at once",
     "(k % 2 ? column < geometry.width : column > 0)", "true"),
    ("deform_col2im_ordered.cu", "sums in each other's place", "total.at[j] += sums[i][k][j]",
     "total.at[j] = sums[i][k][j]"),
    ("deform_col2im_ordered.cu", "no barrier before the walk",
     "        __syncwarp(members);\n        const int here", "        const int here"),
    ("deform_col2im_ordered.cu", "no barrier behind the walk",
     "        __syncwarp(members);\n    }\n", "    }\n"),

    ("deform_backward_sorted.cu", "sums dropped at a new cell",
     "            if (current >= 0) {\n                held.add(",
     "            if (false) {\n                held.add("),
    ("deform_backward_sorted.cu", "sums dropped at the end",
     "\n    if (current >= 0) {\n        held.add(", "\n    if (false) {\n        held.add("),
    ("deform_backward_sorted.cu", "corners of the cell before",
     "held.load_corners(image + cell,",
     "held.load_corners(image + (current < 0 ? cell : current),"),
    ("deform_backward_sorted.cu", "sums that start anywhere", "sums[i][k][j] = 0;",
     "sums[i][k][j] = 1;"),
    ("deform_backward_sorted.cu", "points outside in a cell", "if (cell < 0) {",
     "if (cell < -1) {"),
    ("deform_backward_sorted.cu", "corners of one row", "above + k / 2 * pitch + ", "above + "),
    ("deform_backward_sorted.cu", "the right corner's sum to the left one",
     "add_atomically<COPY_CHANNELS>(above + at, sums[i][1]);",
     "add_atomically<0>(above + at, sums[i][1]);"),
    ("deform_backward_sorted.cu", "dots of the last vectors alone",
     "lanes.template sum<ADDED, false>", "lanes.template sum<false, false>"),
    ("deform_backward_sorted.cu", "vectors left out", "step = HELD; step < STEPS;",
     "step = HELD; step < 0;"),
    ("deform_backward_sorted.cu", "runs that overlap", "threadIdx.x / LANES * RUN",
     "threadIdx.x / LANES * (RUN - 1)"),
    ("deform_backward_sorted.cu", "points past the end", "min(POINTS, samples - first)",
     "POINTS"),
    ("deform_backward_sorted.cu", "planes of masks for offsets", "2 * at + pixels[slot]",
     "at + pixels[slot]"),
    ("deform_backward_sorted.cu", "no barrier before the gradients",
     "    __syncthreads();\n    const index_t plane", "    const index_t plane"),
    ("deform_backward_sorted.cu", "a factor left out",
     "sampled[j] = FACTORED ? factor * value : value;", "sampled[j] = value;"),
    ("deform_backward_sorted.cu", "a factor left out of the sums",
     "(FACTORED ? factor * weight.at[k] : weight.at[k])", "weight.at[k]"),
    ("deform_direct_backward.cu", "weights of another group",
     "tile.group * SHARED_CHANNELS + channel;", "channel;"),
    ("deform_direct_backward.cu", "weights taps last", "(row * TAPS + tap) * GROUP_CHANNELS",
     "(row + tap) * GROUP_CHANNELS"),
    ("deform_direct_backward.cu", "weights behind the channels",
     "taps[i] = !PADDED || channel < SHARED_CHANNELS", "taps[i] = true"),
    ("deform_direct_backward.cu", "pixels beyond the output as they were",
     "mark_missing(geometry, tile, cells);\n        each", "each"),
    ("deform_direct_backward.cu", "grad_output of another group",
     "tile.group * SHARED_CHANNELS + skipped, pixel", "skipped, pixel"),
    ("deform_direct_backward.cu", "grad_output beyond the output", "        if (held) {",
     "        if (true) {"),
    ("deform_direct_backward.cu", "grad_output behind the channels",
     "if ((!RAGGED && !PADDED) || skipped + within + j < SHARED_CHANNELS)", "if (true)"),
    ("deform_direct_backward.cu", "grad_output of one channel",
     "channel = channel + channel_step", "channel = channel + 0"),
    ("deform_direct_backward.cu", "weights of the first taps",
     "taps + (tap * OUTPUTS + o) * COPY_SHARED +",
     "taps + (run.phase * OUTPUTS + o) * COPY_SHARED +"),
    ("deform_direct_backward.cu", "weights of the first slice",
     "step * LANES * VECTOR + within);", "within);"),
    ("deform_direct_backward.cu", "points of the first taps", "weights += run.slot + first_tap",
     "weights += run.slot"),
    ("deform_direct_backward.cu", "cells of the first taps", "cells += run.slot + first_tap",
     "cells += run.slot"),
    ("deform_direct_backward.cu", "infinite masks of another pixel",
     "factor_at(mask_of(geometry, tile, mask, pixel)",
     "factor_at(mask_of(geometry, tile, mask, run.first_pixel)"),
    ("deform_direct_backward.cu", "0 outside whatever the mask", "* (factor * 0)",
     "* compute_t(0)"),
    ("deform_direct_backward.cu", "points outside like all others", "if (cell < 0)",
     "if (false)"),
    ("deform_direct_backward.cu", "points at the first pixel skipped", "if (cell < 0)",
     "if (cell <= 0)"),
    ("deform_direct_backward.cu", "columns that are grad_output",
     "of_tap[i.value][0].at[j] * grad.at[output_of(j, 0)]", "grad.at[output_of(j, 0)]"),
    ("deform_direct_backward.cu", "the weight's gradient of grad_columns",
     "grad.at[output_of(c, o)] * (FACTORED", "wide[c] * (FACTORED"),
    ("deform_direct_backward.cu", "the weight's gradient without infinite masks",
     "(FACTORED ? factor * sampled[c] : sampled[c])", "sampled[c]"),
    ("deform_direct_backward.cu", "dots of one slice alone",
     "            if (SLICED) {\n                add(totals",
     "            if (false) {\n                add(totals"),
    ("deform_direct_backward.cu", "dots that start as they were", "totals[slot] = Weights{};",
     ";"),
    ("deform_direct_backward.cu", "dots of one lane", "for (int lane = 1; lane < LANES; ++lane)",
     "for (int lane = 1; lane < 1; ++lane)"),
    ("deform_direct_backward.cu", "dots of points outside",
     "if (tap < TAPS && cells[slot] >= 0)", "if (tap < TAPS)"),
    ("deform_direct_backward.cu", "sums of the last tile alone", "            if (!first) {",
     "            if (false) {"),
    ("deform_direct_backward.cu", "sums that start as they were", "            if (!first) {",
     "            if (true) {"),
    ("deform_direct_backward.cu", "sums of one run", "for (int run = 0; run < RUNS; ++run)",
     "for (int run = 0; run < 1; ++run)"),
    ("deform_direct_backward.cu", "sums of the first slice",
     "channel = step * LANES * VECTOR + within", "channel = within"),
    ("deform_direct_backward.cu", "sums behind the taps",
     "if (tap < TAPS && channel < COPY_SHARED)", "if (channel < COPY_SHARED)"),
    ("deform_direct_backward.cu", "the sums of one block",
     "partial += ((index_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockI"
     "dx.x) * TAPS *\n               OUTPUTS * COPY_SHARED;", ""),
    ("deform_direct_backward.cu", "one tile a block", "row += gridDim.y * TILE_HEIGHT",
     "row = geometry.rows"),
    ("deform_direct_backward.cu", "points not waited for",
     "factored = __syncthreads_or(factored);", ""),
    ("deform_direct_backward.cu", "infinite masks unnoticed", "if (MASKED && factored)",
     "if (false)"),
    ("deform_direct_backward.cu", "a slice not waited for",
     "slice);\n            __syncthreads();", "slice);"),
    ("deform_direct_backward.cu", "dots and sums not waited for",
     "                }\n                __syncthreads();\n"
     "                if (GRAD_COORDINATES)",
     "                }\n                if (GRAD_COORDINATES)"),
    ("deform_direct_backward.cu", "dots and sums overwritten",
     "tap, step);\n                }\n                __syncthreads();",
     "tap, step);\n                }"),
    ("deform_direct_backward.cu", "the copy of another image", "corner.image * layout.size + ",
     ""),
    ("deform_direct_backward.cu", "deformable groups without the zeros between",
     "corner.group * COPY_SHARED", "corner.group * SHARED_CHANNELS"),
    ("deform_direct_backward.cu", "slices left out", "step < STEPS; step += HELD",
     "step < HELD; step += HELD"),
    ("deform_direct_backward.cu", "the first slice's channels",
     "(step * LANES + run.lane) * VECTOR", "run.lane * VECTOR"),
    ("deform_direct_backward.cu", "another output of the group",
     "return channel / GROUP_CHANNELS * OUTPUTS + output;",
     "return channel / GROUP_CHANNELS * OUTPUTS + (output + 1) % OUTPUTS;"),
    ("deform_direct_backward.cu", "one output of a group",
     "for (int o = 1; o < OUTPUTS; ++o)", "for (int o = 1; o < 1; ++o)"),
    ("deform_direct_backward.cu", "the sums of one output", "output = of % OUTPUTS;",
     "output = 0;"),
    ("deform_direct_backward.cu", "taps left out", "tap < TAPS; tap += RUN",
     "tap < RUN; tap += RUN"),
    ("deform_direct_backward.cu", "taps behind the last", "if (tap + run.phase < TAPS)",
     "if (true)"),

    ("tangent.cuh", "the first tap's direction for all", "tile.group * TAPS + tap;",
     "tile.group * TAPS;"),
    ("tangent.cuh", "dy of the direction twice", "widen(shift[strides.channel])",
     "widen(shift[0])"),
    ("tangent.cuh", "the mask's direction by other strides", "tile.in(direction.strides.mask,",
     "tile.in(direction.strides.offset,"),
    ("tangent.cuh", "a mask that stays below", "by_factor * y + factor * by_y", "factor * by_y"),
    ("tangent.cuh", "an offset without its mask", "by_factor * y + factor * by_y",
     "by_factor * y + by_y"),
    ("tangent.cuh", "all rows alike", "by_upper = by_factor - by_lower",
     "by_upper = by_factor + by_lower"),
    ("tangent.cuh", "the left corner as the right", "by_upper * (1 - x) - upper * by_x",
     "by_upper * (1 - x) + upper * by_x"),
    ("tangent.cuh", "the lower right corner alone", "by_lower * x + lower * by_x", "by_lower * x"),
    ("tangent.cuh", "rows of the kernel end a tap early", "(tap + 1) % KERNEL_WIDTH == 0",
     "tap % KERNEL_WIDTH == 0"),
    ("tangent.cuh", "two rows exchanged for columns", "(K / 2) * pitch + (K % 2)",
     "(K % 2) * pitch + (K / 2)"),
    ("tangent.cuh", "masks that do not move alone", "return offset || mask", "return offset"),

    ("deform_im2col_tangent.cu", "all lanes the first", "lane = threadIdx.x % LANES", "lane = 0"),
    ("deform_im2col_tangent.cu", "pixels beyond the tile", "if (!tile.holds(geometry, pixel))",
     "if (false)"),
    ("deform_im2col_tangent.cu", "the first image for all", "tile.image * layout.size + ", ""),
    ("deform_im2col_tangent.cu", "the first deformable group for all",
     "tile.group * COPY_SHARED + ", ""),
    ("deform_im2col_tangent.cu", "directions of outside points",
     "point.inside && direction.moves()", "direction.moves()"),
    ("deform_im2col_tangent.cu", "x's direction by the weights' tangents",
     "layout.pitch, point.weights", "layout.pitch, point.tangents"),
    ("deform_im2col_tangent.cu", "x by the weights", "point.tangents, sums", "point.weights, sums"),
    ("deform_im2col_tangent.cu", "every tap where the first is",
     "column + tap * tap_stride(geometry), lane, channel", "column, lane, channel"),
    ("deform_im2col_tangent.cu", "the last corner alone", "sums[i] += ", "sums[i] = "),

    ("deform_double_backward.cu", "half of the lanes", "LANES > 1 ? exchange<1>(members, value)",
     "false ? exchange<1>(members, value)"),
    ("deform_double_backward.cu", "a quarter of the lanes",
     "LANES > 4 ? exchange<4>(members, value)", "LANES > 8 ? exchange<4>(members, value)"),
    ("deform_double_backward.cu", "too few members", "(1u << LANES) - 1)", "(1u << LANES) / 2)"),
    ("deform_double_backward.cu", "turned columns in the dots of others",
     "p.at[k.value] += grad[i]", "p.at[k.value] += turned[i]"),
    ("deform_double_backward.cu", "dots with x's direction turned", "q.at[k.value] += grad[i]",
     "q.at[k.value] += turned[i]"),
    ("deform_double_backward.cu", "weights that stay",
     "moves ? point.tangents.at[k.value] * grad[i]", "moves ? 0"),
    ("deform_double_backward.cu", "turned columns by tangents",
     "point.weights.at[k.value] * turned[i]", "point.tangents.at[k.value] * turned[i]"),
    ("deform_double_backward.cu", "all to the left corners", "k.value % 2 * COPY_CHANNELS", "0"),
    ("deform_double_backward.cu", "all to the upper corners", " + k.value / 2 * pitch", ""),
    ("deform_double_backward.cu", "no twist", "- p.at[2] + p.at[3])", "- p.at[2] - p.at[3])"),
    ("deform_double_backward.cu", "twist by the wrong axis", "point.by_x * twist",
     "point.by_y * twist"),
    ("deform_double_backward.cu", "a mask by dy alone", " + point.by_x * slopes.x", ""),
    ("deform_double_backward.cu", "outside points", "if (point.inside)", "if (true)"),
    ("deform_double_backward.cu", "gradients written by no thread", "if (lane == 0)",
     "if (lane == LANES)"),
)]  # fmt: skip


class Trial(NamedTuple):
    """A call that planted faults have to survive; ``direct``: its forward has no columns."""

    case: Case
    dtype: type
    capability: str
    wide: bool
    sorts: bool
    direct: bool
    deterministic: bool
    changes: dict


def trial(
    case, dtype=np.float32, capability="90", wide=False, sorts=False, direct=False,
    deterministic=False, **changes
):  # fmt: skip
    return Trial(case, dtype, capability, wide, sorts, direct, deterministic, changes)


def infinite_mask(case):
    # Beside an infinite factor some of the samples are outside, where it makes NaN.
    mask = case.arrays(np.float32)[4]
    mask[:, ::3, ::3, ::2] = np.inf  # others at every part of the taps
    return mask


def broken_point(case):
    """One point outside the image, with a mask that is no number: 0 times it is none either."""
    _, offset, _, _, mask, _ = case.arrays(np.float32)
    offset[0, 2:4, 1, 2], mask[0, 1, 1, 2] = 50, np.nan
    return {"offset": offset, "mask": mask}


def edges(case):
    """Offsets to every pair of places about the edges of the image, or of no numbers."""
    height, width = case.size
    ys, xs = ((-1, -0.5, 0, 1.5, n - 1, n - 0.5, n, 1e20, np.nan, np.inf) for n in (height, width))
    offset = np.zeros_like(case.arrays(np.float32)[1])
    base = cupy_dcn.sampling_grid(offset, case.kernel, case.stride)
    places = np.array(list(itertools.product(ys, xs)), np.float32)
    chosen = np.resize(places, (base[0].size, 2))  # all of them, once or twice
    assert len(chosen) >= len(places)
    for axis in range(2):
        offset[:, axis::2] = chosen[:, axis].reshape(base[axis].shape) - base[axis]
    return offset


def with_broken_pixel(case):
    # In the last row and the first column; what lies outside must not touch it, even times 0.
    x = case.arrays(np.float32)[0]
    x[:, 0, -1, 0] = np.inf
    return x


def ties(case):
    """Neighbouring bfloat16 numbers, whose means lie exactly between two of them."""
    return np.random.default_rng(2).integers(128, 256, case.arrays()[0].shape).astype(BFLOAT16)


VIEWED = Case(2, 8, (5, 6), 3, (3, 3), padding=(1, 1, 1, 1))
EDGES = Case(7, 2, (4, 5), 2, (1, 2), stride=(1, 2))
SHARED_EDGES = Case(7, 6, (4, 5), 2, (1, 2), stride=(1, 2))
TIES = Case(1, 16, (4, 5), 1, (1, 1), masked=False)
HALF_A_ROW = np.array([0.5, 0] * 20).reshape(1, 20, 2).transpose(0, 2, 1).reshape(1, 2, 4, 5)
BROKEN_MASK = Case(1, 4, (4, 5), 2, (3, 3), padding=(1, 1, 1, 1))
SHARED_BROKEN = Case(1, 8, (4, 5), 2, (5, 5), padding=(2, 2, 2, 2))  # taps in parts
DEPTHWISE_BROKEN = Case(1, 10, (5, 6), 10, (3, 3), groups=10, padding=(1, 1, 1, 1))
FEW_BROKEN = Case(1, 18, (5, 6), 18, (2, 2), groups=9, spread=0.2)
DEPTHWISE_INSIDE = Case(1, 22, (5, 6), 22, (2, 2), deformable_groups=2, groups=22, spread=0.2)
SORTED_INSIDE = Case(1, 16, (5, 6), 2, (2, 2), spread=0.2)
TRIALS = [  # those that notice the most come first
    # Threads alone at their pixels; lanes that share one, with zeros behind the channels.
    trial(SMALL),
    trial(Case(2, 22, (5, 6), 4, (3, 2), (2, 1), (1, 1, 0, 0), deformable_groups=2, groups=2)),
    # Taps in parts: some rows of the kernel, with masks of no numbers, or pieces of one row.
    trial(SHARED_BROKEN, mask=infinite_mask(SHARED_BROKEN)),
    trial(Case(1, 4, (3, 4), 1, (3, 33), dilation=(1, 2), padding=(1, 1, 32, 32)), np.float64),
    trial(Case(2, 64, (4, 5), 2, (3, 3), deformable_groups=2, padding=(1, 1, 1, 1))),
    trial(EDGES, offset=edges(EDGES)),
    trial(SHARED_EDGES, offset=edges(SHARED_EDGES), x=with_broken_pixel(SHARED_EDGES)),
    # Several tiles along both axes, blocks of channels and pixels, steps of lanes.
    trial(Case(2, 3, (9, 17), 2, (3, 3), dilation=(1, 2), padding=(1, 1, 2, 2))),
    trial(Case(1, 40, (9, 10), 2, (2, 2), groups=2, padding=(1, 0, 1, 0))),
    trial(Case(1, 36, (4, 5), 2, (2, 2))),
    trial(Case(1, 260, (2, 3), 1, (1, 1))),
    # Groups that cut through deformable groups, and zeros between those.
    trial(Case(1, 12, (3, 4), 3, (2, 2), deformable_groups=4, groups=3)),
    trial(Case(1, 12, (3, 4), 3, (2, 2), deformable_groups=2, groups=3)),
    trial(Case(1, 16, (3, 4), 8, (2, 2), deformable_groups=2, groups=8, masked=False)),
    trial(Case(1, 5, (4, 5), 2, (2, 2))),
    trial(Case(1, 17, (4, 5), 2, (2, 2))),
    trial(VIEWED, x=VIEWS["reversed"](VIEWED.arrays(np.float32)[0])),
    trial(BROKEN_MASK, mask=infinite_mask(BROKEN_MASK)),
    trial(BROKEN_MASK, **broken_point(BROKEN_MASK)),
    trial(SHARED_BROKEN, **broken_point(SHARED_BROKEN)),
    trial(SMALL, np.float64),
    trial(Case(1, 16, (4, 5), 1, (1, 1)), np.float64),
    trial(Case(2, 6, (5, 6), 2, (2, 2)), np.float32, "75"),
    trial(SMALL, wide=True),
    trial(Case(2, 32, (4, 5), 2, (2, 1)), wide=True),
    # Few sums and the nearest numbers alone: a wrong rounding is seen.
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), np.float16),
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), BFLOAT16),
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), BFLOAT16, "75"),
    trial(TIES, BFLOAT16, "75", x=ties(TIES), offset=HALF_A_ROW.astype(BFLOAT16)),
    # Without columns: more vectors than are held, broken masks, threads alone, several outputs.
    trial(Case(2, 76, (5, 9), 76, (3, 3), groups=76, padding=(1, 1, 1, 1)), direct=True),
    trial(DEPTHWISE_BROKEN, mask=infinite_mask(DEPTHWISE_BROKEN), direct=True),
    trial(DEPTHWISE_BROKEN, **broken_point(DEPTHWISE_BROKEN), direct=True),
    trial(DEPTHWISE_INSIDE, mask=infinite_mask(DEPTHWISE_INSIDE), direct=True),
    trial(Case(2, 6, (9, 17), 6, (2, 2), groups=6, deformable_groups=2), direct=True),
    trial(Case(2, 24, (5, 9), 24, (3, 2), groups=6, deformable_groups=2), direct=True),
    trial(FEW_BROKEN, mask=infinite_mask(FEW_BROKEN), direct=True),
    trial(Case(2, 6, (5, 6), 12, (3, 2), groups=2, deformable_groups=2), direct=True),
    trial(Case(1, 28, (4, 5), 42, (2, 2), groups=14, deformable_groups=2), direct=True),
    trial(Case(1, 144, (2, 3), 144, (2, 2), groups=36), direct=True),
    # Points ordered by cell: walked several times, some outside, cells of more than one block.
    trial(Case(2, 136, (4, 5), 2, (2, 2), deformable_groups=2, padding=(1, 0, 1, 0)), sorts=True),
    trial(SHARED_EDGES, offset=edges(SHARED_EDGES), x=with_broken_pixel(SHARED_EDGES), sorts=True),
    trial(SHARED_BROKEN, mask=infinite_mask(SHARED_BROKEN), sorts=True),
    trial(SORTED_INSIDE, mask=infinite_mask(SORTED_INSIDE), sorts=True),
    trial(Case(1, 8, (36, 30), 1, (1, 1), spread=4.0), sorts=True),
    trial(Case(1, 16, (4, 5), 1, (2, 2)), np.float64, sorts=True),
    # Ordered in cells, too: channels in two parts, threads alone, groups that cut, wide indices.
    trial(
        Case(2, 136, (4, 6), 2, (2, 2), deformable_groups=2, padding=(1, 0, 1, 0)),
        deterministic=True,
    ),
    trial(EDGES, offset=edges(EDGES), deterministic=True),
    trial(SHARED_BROKEN, mask=infinite_mask(SHARED_BROKEN), deterministic=True),
    trial(Case(1, 8, (36, 31), 1, (1, 1), spread=4.0), deterministic=True),
    trial(
        Case(2, 12, (3, 4), 3, (2, 2), deformable_groups=2, groups=3), np.float64, wide=True,
        deterministic=True,
    ),
]  # fmt: skip


# All kernels of the backward, and the one in one pass with each set of its gradients.
NEEDS = (
    GRADIENTS, ("x",), ("offset", "mask"), ("weight",), ("x", "offset"), ("x", "weight"),
    ("mask", "weight"),
)  # fmt: skip


def stage_columns(case, dtype, host):
    return [host[name] for name in ("x", "offset")], {
        "mask": host["mask"],
        **{k: v for k, v in case.attributes.items() if k != "groups"},
    }


@functools.cache
def reference(number):
    """What the NumPy path says to a trial: columns in the trial's dtype, then all gradients."""
    case, dtype, changes = TRIALS[number].case, TRIALS[number].dtype, TRIALS[number].changes
    inputs = Inputs(case, dtype, **changes)
    arrays, keywords = stage_columns(case, dtype, inputs.host)
    with np.errstate(all="ignore"):
        columns = cupy_dcn.deform_im2col(*arrays, case.kernel, **keywords, groups=case.groups)
        wide = {k: v if v is None else v.astype(float) for k, v in inputs.host.items()}
        grad_output = wide.pop("grad_output")
        gradients = cupy_dcn.deform_conv2d_backward(grad_output, **wide, **case.attributes)
    return columns, gradients


def keeps_few(case):
    """Tell whether groups have as many channels out as in, 1, 2 or 4."""
    return case.channels == case.out_channels and case.channels // case.groups in (1, 2, 4)


@functools.cache
def reference_output(number):
    """What the NumPy path says to a trial's forward."""
    case, dtype, changes = TRIALS[number].case, TRIALS[number].dtype, TRIALS[number].changes
    inputs = Inputs(case, dtype, **changes)
    with np.errstate(all="ignore"):
        wide = {k: v if v is None else v.astype(float) for k, v in inputs.host.items()}
        del wide["grad_output"]
        return cupy_dcn.deform_conv2d(**wide, **case.attributes)


@functools.cache
def reference_coordinates(number):
    """What the NumPy path says to the gradients of offset and mask by a trial's columns."""
    case, dtype, changes = TRIALS[number].case, TRIALS[number].dtype, TRIALS[number].changes
    host = {
        k: v if v is None else v.astype(float)
        for k, v in Inputs(case, dtype, **changes).host.items()
    }
    arrays, keywords = stage_columns(case, dtype, host)
    columns = reference(number)[0].astype(float)
    return cupy_dcn.deform_coord_grad(columns, *arrays, case.kernel, **keywords)


def are_nearest(ours, exact):
    """Tell whether almost all are the nearest numbers of their dtype: not where roundings meet."""
    return ours is None or np.count_nonzero(ours != exact.astype(ours.dtype)) <= ours.size // 50


def problem_of(number, monkeypatch):
    """Run a trial; return what was wrong, None for nothing."""
    case, dtype, capability, wide, sorts, direct, deterministic, changes = TRIALS[number]
    columns, gradients = reference(number)
    half = np.dtype(dtype).itemsize == 2
    with monkeypatch.context() as patch, configure(compute_capability=capability):
        if wide:
            wide_indices(patch)
        patch.setattr(_gpu, "pays", lambda *_: sorts)
        inputs = Inputs(case, dtype, **changes)
        arrays, keywords = stage_columns(case, dtype, inputs.device)
        try:
            keywords["groups"] = case.groups
            ours = cupy_dcn.deform_im2col(*arrays, case.kernel, **keywords)
            ours = on_host(ours)
            if half and not are_nearest(ours, columns):
                return "columns that are not the nearest numbers"
            if not half and not agree(ours, columns, NOISE[dtype]):
                return "wrong columns"
            # One value times one factor: an infinity stays one.
            if not np.array_equal(np.isnan(ours), np.isnan(columns)):
                return "columns that are no numbers"
            if direct and not agree(
                on_host(inputs.forward()), reference_output(number), NOISE[dtype]
            ):
                return "a wrong output"
            given = dcn.to_device(columns)
            del keywords["groups"]
            coordinates = cupy_dcn.deform_coord_grad(given, *arrays, case.kernel, **keywords)
            if half and not all(
                map(are_nearest, map(on_host, coordinates), reference_coordinates(number))
            ):
                return "gradients of coordinates that are not the nearest numbers"
            if not np.array_equal(on_host(given).view(np.uint8), columns.view(np.uint8)):
                return "written columns that were to be read"
            # In chunks, too: several rows of one image each, or a quarter of one.
            backward = functools.partial(inputs.backward, deterministic=deterministic)
            pixels = max(24, columns.shape[2] // 4)
            for budget in (None, pixels * least_workspace(backward)):
                # And in as few blocks as there can be, that walk down the image.
                patch.setattr(_cut_gpu, "MOST_SUMS", _cut_gpu.MOST_SUMS if budget is None else 1)
                for needs in NEEDS:
                    found = backward(workspace_bytes=budget, needs=needs)
                    for name, one, other in zip(GRADIENTS, found, gradients, strict=True):
                        due = name in needs and other is not None
                        if due and not agree(on_host(one), other, NOISE[dtype]):
                            return f"wrong gradient of {name} among {', '.join(needs)}"
            if deterministic:
                found = on_host(backward(needs=("x",)).x)
                for schedule in (2, 3):  # which turn round two blocks, too
                    with configure(schedule=schedule):
                        again = on_host(backward(needs=("x",)).x)
                    if not np.array_equal(again, found, equal_nan=True):
                        return "other bits in another order"
        except Crime as crime:
            return f"{type(crime).__name__}: {crime.what}"
    return None


# Files of derivatives along a direction, and what they are tried on.
ALONG = ("tangent.cuh", "deform_im2col_tangent.cu", "deform_double_backward.cu")
OUTER = Case(1, 64, (4, 5), 3, (2, 2), spread=3.0)


def broken_outside(made):
    """A direction that is no number at the points outside the image, where it does not count."""
    offset, (height, width) = made.arrays["offset"], made.case.size
    py, px = cupy_dcn.sampling_grid(offset, made.case.kernel)
    outside = ~((py > -1) & (py < height) & (px > -1) & (px < width))
    assert 0 < outside.sum() < outside.size
    made.tangents.mask[outside] = np.nan
    made.tangents.offset[np.repeat(outside, 2, axis=1)] = np.nan
    return made


DIRECTIONS = [
    Direction(SMALL, np.float32),  # threads alone
    broken_outside(Direction(OUTER, np.float32)),  # 8 LANES
    Direction(Case(2, 16, (9, 5), 4, (2, 2), deformable_groups=2, groups=2), np.float32),  # 2 LANES
    Direction(Case(1, 16, (3, 9), 2, (1, 2), masked=False), np.float32),  # and 4
]


def problem_along(number):
    """Run the derivatives along a direction; return what was wrong, None for nothing."""
    made = DIRECTIONS[number]
    expected = along_on_host(number)
    directions = {"all": made.tangents}
    if made.tangents.mask is not None:
        directions["mask"] = Tangents(mask=made.tangents.mask)
    try:
        for moved, tangents in directions.items():
            ours = made.both(dcn, tangents)
            for name, reference in expected[moved].items():
                if reference is not None and not agree(ours[name], reference, NOISE[np.float32]):
                    return f"wrong {name} where {moved} moves"
    except Crime as crime:
        return f"{type(crime).__name__}: {crime.what}"
    return None


@functools.cache
def along_on_host(number):
    """What the NumPy path says to such a direction."""
    made = DIRECTIONS[number].wide()
    return {"all": made.both(), "mask": made.both(tangents=Tangents(mask=made.tangents.mask))}


def agree(ours, expected, relative):
    """Tell whether numbers are close, and infinite or NaN in the same places."""
    ours, finite = ours.astype(np.float64), np.isfinite(expected)
    if not np.array_equal(np.isfinite(ours), finite):
        return False
    scale = np.abs(expected[finite]).max(initial=0)
    return bool(np.all(np.abs(ours[finite] - expected[finite]) <= relative * scale))


# Or they would find every fault.
@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_trials_find_nothing_wrong(cupy, number, monkeypatch):
    assert problem_of(number, monkeypatch) is None


@pytest.mark.parametrize("number", range(len(DIRECTIONS)))
def test_trials_of_derivatives_find_nothing_wrong(cupy, number):
    assert problem_along(number) is None


def pytest_generate_tests(metafunc):
    """Plant each tenth fault, or with --every-fault all of them."""
    if "fault" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-fault")
        chosen = FAULTS if every else FAULTS[::10]
        metafunc.parametrize("fault", chosen, ids=lambda f: f"{f.file}: {f.what}")


def test_planted_faults_are_caught(cupy, own_kernels, monkeypatch, fault):
    # A text that is there no longer, or twice, no longer plants the fault it is meant to be.
    text, old = _text_of(fault.file), fault.old
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {fault.file}"
    sources = {file: _kernels.source(file) for file in set(_kernels.FILES.values())}
    spoiled = {file: source.replace(old, fault.new) for file, source in sources.items()}
    assert spoiled != sources
    monkeypatch.setattr(_kernels, "source", spoiled.__getitem__)
    numbers = range(len(TRIALS))
    if fault.file == "numeric.cuh":  # other dtypes and older GPUs first; in the list they come last
        numbers = sorted(numbers, key=lambda n: TRIALS[n][1:3] == (np.float32, "90"))
    if fault.file in ALONG:
        CAUGHT[fault] = next(filter(None, map(problem_along, range(len(DIRECTIONS)))), None)
        assert CAUGHT[fault], "nothing noticed"
        return
    if fault.file in ORDERING:
        kinds = ORDERING[fault.file]
        numbers = [n for kind in kinds for n in numbers if getattr(TRIALS[n], kind)]
    if fault.file == "deform_direct.cu":
        numbers = [number for number in numbers if TRIALS[number].direct]
    if fault.file == "deform_direct_backward.cu":
        numbers = [number for number in numbers if keeps_few(TRIALS[number].case)]
    CAUGHT[fault] = next(filter(None, (problem_of(n, monkeypatch) for n in numbers)), None)
    assert CAUGHT[fault], "nothing noticed; of the others:\n" + "\n".join(
        f"{each.file}: {each.what} -> {by}" for each, by in CAUGHT.items()
    )


CAUGHT = {}
ORDERING = {  # and which trials run what is in a file
    "deform_backward_sorted.cu": ("sorts",),
    "deform_col2im_ordered.cu": ("deterministic",),
    "order.cuh": ("deterministic", "sorts"),
    "sample_order.cu": ("sorts", "deterministic"),
}


def _text_of(file):
    return (_kernels.folder() / file).read_text("utf-8")


def test_every_file_has_its_faults():
    counts = Counter(fault.file for fault in FAULTS)
    assert set(counts) == {path.name for path in _kernels.folder().glob("*.cu*")}
    # Three kernels are one call each.
    assert min(counts.values()) >= 3
    few = {file for file, count in counts.items() if count < 8}
    assert few == {file for file in counts if "pull_back(" in _text_of(file)} - {"pullback.cuh"}
    assert len({(fault.file, fault.what) for fault in FAULTS}) == len(FAULTS)
