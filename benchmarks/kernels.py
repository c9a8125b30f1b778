"""Compile the CUDA kernels for many architectures, without a GPU; print what ptxas says of them.

    python benchmarks/kernels.py [--arch sm_90 ...]

A row is a kernel with its specialisation: registers of a thread for each architecture, bytes of
shared memory of a block. What a thread keeps in memory because its registers don't suffice is
marked: `40+16s` are 40 registers and 16 bytes of spill stores, `40+16f` 16 bytes of stack frame.
"""

import argparse
import re
import sys
import time
from typing import NamedTuple

import numpy as np

from cupy_dcn import _kernels
from cupy_dcn._cut import DEFAULT_WORKSPACE
from cupy_dcn._direct_backward_gpu import block_sums
from cupy_dcn._direct_gpu import is_direct
from cupy_dcn._geometry import Geometry
from cupy_dcn._order_gpu import may_pay
from cupy_dcn._specialisation import (
    Wants,
    direct_backward_macros,
    order_macros,
    sampling_macros,
    transpose_macros,
)

try:  # loaded and held from here on: tests put a stand-in under CuPy's names for a while
    from cupy_backends.cuda.libs import nvrtc

    nvrtc.getVersion()
except Exception:  # no CuPy, or no NVRTC for it to load
    nvrtc = None

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Those of a RawModule in CuPy, and ptxas's account of its work.
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")
VERBOSE = ("--ptxas-options=-v",)
WANTS = {
    "deform_im2col": None,
    "deform_direct": None,
    "deform_col2im": Wants(grad_x=True),
    "deform_col2im_ordered": None,
    "deform_coord_grad": Wants(grad_offset=True, grad_mask=True),
    "deform_backward": Wants(True, True, True, True),
    "deform_backward_sorted": Wants(True, True, True, True),
    "deform_direct_backward": Wants(True, True, True, True),
    "deform_im2col_tangent": None,
    "deform_double_backward": Wants(True, True, True),
}
SAMPLING = tuple(WANTS)
ORDERING = ("count_samples", "start_cells", "order_samples", "rank_samples")
TRANSPOSING = ("copy_elements", "to_channels_last", "from_channels_last")
DTYPES = ("float32", "float64", "float16", "bfloat16")


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


class Layer(NamedTuple):
    """What a sampling kernel is specialised for."""

    dtype: str
    kernel: int
    channels: int
    groups: int = 1
    deformable_groups: int = 1
    masked: bool = True
    offset: str | None = None  # dtype of offset and mask, x's by default
    index: str = "int32"
    outputs: int | None = None  # C_out/G, C_in/G by default; if given, for deform_direct alone

    @property
    def about(self):
        others = (
            f"G {self.groups}" if self.groups > 1 else "",
            f"DG {self.deformable_groups}" if self.deformable_groups > 1 else "",
            "" if self.masked else "no mask",
            f"offset {self.offset}" if self.offset else "",
            self.index if self.index != "int32" else "",
            f"C_out/G {self.outputs}" if self.outputs else "",
        )
        return ", ".join(filter(None, others))

    def __str__(self):
        about = f", {self.about}" if self.about else ""
        return f"{self.dtype}, {self.kernel}x{self.kernel}, {self.channels} channels{about}"

    @property
    def geometry(self):
        """A call with such a layer."""
        size, kernel, pad = 56, self.kernel, self.kernel // 2
        return Geometry(
            1, self.channels, size, size, kernel, kernel, size, size, 1, 1, pad, pad, 1, 1,
            self.groups, self.deformable_groups,
        )  # fmt: skip

    @property
    def group_outputs(self):
        return self.outputs or self.channels // self.groups

    def has(self, name):
        """Tell whether a call with such a layer can come to one of the kernels."""
        if name == "deform_direct":
            outputs = self.groups * self.group_outputs
            return is_direct(self.geometry, outputs, dtype_of(self.dtype))
        if self.outputs:
            return False
        if name == "deform_direct_backward":
            dtype = dtype_of(self.dtype)
            return block_sums(self.geometry, self.channels, dtype, DEFAULT_WORKSPACE) is not None
        return name != "deform_backward_sorted" or (
            may_pay(self.geometry) and self.index == "int32"
        )

    def macros(self, name):
        """Return the macros of one of the kernels, as a call with such a layer makes them."""
        dtype, index, geometry = dtype_of(self.dtype), np.dtype(self.index), self.geometry
        if name in TRANSPOSING:
            return transpose_macros(geometry, dtype, index)
        offset = dtype_of(self.offset or self.dtype)
        if name in ORDERING:
            return order_macros(geometry, dtype, offset, index)
        mask, wants = offset if self.masked else None, WANTS[name]
        if wants is not None:
            wants = wants._replace(grad_mask=wants.grad_mask and self.masked)
        if name == "deform_direct_backward":
            return direct_backward_macros(geometry, dtype, offset, mask, index, wants)
        outputs = self.group_outputs if name == "deform_direct" else 0
        return sampling_macros(geometry, dtype, offset, mask, index, wants, outputs)


# The layers of common networks: their kernels must fit into the registers.
COMMON = tuple(
    Layer(dtype, kernel, channels)
    for dtype in DTYPES
    for kernel in (3, 1, 5)
    for channels in (64, 256)
)
OTHERS = (
    Layer("float32", 3, 3),
    Layer("float32", 3, 17),
    Layer("float16", 3, 64, deformable_groups=8),
    Layer("float32", 3, 32, groups=32),
    Layer("float16", 3, 64, groups=64),
    Layer("float64", 5, 64, groups=64),
    Layer("float32", 5, 3, groups=3),
    Layer("bfloat16", 7, 20, groups=20, deformable_groups=2),
    Layer("float32", 5, 3, outputs=8),
    Layer("float16", 3, 8, outputs=16),
    Layer("float32", 3, 64, groups=16, outputs=4, index="int64"),
    Layer("bfloat16", 3, 64, groups=64, outputs=4, offset="float32"),
    Layer("float64", 3, 20, groups=10, deformable_groups=2, outputs=8, masked=False),
    Layer("float32", 3, 64, masked=False),
    Layer("float16", 3, 64, offset="float32"),
    Layer("bfloat16", 3, 64, offset="float32", masked=False),
    Layer("float64", 3, 64, index="int64"),
    Layer("float32", 3, 64, index="int64"),
    Layer("float32", 7, 12, groups=4, deformable_groups=2, index="int64"),
)


class Usage(NamedTuple):
    """What a kernel takes on one architecture, a thread's and (shared memory) a block's."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int

    def __str__(self):
        spill = f"+{self.spill_bytes}s" if self.spill_bytes else ""
        return f"{self.registers}{spill}" + (f"+{self.stack_bytes}f" if self.stack_bytes else "")


def dtype_of(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def supported(architectures=ARCHITECTURES):
    """Return those of some architectures that this NVRTC compiles for."""
    known = {f"sm_{number}" for number in nvrtc.getSupportedArchs()}
    return tuple(architecture for architecture in architectures if architecture in known)


def compile_source(source, options, architecture, name="kern.cu"):
    """Compile down to machine code; return the log of NVRTC and ptxas."""
    return compile_to_machine_code(source, options, architecture, name)[0]


def compile_to_machine_code(source, options, architecture, name="kern.cu"):
    """Return the log of NVRTC and ptxas, the PTX and the cubin."""
    program = nvrtc.createProgram(source, name, (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, *VERBOSE, f"-arch={architecture}", *options))
    except nvrtc.NVRTCError:
        raise CompileError(nvrtc.getProgramLog(program)) from None
    else:
        log, ptx = nvrtc.getProgramLog(program), nvrtc.getPTX(program)
        # CuPy takes it for a C string, and its last byte for the end.
        return log, ptx.rstrip(b"\0").decode(), nvrtc.getCUBIN(program) + b"\0"
    finally:
        nvrtc.destroyProgram(program)


def compile_kernel(name, layer, architecture):
    """Compile the file that a kernel is in for a layer; return the log."""
    macros = layer.macros(name)
    return compile_source(_kernels.text(name, macros), (), architecture)


def usage_of(name, log):
    """Read ptxas's account of one of the kernels of a file."""
    # An entry each: its name, then its stack frame and spills, then its registers and memory.
    entries = re.split(r"Compiling entry function '(\w+)'", log)[1:]
    accounts = dict(zip(entries[::2], entries[1::2], strict=True))
    account = accounts[name]
    registers = int(re.search(r"Used (\d+) registers", account)[1])
    stack, spills = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", account).groups()
    )
    shared = re.search(r"(\d+) bytes smem", account)
    return Usage(registers, stack, spills, int(shared[1]) if shared else 0)


def warnings_in(log):
    """Return the lines of a log that warn."""
    return [line for line in log.splitlines() if re.search(r"\bwarning\b", line, re.IGNORECASE)]


def rows(architectures, layers=COMMON + OTHERS):
    """Yield for every kernel and layer: both, and its usage for every architecture."""
    for name in (*SAMPLING, *ORDERING, *TRANSPOSING):
        done = set()
        for layer in filter(lambda layer, name=name: layer.has(name), layers):
            macros = layer.macros(name)
            if macros not in done:  # the transposing kernels differ in less
                done.add(macros)
                logs = (compile_kernel(name, layer, each) for each in architectures)
                yield name, layer, [usage_of(name, log) for log in logs]


def cells(name, layer, usages):
    """Return a row of the table as texts."""
    shared = "/".join(map(str, sorted({usage.shared_bytes for usage in usages})))
    size, about = f"{layer.kernel}x{layer.kernel}", layer.about
    if name in TRANSPOSING:  # which depend on less
        size, about = "", "" if layer.index == "int32" else layer.index
    if name in ORDERING:
        index = "" if layer.index == "int32" else layer.index
        about = ", ".join(filter(None, (f"offset {layer.offset}" if layer.offset else "", index)))
    return (name, layer.dtype, size, str(layer.channels), about, *map(str, usages), shared)


def header(architectures):
    return ("kernel", "dtype", "size", "channels", "besides", *architectures, "shared")


def table(architectures, found):
    """Return the lines of a table in Markdown, aligned."""
    lines = [header(architectures), *(cells(*row) for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "| "
        + " | ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    return [texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, metavar="sm_XX")
    options = parser.parse_args()
    if nvrtc is None:
        return "CuPy or the NVRTC for it is missing: pip install -e '.[emulator]'"
    architectures = supported(options.arch)
    if missing := sorted(set(options.arch) - set(architectures)):
        print(f"this NVRTC does not know {', '.join(missing)}", file=sys.stderr)
    print("compiling; this takes a minute or two", file=sys.stderr)
    start = time.perf_counter()
    found = list(rows(architectures))
    print("registers of a thread by architecture; shared: bytes of a block; +16s: bytes spilled,")
    print("+16f: bytes of stack; G, DG: groups, deformable groups; int64: wide indices\n")
    print("\n".join(table(architectures, found)))
    spills = [row for row in found if any(u.spill_bytes or u.stack_bytes for u in row[2])]
    version = ".".join(map(str, nvrtc.getVersion()))
    print(
        f"\nNVRTC {version}; {len(found) * len(architectures)} kernels compiled in"
        f" {time.perf_counter() - start:.0f} s; with spills or a stack frame:"
        f" {', '.join(f'{name} ({layer})' for name, layer, _ in spills) or 'none'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
