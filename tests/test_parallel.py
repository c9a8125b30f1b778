"""Threads: the same bits from run to run, calls side by side, and BLAS left as it was."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import cupy_dcn
from cupy_dcn import _blas, _cut_cpu, _parallel
from cupy_dcn._workspace import Workspace

pytestmark = pytest.mark.usefixtures("host")


def blas_threads():
    # Of the libraries the module knows: SciPy loads another BLAS, later and never used here.
    return [library.num_threads for library in _parallel._libraries()]


@pytest.fixture
def call(monkeypatch):
    """Return arrays and attributes of a call that is cut into several tiles a worker."""
    monkeypatch.setattr(_cut_cpu, "TILE_SAMPLES", 2_000)
    monkeypatch.setattr(_cut_cpu, "PARALLEL_ELEMENTS", 0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 12, 30, 40), np.float32)
    offset = 2 * rng.standard_normal((2, 36, 30, 40), np.float32)
    weight = rng.standard_normal((6, 12, 3, 3), np.float32)
    mask = rng.random((2, 18, 30, 40), np.float32)
    grad_output = rng.standard_normal((2, 6, 30, 40), np.float32)
    arrays = {"x": x, "offset": offset, "weight": weight, "mask": mask}
    return grad_output, arrays | {"padding": 1, "deformable_groups": 2}


def run(call):
    grad_output, keywords = call
    y = cupy_dcn.deform_conv2d(**keywords)
    gradients = cupy_dcn.deform_conv2d_backward(grad_output, **keywords)
    return [y, *(array for array in gradients if array is not None)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_from_run_to_run(call, threads, monkeypatch):
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: threads)
    first = run(call)
    for _ in range(3):
        for one, again in zip(first, run(call), strict=True):
            np.testing.assert_array_equal(again, one)


def test_threads_agree_with_one(call, monkeypatch):
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: 1)
    alone = run(call)
    for threads in (2, 3, 7):
        monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda n=threads: n)
        for one, together in zip(alone, run(call), strict=True):
            np.testing.assert_allclose(together, one, atol=5e-6 * np.abs(one).max())


def test_many_callers_at_once(call, monkeypatch):
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: 2)
    expected, before = run(call), blas_threads()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: run(call), range(12)))
    for arrays in found:
        for one, other in zip(expected, arrays, strict=True):
            np.testing.assert_array_equal(other, one)
    assert blas_threads() == before


def test_blas_limits_are_heard_and_restored(call, monkeypatch):
    with threadpool_limits(1, "blas"):
        assert _parallel.thread_count() == 1
    with threadpool_limits(2, "blas"):
        assert _parallel.thread_count() == 2
        run(call)
        assert set(blas_threads()) == {2}

        def fail(tiles, workspace):
            assert set(blas_threads()) == {1}
            raise RuntimeError("half-way")

        workspaces = [Workspace.of(64), Workspace.of(64)]
        with pytest.raises(RuntimeError, match="half-way"):
            _parallel.spread(fail, [1, 2, 3], workspaces)
        assert set(blas_threads()) == {2}


def test_calls_from_other_threads_leave_blas_as_it_was(call):
    with threadpool_limits(2, "blas"):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: run(call), range(20)))
            assert set(pool.map(lambda _: tuple(blas_threads()), range(4))) == {(2,)}
        assert blas_threads() == [2]
        assert _parallel.thread_count() == 2


def test_numpys_openblas_is_found_without_threadpoolctl(monkeypatch):
    known = [library.num_threads for library in _blas.blas_libraries()]
    openblas = any(pool["internal_api"] == "openblas" for pool in threadpool_info())
    with threadpool_limits(2, "blas"):
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)
        found = _blas.blas_libraries()
        # On a NumPy that is not built on OpenBLAS none is found: then one thread, and no crash.
        assert len(found) == openblas
        for library in found:
            assert library.num_threads == 2
            library.set_num_threads(1)
            assert library.num_threads == 1
            library.set_num_threads(2)
        monkeypatch.undo()
    assert [library.num_threads for library in _blas.blas_libraries()] == known


def test_one_thread_where_no_blas_can_be_held(call, monkeypatch):
    expected = run(call)
    monkeypatch.setattr(_parallel, "_libraries", lambda: [])
    assert _parallel.thread_count() == 1
    for one, alone in zip(expected, run(call), strict=True):
        np.testing.assert_allclose(alone, one, atol=5e-6 * np.abs(one).max())


def test_threads_heed_the_callers_errstate(call, monkeypatch):
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: 2)
    arrays = {k: v.astype(np.float16) if hasattr(v, "astype") else v for k, v in call[1].items()}
    arrays["weight"] *= np.float16(8e3)  # the output overflows float16
    with np.errstate(over="ignore"):
        assert np.isinf(cupy_dcn.deform_conv2d(**arrays)).any()
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        cupy_dcn.deform_conv2d(**arrays)


class Blas:
    """A BLAS that only remembers its number of threads."""

    num_threads = 4

    def set_num_threads(self, count):
        self.num_threads = count


def test_blas_is_held_until_the_last_call_is_out(monkeypatch):
    blas, threads = Blas(), _parallel._Threads()
    monkeypatch.setattr(_parallel, "_libraries", lambda: [blas])
    taken = [threads.take(3) for _ in range(3)]
    assert taken == [3, 1, 1]  # of four, and no call waits for one
    for each in taken:
        assert blas.num_threads == 1
        assert threads.total() == 4
        threads.give_back(each)
    assert blas.num_threads == threads.total() == 4


@pytest.mark.parametrize("others", [1, 2, 4])
def test_same_bits_whatever_threads_other_calls_have(call, others, monkeypatch):
    blas = Blas()
    monkeypatch.setattr(_parallel, "_libraries", lambda: [blas])
    with threadpool_limits(1, "blas"):
        expected = run(call)
        taken = _parallel._threads.take(others)
        try:
            found = run(call)
        finally:
            _parallel._threads.give_back(taken)
    for one, beside in zip(expected, found, strict=True):
        np.testing.assert_array_equal(beside, one)


def test_parts_of_the_work_depend_on_counts_alone():
    workspaces = [Workspace.of(64) for _ in range(3)]
    parts = _parallel.spread(lambda items, _: list(items), range(10), workspaces)
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert _parallel.spread(lambda items, _: list(items), [], workspaces) == [[]]


def test_a_workspace_takes_back_what_a_scope_handed_out():
    workspace = Workspace.of(1024)
    first = workspace.empty(4, np.float32)
    with workspace.scope():
        inside = workspace.zeros((2, 3), np.float64)
        assert not np.shares_memory(first, inside)
        assert inside.ctypes.data % 64 == 0
    again = workspace.empty((2, 3), np.float64)
    assert again.ctypes.data == inside.ctypes.data
    too_large = workspace.empty(4096, np.float32)  # helped out by NumPy
    assert too_large.shape == (4096,)
    assert not np.shares_memory(too_large, workspace._block)
