"""Time the CPU path beside onnxruntime and torchvision: one process, same arrays, float32.

    python benchmarks/cpu_peers.py [--rounds 15] [--threads 1 2] [--cases A B C D] [--large]

Peers: the forward of onnxruntime's DeformConv (opset 19), and the forward with all gradients of
torchvision.ops.deform_conv2d by autograd. Nothing is timed before our output and our gradients
equal theirs, to 2e-5 of the largest value in 999 of 1000 numbers.

Ours is the NumPy twin and, where Numba is importable, Numba's twin beside it.

How to read it: a ratio is the other's time over ours, so 2.00 says that ours takes half as long.
The calls alternate (ours, other, ours, other), so a machine that slows down slows all. `ratio`
is that of two medians, which the targets judge; `by round` is the median of every round's own
ratio. Where the two differ by more than a few percent the machine was disturbed: take more rounds.
The targets against the peers are for one thread.

The tables beside "ours at one thread" give the speed-up by threads. `cores` is our processor time
over the time that passed: well above 1 where threads ran side by side, 1 where other programs
held the other cores. Only an idle machine shows a speed-up.

Memory is the peak of what NumPy allocates inside a call, less the arrays it returns, at the
largest number of threads. The exit status is 1 where a target is missed. Without the peers, ours at
several threads is timed beside ours at one.
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean, median
from typing import NamedTuple

import numpy as np
from peers import missing_peer, onnxruntime_forward, torchvision_both
from report import describe_machine, print_table, progress, warnings
from shapes import CASES, LARGE

import cupy_dcn
from cupy_dcn import _cpu, _twins

TWINS = {"NumPy": _cpu}
if _twins.why_not_numba() is None:
    from cupy_dcn import _numba

    TWINS["Numba"] = _numba

# Of 999 in 1000 numbers: peers add the offset to the pixel's place first, which rounds it (by 3e-5
# at pixel 512), and where that makes it a whole number the slope is that of its other side.
TOLERANCE, SHARE = 2e-5, 0.999
PEERS = {"forward": "onnxruntime", "forward+backward": "torchvision"}
# Least ratio at one thread: the geometric mean over all shapes, and any one of them.
TARGETS = {
    "NumPy": {"onnxruntime": (0.9, 0.6), "torchvision": (7.0, 4.0)},
    "Numba": {"onnxruntime": (1.4, 0.8), "torchvision": (12.0, 8.0)},
}
OURS_AT_ONE = "ours at one thread"
BUDGET_MIB = 64  # the default of workspace_bytes
CONSTANT_MIB = 4  # may come on top of it
PACKAGES = (
    "numpy",
    "scipy",
    "onnxruntime",
    "onnx",
    "torch",
    "torchvision",
    "threadpoolctl",
    "numba",
)


class Timing(NamedTuple):
    """Medians of alternating calls, in milliseconds, and how many times faster ours is."""

    what: str
    threads: int
    other: str
    case: str
    twin: str
    ours_ms: float
    other_ms: float
    cores: float
    ratio: float
    by_round: float


class Memory(NamedTuple):
    """Peaks of temporary memory, in MiB."""

    twin: str
    case: str
    about: str
    forward: float
    backward: float


class Ours:
    """One case of cupy_dcn by one of its twins, as calls without arguments."""

    def __init__(self, case, twin="NumPy"):
        self.module = TWINS[twin]
        self.arguments = case.arrays() | case.settings
        self.grad_output = case.grad_output()

    def forward(self):
        _twins._on_host = lambda: self.module
        return cupy_dcn.deform_conv2d(**self.arguments)

    def backward(self):
        _twins._on_host = lambda: self.module
        return cupy_dcn.deform_conv2d_backward(self.grad_output, **self.arguments)

    def both(self):
        return self.forward(), self.backward()


class Clock:
    """Times a call at a number of threads: of NumPy's BLAS, which is ours too, and of PyTorch."""

    def __init__(self):
        from threadpoolctl import ThreadpoolController

        self._limit_blas = ThreadpoolController().limit

    def limit(self, threads):
        self._limit_blas(limits=threads, user_api="blas")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)

    def measure(self, call, threads):
        """Return the seconds that pass and the seconds of processor time."""
        self.limit(threads)
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - start, time.process_time() - start_busy

    def alternate(self, ours, other, rounds):
        """Time pairs of call and threads in turn, after a round that doesn't count.

        Yields a row of figures for each of ``ours``, beside the one other.
        """
        *times, other_s = zip(
            *([self.measure(*pair) for pair in (*ours, other)] for _ in range(rounds + 1)),
            strict=True,
        )
        other_s = [passed for passed, _ in other_s[1:]]
        for column in times:
            ours_s, busy_s = zip(*column[1:], strict=True)
            mine, theirs = median(ours_s), median(other_s)
            by_round = median(o / m for m, o in zip(ours_s, other_s, strict=True))
            yield mine * 1e3, theirs * 1e3, median(busy_s) / mine, theirs / mine, by_round


def check_equality(case, ours, forward, both):
    """End the program where ours and a peer's results differ."""
    output, grads = ours.both()
    peer_output, peer_grads = both()
    pairs = {
        "output, onnxruntime": (output, forward()),
        "output, torchvision": (output, peer_output),
    }
    for name, peer_grad in peer_grads.items():
        pairs[f"grad_{name}, torchvision"] = getattr(grads, name), peer_grad
    for what, (mine, theirs) in pairs.items():
        error = np.quantile(np.abs(mine - theirs), SHARE) / np.abs(theirs).max()
        if not error <= TOLERANCE:  # NaN differs too
            sys.exit(f"case {case.name} not timed: {what}: {error:.1e} of the largest value apart")


def compare_with_peers(case, threads, rounds, clock):
    """Yield a timing of each direction and twin, the peer at the same number of threads."""
    clock.limit(threads)
    ours = {twin: Ours(case, twin) for twin in TWINS}
    forward, both = onnxruntime_forward(case, threads), torchvision_both(case)
    for each in ours.values():
        check_equality(case, each, forward, both)
    directions = ("forward", forward), ("both", both)
    for (what, peer), (name, theirs) in zip(PEERS.items(), directions, strict=True):
        progress(f"case {case.name}, {what}, {peer}, threads: {threads}")
        mine = [(getattr(each, name), threads) for each in ours.values()]
        rows = clock.alternate(mine, (theirs, threads), rounds)
        for twin, row in zip(ours, rows, strict=True):
            yield Timing(what, threads, peer, case.name, twin, *row)


def compare_threads(case, threads, rounds, clock):
    """Yield a timing of each direction and twin, at several threads and at one."""
    for twin in TWINS:
        ours = Ours(case, twin)
        for what, call in zip(PEERS, (ours.forward, ours.both), strict=True):
            progress(f"case {case.name}, {what}, {twin}, {OURS_AT_ONE}, threads: {threads}")
            (row,) = clock.alternate([(call, threads)], (call, 1), rounds)
            yield Timing(what, threads, OURS_AT_ONE, case.name, twin, *row)


def temporary_mib(call):
    """Return the peak of what a call allocates, less what it returns."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays = result if isinstance(result, tuple) else (result,)
    return (peak - sum(array.nbytes for array in arrays if array is not None)) / 2**20


def measure_memory(case, twin, threads, clock):
    progress(f"case {case.name}, memory, {twin}, threads: {threads}")
    clock.limit(threads)
    ours = Ours(case, twin)
    peaks = temporary_mib(ours.forward), temporary_mib(ours.backward)
    return Memory(twin, case.name, case.about, *peaks)


def judge(timings, memory):
    """Return lines of target, value and whether the value meets the target."""
    verdicts = []

    def verdict(target, value, met):
        verdicts.append((target, value, "met" if met else "MISSED"))

    for twin in TWINS:
        mine = [t for t in timings if t.twin == twin]
        for what, peer in PEERS.items():
            mean, worst = TARGETS[twin][peer]
            ratios = [t.ratio for t in mine if (t.other, t.threads) == (peer, 1)]
            if len(ratios) == len(CASES):
                value, due = geometric_mean(ratios), f"geometric mean: at least {mean}"
                verdict(f"{twin}, {what}, {peer}, {due}", value, value >= mean)
            if ratios:
                value, due = min(ratios), f"worst shape: at least {worst}"
                verdict(f"{twin}, {what}, {peer}, {due}", value, value >= worst)
        for what in PEERS:
            ratios = [t.ratio for t in mine if (t.what, t.other) == (what, OURS_AT_ONE)]
            if ratios:
                value = min(ratios)
                verdict(f"{twin}, {what}, {OURS_AT_ONE}, worst shape: above 1", value, value > 1)
    if len(TWINS) > 1:
        for what, peer in PEERS.items():
            numpy, numba = (
                [t.ours_ms for t in timings if (t.other, t.threads, t.twin) == (peer, 1, twin)]
                for twin in TWINS
            )
            if numba:
                value = min(n / m for n, m in zip(numpy, numba, strict=True))
                verdict(f"Numba, {what}, NumPy, worst shape: at least 1", value, value >= 1)
    peak = max(max(m.forward, m.backward) for m in memory)
    limit = f"at most {BUDGET_MIB} and a constant of {CONSTANT_MIB}"
    verdict(f"temporary memory, MiB: {limit}", peak, peak <= BUDGET_MIB + CONSTANT_MIB)
    return verdicts


def print_timings(timings):
    """Print a table for each direction, number of threads and other, twins side by side."""
    tables = defaultdict(lambda: defaultdict(list))
    for timing in timings:
        tables[timing[:3]][timing.case].append(timing)
    for (what, threads, other), cases in tables.items():
        rows = []
        for name, by_twin in cases.items():
            figures = (figure for t in by_twin for figure in (t.ours_ms, t.cores))
            ratios = (figure for t in by_twin for figure in (t.ratio, t.by_round))
            others = (t.other_ms for t in (by_twin if other == OURS_AT_ONE else by_twin[:1]))
            rows.append((name, CASES[name].about, *figures, *others, *ratios))
        ratios = 2 * len(by_twin)
        means = (
            geometric_mean(column) for column in zip(*(r[-ratios:] for r in rows), strict=True)
        )
        names = [t.twin for t in by_twin]
        header = [
            "", "x -> C_out, kernel", *(h for name in names for h in (f"{name} ms", "cores")),
            *(["other ms"] * (len(rows[0]) - 2 - 2 * ratios)),
            *(h for name in names for h in (f"{name} ratio", "by round")),
        ]  # fmt: skip
        blanks = ("",) * (len(header) - 2 - ratios)
        title = f"{what}: ours at {threads} thread{'s' * (threads > 1)}, other = {other}"
        print_table(title, header, [*rows, ("", "geometric mean", *blanks, *means)])


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=15, help="of every pair of calls (15)")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--large", action="store_true", help=f"also {LARGE.about}; needs 4 GB")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return int(text)


def take_timings(options, clock, with_peers):
    """Yield the timings beside the peers at every number of threads, then ours beside ours."""
    cases, most = [CASES[name] for name in options.cases], max(options.threads)
    for threads in sorted(set(options.threads)) if with_peers else ():
        for case in cases:
            yield from compare_with_peers(case, threads, options.rounds, clock)
    for case in cases if most > 1 else ():
        yield from compare_threads(case, most, options.rounds, clock)


def main():
    options = parse_options()
    missing = missing_peer()
    if missing:
        print(f"WARNING: no peer is timed beside ours: {missing}")
    machine, threads = describe_machine(PACKAGES), max(options.threads)
    for name, value in machine.items():
        print(f"{name:13} {value}")
    for warning in warnings():
        print(f"WARNING: {warning}")
    clock = Clock()
    timings = list(take_timings(options, clock, with_peers=not missing))
    print_timings(timings)

    cases = [CASES[name] for name in options.cases] + [LARGE] * options.large
    memory = [measure_memory(case, twin, threads, clock) for twin in TWINS for case in cases]
    header = ("", "", "x -> C_out, kernel", "forward", "backward")
    print_table(f"peak of temporary memory, MiB; the budget is {BUDGET_MIB}", header, memory)
    figures = {"machine": machine, "timings": [timing._asdict() for timing in timings]}
    if options.large:
        figures["large_s"] = {}
        for twin in TWINS:
            large = Ours(LARGE, twin)
            seconds = [clock.measure(call, threads)[0] for call in (large.forward, large.backward)]
            print("  large, {}: {:.1f} s forward, {:.1f} s backward".format(twin, *seconds))
            figures["large_s"][twin] = seconds

    verdicts = judge(timings, memory)
    print_table("targets", ("", "measured", ""), verdicts)
    if options.json:
        figures |= {"memory": [peaks._asdict() for peaks in memory], "targets": verdicts}
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(met != "met" for *_, met in verdicts))


if __name__ == "__main__":
    sys.exit(main())
