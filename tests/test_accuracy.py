"""Sums of ten million float32 numbers, right to 1e-5 of their value."""

import numpy as np
import pytest
from cases import CASES, assert_close
from libraries import dcn, has_nvrtc
from test_operator import oracle_backward

from cupy_dcn import _matmul_gpu
from cupy_dcn._cut import Tile
from cupy_dcn._geometry import Geometry
from cupy_dcn._workspace import Sum, Workspace

TERMS = 10**7
SIDE = 3163  # squared: the first above ten million
RELATIVE = 1e-5
# All equal, so that roundings go the same way; positive; of both signs, around 0.05.
KINDS = "equal", "positive", "mixed"
CONDITION = 1000  # at most: the sum of the magnitudes beside that of the sum


def numbers(kind, shape, seed):
    rng = np.random.default_rng(seed)
    if kind == "equal":
        return np.full(shape, 0.1, np.float32)
    if kind == "positive":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) + np.float32(0.05)


def assert_sum(ours, terms, least=TERMS):
    exact = terms.sum()
    assert terms.dtype == np.float64
    assert terms.size >= least
    assert np.abs(terms).sum() <= CONDITION * abs(exact)
    assert abs(float(ours) - exact) <= RELATIVE * abs(exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, SIDE, SIDE), (1000, 1, 100, 100)])
def test_gradients_of_weight_and_bias_over_many_pixels(host, kind, shape):
    x, grad_output = numbers(kind, shape, 1), numbers(kind, shape, 2)
    offset = np.broadcast_to(np.float32(0), (shape[0], 2, *shape[2:]))
    weight, bias = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    grads = dcn.deform_conv2d_backward(
        grad_output, x, offset, weight, bias, needs=("weight", "bias")
    )
    assert_sum(grads.weight[0, 0, 0, 0], grad_output.astype(np.float64) * x)
    assert_sum(grads.bias[0], grad_output.astype(np.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_over_many_channels_and_taps(host, kind):
    shape = (1, TERMS // 100, 10, 10)
    x, weight = numbers(kind, shape, 1), numbers(kind, shape, 2)
    offset = np.zeros((1, 200, 1, 1), np.float32)
    output = dcn.deform_conv2d(x, offset, weight, workspace_bytes=2**30)
    assert_sum(output[0, 0, 0, 0], x.astype(np.float64) * weight)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_mask_over_many_channels(host, kind):
    # A tenth of the channels: their copy with its border is of 25 pixels.
    x, factors = numbers(kind, (1, TERMS // 10, 1, 1), 1), numbers(kind, TERMS // 10, 2)
    offset, mask = np.zeros((1, 2, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    _, grad_mask = dcn.deform_coord_grad(
        factors.reshape(1, 1, 1, 1, -1), x, offset, 1, mask=mask, workspace_bytes=2**30
    )
    assert_sum(grad_mask[0, 0, 0, 0], x.astype(np.float64).ravel() * factors, TERMS // 10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_x_over_many_output_channels(host, kind):
    weight, grad_output = (numbers(kind, (TERMS, 1), seed) for seed in (1, 2))
    x, offset = np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 2, 1, 1), np.float32)
    grads = dcn.deform_conv2d_backward(
        grad_output.reshape(1, -1, 1, 1), x, offset, weight.reshape(-1, 1, 1, 1), needs=("x",),
        workspace_bytes=2**30,
    )  # fmt: skip
    assert_sum(grads.x[0, 0, 0, 0], weight.astype(np.float64) * grad_output)


# On a GPU the products are cuBLAS's and the sum CuPy's: nobody here can tell how they add up. What
# can be held to is how many numbers they are given at once, and that parts are added up in float64.


@pytest.fixture
def cupy():
    """The stand-in for CuPy."""
    if not has_nvrtc():
        pytest.skip("no NVRTC")
    with dcn.running_on("emulated"):
        yield dcn.array_module


def one_channel(pixels, images=1):
    return Geometry(images, 1, 1, pixels, 1, 1, 1, pixels, 1, 1, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_gradient_on_a_gpu_comes_in_parts(cupy, kind):
    pixels = SIDE * SIDE
    x, grad_output = numbers(kind, pixels, 1), numbers(kind, pixels, 2)
    geometry, total = one_channel(pixels), Sum(cupy.full((1, 1, 1), np.float32(0)), False)
    columns = cupy.asarray(x.reshape(1, 1, pixels, 1, 1))
    tile = Tile(slice(0, 1), slice(0, 1), slice(0, pixels))
    _matmul_gpu.add_grad_weight(
        cupy.asarray(grad_output.reshape(1, 1, 1, pixels)), tile, columns, geometry,
        Workspace.of(2**20, cupy), total,
    )  # fmt: skip
    assert_sum(cupy.asnumpy(total.array)[0, 0, 0], x.astype(np.float64) * grad_output)


@pytest.mark.parametrize("longest", [1, 4, 7, 30])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[7], CASES[11]], ids=str)
def test_parts_are_put_together(cupy, case, longest, monkeypatch):
    asked = []
    multiply = _matmul_gpu._multiply

    def watched(sizes, *others, **settings):
        asked.append(sizes)
        multiply(sizes, *others, **settings)

    monkeypatch.setattr(_matmul_gpu, "LONGEST_SUM", longest)
    monkeypatch.setattr(_matmul_gpu, "_multiply", watched)
    x, offset, weight, bias, mask, grad_output = case.arrays(np.float32)
    grads = dcn.deform_conv2d_backward(
        grad_output, x, offset, weight, bias, mask=mask, needs=("weight",), **case.attributes
    )
    assert max(sizes[2] for sizes in asked) <= longest
    exact = [None if each is None else each.astype(np.float64)
             for each in (grad_output, x, offset, weight, mask)]  # fmt: skip
    expected = oracle_backward(case, *exact)
    assert_close(grads.weight, expected["weight"], 5e-6)


def test_bias_gradient_on_a_gpu_is_summed_in_float64(cupy, monkeypatch):
    asked, plain = [], cupy.ndarray.sum

    def watched(self, *arguments, **settings):
        asked.append(settings["dtype"])
        return plain(self, *arguments, **settings)

    monkeypatch.setattr(cupy.ndarray, "sum", watched)
    grad_output = numbers("mixed", (2, 3, 5, 7), 0)
    grad_bias = cupy.empty(3, np.float32)
    _matmul_gpu.sum_planes(cupy.asarray(grad_output), grad_bias)
    assert asked == [np.float64]
    assert_close(cupy.asnumpy(grad_bias), grad_output.sum((0, 2, 3), np.float64), 1e-6)
