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
    ran = " and ".join(libraries())
    gpus = f"{gpu_count()} GPU" if gpu_count() else "no GPU found: kernels ran in the emulator only"
    terminalreporter.write_line(f"arrays of {ran} ({gpus})")
