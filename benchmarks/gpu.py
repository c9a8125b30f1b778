"""The GPU path: counted in an emulator, and timed on a GPU or else held against a roofline.

    python benchmarks/gpu.py [--results docs] [--rounds 20] [--processes 2]

Prints the tables and writes them to RESULTS/benchmark.md, with the plots benchmark_time.png and
benchmark_size.png beside it. What is counted is said in counters.py, what is modelled in
roofline.py: a time is called measured only where a GPU took it.

The layers of networks are counted on one image of at most 32x32 pixels, at their true numbers of
channels, and scaled to their true size by the threads of each kernel; launches, products, copies
and memory are those of the true size.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import counters
import gpu_times
import kernels
import machine
import plots
import results
from gpu_report import Tools
from report import progress
from roofline import DEVICES, bottleneck, estimate, roof, seconds
from shapes import BATCHES, COUNTED, LAYERS, Case
from targets import DIRECTIONS, TARGETS

from cupy_dcn._warmup import usable_cupy

DTYPES = ("float32", "float16")
MODEL = "H100"  # the device of the plot where there is none
SAMPLE_SIDE = 32
# The code for the first with vector reductions is another; the others run that for sm_80.
CAPABILITIES = {name: "90" if device.architecture == "sm_90" else "80"
                for name, device in DEVICES.items()}  # fmt: skip
# What the plot of sizes goes through, the rest of a case being that of SIZED.
SIZED = Case("", 1, 64, 48, 48, 64, 3, 1, version=2)
CHANNELS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)
SIDES = (4, 8, 16, 32, 64, 96)
SPREADS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def sample_of(layer):
    """Return a layer at a size that can be emulated."""
    height, width = (min(side, SAMPLE_SIDE) for side in (layer.height, layer.width))
    return layer.of(images=1, height=height, width=width)


def counted(key):
    """Count one of the shapes with targets; list its programs."""
    name, dtype = key
    case = COUNTED[name]
    calls, programs = counters.count(case, dtype, deterministic=True), {}
    for direction, call in calls.items():
        for step in call.steps:
            if step.kind == "kernel":
                program = machine.programs(step.code, "sm_90")[step.name]
                programs[direction, step.name] = program
    return results.Counted(case, dtype, calls, programs)


def modelled(key):
    """Return the rows of a layer: counted on a sample, estimated for every batch and device."""
    layer, dtype = key
    sample = sample_of(layer)
    capabilities = sorted(set(CAPABILITIES.values()))
    samples = {each: counters.count(sample, dtype, each) for each in capabilities}
    rows = []
    for images in BATCHES:
        case = layer.of(images=images)
        calls = {each: counters.rehearse(case, dtype, each) for each in capabilities}
        for direction in DIRECTIONS:
            steps = {
                each: counters.scaled(calls[each][direction].steps, samples[each][direction].steps)
                for each in capabilities
            }
            call = calls[CAPABILITIES[MODEL]][direction]
            rows.append(_row(case, dtype, direction, steps, call))
    return rows


def _row(case, dtype, direction, steps_by_capability, call):
    half, arrays = dtype == "float16", counters.compulsory_bytes(case, dtype, direction)
    flops = counters.product_flops(case, direction)
    times, roofs, busiest = {}, {}, {}
    for name, device in DEVICES.items():
        steps = steps_by_capability[CAPABILITIES[name]]
        roofs[name] = roof(device, flops, arrays, half)
        if steps is not None:
            times[name] = estimate(steps, device), estimate(steps, device, True, arrays)
            busiest[name] = bottleneck(steps, device)
    parts = {}
    for step in steps_by_capability[CAPABILITIES[MODEL]] or ():
        parts[step.kind] = parts.get(step.kind, 0.0) + seconds(step, DEVICES[MODEL])
    return results.Modelled(
        case, dtype, direction, times, roofs, busiest, parts, call.workspace_bytes, len(call.steps)
    )


def sized(key):
    """Count one point of a plot."""
    case, dtype = key
    calls = counters.count(case, dtype)
    return {each: counters.per_element(call.steps, case) for each, call in calls.items()}


def sweeps():
    """Return the cases of the plot of sizes, by the name of its axis and the place on it."""
    few = SIZED.of(height=32, width=32)
    return {
        "channels": {each: few.of(channels=each, out_channels=each) for each in CHANNELS},
        "side of the picture, pixels": {each: SIZED.of(height=each, width=each) for each in SIDES},
        "standard deviation of the offsets, pixels": {
            each: SIZED.of(spread=each) for each in SPREADS
        },
    }


def timed(tools):
    """Time the layers on a GPU; return the rows, and why a peer is missing."""
    rows, missing = [], {}
    name, device = gpu_times.known_device(tools.cupy)
    for layer in LAYERS:
        for dtype in DTYPES:
            gpu_times.check(tools, sample_of(layer), dtype)
            for images in BATCHES:
                case = layer.of(images=images)
                if not gpu_times.fits(tools.cupy, case, dtype):
                    progress(f"{case.about}, {dtype}: left out, too large for {name}")
                    continue
                progress(f"{case.about}, {dtype}, on {name}")
                found, why = gpu_times.time_case(tools, case, dtype)
                missing |= why
                for direction, timing in found.items():
                    arrays = counters.compulsory_bytes(case, dtype, direction)
                    flops = counters.product_flops(case, direction)
                    least = device and roof(device, flops, arrays, dtype == "float16")
                    row = (case, dtype, direction, timing, arrays, least)
                    rows.append(results.Timed(*row))
    return name, rows, missing


def in_turn(pool, function, keys, about):
    """Run a function on every key in the pool, saying how far it is."""
    found = {}
    for number, (key, value) in enumerate(zip(keys, pool.map(function, keys), strict=True), 1):
        progress(f"{about}: {number} of {len(keys)}")
        found[key] = value
    return found


def parse_options(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs"), help="folder (docs)")
    parser.add_argument("--rounds", type=int, default=20, help="of every call timed (20)")
    parser.add_argument("--processes", type=int, default=2, help="that emulate (2)")
    return parser.parse_args(arguments)


def find_tools(rounds):
    """Return the tools to time with, None without a GPU, and why there is none."""
    try:
        return Tools(usable_cupy(), rounds=rounds), None
    except (ImportError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def main(arguments=None):
    options = parse_options(arguments)
    if kernels.nvrtc is None:
        return "CuPy or the NVRTC for it is missing: pip install -e '.[bench,emulator]'"
    tools, why = find_tools(options.rounds)
    by_size = sweeps()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        run = partial(in_turn, pool)
        tables = run(counted, list(TARGETS), "shapes counted")
        layers = [(layer, dtype) for layer in LAYERS for dtype in DTYPES]
        models = [row for rows in run(modelled, layers, "layers").values() for row in rows]
        points = [(case, "float32") for cases in by_size.values() for case in cases.values()]
        sizes = run(sized, points, "sizes")
    times = timed(tools) if tools else None
    text = results.text(list(tables.values()), models, times, why)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "benchmark.md").write_text(text, encoding="utf-8")
    plots.draw_times(options.results / "benchmark_time.png", models, times, MODEL)
    curves = {
        kind: {at: sizes[case, "float32"] for at, case in cases.items()}
        for kind, cases in by_size.items()
    }
    plots.draw_sizes(options.results / "benchmark_size.png", curves)
    print(f"written to {options.results.resolve()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
