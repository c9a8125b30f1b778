"""The stages and the helpers of offsets on CuPy arrays: their device, and what the plan is told."""

import numpy as np
import pytest
from libraries import dcn

import cupy_dcn
from cupy_dcn import _gpu, _plan_gpu

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


@pytest.mark.parametrize("stage", STAGES)
def test_every_array_of_a_stage_counts(stage, monkeypatch):
    taken = []

    def plan_chunks(*args):
        taken.append(args[-1])
        return _plan_gpu.plan_chunks(*args)

    monkeypatch.setattr(_gpu, "plan_chunks", plan_chunks)
    with dcn.running_on("emulated"):
        arrays = stage_arrays(dcn.array_module)
        STAGES[stage](arrays)
        spans = {1 * 1 * 12 * 9 * 2}  # of the columns, given or made
        used = {"x", "offset", "mask"} - ({"x"} if stage == "deform_col2im" else set())
        spans |= {arrays[name].size for name in used}
    assert spans <= set(taken[0])


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
