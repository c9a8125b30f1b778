"""Faults planted by hand in the CPU path: does a test notice each?

    python tests/mutants.py [-j 2] [words of a file or of what a fault does]

Each is planted in a copy of the working tree, where the tests of the files that it concerns run on
NumPy arrays, by the twin that it is in, up to the first that fails. Prints caught / planted and the
survivors; the exit status is 1 where there are any. Faults of the kernels are planted by
test_gpu.py.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = "benchmarks", "cuda", "cupy_dcn", "docs", "tests"
LIMIT = 900  # seconds: who waits for ever has been noticed too
NOTHING_CHOSEN = 5  # pytest's exit status


class Mutant(NamedTuple):
    """A change of one file of the library: a text that is there once, and what takes its place."""

    file: str
    what: str
    old: str
    new: str


MUTANTS = [Mutant(*row) for row in (
    # Stage 1: attributes and arrays
    ("_attributes.py", "groups that don't divide the channels", "if channels % count:",
     "if channels < count:"),
    ("_attributes.py", "an output without a pixel", "if length < 1:", "if length < 0:"),
    ("_attributes.py", "a pair the other way round", "return values[0], values[-1]",
     "return values[-1], values[0]"),
    ("_attributes.py", "padding at the bottom as that at the left", "pads[0], pads[2],",
     "pads[0], pads[1],"),
    ("_attributes.py", "a kernel of 0 by 1", "if min(kernel) < 1:", "if max(kernel) < 1:"),
    ("_attributes.py", "True as a number", " and not isinstance(value, bool)", ""),
    ("_attributes.py", "numbers beyond 2^31", "MOST = 2**31 - 1", "MOST = 2**32 - 1"),
    ("_attributes.py", "'same' in small letters alone", "padding.upper() != \"SAME\"",
     "padding != \"SAME\""),
    ("_arguments.py", "an offset of more images", "images != geometry.images",
     "images < geometry.images"),
    ("_arguments.py", "channels of one deformable group",
     "expected = each * geometry.deformable_groups * geometry.taps",
     "expected = each * geometry.taps"),
    ("_arguments.py", "an offset of any width",
     "(size[0], size[1]) != (geometry.out_height, geometry.out_width)",
     "size[0] != geometry.out_height"),
    ("_arguments.py", "output channels that groups don't divide",
     "out_channels < 1 or out_channels % geometry.groups", "out_channels < 1"),
    ("_arguments.py", "a bias that is too long", "array.shape != weight.shape[:1]",
     "array.shape < weight.shape[:1]"),
    ("_arguments.py", "an offset of float32 beside any x",
     "not (is_half(dtype) and array.dtype == np.float32)", "not array.dtype == np.float32"),
    ("_arguments.py", "results over a part of an input", "overlaps(array, source)",
     "array is source"),
    ("_arguments.py", "results in strides", "array.flags.c_contiguous and writeable",
     "writeable"),
    ("_arguments.py", "one name for needs", "isinstance(needs, str) or library_of(needs)",
     "library_of(needs)"),
    ("_arrays.py", "holes of a masked array", "isinstance(value, np.ma.MaskedArray)",
     "isinstance(value, np.matrix)"),
    ("_arrays.py", "a library asked of what came, not of what was made of it",
     "for name, value in arrays.items() if (found := library_of(value))",
     "for name, value in given.items() if (found := library_of(value))"),
    ("_foreign.py", "pinned memory taken for a GPU's", "(CPU, CUDA_HOST), (CUDA, CUDA_MANAGED)",
     "(CPU,), (CUDA, CUDA_MANAGED, CUDA_HOST)"),
    ("_foreign.py", "numbers taken for arrays", "isinstance(value, (type, np.generic))",
     "isinstance(value, type)"),
    ("_foreign.py", "bytes taken for arrays", 'view.format[-1] in "efd"',
     'view.format[-1] in "efdB"'),
    ("_foreign.py", "an array's interface copied", "return np.asarray(value)",
     "return np.array(value)"),
    ("_foreign.py", "integers taken for bfloat16", 'array.dtype.name != "bfloat16"',
     'array.dtype.itemsize != 2'),
    ("_foreign.py", "Paddle's gradients cut", ' or not getattr(value, "stop_gradient", True)', ""),
    ("_foreign.py", "what cannot be written to written", 'bool(interface["data"][1])', "False"),
    ("_arrays.py", "float64 computed in float32",
     "return np.dtype(np.float32) if is_half(dtype) else dtype", "return np.dtype(np.float32)"),
    ("_arrays.py", "overlap told by bounds alone", "np.shares_memory(a, b, max_work=10**6)",
     "np.may_share_memory(a, b)"),
    ("_plan_arguments.py", "a bias where the plan has none", "if planned_bias is None:",
     "if planned_bias is bias_:"),
    # Stage 2: geometry
    ("_geometry.py", "one pixel more where the stride leaves a rest",
     "(size + pads - reach) // stride + 1", "-(-(size + pads - reach) // stride) + 1"),
    ("_geometry.py", "SAME pads more at the start", "return total // 2, total - total // 2",
     "return total - total // 2, total // 2"),
    ("_geometry.py", "far padding at the top forgotten",
     "self.height + self.pad_top + self.dilation_y * self.kernel_height", "self.height"),
    ("_geometry.py", "far padding at the left forgotten",
     "self.width + self.pad_left + self.dilation_x * self.kernel_width", "self.width"),
    # Stage 3: the cut
    ("_cut.py", "parts larger than asked for", "cls(start, stop, -(-(stop - start) // at_most))",
     "cls(start, stop, max((stop - start) // at_most, 1))"),
    ("_cut.py", "the rest of a range left out", "self.start + length * (part + 1) // self.count",
     "self.start + length // self.count * (part + 1)"),
    ("_cut.py", "tiles numbered by rows twice", "divmod(index, len(self.columns))",
     "divmod(index, len(self.rows))"),
    ("_cut.py", "memory of the smallest cut", "max(map(sum, sizes))", "min(map(sum, sizes))"),
    ("_cut_cpu.py", "each worker takes the whole budget", "half // workers // pixel_bytes",
     "half // pixel_bytes"),
    ("_cut_cpu.py", "workers' sums outside the budget",
     "copies = 1 + workers if backward else 1\n", "copies = 1\n"),
    ("_cut_cpu.py", "less than the least budget", "if workspace_bytes < least:",
     "if workspace_bytes < least // 2:"),
    ("_cut_cpu.py", "a border on one side", "cells = (geometry.height + 2 * BORDER)",
     "cells = (geometry.height + BORDER)"),
    ("_cut_cpu.py", "columns are not copied by group",
     "copies = (2 if backward else 1) * (2 if geometry.groups > 1 else 1)",
     "copies = 2 if backward else 1"),
    ("_cut_cpu.py", "windows of any size", "min(half // workers // cell_bytes, WINDOW_CELLS)",
     "WINDOW_CELLS"),
    # Stage 4: samples
    ("_samples_cpu.py", "clipped a pixel early", "np.clip(cell, -BORDER, size, out=cell)",
     "np.clip(cell, -BORDER, size - 1, out=cell)"),
    ("_samples_cpu.py", "not clipped below", "if low < -BORDER or high > size:",
     "if high > size:"),
    ("_samples_cpu.py", "not clipped above", "if low < -BORDER or high > size:",
     "if low < -BORDER:"),
    ("_samples_cpu.py", "a NaN is kept", "np.fmax(cell, -BORDER, out=cell)", "pass"),
    ("_samples_cpu.py", "infinity less infinity as a fraction",
     "np.copyto(fraction, 0, where=~np.isfinite(fraction))", "pass"),
    ("_samples_cpu.py", "-1 exactly is inside", "if low <= -1:", "if low < -BORDER:"),
    ("_samples_cpu.py", "the row above is outside",
     "edge &= np.equal(fraction, 0, out=workspace.empty(cell.shape, bool))", "pass"),
    ("_samples_cpu.py", "warnings of infinite offsets", "np.errstate(invalid=\"ignore\")",
     "np.errstate()"),
    ("_samples_cpu.py", "far locations in float32",
     "exact = geometry.farthest < WINDOW_CELLS", "exact = True"),
    ("_samples_cpu.py", "rows by the horizontal dilation",
     "(taps // geometry.kernel_width * geometry.dilation_y)",
     "(taps // geometry.kernel_width * geometry.dilation_x)"),
    ("_samples_cpu.py", "taps' columns by the kernel's height", "(taps % geometry.kernel_width",
     "(taps % geometry.kernel_height"),
    ("_samples_cpu.py", "padding the other way", "* stride - pad)", "* stride + pad)"),
    ("_samples_cpu.py", "the first row above is outside", "(self.row >= -1)", "(self.row >= 0)"),
    ("_samples_cpu.py", "a mask's NaN in the weights",
     "finite = all_finite(ordered_mask, workspace)", "finite = True"),
    # Stage 4: corners and the sparse product
    ("_corners_cpu.py", "corners 01 and 10 exchanged", "(0, step, pitch, pitch + step)",
     "(0, pitch, step, pitch + step)"),
    ("_corners_cpu.py", "upper weights without the mask",
     "np.subtract(self.factor, bottom, out=top)", "np.subtract(1, bottom, out=top)"),
    ("_corners_cpu.py", "samples of other windows count", "if not window.holds(samples.bounds):",
     "if window.whole:"),
    ("_corners_cpu.py", "one deformable group for all", "group *= channels // groups * height",
     "group *= 0 * height"),
    ("_corners_cpu.py", "the first image for all", "image *= height * pitch", "image *= 0"),
    ("_corners_cpu.py", "indices that wrap", "if count < 2**31 else", "if count < 2**32 else"),
    ("_sparse_cpu.py", "five columns by the loop for one", "if width == 1:", "if width <= 5:"),
    ("_sparse_cpu.py", "the public product overwrites", "out += self._public() @ dense",
     "out[...] = self._public() @ dense"),
    ("_sparse_cpu.py", "the public adjoint overwrites", "out += self._public().T @ dense",
     "out[...] = self._public().T @ dense"),
    # Stage 4: columns
    ("_columns_cpu.py", "dots of the last window alone", "dots[corner, part] += sums",
     "dots[corner, part] = sums"),
    ("_columns_cpu.py", "planes of the last corner alone",
     "into += product.reshape(into.shape)", "into[...] = product.reshape(into.shape)"),
    ("_columns_cpu.py", "the slope along y upside down", "np.subtract(below, above, out=by_y)",
     "np.subtract(above, below, out=by_y)"),
    ("_columns_cpu.py", "the slope along x from corner 10", "dots[3] -= dots[2]",
     "dots[3] -= dots[0]"),
    ("_columns_cpu.py", "no number is 0 everywhere",
     "gradient[samples.outside().reshape(-1)] = 0", "gradient[~np.isfinite(gradient)] = 0"),
    ("_columns_cpu.py", "infinite masks left out of grad_x",
     "times_mask(grad_columns, samples)", "pass"),
    ("_columns_cpu.py", "parts of rows written at their start",
     "tile.rows.start * geometry.out_width + tile.columns.start",
     "tile.rows.start * geometry.out_width"),
    ("_columns_cpu.py", "a block's last points left out", "min(first + block, len(grad))",
     "min(first + block, len(grad) - 1)"),
    ("_columns_cpu.py", "long dots added up in float32", "total = np.zeros(len(a))",
     "total = np.zeros(len(a), a.dtype)"),
    ("_columns_cpu.py", "(1 - fraction) as the fraction", "np.subtract(1, fraction, out=out)",
     "np.copyto(out, fraction)"),
    # Windows
    ("_windows_cpu.py", "boxes around the first rows", "max(bottoms), min(lefts)",
     "min(bottoms), min(lefts)"),
    ("_windows_cpu.py", "no zero rows above a window",
     "self.box.top - (0 if self.box.top == -BORDER else BORDER)", "self.box.top"),
    ("_windows_cpu.py", "the row below is not copied",
     "bottom = min(self.box.bottom + neighbour, height)", "bottom = min(self.box.bottom, height)"),
    ("_windows_cpu.py", "pixels owned by two windows",
     "self._both(images, self.box.top + 1, self.box.left + 1, 0)",
     "self._both(images, self.box.top, self.box.left, 0)"),
    ("_windows_cpu.py", "boxes that miss what they share",
     "self.top < other.bottom and", "self.top < other.bottom - 1 and"),
    ("_windows_cpu.py", "windows too large", "cells // (width + 1) - BORDER - 1",
     "cells // (width + 1)"),
    ("_windows_cpu.py", "the row after a window in it too",
     "inside &= np.less(row, self.box.bottom, out=also)",
     "inside &= np.less_equal(row, self.box.bottom, out=also)"),
    ("_windows_cpu.py", "samples above an owned row forgotten", "Box(box.top - 1, box.bottom,",
     "Box(box.top, box.bottom,"),
    ("_windows_cpu.py", "the first images in every window", "images.start - first : images.stop",
     "0 : images.stop"),
    # The backward of sampling
    ("_pullback_cpu.py", "a thread's window forgotten", "for other in windows[1:]:",
     "for other in windows[2:]:"),
    ("_pullback_cpu.py", "a thread's sum forgotten", "for other in self.grad_weights[1:]:",
     "for other in self.grad_weights[2:]:"),
    ("_pullback_cpu.py", "the slope by y as that by x", "np.copyto(into[1], by_x,",
     "np.copyto(into[1], by_y,"),
    ("_pullback_cpu.py", "tiles that reach a window left out", "if box.meets(bounds):",
     "if box == bounds:"),
    ("_pullback_cpu.py", "a run's last tile unheard", "for index in range(run.start, run.stop):",
     "for index in range(run.start, max(run.stop - 1, run.start + 1)):"),
    # Stage 5: the products
    ("_matmul_cpu.py", "the last tile's weight gradient alone", "total.array[:, part] += product",
     "np.copyto(total.array[:, part], product)"),
    ("_matmul_cpu.py", "weights by channel and tap exchanged",
     "matrix.reshape(geometry.groups, -1, taps, channels).transpose(0, 1, 3, 2)",
     "matrix.reshape(geometry.groups, -1, channels, taps)"),
    ("_matmul_cpu.py", "grad_bias summed in its dtype", "dtype=np.float64)",
     "dtype=grad_output.dtype)"),
    ("_matmul_cpu.py", "long sums in one product", "LONGEST_SUM = 4096", "LONGEST_SUM = 10**8"),
    ("_matmul_cpu.py", "the last part of long sums alone", "total += out", "total[...] = out"),
    ("_matmul_cpu.py", "several images read as the first",
     "tile.images.stop - tile.images.start != 1 or", ""),
    ("_matmul_cpu.py", "a tile read from its row's start",
     "first = tile.rows.start * width + tile.columns.start", "first = tile.rows.start * width"),
    ("_matmul_cpu.py", "the bias of the first channel", "bias[:, None, None, None]", "bias[0]"),
    # Memory and threads
    ("_workspace.py", "memory is not given back", "self._workspace._used = self._used", "pass"),
    ("_workspace.py", "memory at any address", "(-(self._address + self._used)) % ALIGNMENT", "1"),
    ("_workspace.py", "zeros as they come", "array.fill(0)", "array.fill(1)"),
    ("_parallel.py", "BLAS is left at one thread", "library.num_threads or 1)",
     "1)"),
    ("_parallel.py", "BLAS is given back too early", "self._busy -= taken", "self._busy = 0"),
    ("_parallel.py", "parts that depend on other calls",
     "self._total if self._busy else ", ""),
    ("_parallel.py", "more threads than there are", "max(self._total - self._busy, 1)",
     "self._total"),
    ("_parallel.py", "parts that leave out items", "len(items) * part // count",
     "len(items) // count * part"),
    ("_parallel.py", "errstate of the pool",
     "pool.submit(errors(work), part, worker)", "pool.submit(work, part, worker)"),
    # The pipeline
    ("functional.py", "no gradient of the weight left to chance",
     "0 if total.empty else ", ""),
    ("_prepared.py", "gradients that nobody wants", "if name in wanted else None", ""),
    # Numba
    ("_loops_numba.py", "weights 01 and 10 exchanged",
     "return top * left, top * low_x, low_y * left, low_y * low_x,",
     "return top * left, low_y * left, top * low_x, low_y * low_x,"),
    ("_loops_numba.py", "planes' weights exchanged",
     "table[WEIGHT + LINE + p] = top * low_x", "table[WEIGHT + LINE + p] = low_y * left"),
    ("_loops_numba.py", "the row after the last held",
     "held = (row >= low_y) & (row < high_y)", "held = (row >= low_y) & (row <= high_y)"),
    ("_loops_numba.py", "-1 exactly is inside, by rows", "((row >= 0) | (dy > floor_y))",
     "(row >= -1)"),
    ("_loops_numba.py", "-1 exactly is inside, by columns", "((column >= 0) | (dx > floor_x))",
     "(column >= -1)"),
    ("_loops_numba.py", "a fraction of the location", "value(dx - floor_x) if held",
     "value((column + (dx - floor_x)) - column) if held"),
    ("_loops_numba.py", "a row of pixels too long", "if x == width:", "if x == width + 1:"),
    ("_loops_numba.py", "columns without the mask", "columns[to + c] = factor * (above + below)",
     "columns[to + c] = above + below"),
    ("_loops_numba.py", "samples outside not written",
     "if cells[point] == 0 and not first_window:", "if cells[point] == 0:"),
    ("_loops_numba.py", "the slope by y from corner 00",
     "by_y = factor * (left * (s10 - s00) + low_x * (s11 - s01))",
     "by_y = factor * (left * (s10 - s00) + low_x * (s11 - s00))"),
    ("_loops_numba.py", "the slope by x without the mask", "by_x = factor * (", "by_x = ("),
    ("_loops_numba.py", "no number outside the box", "table[DOT + p] = by_y if held else zero",
     "table[DOT + p] = by_y"),
    ("_loops_numba.py", "the last point alone tells", "found |= cells[p]", "found = cells[p]"),
    ("_loops_numba.py", "bounds a row short", "top, bottom + 1, left, right + 1",
     "top, bottom, left, right + 1"),
    ("_loops_numba.py", "bounds of the first tap", "real(first_x + j * dilation_x)",
     "real(first_x)"),
    ("_loops_numba.py", "dots kept from tap to tap", " " * 20 + "_clear_dots(table, many)\n", ""),
    ("_loops_numba.py", "corner 11 beside corner 00",
     "_scatter(image, at + below + right, cells,", "_scatter(image, at + right, cells,"),
    ("_loops_numba.py", "long dots in one part", "unsigned(4096)", "unsigned(10**8)"),
    ("_loops_numba.py", "parts of long dots at the start", "first = unsigned(part) * LONGEST_SUM",
     "first = unsigned(0)"),
    ("_columns_numba.py", "rows below the picture held", "max(box.top, -1), min(box.bottom,",
     "max(box.top, -1), max(box.bottom,"),
    ("_columns_numba.py", "far locations in float32",
     "exact = geometry.farthest < WINDOW_CELLS", "exact = True"),
    ("_columns_numba.py", "views that are not in order, in place",
     "not (array.flags.c_contiguous and array.flags.aligned)", "not array.flags.aligned"),
    ("_columns_numba.py", "padding at the top as at the left",
     "tile.rows.start * geometry.stride_y - geometry.pad_top",
     "tile.rows.start * geometry.stride_y - geometry.pad_left"),
    ("_columns_numba.py", "each window overwrites the last", "        first = False\n",
     "        first = True\n"),
    ("_columns_numba.py", "an image's width for a window's", "window.top, window.box.left, width,",
     "window.top, window.box.left, width - 1,"),
    ("_pullback_numba.py", "windows overwrite the gradient", "if not self.cut.holds_whole:",
     "if self.cut.holds_whole:"),
    ("_pullback_numba.py", "each window's slopes overwrite the last", "first = False",
     "first = True"),
    ("_pullback_numba.py", "the copy is not written back",
     "np.copyto(part, copy, casting=\"same_kind\")", "pass"),
    # Which twin, offsets as code, stages as functions, diagnostics, pictures
    ("_twins.py", "Numba in spite of the switch", "\"CUPY_DCN_NUMBA\") == \"0\"",
     "\"CUPY_DCN_NUMBA\") == \"no\""),
    ("_columns.py", "col2im told nothing of the mask",
     "_pullback(cut, grad_columns, None, offset, mask)(grad_x=grad_x)",
     "_pullback(cut, grad_columns, None, offset, None)(grad_x=grad_x)"),
    ("_arguments.py", "columns of no group", "if groups < 1 or", "if groups < 0 or"),
    ("_hints.py", "a photograph taken for one channel", "shape[-1] <= FEW", "shape[-1] < FEW - 1"),
    ("_hints.py", "channels looked for in the rows", "if shape[-1] != expected",
     "if shape[2] != expected"),
    ("offsets.py", "dx before dy", "stack((dy, dx), axis=2)", "stack((dx, dy), axis=2)"),
    ("offsets.py", "the other side's padding", "pads[2 * axis]", "pads[axis]"),
    ("offsets.py", "taps by the kernel's height", "% taps, kernel[1])", "% taps, kernel[0])"),
    ("diagnostics.py", "a NaN agrees", "agrees = error <= limit", "agrees = not error > limit"),
    ("diagnostics.py", "a NaN that comes second is lost", "float(np.max(errors))",
     "float(max(errors))"),
    ("diagnostics.py", "a result that is missing", "(result is None) != (exact is None)",
     "result is None is exact"),
    ("plan.py", "a plan's weight is the caller's",
     "prepared.bias[...] = bias", "pass"),
    ("plan.py", "gradients where nobody put them", "made._replace(**given)", "made"),
    # Layers and derivatives along a direction
    ("_files.py", "bfloat16 without its name", 'nameless = array.dtype.kind == "V"',
     'nameless = array.dtype.kind == "U"'),
    ("_layer.py", "first weights by the outputs", "np.prod(self.kernel_size) * self.in_channels",
     "np.prod(self.kernel_size) * self.out_channels"),
    ("_layer_arguments.py", "a state of other shapes", "if array.shape != held.shape:",
     "if array.ndim != held.ndim:"),
    ("layer.py", "no gradient of the bias",
     "offset, self.weight, self.bias, mask=mask, needs=needs,",
     "offset, self.weight, None, mask=mask, needs=needs,"),
    ("onnx.py", "begins and ends exchanged", "left, bottom, right = _pads",
     "right, bottom, left = _pads"),
    ("onnx.py", "any kernel_shape", "tuple(kernel_shape) != tuple(found)", "not found"),
    ("dask.py", "chunks of unknown sizes", "if any(map(math.isnan", "if all(map(math.isnan"),
    ("dask.py", "x in row chunks", '"x": {**sampled, 2: -1}', '"x": sampled'),
    ("_dask_tasks.py", "rows counted from the chunk before", "itertools.accumulate(rows)", "rows"),
    ("_dask_tasks.py", "sums in half precision", "compute_dtype(first.dtype))", "first.dtype)"),
    ("_dask_tasks.py", "the last part alone", "total += other", "total = other"),
    ("_dask_tasks.py", "parts left out of a sum", "keys[first : first + SPLIT_EVERY]",
     "keys[first : first + SPLIT_EVERY - 1]"),
    ("_progress.py", "a bar moved by other threads", "if threading.get_ident() == self._caller:",
     "if self._caller:"),
    ("_progress.py", "a bar left open", "            self.close()\n", "            pass\n"),
    ("_progress.py", "tiles of other threads forgotten", "self.finish()\n        finally",
     "pass\n        finally"),
    ("_geometry.py", "locations of rows far down", " - min(self.pad_top, 0),", ","),
    ("_onnx_reference.py", "dilations as strides", '"dilations": dilations',
     '"strides": dilations'),
    ("pack.py", "no channels for the mask", "self._offset_channels() * 3 // 2 if self.modulated",
     "self._offset_channels() if self.modulated"),
    ("_tangents.py", "a moving mask forgotten", "for array in (self.x, self.offset, self.mask))",
     "for array in (self.x, self.offset))"),
    ("_tangent_cpu.py", "a corner's twist forgotten", "    twist += dots[3]\n", ""),
    ("derivatives.py", "the bias's direction twice", "bias = None if add else bias_tangent",
     "bias = bias_tangent"),
)]  # fmt: skip

# The tests of a fault's file, the likeliest to notice first; of all others, these.
OPERATOR = "test_operator.py", "test_stages.py", "test_dtypes.py", "test_memory.py"
ACCURATE = *OPERATOR, "test_accuracy.py"
TESTS = {
    "_attributes.py": ("test_errors.py", "test_operator.py", "test_plan.py"),
    "_arguments.py": ("test_errors.py", "test_operator.py", "test_dtypes.py", "test_plan.py"),
    "_hints.py": ("test_errors.py",),
    "_foreign.py": ("test_foreign.py",),
    "_arrays.py": ("test_foreign.py", "test_errors.py", "test_operator.py", "test_dtypes.py"),
    "_plan_arguments.py": ("test_plan.py",),
    "_cut.py": ("test_cut.py", *OPERATOR, "test_plan.py"),
    "_cut_cpu.py": ("test_cut.py", "test_errors.py", *OPERATOR),
    "_matmul_cpu.py": ACCURATE,
    "_columns_cpu.py": ACCURATE,
    "_loops_numba.py": ACCURATE,
    "_columns_numba.py": ACCURATE,
    "_corners_cpu.py": (*OPERATOR, "test_cut.py"),
    "_windows_cpu.py": ("test_cut.py", *OPERATOR),
    "_pullback_cpu.py": ("test_parallel.py", *OPERATOR),
    "_workspace.py": ("test_parallel.py", *OPERATOR),
    "_parallel.py": ("test_parallel.py", "test_operator.py"),
    "_twins.py": ("test_numba.py",),
    "_columns.py": ("test_stages.py", "test_errors.py"),
    "offsets.py": ("test_stages.py", "test_errors.py"),
    "diagnostics.py": ("test_diagnostics.py",),
    "plan.py": ("test_plan.py",),
    "onnx.py": ("test_onnx.py",),
    "_onnx_reference.py": ("test_onnx.py",),
    **dict.fromkeys(("dask.py", "_dask_tasks.py"), ("test_dask.py",)),
    "_progress.py": ("test_progress.py",),
    "_geometry.py": (*OPERATOR, "test_dask.py"),
    "functional.py": ("test_dtypes.py", "test_operator.py"),
    "_prepared.py": ("test_dtypes.py", "test_plan.py"),
    **dict.fromkeys(
        ("_files.py", "_layer.py", "_layer_arguments.py", "layer.py", "pack.py"), ("test_layer.py",)
    ),
    **dict.fromkeys(("_tangents.py", "_tangent_cpu.py"), ("test_derivatives.py",)),
    "derivatives.py": ("test_derivatives.py", "test_derivatives_gpu.py"),
}


def text_of(file, root=ROOT):
    """Return the text of a file of the library."""
    return (root / "cupy_dcn" / file).read_text(encoding="utf-8")


def occurrences(mutant):
    """Return how many times a mutant's old text is in its file."""
    return text_of(mutant.file).count(mutant.old)


class Copy:
    """A copy of the working tree to plant faults in, one at a time."""

    def __init__(self, folder):
        self.root = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        for name in PARTS:
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy2(path, self.root)

    def failure(self, tests, without=()):
        """Run tests on NumPy arrays, file by file; return the first that fails, None for none."""
        turns = [f"not [{turn} and not -{turn}" for turn in ("emulated", "cupy", *without)]
        own = {"PYTHONPATH": str(self.root), "NUMBA_CACHE_DIR": str(self.root / "numba")}
        chosen = " and ".join((*turns, "not 16_million"))
        for test in tests:  # not all at once: to collect them takes longer than the first to fail
            command = [sys.executable, "-B", "-m", "pytest", "-x", "--tb=no", "-p",
                       "no:cacheprovider", "-k", chosen, test]  # fmt: skip
            try:
                done = subprocess.run(
                    command, cwd=self.root / "tests", env={**os.environ, **own},
                    capture_output=True, text=True, timeout=LIMIT, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"no end within {LIMIT} s"
            if done.returncode not in (0, NOTHING_CHOSEN):
                said = done.stdout.splitlines()
                failed = [line for line in said if line.startswith(("FAILED", "ERROR"))]
                return (failed or [f"status {done.returncode}: {done.stderr[-300:]}"])[0]
        return None

    def plant(self, mutant):
        """Plant a fault, see which test notices it, and take it back."""
        path = self.root / "cupy_dcn" / mutant.file
        before = path.stat()
        text = text_of(mutant.file, self.root)
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            other = "numpy" if mutant.file.endswith("_numba.py") else "numba"
            return self.failure(TESTS.get(mutant.file, OPERATOR), [other])
        finally:  # with the time it had, or Numba would compile it once more
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def main():
    """Plant every chosen fault, and say which nobody noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only faults with all of these words")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="copies at work at once")
    options = parser.parse_args()
    chosen = [
        each
        for each in MUTANTS
        if all(word in f"{each.file} {each.what}" for word in options.words)
    ]
    wrong = [each for each in chosen if occurrences(each) != 1]
    if wrong or not chosen:
        sys.exit(f"not once in their files, or nothing chosen: {wrong}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies = SimpleQueue()
        for number in range(options.jobs):
            copies.put(Copy(Path(folder, str(number))))

        def work(task):
            copy = copies.get()
            try:
                return task(copy)
            finally:
                copies.put(copy)

        tests = sorted({test for each in chosen for test in TESTS.get(each.file, OPERATOR)})
        trouble = work(lambda copy: copy.failure(tests))
        if trouble:
            sys.exit(f"the tests fail without a fault too: {trouble}")
        survivors = []
        for mutant, by in pool.map(
            lambda each: (each, work(lambda copy: copy.plant(each))), chosen
        ):
            print(f"{mutant.file}: {mutant.what} -> {by or 'NOBODY NOTICED'}", flush=True)
            if by is None:
                survivors.append(mutant)
    print(f"caught {len(chosen) - len(survivors)} of {len(chosen)} planted")
    for each in survivors:
        print(f"survived: {each.file}: {each.what}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
