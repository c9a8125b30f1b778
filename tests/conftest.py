"""The turns of the libraries: NumPy by both twins, emulated CuPy, and CuPy on a GPU."""

import pytest
from libraries import count_gpus, dcn, gpu_count, has_numba, has_nvrtc, hosts, numba_twin, twins

# All of these compile kernels. Without NVRTC the last line of a run says that none was emulated.
NEED_NVRTC = [
    "emulator",
    "test_build_kernels.py",
    "test_chunk_gpu.py",
    "test_counters.py",
    "test_derivatives_gpu.py",
    "test_emulated_cupy.py",
    "test_emulator.py",
    "test_far_gpu.py",
    "test_gpu.py",
    "test_kernels.py",
    "test_launch_kernels.py",
    "test_memory_gpu.py",
    "test_stages_gpu.py",
]
collect_ignore = [] if has_nvrtc() else NEED_NVRTC


def pytest_addoption(parser):
    """Let all faults be planted in the kernels: each takes seconds, and there are hundreds."""
    parser.addoption(
        "--every-fault", action="store_true", help="plant every fault, not each tenth (test_gpu.py)"
    )


@pytest.fixture(scope="module", params=twins())
def library(request):
    """Run a module's tests once with each library that can run here."""
    with dcn.running_on(request.param):
        yield dcn


@pytest.fixture(scope="module", params=hosts())
def host(request):
    """Run a module's tests on NumPy arrays once with each of their twins."""
    with dcn.running_on(request.param):
        yield request.param


def pytest_terminal_summary(terminalreporter):
    """Say what ran, so that a missing GPU, or one not seen, does not go unnoticed."""
    kinds = {
        "numpy": "NumPy", "numba": "NumPy by Numba", "emulated": "emulated CuPy", "cupy": "CuPy"
    }  # fmt: skip
    said = [f"ran on arrays of {', '.join(kinds[name] for name in twins())}"]
    if not has_numba():
        said.append(f"no Numba: no loop was compiled ({numba_twin()})")
    if "emulated" not in twins():
        said.append("no NVRTC: no kernel was emulated")
    if not gpu_count():
        said.append(f"no kernel ran on a GPU ({count_gpus()[1]})")
    terminalreporter.write_line("; ".join(said))
