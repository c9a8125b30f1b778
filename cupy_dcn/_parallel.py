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


class _Threads:
    """The threads at work in all calls; while there are any, BLAS is held at one.

    A call is cut for as many as there are when nothing is at work. What it takes of them depends on
    what others have taken, and changes no bit: see ``spread``. Cut for two and with one to take, a
    forward or backward of x (2, 64, 56, 56) takes 1 to 2 % longer than cut for one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._busy = 0
        self._restoring = ExitStack()

    def total(self) -> int:
        """Return how many there are."""
        with self._lock:
            return self._total if self._busy else _blas_threads()

    def take(self, wanted: int) -> int:
        """Take as many of ``wanted`` as are free, but one at least."""
        with self._lock:
            if not self._busy:
                self._total = _blas_threads()
                with ExitStack() as restoring:  # at once if one of several can't be held
                    for library in _libraries():
                        restoring.callback(library.set_num_threads, library.num_threads or 1)
                        library.set_num_threads(1)
                    self._restoring = restoring.pop_all()
            taken = min(wanted, max(self._total - self._busy, 1))
            self._busy += taken
            return taken

    def give_back(self, taken: int) -> None:
        """Give back what was taken; the last to do so restores BLAS."""
        with self._lock:
            self._busy -= taken
            if not self._busy:
                self._restoring.close()


def _blas_threads() -> int:
    return max((library.num_threads or 1 for library in _libraries()), default=1)


_threads = _Threads()


def thread_count() -> int:
    """Return how many threads the tiles may use: BLAS's number, 1 where it can't be held back."""
    return _threads.total()


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

    They run on as many threads as no other call has, under the caller's ``numpy.errstate``. Which
    items make a part depends on the counts alone, never on timing, so sums over parts are the same
    bits from run to run.
    """
    count = max(min(len(workers), len(items)), 1)
    edges = [len(items) * part // count for part in range(count + 1)]
    parts = [map(items.__getitem__, range(*edge)) for edge in itertools.pairwise(edges)]
    threads = _threads.take(count)
    try:
        if threads == 1:
            return [work(*each) for each in zip(parts, workers, strict=False)]
        # NumPy 1 keeps them by thread, NumPy 2 in the context.
        errors = np.errstate(call=np.geterrcall(), **np.geterr())  # type: ignore[arg-type]
        with ThreadPoolExecutor(threads - 1, "cupy_dcn") as pool:
            others = [
                pool.submit(errors(work), part, worker)
                for part, worker in zip(parts[1:], workers[1:count], strict=True)
            ]
            return [work(parts[0], workers[0]), *(other.result() for other in others)]
    finally:
        _threads.give_back(threads)
