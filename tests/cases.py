"""Calls to try: sizes and attributes, and the arrays that go with them."""

import re
from dataclasses import dataclass, field

import numpy as np

from cupy_dcn import _oracle


@dataclass(frozen=True)
class Case:
    """One call; attributes in full form, as the oracle takes them."""

    images: int
    channels: int
    size: tuple
    out_channels: int
    kernel: tuple
    stride: tuple = (1, 1)
    padding: tuple = (0, 0, 0, 0)
    dilation: tuple = (1, 1)
    deformable_groups: int = 1
    groups: int = 1
    masked: bool = True
    spread: float = 1.5  # standard deviation of the offsets, in pixels
    seed: int = field(default=0)

    def __str__(self):
        parts = [f"{self.images}x{self.channels}x{self.size[0]}x{self.size[1]}"]
        parts.append(f"k{self.kernel[0]}x{self.kernel[1]}")
        parts.append(f"dg{self.deformable_groups}g{self.groups}")
        return "-".join(parts)

    @property
    def attributes(self):
        """Keyword arguments of the operator."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "deformable_groups": self.deformable_groups,
            "groups": self.groups,
        }

    @property
    def sampling(self):
        """The attributes that the oracle's sampling functions take, in order, less the mask."""
        return self.kernel, self.stride, self.padding, self.dilation, self.deformable_groups

    def arrays(self, dtype=np.float64):
        """Return x, offset, weight, bias, mask (or None) and grad_output."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((self.images, self.channels, *self.size))
        out = _oracle.output_shape(x, self.kernel, self.stride, self.padding, self.dilation)
        samples = self.deformable_groups * self.kernel[0] * self.kernel[1]
        offset = self.spread * rng.standard_normal((self.images, 2 * samples, *out))
        weight = rng.standard_normal(
            (self.out_channels, self.channels // self.groups, *self.kernel)
        )
        bias = rng.standard_normal(self.out_channels)
        mask = rng.standard_normal((self.images, samples, *out)) if self.masked else None
        grad_output = rng.standard_normal((self.images, self.out_channels, *out))
        found = (x, offset, weight, bias, mask, grad_output)
        return tuple(None if array is None else array.astype(dtype) for array in found)


CASES = [
    Case(2, 1, (5, 6), 1, (3, 3), padding=(1, 1, 1, 1)),
    Case(2, 3, (6, 7), 4, (3, 3), padding=(1, 1, 1, 1)),
    Case(1, 3, (4, 9), 2, (2, 3), stride=(2, 1), padding=(1, 0, 2, 1), masked=False),
    Case(2, 6, (5, 6), 4, (3, 3), deformable_groups=3, groups=2, padding=(1, 1, 1, 1)),
    Case(2, 6, (5, 6), 6, (3, 2), deformable_groups=6, groups=3, padding=(1, 1, 0, 1)),
    Case(2, 4, (6, 5), 3, (3, 3), padding=(1, 1, 1, 1)),
    Case(1, 5, (7, 5), 2, (3, 3), dilation=(2, 1), padding=(2, 1, 1, 1), masked=False),
    Case(2, 12, (6, 7), 4, (3, 3), stride=(1, 2), padding=(1, 0, 2, 1), deformable_groups=2),
    Case(2, 12, (5, 5), 8, (3, 3), deformable_groups=2, groups=4, padding=(1, 1, 1, 1)),
    Case(1, 10, (5, 9), 6, (2, 3), stride=(2, 1), dilation=(1, 2), groups=2, deformable_groups=2),
    Case(3, 7, (5, 1), 7, (3, 1), groups=7, padding=(1, 1, 0, 0)),
    Case(4, 8, (1, 1), 4, (1, 1), spread=0.6),
    Case(1, 8, (6, 6), 2, (3, 3), spread=8.0),
    Case(1, 2, (6, 6), 2, (3, 3), spread=8.0, padding=(3, 3, 3, 3)),
    Case(1, 50, (3, 4), 3, (2, 2)),
]


def least_workspace(function, *args, **kwargs):
    """Return the least workspace_bytes of a call, as its error message names it.

    A forward without columns, on a GPU, has enough with any.
    """
    try:
        function(*args, **kwargs, workspace_bytes=1)
    except ValueError as error:
        said = str(error)
    else:
        return 1
    least = re.match(r"workspace_bytes is 1, expected at least (\d+)", said)
    assert least, said
    return int(least.group(1))


def budgets(function, *args, **kwargs):
    """Return byte budgets that make one tile, many tiles, and windows of one sample."""
    least = least_workspace(function, *args, **kwargs)
    return None, 8 * least, 2 * least, least


def assert_close(ours, expected, relative):
    """Compare with a tolerance relative to the largest expected value."""
    assert ours.shape == expected.shape
    scale = max(np.abs(expected).max(), 1e-300) if expected.size else 1.0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=relative * scale)


def plain_convolution(x, weight, bias, stride, padding, dilation, groups):
    """Return an ordinary convolution by SciPy, which knows nothing of sampling."""
    from scipy.signal import correlate

    top, bottom, left, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out_channels, per_group, kernel_height, kernel_width = weight.shape
    spread = np.zeros(
        (
            out_channels,
            per_group,
            (kernel_height - 1) * dilation[0] + 1,
            (kernel_width - 1) * dilation[1] + 1,
        )
    )
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    maps = []
    for image in padded:
        for o in range(out_channels):
            first = o // (out_channels // groups) * per_group
            full = correlate(image[first : first + per_group], spread[o], "valid", "direct")[0]
            maps.append(full[:: stride[0], :: stride[1]] + bias[o])
    return np.reshape(maps, (len(x), out_channels, *maps[0].shape))
