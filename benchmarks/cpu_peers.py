"""Time the CPU path beside onnxruntime and torchvision: one process, same arrays, float32.

    python benchmarks/cpu_peers.py [--rounds 15] [--threads 1 2] [--cases A B C D] [--large]

Peers: the forward of onnxruntime's DeformConv (opset 19), and the forward with all gradients of
torchvision.ops.deform_conv2d by autograd. Nothing is timed before our output and our gradients
equal theirs, to 5e-6 of the largest value.

How to read it: a ratio is the other's time over ours, so 2.00 says that ours takes half as long.
The calls alternate (ours, other, ours, other), so a machine that slows down slows both. `ratio`
is that of the two medians, which the targets judge; `by round` is the median of every round's own
ratio. Where the two differ by more than a few percent the machine was disturbed: take more rounds.
The targets against the peers are for one thread.

The tables beside "ours at one thread" give the speed-up by threads. `cores` is our processor time
over the time that passed: well above 1 where threads ran side by side, 1 where other programs
held the other cores. Only an idle machine shows a speed-up.

Memory is the peak of what NumPy allocates inside a call, less the arrays it returns, at the
largest number of threads. The exit status is 1 where a target is missed.
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
from cases import CASES, LARGE
from peers import onnxruntime_forward, require_peers, torchvision_both
from report import describe_machine, print_table, progress, warnings

import cupy_dcn

TOLERANCE = 5e-6
PEERS = {"forward": "onnxruntime", "forward+backward": "torchvision"}
# Least ratio at one thread: the geometric mean over all shapes, and any one of them.
TARGETS = {"onnxruntime": (0.9, 0.6), "torchvision": (7.0, 4.0)}
OURS_AT_ONE = "ours at one thread"
BUDGET_MIB = 64  # the default of workspace_bytes
CONSTANT_MIB = 4  # may come on top of it
PACKAGES = ("numpy", "scipy", "onnxruntime", "onnx", "torch", "torchvision", "threadpoolctl")


class Timing(NamedTuple):
    """Medians of alternating calls, in milliseconds, and how many times faster ours is."""

    what: str
    threads: int
    other: str
    case: str
    ours_ms: float
    other_ms: float
    cores: float
    ratio: float
    by_round: float


class Memory(NamedTuple):
    """Peaks of temporary memory, in MiB."""

    case: str
    about: str
    forward: float
    backward: float


class Ours:
    """One case of cupy_dcn, as calls without arguments."""

    def __init__(self, case):
        self.arguments = case.arrays() | case.settings
        self.grad_output = case.grad_output()

    def forward(self):
        return cupy_dcn.deform_conv2d(**self.arguments)

    def backward(self):
        return cupy_dcn.deform_conv2d_backward(self.grad_output, **self.arguments)

    def both(self):
        return self.forward(), self.backward()


class Clock:
    """Times a call at a number of threads: of NumPy's BLAS, which is ours too, and of PyTorch."""

    def __init__(self):
        from threadpoolctl import ThreadpoolController
        from torch import set_num_threads

        self._limit_blas, self._limit_torch = ThreadpoolController().limit, set_num_threads

    def limit(self, threads):
        self._limit_blas(limits=threads, user_api="blas")
        self._limit_torch(threads)

    def measure(self, call, threads):
        """Return the seconds that pass and the seconds of processor time."""
        self.limit(threads)
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - start, time.process_time() - start_busy

    def alternate(self, ours, other, rounds):
        """Time two pairs of call and threads in turn, after a round that doesn't count."""
        times = [(*self.measure(*ours), self.measure(*other)[0]) for _ in range(rounds + 1)][1:]
        ours_s, busy_s, other_s = (median(column) for column in zip(*times, strict=True))
        by_round = median(theirs / mine for mine, _, theirs in times)
        return ours_s * 1e3, other_s * 1e3, busy_s / ours_s, other_s / ours_s, by_round


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
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        if not error <= TOLERANCE:  # NaN differs too
            sys.exit(f"case {case.name} not timed: {what}: {error:.1e} of the largest value apart")


def compare_with_peers(case, threads, rounds, clock):
    """Return a timing of each direction, ours and the peer at the same number of threads."""
    clock.limit(threads)
    ours = Ours(case)
    forward, both = onnxruntime_forward(case, threads), torchvision_both(case)
    check_equality(case, ours, forward, both)
    calls = (ours.forward, forward), (ours.both, both)
    for (what, peer), (mine, theirs) in zip(PEERS.items(), calls, strict=True):
        progress(f"case {case.name}, {what}, {peer}, threads: {threads}")
        times = clock.alternate((mine, threads), (theirs, threads), rounds)
        yield Timing(what, threads, peer, case.name, *times)


def compare_threads(case, threads, rounds, clock):
    """Return a timing of each direction, ours at several threads and at one."""
    ours = Ours(case)
    for what, call in zip(PEERS, (ours.forward, ours.both), strict=True):
        progress(f"case {case.name}, {what}, {OURS_AT_ONE}, threads: {threads}")
        times = clock.alternate((call, threads), (call, 1), rounds)
        yield Timing(what, threads, OURS_AT_ONE, case.name, *times)


def temporary_mib(call):
    """Return the peak of what a call allocates, less what it returns."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays = result if isinstance(result, tuple) else (result,)
    return (peak - sum(array.nbytes for array in arrays if array is not None)) / 2**20


def measure_memory(case, threads, clock):
    progress(f"case {case.name}, memory, threads: {threads}")
    clock.limit(threads)
    ours = Ours(case)
    peaks = temporary_mib(ours.forward), temporary_mib(ours.backward)
    return Memory(case.name, case.about, *peaks)


def judge(timings, memory):
    """Return lines of target, value and whether the value meets the target."""
    verdicts = []

    def verdict(target, value, met):
        verdicts.append((target, value, "met" if met else "MISSED"))

    for what, peer in PEERS.items():
        mean, worst = TARGETS[peer]
        ratios = [t.ratio for t in timings if (t.other, t.threads) == (peer, 1)]
        if len(ratios) == len(CASES):
            value = geometric_mean(ratios)
            verdict(f"{what}, {peer}, geometric mean: at least {mean}", value, value >= mean)
        if ratios:
            value = min(ratios)
            verdict(f"{what}, {peer}, worst shape: at least {worst}", value, value >= worst)
    for what in PEERS:
        ratios = [t.ratio for t in timings if (t.what, t.other) == (what, OURS_AT_ONE)]
        if ratios:
            value = min(ratios)
            verdict(f"{what}, {OURS_AT_ONE}, worst shape: above 1", value, value > 1)
    peak = max(max(m.forward, m.backward) for m in memory)
    limit = f"at most {BUDGET_MIB} and a constant of {CONSTANT_MIB}"
    verdict(f"temporary memory, MiB: {limit}", peak, peak <= BUDGET_MIB + CONSTANT_MIB)
    return verdicts


def print_timings(timings):
    """Print a table for each direction, number of threads and other."""
    tables = defaultdict(list)
    for timing in timings:
        tables[timing[:3]].append(timing)
    for (what, threads, other), rows in tables.items():
        means = (geometric_mean(column) for column in zip(*(row[-2:] for row in rows), strict=True))
        header = ("", "x -> C_out, kernel", "ours ms", "other ms", "cores", "ratio", "by round")
        lines = [(row.case, CASES[row.case].about, *row[4:]) for row in rows]
        title = f"{what}: ours at {threads} thread{'s' * (threads > 1)}, other = {other}"
        print_table(title, header, [*lines, ("", "geometric mean", "", "", "", *means)])


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


def take_timings(options, clock):
    """Yield the timings beside the peers at every number of threads, then ours beside ours."""
    cases, most = [CASES[name] for name in options.cases], max(options.threads)
    for threads in sorted(set(options.threads)):
        for case in cases:
            yield from compare_with_peers(case, threads, options.rounds, clock)
    for case in cases if most > 1 else ():
        yield from compare_threads(case, most, options.rounds, clock)


def main():
    options = parse_options()
    require_peers()
    machine, threads = describe_machine(PACKAGES), max(options.threads)
    for name, value in machine.items():
        print(f"{name:13} {value}")
    for warning in warnings():
        print(f"WARNING: {warning}")
    clock = Clock()
    timings = list(take_timings(options, clock))
    print_timings(timings)

    cases = [CASES[name] for name in options.cases] + [LARGE] * options.large
    memory = [measure_memory(case, threads, clock) for case in cases]
    header = ("", "x -> C_out, kernel", "forward", "backward")
    print_table(f"peak of temporary memory, MiB; the budget is {BUDGET_MIB}", header, memory)
    figures = {"machine": machine, "timings": [timing._asdict() for timing in timings]}
    if options.large:
        large = Ours(LARGE)
        seconds = [clock.measure(call, threads)[0] for call in (large.forward, large.backward)]
        print("  large: {:.1f} s forward, {:.1f} s backward".format(*seconds))
        figures["large_s"] = seconds

    verdicts = judge(timings, memory)
    print_table("targets", ("", "measured", ""), verdicts)
    if options.json:
        figures |= {"memory": [peaks._asdict() for peaks in memory], "targets": verdicts}
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(met != "met" for *_, met in verdicts))


if __name__ == "__main__":
    sys.exit(main())
