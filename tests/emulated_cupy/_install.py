"""Putting the stand-in under CuPy's names, and taking it out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ._namespace import cupy_module, modules

_ROOTS = ("cupy", "cupy_backends", "cupyx")


@contextmanager
def install() -> Iterator[ModuleType]:
    """Make ``import cupy`` give the stand-in for a block of code, with or without a real CuPy."""
    before = {name: module for name, module in sys.modules.items() if _is_cupys(name)}
    _replace(before, modules())
    # The real cupyx would import, and break on what the stand-in lacks.
    sys.modules["cupyx"] = None
    try:
        yield cupy_module()
    finally:
        now = {name: module for name, module in sys.modules.items() if _is_cupys(name)}
        _replace(now, before)


def _is_cupys(name: str) -> bool:
    return name.partition(".")[0] in _ROOTS


def _replace(old: dict[str, ModuleType], new: dict[str, ModuleType]) -> None:
    for name in old:
        del sys.modules[name]
    sys.modules.update(new)
