"""The shapes that are timed, and their arrays: seeded, so every run works on the same numbers."""

from dataclasses import dataclass, replace

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
    groups: int = 1
    spread: float = OFFSET_SPREAD

    @property
    def about(self):
        x = f"{self.images}, {self.channels}, {self.height}, {self.width}"
        groups = f", G {self.groups}" if self.groups > 1 else ""
        groups += f", DG {self.deformable_groups}" if self.deformable_groups > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"({x}) -> {self.out_channels}, {kernel}{groups}, v{self.version}"

    @property
    def padding(self):
        return self.kernel // 2

    @property
    def settings(self):
        groups = {"groups": self.groups} if self.groups > 1 else {}
        return {"padding": self.padding, "deformable_groups": self.deformable_groups} | groups

    @property
    def shapes(self):
        """Return the shape of each array by name, in the order of the operator's arguments."""
        size, samples = (self.height, self.width), self.deformable_groups * self.kernel**2
        group = self.channels // self.groups
        shapes = {
            "x": (self.images, self.channels, *size),
            "offset": (self.images, 2 * samples, *size),
            "weight": (self.out_channels, group, self.kernel, self.kernel),
            "bias": (self.out_channels,),
            "mask": (self.images, samples, *size),
        }
        return shapes if self.version == 2 else {n: s for n, s in shapes.items() if n != "mask"}

    @property
    def out_shape(self):
        return self.images, self.out_channels, self.height, self.width

    @property
    def column_elements(self):
        """Return the elements of the columns: one a channel, tap and output pixel."""
        return self.images * self.channels * self.kernel**2 * self.height * self.width

    def of(self, **changes):
        """Return the same layer at another size."""
        return replace(self, **changes)

    def arrays(self):
        """Return x, offset, weight, bias and mask (None in v1) by name, in float32."""
        rng = np.random.default_rng(0)
        shapes = self.shapes

        def normal(*shape, spread=1.0):
            array = rng.standard_normal(shape, np.float32)
            array *= np.float32(spread)
            return array

        return {
            "x": normal(*shapes["x"]),
            "offset": normal(*shapes["offset"], spread=self.spread),
            "weight": normal(*shapes["weight"], spread=0.1),
            "bias": normal(*shapes["bias"]),
            "mask": rng.random(shapes["mask"], np.float32) if self.version == 2 else None,
        }

    def arrays_of(self, dtype):
        """Return what a layer before a normalisation has: no bias; the others in some dtype."""
        found = self.arrays()
        del found["bias"]
        return {name: each.astype(dtype) for name, each in found.items() if each is not None}

    def grad_output(self):
        """Return the gradient that comes in, in float32."""
        return np.random.default_rng(1).standard_normal(self.out_shape, np.float32)


CASES = {
    case.name: case
    for case in (
        Case("A", 2, 64, 56, 56, 64, 3, 1, version=2),
        Case("B", 1, 256, 32, 32, 256, 3, 4, version=2),
        Case("C", 4, 16, 128, 128, 16, 3, 1, version=1),
        Case("D", 1, 3, 512, 512, 8, 5, 1, version=2),
    )
}
# Shapes whose counters have targets (targets.py).
COUNTED = {
    case.name: case
    for case in (
        Case("S1", 2, 64, 56, 56, 64, 3, 1, version=2),
        Case("S2", 1, 256, 32, 32, 256, 3, 1, version=2),
        Case("S3", 1, 16, 128, 128, 16, 3, 1, version=2),
        Case("S4", 1, 3, 128, 128, 8, 5, 1, version=2),
        Case("S5", 1, 64, 56, 56, 64, 3, 1, version=2, groups=64),
        Case("S6", 2, 64, 56, 56, 64, 3, 8, version=2),
        Case("S7", 1, 64, 56, 56, 64, 3, 1, version=2, groups=16),
    )
}
# Layers of real networks, for one image: the last three stages of a ResNet, the alignment of a
# video restoration network, a depthwise layer, and a 1x1 kernel.
LAYERS = (
    Case("ResNet 256", 1, 256, 56, 56, 256, 3, 1, version=2),
    Case("ResNet 512", 1, 512, 28, 28, 512, 3, 1, version=2),
    Case("ResNet 1024", 1, 1024, 14, 14, 1024, 3, 1, version=2),
    Case("video 64", 1, 64, 256, 256, 64, 3, 8, version=2),
    Case("depthwise 256", 1, 256, 56, 56, 256, 3, 1, version=2, groups=256),
    Case("1x1 256", 1, 256, 56, 56, 256, 1, 1, version=2),
)
BATCHES = (1, 8, 37)
# A picture whose columns alone would fill 600 MB; its arrays take 3 GB.
LARGE = Case("large", 1, 1, 4096, 4096, 1, 3, 1, version=1)
