"""Calls along a direction: the arrays of a case, how they move, and derivatives by differences."""

import numpy as np

import cupy_dcn
from cupy_dcn import SecondGradients, Tangents

# Exact for polynomials up to degree 6, in steps either way: for the whole operator, along a
# direction in all of its arguments, as long as no sample crosses a grid line.
STENCIL = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
STEP = 0.02


class Direction:
    """A case away from grid lines, a direction in its arguments and a second one."""

    def __init__(self, case, dtype=np.float64, **changes):
        x, offset, weight, bias, mask, grad_output = case.arrays()
        # The direction is at most 1: in three steps no sample comes to a grid line.
        grid = np.floor(offset)
        offset = grid + 0.1 + 0.8 * (offset - grid)
        arrays = {"grad_output": grad_output, "x": x, "offset": offset, "weight": weight}
        arrays |= {"bias": bias, "mask": mask}
        rng = np.random.default_rng(case.seed + 7)

        def cast(array):
            return None if array is None else array.astype(dtype)

        def random():
            return {
                name: None if array is None else cast(rng.uniform(-1, 1, array.shape))
                for name, array in arrays.items()
            }

        self.case = case
        self.arrays = {name: cast(array) for name, array in arrays.items()} | changes
        first, self.other = random(), random()
        del first["grad_output"]
        self.tangents = Tangents(**first)

    @property
    def primals(self):
        """The arguments of a forward."""
        return {name: array for name, array in self.arrays.items() if name != "grad_output"}

    def jvp(self, functions=cupy_dcn, **more):
        """Return the output and its tangent."""
        more = {"tangents": self.tangents, **more}
        return functions.deform_conv2d_jvp(**self.primals, **self.case.attributes, **more)

    def double_backward(self, functions=cupy_dcn, **more):
        """Return the second gradients."""
        more = {"cotangents": self.tangents, **more}
        return functions.deform_conv2d_double_backward(
            **self.arrays, **self.case.attributes, **more
        )

    def both(self, functions=cupy_dcn, tangents=None, **more):
        """Return all that the two functions return, by name."""
        tangents = self.tangents if tangents is None else tangents
        out, out_tangent = self.jvp(functions, tangents=tangents, **more)
        second = self.double_backward(functions, cotangents=tangents, **more)
        return {"out": out, "out_tangent": out_tangent, **second._asdict()}

    def wide(self):
        """Return the same in float64."""
        same = object.__new__(Direction)
        same.case = self.case
        same.arrays = {name: _wide(array) for name, array in self.arrays.items()}
        same.tangents = Tangents(*map(_wide, self.tangents))
        return same


def _wide(array):
    return None if array is None else array.astype(np.float64)


def moved(arrays, direction, step):
    """Return arrays a few steps along a direction in some of them."""
    return {
        name: array if direction.get(name) is None else array + step * STEP * direction[name]
        for name, array in arrays.items()
    }


def slope(function, arrays, direction):
    """Differentiate a function of arrays along a direction, by differences."""
    total = 0
    for step, factor in STENCIL.items():
        ahead, behind = (moved(arrays, direction, sign * step) for sign in (1, -1))
        total += factor * (function(**ahead) - function(**behind))
    return total / STEP


def dot(one, other):
    """Return the sum of products over all of two groups of arrays, None counting as zeros."""
    pairs = zip(one, other, strict=True)
    return sum(np.vdot(a, b) for a, b in pairs if a is not None and b is not None)


def along(second, direction):
    """Return the derivative along a direction that second gradients say."""
    return dot(second, (direction[name] for name in SecondGradients._fields))
