"""Dask arrays: every chunking gives what the undivided call gives, errors come with the graph."""

import itertools

import numpy as np
import pytest
from cases import CASES, Case, assert_close
from libraries import dcn

import cupy_dcn
from cupy_dcn import _oracle

dask = pytest.importorskip("dask", reason="no Dask here")
da = pytest.importorskip("dask.array", reason="no Dask arrays here")
import cupy_dcn.dask  # noqa: E402

LAYER = Case(3, 4, (9, 8), 4, (3, 2), stride=(2, 1), padding=(2, 0, 1, 1), deformable_groups=2)
NAMES = "x", "offset", "weight", "bias", "mask", "grad_output"


@pytest.fixture(autouse=True)
def one_thread():
    """Run the tasks here: other threads would see another twin."""
    with dask.config.set(scheduler="synchronous"):
        yield


def in_dask(arrays, batch, rows):
    """Return Dask arrays, moved to the library whose turn it is, offset in these chunks."""
    chunks = {"offset": (batch, -1, rows, -1), "mask": (-1, 1, -1, 3), "grad_output": (1, 2, 3, 4)}
    return {
        name: array if array is None else da.from_array(
            dcn.to_device(array) if dcn.on_device else array, chunks.get(name, -1), asarray=False
        )
        for name, array in zip(NAMES, arrays, strict=True)
    }  # fmt: skip


def computed(*arrays):
    """Return Dask arrays' values in NumPy, after seeing that they are what they were said to be."""
    found = []
    for lazy, array in zip(arrays, dask.compute(*arrays), strict=True):
        assert isinstance(array, type(lazy._meta))
        assert isinstance(array, dcn.array_module.ndarray)
        assert (array.shape, array.dtype) == (lazy.shape, lazy.dtype)
        found.append(dcn.array_module.asnumpy(array) if dcn.on_device else array)
    return found


def both(given, case, **more):
    """Return the output and the gradients of a layer's Dask arrays."""
    given = dict(given)
    grad_output = given.pop("grad_output")
    y = cupy_dcn.dask.deform_conv2d(**given, **case.attributes)
    return y, cupy_dcn.dask.deform_conv2d_backward(grad_output, **given, **case.attributes, **more)


def expected(arrays, case):
    """Return what plain loops make of the undivided arrays."""
    x, offset, weight, bias, mask, grad_output = arrays
    attributes = (*case.sampling[1:], case.groups, mask)
    return (
        _oracle.forward(x, offset, weight, bias, *attributes),
        _oracle.backward(grad_output, x, offset, weight, *attributes),
    )


@pytest.fixture(scope="module")
def chunked(library):
    """Let Dask concatenate the stand-in's arrays, which lacks more that it would register."""
    if library.name == "emulated":
        cupy = library.array_module
        # Older releases of Dask run their own registration first, even where there is another.
        da.core.concatenate_lookup.register_lazy("cupy", lambda: None)
        da.core.concatenate_lookup.register(cupy.ndarray, cupy.concatenate)
    return library


@pytest.mark.parametrize("rows", [1, (3, 2), -1])
@pytest.mark.parametrize("batch", [(1, 2), -1])
def test_any_chunks(chunked, batch, rows):
    arrays = LAYER.arrays()
    y, grads = both(in_dask(arrays, batch, rows), LAYER)
    by_oracle, gradients = expected(arrays, LAYER)
    blocks, heights = da.core.normalize_chunks((batch, rows), (3, by_oracle.shape[2]))
    assert y.chunks == (blocks, (4,), heights, by_oracle.shape[3:])
    assert [grad.chunks[0] for grad in (grads.x, grads.offset, grads.mask)] == [blocks] * 3
    for ours, theirs in zip(computed(y, *grads), (by_oracle, *gradients), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_layer(host, case):
    arrays = case.arrays()
    y, grads = both(in_dask(arrays, 1, 2), case)
    assert (grads.mask is None) == (not case.masked)
    found = computed(y, *(grad for grad in grads if grad is not None))
    by_oracle, gradients = expected(arrays, case)
    wanted = [by_oracle, *gradients]
    for ours, theirs in zip(found, wanted if case.masked else wanted[:-1], strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_dtypes(host, dtype):
    arrays = LAYER.arrays(dtype)
    y, grads = both(in_dask(arrays, 1, 1), LAYER)
    wide = [array.astype(np.float64) for array in arrays]
    by_oracle, gradients = expected(wide, LAYER)
    for ours, theirs in zip(computed(y, *grads), (by_oracle, *gradients), strict=True):
        assert ours.dtype == dtype
        assert_close(ours.astype(np.float64), theirs, 4 * np.finfo(dtype).eps)


def test_sums_are_rounded_once():
    # 33 row chunks add 1 to a sum of 1024, which float16 can only take up whole.
    case = Case(1, 1, (33, 1), 1, (1, 1), masked=False)
    x, offset, weight, bias, _, grad_output = case.arrays(np.float16)
    grad_output[...] = 1 / 32
    grad_output[0, 0, 0] = 1024
    given = in_dask((x, 0 * offset, weight, bias, None, grad_output), -1, 1)
    (grad_bias,) = computed(both(given, case, needs=("bias",))[1].bias)
    assert grad_bias.tolist() == [1025]


def test_locations_far_down_are_exact(host):
    """Rows of x beyond 2^24, that float32 can't count, by a chunk of the last row alone."""
    height, stride = 2**24 + 9, 2**20
    x = (np.arange(height) % 7).astype(np.float32).reshape(1, 1, height, 1)
    offset = np.zeros((1, 4, 17, 1), np.float32)
    weight = np.array([1, 10], np.float32).reshape(1, 1, 2, 1)
    y = cupy_dcn.dask.deform_conv2d(
        da.from_array(x, -1, name=False),
        da.from_array(offset, (1, -1, 1, 1)),
        weight,
        stride=(stride, 1),
    )
    rows = stride * np.arange(17)
    assert_close(computed(y)[0][0, 0, :, 0], (rows % 7 + 10 * ((rows + 1) % 7)).astype("f4"), 0)


def test_needs_and_nothing_given():
    arrays = LAYER.arrays()
    given = in_dask(arrays, 1, 2)
    for wanted in ((), ("x",), ("mask", "bias")):
        grads = both(given, LAYER, needs=wanted)[1]
        assert {name for name, grad in grads._asdict().items() if grad is not None} == set(wanted)
        for name in wanted:
            theirs = getattr(_gradients(arrays), name)
            assert_close(computed(getattr(grads, name))[0], theirs, 1e-12)
    bare = both({**given, "bias": None, "mask": None}, LAYER)[1]
    assert bare.bias is None
    assert bare.mask is None
    assert bare.weight is not None


def _gradients(arrays):
    return cupy_dcn.Gradients(*expected(arrays, LAYER)[1])


def test_no_image(host):
    arrays = [None if a is None else a[:0] if a.ndim == 4 else a for a in LAYER.arrays()]
    arrays[2] = LAYER.arrays()[2]
    y, grads = both(in_dask(arrays, -1, 2), LAYER)
    y, *grads = computed(y, *grads)
    assert y.shape == (0, 4, 5, 9)
    assert not grads[2].any()
    assert not grads[3].any()


def test_names_are_of_the_call_and_its_arrays():
    def names(given, **more):
        y, grads = both(given, LAYER, **more)
        return [y.name, *(grad.name for grad in grads if grad is not None)]

    first, again = (names(in_dask(LAYER.arrays(), 1, 2)) for _ in range(2))
    assert first == again
    others = [
        names(in_dask(LAYER.arrays(), 2, 2)),
        names({**in_dask(LAYER.arrays(), 1, 2), "mask": None}),
    ]
    assert len({*first, *itertools.chain.from_iterable(others)}) == 6 + 6 + 5


def test_each_image_is_made_once_and_the_parts_shared():
    made = []

    def make(block):
        made.append(len(block))
        return block

    given = in_dask(LAYER.arrays(), 1, 1)
    given["x"] = given["x"].rechunk({0: 1}).map_blocks(make, meta=given["x"]._meta)
    y, grads = both(given, LAYER)
    computed(y, *grads)
    assert made == [1, 1, 1]


def forbidden(block):
    raise AssertionError("worked on before the errors were told")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"offset": lambda a: a[:, 2:]}, ValueError),
        ({"offset": lambda a: a[:, :, 1:]}, ValueError),
        ({"mask": lambda a: a[1:]}, ValueError),
        ({"weight": lambda a: a[:, 1:]}, ValueError),
        ({"bias": lambda a: a.astype("f4")}, TypeError),
        ({"x": lambda a: a.astype("i4")}, TypeError),
        ({"x": lambda a: a[0]}, ValueError),
        ({"grad_output": lambda a: a[..., 1:]}, ValueError),
    ],
)
def test_errors_are_those_of_the_undivided_call(changes, error):
    arrays = dict(zip(NAMES, LAYER.arrays(), strict=True))
    lazy = {
        name: array.map_blocks(forbidden, meta=array._meta)
        for name, array in in_dask(arrays.values(), 1, 2).items()
    }
    for name, change in changes.items():
        arrays[name], lazy[name] = change(arrays[name]), change(lazy[name])
    with pytest.raises(error) as direct:
        cupy_dcn.deform_conv2d_backward(**arrays, **LAYER.attributes)
    with pytest.raises(error) as ours:
        cupy_dcn.dask.deform_conv2d_backward(**lazy, **LAYER.attributes)
    assert str(ours.value) == str(direct.value)


def test_arrays_that_are_not_dasks_or_of_unknown_size():
    arrays = dict(zip(NAMES, LAYER.arrays(), strict=True))
    lazy = in_dask(arrays.values(), 1, 2)
    for name in ("x", "offset", "mask", "grad_output"):
        with pytest.raises(TypeError, match=f"{name} must be a Dask array, got an array of shape"):
            cupy_dcn.dask.deform_conv2d_backward(**{**lazy, name: arrays[name]}, **LAYER.attributes)
    lazy["x"] = lazy["x"][lazy["x"].sum(axis=(1, 2, 3)) != 0]
    with pytest.raises(ValueError, match=r"x has chunks of unknown sizes .*compute_chunk_sizes"):
        both(lazy, LAYER)


def test_the_undivided_call_names_this_one():
    x = da.ones((1, 1, 4, 4))
    with pytest.raises(TypeError, match=r"got dask\.array\S+Array; cupy_dcn\.dask has functions"):
        cupy_dcn.deform_conv2d(x, np.zeros((1, 2, 4, 4)), np.ones((1, 1, 1, 1)))


def test_chunks_that_are_not_what_was_said():
    lazy = in_dask(LAYER.arrays(), 1, 2)
    lazy["offset"] = lazy["offset"].map_blocks(
        lambda block: block[:, :2], meta=lazy["offset"]._meta
    )
    with pytest.raises(ValueError, match="offset has 2 channels, expected"):
        computed(both(lazy, LAYER)[0])
