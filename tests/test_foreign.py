"""Arrays of other libraries: by whatever protocol they come, results are those of own arrays.

The producers here have one protocol each. Real libraries, where they are installed, are in
test_frameworks.py.
"""

import array
import gc
import sys

import emulated_cupy
import ml_dtypes
import numpy as np
import pytest
from libraries import dcn, has_nvrtc

import cupy_dcn
from cupy_dcn import Tangents, _foreign

NEW_NUMPY = np.lib.NumpyVersion(np.__version__) >= "2.1.0"  # whose DLPack knows what is read-only
X, WEIGHT, BIAS = (2, 4, 5, 6), (6, 2, 3, 2), (6,)
OUT, OFFSET, MASK = (2, 6, 5, 7), (2, 24, 5, 7), (2, 12, 5, 7)
COLUMNS = (2, 2, 35, 6, 2)
ATTRIBUTES = {"padding": 1, "deformable_groups": 2}
SHAPES = {
    "x": X, "offset": OFFSET, "weight": WEIGHT, "bias": BIAS, "mask": MASK, "grad_output": OUT,
    "grad_columns": COLUMNS,
}  # fmt: skip


class ByDLPack:
    """A tensor that knows DLPack, and what it was asked for."""

    def __init__(self, held, device=None):
        self.held, self.asked = held, []
        self.device = held.__dlpack_device__() if device is None else device

    def __dlpack__(self, **asked):
        capsule = self.held.__dlpack__(**asked)
        self.asked.append(asked)
        return capsule

    def __dlpack_device__(self):
        return self.device


class ByCudaInterface:
    """A GPU array that knows the CUDA array interface: the one of Numba, or an older one."""

    def __init__(self, held, version=3, **changes):
        self.held = held
        self.__cuda_array_interface__ = {**held.__cuda_array_interface__, "version": version}
        if version < 3:
            del self.__cuda_array_interface__["stream"]
        self.__cuda_array_interface__ |= changes


class ByInterface:
    """A CPU array that knows NumPy's array interface."""

    def __init__(self, held):
        self.held, self.__array_interface__ = held, held.__array_interface__


HOST = {"DLPack": ByDLPack, "array interface": ByInterface, "buffer": memoryview}
DEVICE = {
    "DLPack": ByDLPack, "CUDA array interface": ByCudaInterface,
    "an older one": lambda held: ByCudaInterface(held, 2),
}  # fmt: skip
PRODUCERS = [
    *(("numpy", kind) for kind in HOST),
    *(("emulated", kind) for kind in DEVICE if has_nvrtc()),
]


@pytest.fixture
def cupy():
    if not has_nvrtc():
        pytest.skip("no CuPy arrays without NVRTC here")
    with dcn.running_on("emulated"):
        yield dcn.array_module


@pytest.fixture(params=PRODUCERS, ids=", ".join)
def made(request):
    """The arrays of a call by name: the library's own, and another's."""
    name, kind = request.param
    with dcn.running_on(name):
        own = arrays()
        if name == "emulated":
            own = {each: dcn.array_module.asarray(value) for each, value in own.items()}
        producer = (HOST if name == "numpy" else DEVICE)[kind]
        yield own, {each: producer(value) for each, value in own.items()}


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def host(value):
    assert isinstance(value, dcn.array_module.ndarray)
    return value if isinstance(value, np.ndarray) else value.get()


def flat(results):
    """Results as a list of NumPy arrays."""
    if results is None:
        return []
    if isinstance(results, tuple):
        return [each for result in results for each in flat(result)]
    return [host(results)]


def names(*them):
    return lambda call: {name: call[name] for name in them}


def convolution(*others):
    arguments = names("x", "offset", "weight", "bias", "mask", *others)
    return lambda call: {**arguments(call), "groups": 2, **ATTRIBUTES}


def direction(call):
    return Tangents(*(call[name] for name in Tangents._fields))


def sampled(*others):
    arguments = names("offset", "mask", *others)
    return lambda call: {**arguments(call), "kernel_size": (3, 2), **ATTRIBUTES}


def plan_of(call):
    return cupy_dcn.Plan(X, call["weight"], call["bias"], groups=2, backward=True, **ATTRIBUTES)


def planned(call):
    plan, these = plan_of(call), names("x", "offset", "mask")(call)
    plan.set_weight(call["weight"], call["bias"])
    return plan(**these), plan.backward(call["grad_output"], **these)


def layer_of(kind, call):
    return kind(
        4, 6, (3, 2), groups=2, weight_attr=call["weight"], bias_attr=call["bias"],
        device="cuda" if dcn.on_device else "cpu", **ATTRIBUTES,
    )  # fmt: skip


def layers(call):
    layer, these = layer_of(cupy_dcn.DeformConv2D, call), names("x", "offset", "mask")(call)
    layer.weight, layer.bias = call["weight"], call["bias"]
    first = layer(**these), layer.backward(call["grad_output"], **these)
    layer.load_state_dict({"weight": call["weight"], "bias": call["bias"]})
    pack = layer_of(cupy_dcn.DeformConv2DPack, call)
    return first, layer(**these), pack(call["x"]), pack.backward(call["grad_output"], call["x"])


CALLS = {
    "forward": lambda call: cupy_dcn.deform_conv2d(**convolution()(call)),
    "backward": lambda call: cupy_dcn.deform_conv2d_backward(
        **convolution("grad_output")(call), deterministic=True
    ),
    "jvp": lambda call: cupy_dcn.deform_conv2d_jvp(
        **convolution()(call), tangents=direction(call)
    ),
    "double backward": lambda call: cupy_dcn.deform_conv2d_double_backward(
        **convolution("grad_output")(call), cotangents=direction(call), needs=("offset", "weight")
    ),
    "im2col": lambda call: cupy_dcn.deform_im2col(**sampled("x")(call), groups=2),
    "col2im": lambda call: cupy_dcn.deform_col2im(
        **sampled("grad_columns")(call), image_size=(5, 6), deterministic=True
    ),
    "coord_grad": lambda call: cupy_dcn.deform_coord_grad(**sampled("grad_columns", "x")(call)),
    "pack_offset": lambda call: cupy_dcn.pack_offset(call["mask"], call["mask"]),
    "unpack_offset": lambda call: cupy_dcn.unpack_offset(call["offset"]),
    "sampling_grid": lambda call: cupy_dcn.sampling_grid(call["offset"], (3, 2), padding=1),
    "Plan": planned,
    "layers": layers,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_own_arrays(made, name):
    own, foreign = made
    results, expected = flat(CALLS[name](foreign)), flat(CALLS[name](own))
    assert len(results) == len(expected) > 0
    for result, other in zip(results, expected, strict=True):
        if dcn.on_device and name in ("Plan", "layers"):  # which add atomically
            np.testing.assert_allclose(result, other, atol=1e-5)
        else:
            np.testing.assert_array_equal(result, other)


def test_nothing_is_copied(made):
    own, foreign = made
    for part in cupy_dcn.unpack_offset(foreign["offset"]):
        if dcn.on_device:
            assert own["offset"].data.ptr <= part.data.ptr < own["offset"].data.ptr + 2 * 35 * 4
        else:
            assert np.shares_memory(part, own["offset"])


def test_own_and_foreign_arrays_go_together(made):
    own, foreign = made
    expected = CALLS["forward"](own)
    for name in ("x", "weight", "mask"):
        result = CALLS["forward"]({**own, name: foreign[name]})
        np.testing.assert_array_equal(host(result), host(expected))


def test_out_is_written_in_place(made):
    own, foreign = made
    expected = CALLS["forward"](own)
    plan = plan_of(foreign)
    for call in (
        lambda out: cupy_dcn.deform_conv2d(**convolution()(foreign), out=out),
        lambda out: plan(foreign["x"], foreign["offset"], foreign["mask"], out=out),
    ):
        memory = dcn.array_module.zeros(OUT, np.float32)
        out = type(foreign["x"])(memory)
        if isinstance(out, ByDLPack) and not dcn.on_device and not NEW_NUMPY:
            with pytest.raises(ValueError, match="writeable=False"):
                call(out)
            continue
        result = call(out)
        assert host(result) is not out
        np.testing.assert_array_equal(host(memory), host(expected))
        memory[...] = 7
        assert (host(result) == 7).all()
        assert call(memory) is memory


def test_gradients_are_written_in_place(made):
    own, foreign = made
    plan, call = plan_of(own), names("grad_output", "x", "offset", "mask")(foreign)
    if not isinstance(foreign["x"], ByDLPack):  # tried above
        memory = dcn.array_module.zeros(X, np.float32)
        out = type(foreign["x"])(memory)
        plan.backward(**call, needs=("x",), out=(out, None, None, None, None))
        expected = plan.backward(**call, needs=("x",)).x
        np.testing.assert_allclose(host(memory), host(expected), atol=1e-5)


def test_out_that_must_not_be_written_to(cupy):
    call = {name: cupy.asarray(value) for name, value in arrays().items()}
    memory = cupy.zeros(OUT, np.float32)
    out = ByCudaInterface(memory, data=(memory.data.ptr, True))
    with pytest.raises(ValueError, match=r"out must be C-contiguous, .*writeable=False"):
        cupy_dcn.deform_conv2d(**convolution()(call), out=out)
    assert (memory.get() == 0).all()


def test_out_in_memory_that_is_read():
    square = {"x": np.zeros((1, 1, 4, 4)), "offset": np.zeros((1, 2, 4, 4))}
    with pytest.raises(ValueError, match="out shares memory with x"):
        cupy_dcn.deform_conv2d(**square, weight=np.ones((1, 1, 1, 1)), out=memoryview(square["x"]))
    with pytest.raises(ValueError, match=r"out must be .*writeable=False"):
        cupy_dcn.deform_conv2d(
            **convolution()(arrays()), out=memoryview(np.broadcast_to(np.float32(0), OUT))
        )


def test_the_producer_is_told_the_current_stream(cupy):
    call = {name: ByDLPack(cupy.asarray(value)) for name, value in arrays().items()}
    CALLS["forward"](call)
    assert [asked["stream"] for asked in call["x"].asked] == [1]  # the default one's name
    stream = cupy.cuda.Stream()
    with stream:
        CALLS["forward"](call)
    assert [asked["stream"] for asked in call["mask"].asked] == [1, stream.ptr]


def test_of_the_device_that_the_array_is_on(cupy):
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream()
        own = {name: cupy.asarray(value) for name, value in arrays().items()}
        stream.use()
    try:
        for kind in (ByDLPack, ByCudaInterface):
            call = {name: kind(value) for name, value in own.items()}
            result = CALLS["forward"](call)
            assert result.device.id == 1
            np.testing.assert_array_equal(result.get(), CALLS["forward"](own).get())
            part = cupy_dcn.unpack_offset(call["offset"])[0]
            assert part.data.ptr == own["offset"].data.ptr
            if kind is ByDLPack:
                assert {asked["stream"] for asked in call["x"].asked} == {stream.ptr}
    finally:
        with cupy.cuda.Device(1):
            cupy.cuda.Stream.null.use()


def test_the_stream_of_an_interface_is_waited_for(cupy, monkeypatch):
    waited = []
    monkeypatch.setattr("emulated_cupy._array.synchronize_stream", waited.append)
    held = cupy.asarray(arrays()["offset"])
    cupy_dcn.unpack_offset(ByCudaInterface(held, stream=77))
    assert waited == [77]
    cupy_dcn.unpack_offset(ByCudaInterface(held, 2))
    cupy_dcn.unpack_offset(ByCudaInterface(held, stream=None))
    assert waited == [77]
    with emulated_cupy.recorded() as log:
        cupy_dcn.unpack_offset(ByDLPack(held))
    assert log.synchronisations == []


def test_memory_lives_as_long_as_a_view_of_it(made):
    own, foreign = made
    expected = [each.copy() for each in flat(CALLS["unpack_offset"](own))]
    parts = CALLS["unpack_offset"](foreign)
    own.clear()
    foreign.clear()
    gc.collect()
    for _ in range(3):
        dcn.array_module.zeros(OFFSET, np.float32)
    for part, other in zip(flat(parts), expected, strict=True):
        np.testing.assert_array_equal(part, other)


def test_pinned_and_managed_memory(cupy):
    call = arrays()
    expected = CALLS["forward"](call)
    pinned = {name: Pinned(value, (_foreign.CUDA_HOST, 0)) for name, value in call.items()}
    assert isinstance(CALLS["forward"](pinned), np.ndarray)
    on_device = {name: cupy.asarray(value) for name, value in call.items()}
    managed = {
        name: ByDLPack(value, (_foreign.CUDA_MANAGED, 0)) for name, value in on_device.items()
    }
    np.testing.assert_allclose(CALLS["forward"](managed).get(), expected, atol=1e-5)


class Pinned(ByDLPack):
    """Memory of the CPU that a GPU can read: NumPy asks it for no other device."""

    def __dlpack__(self, **asked):
        asked.pop("dl_device", None)
        return super().__dlpack__(**asked)


def test_empty_arrays_have_no_address(cupy):
    offset = ByCudaInterface(cupy.zeros((0, 18, 4, 4), np.float32))
    assert offset.__cuda_array_interface__["data"][0] == 0
    assert cupy_dcn.unpack_offset(offset)[0].shape == (0, 9, 4, 4)


class BFloat16(ByDLPack):
    """A tensor of the dtype that NumPy's DLPack does not know; JAX makes a NumPy array of it."""

    dtype = "library.bfloat16"

    def __array__(self, dtype=None, copy=None):
        return self.held


@pytest.mark.parametrize("error", [RuntimeError, BufferError])  # of old NumPys and new ones
def test_bfloat16_by_way_of_an_array(monkeypatch, error):
    def unknown(value):
        raise error("Unsupported dtype in DLTensor.")

    monkeypatch.setattr(np, "from_dlpack", unknown)
    offset = arrays(ml_dtypes.bfloat16)["offset"]
    dy, _ = cupy_dcn.unpack_offset(BFloat16(offset, (1, 0)))
    assert dy.dtype == ml_dtypes.bfloat16
    assert np.shares_memory(dy, offset)
    as_integers = BFloat16(offset.view(np.uint16), (1, 0))  # Paddle
    with pytest.raises(TypeError, match=r"offset is a .*BFloat16 of bfloat16, expected ml_dtypes'"):
        cupy_dcn.unpack_offset(as_integers)


class Tensor:
    """A tensor that is refused."""

    device = (1, 0)

    def __dlpack__(self, **asked):
        raise BufferError("no\nway")

    def __dlpack_device__(self):
        return self.device


def refused(**attributes):
    return type("Tensor", (Tensor,), {"__module__": "library", **attributes})()


REFUSED = {
    "gradients by one name": (refused(requires_grad=True), "that requires gradients, .*x.detach()"),
    "by another": (refused(stop_gradient=False), "that requires gradients, "),
    "no memory": (refused(requires_grad=False), r"whose memory cannot be read \(.*Error: no way\)"),
    "the imaginary part of a conjugate": (refused(is_neg=lambda self: True),
                                          r"whose memory has the opposite sign, .*resolve_neg"),
    "a TPU": (refused(device=(99, 0)), "on a device of DLPack's type 99, expected the CPU or a "),
    "no device": (refused(__dlpack_device__=None), r"whose memory cannot be read \(TypeError: "),
}  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(value, message):
    with pytest.raises(TypeError, match=f"^x is a library.Tensor {message}"):
        cupy_dcn.deform_conv2d(**convolution()(arrays() | {"x": value}))


@pytest.mark.parametrize(
    "value",
    [ByDLPack, np.float32(1), b"1234", bytearray(4), memoryview(b"1234"), np.ndarray, [1.0], "x"],
    ids=lambda value: type(value).__name__,
)
def test_these_are_no_arrays(value):
    with pytest.raises(TypeError, match="x must be a NumPy or CuPy array"):
        cupy_dcn.deform_conv2d(**convolution()(arrays() | {"x": value}))


def test_a_buffer_of_floats_is_one():
    call = arrays()
    expected = CALLS["forward"](call)
    call["bias"] = array.array("f", call["bias"].tolist())
    np.testing.assert_array_equal(CALLS["forward"](call), expected)


def test_shape_and_dtype_are_checked_as_ever():
    call = {name: ByDLPack(value) for name, value in arrays().items()}
    with pytest.raises(TypeError, match="x has dtype int64, expected float64"):
        CALLS["forward"](call | {"x": ByDLPack(np.zeros(X, np.int64))})
    with pytest.raises(ValueError, match="x has 1 dimensions"):
        CALLS["forward"](call | {"x": ByDLPack(np.zeros(3))})


def test_cpu_beside_gpu_names_library_and_place(cupy):
    own = arrays()
    call = own | {"x": ByDLPack(own["x"]), "weight": cupy.asarray(own["weight"])}
    with pytest.raises(TypeError) as caught:
        CALLS["forward"](call)
    assert (
        "x is a test_foreign.ByDLPack on the CPU, offset is a NumPy array, weight is a CuPy array,"
        in str(caught.value)
    )
    with pytest.raises(
        TypeError, match=r"x is a NumPy array, .*, mask is a .*ByCud.* on device 0;"
    ):
        CALLS["forward"](own | {"mask": ByCudaInterface(cupy.asarray(own["mask"]))})
    with cupy.cuda.Device(1):
        abroad = ByCudaInterface(cupy.asarray(own["mask"]))
    near = {name: cupy.asarray(value) for name, value in own.items()}
    with pytest.raises(ValueError, match=r"x is on device 0, .*mask is on device 1"):
        CALLS["forward"](near | {"mask": abroad})


def test_a_gpu_array_takes_cupy(cupy, monkeypatch):
    value = ByCudaInterface(cupy.asarray(arrays()["offset"]))
    with dcn.running_on("numpy"):
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(ImportError, match="CuPy could not be imported"):
            cupy_dcn.unpack_offset(value)


def test_pictures_of_foreign_offsets():
    plot = pytest.importorskip("cupy_dcn.plot")
    pytest.importorskip("matplotlib").use("agg")
    offset = np.zeros((1, 18, 8, 8))
    axes = plot.draw_sampling(ByDLPack(np.eye(8)), ByDLPack(offset), at=(2, 2), padding=1)
    assert len(axes.images) == 1
