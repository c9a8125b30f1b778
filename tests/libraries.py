"""The library's functions on NumPy arrays by either twin, on emulated CuPy arrays, on a GPU's.

Tests are written for NumPy arrays and call ``dcn``. It moves them to the library whose turn it is,
with their memory layout, and the results back. `library` in conftest.py goes through the turns.
"""

import contextlib
import functools
from unittest import mock

import numpy as np
import pytest

import cupy_dcn
from cupy_dcn import _cpu, _twins


@functools.cache
def count_gpus():
    """Return how many GPUs the real CuPy sees, and why it sees none."""
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount(), "CuPy counts none"
    except Exception as error:  # CuPy's own where there is no driver, an ImportError without CuPy
        return 0, " ".join(f"{type(error).__name__}: {error}".split())


def gpu_count():
    """Return how many GPUs the real CuPy sees, 0 without CuPy, driver or device."""
    return count_gpus()[0]


@functools.cache
def has_nvrtc():
    """Tell whether the kernels can be compiled, and so emulated."""
    from emulator import NvrtcMissing, nvrtc

    try:
        nvrtc.version()
    except NvrtcMissing:
        return False
    return True


def libraries():
    """Return what can run here."""
    return ("numpy", *["emulated"] * has_nvrtc(), *["cupy"] * (gpu_count() > 0))


@functools.cache
def numba_twin():
    """Return the twin of compiled loops, or the ImportError that says why there is none."""
    try:
        from cupy_dcn import _numba
    except ImportError as error:
        return error
    return _numba


def has_numba():
    """Tell whether Numba's twin can run."""
    return not isinstance(numba_twin(), ImportError)


def hosts():
    """Return the names of the twins for NumPy arrays that can run here."""
    return ("numpy", *["numba"] * has_numba())


def twins():
    """Return the names of all twins that can run here."""
    return (*hosts(), *libraries()[1:])


def cupy_has_bfloat16():
    """Tell whether CuPy has arrays of bfloat16: not beside NumPy before 2.1.2."""
    from emulated_cupy import _dtypes

    return _dtypes.HAS_BFLOAT16


class Functions:
    """cupy_dcn's functions, for NumPy arrays in and out whatever library computes."""

    def __init__(self):
        self.name, self._cupy = "numpy", None

    @property
    def on_device(self):
        """Tell whether arrays are CuPy's, emulated or real."""
        return self.name not in ("numpy", "numba")

    @property
    def array_module(self):
        """The library whose turn it is: numpy, the stand-in or CuPy."""
        return np if self._cupy is None else self._cupy

    @contextlib.contextmanager
    def running_on(self, name):
        """Compute with another library for a while, NumPy's arrays with the twin of that name."""
        before = self.name, self._cupy
        with contextlib.ExitStack() as stack:
            cupy = None
            host = {"numpy": _cpu, "numba": numba_twin()}.get(name)
            if host is not None:
                stack.enter_context(mock.patch.object(_twins, "_on_host", return_value=host))
            if name == "emulated":
                import emulated_cupy

                cupy = stack.enter_context(emulated_cupy.install())
            elif name == "cupy":
                import cupy
            self.name, self._cupy = name, cupy
            try:
                yield self
            finally:
                self.name, self._cupy = before

    def __getattr__(self, function):
        return functools.partial(self._call, getattr(cupy_dcn, function))

    def _call(self, function, *args, **kwargs):
        if not self.on_device:
            return function(*args, **kwargs)
        moved = {}
        args = [self._moved(value, moved) for value in args]
        kwargs = {name: self._moved(value, moved) for name, value in kwargs.items()}
        result = function(*args, **kwargs)
        if isinstance(kwargs.get("out"), self._cupy.ndarray):
            assert result is kwargs["out"]
            out = moved[id(result)]
            out[...] = self._cupy.asnumpy(result)
            return out
        return self._returned(result)

    def _moved(self, value, moved):
        if hasattr(value, "_fields"):  # a direction
            return type(value)(*(self._moved(each, moved) for each in value))
        if not isinstance(value, np.ndarray):
            return value
        array = self.to_device(value)
        moved[id(array)] = value
        return array

    def _returned(self, result):
        if isinstance(result, tuple):
            values = [self._returned(value) for value in result]
            return type(result)(*values) if hasattr(result, "_fields") else tuple(values)
        assert result is None or isinstance(result, self._cupy.ndarray)
        return None if result is None else self._cupy.asnumpy(result)

    def to_device(self, array):
        """Copy a NumPy array, keeping its strides: a view stays a view of as much memory."""
        cupy = self._cupy
        if array.dtype.name == "bfloat16" and not cupy_has_bfloat16():
            pytest.skip("CuPy leaves bfloat16 out beside this release of NumPy")
        whole = not any(step % array.itemsize for step in array.strides)
        if array.flags.c_contiguous or array.size == 0 or not whole:  # none on a GPU
            return cupy.asarray(array)
        steps = [s * (n - 1) for s, n in zip(array.strides, array.shape, strict=True)]
        before, after = -sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
        memory = cupy.zeros(before + after + array.itemsize, np.uint8)
        view = cupy.ndarray(array.shape, array.dtype, memory.data + before, array.strides)
        # One element at a time where a step of 0 repeats it, else CuPy would write it twice.
        index = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
        view[index] = cupy.asarray(np.ascontiguousarray(array[index]))
        return view


dcn = Functions()
