"""Dtypes, memory orders, empty batches, ``needs``, ``out`` and numbers that are no numbers.

Every public function that computes runs in two settings, one for each memory order of the CPU path
(few channels a deformable group, and more), and is compared with the loops of _oracle.py.
"""

import inspect
import itertools
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from cases import least_workspace as least_of
from libraries import dcn

import cupy_dcn
from cupy_dcn import _oracle

pytestmark = pytest.mark.usefixtures("library")

FUNCTIONS = (
    "deform_conv2d", "deform_conv2d_backward", "deform_im2col", "deform_col2im",
    "deform_coord_grad",
)  # fmt: skip
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
BFLOAT16 = ml_dtypes.bfloat16
# Significant bits of what is stored.
DTYPES = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
HALVES = ("float16", "bfloat16")
# Errors of sums and coordinates, as a share of an array's largest value: what the tests against
# other implementations demand too. Half types compute in float32.
NOISE = {"float64": 1e-12, "float32": 5e-6, "float16": 5e-6, "bfloat16": 5e-6}


class Setting:
    """Attributes, and the shapes of the arrays that fit them."""

    def __init__(self, x, out_channels, kernel, groups, deformable_groups, **windows):
        self.stride, self.padding, self.dilation = (1, 1), (0, 0, 0, 0), (1, 1)
        vars(self).update(windows)
        self.x, self.kernel, self.groups, self.deformable_groups = (
            x, kernel, groups, deformable_groups
        )  # fmt: skip
        images, channels, height, width = x
        size = tuple(
            (length + self.padding[2 * a] + self.padding[2 * a + 1]
             - self.dilation[a] * (kernel[a] - 1) - 1) // self.stride[a] + 1
            for a, length in enumerate((height, width))
        )  # fmt: skip
        samples = kernel[0] * kernel[1] * deformable_groups
        out = (images, out_channels, *size)
        self.shapes = {
            "x": x,
            "offset": (images, 2 * samples, *size),
            "weight": (out_channels, channels // groups, *kernel),
            "bias": (out_channels,),
            "mask": (images, samples, *size),
            "grad_output": out,
            "grad_columns": (
                images, groups, size[0] * size[1], kernel[0] * kernel[1], channels // groups
            ),
            "output": out,
        }  # fmt: skip
        self.shapes["columns"] = self.shapes["grad_columns"]

    def attributes(self):
        """Every attribute that a function may take, by name."""
        return {
            "kernel_size": self.kernel, "image_size": self.x[2:], "stride": self.stride,
            "padding": self.padding, "dilation": self.dilation, "groups": self.groups,
            "deformable_groups": self.deformable_groups,
        }  # fmt: skip


SETTINGS = {
    "few channels": Setting(
        (2, 6, 5, 6), 4, (3, 2), 2, 3, stride=(2, 1), padding=(1, 2, 0, 1), dilation=(1, 2)
    ),
    "more channels": Setting(
        (2, 10, 6, 5), 6, (2, 3), 2, 1, stride=(1, 2), padding=(2, 0, 1, 1), dilation=(2, 1)
    ),
}


def takes(function):
    return set(inspect.signature(getattr(cupy_dcn, function)).parameters)


def attributes(function, setting):
    given = {name: value for name, value in setting.attributes().items() if name in takes(function)}
    assert given
    return given


def arrays(function, setting, dtype, seed=0):
    """Random inputs, many of whose samples leave the image; float32 numbers in every dtype."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in setting.shapes.items():  # all of them, so that functions share inputs
        numbers = rng.normal(scale=1.5 if name == "offset" else 1, size=shape)
        if name in takes(function):
            made[name] = numbers.astype(np.float32).astype(dtype)
    assert made
    return made


def compute(function, inputs, setting, **more):
    """Call a function; return its results by name."""
    result = getattr(dcn, function)(**inputs, **attributes(function, setting), **more)
    if function == "deform_conv2d_backward":
        assert result._fields == GRADIENTS
        return result._asdict()
    names = {"deform_conv2d": "output", "deform_im2col": "columns", "deform_col2im": "x"}
    if function in names:
        return {names[function]: result}
    grad_offset, grad_mask = result
    return {"offset": grad_offset, "mask": grad_mask}


def expect(function, inputs, setting):
    """The same results from plain loops in float64."""
    a = {name: value.astype(np.float64) for name, value in inputs.items()}
    s, mask = setting, a.get("mask")
    places = (s.stride, s.padding, s.dilation, s.deformable_groups)
    if function == "deform_conv2d":
        return {"output": _oracle.forward(
            a["x"], a["offset"], a["weight"], a.get("bias"), *places, s.groups, mask)}  # fmt: skip
    if function == "deform_conv2d_backward":
        results = _oracle.backward(
            a["grad_output"], a["x"], a["offset"], a["weight"], *places, s.groups, mask
        )
        return {
            name: result if name in a else None
            for name, result in zip(GRADIENTS, results, strict=True)
        }
    if function == "deform_im2col":
        columns = _oracle.im2col(a["x"], a["offset"], s.kernel, *places, s.groups, mask)
        return {"columns": columns}
    x = a.get("x", np.zeros(s.x))
    grad_x, grad_offset, grad_mask = _oracle.backward_of_im2col(
        a["grad_columns"], x, a["offset"], s.kernel, *places, mask
    )
    if function == "deform_col2im":
        return {"x": grad_x}
    return {"offset": grad_offset, "mask": None if mask is None else grad_mask}


def half_ulp(values, bits):
    """Half the distance of neighbours around ``values`` among numbers of so many bits."""
    lowest = -13 if bits == 11 else -125  # below it numbers lie no denser
    exponent = np.where(values == 0, lowest, np.frexp(values)[1])
    return np.ldexp(0.5, np.maximum(exponent, lowest) - bits)


def assert_close(ours, reference, dtype, storage, precision, what):
    """Compare with the oracle, which got the inputs as they are stored, in float64.

    Half types are storage: products, sums and coordinates are float32, and the only other error
    is the rounding of the result, half a unit of its last place.
    """
    assert ours.dtype == np.dtype(dtype), f"{what} is {ours.dtype}, expected {dtype}"
    assert ours.shape == reference.shape, f"{what} is {ours.shape}, expected {reference.shape}"
    assert ours.flags.c_contiguous
    noise = NOISE[precision]
    if storage in HALVES and dcn.on_device:
        # Columns and their gradients are stored in the half type there, for the tensor cores: each
        # is off by half a unit of its last place, and the sums of up to 60 of them are of terms
        # of either sign, larger than the result.
        noise += 2.0 ** (2 - DTYPES[storage])
    bound = np.full(reference.shape, noise * np.abs(reference).max())
    if dtype in HALVES:
        bound += half_ulp(np.abs(reference) + bound, DTYPES[dtype])
    error = np.abs(ours.astype(np.float64) - reference)
    # A NaN among ours fails the comparison.
    assert (error <= bound).all(), f"{what} is off by {error.max():.2e}"


def assert_results(function, inputs, setting, results):
    """Compare all results with the oracle; each has the dtype of the argument it belongs to."""
    precision = str(inputs["offset"].dtype)
    main = "x" if "x" in inputs else "grad_columns"
    storage = str(inputs[main].dtype)
    if storage in HALVES:
        precision = "float32"
    expected = expect(function, inputs, setting)
    assert results.keys() == expected.keys()
    for name, reference in expected.items():
        if reference is None:
            assert results[name] is None
        else:
            dtype = str(inputs[name if name in inputs else main].dtype)
            what = f"{name} of {function}"
            assert_close(results[name], reference, dtype, storage, precision, what)


def assert_same(ours, theirs, tolerance=0.0):
    """Demand equal results, bit for bit unless a tolerance relative to the largest is given."""
    assert ours.keys() == theirs.keys()
    for name, other in theirs.items():
        if other is None:
            assert ours[name] is None
            continue
        assert type(ours[name]) is np.ndarray
        assert ours[name].dtype == other.dtype
        assert ours[name].shape == other.shape
        if tolerance:
            error = np.abs(ours[name] - other).max()
            assert error <= tolerance * np.abs(other).max(), f"{name} is off by {error:.2e}"
        else:
            np.testing.assert_array_equal(ours[name], other, err_msg=name)


def least_workspace(function, inputs, setting):
    """The smallest ``workspace_bytes`` that works: images are then read through small windows."""
    return least_of(partial(compute, function, inputs, setting))


each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@each_function
@each_setting
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optional", [(), ("bias", "mask")], ids=str)
def test_values(function, setting, dtype, optional):
    inputs = arrays(function, setting, dtype)
    inputs = {k: v for k, v in inputs.items() if k not in ("bias", "mask") or k in optional}
    assert_results(function, inputs, setting, compute(function, inputs, setting))


@each_function
@each_setting
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wide", [("offset",), ("mask",), ("offset", "mask")], ids=str)
def test_float32_beside_half(function, setting, dtype, wide):
    inputs = arrays(function, setting, dtype)
    inputs.update({k: v for k, v in arrays(function, setting, "float32").items() if k in wide})
    assert all(inputs[name].dtype == np.float32 for name in wide)
    assert_results(function, inputs, setting, compute(function, inputs, setting))


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("offset_dtype", ["float32", "half"])
def test_wide_image_of_half_precision(channels, dtype, offset_dtype):
    # In float16 itself a coordinate near 2048 is a whole number. Multiples of 1/64 pixel are exact
    # in float32, so that the result is the exact one, rounded once: not a bit may differ.
    width = 2048
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (1, channels, 1, width)).astype(dtype)
    steps = rng.integers(-31, 32, width) / 64
    offset = np.zeros((1, 2, 1, width), dtype if offset_dtype == "half" else np.float32)
    offset[0, 1, 0] = steps
    assert np.array_equal(offset[0, 1, 0].astype(np.float64), steps)
    location = np.arange(width) + steps
    left = np.floor(location).astype(int)
    padded = np.pad(x.astype(np.float64)[0, :, 0], ((0, 0), (1, 1)))
    low, high = padded[:, left + 1], padded[:, left + 2]
    exact = (1 - (location - left)) * low + (location - left) * high
    weight = np.eye(channels, dtype=np.float32).astype(dtype)[:, :, None, None]
    output = dcn.deform_conv2d(x, offset, weight)
    assert output.dtype == x.dtype
    np.testing.assert_array_equal(output[0, :, 0], exact.astype(np.float32).astype(dtype))
    # The slope between two pixels, summed over channels: 8 additions in float32.
    gradients = dcn.deform_conv2d_backward(
        np.ones_like(output), x, offset, weight, needs=["offset"]
    )
    slope = (high - low).sum(0)
    bound = 1e-6 + half_ulp(np.abs(slope), DTYPES[str(gradients.offset.dtype)])
    assert (np.abs(gradients.offset[0, 1, 0].astype(np.float64) - slope) <= bound).all()


class Subclass(np.ndarray):
    """An array that is not of the type ndarray."""


def misaligned(array):
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def field(array):
    """A field of packed records, whose strides are no multiple of the item size."""
    records = np.zeros(array.shape, [("flag", np.uint8), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def every_second(array):
    larger = np.full([2 * length for length in array.shape], np.nan, array.dtype)
    view = larger[(slice(1, None, 2),) * array.ndim]
    view[...] = array
    return view


def inside(array):
    larger = np.full([length + 3 for length in array.shape], np.nan, array.dtype)
    view = larger[(slice(1, -2),) * array.ndim]
    view[...] = array
    return view


def channels_last(array):
    return np.moveaxis(np.moveaxis(array, min(1, array.ndim - 1), -1).copy(), -1, 1 % array.ndim)


def read_only(array):
    view = array.copy()
    view.flags.writeable = False
    return view


VIEWS = {
    "Fortran order": np.asfortranarray,
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "channels last": channels_last,
    "every second": every_second,
    "inside": inside,
    "misaligned": misaligned,
    "field": field,
    "read-only": read_only,
    "subclass": lambda array: array.copy().view(Subclass),
}


def memory(array):
    """The bytes of the whole memory that an array is a view of."""
    return (array if array.base is None else np.asarray(array.base)).tobytes()


def assert_same_as_copies(function, inputs, setting, plain, **more):
    """Run on views; demand the results of contiguous copies and inputs left as they were."""
    before = {name: memory(array) for name, array in inputs.items()}
    results = compute(function, inputs, setting, **more)
    # Other strides may add in another order.
    assert_same(results, plain, tolerance=1e-13)
    for name, array in inputs.items():
        assert memory(array) == before[name], f"{name} was written to"


@each_function
@each_setting
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(function, setting, view):
    inputs = arrays(function, setting, np.float64)
    assert all(np.array_equal(view(array), array) for array in inputs.values())
    plain = compute(function, inputs, setting)
    views = {name: view(array) for name, array in inputs.items()}
    for name in inputs:
        assert_same_as_copies(function, {**inputs, name: views[name]}, setting, plain)
    assert_same_as_copies(function, views, setting, plain)
    if function == "deform_conv2d_backward":  # it runs every stage
        least = least_workspace(function, inputs, setting)
        assert_same_as_copies(function, views, setting, plain, workspace_bytes=least)


@each_function
@each_setting
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inputs_stay_as_they_are(function, setting, dtype):
    # Where the dtype is the one computed in, an input may be worked on without a copy.
    inputs = arrays(function, setting, dtype)
    before = {name: memory(array) for name, array in inputs.items()}
    least = least_workspace(function, inputs, setting)
    results = [compute(function, inputs, setting, workspace_bytes=b) for b in (None, least)]
    assert {name: memory(array) for name, array in inputs.items()} == before
    for result in itertools.chain(*(one.values() for one in results)):
        assert not any(np.shares_memory(result, array) for array in inputs.values())


@each_function
@each_setting
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_broadcast_views(function, setting, axis):
    inputs = arrays(function, setting, np.float64)
    for name, array in inputs.items():
        first = np.take(array, [0], axis % array.ndim)
        view = np.broadcast_to(first, array.shape)
        copy = {**inputs, name: view.copy()}
        plain = compute(function, copy, setting)
        assert 0 in view.strides
        assert_same_as_copies(function, {**inputs, name: view}, setting, plain)


@each_function
@each_setting
def test_one_number_for_all(function, setting):
    inputs = arrays(function, setting, np.float64)
    constant = {name: np.broadcast_to(array.flat[0], array.shape) for name, array in inputs.items()}
    assert all(set(array.strides) == {0} for array in constant.values())
    plain = compute(function, {k: v.copy() for k, v in constant.items()}, setting)
    assert_same_as_copies(function, constant, setting, plain)


@each_function
@each_setting
def test_memory_mapped(function, setting, tmp_path):
    inputs = arrays(function, setting, np.float64)
    plain = compute(function, inputs, setting)
    mapped = {}
    for name, array in inputs.items():
        array.tofile(tmp_path / name)
        mapped[name] = np.memmap(tmp_path / name, array.dtype, "r", shape=array.shape)
    assert_same(compute(function, mapped, setting), plain)


@each_setting
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(setting, dtype, tmp_path):
    inputs = arrays("deform_conv2d", setting, dtype)
    plain = compute("deform_conv2d", inputs, setting)["output"]
    shape = setting.shapes["output"]
    mapped = np.memmap(tmp_path / "out", dtype, "w+", shape=shape)
    for out in (np.full(shape, np.nan, dtype), mapped, np.zeros(shape, dtype).view(Subclass)):
        assert compute("deform_conv2d", inputs, setting, out=out)["output"] is out
        np.testing.assert_array_equal(np.asarray(out), plain)
    mapped.flush()
    stored = np.fromfile(tmp_path / "out", dtype).reshape(shape)
    np.testing.assert_array_equal(stored, plain)


@each_function
@each_setting
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optional", [True, False])
def test_empty_batch(function, setting, dtype, optional):
    inputs = {
        name: array if name in ("weight", "bias") else array[:0]
        for name, array in arrays(function, setting, dtype).items()
        if optional or name not in ("bias", "mask")
    }
    least = least_workspace(function, inputs, setting)
    for workspace_bytes in (None, least):
        results = compute(function, inputs, setting, workspace_bytes=workspace_bytes)
        for name, result in results.items():
            if name in ("bias", "mask") and not optional:
                assert result is None
                continue
            shape = setting.shapes[name]
            batch = shape[:1] if name in ("weight", "bias") else (0,)
            assert result.shape == (*batch, *shape[1:])
            assert result.dtype == np.dtype(dtype)
            assert not result.any()  # the weight's and the bias's are zeros
    out = np.empty((0, *setting.shapes["output"][1:]), dtype)
    if function == "deform_conv2d":
        assert compute(function, inputs, setting, out=out)["output"] is out


SUBSETS = [subset for count in range(6) for subset in itertools.combinations(GRADIENTS, count)]


@each_setting
@pytest.mark.parametrize(
    ("optional", "small"),
    [((), False), (("bias",), False), (("mask",), False), (GRADIENTS[3:], False),
     (GRADIENTS[3:], True)],
    ids=str,
)  # fmt: skip
def test_every_subset_of_needs(setting, optional, small):
    function = "deform_conv2d_backward"
    inputs = arrays(function, setting, "float32")
    inputs = {k: v for k, v in inputs.items() if k not in ("bias", "mask") or k in optional}
    workspace_bytes = least_workspace(function, inputs, setting) if small else None
    everything = compute(function, inputs, setting, workspace_bytes=workspace_bytes)
    assert {name for name, value in everything.items() if value is None} == (
        {"bias", "mask"} - set(optional)
    )
    assert len(set(SUBSETS)) == 32
    for needs in SUBSETS:
        some = compute(function, inputs, setting, needs=needs, workspace_bytes=workspace_bytes)
        wanted = {name: everything[name] if name in needs else None for name in GRADIENTS}
        # On a device other kernels compute other subsets, and round in another order.
        assert_same(some, wanted, tolerance=1e-6 if dcn.on_device else 0)


@pytest.mark.parametrize("kind", [list, set, frozenset, iter, dict.fromkeys])
def test_kinds_of_needs(kind):
    setting = SETTINGS["few channels"]
    inputs = arrays("deform_conv2d_backward", setting, np.float64)
    everything = compute("deform_conv2d_backward", inputs, setting)
    some = compute("deform_conv2d_backward", inputs, setting, needs=kind(("mask", "x", "x")))
    wanted = {name: everything[name] if name in ("x", "mask") else None for name in GRADIENTS}
    assert_same(some, wanted)


# From here on: one sampling point an image of 3x4 pixels, at the location that the offset says.
NAN, INF = np.nan, np.inf
IMAGE = np.arange(1.0, 13).reshape(3, 4)
OUTSIDE = [
    *itertools.product((NAN, INF, -INF), (0, 1.5, NAN, INF, -INF)),
    *itertools.product((0, 1.5), (NAN, INF, -INF)),
    # Exactly on the edge of the open box, where a one-sided derivative would not be 0.
    (-1, 0), (-1, 1.5), (-1, 3), (3, 0), (3, 1.5), (3, 3), (0, -1), (1.5, -1), (2, -1), (0, 4),
    (1.5, 4), (2, 4), (-1, -1), (-1, 4), (3, -1), (3, 4),
    *((sign * 2.0**power, 1) for power in (2, 8, 15, 24, 31, 32, 63, 100) for sign in (1, -1)),
    *((1, sign * 2.0**power) for power in (3, 8, 15, 24, 31, 32, 63, 100) for sign in (1, -1)),
    (-1.5, 1), (3.5, 1), (1, -1.5), (1, 4.5),
]  # fmt: skip
INSIDE = {
    (0, 0): 1, (2, 3): 12, (1, 2): 7, (1.5, 1.5): 8.5, (0.5, 0): 3, (0, 2.25): 3.25,
    (-0.5, 0): 0.5, (2.5, 3): 6, (0, -0.5): 0.5, (0, 3.5): 2, (-0.5, -0.5): 0.25, (2.5, 3.5): 3,
    (-0.25, 3.5): 1.5, (2.75, 1.5): 2.625, (-0.5, 1.5): 1.25,
}  # fmt: skip


def points(locations, channels, dtype, images=IMAGE):
    """The setting and the inputs of one sample an image, weights and gradients of 1."""
    setting = Setting((len(locations), channels, 3, 4), 1, (1, 1), 1, 1, stride=(3, 4))
    factors = np.arange(1, channels + 1)[:, None, None]
    with np.errstate(over="ignore"):  # 2^100 is infinite in float16, and outside as well
        offset = np.array(locations, dtype=np.float64).reshape(-1, 2, 1, 1).astype(dtype)
    inputs = {
        "x": np.broadcast_to(images * factors, setting.x).astype(dtype),
        "offset": offset,
        "weight": np.ones((1, channels, 1, 1), dtype),
        "mask": np.ones((len(locations), 1, 1, 1), dtype),
    }
    assert all(inputs[name].shape == setting.shapes[name] for name in inputs)
    return setting, inputs


def both_workspaces(function, inputs, setting):
    """Results with the default workspace and with the least."""
    least = least_workspace(function, inputs, setting)
    return [compute(function, inputs, setting, workspace_bytes=b) for b in (None, least)]


each_count = pytest.mark.parametrize("channels", [1, 5])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_count
@each_dtype
def test_outside_is_exactly_zero(channels, dtype):
    setting, inputs = points(OUTSIDE, channels, dtype)
    for results in both_workspaces("deform_conv2d", inputs, setting):
        assert not results["output"].any()
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"], dtype)
    for results in both_workspaces("deform_conv2d_backward", inputs, setting):
        for name in ("x", "offset", "weight", "mask"):
            assert not results[name].any(), f"the gradient of {name} is not 0"


@each_count
@each_dtype
def test_values_by_hand(channels, dtype):
    setting, inputs = points(list(INSIDE), channels, dtype)
    # The sum over channels of 1, 2, 3, ... times the value: exact in every dtype.
    expected = np.array(list(INSIDE.values())) * sum(range(1, channels + 1))
    for results in both_workspaces("deform_conv2d", inputs, setting):
        np.testing.assert_array_equal(results["output"].ravel(), expected.astype(dtype))
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"], dtype)
    for results in both_workspaces("deform_conv2d_backward", inputs, setting):
        assert_results("deform_conv2d_backward", inputs, setting, results)


@each_count
@each_dtype
def test_next_to_the_edge_is_inside(channels, dtype):
    # The smallest step into the box from each of its four sides, along the outermost pixels.
    step, into = 2.0 ** -DTYPES[dtype], 2.0 ** (2 - DTYPES[dtype])
    locations = [(-1 + step, 0), (0, -1 + step), (3 - into, 0), (0, 4 - into)]
    setting, inputs = points(locations, channels, dtype)
    assert np.array_equal(inputs["offset"].reshape(4, 2).astype(np.float64), locations)
    expected = np.array([step, step, into * 9, into * 4]) * sum(range(1, channels + 1))
    for results in both_workspaces("deform_conv2d", inputs, setting):
        np.testing.assert_array_equal(results["output"].ravel(), expected.astype(dtype))
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"], dtype)
    for results in both_workspaces("deform_conv2d_backward", inputs, setting):
        # Along y for the first and third: the derivative of a pixel fading in or out.
        slopes = np.array([1, 1, -9, -4]) * sum(range(1, channels + 1))
        ours = results["offset"].reshape(4, 2)[range(4), [0, 1, 0, 1]]
        np.testing.assert_array_equal(ours, slopes.astype(dtype))


@each_count
def test_whole_numbers_have_the_right_hand_derivative(channels):
    locations = list(itertools.product(range(3), range(4)))
    setting, inputs = points(locations, channels, np.float64)
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"])
    padded = np.pad(IMAGE, ((0, 1), (0, 1)))
    expected = np.stack((np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]), -1)
    for results in both_workspaces("deform_conv2d_backward", inputs, setting):
        ours = results["offset"].reshape(3, 4, 2)
        np.testing.assert_array_equal(ours, expected * sum(range(1, channels + 1)))


# Every half pixel around an image, from outside to outside.
GRID = list(itertools.product(np.arange(-1.5, 4, 0.5), np.arange(-1.5, 5, 0.5)))


def assert_like_oracle(function, inputs, setting, compare):
    """Compare with the oracle under two workspaces; arithmetic with inf and NaN may warn."""
    given = {name: array for name, array in inputs.items() if name in takes(function)}
    with np.errstate(invalid="ignore"):
        expected = expect(function, given, setting)
        for results in both_workspaces(function, given, setting):
            for name, reference in expected.items():
                if reference is None:
                    assert results[name] is None
                else:
                    compare(results[name].astype(np.float64), reference, err_msg=name)


def assert_finite_alike(ours, reference, err_msg):
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(reference), err_msg)
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(ours[finite], reference[finite], err_msg)


def among_corners(location, pixel):
    """Tell whether a pixel is one of the four corners of a location that counts."""
    axes = zip(location, pixel, strict=True)
    return all(at > -1 and np.floor(at) <= p <= np.floor(at) + 1 for at, p in axes)


@each_count
@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("pixel", [(0, 0), (2, 3), (1, 1)], ids=str)
def test_no_number_in_x(channels, value, pixel):
    # Only samples with this pixel among their corners may notice. A corner of weight 0 does
    # (0 * inf is NaN), a corner outside does not: no clamped index lets the border leak in.
    images = IMAGE.copy()
    images[pixel] = value
    setting, inputs = points(GRID, channels, "float64", images)
    near = [among_corners(location, pixel) for location in GRID]
    # Along an axis a pixel p is a corner of p - 1, p - 0.5, p and p + 0.5; -1 lies outside.
    assert sum(near) == (3 if pixel[0] == 0 else 4) * (3 if pixel[1] == 0 else 4)
    with np.errstate(invalid="ignore"):
        output = compute("deform_conv2d", inputs, setting)["output"]
    np.testing.assert_array_equal(np.isfinite(output.ravel()), ~np.array(near))
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"])
    for function in ("deform_conv2d", "deform_conv2d_backward"):
        assert_like_oracle(function, inputs, setting, np.testing.assert_array_equal)


@each_count
@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("name", ["mask", "weight", "grad_output"])
def test_no_number_in_a_factor(channels, value, name):
    # It makes the samples inside infinite or NaN, and 0 * it is NaN outside. No gradient of x or
    # of an offset comes from outside, whatever the factor.
    setting, inputs = points(GRID, channels, "float64")
    inputs["grad_output"] = np.ones(setting.shapes["grad_output"])
    inputs[name] = np.full_like(inputs[name], value)
    assert_like_oracle("deform_conv2d", inputs, setting, np.testing.assert_array_equal)
    # Whether inf - inf is formed depends on the order of a sum, so inf and NaN count as one.
    same = np.testing.assert_array_equal if np.isnan(value) else assert_finite_alike
    assert_like_oracle("deform_conv2d_backward", inputs, setting, same)


@each_count
def test_no_number_in_a_windowed_image(channels):
    # One tile of 16 pixels and an image that is read through many windows: what is not a number
    # stays with the samples that touch it.
    setting = Setting((1, channels, 40, 40), 1, (1, 1), 1, 1, stride=(10, 10))
    rng = np.random.default_rng(3)
    inputs = arrays("deform_conv2d_backward", setting, np.float64)
    inputs["offset"] = rng.uniform(-8, 18, setting.shapes["offset"])
    inputs["offset"].flat[[3, 20]] = NAN, INF
    inputs["mask"].flat[5] = NAN
    for n, (y, x) in enumerate(rng.integers(0, 40, (300, 2))):
        inputs["x"][0, :, y, x] = (NAN, INF, -INF)[n % 3]
    with np.errstate(invalid="ignore"):
        for function in ("deform_conv2d", "deform_conv2d_backward"):
            given = {name: array for name, array in inputs.items() if name in takes(function)}
            least = least_workspace(function, given, setting)
            expected = expect(function, given, setting)
            for workspace_bytes in (None, least, 4 * least, 16 * least):
                results = compute(function, given, setting, workspace_bytes=workspace_bytes)
                for name, reference in expected.items():
                    np.testing.assert_allclose(results[name], reference, rtol=1e-12, err_msg=name)
        samples = expected["mask"].ravel()
    # The call is worth making: some samples touch what is not a number, and some do not.
    assert 2 <= np.isfinite(samples).sum() <= 14
