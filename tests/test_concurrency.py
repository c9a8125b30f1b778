"""Threads that meet in the first call, and exceptions half-way, after which all is as before.

An exception comes out as it was raised, BLAS, device, stream and ``numpy.errstate`` are as they
were, ``out`` may be written in part, and the next call is right.
"""

import threading
import time
import warnings

import numpy as np
import pytest
from cases import Case, assert_close
from libraries import dcn, has_numba

import cupy_dcn
from cupy_dcn import _cut_cpu, _kernels, _oracle, _parallel
from cupy_dcn._twins import twin_of

LAYER = Case(2, 4, (9, 8), 4, (3, 2), padding=(1, 1, 1, 1), deformable_groups=2)
needs_numba = pytest.mark.skipif(not has_numba(), reason="no Numba here")


class Call:
    """The arrays of a layer on the library whose turn it is, and what plain loops make of them."""

    def __init__(self):
        self.host = LAYER.arrays(np.float64)
        x, offset, weight, bias, mask, grad_output = self.host
        attributes = (*LAYER.sampling[1:], LAYER.groups, mask)
        self.y = _oracle.forward(x, offset, weight, bias, *attributes)
        self.grads = _oracle.backward(grad_output, x, offset, weight, *attributes)
        moved = map(dcn.to_device, self.host) if dcn.on_device else self.host
        self.x, self.offset, self.weight, self.bias, self.mask, self.grad_output = moved

    def forward(self, **more):
        arrays = self.x, self.offset, self.weight, self.bias
        return cupy_dcn.deform_conv2d(*arrays, mask=self.mask, **LAYER.attributes, **more)

    def backward(self):
        arrays = self.grad_output, self.x, self.offset, self.weight, self.bias
        return cupy_dcn.deform_conv2d_backward(*arrays, mask=self.mask, **LAYER.attributes)

    def plan(self):
        settings = {"masked": LAYER.masked, "backward": True, **LAYER.attributes}
        return cupy_dcn.Plan(self.x.shape, self.weight, self.bias, **settings)

    def assert_right(self, y, grads):
        assert_close(on_host(y), self.y, 1e-12)
        for one, other in zip(grads, self.grads, strict=True):
            assert_close(on_host(one), other, 1e-12)


def on_host(array):
    return dcn.array_module.asnumpy(array) if dcn.on_device else array


def surroundings():
    """Return what is global and a call has to leave as it is."""
    found = [
        [each.num_threads for each in _parallel._libraries()], np.geterr(), np.geterrcall(),
        list(warnings.filters), threading.active_count(),
    ]  # fmt: skip
    if dcn.on_device:
        cuda = dcn.array_module.cuda
        found += [cuda.Device().id, cuda.get_current_stream().ptr, cuda.get_allocator()]
    return found


def at_once(count, work):
    """Run ``work(number)`` on threads that start together; return the results, or raise."""
    start, found, failed = threading.Barrier(count), [None] * count, []

    def run(number):
        try:
            start.wait()
            found[number] = work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


# Threads


def test_threads_meet_in_their_first_call(library, monkeypatch):
    call, before = Call(), surroundings()
    compilations = []
    if dcn.on_device:
        cupy = dcn.array_module
        module = cupy.RawModule

        def compile_slowly(**arguments):
            compilations.append(arguments["code"])
            time.sleep(0.02)
            return module(**arguments)

        monkeypatch.setattr(_kernels, "_compiled", {})
        monkeypatch.setattr(cupy, "RawModule", compile_slowly)
    for y, grads in at_once(4, lambda _: (call.forward(), call.backward())):
        call.assert_right(y, grads)
    # To and from channels last are one text.
    assert len(compilations) == (len(_kernels.compiled()) if dcn.on_device else 0)
    assert len(set(compilations)) == (3 if dcn.on_device else 0)
    assert surroundings() == before


@needs_numba
def test_threads_compile_a_loop_once(monkeypatch):
    from cupy_dcn import _loops_numba as loops

    loop, kind, compiled = loops.Loop(loops._bounds, "box"), np.dtype(np.float64), []

    def compile_slowly(*kinds):
        compiled.append(kinds)
        time.sleep(0.02)
        return lambda value: compiled[0] + (value,)

    monkeypatch.setattr(loop, "_compile", compile_slowly)
    at_once(6, lambda number: loop(kind, kind, number))
    assert compiled == [(kind, kind)]
    loop(kind, np.dtype(np.float32), 0)
    assert len(compiled) == 2


@needs_numba
def test_a_loop_that_could_not_be_compiled_is_compiled_again(monkeypatch):
    from cupy_dcn import _loops_numba as loops

    loop, kind, failing = loops.Loop(loops._bounds, "box"), np.dtype(np.float64), [True]

    def compile_or_fail(*kinds):
        if failing.pop():
            raise KeyboardInterrupt
        return lambda: None

    monkeypatch.setattr(loop, "_compile", compile_or_fail)
    with pytest.raises(KeyboardInterrupt):
        loop(kind, kind)
    failing.append(False)
    loop(kind, kind)
    assert not failing


# Exceptions half-way

FORWARD = "Image", "locate", "im2col", "write_output", "allocate", "weight_matrix", "make_cut"
BACKWARD = "Pullback", "grad_columns", "add_grad_weight", "allocate", "sum_planes"


@pytest.fixture
def cut_in_many(monkeypatch):
    """Several tiles a worker, and three of these on NumPy arrays."""
    monkeypatch.setattr(_cut_cpu, "TILE_SAMPLES", 60)
    monkeypatch.setattr(_cut_cpu, "PARALLEL_ELEMENTS", 0)
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: 3)


class Failing:
    """A stage that works until its call number ``at``, on a thread of ours or on the caller's."""

    def __init__(self, stage, error, at=0, elsewhere=False):
        self._stage, self._error, self._left, self._elsewhere = stage, error, at, elsewhere
        self._caller = threading.current_thread()

    def __call__(self, *args, **kwargs):
        if not self._elsewhere or threading.current_thread() is not self._caller:
            self._left -= 1
            if self._left < 0:
                raise self._error
        return self._stage(*args, **kwargs)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("planned", [False, True])
def test_an_exception_in_any_stage(library, cut_in_many, monkeypatch, planned, error):
    call = Call()
    twin, plan = twin_of(call.x), call.plan()
    stages = [(name, False) for name in FORWARD] + [(name, True) for name in BACKWARD]
    inputs, caught = (call.x, call.offset, call.mask), set()
    for name, backward in stages:
        raised, found, before = error("half-way"), None, surroundings()
        with monkeypatch.context() as patch:
            patch.setattr(twin, name, Failing(getattr(twin, name), raised))
            try:
                if planned:
                    plan.backward(call.grad_output, *inputs) if backward else plan(*inputs)
                else:
                    call.backward() if backward else call.forward()
            except error as came:  # not every twin has work for every stage
                found = came
                caught.add(name)
        assert found in (None, raised)
        assert surroundings() == before
        if planned:
            call.assert_right(plan(*inputs), plan.backward(call.grad_output, *inputs))
    assert caught >= {"Image", "locate", "write_output", "Pullback", "add_grad_weight"}
    assert planned == ("make_cut" not in caught) == ("allocate" not in caught)
    call.assert_right(call.forward(), call.backward())


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_exception_on_a_thread_of_ours(host, cut_in_many, monkeypatch, error):
    call, raised = Call(), error("half-way")
    twin, plan = twin_of(call.x), call.plan()
    inputs, before = (call.x, call.offset, call.mask), surroundings()
    for name, run in (
        ("write_output", lambda: plan(*inputs)),
        ("add_grad_weight", lambda: plan.backward(call.grad_output, *inputs)),
        ("write_output", call.forward),
        ("add_grad_weight", call.backward),
    ):
        with monkeypatch.context() as patch, np.errstate(over="raise", under="warn"):
            inside = surroundings()
            patch.setattr(twin, name, Failing(getattr(twin, name), raised, 1, elsewhere=True))
            with pytest.raises(error) as found:
                run()
            assert found.value is raised
            assert surroundings() == inside
        assert surroundings() == before
        call.assert_right(plan(*inputs), plan.backward(call.grad_output, *inputs))


def test_no_memory_for_the_output(library, monkeypatch):
    call = Call()
    twin, plan, before = twin_of(call.x), call.plan(), surroundings()
    inputs, raised = (call.x, call.offset, call.mask), MemoryError("half-way")
    for run in (
        call.forward, call.backward, lambda: plan(*inputs),
        lambda: plan.backward(call.grad_output, *inputs),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(twin, "empty", Failing(twin.empty, raised))
            with pytest.raises(MemoryError) as found:
                run()
        assert found.value is raised
        assert surroundings() == before
    call.assert_right(plan(*inputs), plan.backward(call.grad_output, *inputs))


def test_what_out_holds_after_an_exception(library, cut_in_many, monkeypatch):
    call = Call()
    twin, plan = twin_of(call.x), call.plan()
    out = dcn.array_module.full(call.y.shape, 7.0)
    wrong = call.offset[:, 2:]
    with pytest.raises(ValueError, match="offset has"):
        plan(call.x, wrong, call.mask, out=out)
    call.offset, kept = wrong, call.offset
    with pytest.raises(ValueError, match="offset has"):
        call.forward(out=out)
    call.offset = kept
    assert (on_host(out) == 7).all()
    # Tiles before the failure are written, those after it are not.
    least = 4 * 1024 if dcn.on_device else None
    raised = MemoryError("half-way")
    with monkeypatch.context() as patch:
        patch.setattr(twin, "write_output", Failing(twin.write_output, raised, 2))
        with pytest.raises(MemoryError):
            call.forward(out=out, workspace_bytes=least)
    found = on_host(out)
    written = found != 7
    assert 0 < written.sum() < written.size
    np.testing.assert_allclose(found[written], call.y[written], rtol=1e-10, atol=1e-12)
    assert call.forward(out=out) is out
    assert_close(on_host(out), call.y, 1e-12)


class Blas:
    """A BLAS that remembers its number of threads, and may refuse to change it."""

    def __init__(self, refused=None):
        self.num_threads, self._refused = 4, refused

    def set_num_threads(self, count):
        if count == self._refused:
            raise OSError("refused")
        self.num_threads = count


def test_one_blas_that_cannot_be_held_or_let_go(monkeypatch):
    for refused in (1, 4):
        libraries, threads = [Blas(), Blas(refused), Blas()], _parallel._Threads()
        monkeypatch.setattr(_parallel, "_libraries", lambda found=libraries: found)

        def hold(threads=threads, libraries=libraries):
            taken = threads.take(2)
            assert [each.num_threads for each in libraries] == [1, 1, 1]
            threads.give_back(taken)

        with pytest.raises(OSError, match="refused"):
            hold()
        assert [each.num_threads for each in libraries] == [4, 4 if refused == 1 else 1, 4]
        libraries[1]._refused = None
        libraries[1].num_threads = 4
        hold()
        assert [each.num_threads for each in libraries] == [4, 4, 4]
