"""The BLAS behind NumPy: asking and setting its number of threads.

The OpenBLAS of NumPy's own wheels is found by ctypes, two functions of it, so that an installation
of NumPy and SciPy alone uses all cores. Any other BLAS takes threadpoolctl.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Protocol


class BlasLibrary(Protocol):
    """One loaded BLAS; threadpoolctl's controllers are such."""

    @property
    def num_threads(self) -> int | None:
        """How many threads it uses, None if it can't tell."""

    def set_num_threads(self, num_threads: int) -> object:
        """Set how many threads it uses."""


def blas_libraries() -> Sequence[BlasLibrary]:
    """Return the BLAS libraries that can be held back, none where that is not known."""
    openblas = _numpys_openblas()
    if openblas:  # threadpoolctl's limit of an OpenBLAS differs from thread to thread
        return openblas
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    libraries: Sequence[BlasLibrary] = (
        ThreadpoolController().select(user_api="blas").lib_controllers
    )
    return libraries


class _OpenBlas:
    """An OpenBLAS as its two functions."""

    def __init__(self, get: Callable[[], int], set_: Callable[[int], object]) -> None:
        self._get, self._set = get, set_

    @property
    def num_threads(self) -> int | None:
        return self._get()

    def set_num_threads(self, num_threads: int) -> object:
        return self._set(num_threads)


def _numpys_openblas() -> list[_OpenBlas]:
    """Find OpenBLAS among what NumPy's extension module is linked with."""
    names = "numpy._core._multiarray_umath", "numpy.core._multiarray_umath"  # NumPy 2, NumPy 1
    module = next((sys.modules[name] for name in names if name in sys.modules), None)
    try:
        library = ctypes.CDLL(getattr(module, "__file__", None) or "")
    except OSError:
        return []
    for prefix, suffix in itertools.product(("scipy_", ""), ("64_", "_64", "")):
        try:
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
            return [_OpenBlas(get, getattr(library, f"{prefix}openblas_set_num_threads{suffix}"))]
        except AttributeError:
            continue
    return []
