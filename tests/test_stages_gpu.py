"""The stages and the helpers of offsets on CuPy arrays: their device, and what the cut is told."""

import numpy as np
import pytest
from emulated_cupy import configure
from libraries import dcn

import cupy_dcn
from cupy_dcn import _cut_gpu, _gpu

STAGES = {
    "deform_im2col": lambda a: cupy_dcn.deform_im2col(a["x"], a["offset"], 3, mask=a["mask"]),
    "deform_col2im": lambda a: cupy_dcn.deform_col2im(
        a["columns"], a["offset"], (5, 6), 3, mask=a["mask"]
    ),
    "deform_coord_grad": lambda a: cupy_dcn.deform_coord_grad(
        a["columns"], a["x"], a["offset"], 3, mask=a["mask"]
    ),
}


def stage_arrays(library):
    shapes = {"x": (1, 2, 5, 6), "offset": (1, 18, 3, 4), "mask": (1, 9, 3, 4)}
    shapes["columns"] = (1, 1, 12, 9, 2)
    return {name: library.ones(shape, np.float32) for name, shape in shapes.items()}


def seen_by_the_index(monkeypatch, call):
    """Return how many elements the arrays have that a call's width of index is chosen by."""
    taken = []

    def fit_index(cut, arrays):
        taken.extend(arrays)
        return _cut_gpu.fit_index(cut, arrays)

    monkeypatch.setattr(_gpu, "fit_index", fit_index)
    call()
    return {array.size for array in taken}


@pytest.mark.parametrize("stage", STAGES)
def test_every_array_of_a_stage_counts(stage, monkeypatch):
    with dcn.running_on("emulated"):
        arrays = stage_arrays(dcn.array_module)
        seen = seen_by_the_index(monkeypatch, lambda: STAGES[stage](arrays))
        used = {"x", "offset", "mask", "columns"} - ({"x"} if stage == "deform_col2im" else set())
        assert {arrays[name].size for name in used} <= seen


@pytest.mark.parametrize("backward", [False, True])
def test_every_array_of_a_call_counts(backward, monkeypatch):
    with dcn.running_on("emulated"):
        arrays = stage_arrays(dcn.array_module)
        del arrays["columns"]
        arrays["weight"] = dcn.array_module.ones((7, 2, 3, 3), np.float32)
        arrays["bias"] = dcn.array_module.ones(7, np.float32)
        output = dcn.array_module.ones((1, 7, 3, 4), np.float32)
        if backward:
            seen = seen_by_the_index(
                monkeypatch, lambda: cupy_dcn.deform_conv2d_backward(output, **arrays)
            )
        else:
            seen = seen_by_the_index(monkeypatch, lambda: cupy_dcn.deform_conv2d(**arrays))
        sizes = {array.size for array in (*arrays.values(), output)}
        assert len(sizes) == 6
        assert sizes <= seen


def chosen_by_the_size_of(monkeypatch, array, elements, call):
    """Return the width of index that a call takes where one of its arrays has so many elements."""
    found, own = [], _cut_gpu.extent

    def fit_index(cut, arrays):
        fitting = _cut_gpu.fit_index(cut, arrays)
        found.append(fitting.index)
        return fitting

    monkeypatch.setattr(_gpu, "fit_index", fit_index)
    monkeypatch.setattr(
        _cut_gpu, "extent", lambda each: elements if each.size == array.size else own(each)
    )
    call()
    (index,) = found
    return index


CALLS = {
    "forward": ("x", "offset", "mask", "weight", "bias", "output"),
    "backward": ("x", "offset", "mask", "weight", "bias", "output"),
    "deform_im2col": ("x", "offset", "mask", "columns"),
    "deform_col2im": ("x", "offset", "mask", "columns"),  # x: its gradient
    "deform_coord_grad": ("x", "offset", "mask", "columns"),
}


@pytest.mark.parametrize(("elements", "expected"), [(2**31 - 1, "int32"), (2**31, "int64")])
@pytest.mark.parametrize(("call", "name"), [(call, name) for call in CALLS for name in CALLS[call]])
def test_the_largest_array_chooses_the_index(call, name, elements, expected, monkeypatch):
    with dcn.running_on("emulated"), configure(execute=False):
        arrays = stage_arrays(dcn.array_module)
        more = {"weight": (7, 2, 3, 3), "bias": (7,), "output": (1, 7, 3, 4)}
        arrays |= {key: dcn.array_module.ones(shape, np.float32) for key, shape in more.items()}
        inputs = {key: arrays[key] for key in CALLS["forward"] if key != "output"}
        calls = {
            "forward": lambda: cupy_dcn.deform_conv2d(**inputs),
            "backward": lambda: cupy_dcn.deform_conv2d_backward(arrays["output"], **inputs),
        }
        run = calls.get(call, lambda: STAGES[call](arrays))
        assert chosen_by_the_size_of(monkeypatch, arrays[name], elements, run) == expected


@pytest.mark.parametrize("stage", [*STAGES, "pack_offset", "sampling_grid"])
def test_stages_run_on_the_arrays_device(stage):
    with dcn.running_on("emulated"):
        cupy = dcn.array_module
        with cupy.cuda.Device(1):
            arrays = stage_arrays(cupy)
        if stage == "pack_offset":
            result = cupy_dcn.pack_offset(arrays["mask"], arrays["mask"])
        elif stage == "sampling_grid":
            result = cupy_dcn.sampling_grid(arrays["offset"], 3)
        else:
            result = STAGES[stage](arrays)
        for array in result if isinstance(result, tuple) else (result,):
            assert array.device.id == 1
            assert np.isfinite(cupy.asnumpy(array)).all()
        assert cupy.cuda.Device().id == 0
