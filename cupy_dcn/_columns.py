"""Stage 4, public: sampling an image into columns, and its two derivatives.

A column element is one channel of one tap of one output pixel. The three functions are the
pieces of ``deform_conv2d`` for programs that need only one of them, or a product of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ._arguments import (
    check_column_groups,
    check_grad_columns,
    check_mask,
    check_offset,
    check_workspace,
    require_dtype,
)
from ._arrays import AnyArray, Array, of_one_library, require_array, require_bytes
from ._attributes import check_flag, geometry_of, pair
from ._cut import DEFAULT_WORKSPACE, Cut, Tile
from ._geometry import Geometry
from ._twins import twin_of
from ._workspace import Workspace

COLUMNS_AXES = "(N, groups, OH*OW, KH*KW, C_in/groups)"


def deform_im2col(
    x: AnyArray,
    offset: AnyArray,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    mask: AnyArray | None = None,
    *,
    workspace_bytes: int | None = None,
) -> Array:
    """Sample an image where a deformed kernel looks: one row of values per output pixel and tap.

    ``columns[n, g, p, k, c] = mask_k(p) * x[n, g*C_in/G + c](py + dy_k(p), px + dx_k(p))``

    at output pixel p = y*OW + x and tap k = i*KW + j, where ``py = y*stride - pad_top +
    i*dilation``, px likewise, and x at a fractional location is the bilinear mean of its
    neighbours.

    Parameters
    ----------
    x : ndarray, shape (N, C_in, H, W)
        Images; float64, float32, float16 or bfloat16. Arrays are all NumPy's or all CuPy's.
    offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
        Displacement of every tap in pixels, (dy, dx) pairs: see `pack_offset`.
    kernel_size : int or (int, int)
        KH and KW.
    stride, padding, dilation, deformable_groups, groups
        As in `deform_conv2d`.
    mask : ndarray, shape (N, deformable_groups*KH*KW, OH, OW), optional
        Factor of every tap.
    workspace_bytes : int, optional
        Bound of temporary memory, as in `deform_conv2d`.

    Returns
    -------
    columns : ndarray, shape (N, groups, OH*OW, KH*KW, C_in/groups)
        Channels fastest, C-contiguous, x's dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before any work.

    See Also
    --------
    deform_conv2d : Its product with a weight; borders and precision are described there.
    deform_col2im : The adjoint.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> offset = np.zeros((1, 2, 3, 3))
    >>> offset[0, 0] = 0.5  # half a pixel down
    >>> cupy_dcn.deform_im2col(x, offset, 1)[0, 0, :, 0, 0].reshape(3, 3)
    array([[1.5, 2.5, 3.5],
           [4.5, 5.5, 6.5],
           [3. , 3.5, 4. ]])
    """
    x, offset, mask = of_one_library({"x": x, "offset": offset, "mask": mask})
    x = require_array("x", x, "(N, C_in, H, W)")
    kernel = pair("kernel_size", kernel_size, 1)
    geometry = geometry_of(x.shape, kernel, stride, padding, dilation, deformable_groups, groups)
    offset = check_offset(offset, geometry, x.dtype)
    mask = None if mask is None else check_mask(mask, geometry, x.dtype)
    require_bytes("the columns", _columns_shape(geometry), x.itemsize)
    twin = twin_of(x)
    dtype = twin.columns_dtype(x.dtype)
    cut = _cut(geometry, x, workspace_bytes, False)
    with twin.on_device(x):
        columns = twin.empty(_columns_shape(geometry), x)
        cut = twin.fit_index(cut, _given(x, offset, mask, columns))
        ((shared, workspaces, _),) = twin.allocate([cut], x)

        def sample(tiles: Iterable[Tile], workspace: Workspace, image: Any) -> None:
            for tile in tiles:
                with workspace.scope():
                    samples = twin.locate(offset, mask, cut, tile, dtype, workspace)
                    twin.write_columns(image, samples, columns)

        for images in cut.image_groups():
            with shared.scope():
                image = twin.Image(x, images, cut, dtype, shared)
                twin.spread(partial(sample, image=image), cut.tiles(images), workspaces)
    return columns  # type: ignore[no-any-return]


def deform_col2im(
    grad_columns: AnyArray,
    offset: AnyArray,
    image_size: tuple[int, int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    mask: AnyArray | None = None,
    *,
    workspace_bytes: int | None = None,
    deterministic: bool = False,
) -> Array:
    """Scatter columns back to the image: the adjoint of `deform_im2col` in x.

    Every column element is added, times its mask and bilinear weight, to each of its four corners
    that lies inside the image:  ``<deform_im2col(x, ...), grad> == <x, deform_col2im(grad, ...)>``.

    Parameters
    ----------
    grad_columns : ndarray, shape (N, groups, OH*OW, KH*KW, C_in/groups)
        Gradient of the columns; the number of groups is read from it.
    offset, kernel_size, stride, padding, dilation, deformable_groups, mask, workspace_bytes
        As in `deform_im2col`.
    image_size : (int, int)
        H and W of x.
    deterministic : bool
        Whether the same call is to give the same bits every time, as in `deform_conv2d_backward`.

    Returns
    -------
    grad_x : ndarray, shape (N, C_in, H, W)
        The dtype of ``grad_columns``; half types are summed in float32.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before any work.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> offset = np.full((1, 2, 1, 1), 0.5)  # between four pixels
    >>> cupy_dcn.deform_col2im(np.ones((1, 1, 1, 1, 1)), offset, (2, 2), 1, stride=2)[0, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    grad_columns, offset, mask = of_one_library(
        {"grad_columns": grad_columns, "offset": offset, "mask": mask}
    )
    grad_columns = require_array("grad_columns", grad_columns, COLUMNS_AXES)
    images, groups, _, _, channels = grad_columns.shape
    shape = (images, groups * channels, *pair("image_size", image_size, 1))
    kernel = pair("kernel_size", kernel_size, 1)
    check_column_groups(grad_columns, groups * channels)
    geometry = geometry_of(
        shape, kernel, stride, padding, dilation, deformable_groups, groups, "grad_columns"
    )
    check_grad_columns(grad_columns, geometry)
    offset, mask = _check_samples(grad_columns, offset, mask, geometry)
    check_flag("deterministic", deterministic)
    require_bytes("grad_x", shape, grad_columns.itemsize)
    twin = twin_of(grad_columns)
    cut = _cut(geometry, grad_columns, workspace_bytes, True, deterministic)
    with twin.on_device(grad_columns):
        grad_x = twin.empty(shape, grad_columns)
        cut = twin.fit_index(cut, _given(offset, mask, grad_columns, grad_x))
        _pullback(cut, grad_columns, None, offset, mask)(grad_x=grad_x).run()
    return grad_x  # type: ignore[no-any-return]


def deform_coord_grad(
    grad_columns: AnyArray,
    x: AnyArray,
    offset: AnyArray,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    mask: AnyArray | None = None,
    *,
    workspace_bytes: int | None = None,
) -> tuple[Array, Array | None]:
    """Differentiate `deform_im2col` by where it samples: gradients of offset and mask.

    With s_ab the dot product over channels of ``grad_columns`` and the corner ab of a sampling
    point, and (fy, fx) the fraction of its location::

        grad_dy = mask * ((1 - fx) * (s_10 - s_00) + fx * (s_11 - s_01))
        grad_dx = mask * ((1 - fy) * (s_01 - s_00) + fy * (s_11 - s_10))

    and the gradient of the mask is the bilinear mean of the four s. At whole-numbered locations
    this is the right-hand derivative; outside the open box (-1, H) x (-1, W) it is 0.

    Parameters
    ----------
    grad_columns : ndarray, shape (N, groups, OH*OW, KH*KW, C_in/groups)
        Gradient of the columns, x's dtype; the number of groups is read from it.
    x, offset, kernel_size, stride, padding, dilation, deformable_groups, mask, workspace_bytes
        As in `deform_im2col`.

    Returns
    -------
    grad_offset : ndarray, shape of offset
    grad_mask : ndarray, shape of mask, or None without a mask

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before any work.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> x = np.array([[0.0, 1.0], [10.0, 11.0]]).reshape(1, 1, 2, 2)
    >>> offset = np.full((1, 2, 1, 1), 0.5)
    >>> grad = np.ones((1, 1, 1, 1, 1))
    >>> cupy_dcn.deform_coord_grad(grad, x, offset, 1, stride=2)[0].ravel()  # d/dy, d/dx
    array([10.,  1.])
    """
    grad_columns, x, offset, mask = of_one_library(
        {"grad_columns": grad_columns, "x": x, "offset": offset, "mask": mask}
    )
    x = require_array("x", x, "(N, C_in, H, W)")
    grad_columns = require_array("grad_columns", grad_columns, COLUMNS_AXES)
    require_dtype("grad_columns", grad_columns, x)
    check_column_groups(grad_columns, x.shape[1])
    kernel = pair("kernel_size", kernel_size, 1)
    geometry = geometry_of(
        x.shape, kernel, stride, padding, dilation, deformable_groups, grad_columns.shape[1]
    )
    check_grad_columns(grad_columns, geometry)
    offset, mask = _check_samples(grad_columns, offset, mask, geometry)
    twin = twin_of(x)
    cut = _cut(geometry, x, workspace_bytes, True)
    cut = twin.fit_index(cut, _given(x, offset, mask, grad_columns))
    with twin.on_device(x):
        grad_offset = twin.empty(offset.shape, offset)
        grad_mask = None if mask is None else twin.empty(mask.shape, mask)
        pullback = _pullback(cut, grad_columns, x, offset, mask)
        pullback(grad_offset=grad_offset, grad_mask=grad_mask).run()
    return grad_offset, grad_mask


def _check_samples(
    grad_columns: Array, offset: AnyArray, mask: AnyArray | None, geometry: Geometry
) -> tuple[Array, Array | None]:
    like = grad_columns.dtype, "grad_columns"
    offset = check_offset(offset, geometry, *like)
    return offset, None if mask is None else check_mask(mask, geometry, *like)


def _pullback(
    cut: Cut, grad_columns: Array, x: Array | None, offset: Array, mask: Array | None
) -> partial[Any]:
    """Prepare the backward from given columns."""
    twin = twin_of(grad_columns)
    dtype = twin.columns_dtype(grad_columns.dtype)

    def grad_columns_of(tile: Tile, workspace: Workspace) -> Array:
        return twin.tile_of_columns(  # type: ignore[no-any-return]
            grad_columns, cut, tile, dtype, workspace
        )

    (memory,) = twin.allocate([cut], grad_columns)
    return partial(twin.Pullback, cut, dtype, *memory[:2], x, offset, mask, grad_columns_of)


def _cut(
    geometry: Geometry,
    like: Array,
    workspace_bytes: int | None,
    backward: bool,
    deterministic: bool = False,
) -> Cut:
    budget, twin = check_workspace(workspace_bytes) or DEFAULT_WORKSPACE, twin_of(like)
    dtype = twin.columns_dtype(like.dtype)
    return twin.make_cut(  # type: ignore[no-any-return]
        geometry, 0, dtype, budget, backward, deterministic=deterministic
    )


def _given(*arrays: Array | None) -> list[Array]:
    return [array for array in arrays if array is not None]


def _columns_shape(geometry: Geometry) -> tuple[int, int, int, int, int]:
    return (
        geometry.images, geometry.groups, geometry.out_pixels, geometry.taps,
        geometry.group_channels,
    )  # fmt: skip
