"""Which twin works on an array: NumPy's or CuPy's. The two modules have the same names."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ._arrays import Array


def twin_of(array: Array) -> ModuleType:
    """Return the twin of an array's library; the GPU's is imported when first needed."""
    if isinstance(array, np.ndarray):
        from . import _cpu

        return _cpu
    from . import _gpu

    return _gpu
