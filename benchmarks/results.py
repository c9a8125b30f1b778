"""The results of gpu.py as Markdown: rows, and tables made of them."""

import textwrap
from typing import Any, NamedTuple

from counters import DETERMINISTIC, compulsory_bytes, per_element
from emulator import nvrtc
from gpu_report import table
from roofline import DEVICES
from shapes import Case
from targets import DIRECTIONS, REASONS, TARGETS, TORCHVISION, Figures

import cupy_dcn

MIB = 2**20
SECTORS = Figures._fields[1:4]


class Counted(NamedTuple):
    """A shape with targets: its calls by direction, its programs by direction and kernel."""

    case: Case
    dtype: str
    calls: dict
    programs: dict


class Modelled(NamedTuple):
    """A call of a layer: seconds cold and warm, roof and busiest part by device."""

    case: Case
    dtype: str
    direction: str
    times: dict
    roofs: dict
    busiest: dict
    parts: dict  # seconds by the kind of step, on one device
    workspace_bytes: int
    steps: int


class Timed(NamedTuple):
    """A call of a layer on a GPU; ``roof`` is None for one without figures."""

    case: Case
    dtype: str
    direction: str
    timing: Any
    compulsory_bytes: int
    roof: float | None


def text(tables, models, times, why_no_gpu):
    """Return all results; ``times`` are the GPU's name, its rows and its missing peers, or None."""
    version = ".".join(map(str, nvrtc.version()))
    lines = [
        "# The GPU path, counted and modelled" + (" and timed" if times else ""),
        "",
        *paragraph(
            f"""cupy_dcn {cupy_dcn.__version__}, NVRTC {version}; written by `make bench`. The
            results were compared with NumPy's in float64 before anything was counted or timed."""
        ),
        "",
        "## Counters",
        "",
        *about_counters(),
        "",
        *counters_table(tables, (DETERMINISTIC,)),
        "",
        *missed(tables),
        "",
        "## Machine instructions",
        "",
        *machine_table(tables),
    ]
    if times:
        lines += ["", "## Times", "", *times_table(*times)]
    else:
        lines += ["", f"No GPU time was measured: {why_no_gpu}."]
    lines += ["", "## Model of the layers of networks", "", *model_table(models)]
    return "\n".join(lines) + "\n"


def paragraph(words):
    """Return a text as lines."""
    return textwrap.wrap(" ".join(words.split()), 100)


def about_counters():
    return paragraph(
        """Per column element (one channel of one tap of one output pixel), v2, offsets of standard
        deviation 1.5, one chunk, backward with all gradients; PTX for sm_90, every kernel of a call
        counted in an emulator, products by their bytes only. Sectors are 32 bytes, loads / stores
        / atomics as they reach the L1 cache. DRAM bytes: each kernel, product and copy touches its
        bytes once, with caches cold in between; in brackets, the call's own arrays alone.
        Deterministic: the same backward with deterministic=True."""
    )


def counters_table(tables, others=()):
    """Return the counters beside torchvision's and the targets; ``others`` have no targets."""
    header = (
        "x -> C_out", "", "instructions", "target", "torchvision",
        "sectors", "target", "torchvision", "DRAM bytes", "target",
    )  # fmt: skip
    rows = []
    for counted in tables:
        for direction in (*DIRECTIONS, *others):
            found = per_element(counted.calls[direction].steps, counted.case)
            target = peer = Figures()
            if direction in DIRECTIONS:
                at = DIRECTIONS.index(direction)
                target = TARGETS[counted.case.name, counted.dtype][at]
                if counted.dtype == "float32":
                    peer = TORCHVISION[counted.case.name][at]
            rows.append(
                (
                    f"{counted.case.name} {_shape(counted.case)}, {counted.dtype}",
                    direction,
                    f"**{found.instructions:.1f}**",
                    _number(target.instructions),
                    _number(peer.instructions),
                    _sectors(found),
                    _sectors(target),
                    _sectors(peer),
                    f"{found.dram_bytes:.1f} ({_least(counted, direction):.1f})",
                    _number(target.dram_bytes),
                )
            )
    return table(header, rows)


def _shape(case):
    return case.about.removesuffix(", v2")


def _least(counted, direction):
    least = compulsory_bytes(counted.case, counted.dtype, direction)
    return least / counted.case.column_elements


def _number(value):
    return "" if value is None else f"{value:g}"


def _sectors(figures):
    values = [getattr(figures, name) for name in SECTORS]
    if values == [None] * 3:
        return ""
    return " / ".join("-" if value is None else f"{value:.2f}".lstrip("0") for value in values)


def missed(tables):
    """Return a line for each target that is missed."""
    lines = []
    for counted in tables:
        for at, direction in enumerate(DIRECTIONS):
            found = per_element(counted.calls[direction].steps, counted.case)
            target = TARGETS[counted.case.name, counted.dtype][at]
            for name, value, most in zip(Figures._fields, found, target, strict=True):
                if most is not None and value > most * 1.005:  # as precise as the targets are given
                    about = f"{counted.case.name}, {counted.dtype}, {direction}"
                    reason = REASONS.get((counted.case.name, counted.dtype, direction, name))
                    line = f"- {about}: {name.replace('_', ' ')} {value:.3g}, at most {most:g}"
                    lines.append(f"{line}: {reason}" if reason else line)
    return ["Targets missed:", "", *lines] if lines else ["Every target is met."]


def _executed(counted, direction, name):
    steps = counted.calls[direction].steps
    total = sum(step.thread_instructions for step in steps if step.name == name)
    return total / counted.case.column_elements


def machine_table(tables):
    """Return the registers of the kernels, and their machine instructions beside PTX's."""
    rows = []
    for counted in tables:
        for (direction, name), program in counted.programs.items():
            usage = program.usage
            ratio = "" if program.ratio is None else f"{program.ratio:.2f}"
            machine = "" if program.machine is None else program.machine
            about = f"{counted.case.name}, {counted.dtype}", direction, f"`{name}`"
            executed = _executed(counted, direction, name)
            estimate = "" if program.ratio is None else f"{executed * program.ratio:.2f}"
            static = usage, usage.shared_bytes, program.ptx, machine, ratio
            rows.append((*about, *static, f"{executed:.2f}", estimate))
    header = (
        "shape", "", "kernel", "registers", "shared bytes", "PTX", "machine", "ratio",
        "PTX executed", "machine, estimated",
    )  # fmt: skip
    lacking = [] if any(row[-1] for row in rows) else ["", "No nvdisasm: machine code not counted."]
    return [
        *paragraph(
            """Instructions of the programs for sm_90, not of their runs: machine code up to its
            last EXIT, registers of a thread (`+16s`: bytes spilled), as NVRTC's ptxas made them.
            Behind it the PTX executed per column element, and what the ratio makes of it."""
        ),
        "",
        *table(header, rows),
        *lacking,
    ]


def times_table(name, rows, missing):
    """Return times measured on a GPU."""
    lines = []
    for row in rows:
        timing, arrays = row.timing, row.compulsory_bytes
        peers = [timing.peers.get(peer) for peer in ("torchvision", "plain convolution")]
        lines.append(
            (
                row.case.about,
                row.dtype,
                row.direction,
                f"{1e3 * timing.seconds:.3f}",
                *("" if peer is None else f"{1e3 * peer:.3f}" for peer in peers),
                f"{arrays / timing.seconds / 1e9:.0f}",
                "" if row.roof is None else f"{100 * row.roof / timing.seconds:.0f} %",
                f"{timing.workspace_bytes / MIB:.1f}",
            )
        )
    header = (
        "x -> C_out", "dtype", "", "ms", "torchvision, ms", "plain convolution, ms",
        "GB/s of its own arrays", "share of the roof", "workspace, MiB",
    )  # fmt: skip
    return [
        *paragraph(
            f"""Measured on {name}: medians by CUDA events, the L2 cache overwritten before each
            call. The roof is the longer of the products at the peak of arithmetic and the call's
            own arrays at the bandwidth of DRAM."""
        ),
        "",
        *table(header, lines),
        *(f"\nNo {peer} beside: {why}" for peer, why in missing.items()),
    ]


def model_table(models):
    """Return what the roofline says of every layer and device."""
    rows = []
    for row in models:
        cells = []
        for name in DEVICES:
            if name not in row.times:
                cells.append("not counted")
                continue
            cold, warm = (f"{1e3 * each:.3g}" for each in row.times[name])
            share = f"{100 * row.roofs[name] / row.times[name][0]:.0f} %"
            cells.append(f"{cold} ({warm}), {row.busiest[name]}, {share}")
        about = row.case.about.removesuffix(", v2"), row.dtype, row.direction
        rows.append((*about, *cells, f"{row.workspace_bytes / MIB:.1f}", row.steps))
    header = ("x -> C_out", "dtype", "", *(f"{name}, ms" for name in DEVICES))
    return [
        *paragraph(
            """**A model, not a measurement**: a roofline, all parts of the chip at their peak,
            launches free (`benchmarks/roofline.py`). Milliseconds with cold caches between steps
            (in brackets: with all of it in the L2 cache), the part of the chip that bounds it, and
            the share of the roof: products at the peak of arithmetic or the call's own arrays at
            DRAM's bandwidth. Counted on one image of at most 32x32 pixels and scaled to the size by
            the threads of each kernel; V100 and RTX 4090 by the code for sm_80. Steps: launches,
            products, copies and fills."""
        ),
        "",
        *table((*header, "workspace, MiB", "steps"), rows),
    ]
