"""Progress: a bar of tqdm's shape, moved by the caller's thread; and a logger that is silent."""

import io
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import least_workspace
from libraries import dcn
from test_concurrency import Call, Failing, cut_in_many, on_host, surroundings
from tqdm import tqdm

import cupy_dcn
from cupy_dcn import _kernels, _progress
from cupy_dcn._twins import twin_of

__all__ = ["cut_in_many"]  # a fixture
FORWARD, BACKWARD = "deform_conv2d", "deform_conv2d_backward"


class Recorder:
    """A bar that keeps what it was told."""

    def __init__(self, fails_at=None, error=None):
        self.made, self.threads, self.taken, self.closed = [], set(), [], 0
        self._fails_at, self._error = fails_at, error

    def __call__(self, iterable, **settings):
        self.made.append(settings)
        return self._steps(iterable)

    def _steps(self, iterable):
        try:
            for item in iterable:
                self.threads.add(threading.get_ident())
                self.taken.append(item)
                if item == self._fails_at:
                    raise self._error
                yield item
        finally:
            self.closed += 1


def runs(call, **more):
    """Return what goes through tiles, by the name that a bar has."""
    plan = call.plan()
    inputs = call.x, call.offset, call.mask
    arrays = call.x, call.offset, call.weight, call.bias
    from test_concurrency import LAYER

    settings = {"mask": call.mask, **LAYER.attributes, **more}
    return [
        (FORWARD, lambda **bar: cupy_dcn.deform_conv2d(*arrays, **settings, **bar)),
        (BACKWARD, lambda **bar: cupy_dcn.deform_conv2d_backward(
            call.grad_output, *arrays, **settings, **bar)),
        (FORWARD, lambda **bar: plan(*inputs, **bar)),
        (BACKWARD, lambda **bar: plan.backward(call.grad_output, *inputs, **bar)),
    ]  # fmt: skip


def test_one_bar_goes_through_all_tiles_in_the_callers_thread(library, cut_in_many):
    call = Call()
    for name, run in runs(call):
        seen, plain = Recorder(), run()
        watched = run(progress=seen)
        ((settings, total),) = [(each, each["total"]) for each in seen.made]
        assert settings == {"total": total, "desc": name, "unit": "tile"}
        assert seen.taken == list(range(total))
        assert dcn.on_device or total > 3
        assert seen.threads == {threading.get_ident()}
        assert seen.closed == 1
        for ours, theirs in zip(watched, plain, strict=True):
            if not dcn.on_device:  # whose sums are in no fixed order
                np.testing.assert_array_equal(on_host(ours), on_host(theirs))


def test_every_step_is_told_by_the_work(library, monkeypatch):
    """On one thread nothing is left to tell at the end, with windows and their gathering too."""
    monkeypatch.setattr("cupy_dcn._cpu.thread_count", lambda: 1)
    left, finish = [], _progress._Bar.finish

    def finish_and_note(bar):
        left.append((bar._total, bar._total - bar._told))
        finish(bar)

    monkeypatch.setattr(_progress._Bar, "finish", finish_and_note)
    call = Call()
    for name, run in runs(call)[:2]:
        least = least_workspace(run)
        for budget in (16 * least, 8 * least) if dcn.on_device else (None, 4 * least, least):
            dict(runs(call, workspace_bytes=budget)[:2])[name](progress=Recorder())
    assert len(left) == (4 if dcn.on_device else 6)
    assert all(more == 0 for _, more in left), left
    assert max(total for total, _ in left) > 3


def test_tqdm_and_less_than_tqdm(host, cut_in_many):
    call, text = Call(), io.StringIO()
    run = dict(runs(call))[FORWARD]
    expected = run()
    for progress in (
        lambda iterable, **settings: tqdm(iterable, file=text, mininterval=0, **settings),
        lambda iterable, **settings: iterable,
        lambda iterable, **settings: [],
    ):
        np.testing.assert_array_equal(run(progress=progress), expected)
    assert "deform_conv2d: 100%" in text.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_bar_that_raises(library, cut_in_many, error):
    call = Call()
    for _, run in runs(call):
        raised, before = error("enough"), surroundings()
        seen = Recorder(fails_at=0 if dcn.on_device else 1, error=raised)
        with pytest.raises(error) as found:
            run(progress=seen)
        assert found.value is raised
        assert seen.closed == 1
        assert surroundings() == before
    call.assert_right(call.forward(), call.backward())


def test_the_bar_of_a_call_that_fails_is_closed(library, cut_in_many, monkeypatch):
    call, twin = Call(), twin_of(Call().x)
    for name, stage in ((FORWARD, "write_output"), (BACKWARD, "add_grad_weight")):
        run, seen = dict(runs(call)[:2])[name], Recorder()
        with monkeypatch.context() as patch:
            patch.setattr(twin, stage, Failing(getattr(twin, stage), MemoryError("half-way")))
            with pytest.raises(MemoryError):
                run(progress=seen)
        assert seen.closed == 1
        assert len(seen.taken) <= seen.made[0]["total"]


def test_what_is_no_callable_is_told_before_any_work(host):
    call = Call()
    for _, run in runs(call):
        with pytest.raises(TypeError, match=r"progress must be a callable like tqdm\.tqdm, got 5"):
            run(progress=5)


# The logger


def test_the_logger_is_silent():
    code = "import cupy_dcn, logging; logging.getLogger('cupy_dcn').warning('something')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_the_logger_tells_how_a_call_is_worked_on(library, caplog, monkeypatch):
    call = Call()
    call.forward()
    assert not caplog.messages
    monkeypatch.setattr(_kernels, "_compiled", {})
    with caplog.at_level(logging.DEBUG, "cupy_dcn"):
        call.forward()
        call.backward()
    told = [text for text in caplog.messages if text.startswith("deform_conv2d")]
    assert len(told) == 2
    assert told[0].startswith("deform_conv2d of x (2, 4, 9, 8), kernel 3x2: ")
    assert " tiles of at most " in told[1]
    loaded = [text for text in caplog.messages if " loaded in " in text]
    assert len(loaded) == len(_kernels.compiled())
    assert bool(loaded) == dcn.on_device


def test_the_logger_tells_which_twin_works_on_numpy_arrays():
    code = """
import logging, numpy as np, cupy_dcn
logging.basicConfig(level=logging.DEBUG)
x, offset, weight = (np.zeros(shape) for shape in ((1, 1, 3, 3), (1, 2, 3, 3), (1, 1, 1, 1)))
cupy_dcn.deform_conv2d(x, offset, weight)
"""
    settings = {**os.environ, "CUPY_DCN_NUMBA": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings
    )
    said = "DEBUG:cupy_dcn:NumPy arrays: by NumPy; Numba not used: CUPY_DCN_NUMBA=0"
    assert run.stderr.splitlines()[0] == said
