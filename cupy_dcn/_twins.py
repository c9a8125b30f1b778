"""Which twin works on an array: NumPy's, Numba's or CuPy's. The modules have the same names."""

from __future__ import annotations

import functools
import os
from types import ModuleType

import numpy as np

from ._arrays import Array
from ._progress import logger


def twin_of(array: Array) -> ModuleType:
    """Return the twin of an array's library; Numba's and the GPU's are imported when needed."""
    if isinstance(array, np.ndarray):
        return _on_host()
    from . import _gpu

    return _gpu


@functools.cache
def _on_host() -> ModuleType:
    """Return the twin for NumPy arrays: compiled loops where there is Numba."""
    reason = why_not_numba()
    logger.debug("NumPy arrays: by %s", "Numba" if reason is None else f"NumPy; Numba {reason}")
    if reason is None:
        from . import _numba

        return _numba
    from . import _cpu

    return _cpu


@functools.cache
def why_not_numba() -> str | None:
    """Say why NumPy arrays are not worked on by Numba; None where they are."""
    if os.environ.get("CUPY_DCN_NUMBA") == "0":
        return "not used: CUPY_DCN_NUMBA=0"
    try:
        from . import _numba  # noqa: F401
    except ImportError as error:  # also of a Numba that does not know this NumPy
        return " ".join(f"not usable: {error}".split())
    return None
