"""Tiles on threads. NumPy's loops, BLAS and SciPy's sparse products all release the GIL.

BLAS threads under threads of ours fight for the cores (2 to 4 times slower), so ours run only
where threadpoolctl is installed to hold BLAS at one thread meanwhile; BLAS's own number of
threads says how many ours are, so OMP_NUM_THREADS and the like mean what they always do.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from ._workspace import Workspace

Item = TypeVar("Item", covariant=True)
Result = TypeVar("Result")


@functools.cache
def _controller() -> Any:
    """Return the control of the loaded BLAS libraries, None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    controller = ThreadpoolController().select(user_api="blas")
    return controller if controller.lib_controllers else None


def thread_count() -> int:
    """Return how many threads the tiles may use: BLAS's number, 1 where it can't be held back."""
    controller = _controller()
    if controller is None:
        return 1
    return max(library.num_threads or 1 for library in controller.lib_controllers)


class _BlasHeld:
    """BLAS at one thread while any call is inside; the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._limit = _controller().limit(limits=1)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._limit.restore_original_limits()


_blas_held = _BlasHeld()


class Items(Protocol[Item]):
    """What ``spread`` needs of a sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def spread(
    work: Callable[[Iterable[Item], Workspace], Result],
    items: Items[Item],
    workspaces: Sequence[Workspace],
) -> list[Result]:
    """Return ``[work(part, workspace), ...]``: a contiguous part of the items a workspace.

    Each runs on a thread of its own, in the caller's context (``numpy.errstate``). Which items
    make a part depends on the counts alone, never on timing, so sums over parts are the same bits
    from run to run.
    """
    workers = max(min(len(workspaces), len(items)), 1)
    edges = [len(items) * part // workers for part in range(workers + 1)]
    parts = [map(items.__getitem__, range(*edge)) for edge in itertools.pairwise(edges)]
    if workers == 1:
        return [work(parts[0], workspaces[0])]
    with _blas_held(), ThreadPoolExecutor(workers - 1, "cupy_dcn") as pool:
        others = [
            pool.submit(contextvars.copy_context().run, work, part, workspace)
            for part, workspace in zip(parts[1:], workspaces[1:workers], strict=True)
        ]
        return [work(parts[0], workspaces[0]), *(other.result() for other in others)]
