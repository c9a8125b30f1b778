"""Tiles on threads. NumPy's loops, BLAS and SciPy's sparse products all release the GIL.

BLAS threads under threads of ours fight for the cores (2 to 4 times slower; 5 times where another
program has a core, since they spin), so BLAS is held at one thread meanwhile. Its own number of
threads says how many ours are: OMP_NUM_THREADS and the like mean what they always do.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol, TypeVar

import numpy as np

from ._blas import blas_libraries

Item = TypeVar("Item", covariant=True)
Worker = TypeVar("Worker")
Result = TypeVar("Result")

_libraries = functools.cache(blas_libraries)


def thread_count() -> int:
    """Return how many threads the tiles may use: BLAS's number, 1 where it can't be held back."""
    return max((library.num_threads or 1 for library in _libraries()), default=1)


class _BlasHeld:
    """BLAS at one thread while any call is inside; the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restoring = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                with ExitStack() as restoring:  # at once if one of several can't be held
                    for library in _libraries():
                        restoring.callback(library.set_num_threads, library.num_threads or 1)
                        library.set_num_threads(1)
                    self._restoring = restoring.pop_all()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restoring.close()


_blas_held = _BlasHeld()


class Items(Protocol[Item]):
    """What ``spread`` needs of a sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def spread(
    work: Callable[[Iterable[Item], Worker], Result],
    items: Items[Item],
    workers: Sequence[Worker],
) -> list[Result]:
    """Return ``[work(part, worker), ...]``: a contiguous part of the items a worker.

    A worker is what the work needs for itself, such as a workspace.

    Each runs on a thread of its own, under the caller's ``numpy.errstate``. Which items make a part
    depends on the counts alone, never on timing, so sums over parts are the same bits from run to
    run.
    """
    count = max(min(len(workers), len(items)), 1)
    edges = [len(items) * part // count for part in range(count + 1)]
    parts = [map(items.__getitem__, range(*edge)) for edge in itertools.pairwise(edges)]
    if count == 1:
        with _blas_held:
            return [work(parts[0], workers[0])]
    # NumPy 1 keeps them by thread, NumPy 2 in the context.
    errors = np.errstate(call=np.geterrcall(), **np.geterr())  # type: ignore[arg-type]
    with _blas_held, ThreadPoolExecutor(count - 1, "cupy_dcn") as pool:
        others = [
            pool.submit(errors(work), part, worker)
            for part, worker in zip(parts[1:], workers[1:count], strict=True)
        ]
        return [work(parts[0], workers[0]), *(other.result() for other in others)]
