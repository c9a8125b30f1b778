"""The derivatives along a direction on CuPy arrays: launches, memory, indices, views, devices.

Numbers are compared with the NumPy path's, which test_derivatives.py holds against differences.
"""

import numpy as np
import pytest
from cases import Case, assert_close, least_workspace
from directions import Direction
from emulated_cupy import configure, recorded
from libraries import dcn
from test_gpu import NOISE, VIEWS, Meter, wide_indices

import cupy_dcn
from cupy_dcn import Tangents, _kernels

# Two groups, three deformable groups, threads alone at their pixels; lanes that share one.
ALONE = Case(2, 6, (7, 8), 4, (3, 2), (2, 1), (1, 1, 0, 0), deformable_groups=3, groups=2)
SHARED = Case(2, 20, (5, 6), 3, (3, 3), padding=(1, 1, 1, 1))
each_layer = pytest.mark.parametrize("case", [ALONE, SHARED], ids=str)


@pytest.fixture(scope="module", autouse=True)
def cupy():
    with dcn.running_on("emulated"):
        yield dcn.array_module


def on_device(made):
    """Return the two calls of a direction on arrays that are on the device already."""
    moved = object.__new__(Direction)
    moved.case, moved.other = made.case, made.other

    def to(array):
        return None if array is None else dcn.to_device(array)

    moved.arrays = {name: to(array) for name, array in made.arrays.items()}
    moved.tangents = Tangents(*map(to, made.tangents))
    return moved


def assert_right(made, relative, **more):
    expected = made.wide().both()
    for name, ours in made.both(dcn, **more).items():
        assert (ours is None) == (expected[name] is None)
        if ours is not None:
            assert_close(ours.astype(float), expected[name], relative)


@each_layer
def test_launches_of_a_call(cupy, case):
    made = on_device(Direction(case, np.float32))
    made.both()
    copies = ["to_channels_last"] * 2
    for call, names, products in (
        (made.jvp, [*copies, "deform_im2col", "deform_im2col_tangent"], 3),
        (
            made.double_backward,
            [
                *copies, "deform_im2col", "deform_im2col_tangent",  # for grad_output
                *copies, "deform_im2col_tangent", "deform_double_backward", "from_channels_last",
            ],
            2 + 2 + case.images,
        ),
    ):  # fmt: skip
        with recorded() as log:
            call()
        assert [entry.name for entry in log.launches] == names
        assert not log.synchronisations
        assert not log.transfers
        # All images at once, but one after the other where they are added up.
        assert len(log.products) <= products * min(case.images, case.groups)


def test_only_what_moves_is_worked_for(cupy):
    made = on_device(Direction(SHARED, np.float32))
    for field, launches in (
        ("bias", 2),  # the output's own
        ("weight", 2),
        ("x", 4),
        ("mask", 3),
    ):
        with recorded() as log:
            made.jvp(tangents=Tangents(**{field: getattr(made.tangents, field)}))
        assert len(log.launches) == launches, field
    with recorded() as log:
        made.double_backward(cotangents=Tangents(bias=made.tangents.bias))
    assert "deform_im2col_tangent" not in [entry.name for entry in log.launches]
    with recorded() as log:
        made.double_backward(needs=("x",))
    names = [entry.name for entry in log.launches]
    assert names == ["deform_double_backward", "from_channels_last"]


@pytest.mark.parametrize(("capability", "dtype"), [("75", np.float32), *(("90", d) for d in NOISE)])
def test_architectures_and_dtypes(capability, dtype):
    with configure(compute_capability=capability):
        for case in (ALONE, SHARED):
            assert_right(Direction(case, dtype), NOISE[dtype])


@each_layer
def test_wide_indices_give_the_same(monkeypatch, case):
    monkeypatch.setattr(_kernels, "_compiled", {})
    wide_indices(monkeypatch)
    assert_right(Direction(case), 1e-12)
    names = {name for name, macros in _kernels.compiled() if macros.index == "int64"}
    assert {"deform_im2col_tangent", "deform_double_backward"} <= names
    assert {macros.index for _, macros in _kernels.compiled()} == {"int64"}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_in_place(cupy, view):
    made = Direction(ALONE, np.float32)
    moves = {name: VIEWS[view](getattr(made.tangents, name)) for name in ("x", "offset", "mask")}
    made.tangents = made.tangents._replace(**moves)
    placed = on_device(made)
    assert placed.tangents.offset.strides == moves["offset"].strides
    with recorded() as log:
        placed.jvp()
    copied = [entry.bytes_read for entry in log.operations]
    weight, bias = made.arrays["weight"].nbytes, made.arrays["bias"].nbytes
    assert sorted(copied) == sorted([weight, weight, bias, bias])
    assert_right(made, NOISE[np.float32])


CHUNKED = [
    Case(4, 8, (9, 5), 4, (3, 3), padding=(1, 1, 1, 1)),
    Case(16, 4, (4, 4), 4, (3, 3), padding=(1, 1, 1, 1)),
]


@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_memory_is_bounded_and_results_do_not_depend_on_it(cupy, case):
    made = Direction(case, np.float32)
    placed, expected = on_device(made), made.wide().both()
    weight = made.arrays["weight"].nbytes
    cells = (case.size[0] + 3) * (case.size[1] + 1) * case.channels
    for call in (placed.jvp, placed.double_backward):
        least = least_workspace(call)
        for pixels in (14, 100):
            meter, budget = Meter(cupy), pixels * least
            with cupy.cuda.using_allocator(meter), recorded() as log:
                results = call(workspace_bytes=budget)
            held = sum(-(-array.nbytes // 512) * 512 for array in results)
            assert meter.used == held
            # The images' copies may come on top of half of it; four copies of the weight.
            above = max(2 * 8 * cells - budget // 2, 0)
            assert meter.peak - held <= budget + above + 4 * weight + 2**12
            names = [entry.name for entry in log.launches]
            assert names.count("deform_im2col_tangent") > 1 or pixels == 100
            names = ("out", "out_tangent") if len(results) == 2 else results._fields
            for name, array in zip(names, results, strict=True):
                assert_close(cupy.asnumpy(array).astype(float), expected[name], 1e-5)


def test_the_arrays_device_is_used_and_the_callers_given_back(cupy):
    with cupy.cuda.Device(1):
        placed, stream = on_device(Direction(ALONE, np.float32)), cupy.cuda.Stream()
    with cupy.cuda.Device(1), stream, cupy.cuda.Device(0), recorded() as log:
        found = placed.both()
        assert cupy.cuda.runtime.getDevice() == 0
    entries = [*log.launches, *log.products, *log.operations]
    assert {(entry.device, entry.stream) for entry in entries} == {(1, stream.ptr)}
    assert {array.device.id for array in found.values()} == {1}


def test_a_direction_on_the_host_is_an_error(cupy):
    made = Direction(ALONE)
    placed = on_device(made)
    with pytest.raises(TypeError, match=r"tangents\.x is a NumPy array"):
        placed.jvp(tangents=Tangents(x=made.tangents.x))
    with cupy.cuda.Device(1):
        other = dcn.to_device(made.tangents.x)
    with pytest.raises(ValueError, match=r"tangents\.x is on device 1"):
        cupy_dcn.deform_conv2d_jvp(**placed.primals, **ALONE.attributes, tangents=Tangents(x=other))
