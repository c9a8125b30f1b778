"""What the emulator's tests share: arrays in its memory, kernels in CUDA C++ and in PTX."""

import struct
from pathlib import Path

import numpy as np
import pytest

from . import Memory, Module, NvrtcMissing, compile_ptx

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]
HEADERS = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
DTYPES = {"u8": "u1", "s8": "i1", "u16": "u2", "s16": "i2", "b16": "u2", "u32": "u4", "s32": "i4"}
DTYPES |= {"b32": "u4", "u64": "u8", "s64": "i8", "b64": "u8", "f32": "f4", "f64": "f8"}
DTYPES |= {"f16": "f2", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4"}
REGISTER = {"u8": "b16", "s8": "b16", "u16": "b16", "s16": "b16", "f16": "b16", "bf16": "b16"}


def module(source, arch="sm_90", options=("-lineinfo",)):
    try:
        return Module(
            compile_ptx(HEADERS * ("half" in source or "bf" in source) + source, options, arch)
        )
    except NvrtcMissing as missing:
        pytest.skip(str(missing))


class Device:
    """Memory with arrays in it."""

    def __init__(self):
        self.memory = Memory()
        self.arrays = {}

    def put(self, array):
        array = np.ascontiguousarray(array)
        address = self.empty(array.nbytes)
        self.memory.data(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.memory.written(address, array.nbytes)[:] = True
        return address

    def empty(self, nbytes):
        return self.memory.allocate(nbytes)

    def get(self, address, dtype, count):
        nbytes = np.dtype(dtype).itemsize * count
        assert self.memory.written(address, nbytes).all()
        return self.memory.data(address, nbytes).view(dtype).copy()


def pack(*values):
    """Return arguments: addresses and ints of 64 bits from 2^31 on, ints of 32 bits, floats."""
    packed = []
    for value in values:
        if isinstance(value, bytes):
            packed.append(value)
        elif isinstance(value, float):
            packed.append(struct.pack("<f", value))
        else:
            packed.append(struct.pack("<q" if abs(value) >= 2**31 else "<i", value))
    return packed


def launch(code, *arguments, device, name="k", grid=1, block=32, **options):
    grid = (grid,) if isinstance(grid, int) else grid
    block = (block,) if isinstance(block, int) else block
    return code.launch(name, grid, block, pack(*arguments), device.memory, **options)


def by_hand(body, parameters="", variables="", target="sm_90"):
    """Return a module of hand-written PTX."""
    return Module(
        f".version 8.5\n.target {target}\n.address_size 64\n{variables}\n"
        f".visible .entry k({parameters})\n{{\n{body}\n}}\n"
    )


def compute(instruction, kinds, result, *columns):
    """Run one instruction on columns of operands, an element a thread: ``%d`` from %a, %b, %c."""
    names = "abc"[: len(kinds)]
    parameters = ", ".join(f".param .u64 p{name}" for name in [*names, "d"])
    lines = [".reg .b64 %addr, %base, %wide;", ".reg .b32 %i;", ".reg .pred %p, %q;"]
    widths = {
        name: np.dtype(DTYPES[kind]).itemsize for name, kind in zip(names, kinds, strict=True)
    }
    widths["d"] = np.dtype(DTYPES[result]).itemsize
    lines += [f".reg .b{max(16, 8 * width)} %{name};" for name, width in widths.items()]
    lines += ["mov.u32 %i, %tid.x;", "cvt.u64.u32 %wide, %i;"]

    def address(name):
        return [
            f"ld.param.u64 %base, [p{name}];",
            f"mad.lo.u64 %addr, %wide, {widths[name]}, %base;",
        ]

    for name in names:
        lines += [*address(name), f"ld.global.b{8 * widths[name]} %{name}, [%addr];"]
    lines += [instruction, *address("d"), f"st.global.b{8 * widths['d']} [%addr], %d;", "ret;"]
    device = Device()
    arrays = [np.asarray(c).astype(DTYPES[k]) if np.asarray(c).dtype.kind != DTYPES[k][0]
              or np.asarray(c).dtype.itemsize != np.dtype(DTYPES[k]).itemsize else np.asarray(c)
              for c, k in zip(columns, kinds, strict=True)]  # fmt: skip
    count = arrays[0].size
    out = device.empty(count * widths["d"])
    places = [device.put(array) for array in arrays]
    code = by_hand("\n".join(lines), parameters)
    launch(code, *places, out, device=device, block=count)
    return device.get(out, DTYPES[result], count)


def bits(values, dtype="f4"):
    return np.asarray(values, dtype).view(f"u{np.dtype(dtype).itemsize}")


def assert_same_floats(got, expected):
    """Compare bit by bit; one NaN is as good as another."""
    got, expected = np.asarray(got), np.asarray(expected, np.asarray(got).dtype)
    both_nan = np.isnan(got) & np.isnan(expected)
    np.testing.assert_array_equal(
        bits(got, got.dtype)[~both_nan], bits(expected, got.dtype)[~both_nan]
    )
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))


def samples(arch):
    """Return the module of ``samples.cu``."""
    return module((Path(__file__).parent / "samples.cu").read_text(), arch)
