"""cupy_dcn against numbers that torchvision and Paddle computed, stored in tests/data.

tests/data/make_reference.py made the files and says what they hold. The inputs are exact in
float32, so both dtypes are compared with the peer's float64 results.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from libraries import dcn

pytestmark = pytest.mark.usefixtures("library")

DATA = Path(__file__).with_name("data")
PEERS = ("torchvision", "paddle")
INPUTS = ("x", "offset", "weight", "bias", "mask")
# Largest difference allowed, as a share of the largest absolute value of the reference array.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}


@cache
def load_peer(peer):
    """The versions that computed a file, and its cases as {case: {name: array}}."""
    cases = {}
    with np.load(DATA / f"{peer}.npz", allow_pickle=False) as file:
        versions = file["versions"].tolist()
        for key in file.files:
            if key != "versions":
                case, name = key.split("/")
                cases.setdefault(case, {})[name] = file[key]
    return versions, cases


ALL_CASES = [(peer, case) for peer in PEERS for case in load_peer(peer)[1]]


def arguments(arrays, dtype):
    """The keyword arguments of deform_conv2d for one case."""
    inputs = {name: arrays[name].astype(dtype) for name in INPUTS if name in arrays}
    pairs = {name: tuple(arrays[name].tolist()) for name in ("stride", "padding", "dilation")}
    counts = {name: arrays[name].item() for name in ("deformable_groups", "groups")}
    return {**inputs, **pairs, **counts}


def assert_matches(ours, reference, dtype, what):
    assert ours.dtype == dtype, f"{what} is {ours.dtype}, expected {dtype}"
    assert ours.shape == reference.shape, f"{what} is {ours.shape}, expected {reference.shape}"
    error = np.abs(ours.astype(np.float64) - reference).max()
    bound = TOLERANCE[dtype] * np.abs(reference).max()
    # A NaN among ours makes the error NaN, which fails the comparison as it should.
    assert error <= bound, f"{what} is off by {error:.2e}, allowed {bound:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("peer", "case"), ALL_CASES)
def test_output(peer, case, dtype):
    arrays = load_peer(peer)[1][case]
    output = dcn.deform_conv2d(**arguments(arrays, dtype))
    assert_matches(output, arrays["output"], dtype, f"output ({arrays['about']})")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("peer", "case"), ALL_CASES)
def test_gradients(peer, case, dtype):
    arrays = load_peer(peer)[1][case]
    gradients = dcn.deform_conv2d_backward(
        arrays["grad_output"].astype(dtype), **arguments(arrays, dtype)
    )
    assert gradients._fields == INPUTS
    for name in INPUTS:
        ours = getattr(gradients, name)
        what = f"gradient of {name} ({arrays['about']})"
        if name in arrays:
            assert_matches(ours, arrays[f"grad_{name}"], dtype, what)
        else:
            assert ours is None, f"{what} should be None, since {name} was not given"


@pytest.mark.parametrize(
    ("peer", "versions", "count"),
    [
        ("torchvision", ["torchvision==0.29.1", "torch==2.14.1"], 16),
        ("paddle", ["paddlepaddle==3.3.1"], 15),
    ],
)
def test_reference_is_complete(peer, versions, count):
    # Parametrising over a file that lost its cases would pass by running nothing.
    stored_versions, cases = load_peer(peer)
    assert stored_versions == versions
    assert len(cases) == count
    for arrays in cases.values():
        for name in INPUTS:
            assert (name in arrays) == (f"grad_{name}" in arrays)
            if name in arrays:
                value = arrays[name]
                assert np.array_equal(value, value.astype(np.float32).astype(np.float64))
