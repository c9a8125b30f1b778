"""Run the tests of the kernels under NVIDIA's compute-sanitizer: `make sanitize`.

On a machine with a GPU: the tests on CuPy's arrays, once under each tool. CuPy's memory pool is
left out, so that every array is an allocation of its own, with an end that can be overrun. Without
a GPU the emulator's checks take its place, on emulated arrays: accesses out of bounds, reads of
what nobody wrote, races and barriers that not all threads reach. The exit status is 1 where
anything was found, or nothing could be run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from libraries import count_gpus, has_nvrtc

TESTS = Path(__file__).parent
TOOLS = "memcheck", "racecheck", "initcheck", "synccheck"
FILES = [str(TESTS / f"test_{name}.py") for name in ("operator", "stages", "dtypes", "stages_gpu")]
FOUND = 86  # the exit status where a tool has found something: none of pytest's


def sanitizer():
    """Return the path of compute-sanitizer, None where there is none."""
    toolkit = Path(os.environ.get("CUDA_PATH") or "/usr/local/cuda", "bin")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=toolkit)


def pytest_on(library, *more):
    """Return a command that runs the tests on the arrays of one library."""
    chosen = f"[{library} or -{library}"
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *more, *FILES]


def run(command):
    """Run a command; return its exit status."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    return subprocess.run(command, env=environment, check=False).returncode


def main(arguments):
    """Run what this machine can run, with more arguments for pytest; return the exit status."""
    gpus, reason = count_gpus()
    if not gpus:
        if not has_nvrtc():
            print(f"nothing was checked: there is no GPU ({reason}), and no NVRTC to emulate one")
            return 1
        print(f"compute-sanitizer is not run: {reason}; the emulator checks the kernels instead")
        return int(run(pytest_on("emulated", "-n", "auto", *arguments)) != 0)
    path = sanitizer()
    if path is None:
        print("nothing was checked: there is a GPU, but no compute-sanitizer on PATH or CUDA_PATH")
        return 1
    statuses = {}
    for tool in TOOLS:
        watched = [
            path,
            "--tool",
            tool,
            "--error-exitcode",
            str(FOUND),
            "--target-processes",
            "all",
        ]
        statuses[tool] = run([*watched, *pytest_on("cupy", "-p", "no_pool", *arguments)])
    for tool, status in statuses.items():
        said = {0: "nothing found", FOUND: "FOUND something"}.get(
            status, f"FAILED: status {status}"
        )
        print(f"{tool}: {said}")
    return int(any(statuses.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
