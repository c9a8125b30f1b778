"""The turns of the libraries: NumPy, emulated CuPy, and CuPy where there is a GPU."""

import pytest
from libraries import count_gpus, dcn, gpu_count, has_nvrtc, libraries

# All of these compile kernels. Without NVRTC the last line of a run says that none was emulated.
NEED_NVRTC = [
    "emulator",
    "test_emulated_cupy.py",
    "test_emulator.py",
    "test_gpu.py",
    "test_kernels.py",
    "test_stages_gpu.py",
]
collect_ignore = [] if has_nvrtc() else NEED_NVRTC


@pytest.fixture(scope="module", params=libraries())
def library(request):
    """Run a module's tests once with each library that can run here."""
    with dcn.running_on(request.param):
        yield dcn


def pytest_terminal_summary(terminalreporter):
    """Say what ran, so that a missing GPU, or one not seen, does not go unnoticed."""
    kinds = {"numpy": "NumPy", "emulated": "emulated CuPy", "cupy": "CuPy"}
    said = [f"ran on arrays of {', '.join(kinds[name] for name in libraries())}"]
    if "emulated" not in libraries():
        said.append("no NVRTC: no kernel was emulated")
    if not gpu_count():
        said.append(f"no kernel ran on a GPU ({count_gpus()[1]})")
    terminalreporter.write_line("; ".join(said))
