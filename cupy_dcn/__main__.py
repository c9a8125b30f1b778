"""The command line: ``python -m cupy_dcn info | selftest | warmup | build-kernels | demo``."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from . import diagnostics, warmup
from ._options import parser
from ._specialisation import Macros
from ._warmup import INDEX, kernels_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 for what failed."""
    options = parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()  # so that a pipe that is closed is noticed here
    except BrokenPipeError:
        # Who read has had enough, as `| head` has. What is left must not fail at the exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        print(f"cupy_dcn: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what a shell reports for Ctrl-C
    return status


def _run(options: argparse.Namespace) -> int:
    if options.command == "info":
        print("```text")  # what keeps its lines apart on a page of Markdown
        diagnostics.info()
        print("```")
    elif options.command == "selftest":
        return 0 if diagnostics.selftest() else 1
    elif options.command == "warmup":
        _warmup(options)
    elif options.command == "build-kernels":
        _build_kernels(options)
    else:
        from .demo import demo  # SciPy's image functions take a moment to import

        demo(options.image, options.output, animation=options.animation)
    return 0


def _layers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the arguments of every combination of channels, kernel size and dtype."""
    names = (
        "out_channels", "groups", "deformable_groups", "offset_dtype", "mask_dtype", "mask",
        "backward", "deterministic",
    )  # fmt: skip
    for channels, kernel, dtype in itertools.product(
        options.channels, options.kernel_size, options.dtype
    ):
        yield {
            "channels": channels,
            "kernel_size": kernel,
            "dtype": dtype,
            **{name: getattr(options, name) for name in names},
        }


def _name_of(layer: dict[str, Any]) -> str:
    height, width = layer["kernel_size"]
    return f"{layer['channels']} channels, {height}x{width}, {layer['dtype']}"


def _warmup(options: argparse.Namespace) -> None:
    """Compile the kernels of every layer; a line each."""
    for layer in _layers(options):
        start = perf_counter()
        count = warmup(**layer)
        seconds = perf_counter() - start
        print(f"{_name_of(layer)}: {count} kernels loaded in {seconds:.1f} s", flush=True)


def _build_kernels(options: argparse.Namespace) -> None:
    """Write the kernels of every layer to a folder; a line for each file."""
    from ._build_kernels import build_kernels

    folder = Path(options.out)
    for name in build_kernels(_kernels_of(options), options.arch, folder):
        print(folder / name, flush=True)


def _kernels_of(options: argparse.Namespace) -> list[tuple[str, Macros]]:
    """Return the names and macros of the kernels of every layer."""
    index = np.dtype(np.int64) if options.wide else INDEX
    return [kernel for layer in _layers(options) for kernel in kernels_of(**layer, index=index)]


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
