"""Plan: one layer on arrays of one shape, prepared once and called many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import functional
from ._arguments import (
    GRADIENTS,
    Arguments,
    check_bias,
    check_grad_output,
    check_mask,
    check_needs,
    check_offset,
    check_out,
    check_workspace,
    layer_geometry,
    require_dtype,
)
from ._arrays import AnyArray, Array, library_of, of_one_library, require_array, require_bytes
from ._attributes import check_flag
from ._plan_arguments import (
    AXES,
    check_gradients,
    check_planned,
    check_weight,
    planned_shape,
)
from ._prepared import Gradients, empty_gradients, empty_output, prepare
from ._progress import Progress, check_progress
from ._twins import twin_of
from ._warmup import dtype_beside


class Plan:
    """A deformable convolution prepared for arrays of one shape: call it as often as you like.

    `deform_conv2d` works out its geometry, lays out the weight and allocates its temporary memory
    at every call. A plan does so once and keeps the results, as the plans of FFTW and cuFFT do; on
    a GPU it compiles the kernels as well. A call with ``out`` then allocates nothing on a GPU, and
    next to nothing on the CPU::

        plan = cupy_dcn.Plan(x.shape, weight, bias, padding=1)
        for x, offset, mask in video:
            plan(x, offset, mask, out=y)

    Like those plans it is made from the shape of x, not from an x, and holds no input; unlike them
    it is an object with methods rather than an argument to a function, because what it fixes,
    weight and attributes included, need not be said again. What it is called with is then what
    changes from call to call: x, offset and mask.

    Parameters
    ----------
    x_shape : tuple of int
        (N, C_in, H, W) of the x of every call. Their dtype, library and device are the weight's.
    weight : ndarray, shape (C_out, C_in/groups, KH, KW)
        A NumPy or CuPy array. It is copied into the layout of the products: after a change call
        `set_weight`.
    bias : ndarray, shape (C_out,), optional
        Copied as well.
    stride, padding, dilation, deformable_groups, groups
        As in `deform_conv2d`.
    masked : bool
        Whether the calls have a mask (v2).
    offset_dtype, mask_dtype : dtype, optional
        x's by default; float32 is possible beside half-precision x.
    backward : bool
        Whether to prepare for `backward`, too; its temporary memory is the larger one, and both
        use the same.
    deterministic : bool
        Whether `backward` is to give the same bits every time, as in `deform_conv2d_backward`.
    workspace_bytes : int, optional
        Bound of the temporary memory held, as in `deform_conv2d`.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, before any work; a call also where its arrays are not of the shapes and
        dtypes that the plan was made for.

    See Also
    --------
    deform_conv2d, deform_conv2d_backward : The same, prepared anew at every call.
    warmup : Compiles kernels, without a plan.

    Notes
    -----
    The strides of x, offset and mask may differ from call to call.

    A plan has one block of temporary memory, so its calls take turns. Threads wait for each other
    (NumPy) or do so while they queue their work (CuPy). On CuPy arrays each call is queued on the
    stream that is current then, without waiting for it; where calls go to several streams, a
    stream waits on the device for the call before, so results are right and do not overlap. To run
    side by side, make a plan for each thread or stream. The memory is of the allocator and stream
    that are current when the plan is made: let work on other streams end before you drop it.

    After an exception in a call, a plan can be called as before.

    On NumPy arrays a plan works on as many threads as NumPy's BLAS would use when it is made. What
    NumPy allocates during a call stays below 1 MiB a thread.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> weight = np.ones((1, 1, 2, 2))
    >>> plan = cupy_dcn.Plan((1, 1, 3, 3), weight, masked=False)
    >>> x, offset = np.arange(9.0).reshape(1, 1, 3, 3), np.zeros((1, 8, 2, 2))
    >>> out = np.empty(plan.out_shape)
    >>> for step in range(3):
    ...     offset[0, 0, 0, 0] = step / 2
    ...     print(plan(x, offset, out=out)[0, 0, 0])
    [ 8. 12.]
    [ 9.5 12. ]
    [11. 12.]
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        weight: AnyArray,
        bias: AnyArray | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        deformable_groups: int = 1,
        groups: int = 1,
        *,
        masked: bool = True,
        offset_dtype: npt.DTypeLike | None = None,
        mask_dtype: npt.DTypeLike | None = None,
        backward: bool = False,
        deterministic: bool = False,
        workspace_bytes: int | None = None,
    ) -> None:
        weight, bias = of_one_library({"weight": weight, "bias": bias})
        self._weight = require_array("weight", weight, AXES["weight"])
        self._dtype = self._weight.dtype
        self._x_shape = planned_shape(x_shape)
        self._geometry = layer_geometry(
            self._x_shape, self._weight, stride, padding, dilation, deformable_groups, groups
        )
        self._bias = None if bias is None else check_bias(bias, self._weight)
        require_bytes("x", self._x_shape, self._dtype.itemsize)
        require_bytes("the output", self.out_shape, self._dtype.itemsize)
        check_flag("masked", masked)
        check_flag("backward", backward)
        check_flag("deterministic", deterministic)
        self._offset_dtype = self._beside("offset_dtype", offset_dtype)
        self._mask_dtype = self._beside("mask_dtype", mask_dtype) if masked else None
        self._workspace_bytes = check_workspace(workspace_bytes)
        self._twin = twin_of(self._weight)
        with self._twin.on_device(self._weight):
            self._turns = self._twin.Turns(self._weight)
        with self._turn():
            shift = None if self._bias is None else self._bias.copy()
            directions = (False, True) if backward else (False,)
            self._forward, *others = prepare(
                self._geometry, self._weight, shift, self._workspace_bytes, directions,
                deterministic=deterministic,
            )  # fmt: skip
            self._backward = others[0] if others else None
            for prepared in (self._forward, *others):
                self._twin.load_kernels(
                    prepared.cut, prepared.dtype, self._offset_dtype, self._mask_dtype,
                    prepared is self._backward, self._weight,
                )  # fmt: skip

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """(N, C_in, H, W) of every x."""
        return self._x_shape

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, C_out, OH, OW) of every output."""
        geometry = self._geometry
        return geometry.images, len(self._weight), geometry.out_height, geometry.out_width

    @property
    def nbytes(self) -> int:
        """The memory that the plan holds: temporary, and its copies of weight and bias."""
        bias = self._forward.bias
        copies = self._forward.weight.nbytes + (0 if bias is None else bias.nbytes)
        return int(self._forward.memory.nbytes + copies)

    def __repr__(self) -> str:
        library, version = library_of(self._weight), 1 if self._mask_dtype is None else 2
        tiles = f"forward in {_parts(self._forward.cut.tile_count)}"
        if self._backward is not None:
            tiles += f", backward in {_parts(self._backward.cut.tile_count)}"
        return (
            f"<cupy_dcn.Plan of x {self._x_shape} -> {self.out_shape}, weight"
            f" {self._weight.shape}, {self._dtype}, v{version}, {library}: {tiles};"
            f" {self.nbytes:,} bytes held>"
        )

    def forward(
        self,
        x: AnyArray,
        offset: AnyArray,
        mask: AnyArray | None = None,
        *,
        out: AnyArray | None = None,
        progress: Progress | None = None,
    ) -> Array:
        """Return what `deform_conv2d` returns; calling the plan does the same.

        Parameters
        ----------
        x, offset, mask : ndarray
            As in `deform_conv2d`; a mask if the plan was made with one.
        out : ndarray, optional
            Takes the result, and is returned. After an exception it is as in `deform_conv2d`.
        progress : callable, optional
            As in `deform_conv2d`.

        Returns
        -------
        ndarray, shape (N, C_out, OH, OW)
        """
        call = self._arguments(x, offset, mask)
        check_progress(progress)
        checked = None if out is None else check_out(out, call)
        with self._turn():
            result = empty_output(call) if checked is None else checked
            functional.forward(self._forward, call, result, progress)
        return out if library_of(out) else result  # type: ignore[return-value]

    __call__ = forward

    def backward(
        self,
        grad_output: AnyArray,
        x: AnyArray,
        offset: AnyArray,
        mask: AnyArray | None = None,
        *,
        needs: Iterable[str] = GRADIENTS,
        out: Sequence[AnyArray | None] | None = None,
        progress: Progress | None = None,
    ) -> Gradients:
        """Return what `deform_conv2d_backward` returns; the plan is made with ``backward=True``.

        Parameters
        ----------
        grad_output, x, offset, mask : ndarray
            As in `deform_conv2d_backward`.
        needs : tuple of str
            Which gradients to compute.
        out : Gradients or tuple of five, optional
            Arrays that take the gradients of x, offset, weight, bias and mask, such as an earlier
            result; None in its place allocates one. Those not in ``needs`` are left alone. After
            an exception they are as the ``out`` of `deform_conv2d`.
        progress : callable, optional
            As in `deform_conv2d`.

        Returns
        -------
        Gradients
        """
        if self._backward is None:
            raise ValueError(
                "this plan was made with backward=False, expected backward=True to ask it for"
                " gradients; make it with Plan(..., backward=True)"
            )
        call = self._arguments(x, offset, mask)
        grad_output = check_grad_output(grad_output, call)
        wanted = check_needs(needs)
        check_progress(progress)
        given = check_gradients(out, wanted, call, grad_output)
        with self._turn():
            made = empty_gradients(call, wanted - given.keys())
            grads = made._replace(**given)
            functional.backward(self._backward, call, grad_output, grads, progress)
        return grads

    def set_weight(self, weight: AnyArray, bias: AnyArray | None = None) -> None:
        """Take other values: of a weight, and of a bias if there is one and it is given.

        Parameters
        ----------
        weight : ndarray, shape (C_out, C_in/groups, KH, KW)
            Of the shape, dtype, library and device of the one before.
        bias : ndarray, shape (C_out,), optional
            None leaves the bias as it is.

        Notes
        -----
        Validation errors leave weight and bias as they were. Where it fails later, memory running
        out or at an interrupt, they may be a mixture of old and new: set them again.
        """
        weight, bias = check_weight(weight, bias, self._weight, self._bias)
        prepared = self._forward
        with self._turn():
            self._twin.weight_matrix(weight, self._geometry, prepared.dtype, prepared.weight)
            if bias is not None and prepared.bias is not None:
                prepared.bias[...] = bias
            self._weight = weight
            self._bias = self._bias if bias is None else bias

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only call, on the weight's device."""
        with self._twin.on_device(self._weight), self._turns:
            yield

    def _beside(self, name: str, value: object) -> np.dtype[Any]:
        return self._dtype if value is None else dtype_beside(self._dtype, name, value)

    def _arguments(self, x: object, offset: object, mask: object) -> Arguments:
        """Check the arrays of one call against what the plan was made for."""
        x, offset, mask, _ = of_one_library(
            {"x": x, "offset": offset, "mask": mask, "weight": self._weight}
        )
        x_ = require_array("x", x, AXES["x"])
        require_dtype("x", x_, self._weight, "weight")
        if x_.shape != self._x_shape:
            raise ValueError(
                f"x has shape {x_.shape}, expected the plan's (N, C_in, H, W) = {self._x_shape};"
                " another shape takes another plan"
            )
        offset_ = check_offset(offset, self._geometry, self._dtype)
        check_planned("offset", offset_, self._offset_dtype)
        if (mask is None) != (self._mask_dtype is None):
            have, lack = ("no mask", "a mask") if mask is None else ("a mask", "no mask")
            raise ValueError(
                f"the call has {have}, expected {lack} since the plan was made with"
                f" masked={mask is None}; Plan(..., masked={mask is not None}) makes the other one"
            )
        mask_ = None
        if mask is not None and self._mask_dtype is not None:
            mask_ = check_mask(mask, self._geometry, self._dtype)
            check_planned("mask", mask_, self._mask_dtype)
        return Arguments(
            x_, offset_, self._weight, self._bias, mask_, self._geometry, self._workspace_bytes
        )


def _parts(count: int) -> str:
    return f"{count} tile{'s' * (count != 1)}"
