"""Time what the host adds to the arithmetic of a small call: x (1, 16, 16, 16) -> 16, 3x3, v2.

    python benchmarks/small_call.py [--rounds 501]

The arithmetic is `Arithmetic.run` below: the calls of NumPy, SciPy and BLAS that the forward of
this layer takes, one after the other on arrays prepared beforehand, without a check, a view or an
allocation that could be made before. Its result has to equal that of the calls timed beside it.
The calls alternate within a round, and the overhead is the median of the rounds' differences, so a
machine that slows down does not look like overhead; one that is busy makes all of it longer. It is
NumPy's twin that is meant: where there is Numba, CUPY_DCN_NUMBA=0 asks for it. The exit status is 1
where `deform_conv2d` adds more than 150 microseconds.
"""

import argparse
import sys
import time
from statistics import median

import numpy as np
from report import describe_machine, print_table, progress, warnings
from scipy.sparse import _sparsetools
from threadpoolctl import threadpool_limits

import cupy_dcn

TARGET = 150  # microseconds
REPEATS = 3  # well within a slice of the scheduler: a longer run is cut into on a busy machine
CHANNELS, SIZE, TAPS = 16, 16, 9
PITCH = SIZE + 4  # of an image with its border of two zeros


class Arithmetic:
    """The kernels of the forward, with every array and view prepared."""

    def __init__(self, x, offset, weight, mask):
        points = (SIZE, SIZE, TAPS)
        count = SIZE * SIZE * TAPS
        self.image = np.empty((PITCH, PITCH, CHANNELS), np.float32)
        self.inside = self.image[2:-2, 2:-2], x[0].transpose(1, 2, 0)
        self.rows = self.image.reshape(-1)
        by_point = offset.reshape(TAPS, 2, SIZE, SIZE).transpose(1, 2, 3, 0)
        self.location = np.empty((2, *points), np.float32)
        self.offset, self.mask = by_point, mask.reshape(TAPS, SIZE, SIZE).transpose(1, 2, 0)
        y, x_, tap = np.ogrid[:SIZE, :SIZE, :TAPS]
        self.grid = [np.float32(y - 1 + tap // 3), np.float32(x_ - 1 + tap % 3)]
        self.cell, self.factor = np.empty_like(self.location), np.empty(points, np.float32)
        self.flags, self.edge = np.empty(points, bool), np.empty(points, bool)
        self.number, self.index = np.empty(points, np.float32), np.empty(points, np.int32)
        self.top, self.left, self.bottom = np.empty((3, *points), np.float32)
        self.starts = np.arange(0, 4 * count + 1, 4, dtype=np.int32)
        self.indices, self.data = np.empty((*points, 4), np.int32), np.empty((*points, 4), "f4")
        self.flat = self.indices.reshape(-1), self.data.reshape(-1)
        self.columns = np.empty((count * CHANNELS), np.float32)
        self.matrix = np.empty((TAPS, CHANNELS, CHANNELS), np.float32)
        self.weight = weight.reshape(CHANNELS, CHANNELS, TAPS).transpose(2, 1, 0)
        self.product = np.empty((SIZE * SIZE, CHANNELS), np.float32)
        self.out = np.empty((1, CHANNELS, SIZE, SIZE), np.float32)
        self.count = count

    def run(self):
        """Compute the output into ``out``."""
        self.image.fill(0)
        np.copyto(*self.inside)
        np.copyto(self.matrix, self.weight)
        np.copyto(self.location, self.offset)
        for location, grid in zip(self.location, self.grid, strict=True):
            location += grid
            np.clip(location, -2, SIZE, out=location)
            if location.min() <= -1:
                np.equal(location, -1, out=self.edge).any()
        np.floor(self.location, out=self.cell)
        self.location -= self.cell
        row, column = self.cell
        row.max(), column.max()
        np.copyto(self.factor, self.mask)
        np.isfinite(self.factor, out=self.flags).all()
        np.add(row, 2, out=self.number)
        self.number *= PITCH
        self.number += column
        self.number += 2
        np.copyto(self.index, self.number, casting="unsafe")
        self.index.min(), self.index.max()
        (y, x), top, left, bottom = self.location, self.top, self.left, self.bottom
        np.subtract(1, x, out=left)
        np.multiply(y, self.factor, out=bottom)
        np.subtract(self.factor, bottom, out=top)
        pairs = ((top, left), (top, x), (bottom, left), (bottom, x))
        for corner, (pair, step) in enumerate(zip(pairs, (0, 1, PITCH, PITCH + 1), strict=True)):
            np.multiply(*pair, out=self.data[..., corner])
            np.add(self.index, step, out=self.indices[..., corner])
        self.columns.fill(0)
        _sparsetools.csr_matvecs(
            self.count, PITCH * PITCH, CHANNELS, self.starts, *self.flat, self.rows, self.columns
        )
        depth = TAPS * CHANNELS
        columns, matrix = self.columns.reshape(-1, depth), self.matrix.reshape(depth, -1)
        np.matmul(columns, matrix, out=self.product)
        np.copyto(self.out.reshape(CHANNELS, -1), self.product.T)
        return self.out


def calls():
    """Return what to time, by name, the arithmetic first; all compute the same."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, CHANNELS, SIZE, SIZE), np.float32)
    offset = 1.5 * rng.standard_normal((1, 2 * TAPS, SIZE, SIZE), np.float32)
    weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32)
    mask = rng.random((1, TAPS, SIZE, SIZE), np.float32)
    plan = cupy_dcn.Plan(x.shape, weight, padding=1)
    out = np.empty(plan.out_shape, np.float32)
    return {
        "the arithmetic alone": Arithmetic(x, offset, weight, mask).run,
        "deform_conv2d": lambda: cupy_dcn.deform_conv2d(x, offset, weight, padding=1, mask=mask),
        "Plan, out=": lambda: plan(x, offset, mask, out=out),
    }


def microseconds(call):
    """Return the processor time of one call, the mean of a few; all of them are one thread's."""
    start = time.thread_time()
    for _ in range(REPEATS):
        call()
    return (time.thread_time() - start) / REPEATS * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=501)
    rounds = parser.parse_args().rounds
    todo = calls()
    expected, *others = (np.copy(call()) for call in todo.values())
    for other in others:
        np.testing.assert_allclose(other, expected, atol=5e-6 * np.abs(expected).max())
    # A small call has one tile, so one thread; BLAS threads of the arithmetic would spin beside it.
    with threadpool_limits(1, "blas"):
        times = [[microseconds(call) for call in todo.values()] for _ in range(rounds)]
    above = {
        name: median(each[column] - each[0] for each in times) for column, name in enumerate(todo)
    }
    medians = map(median, zip(*times, strict=True))
    rows = [(name, each, above[name]) for name, each in zip(todo, medians, strict=True)]
    for key, value in describe_machine(("numpy", "scipy")).items():
        print(f"{key}: {value}")
    for warning in warnings():
        progress(warning)
    print_table("A small forward, microseconds", ("call", "median", "above the arithmetic"), rows)
    return int(above["deform_conv2d"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
