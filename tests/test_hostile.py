"""A short run of the calls that nobody should make (hostile.py); `make fuzz` is a long one."""

import numpy as np
import pytest
from hostile import NOT_ON_A_GPU, hostile_calls, outcome, spoiled
from hostile_calls import CALLS, ON_A_GPU, Call, sound_arrays
from hostile_inputs import LAYOUTS, VALUES
from hypothesis import HealthCheck, given, settings
from libraries import dcn, libraries
from test_operator import CASES

import cupy_dcn


@settings(
    max_examples=400, database=None, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(hostile_calls())
def test_refused_in_words_or_right(host, call):
    assert outcome(call) in ("refused", "compared")


ON_CUPY_ARRAYS = sorted({*VALUES, *LAYOUTS} - NOT_ON_A_GPU)


@pytest.mark.parametrize("how", ON_CUPY_ARRAYS)
@pytest.mark.parametrize("name", libraries()[1:])
def test_values_and_layouts_on_a_gpu(name, how):
    case = CASES[3]
    kind = "values" if how in VALUES else "layout"
    with dcn.running_on(name):
        # Each function has a third of what can be done; `make fuzz` draws all of it.
        for function in ON_A_GPU[ON_CUPY_ARRAYS.index(how) % 3 :: 3]:
            tried = CALLS[function]
            found = sound_arrays(case, np.float64)
            for changed in tried.takes:
                arrays = {each: found[each] for each in tried.takes}
                arrays[changed] = spoiled(arrays[changed], kind, how, 0, 0.15)
                attributes = tried.attributes_of(case)
                call = Call(function, case, arrays, attributes, ((changed, f"{kind}: {how}"),))
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
