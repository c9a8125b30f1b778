"""deform_conv2d and its backward: the pipeline, stage by stage. Start reading here.

    validate -> geometry -> cut -> for each tile: columns = im2col(x, offset, mask)
                                                   out     = weight @ columns + bias

The backward is the same stages right to left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from ._arguments import (
    GRADIENTS,
    Arguments,
    check_grad_output,
    check_needs,
    check_out,
    validate,
)
from ._arrays import AnyArray, Array, compute_dtype, library_of
from ._attributes import check_flag
from ._cut import Tile
from ._prepared import Gradients, Prepared, empty_gradients, empty_output, prepare
from ._progress import Progress, Watch, check_progress, log_cut, reported
from ._twins import twin_of
from ._workspace import Sum, Workspace


def deform_conv2d(
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
    out: AnyArray | None = None,
    workspace_bytes: int | None = None,
    progress: Progress | None = None,
) -> Array:
    """Convolve images with a kernel whose every tap looks where an offset sends it.

    ``y(p) = sum_k weight_k * x(p + p_k + offset_k(p)) * mask_k(p) + bias``

    Deformable convolution v1, with ``mask`` v2. A fractional location is read bilinearly.

    Parameters
    ----------
    x : ndarray, shape (N, C_in, H, W)
        Images, float64, float32, float16 or bfloat16 (of ml_dtypes). N may be 0. All arrays are
        NumPy's, or all are CuPy's and on one device; those of torch, Paddle, JAX and others count
        as NumPy's where they lie on the CPU and as CuPy's where on a GPU, by DLPack or an array
        interface. Views of x, offset and mask are read in place.
    offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
        Displacement of every tap at every output pixel, in pixels of x: channel ``g*2K + 2k`` is
        dy (positive downward) and ``g*2K + 2k + 1`` is dx (positive to the right) of tap
        ``k = i*KW + j``, with K = KH*KW. `pack_offset` makes one from dy and dx.
    weight : ndarray, shape (C_out, C_in/groups, KH, KW)
        One kernel for each output channel.
    bias : ndarray, shape (C_out,), optional
        Added to each output channel.
    stride, dilation : int or (int, int)
        Vertical and horizontal, at least 1.
    padding : int, (int, int), (int, int, int, int), 'SAME' or 'VALID'
        Zeros around x: on all sides, (vertical, horizontal) or (top, bottom, left, right).
        'SAME' gives ceil(size/stride) outputs with the dilated kernel, 'VALID' means 0; in any
        case of letters.
    deformable_groups : int
        C_in is split into so many groups of channels, each with offsets of its own (torchvision
        calls it offset groups). It need not divide C_out.
    groups : int
        Groups of an ordinary grouped convolution; divides C_in and C_out.
    mask : ndarray, shape (N, deformable_groups*KH*KW, OH, OW), optional
        Factor of every tap, any number: no sigmoid is applied. Channel ``g*K + k``.
    name : str, optional
        Accepted as in Paddle, and ignored.
    out : ndarray, shape (N, C_out, OH, OW), optional
        Takes the result, and is returned; of a tensor, the NumPy or CuPy array of its memory.
        C-contiguous, of x's dtype, apart from the inputs.
        Validation errors leave it untouched; after a failure during the work, such as memory
        running out or an interrupt, it may be written in part.
    workspace_bytes : int, optional
        Bound of temporary memory, 64 MiB by default, whatever the batch and the resolution; besides
        it the call takes the weight's copy and 1 MiB a thread. On a GPU the copy of an image that
        takes more than half of it comes on top, since an image cannot be sampled in part; and there
        a bound that is given is used in full, while by default chunks are as large as suits the
        device's caches. Where it is too small for any work, the error names the least that works.
    progress : callable, optional
        ``tqdm.tqdm``, or what is called like it: ``progress(iterable, total=n, desc=name,
        unit="tile")`` returns an iterable, of which the call takes one item for each tile of work,
        in the caller's thread. On a GPU a tile counts when it is queued.

    Returns
    -------
    ndarray, shape (N, C_out, OH, OW)
        Of x's dtype, with OH = floor((H + pad_top + pad_bottom - (dilation*(KH-1) + 1)) / stride)
        + 1 and OW likewise.

    Raises
    ------
    TypeError
        If an argument is not an array, a tensor requires gradients, CPU and GPU are mixed, or
        dtypes are unsupported or mixed: all arrays have x's dtype; offset and mask may be float32
        beside half-precision x.
    ValueError
        If a shape or an attribute does not fit, or CuPy arrays are on several devices or not
        aligned. Both come before any work; ``out`` is untouched.

    See Also
    --------
    deform_conv2d_backward : The gradients.
    Plan : The same for many calls on arrays of one shape.
    deform_im2col : The sampling alone.

    Notes
    -----
    Tap (i, j) of output pixel (y, x) samples at ``py = y*stride - pad_top + i*dilation + dy`` and
    likewise px. Inside the open box -1 < py < H, -1 < px < W the value is the bilinear mean of the
    four corners floor, floor + 1, where corners outside the image read 0: it fades to zero over
    the last pixel. Outside the box, and for NaN or infinite offsets, the sample is 0. A corner
    inside the image always counts, with weight 0 too: a NaN or infinite pixel makes every sample
    that has it among its corners NaN, at whole-numbered locations those of up to three
    neighbours. Replace bad pixels first, or carry their validity as another channel.

    float16 and bfloat16 are storage: coordinates, weights and sums are float32. On a GPU the
    sampled columns are stored in them too, and float32 products are TensorFloat-32 if CuPy's are
    (``CUPY_TF32=1``); float32 numbers below 1.2e-38 count as 0 there. The signature is that of
    ``paddle.vision.ops.deform_conv2d``; the layouts are also torchvision's and ONNX's.

    NumPy arrays: the work is spread over as many threads as NumPy's BLAS would use, and BLAS is
    held at one thread meanwhile; where BLAS is not OpenBLAS that takes threadpoolctl. Where Numba
    is importable, sampling is loops that it compiles at the first call with a dtype, in a second or
    two, and keeps on disk; with ``CUPY_DCN_NUMBA=0`` in the environment it is NumPy's. CuPy arrays:
    the work is queued on the current stream, without waiting for it, in memory of the current
    allocator. Kernels are compiled at the first call of a layer: see `warmup`.

    References
    ----------
    .. [1] J. Dai et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.
    .. [2] X. Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
       arXiv:1811.11168.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> weight = np.ones((1, 1, 2, 2))
    >>> offset = np.zeros((1, 8, 2, 2))
    >>> offset[0, 0, 0, 0] = 0.5  # tap (0, 0) of the first output looks half a pixel lower
    >>> cupy_dcn.deform_conv2d(x, offset, weight)[0, 0]
    array([[ 9.5, 12. ],
           [20. , 24. ]])
    """
    del name
    call = validate(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask,
        workspace_bytes,
    )  # fmt: skip
    check_progress(progress)
    result = convolve(call, None if out is None else check_out(out, call), progress)
    return out if library_of(out) else result  # type: ignore[return-value]


def deform_conv2d_backward(
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
    needs: Iterable[str] = GRADIENTS,
    workspace_bytes: int | None = None,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> Gradients:
    """Return the gradients of `deform_conv2d` by x, offset, weight, bias and mask.

    With G = weight^T . grad_output in the layout of the columns, and for every sampling point its
    fraction (fy, fx), its corners v_ab and its bilinear value::

        grad_x      = im2col^T(G): each corner inside the image gets G * mask * its weight
        grad_dy     = sum_c G * mask * ((1 - fx)*(v_10 - v_00) + fx*(v_11 - v_01))
        grad_dx     = sum_c G * mask * ((1 - fy)*(v_01 - v_00) + fy*(v_11 - v_10))
        grad_mask   = sum_c G * value
        grad_weight = grad_output . columns^T
        grad_bias   = grad_output summed over N, OH, OW

    Parameters
    ----------
    grad_output : ndarray, shape (N, C_out, OH, OW)
        Gradient of the output, x's dtype.
    x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask, name
        As given to `deform_conv2d`; the values of ``bias`` do not matter.
    needs : tuple of str
        Which gradients to compute, among "x", "offset", "weight", "bias", "mask"; only these
        are worked for.
    workspace_bytes : int, optional
        Bound of temporary memory, 64 MiB by default, whatever the batch and the resolution; besides
        it the call takes a copy of the weight and 1 MiB a thread; for the gradient of the weight
        one more copy a thread, and 4 MiB at most to add to it. On a GPU an image's copy (unless
        only the gradient of x is asked for) and the sums of its gradient (if it is), in float32 for
        the half types, come on top where they take more than half of it.
    deterministic : bool
        Whether the same call is to give the same bits every time. Without it the gradient of x is
        summed on a GPU in no fixed order, so its last bits may differ from call to call. On NumPy
        arrays it is always so, on the same number of threads. On a GPU it counts 4 bytes a pixel
        of an image and deformable group besides its copy.
    progress : callable, optional
        As in `deform_conv2d`: one bar for all gradients.

    Returns
    -------
    Gradients
        Named tuple (x, offset, weight, bias, mask); each has the shape and dtype of its argument,
        and is None if it was not asked for or the argument was not given.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, before any work.

    Notes
    -----
    At whole-numbered locations the coordinate gradients are right-hand derivatives. Outside the
    open box (-1, H) x (-1, W), on its border and for NaN or infinite offsets, all gradients of a
    sample are 0. Where grad_output or weight is infinite, a gradient that the formulas make
    infinite may be NaN: it is computed from four dot products, one a corner.

    Bits can only be the same where everything else is: arrays, ``needs`` and ``workspace_bytes``,
    versions, the device, and on NumPy arrays the number of threads: another one cuts the work
    elsewhere, so that sums and products round differently, but for the gradient of the bias. On a
    GPU a deterministic call orders the sampling points by the pixel they start from and by their
    number, and adds without atomics; where a million of them meet at one pixel, that alone takes
    some tenths of a second. Products are cuBLAS's, which is deterministic while a handle is used on
    one stream: where several are at work, set ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` or ``:16:8`` in
    the environment, as NVIDIA advises.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> offset, weight = np.full((1, 2, 3, 3), 0.25), np.ones((1, 1, 1, 1))
    >>> grads = cupy_dcn.deform_conv2d_backward(
    ...     np.ones((1, 1, 3, 3)), x, offset, weight, needs=("offset", "weight")
    ... )
    >>> grads.offset[0, :, 0, 0]  # x grows by 3 a row and by 1 a column
    array([3., 1.])
    >>> grads.weight.shape, grads.x
    ((1, 1, 1, 1), None)
    """
    del name
    call = validate(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask,
        workspace_bytes,
    )  # fmt: skip
    grad_output = check_grad_output(grad_output, call)
    wanted = check_needs(needs)
    check_flag("deterministic", deterministic)
    check_progress(progress)
    return pull_back(call, grad_output, wanted, deterministic, progress)


def convolve(call: Arguments, out: Array | None = None, progress: Progress | None = None) -> Array:
    """Return the output of a checked call, in ``out`` if it is given."""
    with twin_of(call.x).on_device(call.x):
        (prepared,) = prepare(call.geometry, call.weight, call.bias, call.workspace_bytes, (False,))
        result = empty_output(call) if out is None else out
        forward(prepared, call, result, progress)
    return result


def pull_back(
    call: Arguments,
    grad_output: Array,
    wanted: Collection[str],
    deterministic: bool,
    progress: Progress | None = None,
) -> Gradients:
    """Return the wanted gradients of a checked call."""
    with twin_of(call.x).on_device(call.x):
        (prepared,) = prepare(
            call.geometry,
            call.weight,
            call.bias,
            call.workspace_bytes,
            (True,),
            wanted,
            deterministic,
        )
        grads = empty_gradients(call, wanted)
        backward(prepared, call, grad_output, grads, progress)
    return grads


def forward(
    prepared: Prepared, call: Arguments, result: Array, progress: Progress | None = None
) -> None:
    """Write the output: tile by tile, sample, multiply; or both at once, without columns."""
    twin, geometry, dtype = twin_of(call.x), call.geometry, prepared.dtype
    weight, bias, memory = prepared.weight, prepared.bias, prepared.memory
    cut = twin.fit_index(prepared.cut, call.arrays(result))
    log_cut("deform_conv2d", cut, memory.nbytes)

    def write_tiles(tiles: Iterable[Tile], workspace: Workspace, image: Any, watch: Watch) -> None:
        for tile in watch(tiles):
            with workspace.scope():
                samples = twin.locate(call.offset, call.mask, cut, tile, dtype, workspace)
                if twin.convolve_directly(weight, image, samples, bias, result):
                    continue
                columns = twin.im2col(image, samples)
                twin.write_output(weight, columns, bias, result, tile, geometry, workspace)

    with reported(progress, "deform_conv2d", lambda: cut.tile_count) as watch:
        for images in cut.image_groups():
            with memory.shared.scope():
                image = twin.Image(call.x, images, cut, dtype, memory.shared)
                work = partial(write_tiles, image=image, watch=watch)
                twin.spread(work, cut.tiles(images), memory.workspaces)


def backward(
    prepared: Prepared,
    call: Arguments,
    grad_output: Array,
    grads: Gradients,
    progress: Progress | None = None,
) -> None:
    """Write those gradients that are not None."""
    twin, geometry, dtype = twin_of(call.x), call.geometry, prepared.dtype
    weight, (shared, workspaces, nbytes) = prepared.weight, prepared.memory
    cut = twin.fit_index(prepared.cut, call.arrays(grad_output))
    log_cut("deform_conv2d_backward", cut, nbytes)

    def grad_columns_of(tile: Tile, workspace: Workspace) -> Array:
        return twin.grad_columns(  # type: ignore[no-any-return]
            weight, grad_output, tile, geometry, workspace
        )

    def add_grad_weight(tile: Tile, columns: Array, workspace: Workspace, total: Sum) -> None:
        twin.add_grad_weight(grad_output, tile, columns, geometry, workspace, total)

    with ExitStack() as scopes:
        for workspace in workspaces:
            scopes.enter_context(workspace.scope())
        needed = [] if grads.weight is None else workspaces
        totals = [Sum(each.empty(weight.shape, compute_dtype(dtype))) for each in needed]
        pullback = twin.Pullback(
            cut, dtype, shared, workspaces, call.x, call.offset, call.mask, grad_columns_of,
            add_grad_weight if totals else None, totals, grads.x, grads.offset, grads.mask,
            (weight, grad_output) if cut.direct else None,
        )  # fmt: skip
        with reported(progress, "deform_conv2d_backward", pullback.steps) as watch:
            pullback.run(watch)
        if grads.weight is not None:
            total = totals[0]
            grads.weight[...] = 0 if total.empty else twin.weight_from_matrix(total.array, geometry)
    if grads.bias is not None:
        twin.sum_planes(grad_output, grads.bias)
