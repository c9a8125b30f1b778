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
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, Case, assert_close, least_workspace
from emulated_cupy import configure, recorded
from emulator import Crime
from libraries import dcn, libraries

import cupy_dcn
from cupy_dcn import _kernels, _matmul_gpu, _oracle, _plan_gpu
from cupy_dcn._geometry import Geometry
from cupy_dcn._specialisation import lane_count, sampling_macros, transpose_macros

BFLOAT16 = ml_dtypes.bfloat16
# What results in a dtype may differ by from float64's, as a share of the largest.
NOISE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 2e-2, BFLOAT16: 1e-1}
DTYPES = list(NOISE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
# The kernels of a forward and a backward of all gradients.
WHOLE = {"to_channels_last", "deform_im2col", "deform_backward", "from_channels_last"}
# Two images, two groups, three deformable groups, all sizes different; and a plain layer.
SMALL = Case(
    2, 6, (7, 8), 4, (3, 2), (2, 1), (1, 1, 0, 0), deformable_groups=3, groups=2
)  # fmt: skip
PLAIN = Case(3, 4, (5, 6), 2, (3, 3), padding=(1, 1, 1, 1))


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
    assert written[:3] == [
        ("cupy_copy", weight.nbytes), ("memset", sums * sum_size), ("cupy_copy", weight.nbytes),
    ]  # fmt: skip
    assert written[3] == ("cupy_sum", bias.size * sum_size)
    assert written[4:] in ([("memcpy", bias.nbytes)], [("cupy_copy", bias.nbytes)])
    # Gradients of the columns for all images at once, those of the weight image by image.
    products = min(case.images, case.groups) + case.images
    assert len(log.products) == products
    assert len(log.launches) + len(log.operations) + products == 8 + products <= 14
    # Five results, two copies of the weight, the sums of the bias, and one block.
    assert len(log.allocations) == 9


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
        ("x", "offset"): (1, 1, 0), ("x", "mask"): (1, 1, 0), ("x", "weight"): (1, 0, 1),
        ("offset", "weight"): (0, 1, 1), ("mask", "weight"): (0, 1, 1), GRADIENTS: (1, 1, 1),
    }  # fmt: skip
    for needs, wants in pairs.items():
        with recorded() as log:
            inputs.backward(needs=needs)
        assert_no_waiting(log)
        written = ["from_channels_last"] * ("x" in needs)
        assert names_of(log.launches) == ["to_channels_last", "deform_backward", *written]
        made = [m for name, m in _kernels.compiled() if name == "deform_backward"]
        assert wants in {(m.grad_x, m.grad_coordinates, m.columns) for m in made}
        # Gradients of the columns, and where the weight's is wanted one product an image.
        assert len(log.products) == 1 + PLAIN.images * ("weight" in needs)
    assert len(made) == 4
    # Offset and mask are one gradient to the kernels, of coordinates.
    with recorded() as log:
        inputs.backward(needs=("offset", "mask"))
    assert names_of(log.launches) == ["to_channels_last", "deform_coord_grad"]


def test_the_stages_wait_for_nothing_and_copy_nothing(cupy):
    x, offset, _, _, mask, _ = map(dcn.to_device, PLAIN.arrays(np.float32))
    attributes = {"padding": 1, "mask": mask}
    with recorded() as log:
        columns = cupy_dcn.deform_im2col(x, offset, 3, **attributes)
        cupy_dcn.deform_col2im(columns, offset, PLAIN.size, 3, **attributes)
        cupy_dcn.deform_coord_grad(columns, x, offset, 3, **attributes)
    assert_no_waiting(log)
    assert names_of(log.launches) == [
        "to_channels_last", "deform_im2col", "deform_col2im", "from_channels_last",
        "to_channels_last", "deform_coord_grad",
    ]  # fmt: skip
    assert names_of(log.operations) == ["memset"]
    assert not log.products


# Deformable groups, and groups whose edges lie within them; more taps than are held at once.
ANY_NEEDS = [
    SMALL,
    Case(2, 12, (4, 5), 6, (3, 3), padding=(1, 1, 1, 1), deformable_groups=2, groups=3),
    Case(1, 16, (4, 5), 4, (3, 3), padding=(1, 1, 1, 1), groups=2),
    Case(1, 4, (7, 6), 2, (5, 5), padding=(2, 2, 2, 2), deformable_groups=2),
    Case(1, 64, (3, 4), 2, (2, 2), padding=(1, 0, 1, 0), deformable_groups=2),
]


def test_layers_of_any_needs_are_of_all_kinds(cupy, own_kernels):
    for case in ANY_NEEDS:
        Inputs(case).backward()
    made = [macros for name, macros in _kernels.compiled() if name == "deform_backward"]
    assert len(made) == len(ANY_NEEDS)
    cut = {(m.channels // m.groups) % (m.channels // m.deformable_groups) != 0 for m in made}
    rounds = {m.taps_at_once < m.kernel_height * m.kernel_width for m in made}
    assert cut == rounds == {False, True}
    assert {m.lanes for m in made} >= {1, 2, 8}
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
    for count in range(4):
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
def test_products_read_and_write_in_place(cupy, dtype):
    # Images are the batch; the weight is read once for all of them (a stride of 0).
    inputs, size = Inputs(PLAIN, dtype), np.dtype(dtype).itemsize
    pixels, depth, out = 5 * 6, 9 * 4, 2
    for bias in (None, inputs.device["bias"]):
        with recorded() as log:
            inputs.forward(bias=bias)
        (product,) = log.products
        beta = int(bias is not None)
        assert (product.transa, product.transb) == (1, 0)
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
    assert (columns.m, columns.n, columns.k, columns.batch) == (depth, pixels, out, 3)
    assert columns.bytes_read == (3 * pixels * out + depth * out) * size
    assert [(p.transa, p.transb, p.beta, p.batch) for p in weights] == [
        (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 1)
    ]  # fmt: skip
    assert {(p.m, p.n, p.k) for p in weights} == {(depth, out, pixels)}
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


def layer(images, channels, size, out_channels=4):
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
    monkeypatch.setattr(_plan_gpu, "index_dtype", lambda sizes, geometry: np.dtype(np.int64))


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
    assert {name for name, _ in _kernels.compiled()} == set(_kernels.FILES)


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
    # The weight to be multiplied with, twice, its gradient, the bias and its gradient.
    weight, bias = inputs.host["weight"].nbytes, inputs.host["bias"].nbytes
    assert sorted(copied) == sorted([weight, weight, weight, bias, bias])
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


def macros_of(channels, dtype=np.float32, groups=1, deformable_groups=1, kernel=(3, 3)):
    more = 1, 1, 0, 0, 1, 1, groups, deformable_groups
    geometry = Geometry(1, channels, 9, 9, *kernel, 9, 9, *more)
    dtype = np.dtype(dtype)
    return sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int32))


def test_lanes_and_vectors():
    # 16 bytes a load where no group's edge is in the way, and full lanes for common counts.
    for dtype, width in ((np.float64, 2), (np.float32, 4), (np.float16, 8), (BFLOAT16, 8)):
        for channels in (64, 128, 192, 256, 320, 384, 512, 1024):
            macros = macros_of(channels, dtype)
            assert (macros.vector, macros.lanes, macros.block) == (width, 8, 256)
            assert macros.channels == channels
        for channels in range(1, 300):
            for groups, deformable_groups in groupings(channels):
                macros = macros_of(channels, dtype, groups, deformable_groups)
                shared = channels // deformable_groups
                for edge in (channels // groups, shared):
                    assert edge % macros.vector == 0
                assert macros.vector in (1, 2, 4, 8)
                assert macros.vector <= width
                vectors = shared // macros.vector
                steps = -(-vectors // macros.lanes)
                idle = steps * macros.lanes - vectors
                assert 5 * idle <= steps * macros.lanes  # at most a fifth in the last step
                assert macros.lanes in (1, 2, 4, 8)
    assert [lane_count(n) for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)] == [
        1, 2, 1, 4, 2, 8, 8, 2, 8, 8, 4
    ]  # fmt: skip


def test_points_fit_in_shared_memory():
    # Two blocks of any kernel beside each other in the 64 KiB of the smallest multiprocessors.
    for channels, dtype, kernel in itertools.product(
        (1, 2, 4, 7, 8, 16, 32, 64), DTYPES, ((1, 1), (3, 3), (1, 9), (5, 5), (7, 7))
    ):
        macros = macros_of(channels, dtype, kernel=kernel)
        compute = 8 if dtype is np.float64 else 4
        tile = macros.block // macros.lanes
        assert macros.taps_at_once * tile * (6 * compute + 4) <= 32 * 1024
        taps = kernel[0] * kernel[1]
        rounds = -(-taps // macros.taps_at_once)
        assert (rounds - 1) * macros.taps_at_once < taps <= rounds * macros.taps_at_once


def test_blocks_of_a_transposition():
    for channels in range(1, 200):
        macros = transpose_macros(channels, np.dtype(np.float32), np.dtype(np.int32))
        assert macros.transpose_channels == min(channels, 32)
        assert macros.transpose_cells in (32, 64, 128, 256)
        assert macros.transpose_cells * macros.transpose_channels <= 2048
        assert macros.transpose_cells * macros.transpose_channels >= min(256 * channels, 768)


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
    assert counts == [1, 2, 2, 2, 2, 2]
    joint = ("x", "offset"), ("x", "mask"), ("x", "weight"), ("weight", "mask"), GRADIENTS
    for needs in joint:
        Inputs(PLAIN).backward(needs=needs)
        counts.append(len(compilations.codes) - before)
    assert counts[len(sets) :] == [3, 3, 4, 5, 5]


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


def test_loops_are_unrolled_by_powers_of_two():
    # By 3, NVRTC 13.5 leaves out the checks of the remainder where the trip count is known only at
    # run time: with 5 taps the loop ran into the sixth.
    counts = []
    for path in sorted(_kernels.folder().glob("*.cu*")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            unrolled = re.search(r"#pragma unroll(.*)|\bUNROLLED = (.*)", line)
            if unrolled:
                found = [int(n) for n in re.findall(r"\d+", unrolled[0])]
                assert all(n & (n - 1) == 0 for n in found), f"{path.name}:{number}: {line}"
                counts += found
    assert counts


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
    ("numeric.cuh", "float16 cut off, not rounded", "cvt.rn.f16.f32", "cvt.rz.f16.f32"),
    ("numeric.cuh", "bfloat16 as its upper bits", "value.bits << 16", "value.bits << 15"),
    ("numeric.cuh", "bfloat16 cut off by hand", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16",
     "bits >> 16"),
    ("numeric.cuh", "ties not to even by hand", "bits + 0x7fffu + ((bits >> 16) & 1u)",
     "bits + 0x8000u"),
    ("numeric.cuh", "vector of unaligned values", "alignas(N * sizeof(T)) Vector",
     "alignas(32) Vector"),
    ("numeric.cuh", "four sums too far on", "__cvta_generic_to_global(to + i)),\n"
     "                         \"f\"(values[i]), \"f\"(values[i + 1]), \"f\"(values[i + 2])",
     "__cvta_generic_to_global(to + i + 4)),\n"
     "                         \"f\"(values[i]), \"f\"(values[i + 1]), \"f\"(values[i + 2])"),
    ("numeric.cuh", "two sums exchanged", "\"f\"(values[i]), \"f\"(values[i + 1])\n",
     "\"f\"(values[i + 1]), \"f\"(values[i])\n"),
    ("numeric.cuh", "double stored, not added", "    for (int i = 0; i < N; ++i) {\n"
     "        atomicAdd(to + i, values[i]);", "    for (int i = 0; i < N; ++i) {\n"
     "        to[i] += values[i];"),
    ("numeric.cuh", "float stored, not added", "            atomicAdd(to + i, values[i]);",
     "            to[i] += values[i];"),

    ("geometry.cuh", "the last vectors beyond the channels", "RAGGED && channel >= SHARED_CHANNELS",
     "RAGGED && channel > SHARED_CHANNELS"),
    ("geometry.cuh", "a step too few", "(SHARED_CHANNELS / VECTOR + LANES - 1) / LANES",
     "SHARED_CHANNELS / VECTOR / LANES"),
    ("geometry.cuh", "no border beside a row", "pitch((geometry.width + 1) * CHANNELS)",
     "pitch(geometry.width * CHANNELS)"),
    ("geometry.cuh", "a cell of an image with a row too few", "count((geometry.height + 3)",
     "count((geometry.height + 2)"),
    ("geometry.cuh", "zeros that are the last row", "zero((geometry.height + 1) * pitch)",
     "zero(geometry.height * pitch)"),
    ("geometry.cuh", "a row of pixels further down", "(row + 1) * pitch", "(row + 2) * pitch"),
    ("geometry.cuh", "the first image for all", "image(blockIdx.z)", "image(0)"),
    ("geometry.cuh", "rows of another tile", "row(blockIdx.y * TILE_HEIGHT)",
     "row(blockIdx.y * TILE_WIDTH)"),
    ("geometry.cuh", "the wrong deformable group", "group(blockIdx.x % DEFORMABLE_GROUPS)",
     "group(0)"),
    ("geometry.cuh", "rows not bounded", "row_of(pixel) < geometry.rows && ", ""),
    ("geometry.cuh", "one column too many", "column_of(pixel) < geometry.columns",
     "column_of(pixel) <= geometry.columns"),
    ("geometry.cuh", "strides of rows for columns", "column_of(pixel) * strides.column",
     "column_of(pixel) * strides.row"),
    ("geometry.cuh", "output's height for its width", "* geometry.out_height + row_of(pixel)",
     "* geometry.out_width + row_of(pixel)"),
    ("geometry.cuh", "groups of columns not apart", "(tile.image * GROUPS * geometry.column_pixels",
     "(tile.image * geometry.column_pixels"),
    ("geometry.cuh", "all groups in the first", "index_t(unsigned(channel) / GROUP_CHANNELS)",
     "index_t(0)"),
    ("geometry.cuh", "channels of a group counted on", "unsigned(channel) % GROUP_CHANNELS;",
     "unsigned(channel);"),
    ("geometry.cuh", "groups never cut", "GROUP_CHANNELS % SHARED_CHANNELS == 0;", "true;"),
    ("geometry.cuh", "columns of another deformable group",
     "UNCUT ? at : column_of_channel(geometry, tile.group * SHARED_CHANNELS + channel)",
     "UNCUT ? at : column_of_channel(geometry, channel)"),
    ("geometry.cuh", "lanes begin in one place",
     "column_of_channel(geometry, tile.group * SHARED_CHANNELS + lane * VECTOR)",
     "column_of_channel(geometry, tile.group * SHARED_CHANNELS)"),
    ("geometry.cuh", "taps of a lane left out", "tap < taps; tap += LANES",
     "tap < taps; tap += 2 * LANES"),

    ("bilinear.cuh", "dx of one tap for another", "offset[index_t(2 * tap + 1)",
     "offset[index_t(2 * tap)"),
    ("bilinear.cuh", "taps along the wrong axis", "unsigned(tap) / KERNEL_WIDTH",
     "unsigned(tap) / KERNEL_HEIGHT"),
    ("bilinear.cuh", "the mask of another tap", "mask[tap * geometry.mask.channel]",
     "mask[(tap + 1) % TAPS * geometry.mask.channel]"),
    ("bilinear.cuh", "one row too many inside", "unsigned_t(whole) + 1 <= unsigned_t(size)",
     "unsigned_t(whole) <= unsigned_t(size)"),
    ("bilinear.cuh", "one row too few inside", "unsigned_t(whole) + 1 <= unsigned_t(size)",
     "unsigned_t(whole) + 1 < unsigned_t(size)"),
    ("bilinear.cuh", "the edge of the box belongs to it", "(whole < 0 ? compute_t(0)",
     "(whole < 0 ? compute_t(-1)"),
    ("bilinear.cuh", "padding added", "* geometry.stride_y - geometry.pad_top",
     "* geometry.stride_y + geometry.pad_top"),
    ("bilinear.cuh", "stride of the other axis", "tile.column_of(pixel)) * geometry.stride_x",
     "tile.column_of(pixel)) * geometry.stride_y"),
    ("bilinear.cuh", "dilation of the other axis", "* geometry.dilation_x",
     "* geometry.dilation_y"),
    ("bilinear.cuh", "every chunk from the first row on",
     "(geometry.first_row + tile.row_of(pixel))", "(tile.row_of(pixel))"),
    ("bilinear.cuh", "weights exchanged", "upper * x, lower * (1 - x)",
     "lower * (1 - x), upper * x"),
    ("bilinear.cuh", "the mask twice", "lower = y * factor", "lower = y * factor * factor"),
    ("bilinear.cuh", "offsets of the first group", "index_t(tile.group) * 2 * TAPS", "0"),

    ("channels_last.cu", "a row of zeros too few", "row = above - 1", "row = above"),
    ("channels_last.cu", "the last row taken for a border", "row < geometry.height",
     "row + 1 < geometry.height"),
    ("channels_last.cu", "the border to the left read", "&& column >= 0", ""),
    ("channels_last.cu", "unsigned strides", "pixel.row * geometry.x.row",
     "pixel.row * unsigned_t(geometry.x.row)"),
    ("channels_last.cu", "blocks of channels mixed up", "blockIdx.x % BLOCKS_A_CELL * TRANSPOSE",
     "blockIdx.x / BLOCKS_A_CELL * TRANSPOSE"),
    ("channels_last.cu", "channels not bounded", "first_channel + channel < CHANNELS", "true"),
    ("channels_last.cu", "cells not bounded",
     "min(cells - first_cell, index_t(TRANSPOSE_CELLS))", "TRANSPOSE_CELLS"),
    ("channels_last.cu", "borders not written", "= data_t{};", "= values[channel][across];"),
    ("channels_last.cu", "no barrier before the copy is written",
     "    __syncthreads();\n    const int channel", "    const int channel"),
    ("channels_last.cu", "no barrier before grad_x is written",
     "    __syncthreads();\n    const unsigned across", "    const unsigned across"),
    ("channels_last.cu", "grad_x's planes too close", "geometry.height * geometry.width;",
     "geometry.height * geometry.height;"),
    ("channels_last.cu", "grad_x's border written", "if (!pixel.inside) {", "if (false) {"),

    ("deform_im2col.cu", "one corner twice", "weight.at[1] * widen(v01",
     "weight.at[1] * widen(v00"),
    ("deform_im2col.cu", "a weight twice", "weight.at[3] * widen", "weight.at[2] * widen"),
    ("deform_im2col.cu", "the row below two rows below", "below = above + pitch",
     "below = above + 2 * pitch"),
    ("deform_im2col.cu", "the neighbour a channel away",
     "v01 = load<VECTOR>(above + at + CHANNELS)", "v01 = load<VECTOR>(above + at + VECTOR)"),
    ("deform_im2col.cu", "infinite masks unnoticed", "if (MASKED && factored)", "if (false)"),
    ("deform_im2col.cu", "no barrier before points are read",
     "factored = __syncthreads_or(factored);", ""),
    ("deform_im2col.cu", "no barrier between rounds of taps",
     "if (first_tap + TAPS_AT_ONCE < TAPS) {\n            __syncthreads();\n        }", ""),
    ("deform_im2col.cu", "points outside sampled", "const bool inside = y.inside && x.inside;",
     "const bool inside = y.inside;"),
    ("deform_im2col.cu", "a lane too far", "corner += tile.group * SHARED_CHANNELS + lane * VECTOR",
     "corner += tile.group * SHARED_CHANNELS + lane"),
    ("deform_im2col.cu", "taps of the first round again", "planned.row(first_tap + tap)",
     "planned.row(tap)"),

    ("deform_col2im.cu", "points outside added", "y.inside && x.inside ?", "y.inside ?"),
    ("deform_col2im.cu", "no barrier before points are read",
     "        });\n        __syncthreads();\n", "        });\n"),
    ("deform_col2im.cu", "no barrier between rounds of taps",
     "if (first_tap + TAPS_AT_ONCE < TAPS) {\n            __syncthreads();\n        }", ""),
    ("deform_col2im.cu", "corners mixed up", "i / 2 * layout.pitch + i % 2 * CHANNELS",
     "i % 2 * layout.pitch + i / 2 * CHANNELS"),
    ("deform_col2im.cu", "one corner too few", "for (int i = 0; i < 4; ++i)",
     "for (int i = 0; i < 3; ++i)"),
    ("deform_col2im.cu", "corners of weight 0 skipped", "if (cell < 0)", "if (cell <= 0)"),
    ("deform_col2im.cu", "stored, not added", "add_atomically(\n", "[](compute_t *to, const "
     "compute_t (&values)[VECTOR]) { for (int k = 0; k < VECTOR; ++k) to[k] += values[k]; }(\n"),
    ("deform_col2im.cu", "no mask", "compute_t factor = planned.factor(first_tap + tap)",
     "compute_t factor = 1"),
    ("deform_col2im.cu", "the first image for all", "tile.image * layout.count * CHANNELS", "0"),

    ("deform_coord_grad.cu", "one corner twice", "dots[1] += value * widen(v01",
     "dots[1] += value * widen(v00"),
    ("deform_coord_grad.cu", "points outside differentiated", "y.inside && x.inside ?",
     "y.inside ?"),
    ("deform_coord_grad.cu", "corners of weight 0 skipped", "if (cell < 0)", "if (cell <= 0)"),
    ("deform_coord_grad.cu", "no barrier before dots",
     "        });\n        __syncthreads();\n        if (tile", "        });\n        if (tile"),
    ("deform_coord_grad.cu", "no barrier before gradients",
     "        }\n        __syncthreads();\n", "        }\n"),
    ("deform_coord_grad.cu", "no barrier between rounds of taps",
     "if (first_tap + TAPS_AT_ONCE < TAPS) {\n            __syncthreads();\n        }", ""),
    ("deform_coord_grad.cu", "totals of another slot", "totals[pixel * TAPS_AT_ONCE + tap]",
     "totals[pixel * TAPS_AT_ONCE]"),
    ("deform_coord_grad.cu", "points outside have dots", "cells[slot] >= 0, totals + slot",
     "true, totals + slot"),
    ("deform_coord_grad.cu", "masks of the first round again",
     "fractions[1][slot], first_tap + tap,", "fractions[1][slot], tap,"),
    ("deform_coord_grad.cu", "a fraction for the other", "fractions[1][slot] = x.fraction",
     "fractions[1][slot] = y.fraction"),

    ("dots.cuh", "dots of other lanes", "give0 = upper ? dots[0] : dots[2]",
     "give0 = upper ? dots[2] : dots[0]"),
    ("dots.cuh", "half of the lanes left out",
     "dots[0] += __shfl_xor_sync(members, dots[0], 4);", ""),
    ("dots.cuh", "lanes of other pixels expected",
     "((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES)", "0xffffffffu"),
    ("dots.cuh", "totals in another order", "lane % 2 * 2 + lane / 2 % 2", "lane % 4"),
    ("dots.cuh", "two lanes' totals in one place", "LANES == 2 ? lane * 2", "LANES == 2 ? lane"),
    ("dots.cuh", "one of two totals unwritten", "(LANES > 2 ? 1 : 4 / LANES)",
     "(LANES > 1 ? 1 : 4 / LANES)"),
    ("dots.cuh", "totals by all lanes", "if (lane < 4) {", "if (true) {"),
    ("dots.cuh", "the derivative by y for that by x", "narrow(by_x, to[plane])",
     "narrow(by_y, to[plane])"),
    ("dots.cuh", "dx in the place of dy", "narrow(by_y, to[0])", "narrow(by_y, to[plane])"),
    ("dots.cuh", "points outside unwritten", "    if (grad_offset) {",
     "    if (grad_offset && inside) {"),
    ("dots.cuh", "the mask's points outside unwritten", "    if (grad_mask) {",
     "    if (grad_mask && inside) {"),
    ("dots.cuh", "dots of points outside", "    if (inside) {", "    if (true) {"),
    ("dots.cuh", "a sign", "x * (s.at[3] - s.at[1])", "x * (s.at[1] - s.at[3])"),
    ("dots.cuh", "the mask's gradient times the mask", "by_mask = (1 - y)",
     "by_mask = factor * (1 - y)"),
    ("dots.cuh", "offsets' gradient without the mask", "by_x = factor * (", "by_x = ("),
    ("dots.cuh", "gradients of the first group", "index_t(tile.group) * TAPS + tap",
     "index_t(tap)"),

    ("deform_backward.cu", "columns stored before grad_columns are read",
     "            const auto grad = load<VECTOR>(place);",
     "            if (COLUMNS) { store(place, Vector<data_t, VECTOR>{}); }\n"
     "            const auto grad = load<VECTOR>(place);"),
    ("deform_backward.cu", "points outside keep grad_columns",
     "                    store(column + in_column(geometry, tile, channel, at), outside);\n", ""),
    ("deform_backward.cu", "0 outside whatever the mask",
     "narrow(FACTORED ? factor * 0 : compute_t(0), outside", "narrow(compute_t(0), outside"),
    ("deform_backward.cu", "columns without infinite masks",
     "narrow(FACTORED ? factor * value : value", "narrow(value"),
    ("deform_backward.cu", "grad_x without infinite masks",
     "(FACTORED ? factor * weight.at[k] : weight.at[k])", "weight.at[k]"),
    ("deform_backward.cu", "infinite masks unnoticed", "if (MASKED && factored)", "if (false)"),
    ("deform_backward.cu", "factors of the first round again",
     "value = sampler.factor(first_tap + tap)", "value = sampler.factor(tap)"),
    ("deform_backward.cu", "points of the first round again", "planned.row(first_tap + tap)",
     "planned.row(tap)"),
    ("deform_backward.cu", "no mask", "compute_t factor = planned.factor(first_tap + tap)",
     "compute_t factor = 1"),
    ("deform_backward.cu", "points outside sampled", "y.inside && x.inside ?", "y.inside ?"),
    ("deform_backward.cu", "points outside like all others", "if (cell < 0)", "if (false)"),
    ("deform_backward.cu", "corners of weight 0 skipped", "if (cell < 0)", "if (cell <= 0)"),
    ("deform_backward.cu", "no columns where they are wanted", "if (COLUMNS) {\n"
     "                    store(place", "if (false) {\n                    store(place"),
    ("deform_backward.cu", "corners read only for coordinates",
     "if (GRAD_COORDINATES || COLUMNS)", "if (GRAD_COORDINATES)"),
    ("deform_backward.cu", "corners read only for columns", "if (GRAD_COORDINATES || COLUMNS)",
     "if (COLUMNS)"),
    ("deform_backward.cu", "grad_x where none is wanted", "if (GRAD_X) {", "if (true) {"),
    ("deform_backward.cu", "grad_x left out beside columns", "if (GRAD_X) {",
     "if (GRAD_X && !COLUMNS) {"),
    ("deform_backward.cu", "one corner twice", "v10 = load<VECTOR>(below + at)",
     "v10 = load<VECTOR>(above + at)"),
    ("deform_backward.cu", "the neighbour a channel away",
     "v01 = load<VECTOR>(above + at + CHANNELS)", "v01 = load<VECTOR>(above + at + VECTOR)"),
    ("deform_backward.cu", "the row below two rows below", "*below = above + pitch",
     "*below = above + 2 * pitch"),
    ("deform_backward.cu", "corners of grad_x mixed up",
     "(k < 2 ? grad_above : grad_below) + at + k % 2 * CHANNELS",
     "(k % 2 ? grad_below : grad_above) + at + k / 2 * CHANNELS"),
    ("deform_backward.cu", "stored, not added", "add_atomically((k",
     "[](compute_t *to, const compute_t (&values)[VECTOR]) {\n"
     "for (int i = 0; i < VECTOR; ++i) to[i] += values[i]; }((k"),
    ("deform_backward.cu", "dots of the columns", "dots[k] += wide[i] * corners[k]",
     "dots[k] += weight.at[k] * corners[k]"),
    ("deform_backward.cu", "dots not summed over lanes", "sum_over_lanes(dots, lane);", ""),
    ("deform_backward.cu", "totals of another slot", "totals[slot]);",
     "totals[pixel * TAPS_AT_ONCE]);"),
    ("deform_backward.cu", "points outside have dots", "cells[slot] >= 0, totals + slot",
     "true, totals + slot"),
    ("deform_backward.cu", "a fraction for the other", "fractions[1][slot] = x.fraction",
     "fractions[1][slot] = y.fraction"),
    ("deform_backward.cu", "masks of the first round again",
     "fractions[0][slot], fractions[1][slot], first_tap + tap,",
     "fractions[0][slot], fractions[1][slot], tap,"),
    ("deform_backward.cu", "no barrier before points are read",
     "factored = __syncthreads_or(factored);", ""),
    ("deform_backward.cu", "no barrier before gradients",
     "        }\n        __syncthreads();\n        if (GRAD_COORDINATES)",
     "        }\n        if (GRAD_COORDINATES)"),
    ("deform_backward.cu", "a barrier for coordinates alone",
     "        }\n        __syncthreads();\n        if (GRAD_COORDINATES) {",
     "        }\n        if (GRAD_COORDINATES) {\n            __syncthreads();"),
    ("deform_backward.cu", "the first image for all", "tile.image * layout.count * CHANNELS", "0"),
)]  # fmt: skip


def trial(case, dtype=np.float32, capability="90", wide=False, **changes):
    return case, dtype, capability, wide, changes


def infinite_mask(case):
    # Beside an infinite factor some of the samples are outside, where it makes NaN.
    mask = case.arrays(np.float32)[4]
    mask[:, ::2, ::3, ::2] = np.inf
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
TIES = Case(1, 16, (4, 5), 1, (1, 1), masked=False)
HALF_A_ROW = np.array([0.5, 0] * 20).reshape(1, 20, 2).transpose(0, 2, 1).reshape(1, 2, 4, 5)
BROKEN_MASK = Case(1, 4, (4, 5), 2, (3, 3), padding=(1, 1, 1, 1))
TRIALS = [
    trial(SMALL),
    trial(PLAIN),
    trial(EDGES, offset=edges(EDGES)),
    trial(EDGES, offset=edges(EDGES), x=with_broken_pixel(EDGES)),
    # Several tiles along both axes, blocks of channels, steps of lanes, taps in rounds.
    trial(Case(2, 4, (20, 11), 2, (3, 3), dilation=(1, 2), padding=(1, 1, 2, 2))),
    trial(Case(1, 40, (9, 8), 2, (2, 2), groups=2, padding=(1, 0, 1, 0))),
    trial(Case(1, 36, (4, 5), 2, (2, 2))),
    trial(Case(2, 64, (4, 5), 2, (3, 3), deformable_groups=2, padding=(1, 1, 1, 1))),
    trial(VIEWED, x=VIEWS["reversed"](VIEWED.arrays(np.float32)[0])),
    trial(BROKEN_MASK, mask=infinite_mask(BROKEN_MASK)),
    trial(BROKEN_MASK, **broken_point(BROKEN_MASK)),
    trial(SMALL, np.float64),
    trial(Case(2, 6, (5, 6), 2, (2, 2)), np.float32, "75"),
    trial(Case(2, 6, (5, 6), 2, (2, 2)), np.float32),
    trial(SMALL, wide=True),
    # Few sums and the nearest numbers alone: a wrong rounding is seen.
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), np.float16),
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), BFLOAT16),
    trial(Case(1, 16, (4, 5), 1, (1, 1), spread=0.7), BFLOAT16, "75"),
    trial(TIES, BFLOAT16, "75", x=ties(TIES), offset=HALF_A_ROW.astype(BFLOAT16)),
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
    case, dtype, _, _, changes = TRIALS[number]
    inputs = Inputs(case, dtype, **changes)
    arrays, keywords = stage_columns(case, dtype, inputs.host)
    with np.errstate(all="ignore"):
        columns = cupy_dcn.deform_im2col(*arrays, case.kernel, **keywords, groups=case.groups)
        wide = {k: v if v is None else v.astype(float) for k, v in inputs.host.items()}
        grad_output = wide.pop("grad_output")
        gradients = cupy_dcn.deform_conv2d_backward(grad_output, **wide, **case.attributes)
    return columns, gradients


def problem_of(number, monkeypatch):
    """Run a trial; return what was wrong, None for nothing."""
    case, dtype, capability, wide, changes = TRIALS[number]
    columns, gradients = reference(number)
    half = np.dtype(dtype).itemsize == 2
    with monkeypatch.context() as patch, configure(compute_capability=capability):
        if wide:
            wide_indices(patch)
        inputs = Inputs(case, dtype, **changes)
        arrays, keywords = stage_columns(case, dtype, inputs.device)
        try:
            keywords["groups"] = case.groups
            ours = cupy_dcn.deform_im2col(*arrays, case.kernel, **keywords)
            ours = on_host(ours)
            if half and np.count_nonzero(ours != columns) > columns.size // 50:
                return "columns that are not the nearest numbers"
            if not half and not agree(ours, columns, NOISE[dtype]):
                return "wrong columns"
            # In chunks, too: several rows of one image each.
            for budget in (None, 24 * least_workspace(inputs.backward)):
                for needs in NEEDS:
                    found = inputs.backward(workspace_bytes=budget, needs=needs)
                    for name, one, other in zip(GRADIENTS, found, gradients, strict=True):
                        due = name in needs and other is not None
                        if due and not agree(on_host(one), other, NOISE[dtype]):
                            return f"wrong gradient of {name} among {', '.join(needs)}"
        except Crime as crime:
            return f"{type(crime).__name__}: {crime.what}"
    return None


def agree(ours, expected, relative):
    """Tell whether numbers are close, and infinite or NaN in the same places."""
    ours, finite = ours.astype(np.float64), np.isfinite(expected)
    if not np.array_equal(np.isfinite(ours), finite):
        return False
    scale = np.abs(expected[finite]).max(initial=0)
    return bool(np.all(np.abs(ours[finite] - expected[finite]) <= relative * scale))


def test_trials_find_nothing_wrong(cupy, monkeypatch):
    # Or they would find every fault.
    problems = [problem_of(number, monkeypatch) for number in range(len(TRIALS))]
    assert problems == [None] * len(TRIALS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.file}: {f.what}")
def test_planted_faults_are_caught(cupy, own_kernels, monkeypatch, fault):
    # A text that is there no longer, or twice, no longer plants the fault it is meant to be.
    text, old = (_kernels.folder() / fault.file).read_text("utf-8"), fault.old
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {fault.file}"
    sources = {file: _kernels.source(file) for file in set(_kernels.FILES.values())}
    spoiled = {file: source.replace(old, fault.new) for file, source in sources.items()}
    assert spoiled != sources
    monkeypatch.setattr(_kernels, "source", spoiled.__getitem__)
    numbers = range(len(TRIALS))
    if fault.file == "numeric.cuh":  # the other dtypes come last
        numbers = reversed(numbers)
    CAUGHT[fault] = next(filter(None, (problem_of(n, monkeypatch) for n in numbers)), None)
    assert CAUGHT[fault], "nothing noticed; of the others:\n" + "\n".join(
        f"{each.file}: {each.what} -> {by}" for each, by in CAUGHT.items()
    )


CAUGHT = {}


def test_every_file_has_its_faults():
    counts = Counter(fault.file for fault in FAULTS)
    assert set(counts) == {path.name for path in _kernels.folder().glob("*.cu*")}
    assert min(counts.values()) >= 5
    assert len({(fault.file, fault.what) for fault in FAULTS}) == len(FAULTS)
