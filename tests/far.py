"""Layers on images too large to be worked through, of which a corner is there."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cases import Case, assert_close
from emulated_cupy import configure
from libraries import dcn

from cupy_dcn import _oracle
from cupy_dcn._columns_gpu import copy_shape, empty_columns, locate
from cupy_dcn._cut import Cut, Tile
from cupy_dcn._cut_gpu import extent, index_dtype
from cupy_dcn._geometry import Geometry
from cupy_dcn._workspace import Workspace

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
CORNER = 8  # rows and columns of an image that are there
ROWS, COLUMNS = 2, 3  # pixels of the last block, in every kernel
TALL, WIDE = 32 * 4000 + ROWS, 32 * 100 + COLUMNS
PAD = (1, 1, 1, 1)
TOLERANCE = {8: 1e-12, 4: 2e-5, 2: 2e-2}


def corner(channels, deformable_groups=1, groups=1):
    size = (CORNER, CORNER)
    return Case(1, channels, size, groups, (3, 3), (1, 1), PAD, (1, 1), deformable_groups, groups)


# Threads alone at a pixel, whose columns are planes; eight sharing one; groups that cut through.
LAYERS = {
    "alone": (corner(4), np.float32),
    "shared": (corner(32), np.float32),
    "cut": (corner(12, 2, 4), np.float16),
    "depthwise": (corner(4, groups=4), np.float32),
    "shared depthwise": (corner(16, groups=16), np.float64),
}


def height_below(layer):
    """The height of images as wide of which the largest array has just less than 2^31 elements."""
    case, _ = LAYERS[layer]
    each = 2 * WIDE * max(9 * case.channels * (case.groups < case.channels), 2 * 9)
    return ((2**31 - 1) // each - ROWS) // 32 * 32 + ROWS


@dataclass(frozen=True)
class Far:
    """A layer on two images so large; ``index`` is the kernels'."""

    layer: str
    index: np.dtype = INT64
    height: int = TALL

    @property
    def case(self):
        return LAYERS[self.layer][0]

    @property
    def dtype(self):
        return np.dtype(LAYERS[self.layer][1])

    @property
    def geometry(self):
        case, size = self.case, (self.height, WIDE)
        return Geometry(
            2, case.channels, *size, 3, 3, *size, 1, 1, 1, 1, 1, 1, case.groups,
            case.deformable_groups,
        )  # fmt: skip

    @cached_property
    def near(self):
        """The arrays of the corner; offsets stay within it, gradients are of the last pixels.

        And a direction in them, along which no sample comes to a grid line.
        """
        x, offset, weight, bias, mask, grad = self.case.arrays(self.dtype)
        grad[:, :, :-ROWS], grad[:, :, :, :-COLUMNS] = 0, 0
        case, rng = self.case, np.random.default_rng(1)
        columns = rng.standard_normal((1, case.groups, CORNER**2, 9, case.channels // case.groups))
        columns[:, :, np.setdiff1d(np.arange(CORNER**2), LAST)] = 0
        offset = np.clip(offset, -2.5, 2.5)
        offset = (np.floor(offset) + 0.1 + 0.8 * (offset - np.floor(offset))).astype(self.dtype)
        found = {"x": x, "offset": offset, "mask": mask, "columns": columns.astype(self.dtype)}
        moves = {
            f"{name}_tangent": rng.uniform(-1, 1, array.shape).astype(self.dtype)
            for name, array in found.items()
        }
        moves["columns_tangent"] *= found["columns"] != 0
        return found | moves | {"weight": weight, "bias": bias, "grad_output": grad}

    @cached_property
    def exact(self):
        return {name: array.astype(np.float64) for name, array in self.near.items()}

    def output(self, name):
        """Return an array of two images of the output's size, a part of it as in the corner."""
        near = self.near[name]
        array = dcn.array_module.empty((2, near.shape[1], self.height, WIDE), near.dtype)
        array[1, :, -ROWS:, -COLUMNS:] = dcn.to_device(near[0, :, -ROWS:, -COLUMNS:].copy())
        return array

    def copies(self, values, dtype):
        """Return images' copies (2, cells, channels), and a view of the last one's last rows."""
        shape = copy_shape(self.geometry, slice(0, 2), self.dtype)
        copies = dcn.array_module.empty(shape, dtype)
        rows = copies.reshape(2, self.height + 3, WIDE + 1, shape[2])[1, -CORNER - 3 :]
        rows.fill(0)
        case = self.case
        by_group = values.reshape(case.deformable_groups, -1, CORNER, CORNER)
        count = by_group.shape[1]
        last = rows.reshape(*rows.shape[:2], case.deformable_groups, -1)
        last = last[1 : CORNER + 1, -CORNER:, :, :count]
        last[...] = dcn.to_device(by_group.transpose(2, 3, 0, 1).copy())
        return copies, last

    def columns(self):
        """Return the columns, and a view of those of the last pixels, row by row."""
        columns = empty_columns(self.geometry, self.tile, self.dtype, self.workspace)
        first = (self.height - ROWS) * WIDE + WIDE - COLUMNS
        starts = [first + row * WIDE for row in range(ROWS)]
        return columns, [columns[1, :, start : start + COLUMNS] for start in starts]

    @property
    def tile(self):
        return Tile(slice(0, 2), slice(0, self.height), slice(0, WIDE))

    @property
    def workspace(self):
        return Workspace.of(0, dcn.array_module)

    def launch(self, name, columns, *arrays, **more):
        """Run the last block of every deformable group."""
        cut = Cut(self.geometry, 2, None, 0, 1, 0, 0, index=self.index)
        offset, mask = self.output("offset"), self.output("mask")
        samples = locate(offset, mask, cut, self.tile, self.dtype, self.workspace)
        given = {"offset": offset, "mask": mask}
        arguments = [given.get(each, each) if isinstance(each, str) else each for each in arrays]
        self.demand([array for array in arguments if array is not None and array.size > 10**6])
        with configure(last_blocks=self.case.deformable_groups):
            samples.launch(name, columns, *arguments, **more)

    def demand(self, arrays):
        """Check that the kernels' index is as wide as each of these arrays needs, for itself."""
        wanted = {index_dtype([extent(array)], self.geometry) for array in arrays}
        assert wanted == {INT64 if self.height >= TALL else INT32}

    def sampled(self):
        exact, case = self.exact, self.case
        return _oracle.im2col(
            exact["x"], exact["offset"], *case.sampling, case.groups, exact["mask"]
        )  # fmt: skip

    def pulled(self):
        exact = self.exact
        return _oracle.backward_of_im2col(
            exact["columns"], exact["x"], exact["offset"], *self.case.sampling, exact["mask"]
        )

    def close(self, ours, expected):
        ours = dcn.array_module.asnumpy(ours).astype(np.float64)
        assert_close(ours, expected, TOLERANCE[self.dtype.itemsize])


LAST = np.arange(CORNER**2).reshape(CORNER, CORNER)[-ROWS:, -COLUMNS:].ravel()


def last(array):
    """The last pixels of the corner."""
    return array[0, :, -ROWS:, -COLUMNS:]
