"""On a machine with a GPU: write what only a GPU can show into one Markdown file, to be pasted.

    python benchmarks/gpu_report.py [-o gpu-report.md] [--rounds 20]

Machine and versions, the self-test and the tests on real CuPy, what the kernels take, how far the
results are from NumPy's and whether they are the same every time, times, memory, graph capture and
TF32. A section that breaks says so, and the others follow. Without a GPU nothing is written and the
exit status is 1.

Times are medians of interleaved rounds, by CUDA events; before each call a buffer of four times the
size of the L2 cache is written, so that nothing is found there. A call shorter than its launches
take on the host is bounded by these; the section on the host says how long they are.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from xml.etree import ElementTree

import kernels
import numpy as np

import cupy_dcn
from cupy_dcn import diagnostics
from cupy_dcn._matmul_gpu import CUPY_TF32
from cupy_dcn._warmup import usable_cupy

ROOT = Path(__file__).parents[1]
TESTS = ("operator", "stages", "dtypes", "errors", "reference")  # written for any library
MIB = 2**20
DTYPES = ("float64", "float32", "float16", "bfloat16")
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
COLUMNS = ("forward", "backward", "torchvision forward", "torchvision backward")


class Case(NamedTuple):
    """A convolution whose output is as large as its input."""

    images: int
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: int
    deformable_groups: int = 1
    masked: bool = True

    def __str__(self):
        groups = f", DG {self.deformable_groups}" if self.deformable_groups > 1 else ""
        x = f"{self.images}, {self.channels}, {self.height}, {self.width}"
        version = "v2" if self.masked else "v1"
        return f"({x}) -> {self.out_channels}, {self.kernel}x{self.kernel}{groups}, {version}"

    @property
    def settings(self):
        return {"padding": self.kernel // 2, "deformable_groups": self.deformable_groups}

    def arrays(self, dtype):
        """Return the arguments of the operator by name, and the gradient that comes in."""
        rng = np.random.default_rng(0)
        size, samples = (self.height, self.width), self.deformable_groups * self.kernel**2

        def normal(*shape, spread=1.0):
            values = spread * rng.standard_normal(shape, np.float32)
            return values.astype(kernels.dtype_of(dtype))

        arrays = {
            "x": normal(self.images, self.channels, *size),
            "offset": normal(self.images, 2 * samples, *size, spread=1.5),
            "weight": normal(self.out_channels, self.channels, self.kernel, self.kernel),
            "bias": normal(self.out_channels),
        }
        if self.masked:
            arrays["mask"] = normal(self.images, samples, *size)
        return arrays, normal(self.images, self.out_channels, *size)


SMALL = (Case(2, 32, 20, 24, 48, 3, 2), Case(1, 3, 40, 30, 8, 5), Case(2, 64, 17, 19, 64, 1))
TIMED = (
    Case(2, 64, 56, 56, 64, 3),
    Case(1, 256, 32, 32, 256, 3, 4),
    Case(8, 256, 64, 64, 256, 3),
    Case(4, 16, 128, 128, 16, 3, masked=False),
    Case(1, 3, 512, 512, 8, 5),
    Case(1, 1, 2048, 2048, 1, 3, masked=False),
)


@dataclass
class Tools:
    """The library, what is measured, and how; the defaults are for a GPU."""

    cupy: Any
    small: tuple = SMALL
    timed: tuple = TIMED
    layers: tuple = kernels.COMMON
    timed_dtypes: tuple = ("float32", "float16", "bfloat16")
    budgets: tuple = (4, 16, 64)  # MiB
    rounds: int = 20
    elapsed: Callable | None = None  # milliseconds between two events
    capture: Callable | None = None  # calls a function while a stream is captured, and replays it
    run_tests: Callable | None = None  # writes pytest's account to a file

    def __post_init__(self):
        self.elapsed = self.elapsed or (lambda *events: self.cupy.cuda.get_elapsed_time(*events))
        self.capture = self.capture or capture_and_replay
        self.run_tests = self.run_tests or run_operator_tests

    def moved(self, arrays):
        return {name: self.cupy.asarray(array) for name, array in arrays.items()}

    def measure(self, calls):
        """Return the median milliseconds of each call, taken in turn."""
        device = self.cupy.cuda.Device().id
        cache = self.cupy.cuda.runtime.getDeviceProperties(device)["l2CacheSize"]
        flush = self.cupy.empty(max(4 * cache, 1), np.uint8)
        times = {name: [] for name in calls}
        for number in range(self.rounds + 1):
            for name, call in calls.items():
                flush.fill(number % 256)
                start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
                start.record()
                call()
                end.record()
                end.synchronize()
                times[name].append(self.elapsed(start, end))
        return {name: median(each[1:]) for name, each in times.items()}


def table(header, rows):
    """Return the lines of a table in Markdown."""
    rows = [[str(cell) for cell in row] for row in rows]
    assert all(len(row) == len(header) for row in rows)
    lines = [list(header), ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def printed(function):
    """Return what a function prints, as a block, and what it returns."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        result = function()
    return ["```text", *text.getvalue().rstrip().splitlines(), "```"], result


def machine(tools):
    return printed(diagnostics.info)[0]


def selftest(tools):
    lines, agreed = printed(diagnostics.selftest)
    return [*lines, "", "All agree." if agreed else "**SOME DISAGREE**"]


def run_operator_tests(path):
    """Run the tests of the operator on CuPy arrays; write pytest's account to a file."""
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "-k",
        "cupy",
        f"--junitxml={path}",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout


def tests(tools):
    """Count the tests on CuPy arrays by how they ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tests.xml"
        output = tools.run_tests(path)
        if not path.exists():
            return ["**pytest did not run**", "```text", *output.splitlines()[-20:], "```"]
        cases = list(ElementTree.parse(path).iter("testcase"))
    counts = dict.fromkeys(("passed", "failure", "error", "skipped"), 0)
    broken = []
    for case in cases:
        if "[cupy" not in case.get("name"):  # of another library, by an accident of its name
            continue
        ends = [child.tag for child in case if child.tag in counts] or ["passed"]
        counts[ends[0]] += 1
        if ends[0] in ("failure", "error"):
            message = (case.find(ends[0]).get("message") or "").strip().partition("\n")[0]
            broken.append((f"`{case.get('name')}`", message))
    lines = table(tuple(counts), [tuple(counts.values())])
    if sum(counts.values()) == 0:
        lines += ["", "**no test ran on CuPy**", "```text", *output.splitlines()[-20:], "```"]
    return [*lines, *(["", *table(("test", "message"), broken[:40])] if broken else [])]


def compiled(tools):
    """Compile for the GPU's architecture; list registers, and the time of a compilation."""
    if kernels.nvrtc is None:
        return ["CuPy could not load NVRTC."]
    architecture = f"sm_{tools.cupy.cuda.Device().compute_capability}"
    if not kernels.supported((architecture,)):
        return [f"NVRTC does not know {architecture}."]
    times, rows = [], kernels.rows((architecture,), tools.layers)
    found = []
    while True:
        start = time.perf_counter()
        row = next(rows, None)
        if row is None:
            break
        times.append(time.perf_counter() - start)
        found.append(row)
    about = f"Compiling one takes {median(times):.2f} s (median), at most {max(times):.2f} s."
    return [*kernels.table((architecture,), found), "", about]


def error_of(result, exact):
    """Return the largest difference as a share of the largest value."""
    difference = np.abs(result.astype(np.float64) - exact).max()
    return float(difference / np.abs(exact).max())


def results_of(library, case, arrays, grad_output):
    """Return the output and the gradients by name, in NumPy."""
    output = cupy_dcn.deform_conv2d(**arrays, **case.settings)
    grads = cupy_dcn.deform_conv2d_backward(grad_output, **arrays, **case.settings)
    found = {"output": output} | grads._asdict()
    move = np.asarray if library is np else library.asnumpy
    return {name: move(array) for name, array in found.items() if array is not None}


def equality(tools):
    """Compare with NumPy in float64, on the same rounded values; run twice, compare the bits."""
    rows = []
    for case in tools.small:
        for dtype in DTYPES:
            arrays, grad_output = case.arrays(dtype)
            exact = {name: array.astype(np.float64) for name, array in arrays.items()}
            expected = results_of(np, case, exact, grad_output.astype(np.float64))
            on_gpu = tools.moved(arrays), tools.cupy.asarray(grad_output)
            first, second = (results_of(tools.cupy, case, *on_gpu) for _ in range(2))
            errors = {name: error_of(first[name], expected[name]) for name in expected}
            repeats = [name for name in first if first[name].tobytes() != second[name].tobytes()]
            texts = [f"{errors[n]:.1e}" if n in errors else "" for n in ("output", *GRADIENTS)]
            rows.append((case, dtype, *texts, ", ".join(repeats) or "none"))
    header = ("x -> C_out", "dtype", "output", *(f"grad {name}" for name in GRADIENTS))
    return [
        "Largest difference from NumPy in float64, as a share of the largest value.",
        "",
        *table((*header, "other bits in a second run"), rows),
    ]


def torchvision_calls(case, arrays, grad_output):
    """Return forward and backward of torchvision on copies of the arrays, and its output."""
    import torch
    from torchvision.ops import deform_conv2d

    dtype = getattr(torch, grad_output.dtype.name)

    def tensor(array):
        return torch.from_numpy(array.astype(np.float32)).cuda().to(dtype)

    tensors = {name: tensor(array).requires_grad_() for name, array in arrays.items()}
    inputs = {"input" if name == "x" else name: each for name, each in tensors.items()}
    incoming = tensor(grad_output)

    def forward():
        with torch.no_grad():
            return deform_conv2d(**inputs, padding=case.kernel // 2)

    output = deform_conv2d(**inputs, padding=case.kernel // 2)

    def backward():
        return torch.autograd.grad(output, list(tensors.values()), incoming, retain_graph=True)

    backward()
    return forward, backward, output.detach().float().cpu().numpy()


def times(tools):
    """Time forward and backward, beside torchvision's where it is installed."""
    rows, remarks = [], {}
    for case in tools.timed:
        for dtype in tools.timed_dtypes:
            arrays, grad_output = case.arrays(dtype)
            ours, incoming = tools.moved(arrays), tools.cupy.asarray(grad_output)

            def forward(case=case, ours=ours):
                return cupy_dcn.deform_conv2d(**ours, **case.settings)

            def backward(case=case, ours=ours, incoming=incoming):
                return cupy_dcn.deform_conv2d_backward(incoming, **ours, **case.settings)

            calls = {"forward": forward, "backward": backward}
            apart = ""
            try:
                *others, output = torchvision_calls(case, arrays, grad_output)
            except Exception as error:  # not installed, without CUDA, or not for this dtype
                first_line = str(error).partition("\n")[0]
                remarks.setdefault(f"{type(error).__name__}: {first_line}", {})[dtype] = True
            else:
                calls |= dict(zip(COLUMNS[2:], others, strict=True))
                apart = f"{error_of(tools.cupy.asnumpy(forward()), output):.1e}"
            medians = tools.measure(calls)
            texts = [f"{medians[n]:.3f}" if n in medians else "" for n in COLUMNS]
            rows.append((case, dtype, *texts, apart))
    lines = table(("x -> C_out", "dtype", *(f"{n}, ms" for n in COLUMNS), "outputs apart"), rows)
    about = [f"No torchvision beside ({', '.join(of)}): {why}" for why, of in remarks.items()]
    return [*lines, "", f"Medians of {tools.rounds} rounds; backward: all gradients.", *about]


def host(tools):
    """Time small calls on the host, without waiting for the GPU."""
    case = Case(1, 4, 8, 8, 4, 3)
    arrays, grad_output = case.arrays("float32")
    ours, incoming = tools.moved(arrays), tools.cupy.asarray(grad_output)
    calls = {
        "deform_conv2d": lambda: cupy_dcn.deform_conv2d(**ours, **case.settings),
        "deform_conv2d_backward": lambda: cupy_dcn.deform_conv2d_backward(
            incoming, **ours, **case.settings
        ),
        "deform_im2col": lambda: cupy_dcn.deform_im2col(ours["x"], ours["offset"], 3, padding=1),
    }
    rows = []
    for name, call in calls.items():
        taken = []
        for _ in range(10 * tools.rounds + 1):
            start = time.perf_counter()
            call()
            taken.append(1e6 * (time.perf_counter() - start))
        tools.cupy.cuda.Device().synchronize()
        rows.append((name, f"{median(taken[1:]):.0f}", f"{min(taken[1:]):.0f}"))
    return [f"x {case}.", "", *table(("call", "median, µs", "least, µs"), rows)]


def memory(tools):
    """Measure the peak of a memory pool of its own, less the arrays that are returned."""
    cupy, rows = tools.cupy, []
    for case in tools.timed:
        arrays, grad_output = case.arrays("float32")
        ours, incoming = tools.moved(arrays), cupy.asarray(grad_output)
        for budget in tools.budgets:
            calls = (
                lambda **more: (cupy_dcn.deform_conv2d(**more),),
                lambda **more: cupy_dcn.deform_conv2d_backward(incoming, **more),  # noqa: B023
            )
            peaks = []
            for call in calls:
                pool = cupy.cuda.MemoryPool()
                with cupy.cuda.using_allocator(pool.malloc):
                    results = call(**ours, **case.settings, workspace_bytes=budget * MIB)
                    cupy.cuda.Device().synchronize()
                    kept = sum(array.nbytes for array in results if array is not None)
                    peaks.append(f"{(pool.total_bytes() - kept) / MIB:.1f}")
                    del results
            rows.append((case, budget, *peaks))
    header = ("x -> C_out, float32", "workspace_bytes, MiB", "forward, MiB", "backward, MiB")
    return table(header, rows)


def capture_and_replay(stream, call):
    """Capture a call on a stream and run the graph."""
    stream.begin_capture()
    try:
        call()
    finally:
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()


def graphs(tools):
    """Try what can be captured into a CUDA graph: the stages; products by cuBLAS not."""
    case = Case(1, 8, 12, 12, 8, 3)
    arrays, grad_output = case.arrays("float32")
    ours, incoming = tools.moved(arrays), tools.cupy.asarray(grad_output)
    x, offset, mask = ours["x"], ours["offset"], ours["mask"]
    columns = cupy_dcn.deform_im2col(x, offset, 3, padding=1)
    calls = {
        "deform_im2col": lambda: cupy_dcn.deform_im2col(x, offset, 3, padding=1, mask=mask),
        "deform_col2im": lambda: cupy_dcn.deform_col2im(
            columns, offset, (12, 12), 3, padding=1, mask=mask
        ),
        "deform_coord_grad": lambda: cupy_dcn.deform_coord_grad(
            columns, x, offset, 3, padding=1, mask=mask
        ),
        "deform_conv2d": lambda: cupy_dcn.deform_conv2d(**ours, **case.settings),
        "deform_conv2d_backward": lambda: cupy_dcn.deform_conv2d_backward(
            incoming, **ours, **case.settings
        ),
    }
    rows = []
    tools.cupy.cuda.Device().synchronize()
    for name, call in calls.items():
        stream = tools.cupy.cuda.Stream(non_blocking=True)
        with stream:
            call()  # compiles, and leaves its memory to the pool
            stream.synchronize()
            try:
                tools.capture(stream, call)
                outcome = "captured and replayed"
            except Exception as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())}"
        rows.append((name, outcome))
    return table(("call", "in a graph"), rows)


def tf32(tools):
    """Compare float32 with and without TF32 with NumPy in float64."""
    core, float32 = tools.cupy._core, np.dtype(np.float32)
    before = core.get_compute_type(float32)
    rows = []
    for name, code in {"as it is": before, "TF32": CUPY_TF32}.items():
        core.set_compute_type(float32, code)
        try:
            for case in tools.small:
                arrays, grad_output = case.arrays("float32")
                exact = {each: array.astype(np.float64) for each, array in arrays.items()}
                expected = results_of(np, case, exact, grad_output.astype(np.float64))
                ours = results_of(
                    tools.cupy, case, tools.moved(arrays), tools.cupy.asarray(grad_output)
                )
                errors = (error_of(ours[each], expected[each]) for each in ("output", "weight"))
                rows.append((case, name, *(f"{error:.1e}" for error in errors)))
        finally:
            core.set_compute_type(float32, before)
    return table(("x -> C_out, float32", "products", "output", "grad weight"), rows)


SECTIONS = {
    "Machine": machine,
    "Self-test": selftest,
    "The operator's tests on CuPy arrays": tests,
    "Kernels": compiled,
    "Equality and repetition": equality,
    "Times": times,
    "Host": host,
    "Memory": memory,
    "Graph capture": graphs,
    "TF32": tf32,
}


def report(tools, sections=None):
    """Return the report as text, and the titles of the sections that broke."""
    lines, broken = [f"# cupy_dcn {cupy_dcn.__version__} on a GPU"], []
    for title, section in (SECTIONS if sections is None else sections).items():
        print(f"{title} ...", file=sys.stderr, flush=True)
        try:
            found = section(tools)
        except Exception:  # whatever breaks on this machine belongs into the report
            broken.append(title)
            found = ["**broke off**", "```text", *traceback.format_exc().splitlines(), "```"]
        lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n", broken


def main(arguments=None, tools=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--rounds", type=int, default=20, help="of every timed call (20)")
    options = parser.parse_args(arguments)
    try:
        cupy = usable_cupy()
    except (ImportError, RuntimeError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    text, broken = report(tools or Tools(cupy, rounds=options.rounds))
    options.output.write_text(text, encoding="utf-8")
    print(f"The report is in {options.output.resolve()}")
    if broken:
        print(f"broke off: {', '.join(broken)}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
