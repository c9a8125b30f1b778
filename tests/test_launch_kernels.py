"""The C++ example with kernels built ahead: compiled, and run on the emulator by a driver of ours.

Compiled by nvcc where there is one, else by the host's compiler with CUDA's headers. What the
program asks of the driver is answered here; its kernels are the PTX of the folder.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulator import nvrtc

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # behind tests/

import kernels  # noqa: E402

EXAMPLE = ROOT / "examples" / "launch_kernels.cpp"
WARNINGS = ("-Wall", "-Wextra", "-Werror")

pytestmark = [
    pytest.mark.skipif(kernels.nvrtc is None, reason="CuPy has no NVRTC to compile with"),
    pytest.mark.skipif(os.name != "posix", reason="the driver of the test needs pipes"),
]


def compilers():
    """Return the command of each compiler here that finds the driver's header."""
    found = []
    if nvcc := shutil.which("nvcc"):
        found.append([nvcc, "-std=c++17", "-Xcompiler", ",".join(WARNINGS)])
    folders = [each for each in nvrtc.include_folders() if Path(each, "cuda.h").is_file()]
    host = shutil.which("g++") or shutil.which("clang++")
    if host and folders:
        found.append([host, "-std=c++17", *WARNINGS, f"-isystem{folders[0]}"])
    return found


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Make libcuda.so."""
    if not compilers():
        pytest.skip("no C++ compiler, or no cuda.h: nvcc, or g++ and nvidia-cuda-runtime")
    folder = tmp_path_factory.mktemp("driver")
    host = compilers()[-1]
    shared = ["-Xcompiler", "-fPIC"] if "nvcc" in Path(host[0]).name else ["-fPIC"]
    run(*host, "-shared", *shared, ROOT / "tests/driver.cpp", "-o", folder / "libcuda.so")
    return folder


@pytest.fixture(scope="module", params=range(2), ids=["first compiler", "second compiler"])
def example(request, driver, tmp_path_factory):
    """Build kernels, and the example for them; a layer each for the compilers that there are.

    A thread is alone with a sampling point in one of them, and its columns are planes.
    """
    layer = ("12 --deformable-groups 2", "4 --groups 2 --kernel-size 2x3 --no-mask")[request.param]
    folder = tmp_path_factory.mktemp("example")
    line = f"build-kernels --arch sm_80,sm_90 --no-backward --channels {layer} --out {folder}"
    run(sys.executable, "-m", "cupy_dcn", *line.split())  # by CuPy: its stand-in may be here
    compiler = compilers()[request.param % len(compilers())]
    run(*compiler, f"-I{folder}", EXAMPLE, f"-L{driver}", "-lcuda", "-o", folder / "launch")
    return folder


class Driver:
    """What answers a program's calls."""

    def __init__(self, capability, requests, answers):
        self.capability, self.requests, self.answers = capability, requests, answers
        self.memory = emulator.Memory()
        self.modules, self.functions, self.loaded, self.launches = [], [], [], []
        self.live = set()

    def serve(self):
        for line in self.requests:
            name, *arguments = line.decode().rstrip("\n").split(" ", 1)
            getattr(self, name)(*arguments)
            self.answers.flush()

    def answer(self, *numbers):
        self.answers.write("".join(f"{number}\n" for number in numbers).encode())

    def attribute(self, which):
        major, minor = divmod(self.capability, 10)
        self.answer({"75": major, "76": minor}[which])

    def load(self, path):
        self.loaded.append(Path(path).name)
        if path.endswith(".ptx"):
            self.modules.append(emulator.Module(Path(path).read_text()))
        self.answer(len(self.modules) if path.endswith(".ptx") else 0)

    def function(self, text):
        module, name = text.split()
        module = self.modules[int(module) - 1]
        sizes = [size for _, size, _ in module.kernels[name].parameters]
        self.functions.append((module, name, sizes))
        self.answer(len(sizes), len(self.functions) - 1, *sizes)

    def allocate(self, nbytes):
        self.live.add(address := self.memory.allocate(int(nbytes)))
        self.answer(address)

    def free(self, address):
        self.memory.free(int(address))
        self.live.remove(int(address))
        self.answer(1)

    def write(self, text):
        address, nbytes = map(int, text.split())
        content = np.frombuffer(self.requests.read(nbytes), np.uint8)
        self.memory.data(address, nbytes)[:] = content
        self.memory.written(address, nbytes)[:] = True
        self.answer(1)

    def read(self, text):
        address, nbytes = map(int, text.split())
        assert self.memory.written(address, nbytes).all()
        self.answers.write(self.memory.data(address, nbytes).tobytes())

    def launch(self, text):
        number, *sizes, shared = map(int, text.split())
        module, name, parameters = self.functions[number]
        values = [self.requests.read(size) for size in parameters]
        module.launch(name, sizes[:3], sizes[3:], values, self.memory, shared_bytes=shared)
        self.launches.append(name)
        self.answer(1)


def start(example, driver, capability):
    """Run the example on a GPU of a compute capability; return how it ended, and the driver."""
    (requests, to), (come_from, answers) = os.pipe(), os.pipe()
    settings = {"DRIVER_TO": to, "DRIVER_FROM": come_from, "LD_LIBRARY_PATH": driver}
    process = subprocess.Popen(
        [example / "launch", example], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        pass_fds=(to, come_from),
    )  # fmt: skip
    os.close(to)
    os.close(come_from)
    limit = threading.Timer(60, process.kill)
    limit.start()
    with open(requests, "rb") as lines, open(answers, "wb") as back:
        served = Driver(capability, lines, back)
        try:
            served.serve()
        except BaseException:
            process.kill()
            raise
    printed = process.communicate()
    limit.cancel()
    return process.returncode, *printed, served


def test_example_agrees_with_the_formula(example, driver):
    status, out, err, served = start(example, driver, 100)
    assert (status, err) == (0, "")
    error, largest = map(float, re.search(r"largest error (\S+) of (\S+)\n$", out).groups())
    assert error < 1e-5 * largest
    assert served.launches == ["to_channels_last", "deform_im2col"]
    assert all(name.endswith(".sm_90.ptx") for name in served.loaded)
    assert served.live == set()


def test_example_chooses_machine_code(example, driver):
    status, out, err, served = start(example, driver, 89)
    [name] = served.loaded  # which this driver refuses
    assert re.fullmatch(r"channels_last-\w+\.sm_80\.cubin", name)
    assert (status, out) == (1, "")
    assert err == f"launch_kernels: error: {example / name}: refused\n"
