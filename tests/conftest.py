"""The turns of the libraries: NumPy, emulated CuPy, and CuPy where there is a GPU."""

import pytest
from libraries import dcn, gpu_count, libraries


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
        said.append("no GPU found: no kernel ran on a device")
    terminalreporter.write_line("; ".join(said))
