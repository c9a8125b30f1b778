"""What the benchmarks print: the machine they ran on, progress, tables."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cupy_dcn

FORCING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # which kernels OpenBLAS runs, and how
BUSY = 0.5  # programs running besides, by the load average of the last minute


def describe_machine(packages):
    """Return the processor, its cores, the versions and the kernels that NumPy's BLAS runs."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}, usable {usable}",
        "python": platform.python_version(),
        "cupy_dcn": cupy_dcn.__version__,
        **{package: _version(package) for package in packages},
        "NumPy's BLAS": _blas(),
    }


def warnings():
    """Return what makes figures taken here and now hard to compare."""
    found = [
        f"{name}={os.environ[name]} overrides what OpenBLAS would choose for this processor: unset"
        " it for figures to compare"
        for name in FORCING
        if name in os.environ
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        found.append(
            f"the cores were busy at the start (load average {load:.1f}): figures at several"
            " threads need an idle machine"
        )
    return found


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _blas():
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    of_numpy = [library for library in libraries if "numpy" in Path(library["filepath"]).parts[-2]]
    return ", ".join(
        f"{library['internal_api']} {library['version']}, {library.get('architecture')} kernels"
        for library in of_numpy or libraries
    )


def progress(text):
    """Say on the standard error stream what goes on."""
    print(text, file=sys.stderr, flush=True)


def print_table(title, header, rows):
    """Print a table: numbers to the right with their decimals, text to the left."""
    texts = [[f"{value:.2f}" if _is_number(value) else value for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    aligned = [">" if _is_number(value) else "<" for value in rows[0]]
    print(f"\n{title}")
    for line in (header, *texts):
        cells = zip(line, aligned, widths, strict=True)
        print("  " + "  ".join(f"{text:{side}{width}}" for text, side, width in cells).rstrip())


def _is_number(value):
    return isinstance(value, float)
