"""Derivatives along a direction: forward mode, and the backward of the backward.

At a sampling point let ``w_ab`` be the bilinear weights of its corners, m its mask and v_ab the
values there, so that ``column = sum_ab m*w_ab * v_ab`` and ``out = weight . columns + bias``. Along
a direction (dx, doffset, dweight, dbias, dmask), where doffset moves the point by (ty, tx),

    columns' = sum_ab m*w_ab * dx_ab + (m*w_ab)' * v_ab
    (m*w_ab)' = dmask*w_ab + m*(ty * w_ab by y + tx * w_ab by x)
    out'     = weight . columns' + dweight . columns + dbias

The backward is linear in grad_output, and its gradients times cotangents are

    L = <cot_x, grad_x> + ... + <cot_mask, grad_mask> = <grad_output, out' along the cotangents>

So the gradient of L by grad_output is out' itself. For the others let ``G = weight^T .
grad_output`` and ``T = dweight^T . grad_output``, with the dot products over channels
``p_ab = <G, v_ab>`` and ``q_ab = <G, dx_ab> + <T, v_ab>``; sums are over ab:

    by weight   grad_output . columns'^T
    by x        each corner gets (m*w_ab)' * G + m*w_ab * T
    by mask     sum w_ab*q_ab + (ty * w_ab by y + tx * w_ab by x)*p_ab
    by dy       sum m * w_ab by y * q_ab + (dmask * w_ab by y + m*tx * w_ab by y and x)*p_ab
    by dx       sum m * w_ab by x * q_ab + (dmask * w_ab by x + m*ty * w_ab by y and x)*p_ab

The second derivative of w_ab by y alone is 0, as by x alone; by both it is 1, -1, -1, 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from ._arguments import Arguments, check_grad_output, check_needs, validate
from ._arrays import AnyArray, Array, compute_dtype
from ._cut import Tile
from ._geometry import Geometry
from ._prepared import empty_output
from ._tangents import (
    PreparedTangent,
    SecondGradients,
    Tangents,
    check_tangents,
    prepare_tangent,
)
from ._workspace import Sum, Workspace


def deform_conv2d_jvp(
    x: AnyArray,
    offset: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    mask: AnyArray | None = None,
    name: str | None = None,
    *,
    tangents: Tangents,
    workspace_bytes: int | None = None,
) -> tuple[Array, Array]:
    """Return the output of `deform_conv2d` and its derivative along a direction: forward mode.

    As ``jax.jvp`` and ``torch.func.jvp`` do for a function and its arguments' tangents: the second
    result is the Jacobian of the output times ``tangents``.

    Parameters
    ----------
    x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask, name
        As given to `deform_conv2d`.
    tangents : Tangents
        How x, offset, weight, bias and mask move: each of the shape and dtype of its argument, or
        None where it stays. What `deform_conv2d_backward` returns will do, too.
    workspace_bytes : int, optional
        Bound of temporary memory, 64 MiB by default; besides it the call takes what
        `deform_conv2d_backward` takes, with the weight's tangent as another weight.

    Returns
    -------
    out : ndarray, shape (N, C_out, OH, OW)
    out_tangent : ndarray, shape (N, C_out, OH, OW)
        Both of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, before any work.

    See Also
    --------
    deform_conv2d_backward : The adjoint, reverse mode.
    deform_conv2d_double_backward : The second derivatives.

    Notes
    -----
    The derivative by the offset is that of `deform_conv2d_backward`: right-hand at whole-numbered
    locations, 0 outside the open box (-1, H) x (-1, W), on its border and for NaN or infinite
    offsets, where a sample's tangent is 0 altogether. Where a mask or a tangent is infinite, what
    the formula makes infinite may be NaN.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> offset, weight = np.full((1, 2, 3, 3), 0.25), np.ones((1, 1, 1, 1))
    >>> down = np.zeros_like(offset)
    >>> down[:, 0] = 1
    >>> out, moved = cupy_dcn.deform_conv2d_jvp(
    ...     x, offset, weight, tangents=cupy_dcn.Tangents(offset=down)
    ... )
    >>> moved[0, 0, 0]  # x grows by 3 a row; the last sample fades over the border
    array([3.  , 3.  , 2.25])
    """
    del name
    call = validate(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask,
        workspace_bytes,
    )  # fmt: skip
    tangents = check_tangents("tangents", tangents, call)
    twin, _ = _twins_of(call.x)
    with twin.on_device(call.x):
        out, out_tangent = empty_output(call), empty_output(call)
        prepared = prepare_tangent(twin, call, tangents, (out,))
        _push_forward(prepared, call, tangents, out, out_tangent)
    return out, out_tangent


def deform_conv2d_double_backward(
    grad_output: AnyArray,
    x: AnyArray,
    offset: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    mask: AnyArray | None = None,
    name: str | None = None,
    *,
    cotangents: Tangents,
    needs: Iterable[str] = SecondGradients._fields,
    workspace_bytes: int | None = None,
) -> SecondGradients:
    """Return the vector-Jacobian product of `deform_conv2d_backward`: second derivatives.

    With grads what the backward returns for these arguments, they are the gradients of
    ``sum(cotangent * gradient)`` over all of grads by grad_output, x, offset, weight and mask.

    Parameters
    ----------
    grad_output, x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask
        As given to `deform_conv2d_backward`, and ``name``; the values of ``bias`` do not matter.
    cotangents : Tangents
        Gradients of some function by grads.x, grads.offset, grads.weight, grads.bias and
        grads.mask; each of their shapes and dtypes, or None for zeros.
    needs : tuple of str
        Which of them to compute, among "grad_output", "x", "offset", "weight", "mask".
    workspace_bytes : int, optional
        Bound of temporary memory, as in `deform_conv2d_jvp`.

    Returns
    -------
    SecondGradients
        Named tuple (grad_output, x, offset, weight, mask); each has the shape and dtype of its
        argument, and is None if it was not asked for or the argument was not given.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, before any work.

    See Also
    --------
    deform_conv2d_jvp : What the gradient by grad_output is.

    Notes
    -----
    Piecewise, as the backward is: the jumps of its gradients at whole-numbered locations have no
    derivative, and at them it is again right-hand. Where a sample's gradients are 0 by rule,
    outside the open box (-1, H) x (-1, W), so is what it adds here.

    Examples
    --------
    The backward of ``sum(grads.x**2)``, as for a penalty on the gradient of an image:

    >>> import numpy as np, cupy_dcn
    >>> x, offset = np.ones((1, 1, 2, 2)), np.zeros((1, 2, 2, 2))
    >>> arguments = np.ones((1, 1, 2, 2)), x, offset, np.full((1, 1, 1, 1), 3.0)
    >>> grads = cupy_dcn.deform_conv2d_backward(*arguments, needs=("x",))
    >>> second = cupy_dcn.deform_conv2d_double_backward(
    ...     *arguments, cotangents=cupy_dcn.Tangents(x=2 * grads.x), needs=("weight",)
    ... )
    >>> second.weight  # four pixels, each (3*1)**2
    array([[[[24.]]]])
    """
    del name
    call = validate(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask,
        workspace_bytes,
    )  # fmt: skip
    grad_output = check_grad_output(grad_output, call)
    cotangents = check_tangents("cotangents", cotangents, call)
    wanted = check_needs(needs, SecondGradients._fields, "deform_conv2d_backward")
    twin, _ = _twins_of(call.x)
    arguments = (grad_output, call.x, call.offset, call.weight, call.mask)
    with twin.on_device(call.x):
        grads = SecondGradients(
            *(
                twin.empty(argument.shape, argument)
                if argument is not None and field in wanted
                else None
                for field, argument in zip(SecondGradients._fields, arguments, strict=True)
            )
        )
        sums_weight = grads.weight is not None and cotangents.moves_columns
        prepared = prepare_tangent(twin, call, cotangents, (grad_output,), sums_weight)
        if grads.grad_output is not None:
            _push_forward(prepared, call, cotangents, None, grads.grad_output)
        _pull_back(prepared, call, grad_output, cotangents, grads)
    return grads


def _twins_of(array: Array) -> tuple[ModuleType, ModuleType]:
    """Return the twin of an array's library and its stages along a direction."""
    if isinstance(array, np.ndarray):  # Numba's twin has no loops for these
        from . import _cpu, _tangent_cpu

        return _cpu, _tangent_cpu
    from . import _gpu, _tangent_gpu  # type: ignore[unreachable]

    return _gpu, _tangent_gpu


def _push_forward(
    prepared: PreparedTangent,
    call: Arguments,
    tangents: Tangents,
    out: Array | None,
    out_tangent: Array,
) -> None:
    """Write the output's tangent, and the output if there is a place for it."""
    (twin, stages), cut, dtype = _twins_of(call.x), prepared.cut, prepared.dtype
    weight, weight_tangent = prepared.weight, prepared.weight_tangent
    bias_tangent, (shared, workspaces, _) = prepared.bias_tangent, prepared.memory
    samples_too = out is not None or weight_tangent is not None
    if weight_tangent is None and not tangents.moves_columns:
        out_tangent[...] = 0 if bias_tangent is None else bias_tangent[:, None, None]
        if out is None:
            return

    def convolve(tiles: Iterable[Tile], workspace: Workspace, images: Any) -> None:
        for tile in tiles:
            with workspace.scope():
                samples = twin.locate(call.offset, call.mask, cut, tile, dtype, workspace)
                here = tile, call.geometry, workspace
                if samples_too:
                    columns = twin.im2col(images.x, samples)
                    if out is not None:
                        _multiply(twin, weight, columns, prepared.bias, out, *here)
                    if weight_tangent is not None:
                        _multiply(twin, weight_tangent, columns, bias_tangent, out_tangent, *here)
                if tangents.moves_columns:
                    columns = stages.columns_tangent(images, samples, tangents)
                    add = weight_tangent is not None
                    bias = None if add else bias_tangent
                    _multiply(twin, weight, columns, bias, out_tangent, *here, add=add)

    for group in cut.image_groups():
        with shared.scope():
            images = stages.Images.of(call.x, tangents.x, group, cut, dtype, shared)
            twin.spread(partial(convolve, images=images), cut.tiles(group), workspaces)


def _multiply(
    twin: ModuleType,
    weight: Array,
    columns: Array,
    bias: Array | None,
    out: Array,
    tile: Tile,
    geometry: Geometry,
    workspace: Workspace,
    add: bool = False,
) -> None:
    """Write a tile of weight . columns + bias, and take back the memory that this took."""
    with workspace.scope():
        twin.write_output(weight, columns, bias, out, tile, geometry, workspace, add)


def _pull_back(
    prepared: PreparedTangent,
    call: Arguments,
    grad_output: Array,
    cotangents: Tangents,
    grads: SecondGradients,
) -> None:
    """Write those gradients that are not None, but for that of grad_output."""
    (twin, stages), geometry, dtype = _twins_of(call.x), call.geometry, prepared.dtype
    shared, workspaces, _ = prepared.memory

    def product(weight: Array, tile: Tile, workspace: Workspace) -> Array:
        return twin.grad_columns(  # type: ignore[no-any-return]
            weight, grad_output, tile, geometry, workspace
        )

    def add_grad_weight(tile: Tile, columns: Array, workspace: Workspace, total: Sum) -> None:
        twin.add_grad_weight(grad_output, tile, columns, geometry, workspace, total)

    turned = prepared.weight_tangent
    with ExitStack() as scopes:
        for workspace in workspaces:
            scopes.enter_context(workspace.scope())
        needed = workspaces if grads.weight is not None and cotangents.moves_columns else []
        shape = prepared.weight.shape
        totals = [Sum(each.empty(shape, compute_dtype(dtype))) for each in needed]
        stages.DoublePullback(
            prepared.cut, dtype, shared, workspaces, call.x, call.offset, call.mask,
            partial(product, prepared.weight), add_grad_weight if totals else None, totals,
            grads.x, grads.offset, grads.mask, tangents=cotangents,
            turned_columns_of=None if turned is None else partial(product, turned),
        ).run()  # fmt: skip
        if grads.weight is not None:
            empty = not totals or totals[0].empty
            weight = 0 if empty else twin.weight_from_matrix(totals[0].array, geometry)
            grads.weight[...] = weight
