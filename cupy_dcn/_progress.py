"""How far a call is, told to a bar of tqdm's shape; and the library's logger.

The tiles are shared out between threads, but the bar is called by the caller's thread alone, each
time it has finished a tile itself: bars are drawn by widgets and terminals that want one thread,
and what a bar raises, an interrupt included, comes out of the call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ._attributes import came
from ._cut import Cut

logger = logging.getLogger("cupy_dcn")
logger.addHandler(logging.NullHandler())

Progress = Callable[..., Iterable[Any]]
Watch = Callable[[Iterable[Any]], Iterable[Any]]


def check_progress(progress: object) -> None:
    """Demand None or a callable."""
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress must be a callable like tqdm.tqdm, got {came(progress)};"
            " it is called as progress(iterable, total=..., desc=..., unit=...)"
        )


def reported(
    progress: Progress | None, name: str, count: Callable[[], int]
) -> AbstractContextManager[Watch]:
    """Lend what a loop over tiles is wrapped in, so that ``progress`` hears of each."""
    return _SILENT if progress is None else _Bar(progress, name, count())


_SILENT: AbstractContextManager[Watch] = nullcontext(iter)


class _Bar:
    """A bar made from a loop, here moved on by hand."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._total, self._done, self._told = total, 0, 0
        self._caller, self._lock = threading.get_ident(), threading.Lock()
        self._steps = iter(progress(range(total), total=total, desc=name, unit="tile"))
        next(self._steps, None)  # the first step begins

    def __enter__(self) -> Watch:
        return self.watch

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def watch(self, items: Iterable[Any]) -> Iterator[Any]:
        """Count each item when the loop comes back for the next."""
        for item in items:
            yield item
            with self._lock:
                self._done += 1
            if threading.get_ident() == self._caller:
                self._tell(self._done)

    def finish(self) -> None:
        """Tell what other threads have done since."""
        self._tell(self._total)

    def close(self) -> None:
        """End the loop where it is, as leaving it would: tqdm closes its bar then."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()

    def _tell(self, done: int) -> None:
        while self._told < done:
            self._told += 1
            next(self._steps, None)


def log_cut(name: str, cut: Cut, nbytes: int) -> None:
    """Say how a call is worked on."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    geometry = cut.geometry
    way = "columns" if cut.holds_whole else "columns, through windows of x"
    if cut.direct:
        way = "directly, without columns"
    elif cut.sorts_here:
        way = "columns, sampling points sorted"
    shape = geometry.images, geometry.channels, geometry.height, geometry.width
    logger.debug(
        "%s of x %s, kernel %dx%d: %s; %d tiles of at most %d pixels, %d workers, %d bytes",
        name, shape, geometry.kernel_height, geometry.kernel_width, way, cut.tile_count,
        cut.tile_pixels, cut.workers, nbytes,
    )  # fmt: skip
