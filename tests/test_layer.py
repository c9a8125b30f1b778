"""Layers: their arithmetic by every library; states, files and errors."""

import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from cases import Case, assert_close, plain_convolution
from libraries import dcn

import cupy_dcn
from cupy_dcn import DeformConv2D, DeformConv2DPack, _files, _oracle

pytestmark = pytest.mark.usefixtures("library")

LAYER = Case(2, 4, (5, 6), 6, (3, 2), (1, 2), (1, 0, 1, 1), deformable_groups=2, groups=2)
PACK = Case(1, 4, (5, 5), 2, (3, 3), (2, 1), (1, 1, 1, 0), (1, 2), deformable_groups=2, groups=2)
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
ROUNDING = dict(zip(DTYPES, (1e-13, 1e-6, 2e-3, 1e-2), strict=True))


def device():
    return "cuda" if dcn.on_device else "cpu"


def to_library(array):
    return array if array is None or not dcn.on_device else dcn.to_device(array)


def on_host(array):
    return array if array is None or not dcn.on_device else dcn.array_module.asnumpy(array)


def make(kind, case, **more):
    settings = {"dtype": "float64", "device": device(), "rng": 3, **case.attributes, **more}
    return kind(case.channels, case.out_channels, case.kernel, **settings)


def with_random_parameters(layer, scale=0.3):
    rng = np.random.default_rng(5)
    state = layer.state_dict()
    layer.load_state_dict(
        {
            name: (scale * rng.standard_normal(array.shape)).astype(array.dtype)
            for name, array in state.items()
        }
    )
    return layer


def host_state(layer):
    return {name: on_host(array) for name, array in layer.state_dict().items()}


@pytest.mark.parametrize("masked", [True, False])
def test_layer_agrees_with_loops(masked):
    x, offset, weight, bias, mask, grad_output = LAYER.arrays()
    mask = mask if masked else None
    layer = make(DeformConv2D, LAYER, weight_attr=weight, bias_attr=lambda shape: bias)
    inputs = [to_library(array) for array in (x, offset, mask)]
    attributes = (*LAYER.sampling[1:], LAYER.groups, mask)
    assert_close(
        on_host(layer(*inputs)), _oracle.forward(x, offset, weight, bias, *attributes), 1e-12
    )
    grads = layer.backward(to_library(grad_output), *inputs)
    *expected, grad_mask = _oracle.backward(grad_output, x, offset, weight, *attributes)
    for ours, reference in zip(grads, (*expected, grad_mask if masked else None), strict=True):
        assert (ours is None) == (reference is None)
        if reference is not None:
            assert_close(on_host(ours), reference, 1e-12)
    some = layer.backward(to_library(grad_output), *inputs, needs=("bias",))
    assert [each is None for each in some] == [True, True, True, False, True]


def test_layer_descends_by_its_own_gradients():
    x, offset, _, bias, mask, _ = LAYER.arrays()
    layer = make(DeformConv2D, LAYER)
    x, offset, mask = (to_library(array) for array in (x, offset, mask))
    held, before = layer.weight, on_host(layer(x, offset, mask))
    grads = layer.backward(layer(x, offset, mask), x, offset, mask)  # of |y|^2 / 2
    layer.weight -= 1e-4 * grads.weight
    layer.bias -= 1e-4 * grads.bias
    assert layer.weight is held
    after = on_host(layer(x, offset, mask))
    fall = (before**2).sum() / 2 - (after**2).sum() / 2
    slope = (on_host(grads.weight) ** 2).sum() + (on_host(grads.bias) ** 2).sum()
    assert fall == pytest.approx(1e-4 * slope, rel=0.1)
    layer.bias = to_library(bias)
    assert (on_host(layer.bias) == bias).all()


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_starts_as_plain_convolution(dtype, modulated):
    pack = make(DeformConv2DPack, PACK, dtype=dtype, modulated=modulated, bias_attr=np.ones)
    x = PACK.arrays(dtype)[0]
    weight = on_host(pack.weight).astype(np.float64)
    expected = plain_convolution(
        x.astype(np.float64), weight, np.zeros(2), PACK.stride, PACK.padding, PACK.dilation, 2
    )
    y = on_host(pack(to_library(x)))
    assert y.dtype == dtype
    expected = expected * (0.5 if modulated else 1) + 1
    assert_close(y.astype(np.float64), expected, ROUNDING[dtype])


@pytest.mark.parametrize("modulated", [True, False])
def test_pack_is_mmcvs_composition(modulated):
    pack = with_random_parameters(make(DeformConv2DPack, PACK, modulated=modulated))
    x, state = PACK.arrays()[0], host_state(pack)
    raw = plain_convolution(
        x, state["conv_offset.weight"], state["conv_offset.bias"], PACK.stride, PACK.padding,
        PACK.dilation, 1,
    )  # fmt: skip
    offset, mask = raw, None
    if modulated:
        first, second, third = np.split(raw, 3, axis=1)  # torch.chunk
        offset, mask = np.concatenate([first, second], axis=1), 1 / (1 + np.exp(-third))
    expected = _oracle.forward(
        x, offset, state["weight"], state["bias"], *PACK.sampling[1:], PACK.groups, mask
    )
    assert_close(on_host(pack(to_library(x))), expected, 1e-12)
    ours, our_mask = pack.offset_and_mask(to_library(x))
    assert_close(on_host(ours), offset, 1e-12)
    assert (our_mask is None) == (not modulated)


@pytest.mark.parametrize("modulated", [True, False])
def test_packs_gradients_are_finite_differences(modulated):
    pack = with_random_parameters(make(DeformConv2DPack, PACK, modulated=modulated))
    x, *_, grad_output = PACK.arrays()
    grads = pack.backward(to_library(grad_output), to_library(x))
    rng, state = np.random.default_rng(7), host_state(pack)
    values = {"x": x} | {name.replace(".", "_"): array for name, array in state.items()}
    assert grads._fields == tuple(values)
    for name, value in values.items():
        direction, step = rng.standard_normal(value.shape), 1e-6
        sides = []
        for sign in (1, -1):
            moved = to_library(value + sign * step * direction)
            if name != "x":
                setattr(pack, name, moved)
            y = on_host(pack(moved if name == "x" else to_library(x)))
            sides.append((y * grad_output).sum())
        pack.load_state_dict(state)
        difference = (sides[0] - sides[1]) / (2 * step)
        slope = (on_host(getattr(grads, name)) * direction).sum()
        assert abs(slope) > 1e-2
        assert slope == pytest.approx(difference, rel=1e-5), name


def test_sigmoid_of_far_values_is_0_or_1_without_a_warning():
    pack = DeformConv2DPack(1, 1, 1, weight_attr=np.ones, device=device())
    x, one = np.ones((1, 1, 1, 1), np.float32), to_library(np.ones((1, 1, 1, 1), np.float32))
    for value, expected in ((-1000, 0), (-50, np.exp(-50.0)), (0, 0.5), (50, 1), (1000, 1)):
        pack.conv_offset_bias = to_library(np.array([0, 0, value], np.float32))
        assert on_host(pack(to_library(x))).item() == pytest.approx(expected, rel=1e-6, abs=0)
        slope = on_host(pack.backward(one, to_library(x)).conv_offset_bias)[2]
        assert slope == pytest.approx(np.exp(-abs(value)) / (1 + np.exp(-abs(value))) ** 2)


def test_empty_batch():
    pack = make(DeformConv2DPack, PACK)
    x = np.zeros((0, 4, 5, 5))
    y = pack(to_library(x))
    assert y.shape == (0, 2, 3, 2)
    grads = pack.backward(y, to_library(x))
    assert grads.x.shape == x.shape
    assert (on_host(grads.conv_offset_weight) == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weight_is_drawn_as_paddle_draws_it(dtype):
    layer = DeformConv2D(32, 64, (3, 5), groups=2, dtype=dtype, device=device(), rng=0)
    weight = on_host(layer.weight).astype(np.float64)
    assert layer.dtype.name == dtype
    assert weight.shape == (64, 16, 3, 5)
    deviation = np.sqrt(2 / (3 * 5 * 32))  # in_channels, not divided by groups
    # Four standard errors, and the shape of the distribution by its fourth moment.
    assert abs(weight.mean()) < 4 * deviation / np.sqrt(weight.size)
    assert abs(weight.std() / deviation - 1) < 4 / np.sqrt(2 * weight.size)
    assert abs((weight**4).mean() / deviation**4 - 3) < 4 * np.sqrt(96 / weight.size)
    assert (on_host(layer.bias) == 0).all()
    again = DeformConv2D(32, 64, (3, 5), groups=2, dtype=dtype, rng=0)
    assert (again.weight == on_host(layer.weight)).all()
    other = DeformConv2D(32, 64, (3, 5), groups=2, dtype=dtype)
    assert (other.weight != again.weight).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_hold_the_parameters(tmp_path, suffix, dtype):
    path = tmp_path / f"layer{suffix}"
    pack = with_random_parameters(make(DeformConv2DPack, PACK, dtype=dtype))
    path.write_text("an older file")
    pack.save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    expected = host_state(pack)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            found = {name: found[name].view(dtype) for name in found.files}
    else:
        found = safetensors.numpy.load_file(path)
    other = make(DeformConv2DPack, PACK, dtype=dtype)
    other.load(path)
    for state in (found, host_state(other)):
        assert sorted(state) == sorted(expected)
        for name, array in state.items():
            assert array.dtype == dtype
            assert (array == expected[name]).all()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_layer_is_found_in_the_file_of_a_network(tmp_path, suffix):
    rng = np.random.default_rng(0)
    shapes = {
        "backbone.dcn.weight": (6, 2, 3, 2), "backbone.dcn.bias": (6,), "head.weight": (5, 6),
        "backbone.dcn2.weight": (1,), "steps": (),
    }  # fmt: skip
    network = {
        name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()
    }
    path = tmp_path / f"network{suffix}"
    write = np.savez if suffix == ".npz" else lambda p, **a: safetensors.numpy.save_file(a, p)
    write(path, **network)
    layer = make(DeformConv2D, LAYER, dtype="float32")
    layer.load(path, prefix="backbone.dcn.")
    for name, array in host_state(layer).items():
        assert (array == network[f"backbone.dcn.{name}"]).all()
    starts = "prefix='backbone.dcn.', prefix='backbone.dcn2.', prefix='head.'"
    with pytest.raises(ValueError, match=f"has weights for {starts}$"):
        layer.load(path)
    with pytest.raises(ValueError, match=r"under prefix='head\.' has no 'bias', expected exactly"):
        layer.load(path, prefix="head.")
    with pytest.raises(ValueError, match="under prefix='neck' has no 'weight', 'bias'"):
        layer.load(path, prefix="neck")


def test_nothing_is_half_loaded_or_half_written(tmp_path, monkeypatch):
    layer = make(DeformConv2D, LAYER)
    before = {name: array.copy() for name, array in host_state(layer).items()}
    wrong = {"weight": np.zeros((6, 2, 3, 2)), "bias": np.zeros(5)}
    np.savez(tmp_path / "wrong.npz", **wrong)
    for load in (
        lambda: layer.load_state_dict(wrong), lambda: layer.load(tmp_path / "wrong.npz")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"bias has shape \(5,\), expected the layer's"):
            load()
        assert all((array == before[name]).all() for name, array in host_state(layer).items())
    path = tmp_path / "layer.npz"
    layer.save(path)
    whole = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        layer.save(path)
    assert path.read_bytes() == whole
    assert {each.name for each in tmp_path.iterdir()} == {"layer.npz", "wrong.npz"}


def test_states_are_the_layers_and_loaded_by_copy():
    layer, other = make(DeformConv2D, LAYER), make(DeformConv2D, LAYER, rng=9)
    state = layer.state_dict()
    assert state["weight"] is layer.weight
    other.load_state_dict(state)
    assert other.device == layer.device
    state["weight"] -= state["weight"]
    assert (on_host(layer.weight) == 0).all()
    assert (on_host(other.weight) != 0).all()


def test_calls_leave_nothing_behind():
    pack = with_random_parameters(make(DeformConv2DPack, PACK))
    x, *_, grad_output = (to_library(array) for array in PACK.arrays())
    first = pack.backward(grad_output, x)
    pack(pack_input := x + x)
    pack.backward(grad_output, pack_input)
    for array, again in zip(first, pack.backward(grad_output, x), strict=True):
        assert_close(on_host(again), on_host(array), 1e-12)


def test_pack_computes_where_it_is():
    if not dcn.on_device:
        pytest.skip("about devices")
    pack, x = make(DeformConv2DPack, PACK, device="cpu"), PACK.arrays()[0]
    with_random_parameters(pack)
    y = pack(x)
    grads = pack.backward(y, x)
    cupy = dcn.array_module
    last = cupy.cuda.runtime.getDeviceCount() - 1
    pack.to(f"cuda:{last}")
    with cupy.cuda.Device(last):
        x_there, y_there = cupy.asarray(x), cupy.asarray(y)
    ours = (pack(x_there), *pack.backward(y_there, x_there))  # while the first device is current
    for array, expected in zip(ours, (y, *grads), strict=True):
        assert array.device.id == last
        with array.device:
            assert_close(cupy.asnumpy(array), expected, 1e-12)


def test_layers_move_between_devices():
    layer = make(DeformConv2D, LAYER, device="cpu")
    expected = host_state(layer) if not dcn.on_device else layer.state_dict()
    assert layer.to("cpu") is layer
    assert layer.weight is expected["weight"]
    if not dcn.on_device:
        return
    cupy = dcn.array_module
    places = [("cuda", "cuda:0"), ("cpu", "cpu"), (cupy.cuda.Device(0), "cuda:0")]
    if cupy.cuda.runtime.getDeviceCount() > 1:
        places += [("cuda:1", "cuda:1"), ("cuda:0", "cuda:0")]
    for place, name in places:
        layer.to(place)
        assert layer.device == name
        for key, array in layer.state_dict().items():
            with array.device if name != "cpu" else cupy.cuda.Device(0):
                found = array if name == "cpu" else cupy.asnumpy(array)
            assert (found == expected[key]).all()
    elsewhere = make(DeformConv2D, LAYER, device="cpu", rng=9)
    elsewhere.load_state_dict(layer.state_dict())
    assert elsewhere.device == "cpu"
    assert (elsewhere.weight == expected["weight"]).all()
    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(ValueError, match=f"'cuda:{count}', expected 'cuda:0' to"):
        layer.to(f"cuda:{count}")
    with pytest.raises(TypeError, match="x is a NumPy array, the layer is a CuPy array"):
        layer(*LAYER.arrays()[:2])


WRONG = [
    ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
    ({"out_channels": 2.0}, TypeError, "out_channels must be an int, got 2.0"),
    ({"kernel_size": (3, 0)}, ValueError, "kernel_size must be at least 1, got 0"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"padding": "FULL"}, TypeError, "padding must be an int,"),
    ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ({"dilation": (1, 2, 3)}, ValueError, "dilation has 3 values"),
    ({"groups": 3}, ValueError, "in_channels is 4, expected a multiple of groups = 3"),
    ({"groups": 4}, ValueError, "out_channels is 6, expected a multiple of groups = 4"),
    ({"deformable_groups": 3}, ValueError, "a multiple of deformable_groups = 3"),
    ({"weight_attr": False}, ValueError, "weight_attr is False, expected None, an array or"),
    ({"weight_attr": "normal"}, TypeError, "weight_attr must be None, an array or a function"),
    ({"weight_attr": lambda shape: 0.0}, TypeError, "got <function .*, which returns 0.0"),
    ({"weight_attr": np.ones((6, 4, 3))}, ValueError, r"gives shape \(6, 4, 3\), expected the"),
    ({"bias_attr": np.ones(6, complex)}, TypeError, "bias_attr gives an array of dtype complex"),
    ({"dtype": "int32"}, TypeError, "dtype must be float64, float32, float16 or bfloat16"),
    ({"device": "gpu"}, ValueError, "device is 'gpu', expected 'cpu', 'cuda', 'cuda:N' or"),
    ({"device": 0}, TypeError, "device must be 'cpu', 'cuda', 'cuda:N' or a cupy.cuda.Device"),
]


@pytest.mark.parametrize(("arguments", "kind", "text"), WRONG)
@pytest.mark.parametrize("layer", [DeformConv2D, DeformConv2DPack])
def test_wrong_arguments(layer, arguments, kind, text):
    with pytest.raises(kind, match=text):
        layer(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})


def test_wrong_arrays():
    layer = DeformConv2D(4, 6, 3, bias_attr=False)
    x, offset = np.zeros((1, 4, 5, 5), np.float32), np.zeros((1, 18, 3, 3), np.float32)
    assert layer(x, offset).shape == (1, 6, 3, 3)
    for call in (layer, lambda x, _: DeformConv2DPack(4, 6, 3)(x)):
        with pytest.raises(ValueError, match=r"x has 3 channels .* expected in_channels = 4"):
            call(x[:, :3], offset)
        with pytest.raises(TypeError, match="x has dtype float64, expected layer's dtype float32"):
            call(x.astype(float), offset)
        with pytest.raises(TypeError, match="x must be a NumPy or CuPy array"):
            call(None, offset)
    with pytest.raises(ValueError, match="offset has a size of 5x5"):
        layer(x, np.zeros((1, 18, 5, 5), np.float32))
    with pytest.raises(ValueError, match="this layer has no bias, expected one that was made"):
        layer.bias = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match=r"weight has shape \(6, 4, 2, 2\), expected the layer's"):
        layer.weight = np.zeros((6, 4, 2, 2), np.float32)
    with pytest.raises(TypeError, match="weight has dtype float64, expected layer's dtype float32"):
        layer.weight = np.zeros((6, 4, 3, 3))
    with pytest.raises(ValueError, match="state has 'bias', expected exactly 'weight'"):
        layer.load_state_dict({"weight": layer.weight, "bias": np.zeros(6, np.float32)})
    with pytest.raises(TypeError, match="state must be a mapping from names to arrays, got list"):
        layer.load_state_dict([layer.weight])
    with pytest.raises(TypeError, match="modulated must be True or False, got 1"):
        DeformConv2DPack(4, 6, 3, modulated=1)


def test_wrong_files(tmp_path, monkeypatch):
    layer = DeformConv2D(4, 6, 3)
    for act in (layer.save, layer.load):
        with pytest.raises(ValueError, match=r"'layer\.pt', expected a name that ends in \.npz or"):
            act(tmp_path / "layer.pt")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"is no \.npz file, expected what numpy.savez writes"):
        layer.load(tmp_path / "text.npz")
    (tmp_path / "text.safetensors").write_text("no tensors, either")
    with pytest.raises(ValueError, match=r"text\.safetensors is no \.safetensors file \("):
        layer.load(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError):
        layer.load(tmp_path / "none.npz")
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], object), bias=np.zeros(6))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        layer.load(tmp_path / "objects.npz")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'cupy_dcn\[safetensors\]' brings it"):
        layer.load(tmp_path / "layer.safetensors")


def test_representation_names_what_differs():
    layer = DeformConv2D(4, 6, (3, 2), 2, "same", groups=2, bias_attr=False)
    assert repr(layer) == (
        "DeformConv2D(4, 6, kernel_size=(3, 2), stride=(2, 2), padding='SAME', groups=2,"
        " bias_attr=False, dtype='float32', device='cpu')"
    )
    pack = DeformConv2DPack(4, 2, 3, padding=(1, 2), deformable_groups=2, modulated=False)
    for each in (layer, pack):
        assert repr(eval(repr(each), dict(vars(cupy_dcn)))) == repr(each)
    assert repr(pack).endswith(
        "deformable_groups=2, dtype='float32', device='cpu', modulated=False)"
    )


@pytest.mark.parametrize("layer", [cupy_dcn.DeformConv2D, cupy_dcn.DeformConv2DPack])
@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_passes_deterministic_on(layer, deterministic, monkeypatch):
    module, seen = sys.modules[layer.__module__], []
    inner = module.deform_conv2d_backward

    def noting(*arrays, **options):
        seen.append(options["deterministic"])
        return inner(*arrays, **options)

    monkeypatch.setattr(module, "deform_conv2d_backward", noting)
    x, grad = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 2, 2, 2), np.float32)
    given = [np.zeros((1, 18, 2, 2), x.dtype)] if layer is cupy_dcn.DeformConv2D else []
    layer(1, 2, 3).backward(grad, x, *given, deterministic=deterministic)
    assert seen
    assert set(seen) == {deterministic}


def test_two_threads_may_save_to_one_path(monkeypatch, tmp_path):
    path, written = tmp_path / "layer.npz", []
    one, other = (cupy_dcn.DeformConv2D(2, 3, 1, rng=seed) for seed in (0, 1))
    write = _files._write_npz

    def write_and_be_overtaken(part, arrays):
        write(part, arrays)
        written.append(part)
        if len(written) == 1:
            thread = threading.Thread(target=other.save, args=(path,))
            thread.start()
            thread.join()

    monkeypatch.setattr(_files, "_write_npz", write_and_be_overtaken)
    one.save(path)
    assert len(set(written)) == 2
    assert list(tmp_path.iterdir()) == [path]
    other.load(path)
    np.testing.assert_array_equal(other.weight, one.weight)
