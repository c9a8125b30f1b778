"""The least workspace_bytes: what an error names works, one byte less does not, on every twin."""

import itertools
import re
from unittest import mock

import numpy as np
import pytest
from cases import CASES, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import dcn, twins
from test_operator import oracle_backward, oracle_forward

from cupy_dcn import _cpu, _gpu
from cupy_dcn._arguments import GRADIENTS
from cupy_dcn._geometry import Geometry
from cupy_dcn._order_gpu import may_pay
from cupy_dcn._specialisation import copy_channels


@st.composite
def geometries(draw):
    """Draw sizes as odd as they can be, and output channels, 0 for the stages."""
    groups, deformable_groups = draw(st.sampled_from([(1, 1), (2, 3), (4, 2), (6, 1), (1, 6)]))
    channels = 12 * draw(st.sampled_from([1, 2, 3, 11, 64]))
    groups = draw(st.sampled_from([groups, channels]))
    sizes = st.sampled_from([1, 2, 3, 7, 8, 9, 33, 1000, 4096, 10**6])
    kernel = st.sampled_from([1, 2, 3, 7])
    geometry = Geometry(
        draw(st.integers(0, 64)), channels, draw(sizes), draw(sizes), draw(kernel), draw(kernel),
        draw(sizes), draw(sizes), 1, 1, 1, 1, 1, 1, groups, deformable_groups,
    )  # fmt: skip
    return geometry, draw(st.sampled_from([0, groups, channels, 7 * groups]))


KINDS = st.sampled_from([np.dtype(kind) for kind in (np.float16, np.float32, np.float64)])
WANTED = st.sets(st.sampled_from(GRADIENTS), min_size=1)


def named(make):
    """Return the least budget that an error names, None where there is no error."""
    try:
        make(1)
    except ValueError as error:
        return int(re.search(r"is 1, expected at least (\d+): ", str(error)).group(1))
    return None


def check_least(make):
    """Check that the least works and one byte less names it again; return the result for it."""
    least = named(make)
    if least is None:
        return make(1), 1
    with pytest.raises(
        ValueError, match=rf"is {least - 1}, expected at least {least}: .*={least} "
    ):
        make(least - 1)
    return make(least), least


@settings(max_examples=200, deadline=None)
@given(geometries(), KINDS, st.booleans(), WANTED)
def test_least_of_numpy(drawn, dtype, backward, wanted):
    geometry, out_channels = drawn
    dtype = _cpu.columns_dtype(dtype)
    cut, least = check_least(
        lambda budget: _cpu.make_cut(geometry, out_channels, dtype, budget, backward, wanted)
    )
    assert cut.tile_pixels >= 1
    assert cut.image_bytes + cut.workers * cut.worker_bytes <= least
    assert cut.weight_bytes == 0 or (backward and "weight" in wanted)


@pytest.mark.skipif("emulated" not in twins(), reason="asks the stand-in's device")
@settings(max_examples=100, deadline=None)
@given(geometries(), KINDS, st.booleans(), WANTED, st.integers(0, 2**28))
def test_least_of_cupy(drawn, dtype, backward, wanted, more):
    geometry, out_channels = drawn

    def make(budget):
        return _gpu.make_cut(geometry, out_channels, dtype, budget, backward, wanted)

    ordered = mock.patch.object(_gpu, "pays", lambda geometry, *_: may_pay(geometry))
    with dcn.running_on("emulated"), ordered:
        cut, least = check_least(make)
        cuts = [(cut, least), (make(least + more), least + more)]
    cells = (geometry.height + 3) * (geometry.width + 1) * copy_channels(geometry, dtype.itemsize)
    wide = max(dtype.itemsize, 4)
    image = cells * dtype.itemsize * (not backward or wanted - {"x", "bias"} != set())
    image += cells * wide * (backward and "x" in wanted)
    for cut, budget in cuts:
        assert cut.tile_pixels >= min(geometry.images, 1)
        above = max(image - budget // 2, 0)
        # Alignment: of the order's arrays, and of an odd half.
        assert cut.image_bytes + cut.worker_bytes <= budget + above + 2**10
        assert cut.image_bytes == cut.images_held * image
        if cut.images_held > 1:
            assert cut.image_bytes + cut.worker_bytes <= budget + 2**10


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("case", [CASES[2], CASES[4], CASES[10]], ids=str)
def test_a_call_works_with_the_least(case):
    x, offset, weight, bias, mask, grad_output = case.arrays()
    more = {**case.attributes, "mask": mask}
    forward = dcn.deform_conv2d, (x, offset, weight, bias)
    backward = dcn.deform_conv2d_backward, (grad_output, x, offset, weight, bias)
    expected = [oracle_forward(case, x, offset, weight, bias, mask)]
    gradients = oracle_backward(case, grad_output, x, offset, weight, mask)
    for (function, arguments), exact in zip(
        (forward, backward), (expected, list(gradients.values())), strict=True
    ):
        found, _ = check_least(
            lambda budget, function=function, arguments=arguments: function(
                *arguments, **more, workspace_bytes=budget
            )
        )
        found = found if isinstance(found, tuple) else (found,)
        for ours, theirs in itertools.zip_longest(found, exact):
            if ours is not None:
                assert_close(ours, theirs, 1e-12)
