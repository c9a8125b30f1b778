"""A short run of the calls that nobody should make (hostile.py); `make fuzz` is a long one."""

import numpy as np
import pytest
from hostile import LAYOUTS, VALUES, Call, hostile_calls, outcome
from hypothesis import HealthCheck, given, settings
from libraries import dcn, libraries
from test_operator import CASES

import cupy_dcn


@settings(
    max_examples=250, database=None, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(hostile_calls())
def test_refused_in_words_or_right(host, call):
    assert outcome(call) in ("refused", "compared")


@pytest.mark.parametrize("how", [*VALUES, *LAYOUTS])
@pytest.mark.parametrize("name", libraries()[1:])
def test_values_and_layouts_on_a_gpu(name, how):
    if how in ("misaligned", "read-only", "subclass", "small", "denormal"):
        pytest.skip("CuPy has none, or counts them as 0")
    case = CASES[3]
    arrays = dict(
        zip(("x", "offset", "weight", "bias", "mask", "grad_output"), case.arrays(), strict=True)
    )
    with dcn.running_on(name):
        for changed in arrays:
            spoiled = dict(arrays)
            if how in VALUES:
                spoiled[changed] = arrays[changed].copy()
                spoiled[changed].reshape(-1)[::7] = VALUES[how]
                kind = "values"
            else:
                spoiled[changed] = LAYOUTS[how](arrays[changed])
                kind = "layout"
            for function, takes in (("deform_conv2d", 5), ("deform_conv2d_backward", 6)):
                given_ = {each: spoiled[each] for each in list(arrays)[:takes]}
                if changed in given_:
                    call = Call(function, case, given_, case.attributes, changed, f"{kind}: {how}")
                    assert outcome(call) == "compared"


@pytest.mark.parametrize("function", ["pack_offset", "unpack_offset", "sampling_grid"])
@pytest.mark.parametrize(
    "value",
    [None, 1.0, "x", [], np.array(1.0), np.ma.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3), int)],
)
def test_layouts_of_offsets_are_refused_in_words(function, value):
    arguments = {"pack_offset": (value, value), "sampling_grid": (value, 1)}
    with pytest.raises((TypeError, ValueError), match=r"expected|must be"):
        getattr(cupy_dcn, function)(*arguments.get(function, (value,)))
