"""Real torch, Paddle and JAX: their arrays in and out, and the recipes of the documentation.

`make test-frameworks` has all of them; elsewhere only those that happen to be installed.
"""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import cupy_dcn

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "frameworks.md"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", PAGE.read_text("utf-8"), re.S | re.M))
MODULES = {"torch": "torch", "Paddle": "paddle", "JAX": "jax"}
NAMES = "x", "offset", "weight", "bias", "mask"
ATTRIBUTES = {"stride": (1, 2), "padding": 1, "deformable_groups": 2, "groups": 2}
# Paddle misses a cache for compilers.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module", params=MODULES)
def framework(request):
    """A framework, its module, and the names that its recipe defines."""
    module = pytest.importorskip(MODULES[request.param], reason="make test-frameworks has it")
    names = {}
    for block in blocks(request.param):
        exec(compile(block, f"frameworks.md, {request.param}", "exec"), names)
    return request.param, module, names


@pytest.fixture(scope="module")
def arrays():
    """A call's arrays in float64, samples away from the pixels' edges."""
    rng = np.random.default_rng(0)
    shape = {"x": (2, 4, 5, 7), "weight": (6, 2, 3, 3), "bias": (6,), "mask": (2, 18, 5, 4)}
    call = {name: rng.standard_normal(each) for name, each in shape.items()}
    whole = rng.integers(-2, 2, (2, 36, 5, 4))
    return call | {"offset": whole + rng.uniform(0.1, 0.9, whole.shape)}


def test_the_page_has_a_recipe_of_each():
    for name in MODULES:
        assert len(blocks(name)) == 2


def converter(framework):
    name, module, _ = framework
    return {
        "torch": lambda value: module.from_numpy(value.copy()),
        "Paddle": lambda value: module.to_tensor(value),
        "JAX": lambda value: module.numpy.asarray(value),
    }[name]


def test_its_arrays_are_read_where_they_lie(framework, arrays):
    make = converter(framework)
    own = {name: value.astype(np.float32) for name, value in arrays.items()}
    foreign = {name: make(value) for name, value in own.items()}
    expected = cupy_dcn.deform_conv2d(**own, **ATTRIBUTES)
    result = cupy_dcn.deform_conv2d(**foreign, **ATTRIBUTES)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)
    dy, dx = cupy_dcn.unpack_offset(foreign["offset"])
    assert np.shares_memory(dy, cupy_dcn.unpack_offset(foreign["offset"])[0])
    assert dy.flags.writeable == (framework[0] != "JAX")
    np.testing.assert_array_equal(dx, own["offset"][:, 1::2])
    grads = cupy_dcn.deform_conv2d_backward(make(expected), **foreign, **ATTRIBUTES)
    others = cupy_dcn.deform_conv2d_backward(expected, **own, **ATTRIBUTES)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(grads, name), getattr(others, name))


def test_the_way_back_copies_nothing(framework, arrays):
    name, module, _ = framework
    back = (module.numpy if name == "JAX" else module).from_dlpack
    own = {each: value.astype(np.float32) for each, value in arrays.items()}
    result = cupy_dcn.deform_conv2d(**own, **ATTRIBUTES)
    same = np.from_dlpack(back(result))
    whole = name != "JAX" or result.ctypes.data % 64 == 0  # as XLA wants its memory
    assert np.shares_memory(same, result) == whole
    np.testing.assert_array_equal(same, result)


def test_out(framework, arrays):
    name, _, _ = framework
    expected = cupy_dcn.deform_conv2d(**arrays, **ATTRIBUTES)
    out = converter(framework)(np.zeros_like(expected))
    if name == "JAX":
        with pytest.raises(ValueError, match="writeable=False"):
            cupy_dcn.deform_conv2d(
                **{each: value.astype(np.float32) for each, value in arrays.items()},
                **ATTRIBUTES,
                out=out,
            )
        return
    result = cupy_dcn.deform_conv2d(**arrays, **ATTRIBUTES, out=out)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(out.numpy(), expected)
    assert np.shares_memory(result, np.from_dlpack(out))


def require_gradients(tensor):
    if hasattr(tensor, "stop_gradient"):
        tensor.stop_gradient = False
    else:
        tensor.requires_grad = True


def test_gradients_that_would_get_lost(framework, arrays):
    name, module, _ = framework
    make = converter(framework)
    if name == "JAX":

        def traced(x):
            return cupy_dcn.deform_conv2d(**{**arrays, "x": x}, **ATTRIBUTES)

        with pytest.raises(TypeError, match=r"x is a jax\..*Tracer whose memory cannot be read"):
            module.jit(traced)(arrays["x"])
        return
    weight = make(arrays["weight"])
    require_gradients(weight)
    with pytest.raises(TypeError, match=r"weight is a .*Tensor that requires gradients, .*detach"):
        cupy_dcn.deform_conv2d(**{**arrays, "weight": weight}, **ATTRIBUTES)
    cupy_dcn.deform_conv2d(**{**arrays, "weight": weight.detach()}, **ATTRIBUTES)


def test_bfloat16(framework, arrays):
    name, module, _ = framework
    own = {each: value.astype(ml_dtypes.bfloat16) for each, value in arrays.items()}
    expected = cupy_dcn.deform_conv2d(**own, **ATTRIBUTES)
    as_integers = {each: value.view(np.int16) for each, value in own.items()}
    if name == "JAX":
        foreign = {each: module.numpy.asarray(value) for each, value in own.items()}
        result = cupy_dcn.deform_conv2d(**foreign, **ATTRIBUTES)
        assert module.numpy.asarray(result).dtype == "bfloat16"
    else:
        foreign = {
            each: module.from_dlpack(value).view(module.bfloat16)
            for each, value in as_integers.items()
        }
        with pytest.raises(TypeError, match=r"x is a .*Tensor of bfloat16, expected ml_dtypes'"):
            cupy_dcn.deform_conv2d(**foreign, **ATTRIBUTES)
        to_integers = {"torch": lambda t: t.view(module.int16), "Paddle": lambda t: t}[name]
        viewed = {
            each: to_integers(t).numpy().view(ml_dtypes.bfloat16) for each, t in foreign.items()
        }
        result = cupy_dcn.deform_conv2d(**viewed, **ATTRIBUTES)
        back = module.from_dlpack(result.view("int16")).view(module.bfloat16)
        assert back.dtype == module.bfloat16
        np.testing.assert_array_equal(
            to_integers(back).numpy().view(np.uint16), expected.view(np.uint16)
        )
    np.testing.assert_array_equal(result, expected)


def differences(function, values, direction):
    """The derivative of a sum of squares along a direction, by central differences."""
    step = 1e-6
    ahead, behind = (
        (function(*(v + s * d for v, d in zip(values, direction, strict=True))) ** 2).sum()
        for s in (step, -step)
    )
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("version", [1, 2])
def test_the_recipes_gradients_are_the_slopes(framework, arrays, version):
    name, module, names = framework
    used = NAMES if version == 2 else NAMES[:3]
    values = [arrays[each] for each in used]

    def ours(*numbers):
        return cupy_dcn.deform_conv2d(**dict(zip(used, numbers, strict=True)), **ATTRIBUTES)

    if name == "JAX":
        with module.enable_x64(True):
            convolve = names["deform_conv2d_with"](**ATTRIBUTES)
            loss = module.jit(lambda *each: (convolve(*each) ** 2).sum())
            found, grads = module.value_and_grad(loss, range(len(used)))(*values)
            grads = [np.asarray(each) for each in grads]
            found = float(found)
    else:
        tensors = [converter(framework)(each) for each in values]
        for each in tensors:
            require_gradients(each)
        loss = (names["deform_conv2d"](*tensors, **ATTRIBUTES) ** 2).sum()
        loss.backward()
        found, grads = float(loss), [each.grad.numpy() for each in tensors]
    assert found == pytest.approx((ours(*values) ** 2).sum(), rel=1e-12)
    rng = np.random.default_rng(1)
    for index, (value, grad) in enumerate(zip(values, grads, strict=True)):
        direction = [np.zeros_like(each) for each in values]
        direction[index] = rng.standard_normal(value.shape)
        slope = differences(ours, values, direction)
        assert (grad * direction[index]).sum() == pytest.approx(slope, rel=1e-6), used[index]


def test_the_recipe_works_for_what_is_asked_alone(framework, arrays, monkeypatch):
    name, _, names = framework
    if name == "JAX":
        return  # it asks for all
    asked, backward = [], cupy_dcn.deform_conv2d_backward

    def listening(*args, needs, **kwargs):
        asked.append(list(needs))
        return backward(*args, needs=needs, **kwargs)

    monkeypatch.setattr(cupy_dcn, "deform_conv2d_backward", listening)
    tensors = {each: converter(framework)(value) for each, value in arrays.items()}
    for each in ("offset", "mask"):
        require_gradients(tensors[each])
    names["deform_conv2d"](**tensors, **ATTRIBUTES).sum().backward()
    assert asked == [["offset", "mask"]]
    assert tensors["x"].grad is None
    assert tensors["offset"].grad is not None


def test_the_sign_of_a_conjugates_imaginary_part():
    torch = pytest.importorskip("torch", reason="make test-frameworks has it")
    offset = torch.full((1, 2, 3, 3), 1 + 2j).conj().imag
    assert (np.from_dlpack(offset) == -np.asarray(offset.resolve_neg())).all()  # alas
    with pytest.raises(TypeError, match=r"offset.resolve_neg\(\) puts"):
        cupy_dcn.unpack_offset(offset)
    assert (cupy_dcn.unpack_offset(offset.resolve_neg())[0] == -2).all()


def test_torchs_own_check_and_torchvision(arrays):
    torch = pytest.importorskip("torch", reason="make test-frameworks has it")
    names = {}
    for block in blocks("torch"):
        exec(compile(block, "frameworks.md, torch", "exec"), names)
    tensors = [torch.from_numpy(arrays[each]).requires_grad_() for each in NAMES]
    assert torch.autograd.gradcheck(
        lambda *each: names["deform_conv2d"](*each, **ATTRIBUTES), tensors, fast_mode=True
    )
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    x, offset, weight, bias, mask = tensors
    theirs = ops.deform_conv2d(x, offset, weight, bias, stride=(1, 2), padding=1, mask=mask)
    mine = names["deform_conv2d"](*tensors, **ATTRIBUTES)
    assert torch.allclose(theirs, mine)
    for one, other in zip(
        torch.autograd.grad(theirs.square().sum(), tensors),
        torch.autograd.grad(mine.square().sum(), tensors),
        strict=True,
    ):
        assert torch.allclose(one, other)
