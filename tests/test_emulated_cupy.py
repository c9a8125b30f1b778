"""The stand-in of CuPy: its rules against NumPy and hand-made results, its names against CuPy.

A stand-in is worth what its likeness is worth. The last part of this file therefore asks the real
CuPy, which imports without a GPU, for every signature and for every choice of a loop.
"""

import ast
import ctypes
import gc
import importlib
import importlib.util
import inspect
import itertools
import re
import sys
import threading
from pathlib import Path
from types import ModuleType

import emulated_cupy
import ml_dtypes
import numpy as np
import pytest
from emulated_cupy import (
    Allocation,
    Operation,
    Product,
    Synchronisation,
    Transfer,
    _dtypes,
    capturing,
    configure,
    device_memory,
    recorded,
)
from emulator import BadLaunch, Misaligned, OutOfBounds, Race, Uninitialised

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2")]
FLOATS += [BFLOAT16] if _dtypes.HAS_BFLOAT16 else []

CUPY = importlib.util.find_spec("cupy") and importlib.import_module("cupy")
needs_cupy = pytest.mark.skipif(
    not CUPY or int(CUPY.__version__.split(".")[0]) < 14,
    reason="needs CuPy 14 or newer, to hold the stand-in against it",
)


@pytest.fixture
def cupy():
    with emulated_cupy.install() as module:
        yield module
    gc.collect()


@pytest.fixture
def cublas(cupy):
    from cupy_backends.cuda.libs import cublas

    return cublas


def values(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


# Arrays


def test_layout_and_views_are_numpys(cupy):
    host = np.arange(24.0).reshape(2, 3, 4)
    array = cupy.asarray(host)
    made = [
        (array, host),
        (array.T, host.T),
        (array.transpose(1, 0, 2), host.transpose(1, 0, 2)),
        (array.transpose((2, 0, 1)), host.transpose(2, 0, 1)),
        (array.swapaxes(0, -1), host.swapaxes(0, -1)),
        (array.reshape(6, -1), host.reshape(6, -1)),
        (array.reshape((4, 6)).T, host.reshape(4, 6).T),
        (array.reshape(6, 4, order="F"), host.reshape(6, 4, order="F")),
        (array[1], host[1]),
        (array[:, None, ::2, ...], host[:, None, ::2, ...]),
        (array[..., ::-1], host[..., ::-1]),
        (array[-1, 1:, 2], host[-1, 1:, 2]),
        (array[1:1], host[1:1]),
        (array[:, :1].squeeze(1), host[:, :1].squeeze(1)),
        (array[:1, :, :1].squeeze(), host[:1, :, :1].squeeze()),
        (array.ravel(), host.ravel()),
        (array.view(np.float32), host.view(np.float32)),
        (array.view(np.int64)[0], host.view(np.int64)[0]),
        (cupy.broadcast_to(array[0, 0], (5, 4)), np.broadcast_to(host[0, 0], (5, 4))),
    ]
    for ours, expected in made:
        assert (ours.shape, ours.ndim, ours.size) == (expected.shape, expected.ndim, expected.size)
        assert (ours.nbytes, ours.itemsize) == (expected.size * expected.itemsize, ours.itemsize)
        assert ours.flags.c_contiguous == expected.flags.c_contiguous
        assert ours.flags.f_contiguous == expected.flags.f_contiguous
        if ours.size:
            assert cupy.may_share_memory(ours, array) == np.may_share_memory(expected, host)
        np.testing.assert_array_equal(ours.get(), expected)


def test_reshape_makes_a_view_wherever_numpy_does(cupy):
    rng = np.random.default_rng(1)
    shapes = [(24,), (2, 12), (4, 6), (2, 3, 4), (1, 24), (2, 2, 6), (3, 8), (2, 1, 3, 4)]
    views = 0
    for before, after in itertools.product(shapes, shapes):
        host = np.arange(24.0).reshape(before).transpose(rng.permutation(len(before)))
        array = cupy.asarray(np.arange(24.0)).reshape(before)
        array = array.transpose(_axes_of(host, array))
        ours, expected = array.reshape(after), host.reshape(after)
        np.testing.assert_array_equal(ours.get(), expected)
        shares = np.shares_memory(expected, host)
        assert cupy.may_share_memory(ours, array) == shares
        views += shares
    assert 0 < views < len(shapes) ** 2


def _axes_of(host, array):
    """Return the permutation that gives ``array`` the strides of ``host``."""
    axes = []
    for length, stride in zip(host.shape, host.strides, strict=True):
        axes += [
            axis
            for axis in range(array.ndim)
            if (array.shape[axis], array.strides[axis]) == (length, stride) and axis not in axes
        ][:1]
    return axes


def test_flags_have_no_writeable_and_arrays_no_hash(cupy):
    array = cupy.zeros(2)
    assert not hasattr(array.flags, "writeable")
    assert array.flags["OWNDATA"]
    assert not array[1:].flags.owndata
    with pytest.raises(KeyError, match="not defined for cupy"):
        array.flags["WRITEABLE"]
    with pytest.raises(TypeError, match="unhashable"):
        hash(array)


def test_astype_and_copy_keep_the_order_they_are_asked_for(cupy):
    array = cupy.arange(6, dtype=np.float32).reshape(2, 3)
    assert array.astype(np.float32, copy=False) is array
    assert array.astype(np.float32) is not array
    assert array.T.astype(np.float64).flags.f_contiguous  # order "K"
    assert array.T.copy().flags.c_contiguous  # order "C"
    assert array.T.copy(order="K").flags.f_contiguous
    assert array.astype(np.float32, order="F", copy=False).flags.f_contiguous
    np.testing.assert_array_equal(array.T.astype(np.int32).get(), array.get().T)
    host = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)[:, :, ::2]
    ours = cupy.asarray(np.arange(24.0)).reshape(2, 3, 4).transpose(1, 0, 2)[:, :, ::2]
    assert ours.astype(np.float32).strides == host.astype(np.float32).strides
    assert cupy.empty_like(ours).strides == np.empty_like(host).strides
    np.testing.assert_array_equal(ours.astype(np.float32).get(), host)
    with pytest.raises(TypeError, match="casting is not supported yet"):
        array.astype(np.int32, casting="safe")
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        cupy.asarray(array, dtype=np.float64, copy=False)


def test_creation(cupy):
    array = cupy.asarray(values((2, 3)))
    for made, expected in [
        (cupy.zeros((2, 3)), np.zeros((2, 3))),
        (cupy.ones(3, np.float16), np.ones(3, np.float16)),
        (cupy.full((2,), 7, np.int8), np.full((2,), 7, np.int8)),
        (cupy.full(2, 1.5), np.full(2, 1.5)),
        (cupy.zeros_like(array.T), np.zeros((3, 2), np.float32)),
        (cupy.ones_like(array, dtype=bool), np.ones((2, 3), bool)),
        (cupy.full_like(array, -2), np.full((2, 3), -2, np.float32)),
        (cupy.arange(2, 11, 3), np.arange(2, 11, 3)),
        (cupy.arange(0.5, 2), np.arange(0.5, 2)),
        (cupy.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
        (cupy.array(5.0), np.array(5.0)),
        (cupy.array(values(3), ndmin=2), values(3)[None]),
    ]:
        assert made.dtype == expected.dtype
        np.testing.assert_array_equal(cupy.asnumpy(made), expected)
    assert cupy.empty_like(array.T).flags.f_contiguous
    assert cupy.asarray(array) is array
    assert cupy.array(array) is not array
    assert cupy.ascontiguousarray(array) is array
    assert cupy.ascontiguousarray(array.T).flags.c_contiguous
    assert cupy.ascontiguousarray(cupy.array(1.0)).shape == (1,)
    assert cupy.asnumpy([1, 2]).tolist() == [1, 2]


def test_joining(cupy):
    a, b = values((2, 3)), values((2, 3), np.float64, 1)
    first, second = cupy.asarray(a), cupy.asarray(b)
    for axis in (0, 1, -1):
        ours = cupy.concatenate([first, second], axis)
        expected = np.concatenate([a, b], axis)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours.get(), expected)
    for axis in (0, 1, 2, -1):
        np.testing.assert_array_equal(
            cupy.stack([first, second], axis).get(), np.stack([a, b], axis)
        )
    np.testing.assert_array_equal(
        cupy.concatenate([first, first], None).get(), np.concatenate([a, a], None)
    )
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>"):
        cupy.concatenate([first, b])
    with pytest.raises(ValueError, match="same ndim"):
        cupy.concatenate([first, first[0]])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_arithmetic_is_numpys(cupy, dtype):
    a, b = values((3, 4), dtype), values((4,), dtype, 1) + dtype.type(9)
    x, y = cupy.asarray(a), cupy.asarray(b)
    for ours, expected in [
        (x + y, a + b),
        (x - y, a - b),
        (x * y, a * b),
        (x / y, a / b),
        (-x, -a),
        (abs(x), abs(a)),
        (x < y, a < b),
        (x >= y, a >= b),
        (x == x, a == a),
        (x != 2, a != 2),
        (cupy.add(x, 2), a + dtype.type(2)),
        (2 - x, dtype.type(2) - a),
        (cupy.isnan(x), np.isnan(a)),
    ]:
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours.get(), expected)
    out = cupy.empty((3, 4), dtype)
    assert cupy.multiply(x, y, out=out) is out
    x += y
    x *= 2
    np.testing.assert_array_equal(x.get(), (a + b) * dtype.type(2))


def test_outputs_must_have_the_exact_shape_and_kind(cupy):
    x = cupy.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="Out shape is mismatched"):
        cupy.add(x, x, out=cupy.empty(3, np.float32))
    with pytest.raises(TypeError, match="Cannot cast output operand"):
        cupy.add(x, 1.5, out=cupy.empty((2, 3), np.int32))
    with pytest.raises(TypeError, match="Output arguments type must be"):
        cupy.add(x, x, out=1.0)
    with pytest.raises(ValueError, match="could not be broadcast"):
        cupy.add(x, cupy.zeros(2, np.float32))
    with pytest.raises(OverflowError):
        cupy.zeros(2, np.int8) + 300


def test_operands_that_overlap_the_output_are_copied_first(cupy):
    x = cupy.arange(6, dtype=np.float32)
    with recorded() as log:
        cupy.add(x[:-1], 1, out=x[1:])
    assert [each.name for each in log.operations] == ["cupy_copy", "cupy_add"]
    assert x.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reductions(cupy, dtype):
    host = values((3, 4, 5), dtype)
    array = cupy.asarray(host)
    for axis, keepdims in itertools.product([None, 0, -1, (0, 2)], [False, True]):
        ours = array.sum(axis=axis, keepdims=keepdims)
        assert ours.dtype == dtype
        expected = host.astype(np.float64).sum(axis=axis, keepdims=keepdims)
        np.testing.assert_array_equal(ours.get().astype(np.float64), expected)
        np.testing.assert_array_equal(array.any(axis).get(), (host != 0).any(axis))
        np.testing.assert_array_equal(cupy.all(array, axis).get(), (host != 0).all(axis))
    out = cupy.empty(5, np.float64)
    assert array.sum((0, 1), out=out) is out
    np.testing.assert_array_equal(out.get(), host.astype(np.float64).sum((0, 1)))


def test_halves_are_summed_in_float32(cupy):
    ones = cupy.ones(4096, np.float16)
    assert float(ones.sum()) == 4096  # in float16 the sum would stick at 2048
    assert cupy.ones(3, np.int8).sum().dtype == np.int64
    assert cupy.ones(3, np.float32).sum(dtype=np.float64).dtype == np.float64


def test_assignment(cupy):
    array = cupy.zeros((2, 3), np.float32)
    array[0] = 4
    array[:, 1] = cupy.asarray([5, 6])
    array[1, 2:] = cupy.float32(7)
    assert array.tolist() == [[4, 5, 4], [0, 6, 7]]
    array[...] = cupy.asarray(values((1, 2, 3)))
    np.testing.assert_array_equal(array.get(), values((2, 3)))
    with pytest.raises(ValueError, match=r"non-scalar numpy.ndarray cannot be used for fill"):
        array[0] = np.zeros(3, np.float32)
    with pytest.raises(IndexError, match="out of bounds for axis 1 with size 3"):
        array[0, 3] = 1
    with pytest.raises(NotImplementedError, match="indexing by arrays"):
        array[[0, 1]]


def test_copyto(cupy):
    target = cupy.zeros((2, 3), np.float32)
    cupy.copyto(target, cupy.arange(3))
    assert target.tolist() == [[0, 1, 2], [0, 1, 2]]
    cupy.copyto(target, 9, where=target > 1)
    assert target.tolist() == [[0, 1, 9], [0, 1, 9]]
    with pytest.raises(ValueError, match=r"non-scalar numpy.ndarray cannot be used for copyto"):
        cupy.copyto(target, np.zeros(3))
    with pytest.raises(ValueError, match="could not broadcast input array"):
        cupy.copyto(target, cupy.zeros(2))
    with pytest.raises(TypeError, match="Cannot cast"):
        cupy.copyto(cupy.zeros(2, np.int32), cupy.zeros(2))


def test_numpy_arrays_are_refused_everywhere(cupy):
    array, host = cupy.zeros(3), np.zeros(3)
    refusals = [
        lambda: array + host,
        lambda: host * array,
        lambda: array < host,
        lambda: cupy.add(array, host),
        lambda: cupy.add(array, array, out=host),
        lambda: np.add(array, array, out=host),
        lambda: array.__iadd__(host),
        lambda: cupy.matmul(array, host),
        lambda: array @ host,
        lambda: host @ array,
        lambda: cupy.dot(array, host),
        lambda: cupy.sum(host),
        lambda: cupy.ascontiguousarray(host),
        lambda: np.concatenate([array, host]),
        lambda: np.asarray(array),
        lambda: np.array([array, array]),
    ]
    for refusal in refusals:
        with pytest.raises(TypeError):
            refusal()
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>"):
        array + host
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(array)


def test_numpys_functions_reach_their_counterparts(cupy):
    array = cupy.asarray(values((2, 3)))
    assert isinstance(np.add(array, 1), cupy.ndarray)
    assert isinstance(np.sum(array), cupy.ndarray)
    assert isinstance(np.concatenate([array, array]), cupy.ndarray)
    with pytest.raises(TypeError):
        np.linalg.norm(array)


def test_get_array_module(cupy):
    assert cupy.get_array_module(np.ones(1), cupy.ones(1)) is cupy
    assert cupy.get_array_module(np.ones(1), 2) is np


def test_subclasses_survive_views_and_operations(cupy):
    class Tagged(cupy.ndarray):
        def __new__(cls, shape, tag):
            made = super().__new__(cls, shape, np.float32)
            made.tag = tag
            return made

        def __array_finalize__(self, obj):
            self.tag = getattr(obj, "tag", None)

    array = Tagged((2, 3), "here")
    array.fill(1)
    assert isinstance(array[0], Tagged)
    assert array[0].tag == "here"
    assert isinstance(array.T, Tagged)
    assert type(array.view(cupy.ndarray)) is cupy.ndarray
    assert array.__array_priority__ == 100


def test_unsupported_dtypes(cupy):
    with pytest.raises(ValueError, match="Unsupported dtype object"):
        cupy.empty(2, object)
    with pytest.raises(ValueError, match="big-endian"):
        cupy.empty(2, ">f4")
    with pytest.raises(NotImplementedError, match="complex64"):
        cupy.empty(2, np.complex64)


def test_dlpack_goes_both_ways(cupy):
    array = cupy.arange(6, dtype=np.float32).reshape(2, 3)
    taken = cupy.from_dlpack(array.T)
    assert (taken.data.ptr, taken.strides) == (array.data.ptr, (4, 12))
    assert taken is not array
    assert array.__dlpack_device__() == (2, 0)
    capsule = array.__dlpack__(stream=1)
    capsule.consume()
    with pytest.raises(ValueError, match="cannot be consumed multiple times"):
        capsule.consume()
    with pytest.raises(ValueError, match="0 was provided"):
        array.__dlpack__(stream=0)
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported"):
        cupy.from_dlpack(np.zeros(3))


def test_an_interface_is_waited_for_on_its_stream(cupy):
    array = cupy.zeros(3)

    class Foreign:
        __cuda_array_interface__ = array.__cuda_array_interface__

    with recorded() as log:
        cupy.asarray(Foreign())
    assert log.synchronisations == [Synchronisation("stream", 0)]
    del Foreign.__cuda_array_interface__["stream"]
    with recorded() as log:
        cupy.asarray(Foreign())
    assert log.synchronisations == []


def test_cuda_array_interface_goes_both_ways(cupy):
    array = cupy.arange(6, dtype=np.float32).reshape(2, 3)

    class Foreign:
        __cuda_array_interface__ = array.T.__cuda_array_interface__

    interface = array.__cuda_array_interface__
    assert interface["strides"] is None
    assert interface["data"] == (array.data.ptr, False)
    assert interface["stream"] == 1
    taken = cupy.asarray(Foreign())
    assert taken.data.ptr == array.data.ptr
    assert taken.strides == (4, 12)
    np.testing.assert_array_equal((taken + 1).get(), array.get().T + 1)
    assert cupy.empty((0, 2)).__cuda_array_interface__["data"] == (0, False)


def test_sharing_memory(cupy):
    array = cupy.zeros((4, 4))
    even, odd = array[::2], array[1::2]
    assert cupy.may_share_memory(even, odd)
    assert not cupy.shares_memory(even, odd)
    assert cupy.shares_memory(even, array[2])
    assert not cupy.may_share_memory(array, cupy.zeros(4))
    with pytest.raises(NotImplementedError):
        cupy.may_share_memory(array, even, max_work=1)


# What was never written


def test_reading_what_nothing_wrote_is_an_error(cupy):
    empty = cupy.empty((2, 3), np.float32)
    for read in (
        empty.get,
        lambda: empty + 1,
        lambda: empty.sum(),
        empty.copy,
        lambda: empty @ empty.T,
        lambda: cupy.concatenate([empty, empty]),
    ):
        with pytest.raises(Uninitialised):
            read()


def test_what_is_written_is_marked_to_the_byte(cupy):
    array = cupy.empty((4, 4), np.float32)
    array[::2, 1] = 1
    assert array[::2, 1].tolist() == [1, 1]
    for part in (array[::2, 0], array[1, 1], array[:, 1], array.view(np.int8)[0, 3:5]):
        with pytest.raises(Uninitialised):
            part.get()
    copied = cupy.empty_like(array)
    copied.data.copy_from_device_async(array.data, array.nbytes)  # a memcpy moves what is unwritten
    assert copied[2, 1].item() == 1
    with pytest.raises(Uninitialised):
        copied[0, 0].get()


def test_elements_must_be_aligned(cupy):
    block = cupy.zeros(16, np.uint8)
    with pytest.raises(Misaligned):
        cupy.ndarray(2, np.float32, block.data + 2) + 1
    with pytest.raises(Misaligned):
        cupy.ndarray(2, np.float32, block.data, (6,)).fill(1)


def test_reused_memory_is_poison_again(cupy):
    first = cupy.zeros(256)
    del first
    again = cupy.empty(256)
    assert cupy.get_default_memory_pool().used_bytes() >= 2048
    with pytest.raises(Uninitialised):
        again.get()


def test_a_freed_array_is_out_of_reach(cupy):
    array = cupy.zeros(16)
    address = array.data.ptr
    del array
    with pytest.raises(OutOfBounds):
        cupy.cuda.runtime.memsetAsync(address, 0, 8, 0)


def test_steps_past_an_array_are_caught_within_the_pools_rounding(cupy):
    array = cupy.zeros(3, np.float32)
    beyond = cupy.ndarray(4, np.float32, array.data)
    with pytest.raises(OutOfBounds):
        beyond.get()


# Memory


def test_every_array_is_freed_with_its_last_view(cupy):
    gc.collect()
    pool = cupy.get_default_memory_pool()
    used, held = pool.used_bytes(), device_memory(0).used_bytes
    array = cupy.zeros((100, 100))
    view = array[3:].T
    assert pool.used_bytes() - used == 80384  # 80000 in units of 512
    assert device_memory(0).used_bytes - held == 80000
    del array
    assert pool.used_bytes() > used
    del view
    assert pool.used_bytes() == used
    assert device_memory(0).used_bytes == held


def test_the_pool_keeps_cupys_books(cupy):
    pool = cupy.cuda.MemoryPool()
    first, second = pool.malloc(1000), pool.malloc(513)
    assert (pool.used_bytes(), pool.total_bytes()) == (2048, 2048)
    assert first.mem.size == 1024
    del first
    assert (pool.used_bytes(), pool.free_bytes(), pool.n_free_blocks()) == (1024, 1024, 1)
    third = pool.malloc(1)  # the free block is split
    assert (pool.used_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (1536, 2048, 1)
    pool.free_all_blocks()
    assert pool.total_bytes() == 2048  # a split block stays
    del second, third
    pool.free_all_blocks()
    assert (pool.used_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (0, 0, 0)


def test_a_pools_blocks_stay_with_their_stream(cupy):
    pool = cupy.cuda.MemoryPool()
    pool.malloc(512)
    with cupy.cuda.Stream():
        held = pool.malloc(512)
    assert (pool.used_bytes(), pool.total_bytes()) == (512, 1024)
    assert held.ptr


def test_limits(cupy):
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=4096)
    held = pool.malloc(4000)
    text = "Out of memory allocating 512 bytes .allocated so far: 4,096 bytes, limit set to: 4,096"
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=text):
        pool.malloc(1)
    del held
    assert pool.malloc(1).ptr  # what was free was given back
    with configure(total_memory=2**20), pytest.raises(MemoryError):
        cupy.empty(2**20)
    with pytest.raises(ValueError, match="one time"):
        pool.set_limit(size=1, fraction=0.5)


def test_every_allocation_goes_through_the_allocator(cupy):
    asked = []

    def counting(size):
        asked.append(size)
        return cupy.get_default_memory_pool().malloc(size)

    a, b = cupy.asarray(values((4, 4))), cupy.asarray(values((4, 4)))
    with cupy.cuda.using_allocator(counting), recorded() as log:
        a @ b
        a + b
        a.astype(np.float64).sum()
        with pytest.raises(ValueError, match="inside `using_allocator`"):
            cupy.cuda.set_allocator(counting)
    assert asked == [64, 64, 128, 8]
    assert [each.nbytes for each in log.allocations] == asked
    assert cupy.cuda.get_allocator() == cupy.get_default_memory_pool().malloc


def test_allocators_without_a_pool(cupy):
    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    try:
        array = cupy.zeros(3)
    finally:
        cupy.cuda.set_allocator(before)
    assert type(array.data.mem) is cupy.cuda.Memory
    assert array.tolist() == [0, 0, 0]


def test_pointer_arithmetic(cupy):
    array = cupy.arange(4, dtype=np.float32)
    moved = array.data + 8
    assert (moved.ptr, moved.mem) == (array.data.ptr + 8, array.data.mem)
    assert cupy.ndarray(2, np.float32, moved).tolist() == [2, 3]
    assert (moved - 8).ptr == int(array.data)
    assert cupy.empty((0, 3)).data.ptr == 0


# Products


def strided(matrix, transposed, leading, lead=0):
    """Return column-major elements of a matrix (or its transpose) with a leading dimension."""
    stored = matrix.T if transposed else matrix
    flat = np.full((stored.shape[1], leading), 77, matrix.dtype)
    flat[:, : stored.shape[0]] = stored.T
    return np.concatenate([np.full(lead, 55, matrix.dtype), flat.ravel()])


CUDA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}


def scalars(dtype, alpha, beta):
    array = np.array([alpha, beta], dtype)
    return array, array.ctypes.data, array.ctypes.data + array.itemsize


@pytest.mark.parametrize("transposes", list(itertools.product([0, 1, 2], [0, 1])), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gemm_ex_is_column_major(cupy, cublas, dtype, transposes):
    m, n, k = 3, 4, 5
    a, b, c = values((m, k), dtype), values((k, n), dtype, 1), values((m, n), dtype, 2)
    transa, transb = transposes
    lda, ldb, ldc = (k if transa else m) + 2, (n if transb else k) + 1, m + 3
    device_a = cupy.asarray(strided(a, transa, lda))
    device_b = cupy.asarray(strided(b, transb, ldb))
    device_c = cupy.asarray(strided(c, False, ldc))
    compute = np.float64 if dtype == np.float64 else np.float32
    held, alpha, beta = scalars(compute, 2, -1)
    kind = CUDA_TYPES[dtype.name]
    compute_type = cublas.CUBLAS_COMPUTE_64F if dtype == np.float64 else cublas.CUBLAS_COMPUTE_32F
    cublas.gemmEx(
        cupy.cuda.device.get_cublas_handle(), transa, transb, m, n, k, alpha,
        device_a.data.ptr, kind, lda, device_b.data.ptr, kind, ldb, beta,
        device_c.data.ptr, kind, ldc, compute_type, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    wide = a.astype(np.float64) @ b.astype(np.float64) * held[0] + c.astype(np.float64) * held[1]
    found = device_c.get().reshape(n, ldc)
    np.testing.assert_array_equal(found[:, :m].T.astype(np.float64), wide.astype(dtype))
    assert (found[:, m:] == 77).all()  # between the columns nothing is touched


@pytest.mark.parametrize("prefix", ["s", "d"])
@pytest.mark.parametrize("shared", [(), ("a",), ("b",), ("a", "b")], ids=str)
def test_strided_batches_with_a_shared_operand(cupy, cublas, prefix, shared):
    dtype = np.float32 if prefix == "s" else np.float64
    batch, m, n, k = 3, 2, 4, 5
    a, b = values((batch, m, k), dtype), values((batch, k, n), dtype, 1)
    a[1:] = a[0] if "a" in shared else a[1:]
    b[1:] = b[0] if "b" in shared else b[1:]
    stores = [cupy.asarray(each.swapaxes(1, 2).ravel()) for each in (a, b)]
    c = cupy.empty((batch, n, m), dtype)
    held, alpha, beta = scalars(dtype, 1, 0)
    with recorded() as log:
        getattr(cublas, f"{prefix}gemmStridedBatched")(
            cupy.cuda.device.get_cublas_handle(), 0, 0, m, n, k, alpha,
            stores[0].data.ptr, m, 0 if "a" in shared else m * k,
            stores[1].data.ptr, k, 0 if "b" in shared else k * n, beta,
            c.data.ptr, m, m * n, batch,
        )  # fmt: skip
    np.testing.assert_array_equal(c.get(), np.einsum("bij,bjk->bki", a, b))
    (product,) = log.products
    assert (product.batch, product.m, product.n, product.k, held[0]) == (batch, m, n, k, 1)
    matrices = (1 if "a" in shared else batch) * m * k + (1 if "b" in shared else batch) * k * n
    assert product.bytes_read == matrices * c.itemsize
    assert product.bytes_written == c.nbytes


def test_pointer_arrays(cupy, cublas):
    a, b = values((2, 3, 4)), values((2, 4, 5), seed=1)
    out = cupy.empty((2, 3, 5), np.float32)
    arrays = [cupy.asarray(b), cupy.asarray(a), out]
    pointers = [
        cupy.asarray(np.array([each[0].data.ptr, each[1].data.ptr], np.uint64)) for each in arrays
    ]
    _, alpha, beta = scalars(np.float32, 1, 0)
    cublas.sgemmBatched(
        cupy.cuda.device.get_cublas_handle(), 0, 0, 5, 3, 4, alpha, pointers[0].data.ptr, 5,
        pointers[1].data.ptr, 4, beta, pointers[2].data.ptr, 5, 2,
    )  # fmt: skip
    np.testing.assert_array_equal(out.get(), a @ b)


class Gemm:
    """A right call of gemmStridedBatchedEx, to be made wrong in one way."""

    def __init__(self, cupy, cublas):
        self.cupy, self.cublas = cupy, cublas
        self.a, self.b = (cupy.ones(3 * 16, np.float32) for _ in range(2))
        self.c = cupy.empty(3 * 16, np.float32)
        self.scalars, alpha, beta = scalars(np.float32, 1, 0)
        self.arguments = {
            "handle": cupy.cuda.device.get_cublas_handle(), "transa": 0, "transb": 0,
            "m": 4, "n": 4, "k": 4, "alpha": alpha,
            "A": self.a.data.ptr, "Atype": 0, "lda": 4, "strideA": 16,
            "B": self.b.data.ptr, "Btype": 0, "ldb": 4, "strideB": 16, "beta": beta,
            "C": self.c.data.ptr, "Ctype": 0, "ldc": 4, "strideC": 16,
            "batchCount": 3, "computeType": cublas.CUBLAS_COMPUTE_32F, "algo": -1,
        }  # fmt: skip

    def __call__(self, **changes):
        assert set(changes) <= set(self.arguments)
        self.cublas.gemmStridedBatchedEx(*{**self.arguments, **changes}.values())
        return None if "C" in changes else self.c.get()


@pytest.fixture
def gemm(cupy, cublas):
    return Gemm(cupy, cublas)


def test_misuse_of_a_product(cupy, cublas, gemm):
    assert (gemm() == 4).all()
    invalid = [
        {"lda": 3},
        {"ldb": 3, "transb": 1},
        {"ldc": 3},
        {"m": -1},
        {"batchCount": -1},
        {"transa": 3},
        {"handle": 1},
        {"computeType": 999},
    ]
    for change in invalid:
        with pytest.raises(cublas.CUBLASError, match=r"INVALID_VALUE|NOT_INITIALIZED"):
            gemm(**change)
    unsupported = [
        {"Atype": 2},
        {"Ctype": 2},
        {"Atype": 2, "Btype": 2, "Ctype": 1},
        {"computeType": cublas.CUBLAS_COMPUTE_64F},
        {"computeType": cublas.CUBLAS_COMPUTE_16F},
    ]
    for change in unsupported:
        with pytest.raises(cublas.CUBLASError, match="NOT_SUPPORTED"):
            gemm(**change)
    for name in ("m", "n", "k", "lda", "ldb", "ldc", "batchCount"):
        with pytest.raises(OverflowError, match="too large to convert to int"):
            gemm(**{name: 2**31})
    with pytest.raises(OverflowError):
        gemm(A=-1)
    with pytest.raises(TypeError):
        gemm(m=4.0)
    for stride in (0, 15, -15):
        with pytest.raises((Race, OutOfBounds)):
            gemm(strideC=stride)
    with pytest.raises(Race, match="C overlaps A"):
        gemm(C=gemm.a.data.ptr)
    with pytest.raises(OutOfBounds):
        gemm(B=gemm.b.data.ptr + 4)
    with pytest.raises(Misaligned):
        gemm(A=gemm.a.data.ptr + 2)


def test_interleaved_results_do_not_overlap(gemm):
    # Batches side by side in the columns of one matrix: strideC of m, ldc of batch * m.
    found = gemm(ldc=12, strideC=4)
    assert (found == 4).all()


def test_operands_must_be_written_and_c_only_if_it_is_read(cupy, cublas, gemm):
    assert (gemm() == 4).all()  # C was never written, and beta is 0
    fresh = cupy.empty(48, np.float32)
    held, _, beta = scalars(np.float32, 1, 1)
    with pytest.raises(Uninitialised, match=r"\(C\)"):
        gemm(C=fresh.data.ptr, beta=beta)
    with pytest.raises(Uninitialised, match=r"\(A\)"):
        gemm(A=fresh.data.ptr)
    poisoned = cupy.full(48, np.nan, np.float32)
    gemm(C=poisoned.data.ptr)
    assert (poisoned == 4).all()
    assert held.tolist() == [1, 1]


def test_empty_products(cupy, gemm):
    ones = cupy.ones(48, np.float32)
    for size in ("m", "n", "batchCount"):
        gemm(C=ones.data.ptr, **{size: 0})
        assert (ones == 1).all()
    gemm(C=ones.data.ptr, k=0)
    assert (ones == 0).all()


def test_products_of_another_device_are_out_of_reach(cupy, cublas, gemm):
    with cupy.cuda.Device(1):
        with pytest.raises(cublas.CUBLASError, match="EXECUTION_FAILED"):
            gemm()
        with pytest.raises(OutOfBounds):
            gemm(handle=cupy.cuda.device.get_cublas_handle())


def test_products_refuse_a_capturing_stream(cupy, gemm):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, capturing(stream):
        assert stream.is_capturing()
        with pytest.raises(NotImplementedError, match="during stream capture"):
            gemm()
        with pytest.raises(RuntimeError, match="D2H transfers are disallowed"):
            gemm.a.get()
        with pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
            stream.synchronize()
    with pytest.raises(RuntimeError, match="default"), capturing(cupy.cuda.Stream.null):
        pass


def test_compute_types_show_in_the_numbers(cupy, cublas, gemm):
    gemm.a.fill(1 + 2**-11)
    assert gemm()[0] == 4 + 2**-9
    assert gemm(computeType=cublas.CUBLAS_COMPUTE_32F_PEDANTIC)[0] == 4 + 2**-9
    assert gemm(computeType=cublas.CUBLAS_COMPUTE_32F_FAST_TF32)[0] == 4
    assert gemm(computeType=cublas.CUBLAS_COMPUTE_32F_FAST_16F)[0] == 4
    gemm.a.fill(1 + 2**-10)  # 10 bits of mantissa are kept
    assert gemm(computeType=cublas.CUBLAS_COMPUTE_32F_FAST_TF32)[0] == 4 + 2**-8
    if _dtypes.HAS_BFLOAT16:
        assert gemm(computeType=cublas.CUBLAS_COMPUTE_32F_FAST_16BF)[0] == 4


def test_tf32_rounds_to_nearest_even():
    from emulated_cupy._product import to_tf32

    ulp = np.float32(2**-10)
    given = np.array([1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp * 0.51, np.inf, -1 - ulp], np.float32)
    assert to_tf32(given).tolist() == [1, 1 + 2 * ulp, 1 + ulp, np.inf, -1 - ulp]
    assert np.isnan(to_tf32(np.array([np.nan], np.float32))).all()


def test_halves_are_accumulated_in_float32(cupy):
    ones = cupy.ones((1, 4096), np.float16)
    total = cupy.matmul(cupy.ones((2, 4096), np.float16), ones.T)
    assert total.dtype == np.float16
    assert total.tolist() == [[4096], [4096]]


def test_device_scalars(cupy, cublas, gemm):
    two, zero = cupy.full(1, 2, np.float32), cupy.zeros(1, np.float32)
    handle = gemm.arguments["handle"]
    assert cublas.getPointerMode(handle) == cublas.CUBLAS_POINTER_MODE_HOST
    cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_DEVICE)
    try:
        assert (gemm(alpha=two.data.ptr, beta=zero.data.ptr) == 8).all()
    finally:
        cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)


# matmul


def layouts(cupy, host):
    """Return one matrix as C-contiguous, F-contiguous and neither."""
    array = cupy.asarray(host)
    wide = cupy.zeros((*host.shape[:-1], 2 * host.shape[-1]), host.dtype)
    wide[..., ::2] = array
    transposed = cupy.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    return {"C": array, "F": transposed, "neither": wide[..., ::2]}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matrices_go_to_gemm_ex_with_flags_and_no_copy(cupy, dtype):
    a, b = values((3, 4), dtype), values((4, 5), dtype, 1)
    left, right = layouts(cupy, a), layouts(cupy, b)
    expected = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)
    for (name_a, x), (name_b, y) in itertools.product(left.items(), right.items()):
        with recorded() as log:
            ours = cupy.matmul(x, y)
        np.testing.assert_array_equal(ours.get(), expected)
        (product,) = log.products
        assert product.function == "gemmEx"
        assert product.compute_type == f"CUBLAS_COMPUTE_{64 if dtype == np.float64 else 32}F"
        copies = [name_a, name_b].count("neither")
        assert [each.name for each in log.operations] == ["cupy_copy"] * copies
        if name_a == "C":
            assert product.transb == 0
        if name_b == "C":
            assert product.transa == 0
        assert (product.m, product.n, product.k) == (5, 3, 4)


@pytest.mark.parametrize(
    ("shapes", "functions"),
    [
        (((2, 3, 4), (2, 4, 5)), ["gemmStridedBatchedEx"]),
        (((1, 3, 4), (4, 5)), ["gemmStridedBatchedEx"]),
        (((2, 3, 4), (4, 5)), ["sgemmBatched"]),
        (((3, 4), (2, 2, 4, 5)), ["sgemmBatched"]),
        (((2, 1, 3, 4), (3, 4, 5)), ["sgemmBatched"]),
        (((4,), (2, 4, 5)), ["sgemmBatched"]),
        (((2, 3, 4), (4,)), ["sgemmBatched"]),
        (((4,), (4, 5)), ["gemmEx"]),
        (((3, 4), (4,)), ["gemmEx"]),
        (((4,), (4,)), []),
    ],
    ids=str,
)
def test_batches(cupy, shapes, functions):
    a, b = values(shapes[0]), values(shapes[1], seed=1)
    with recorded() as log:
        ours = cupy.matmul(cupy.asarray(a), cupy.asarray(b))
    assert [each.function for each in log.products] == functions
    np.testing.assert_array_equal(ours.get(), np.matmul(a, b))
    names = [each.name for each in log.operations]
    assert names.count("cupy_mat_ptrs") % 3 == 0
    assert ("cupy_mat_ptrs" in names) == (functions == ["sgemmBatched"])


def test_batched_operands_are_copied_and_halves_widened(cupy):
    a, b = values((2, 3, 4), np.float16), values((2, 4, 5), np.float16, 1)
    x, y = cupy.asarray(a), cupy.asarray(b)
    with recorded() as log:
        ours = x @ y
    assert ours.dtype == np.float16
    np.testing.assert_array_equal(ours.get(), a @ b)
    assert [each.name for each in log.operations] == ["cupy_copy"] * 3
    assert log.products[0].a_type == "CUDA_R_32F"
    single = cupy.asarray(a.astype(np.float32))
    with recorded() as log:
        cupy.matmul(single, single.swapaxes(1, 2))
    assert [each.name for each in log.operations] == ["cupy_copy"]
    if _dtypes.HAS_BFLOAT16:
        with pytest.raises(TypeError, match="not understood"):
            x.astype(BFLOAT16) @ y.astype(BFLOAT16)


def test_outputs_of_matmul(cupy):
    a, b = cupy.asarray(values((3, 4))), cupy.asarray(values((4, 3), seed=1))
    expected = a.get() @ b.get()
    direct = cupy.empty((3, 3), np.float32)
    with recorded() as log:
        assert cupy.matmul(a, b, out=direct) is direct
    assert not log.allocations
    assert not log.operations
    for out in (cupy.empty((3, 3), np.float64), cupy.empty((3, 6), np.float32)[:, ::2]):
        with recorded() as log:
            cupy.matmul(a, b, out=out)
        assert [each.nbytes for each in log.allocations] == [36]
        assert [each.name for each in log.operations] == ["cupy_copy"]
        np.testing.assert_array_equal(out.get(), expected)
    square = cupy.asarray(expected)
    with recorded() as log:
        cupy.matmul(square, square, out=square)
    assert [each.name for each in log.operations] == ["cupy_copy"]
    np.testing.assert_array_equal(square.get(), expected @ expected)
    with pytest.raises(ValueError, match="mismatch"):
        cupy.matmul(a, a)
    with pytest.raises(TypeError, match="Cannot cast"):
        cupy.matmul(a, b, out=cupy.empty((3, 3), np.int32))


def test_empty_matrices(cupy):
    assert cupy.matmul(cupy.empty((2, 0)), cupy.empty((0, 3))).tolist() == [[0] * 3] * 2
    assert cupy.matmul(cupy.empty((2, 3, 0)), cupy.empty((2, 0, 4))).shape == (2, 3, 4)


def test_tf32_is_used_if_asked_for(cupy, monkeypatch):
    from cupy._core import _routines_linalg, get_compute_type, set_compute_type

    a = cupy.ones((2, 2), np.float32)
    types = []
    for chosen in ("COMPUTE_TYPE_TBD", "COMPUTE_TYPE_TF32", "COMPUTE_TYPE_PEDANTIC"):
        set_compute_type(np.float32, getattr(_routines_linalg, chosen))
        with recorded() as log:
            a @ a
        types.append(log.products[0].compute_type)
    assert types == [
        "CUBLAS_COMPUTE_32F",
        "CUBLAS_COMPUTE_32F_FAST_TF32",
        "CUBLAS_COMPUTE_32F_PEDANTIC",
    ]
    set_compute_type(np.float32, _routines_linalg.COMPUTE_TYPE_TBD)
    monkeypatch.setenv("CUPY_TF32", "1")
    assert get_compute_type(np.float32) == _routines_linalg.COMPUTE_TYPE_TF32
    with recorded() as log:
        a[None] @ a[None]
    assert log.products[0].compute_type == "CUBLAS_COMPUTE_32F"  # batches never ask
    set_compute_type(np.float32, _routines_linalg.COMPUTE_TYPE_TBD)


# Kernels

SOURCE = r"""
struct Sizes { int count; double factor; short last; };
static_assert(sizeof(Sizes) == 24, "");

extern "C" __global__ void scale(const float* x, float* y, Sizes sizes) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < sizes.count) y[i] = x[i] * (float)sizes.factor + sizes.last;
}
extern "C" __global__ void values(long long* out, long long a, double b, bool c, float d, int e) {
    out[0] = a; out[1] = (long long)b; out[2] = c; out[3] = (long long)d; out[4] = e;
}
extern "C" __global__ void address(unsigned long long* out, const void* pointer) {
    out[0] = (unsigned long long)pointer;
}
extern "C" __global__ void shared(int* out) {
    extern __shared__ int buffer[];
    buffer[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void arch(int* out) {
#ifdef __CUDA_ARCH__
    out[0] = __CUDA_ARCH__ + OPTION;
#endif
}
"""
SIZES = np.dtype([("count", "i4"), ("factor", "f8"), ("last", "i2")], align=True)


@pytest.fixture
def module(cupy):
    return cupy.RawModule(code=SOURCE, options=("-DOPTION=1",))


def test_a_structured_scalar_goes_by_value(cupy, module):
    x, y = cupy.arange(5, dtype=np.float32), cupy.empty(5, np.float32)
    sizes = np.array((5, 2.5, 3), SIZES)
    kernel = module.get_function("scale")
    for given in (sizes, sizes[()], sizes.reshape(1)):
        with recorded() as log:
            kernel((1,), (32,), (x, y, given))
        np.testing.assert_array_equal(y.get(), np.arange(5) * 2.5 + 3)
        (launch,) = log.launches
        assert (launch.name, launch.grid, launch.block) == ("scale", (1, 1, 1), (32, 1, 1))
        y.fill(0)
    packed = np.array((5, 2.5, 3), np.dtype([("a", "i4"), ("b", "f8"), ("c", "i2")]))
    with pytest.raises(BadLaunch, match="argument 2 of scale has 24 bytes, got 14"):
        kernel((1,), (32,), (x, y, packed))


def test_scalars_keep_their_own_size(cupy, module):
    kernel, out = module.get_function("values"), cupy.empty(5, np.int64)
    kernel((1,), (1,), (out, -7, 2.0, True, np.float32(4), np.int32(-5)))
    assert out.tolist() == [-7, 2, 1, 4, -5]
    kernel(
        (1,), (1,), (out, np.int64(1), np.float64(2), np.bool_(False), np.float32(4), np.int32(5))
    )
    assert out.tolist() == [1, 2, 0, 4, 5]
    kernel((1,), (1,), (out, np.array([3]), 2.0, True, np.float32(4), np.array(5, np.int32)))
    assert out.tolist() == [3, 2, 1, 4, 5]
    with pytest.raises(BadLaunch, match="argument 5 of values has 4 bytes, got 8 of int"):
        kernel((1,), (1,), (out, 1, 2.0, True, np.float32(4), 5))
    with pytest.raises(BadLaunch, match="argument 4 of values has 4 bytes, got 8 of float"):
        kernel((1,), (1,), (out, 1, 2.0, True, 4.0, np.int32(5)))
    with pytest.raises(BadLaunch, match="takes 6 arguments, got 2"):
        kernel((1,), (1,), (out, 1))
    with pytest.raises(TypeError, match=r"numpy.ndarray of shape \(2,\) as a kernel parameter"):
        kernel((1,), (1,), (out, np.zeros(2), 2.0, True, np.float32(4), np.int32(5)))
    with pytest.raises(TypeError, match="Unsupported type <class 'str'>"):
        kernel((1,), (1,), (out, "1", 2.0, True, np.float32(4), np.int32(5)))


def test_pointers_are_passed_without_strides(cupy, module):
    kernel, out = module.get_function("address"), cupy.empty(1, np.uint64)
    array = cupy.zeros((4, 4))
    for given, expected in [
        (array, array.data.ptr),
        (array[1:, ::2].T, array.data.ptr + 32),
        (array.data + 8, array.data.ptr + 8),
        (None, 0),
    ]:
        kernel((1,), (1,), (out, given))
        assert out.item() == expected


def test_grids(cupy, module):
    kernel, out = module.get_function("address"), cupy.empty(1, np.uint64)
    with recorded() as log:
        kernel((0, 0), (1,), (out, None))
    assert log.launches[0].grid == (1, 1, 1)  # CuPy clamps what is empty
    error = cupy.cuda.driver.CUDADriverError
    for grid, block in [
        ((1, 65536), (1,)),
        ((1, 1, 65536), (1,)),
        ((1,), (2048,)),
        ((1,), (1, 1, 65)),
    ]:
        with pytest.raises(error, match="CUDA_ERROR_INVALID_VALUE"):
            kernel(grid, block, (out, None))
    with pytest.raises(TypeError, match="expected tuple, got list"):
        kernel([1], (1,), (out, None))
    with pytest.raises(OverflowError):
        kernel((1, 2**31), (1,), (out, None))
    with pytest.raises(TypeError, match="unexpected keyword"):
        kernel((1,), (1,), (out, None), shared=1)


def test_dynamic_shared_memory(cupy, module):
    kernel, out = module.get_function("shared"), cupy.empty(32, np.int32)
    kernel((1,), (32,), (out,), shared_mem=128)
    assert out.tolist() == list(range(31, -1, -1))
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
        kernel((1,), (32,), (out,), shared_mem=50_000)
    assert kernel.max_dynamic_shared_size_bytes == 49_152
    kernel.max_dynamic_shared_size_bytes = 100_000
    kernel((1,), (32,), (out,), shared_mem=50_000)
    assert kernel.attributes["max_dynamic_shared_size_bytes"] == 100_000
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
        kernel.max_dynamic_shared_size_bytes = 300_000
    assert module.get_function("shared").max_dynamic_shared_size_bytes == 49_152


def test_kernels_are_compiled_for_the_device(cupy, module):
    out = cupy.empty(1, np.int32)
    kernel = module.get_function("arch")
    for capability in ("90", "80"):
        with configure(compute_capability=capability):
            assert cupy.cuda.Device(0).compute_capability == capability
            kernel((1,), (1,), (out,))
            assert out.item() == 10 * int(capability) + 1


def test_compiling(cupy, module):
    assert module.get_function("arch") is not module.get_function("arch")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="NOT_FOUND"):
        module.get_function("missing")
    wrong = cupy.RawModule(code="extern __global__ nonsense")
    with pytest.raises(cupy.cuda.compiler.CompileException, match="error"):
        wrong.get_function("nonsense")
    with pytest.raises(TypeError, match="Exactly one of"):
        cupy.RawModule()
    with pytest.raises(NotImplementedError, match="name expressions"):
        cupy.RawModule(code="", name_expressions=("f<int>",))
    with pytest.raises(NotImplementedError, match="backend"):
        cupy.RawModule(code="", backend="nvcc")
    with pytest.raises(TypeError, match="expected tuple, got list"):
        cupy.RawModule(code="", options=["-DX"])
    with pytest.raises(TypeError):
        cupy.RawModule("code")


def test_kernels_reach_only_their_own_device(cupy, module):
    kernel = module.get_function("scale")
    x, y = cupy.zeros(4, np.float32), cupy.empty(4, np.float32)
    sizes = np.array((4, 1, 0), SIZES)
    with cupy.cuda.Device(1), pytest.raises(OutOfBounds):
        kernel((1,), (4,), (x, y, sizes))
    with pytest.raises(Uninitialised):
        kernel((1,), (4,), (y, x, sizes))


def test_counting(cupy, module):
    x = cupy.zeros(4, np.float32)
    with configure(count=True), recorded() as log:
        module.get_function("scale")(
            (1,), (4,), (x, cupy.empty_like(x), np.array((4, 1, 0), SIZES))
        )
    assert log.launches[0].counters is not None


# Devices, streams and threads


def test_devices(cupy):
    runtime = cupy.cuda.runtime
    assert runtime.getDeviceCount() == 2
    with cupy.cuda.Device(1) as device:
        assert (int(device), runtime.getDevice()) == (1, 1)
        array = cupy.ones(3)
        with cupy.cuda.Device(0):
            assert runtime.getDevice() == 0
    assert runtime.getDevice() == 0
    assert array.device == cupy.cuda.Device(1)
    assert array.data.device_id == 1
    assert array.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="Peer access is unavailable"):
        array + 1
    assert array.copy().device.id == 0
    assert cupy.asarray(array).device.id == 0
    with pytest.raises(runtime.CUDARuntimeError, match="invalid device ordinal"):
        cupy.cuda.Device(2).use()
    properties = runtime.getDeviceProperties(0)
    assert properties["multiProcessorCount"] == 132
    assert properties["sharedMemPerBlockOptin"] == 227 * 1024
    assert cupy.cuda.device.get_compute_capability() == "90"
    assert runtime.runtimeGetVersion() >= 12000


def test_streams(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    with stream, recorded() as log:
        assert cupy.cuda.get_current_stream() is stream
        cupy.ones(2) + 1
        event = stream.record()
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    assert {each.stream for each in log.operations} == {stream.ptr}
    cupy.cuda.Stream.null.wait_event(event)
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"):
        stream.use()
    with recorded() as log:
        stream.synchronize()
        event.synchronize()
        cupy.cuda.Device().synchronize()
    assert [each.what for each in log.synchronisations] == ["stream", "event", "device"]


def test_threads_have_devices_and_streams_of_their_own(cupy):
    seen = []

    def work():
        seen.append((cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr))
        array = cupy.ones((64, 64), np.float32)
        for _ in range(20):
            array = array @ array / 64
        seen.append(float(array[0, 0]))

    with cupy.cuda.Device(1), cupy.cuda.Stream():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert seen.count((0, 0)) == 4
    assert seen.count(1.0) == 4


def test_raw_copies(cupy):
    array, host = cupy.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    runtime = cupy.cuda.runtime
    runtime.memcpyAsync(host.ctypes.data, array.data.ptr, 16, runtime.memcpyDefault, 0)
    assert host.tolist() == [0, 1, 2, 3]
    runtime.memcpyAsync(array.data.ptr + 8, host.ctypes.data, 8, runtime.memcpyHostToDevice, 0)
    runtime.memsetAsync(array.data.ptr, 1, 4, 0)
    assert array.tolist() == [0x01010101, 1, 0, 1]
    array.data.copy_from_async(ctypes.c_void_p(host.ctypes.data), 16)
    array.set(host[::-1])
    assert array.tolist() == [3, 2, 1, 0]


# The log


def test_the_log_tells_what_waits_for_the_device(cupy):
    array = cupy.ones(3)
    quiet = [lambda: array + 1, lambda: array @ array, array.copy, lambda: array[1:].sum()]
    with recorded() as log:
        for work in quiet:
            work()
    assert not log.synchronisations
    assert not log.transfers
    one = array[:1]
    waiting = [array.get, array.tolist, lambda: bool(one), one.item, lambda: str(one)]
    waiting += [lambda: float(array[0]), lambda: int(array[0]), lambda: cupy.asnumpy(array)]
    waiting += [lambda: cupy.shares_memory(array, one)]
    for wait in waiting:
        with recorded() as log:
            wait()
        assert log.synchronisations == [Synchronisation("stream", 0)]
        assert [each.direction for each in log.transfers] == ["to host"]


def test_a_rehearsal_logs_products_and_computes_nothing(cupy):
    unwritten = cupy.empty((3, 4), np.float32)
    with configure(execute=False), recorded() as log:
        unwritten.dot(unwritten.T)
        unwritten.copy()
    (product,) = log.products
    assert (product.bytes_read, product.bytes_written) == (2 * 48, 36)
    assert [each.bytes_read for each in log.operations] == [48]
    with pytest.raises(Uninitialised):
        unwritten.dot(unwritten.T)


def test_the_log_counts_bytes(cupy):
    with recorded() as log:
        array = cupy.asarray(np.ones((2, 3), np.float32))
        array + cupy.zeros(3, np.float32)
    assert log.entries == [
        Allocation(24, 0),
        Transfer("to device", 24, 0),
        Allocation(12, 0),
        Operation("memset", 0, 12, 0, 0),
        Allocation(24, 0),
        Operation("cupy_add", 36, 24, 0, 0),
    ]
    emulated_cupy.log.clear()
    assert not emulated_cupy.log.entries
    array @ array.T
    assert [type(each) for each in emulated_cupy.log.entries] == [Allocation, Product]


def test_settings_come_back():
    with configure(check=False, compute_capability="80") as settings:
        assert (settings.check, settings.compute_capability) == (False, "80")
    assert (settings.check, settings.compute_capability) == (True, "90")
    with pytest.raises(TypeError, match="no setting is called speed"), configure(speed=1):
        pass


# In CuPy's place


@needs_cupy
def test_installing_and_taking_out():
    real = CUPY
    with emulated_cupy.install() as module:
        import cupy
        import cupy.cuda
        import cupy.cuda.runtime

        libs = importlib.import_module("cupy_backends.cuda.libs.cublas")
        assert cupy is module is not real
        assert cupy.cuda.cublas is libs
        assert cupy.__version__.split(".")[0] == real.__version__.split(".")[0]
        with pytest.raises(AttributeError, match="the emulated cupy has no 'einsum'"):
            cupy.einsum  # noqa: B018
        with pytest.raises(ImportError):
            importlib.import_module("cupy.linalg")
        with pytest.raises(ImportError):
            importlib.import_module("cupyx")
    assert importlib.import_module("cupy") is real
    assert sys.modules["cupy.cuda"] is real.cuda
    assert sys.modules.get("cupyx", ...) is not None


# Against the real CuPy


def stand_ins():
    """Return the modules of the stand-in and, beside each, CuPy's own."""
    with emulated_cupy.install():
        ours = {name: sys.modules[name] for name in sorted(sys.modules) if name in _emulated()}
    return [(ours[name], importlib.import_module(name)) for name in ours if name != CUBLAS]


CUBLAS = "cupy_backends.cuda.libs.cublas"


def _emulated():
    from emulated_cupy._namespace import modules

    return modules()


def described(text):
    """Return the parameters of the signature that begins a docstring of Cython's."""
    head = re.match(r"[\w.]+\((.*?)\)(?: ->.*)?(?:\n|$)", text)
    parts = [part.strip() for part in re.split(r",\s*(?![^()]*\))", head.group(1))]
    return parameters([_parsed(part) for part in parts if part and part != "self"])


def _parsed(part):
    declared, _, default = part.partition("=")
    stars, name = re.match(r"(\*{0,2})(?:.*\W)?(\w*)$", declared).groups()
    return stars, name, default or None


def parameters(parsed):
    """Return (kind, name, default) of each, a bare star turned into kinds."""
    found, keyword_only = [], False
    for stars, name, default in parsed:
        if stars == "*" and not name:
            keyword_only = True
            continue
        kind = stars or ("keyword" if keyword_only else "")
        found.append((kind, name, _value(default)))
        keyword_only |= stars == "*"
    return found


def _value(default):
    if default is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(default)
    except ValueError:
        return {"float": float}.get(default, default)


def signature(function):
    """Return the parameters of a Python function, as `described` does."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = []
    for each in inspect.signature(function).parameters.values():
        keyword_only = each.kind is inspect.Parameter.KEYWORD_ONLY
        kind = stars.get(each.kind, "keyword" if keyword_only else "")
        if each.name != "self":
            found.append((kind, each.name, each.default))
    return found


def real_signature(function):
    """Return the parameters of something of CuPy's, from wherever they can be read."""
    try:
        found = signature(function)
    except (TypeError, ValueError):
        found = []
    generic = [(kind, name) for kind, name, _ in found] == [("*", "args"), ("**", "kwargs")]
    if (not found or generic) and re.match(r"[\w.]+\(", function.__doc__ or ""):
        return described(function.__doc__)
    return found


def public(module):
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, ModuleType)
    }


def members(cls):
    bases = [base for base in cls.__mro__ if base.__module__.startswith(("emulated_cupy", "cupy"))]
    own = {name for base in bases for name in vars(base) if not name.startswith("_")}
    return {name: getattr(cls, name) for name in own}


@needs_cupy
def test_every_name_of_the_stand_in_is_cupys():
    checked = 0
    for ours, real in stand_ins():
        for name, value in public(ours).items():
            assert hasattr(real, name), f"{real.__name__} has no {name}"
            assert callable(value) == callable(getattr(real, name)), f"{real.__name__}.{name}"
            checked += 1
    assert checked > 150


@needs_cupy
def test_every_signature_is_cupys():
    compared = 0
    for ours, real in stand_ins():
        for name, value in public(ours).items():
            if isinstance(value, type) or not inspect.isfunction(value):
                continue
            expected = real_signature(getattr(real, name))
            assert signature(value) == expected, f"{real.__name__}.{name}"
            compared += 1
    assert compared > 50


def classes():
    found = {}
    for ours, real in stand_ins():
        for name, value in public(ours).items():
            if isinstance(value, type) and value.__module__.startswith(("emulated_cupy", "cupy")):
                found[name] = value, getattr(real, name)
    return found


@needs_cupy
def test_every_method_is_cupys():
    compared = 0
    for name, (ours, real) in classes().items():
        for member, value in members(ours).items():
            assert hasattr(real, member), f"{name}.{member}"
            expected = getattr(real, member)
            if inspect.isfunction(value):
                assert signature(value) == real_signature(expected), f"{name}.{member}"
            elif isinstance(value, property):
                assert not inspect.isroutine(expected), f"{name}.{member}"
            compared += 1
    assert compared > 75


@needs_cupy
def test_every_constructor_is_cupys():
    for name, (ours, real) in classes().items():
        if name in ("BaseMemory", "ndarray", "ufunc", "PooledMemory"):
            continue
        expected = real_signature(real)
        if not expected or expected[0][0] == "*":
            expected = real_signature(real.__init__)
        ours_read = signature(ours)
        if name in ("RawKernel", "RawModule"):
            # Cython describes these two with the star one parameter late.
            ours_read, expected = ([each[1:] for each in which] for which in (ours_read, expected))
        assert ours_read == expected, name
    real = CUPY
    with pytest.raises(TypeError, match="positional"):
        real.RawModule("code")
    with pytest.raises(TypeError, match="positional"):
        real.RawKernel("code", "name", (), "nvrtc", False)
    assert signature(classes()["ndarray"][0]._init) == [
        ("", "shape", inspect.Parameter.empty),
        ("", "dtype", float),
        ("", "memptr", None),
        ("", "strides", None),
        ("", "order", "C"),
    ]


@needs_cupy
def test_matmul_has_cupys_keywords():
    real = CUPY
    with emulated_cupy.install() as cupy:
        assert signature(cupy.matmul.__call__) == signature(real.matmul.__call__)


@needs_cupy
def test_constants_are_cupys():
    compared = 0
    for ours, real in stand_ins():
        for name, value in public(ours).items():
            if isinstance(value, int):
                assert getattr(real, name) == value, f"{real.__name__}.{name}"
                compared += 1
    assert compared > 20


@needs_cupy
def test_signatures_of_cublas_stand_in_its_binary():
    # The extension links to libcublas and cannot be imported without it, but it can be read: Cython
    # keeps the line that describes a function as plain text.
    libs = Path(importlib.util.find_spec("cupy_backends.cuda.libs").origin).parent
    (binary,) = libs.glob("cublas.*.so") or libs.glob("cublas.*.pyd")
    text = binary.read_bytes().decode("latin-1")
    ours = _emulated()[CUBLAS]
    functions = {name: each for name, each in public(ours).items() if inspect.isfunction(each)}
    assert {"gemmEx", "gemmStridedBatchedEx", "sgemm", "getPointerMode"} <= set(functions)
    for name, function in functions.items():
        (line,) = re.findall(rf"(?<![\w.]){name}\([^)\0]*\)", text)
        assert signature(function) == described(line), name
    for name in public(ours):
        assert name in text


@needs_cupy
def test_constants_of_cublas_are_cupys_where_it_can_be_imported():
    try:
        from cupy_backends.cuda.libs import cublas
    except ImportError:
        pytest.skip("CuPy's cublas module needs libcublas")
    compared = {n: v for n, v in public(_emulated()[CUBLAS]).items() if isinstance(v, int)}
    assert compared == {name: getattr(cublas, name) for name in compared}


@needs_cupy
def test_loops_are_cupys():
    real = CUPY
    codes = [code for code in "?bBhHiIlLqQeEfd" if _dtypes.from_code(code) is not None]
    dtypes = [_dtypes.from_code(code) for code in codes]
    compared = 0
    with emulated_cupy.install() as cupy:
        for name, ours in public(cupy).items():
            if not isinstance(ours, cupy.ufunc):
                continue
            theirs = getattr(real, name)
            assert (ours.name, ours.nin, ours.nargs) == (theirs.name, theirs.nin, theirs.nargs)
            assert ours.types == [each for each in theirs.types if not set("FDV") & set(each)]
            for given in itertools.product(dtypes, repeat=ours.nin):
                expected = theirs._ops._guess_routine_from_in_types(given, None)
                found = _choice(cupy, ours, [cupy.empty(0, dtype) for dtype in given])
                assert found == _loop_of(expected), (name, given)
                compared += 1
            if ours.nin == 2:
                compared += _compare_with_scalars(cupy, ours, theirs, dtypes)
    assert compared > 2000


def _compare_with_scalars(cupy, ours, theirs, dtypes):
    for dtype, scalar in itertools.product(dtypes, [2, 2.5]):
        weak = (False, type(scalar))
        # CuPy lets a scalar of a higher kind count as what it is; that rule is not for asking.
        if (dtype.kind in "biu" and type(scalar) is float) or dtype.kind == "b":
            weak = (False, False)
        given = (dtype, np.dtype(type(scalar)))
        expected = theirs._ops._guess_routine_from_in_types(given, weak)
        assert _choice(cupy, ours, [cupy.empty(0, dtype), scalar]) == _loop_of(expected)
    return 2 * len(dtypes)


def _choice(cupy, ours, operands):
    from emulated_cupy._ufuncs import as_operand

    try:
        loop = ours._choose([as_operand(each) for each in operands], None)
    except TypeError:
        return None
    return loop.ins, loop.out


def _loop_of(op):
    return None if op is None or set("FDV") & set(_codes(op)) else (op.in_types, op.out_types[0])


def _codes(op):
    return "".join(np.dtype(each).char for each in op.in_types if np.dtype(each) != BFLOAT16)
