"""Stage 2: the geometry of one call, a value made of plain integers.

Both twins and the cut are functions of it, so they cannot disagree about shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


def output_size(size: int, pads: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many positions a dilated kernel has along one padded axis, at least 0."""
    reach = dilation * (kernel - 1) + 1
    return max((size + pads - reach) // stride + 1, 0)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the zeros before and after one axis that give ``ceil(size / stride)`` positions.

    Where the total is odd the extra zero comes after, as in TensorFlow and Paddle.
    """
    reach = dilation * (kernel - 1) + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class Geometry:
    """Sizes and attributes of one deformable convolution, all validated."""

    images: int  # N
    channels: int  # C_in
    height: int  # H
    width: int  # W
    kernel_height: int  # KH
    kernel_width: int  # KW
    out_height: int  # OH
    out_width: int  # OW
    stride_y: int
    stride_x: int
    pad_top: int
    pad_left: int
    dilation_y: int
    dilation_x: int
    groups: int  # G
    deformable_groups: int  # DG

    @property
    def taps(self) -> int:
        """K = KH*KW; tap k = i*KW + j is row i, column j of the kernel."""
        return self.kernel_height * self.kernel_width

    @property
    def out_pixels(self) -> int:
        """OH*OW."""
        return self.out_height * self.out_width

    @property
    def group_channels(self) -> int:
        """C_in / G."""
        return self.channels // self.groups

    @property
    def deformable_channels(self) -> int:
        """C_in / DG: the channels that share one set of offsets."""
        return self.channels // self.deformable_groups

    @property
    def farthest(self) -> int:
        """The largest whole number there is in computing a location, offsets apart."""
        return max(
            self.height + self.pad_top + self.dilation_y * self.kernel_height,
            self.width + self.pad_left + self.dilation_x * self.kernel_width,
            self.out_height * self.stride_y - min(self.pad_top, 0),
            self.out_width * self.stride_x,
        )

    def part(self, images: int, first_row: int, rows: int) -> Geometry:
        """Return the geometry of some rows of the output of so many images.

        Their padding above may be negative: a tap's row is a whole number, so locations are those
        of the undivided call to the bit.
        """
        return replace(
            self,
            images=images,
            out_height=rows,
            pad_top=self.pad_top - first_row * self.stride_y,
        )
