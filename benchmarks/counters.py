"""What a call asks of a GPU, without one: counters of its kernels, its products and its copies.

`count` runs a call on the stand-in for CuPy in tests/, which emulates every kernel instruction by
instruction, after checking the results against NumPy's in float64. What is counted:

- instructions: of PTX for sm_90, one for each thread that executes it;
- load, store and atomic sectors: the distinct 32 bytes that a warp's access touches, summed over
  all accesses, as they reach the L1 cache;
- DRAM bytes: what each step touches, once a step: a kernel's distinct sectors as the emulator saw
  them, those of atomics twice, read and written; the operands of a product; the arrays of CuPy's
  own elementwise operations, fills, copies and reductions. Caches are cold between steps, so a
  needless copy shows. `compulsory_bytes` are the arrays of the call alone: what would be left if
  the L2 cache held everything in between.

Large calls take too long to emulate. `rehearse` runs them without executing kernels and products:
launches, products, copies and memory come out exactly, and `scaled` fills in what the kernels do
from a smaller picture of the same layer, by threads.
"""

import sys
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gpu_report import error_of
from roofline import SECTOR, WORK, Step
from targets import DIRECTIONS, Figures

import cupy_dcn

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))

import emulated_cupy  # noqa: E402

TOLERANCES = {"float32": 1e-5, "float16": 1e-2}
DETERMINISTIC = "backward, deterministic"
HALF_TYPES = ("CUDA_R_16F", "CUDA_R_16BF")


class NotEqual(Exception):
    """A result differs from NumPy's: nothing is counted or timed then."""


class Call(NamedTuple):
    """A forward or a backward: its steps, its peak of temporary memory, and its results."""

    steps: list
    workspace_bytes: int
    results: dict


def calls_of(case, arrays, grad_output, deterministic=False):
    """Return forward and backward as functions without arguments, with results by name.

    With the deterministic backward, too, if asked.
    """
    settings = case.settings

    def forward():
        return {"output": cupy_dcn.deform_conv2d(**arrays, **settings)}

    def backward(**more):
        grads = cupy_dcn.deform_conv2d_backward(grad_output, **arrays, **settings, **more)._asdict()
        return {f"grad_{name}": grad for name, grad in grads.items() if grad is not None}

    calls = dict(zip(DIRECTIONS, (forward, backward), strict=True))
    if deterministic:
        calls[DETERMINISTIC] = partial(backward, deterministic=True)
    return calls


def expected_of(case, dtype):
    """Return the results of NumPy in float64 on the same rounded values."""
    arrays = {name: each.astype(np.float64) for name, each in case.arrays_of(dtype).items()}
    grad_output = case.grad_output().astype(dtype).astype(np.float64)
    calls = calls_of(case, arrays, grad_output)
    return {name: each for call in calls.values() for name, each in call().items()}


def check_equality(case, dtype, results, expected):
    """Raise where results, as NumPy arrays, are not those expected."""
    for name, result in results.items():
        error = error_of(result, expected[name])
        if not error <= TOLERANCES[dtype]:  # NaN differs too
            raise NotEqual(f"{case.about}, {dtype}: {name} is {error:.1e} of the largest value off")


def count(case, dtype, capability="90", deterministic=False):
    """Emulate a case; return its calls by direction."""
    expected = expected_of(case, dtype)
    machine = {"compute_capability": capability, "count": True, "check": False}
    with emulated_cupy.install() as cupy, emulated_cupy.configure(**machine):
        arrays = {name: cupy.asarray(each) for name, each in case.arrays_of(dtype).items()}
        grad_output = cupy.asarray(case.grad_output().astype(dtype))
        found = _recorded(cupy, calls_of(case, arrays, grad_output, deterministic))
        for call in found.values():
            results = {name: cupy.asnumpy(each) for name, each in call.results.items()}
            check_equality(case, dtype, results, expected)
    return {direction: call._replace(results={}) for direction, call in found.items()}


def rehearse(case, dtype, capability="90"):
    """Return the calls by direction, without what the kernels do."""
    machine = {"compute_capability": capability, "execute": False}
    with emulated_cupy.install() as cupy, emulated_cupy.configure(**machine):
        shapes = {name: shape for name, shape in case.shapes.items() if name != "bias"}
        arrays = {name: cupy.empty(shape, dtype) for name, shape in shapes.items()}
        calls = calls_of(case, arrays, cupy.empty(case.out_shape, dtype))
        found = _recorded(cupy, calls)
    return {direction: call._replace(results={}) for direction, call in found.items()}


def _recorded(cupy, calls):
    found = {}
    for direction, call in calls.items():
        with emulated_cupy.recorded() as log:
            peak, results = peak_bytes(cupy, call)
        found[direction] = Call(steps_of(log), peak, results)
    return found


def peak_bytes(cupy, call):
    """Return the peak of what a call takes from a memory pool less its results, and these."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        results = call()
    return pool.total_bytes() - sum(each.nbytes for each in results.values()), results


def steps_of(log):
    """Return a log's kernels, products and copies as steps, in their order."""
    makers = {
        emulated_cupy.Launch: _of_launch,
        emulated_cupy.Product: _of_product,
        emulated_cupy.Operation: _of_operation,
    }
    return [makers[type(each)](each) for each in log.entries if type(each) in makers]


def _of_launch(launch):
    threads, counters = prod((*launch.grid, *launch.block)), launch.counters
    if counters is None:
        return Step(launch.name, "kernel", threads, code=launch.code)
    shared = (getattr(counters, f"shared_{kind}_requests") for kind in ("load", "store", "atomic"))
    touched = counters.sectors_read + counters.sectors_written + counters.sectors_updated
    return Step(
        launch.name,
        "kernel",
        threads,
        counters.thread_instructions,
        counters.warp_instructions,
        counters.classes["float"],
        counters.global_load_sectors,
        counters.global_store_sectors,
        counters.global_atomic_sectors,
        sum(shared) + counters.bank_conflicts,
        SECTOR * touched,
        code=launch.code,
    )


def _of_product(product):
    return Step(
        f"product {product.m} x {product.n} x {product.k}",
        "product",
        dram_bytes=product.bytes_read + product.bytes_written,
        flops=2 * product.m * product.n * product.k * product.batch,
        half=product.a_type in HALF_TYPES,
    )


def _of_operation(operation):
    nbytes = operation.bytes_read + operation.bytes_written
    return Step(operation.name, "copy", dram_bytes=nbytes)


def scaled(steps, samples):
    """Fill in the kernels of a rehearsal from those of a sample, by name and in step with threads.

    Returns None where the sample lacks a kernel: another one was chosen for the smaller picture.
    """
    by_name = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    filled = []
    for step in steps:
        if step.kind != "kernel":
            filled.append(step)
        elif step.name in by_name:
            few = by_name[step.name]
            factor = step.threads / sum(each.threads for each in few)
            together = (sum(column) for column in zip(*(each[WORK] for each in few), strict=True))
            filled.append(Step(step.name, "kernel", *together, code=step.code).scaled(factor))
        else:
            return None
    return filled


def per_element(steps, case):
    """Return the counters of a call per column element."""
    kernels = [step for step in steps if step.kind == "kernel"]
    names = ("thread_instructions", "load_sectors", "store_sectors", "atomic_sectors")
    totals = [sum(getattr(step, name) for step in kernels) for name in names]
    totals.append(sum(step.dram_bytes for step in steps))
    return Figures(*(total / case.column_elements for total in totals))


def compulsory_bytes(case, dtype, direction):
    """Return the bytes of a call's own arrays: each read or written once."""
    arrays = sum(prod(shape) for name, shape in case.shapes.items() if name != "bias")
    once = prod(case.out_shape) + (1 if direction == "forward" else 2) * arrays
    return once * np.dtype(dtype).itemsize


def product_flops(case, direction):
    """Return the floating-point operations of a call's products."""
    forward = 2 * case.column_elements * case.out_channels // case.groups
    return forward * (2 if direction == "backward" else 1)
