"""The shapes that are timed, and their arrays: seeded, so every run works on the same numbers."""

from dataclasses import dataclass

import numpy as np

OFFSET_SPREAD = 1.5  # standard deviation of the offsets, pixels


@dataclass(frozen=True)
class Case:
    """One convolution whose output is as large as its input; v2 has a mask, v1 has none."""

    name: str
    images: int
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: int
    deformable_groups: int
    version: int

    @property
    def about(self):
        x = f"{self.images}, {self.channels}, {self.height}, {self.width}"
        groups = f", DG {self.deformable_groups}" if self.deformable_groups > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"({x}) -> {self.out_channels}, {kernel}{groups}, v{self.version}"

    @property
    def padding(self):
        return self.kernel // 2

    @property
    def settings(self):
        return {"padding": self.padding, "deformable_groups": self.deformable_groups}

    def arrays(self):
        """Return x, offset, weight, bias and mask (None in v1) by name, in float32."""
        rng = np.random.default_rng(0)
        channels, size = self.channels, (self.height, self.width)
        samples = self.deformable_groups * self.kernel**2

        def normal(*shape, spread=1.0):
            array = rng.standard_normal(shape, np.float32)
            array *= np.float32(spread)
            return array

        return {
            "x": normal(self.images, channels, *size),
            "offset": normal(self.images, 2 * samples, *size, spread=OFFSET_SPREAD),
            "weight": normal(self.out_channels, channels, self.kernel, self.kernel, spread=0.1),
            "bias": normal(self.out_channels),
            "mask": rng.random((self.images, samples, *size), np.float32)
            if self.version == 2
            else None,
        }

    def grad_output(self):
        """Return the gradient that comes in, in float32."""
        shape = self.images, self.out_channels, self.height, self.width
        return np.random.default_rng(1).standard_normal(shape, np.float32)


CASES = {
    case.name: case
    for case in (
        Case("A", 2, 64, 56, 56, 64, 3, 1, version=2),
        Case("B", 1, 256, 32, 32, 256, 3, 4, version=2),
        Case("C", 4, 16, 128, 128, 16, 3, 1, version=1),
        Case("D", 1, 3, 512, 512, 8, 5, 1, version=2),
    )
}
# A picture whose columns alone would fill 600 MB; its arrays take 3 GB.
LARGE = Case("large", 1, 1, 4096, 4096, 1, 3, 1, version=1)
