"""DeformConv2D: weight, bias and attributes of a deformable convolution, held together."""

from __future__ import annotations

from collections.abc import Iterable

from ._arguments import GRADIENTS
from ._arrays import AnyArray, Array
from ._layer import Layer
from ._prepared import Gradients
from .functional import deform_conv2d, deform_conv2d_backward


class DeformConv2D(Layer):
    """A deformable convolution with a weight and a bias of its own: Paddle's layer.

    ``y(p) = sum_k weight_k * x(p + p_k + offset_k(p)) * mask_k(p) + bias``

    It keeps nothing of a call: `backward` is given what `forward` was given. Its parameters are
    plain arrays, and a step of a descent is ``layer.weight -= rate * grads.weight``.

    Parameters
    ----------
    in_channels, out_channels : int
        C_in and C_out.
    kernel_size : int or (int, int)
        KH and KW.
    stride, padding, dilation, deformable_groups, groups
        As in `deform_conv2d`.
    weight_attr : array or function, optional
        The first weight: an array (C_out, C_in/groups, KH, KW), or a function that makes one from
        this shape, such as numpy.zeros; converted to ``dtype``. By default it is drawn from
        Normal(0, sqrt(2 / (KH*KW*in_channels))), in_channels not being divided by groups. They take
        the place of Paddle's ParamAttr, whose names and learning rates mean nothing here.
    bias_attr : array, function or False, optional
        The first bias, (C_out,), likewise; zeros by default. False: the layer has no bias.
    dtype : dtype
        float64, float32, float16 or bfloat16 (of ml_dtypes; its name will do): of the parameters
        and of every x.
    device : str or cupy.cuda.Device
        'cpu' for NumPy arrays, 'cuda' or 'cuda:1' for CuPy's; `to` moves them later.
    rng : int or numpy.random.Generator, optional
        What the weight is drawn with, always by NumPy: a seed gives the same weight on all devices.

    Attributes
    ----------
    weight : ndarray, shape (C_out, C_in/groups, KH, KW)
        May be set, to an array of the same shape, dtype and device.
    bias : ndarray, shape (C_out,), or None
    dtype, device
        Of the parameters; `device` is 'cpu' or 'cuda:N'.

    Raises
    ------
    TypeError, ValueError
        If an attribute is none that a layer can have; groups and deformable_groups divide
        in_channels, and groups divides out_channels.
    ImportError, RuntimeError
        If there is no CuPy or no GPU where one is asked for, or no ml_dtypes for bfloat16.

    See Also
    --------
    DeformConv2DPack : A layer that works out offset and mask itself.
    deform_conv2d : The function behind it.
    Plan : For many calls on arrays of one shape.

    Notes
    -----
    Weights of ``paddle.vision.ops.DeformConv2D`` and ``torchvision.ops.DeformConv2d`` have the same
    names, shapes and order: `load` and `load_state_dict` take them as they are.

    Examples
    --------
    >>> import numpy as np, cupy_dcn
    >>> layer = cupy_dcn.DeformConv2D(1, 16, kernel_size=3, padding=1, rng=0)
    >>> layer
    DeformConv2D(1, 16, kernel_size=(3, 3), padding=(1, 1, 1, 1), dtype='float32', device='cpu')
    >>> x = np.ones((8, 1, 28, 28), np.float32)
    >>> offset, mask = np.zeros((8, 18, 28, 28), x.dtype), np.ones((8, 9, 28, 28), x.dtype)
    >>> y = layer(x, offset, mask)
    >>> y.shape
    (8, 16, 28, 28)
    >>> grads = layer.backward(np.ones_like(y), x, offset, mask, needs=("weight", "bias"))
    >>> layer.weight -= 1e-4 * grads.weight
    >>> layer.bias -= 1e-4 * grads.bias
    >>> {name: array.shape for name, array in layer.state_dict().items()}
    {'weight': (16, 1, 3, 3), 'bias': (16,)}
    """

    def forward(self, x: AnyArray, offset: AnyArray, mask: AnyArray | None = None) -> Array:
        """Return the convolution of x; calling the layer does the same.

        Parameters
        ----------
        x : ndarray, shape (N, in_channels, H, W)
            Of the layer's dtype, library and device.
        offset : ndarray, shape (N, 2*deformable_groups*KH*KW, OH, OW)
            As in `deform_conv2d`, in pixels of x.
        mask : ndarray, shape (N, deformable_groups*KH*KW, OH, OW), optional
            As in `deform_conv2d`.

        Returns
        -------
        ndarray, shape (N, out_channels, OH, OW)
        """
        return deform_conv2d(
            self._check_x(x), offset, self.weight, self.bias, mask=mask, **self._attributes()
        )

    __call__ = forward

    def backward(
        self,
        grad_output: AnyArray,
        x: AnyArray,
        offset: AnyArray,
        mask: AnyArray | None = None,
        *,
        needs: Iterable[str] = GRADIENTS,
        deterministic: bool = False,
    ) -> Gradients:
        """Return the gradients of `forward` by x, offset, weight, bias and mask.

        Parameters
        ----------
        grad_output : ndarray, shape (N, out_channels, OH, OW)
            Gradient of the output.
        x, offset, mask : ndarray
            As given to `forward`.
        needs : tuple of str
            Which gradients to compute; only these are worked for.
        deterministic : bool
            As in `deform_conv2d_backward`: the same bits from run to run on a GPU, too.

        Returns
        -------
        Gradients
            Named tuple (x, offset, weight, bias, mask), None where there is nothing.
        """
        return deform_conv2d_backward(
            grad_output, self._check_x(x), offset, self.weight, self.bias, mask=mask, needs=needs,
            deterministic=deterministic, **self._attributes(),
        )  # fmt: skip
