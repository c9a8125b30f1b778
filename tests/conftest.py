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
    missing = []
    if "emulated" not in libraries():
        missing.append("no NVRTC: no kernel was emulated")
    if not gpu_count():
        missing.append("no GPU found: none ran on a device")
    ran = f"arrays of {', '.join(libraries())}"
    terminalreporter.write_line("; ".join([ran, *missing]))
