"""Machine instructions of the kernels beside PTX's, which the emulator counts.

Both are counted as they stand in the program, not as they run: of PTX every instruction of a
kernel, of machine code those up to its last EXIT, since what follows is out of the way (the slow
path of a shuffle or a division). NVRTC's own ptxas makes the machine code, `nvdisasm` (on the
path, or from the package nvidia-cuda-nvdisasm) lists it.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

import kernels

PTX_INSTRUCTION = re.compile(r"^\s+(?:@!?%p\d+\s+)?[a-z]", re.MULTILINE)
MACHINE_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/(.*);", re.MULTILINE)


class Program(NamedTuple):
    """A kernel as it stands; ``machine`` is None without nvdisasm."""

    usage: kernels.Usage
    ptx: int
    machine: int | None

    @property
    def ratio(self):
        return None if self.machine is None else self.machine / self.ptx


def nvdisasm():
    """Return the path of nvdisasm, None if there is none."""
    wheels = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin"))
    return shutil.which("nvdisasm") or next(
        (found for folder in wheels if (found := shutil.which("nvdisasm", path=str(folder)))), None
    )


def programs(code, architecture):
    """Compile a source; return its kernels by name."""
    log, ptx, cubin = kernels.compile_to_machine_code(code, (), architecture)
    machine = _machine_counts(cubin)
    return {
        name: Program(kernels.usage_of(name, log), count, machine.get(name))
        for name, count in _ptx_counts(ptx).items()
    }


def _ptx_counts(ptx):
    parts = re.split(r"^\.visible \.entry (\w+)\(", ptx, flags=re.MULTILINE)[1:]
    bodies = (part.partition("\n{\n")[2] for part in parts[1::2])
    counts = (len(PTX_INSTRUCTION.findall(body)) for body in bodies)
    return dict(zip(parts[::2], counts, strict=True))


def _machine_counts(cubin):
    tool = nvdisasm()
    if tool is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        listed = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True)
    parts = re.split(r"^\.text\.(\w+):$", listed.stdout, flags=re.MULTILINE)[1:]
    return {name: _hot(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _hot(text):
    """Count the instructions up to the last EXIT."""
    listed = MACHINE_INSTRUCTION.findall(text)
    return 1 + max(at for at, each in enumerate(listed) if "EXIT" in each)
