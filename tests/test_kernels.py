"""The CUDA sources: they compile for every architecture, fit its registers, and say what they are.

All of it without a GPU: NVRTC compiles down to machine code, and its ptxas says what that takes.
"""

import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cupy_dcn import _kernels, _launch_gpu
from cupy_dcn._geometry import Geometry

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # behind tests/, which has a cases.py as well

import kernels  # noqa: E402

FOLDER = ROOT / "cuda"
SOURCES = sorted(path.name for path in FOLDER.glob("*.cu"))
HEADERS = sorted(path.name for path in FOLDER.glob("*.cuh"))
NAMES = (*kernels.SAMPLING, "count_samples", "to_channels_last")  # their files hold others, too
ALONG = ("deform_im2col_tangent", "deform_double_backward")  # of derivatives along a direction
# The first and the last architecture, and the one with vector reductions.
FEW = ("sm_75", "sm_90", "sm_120")

needs_nvrtc = pytest.mark.skipif(
    kernels.nvrtc is None, reason="no NVRTC: pip install -e '.[emulator]'"
)


LAYERS = kernels.COMMON + kernels.OTHERS


def combinations():
    """Return kernel, layer, architectures and whether registers must suffice."""
    for name in NAMES:
        done = set()
        for layer in filter(lambda layer, name=name: layer.has(name), LAYERS):
            common = layer in kernels.COMMON
            if layer.macros(name) not in done:
                done.add(layer.macros(name))
                if name in ALONG and layer.kernel != 3:
                    continue  # the taps are a loop that is not unrolled
                every = common and layer.kernel == 3 and name not in ALONG
                architectures = kernels.ARCHITECTURES if every else FEW
                yield pytest.param(name, layer, architectures, common, id=f"{name}, {layer}")


@needs_nvrtc
@pytest.mark.parametrize(("name", "layer", "architectures", "common"), list(combinations()))
def test_kernels_compile_and_fit(name, layer, architectures, common):
    for architecture in kernels.supported(architectures):
        log = kernels.compile_kernel(name, layer, architecture)
        assert kernels.warnings_in(log) == []
        in_file = [each for each, file in _kernels.FILES.items() if file == _kernels.FILES[name]]
        for kernel in in_file:
            usage = kernels.usage_of(kernel, log)
            assert 10 < usage.registers < 256
            # Threads that share no sampling points need no memory, but for sums and weights.
            shares = name in ("count_samples", "deform_direct", "deform_col2im_ordered")
            alone = getattr(layer.macros(name), "lanes", 1) == 1 and not shares
            assert usage.shared_bytes == 0 or not alone
            assert usage.shared_bytes <= 48 * 1024
            if common:
                assert (usage.stack_bytes, usage.spill_bytes) == (0, 0), architecture


@needs_nvrtc
def test_this_nvrtc_knows_the_architectures():
    assert set(FEW[:2]) <= set(kernels.supported())
    assert kernels.supported(("sm_90", "sm_11")) == ("sm_90",)


GREEDY = """
extern "C" __global__ void __launch_bounds__(1024) greedy(float *values) {
    float held[150];
#pragma unroll
    for (int i = 0; i < 150; ++i) held[i] = values[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 150; ++i) values[i * 1024 + threadIdx.x] = held[149 - i] * held[i];
}
extern "C" __global__ void modest(int *values, int at) {
    int unused;
    values[threadIdx.x] = at;
}
"""


@needs_nvrtc
def test_spills_and_warnings_would_be_seen():
    log = kernels.compile_source(GREEDY, (), "sm_90")
    greedy = kernels.usage_of("greedy", log)
    assert greedy.spill_bytes > 0
    assert greedy.stack_bytes > 0
    assert str(greedy) == f"{greedy.registers}+{greedy.spill_bytes}s+{greedy.stack_bytes}f"
    modest = kernels.usage_of("modest", log)
    assert modest.spill_bytes == modest.stack_bytes == modest.shared_bytes == 0
    assert str(modest) == str(modest.registers)
    assert any("unused" in warning for warning in kernels.warnings_in(log))


@needs_nvrtc
def test_table_of_usage():
    layers = (kernels.Layer("float16", 1, 8, index="int64"), kernels.Layer("float16", 3, 8))
    found = list(kernels.rows(("sm_80", "sm_90"), layers))
    assert len(found) == 15 * 2
    lines = kernels.table(("sm_80", "sm_90"), found)
    assert len(lines) == 2 + len(found)
    assert len(set(map(len, lines))) == 1
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == list(kernels.header(("sm_80", "sm_90")))
    assert rows[2][:5] == ["deform_im2col", "float16", "1x1", "8", "int64"]
    assert rows[-1][:5] == ["from_channels_last", "float16", "", "8", ""]
    for (_, _, usages), row in zip(found, rows[2:], strict=True):
        assert row[5:7] == [str(usage.registers) for usage in usages]
        assert row[7] == str(usages[0].shared_bytes)


@needs_nvrtc
@pytest.mark.parametrize("file", SOURCES)
def test_sources_compile_with_macros_at_their_defaults(file):
    # As `nvcc -c` would: the file itself, its headers found by the compiler.
    source = (FOLDER / file).read_text("utf-8")
    log = kernels.compile_source(source, (f"-I{FOLDER}",), "sm_80")
    assert kernels.warnings_in(log) == []
    for name in (name for name, its_file in _kernels.FILES.items() if its_file == file):
        assert kernels.usage_of(name, log).registers > 0


def test_every_source_holds_a_kernel():
    assert set(_kernels.FILES.values()) == set(SOURCES)
    for name, file in _kernels.FILES.items():
        definition = rf'extern "C" __global__ void[\w\s(),/]*?\b{name}\('
        assert len(re.findall(definition, (FOLDER / file).read_text("utf-8"))) == 1


@pytest.mark.parametrize("file", SOURCES)
def test_headers_are_put_in_place_once(file):
    source = _kernels.source(file)
    assert "#include" not in source
    assert "#pragma once" not in source
    parts = re.findall(r'^#line 1 "cuda/([\w.]+)"$', source, re.MULTILINE)
    assert parts[0] == file
    assert len(parts) == len(set(parts))
    assert set(parts[1:]) == included(file)
    for part in parts:  # every line of it is there, once
        for line in (FOLDER / part).read_text("utf-8").splitlines():
            if line.startswith(("struct ", "constexpr ", "typedef ", 'extern "C"')):
                assert source.splitlines().count(line) >= 1
    assert source.count("struct Geometry {") == 1


def test_headers_included_on_two_ways_are_put_in_place_once(tmp_path, monkeypatch):
    (tmp_path / "a.cuh").write_text("#pragma once\nstruct A {};\n")
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "a.cuh"\nstruct B {};\n')
    (tmp_path / "c.cu").write_text('#include "b.cuh"\n#include "a.cuh"\nstruct C {};\n')
    monkeypatch.setattr(_kernels, "folder", lambda: tmp_path)
    source = _kernels.source.__wrapped__("c.cu")  # past the cache
    assert re.findall(r"struct \w", source) == ["struct A", "struct B", "struct C"]
    before_c = source[: source.index("struct C")].splitlines()
    last = max(at for at, line in enumerate(before_c) if line.startswith("#line"))
    number, name = re.fullmatch(r'#line (\d+) "(.*)"', before_c[last]).groups()
    assert (name, int(number) + len(before_c) - last - 1) == ("cuda/c.cu", 3)


def included(file):
    """Return the headers that a file includes, and those they include."""
    found = set()
    for header in re.findall(r'^#include "(.*)"', (FOLDER / file).read_text("utf-8"), re.MULTILINE):
        found |= {header} | included(header)
    return found


def test_every_header_is_used_somewhere():
    assert set(HEADERS) == set().union(*map(included, SOURCES))


@needs_nvrtc
@pytest.mark.parametrize(
    "part", ["bilinear.cuh", "geometry.cuh", "numeric.cuh", "deform_im2col.cu"]
)
def test_errors_name_file_and_line(part, tmp_path, monkeypatch):
    folder = shutil.copytree(FOLDER, tmp_path / "cuda")
    broken = folder / part
    lines = broken.read_text("utf-8").splitlines()
    includes = [
        at for at, line in enumerate(lines) if line.startswith(("#include", "#pragma once"))
    ]
    for at in (includes[-1] + 1, len(lines)):
        changed = [*lines[:at], "this is no C++;", *lines[at:]]
        broken.write_text("\n".join(changed) + "\n", "utf-8")
        monkeypatch.setattr(_kernels, "folder", lambda: folder)
        source = _kernels.source.__wrapped__("deform_im2col.cu")  # past the cache
        with pytest.raises(kernels.CompileError) as caught:
            kernels.compile_source(source, (), "sm_80")
        errors = [line for line in str(caught.value).splitlines() if "error" in line]
        assert errors[0].startswith(f"cuda/{part}({at + 1}): error:")


def fields_in_cuda():
    """Return the fields of struct Geometry, those of Strides written out."""
    source = re.sub(r"//.*", "", (FOLDER / "geometry.cuh").read_text("utf-8"))
    body = re.search(r"struct Geometry \{(.*?)\};", source, re.DOTALL)[1]
    strides = re.search(r"struct Strides \{\s*index_t (.*?);\s*\};", source, re.DOTALL)[1]
    found = []
    for kind, names in re.findall(r"(\w+) ([\w, ]+);", body):
        for name in re.split(r", *", names):
            parts = [f"{name}.{axis}" for axis in re.split(r", *", strides)]
            found += [name] if kind == "index_t" else parts
            assert kind in {"index_t", "Strides"}
    return found


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_geometry_is_passed_as_it_is_read(index):
    sizes = {field.name: 100 + at for at, field in enumerate(fields(Geometry))}
    # Two deformable groups of three channels, in the copy of four.
    sizes |= {"channels": 6, "deformable_groups": 2, "stride_y": 53, "stride_x": 59}
    strides = {
        name: tuple(range(at, at + 4)) for name, at in (("planes", 1), ("offset", 21), ("mask", 31))
    }
    launch = _launch_gpu.launch_geometry(
        Geometry(**sizes), 4, np.dtype(index), rectangle=(3, 7, 13, 17), column_pixels=9, **strides
    )
    expected = sizes | {
        "rows": 13,
        "columns": 17,
        "origin_y": 3 * 53 - sizes["pad_top"],
        "origin_x": 7 * 59 - sizes["pad_left"],
        "column_pixels": 9,
        "copy_pitch": (sizes["width"] + 1) * 8,
        "copy_size": (sizes["height"] + 3) * (sizes["width"] + 1) * 8,
    }
    for name, values in strides.items():
        axes = ("image", "channel", "row", "column")
        expected |= {f"{name}.{axis}": value for axis, value in zip(axes, values, strict=True)}
    names, given = fields_in_cuda(), np.frombuffer(launch.tobytes(), index)
    assert dict(zip(names, given, strict=True)) == {name: expected[name] for name in names}
    assert len({expected[name] for name in names}) == len(names) == 27  # none looks like another
    source = (FOLDER / "geometry.cuh").read_text("utf-8")
    assert f"sizeof(Geometry) == {len(names)} * sizeof(index_t)" in source
