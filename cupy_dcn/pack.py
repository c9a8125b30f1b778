"""DeformConv2DPack: a deformable convolution that works out offset and mask itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._arguments import layer_geometry
from ._arrays import AnyArray, Array, compute_dtype, module_of, on_device
from ._layer import Initial, Layer
from .functional import deform_conv2d, deform_conv2d_backward


class PackGradients(NamedTuple):
    """Gradients of a `DeformConv2DPack`: of x, and of every parameter.

    Each has the shape and dtype of its argument; bias is None if the pack has none.
    """

    x: Array
    weight: Array
    bias: Array | None
    conv_offset_weight: Array
    conv_offset_bias: Array


class DeformConv2DPack(Layer):
    """A deformable convolution whose offsets and mask come from x by a convolution of its own.

    With r = conv(x, conv_offset), a convolution of the same kernel size, stride, padding and
    dilation with all channels in one group, D = deformable_groups and K = KH*KW::

        offset = r[:, :2*D*K]
        mask   = sigmoid(r[:, 2*D*K:])        without it where modulated is False
        y      = deform_conv2d(x, offset, weight, bias, mask=mask)

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, deformable_groups, groups
        As in `DeformConv2D`.
    weight_attr, bias_attr
        As in `DeformConv2D`. What makes the offsets starts at zero: every tap at its own place and,
        with a mask, at half its weight.
    modulated : bool
        Whether there is a mask: deformable convolution v2, else v1.
    dtype, device, rng
        As in `DeformConv2D`.

    Attributes
    ----------
    weight, bias
        As in `DeformConv2D`.
    conv_offset_weight : ndarray, shape (3*D*K or 2*D*K, in_channels, KH, KW)
    conv_offset_bias : ndarray, shape (3*D*K or 2*D*K,)
        Named ``conv_offset.weight`` and ``conv_offset.bias`` in states and files.

    Raises
    ------
    TypeError, ValueError, ImportError, RuntimeError
        As `DeformConv2D`.

    See Also
    --------
    DeformConv2D : The layer to which offset and mask are given.

    Notes
    -----
    These are mmcv's ``ModulatedDeformConv2dPack`` and, with ``modulated=False`` and
    ``bias_attr=False``, ``DeformConv2dPack``: names, shapes and order of channels are theirs, so
    their weights load as they are. mmcv cuts r into three parts and joins the first two to the
    offset: these are the channels of r in their order, (dy, dx) pairs per tap as everywhere here.

    `backward` works out offset and mask again, about a fifth of its work, so that nothing is kept
    between calls. In float16 and bfloat16 offset and mask are rounded to that dtype; the sigmoid is
    worked out in float32. The convolution is the library's own with offsets of zero: beside NaN or
    infinite pixels its results may be NaN as well, as in `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> pack = cupy_dcn.DeformConv2DPack(1, 2, kernel_size=3, weight_attr=np.ones)
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> pack(x)[0, 0]  # at first, half of a plain convolution
    array([[22.5, 27. ],
           [40.5, 45. ]], dtype=float32)
    >>> grads = pack.backward(np.ones((1, 2, 2, 2), np.float32), x)
    >>> grads.conv_offset_weight.shape
    (27, 1, 3, 3)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        deformable_groups: int = 1,
        groups: int = 1,
        weight_attr: Initial = None,
        bias_attr: Initial = None,
        *,
        modulated: bool = True,
        dtype: npt.DTypeLike = "float32",
        device: Any = "cpu",
        rng: int | np.random.Generator | None = None,
    ) -> None:
        if not isinstance(modulated, bool):
            raise TypeError(
                f"modulated must be True or False, got {modulated!r}; True means with a mask (v2)"
            )
        self.modulated = modulated
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, deformable_groups,
            groups, weight_attr, bias_attr, dtype=dtype, device=device, rng=rng,
        )  # fmt: skip

    def _first_values(
        self, weight_attr: Initial, bias_attr: Initial, dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> dict[str, Array]:  # fmt: skip
        channels = self._offset_channels() * 3 // 2 if self.modulated else self._offset_channels()
        shape = (channels, self.in_channels, *self.kernel_size)
        return super()._first_values(weight_attr, bias_attr, dtype, rng) | {
            "conv_offset.weight": np.zeros(shape, dtype),
            "conv_offset.bias": np.zeros(channels, dtype),
        }

    def __repr__(self) -> str:
        text = super().__repr__()
        return text if self.modulated else f"{text[:-1]}, modulated=False)"

    @property
    def conv_offset_weight(self) -> Array:
        """The weight of the convolution that makes the offsets."""
        return self._parameters["conv_offset.weight"]

    @conv_offset_weight.setter
    def conv_offset_weight(self, value: AnyArray) -> None:
        self._set("conv_offset.weight", value)

    @property
    def conv_offset_bias(self) -> Array:
        """The bias of the convolution that makes the offsets."""
        return self._parameters["conv_offset.bias"]

    @conv_offset_bias.setter
    def conv_offset_bias(self, value: AnyArray) -> None:
        self._set("conv_offset.bias", value)

    def offset_and_mask(self, x: AnyArray) -> tuple[Array, Array | None]:
        """Return where the pack samples x, to be drawn or kept.

        Parameters
        ----------
        x : ndarray, shape (N, in_channels, H, W)

        Returns
        -------
        offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
        mask : ndarray, shape (N, deformable_groups*KH*KW, OH, OW), or None
        """
        x = self._check_x(x)
        with on_device(x):
            return self._split(self._convolved(x, self._no_offset(x)))

    def forward(self, x: AnyArray) -> Array:
        """Return the convolution of x; calling the pack does the same.

        Parameters
        ----------
        x : ndarray, shape (N, in_channels, H, W)
            Of the pack's dtype, library and device.

        Returns
        -------
        ndarray, shape (N, out_channels, OH, OW)
        """
        offset, mask = self.offset_and_mask(x)
        return deform_conv2d(x, offset, self.weight, self.bias, mask=mask, **self._attributes())

    __call__ = forward

    def backward(
        self, grad_output: AnyArray, x: AnyArray, *, deterministic: bool = False
    ) -> PackGradients:
        """Return the gradients of `forward` by x and by every parameter.

        With (gx, goffset, gmask) the gradients of the deformable convolution::

            gr = (goffset, gmask * mask * (1 - mask))
            grad_x = gx + conv ^ T(gr, conv_offset)

        Parameters
        ----------
        grad_output : ndarray, shape (N, out_channels, OH, OW)
            Gradient of the output.
        x : ndarray, shape (N, in_channels, H, W)
            As given to `forward`.
        deterministic : bool
            As in `deform_conv2d_backward`: the same bits from run to run on a GPU, too.

        Returns
        -------
        PackGradients
        """
        x = self._check_x(x)
        with on_device(x):
            at_rest = self._no_offset(x)
            raw = self._convolved(x, at_rest)
            offset, mask = self._split(raw)
            outer: Any = deform_conv2d_backward(
                grad_output, x, offset, self.weight, self.bias, mask=mask,
                deterministic=deterministic, **self._attributes(),
            )  # fmt: skip
            grad_raw = outer.offset
            if outer.mask is not None:
                factor = outer.mask.astype(compute_dtype(x.dtype))
                factor *= _sigmoid_slope(raw[:, self._offset_channels() :])
                grad_raw = module_of(x).concatenate([outer.offset, factor.astype(x.dtype)], axis=1)
            inner: Any = deform_conv2d_backward(
                grad_raw, x, at_rest, self.conv_offset_weight, self.conv_offset_bias,
                self.stride, self.padding, self.dilation, needs=("x", "weight", "bias"),
                deterministic=deterministic,
            )  # fmt: skip
            grad_x = outer.x
            grad_x += inner.x
        return PackGradients(grad_x, outer.weight, outer.bias, inner.weight, inner.bias)

    def _offset_channels(self) -> int:
        return 2 * self.deformable_groups * self.kernel_size[0] * self.kernel_size[1]

    def _no_offset(self, x: Array) -> Array:
        """Return the offsets of a plain convolution: one zero, repeated by strides of 0."""
        geometry = layer_geometry(
            x.shape, self.conv_offset_weight, self.stride, self.padding, self.dilation, 1, 1
        )
        size = geometry.out_height, geometry.out_width
        library = module_of(x)
        zero = library.zeros((1, 1, 1, 1), x.dtype)
        return library.broadcast_to(  # type: ignore[no-any-return]
            zero, (geometry.images, 2 * geometry.taps, *size)
        )

    def _convolved(self, x: Array, at_rest: Array) -> Array:
        return deform_conv2d(
            x, at_rest, self.conv_offset_weight, self.conv_offset_bias, self.stride, self.padding,
            self.dilation,
        )  # fmt: skip

    def _split(self, raw: Array) -> tuple[Array, Array | None]:
        count = self._offset_channels()
        if not self.modulated:
            return raw, None
        return raw[:, :count], _sigmoid(raw[:, count:]).astype(raw.dtype)


def _sigmoid(raw: Array) -> Array:
    """Return 1 / (1 + exp(-raw)), where no exp overflows."""
    library, wide = module_of(raw), raw.astype(compute_dtype(raw.dtype))
    return library.exp(library.minimum(wide, 0)) / (  # type: ignore[no-any-return]
        1 + library.exp(-abs(wide))
    )


def _sigmoid_slope(raw: Array) -> Array:
    """Return the derivative, sigmoid(raw) * sigmoid(-raw), which is even."""
    small = module_of(raw).exp(-abs(raw.astype(compute_dtype(raw.dtype))))
    return small / ((1 + small) * (1 + small))  # type: ignore[no-any-return]
