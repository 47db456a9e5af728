"""EfficientNet-Lite0, trained on ImageNet's thousand classes: features of what a picture shows (Tan and Le,
EfficientNet, ICML 2019; the Lite variants without squeeze-and-excitation are Google's, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
"""Kernel, stride of the first block, expansion, channels and number of blocks. The last stage and the classifier are
left out."""
WIDTHS = 112, 192
"""Channels of the features at 1/16 and 1/32 of the picture's resolution."""


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0's first six stages, with batch norms folded into the convolutions before them."""

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, outputs, count in STAGES:
            for index in range(count):
                self.blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, 1 if index else stride))
                inputs = outputs
        self.halved_last = len(self.blocks) - count
        """Index of the last block that halves the resolution."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features (B, C, S / 16, S / 16) and (B, C, S / 32, S / 32), with `WIDTHS` channels.

        pictures: (B, 3, S, S) in [0, 1]; S is a multiple of 32.
        """
        x = self.stem(pictures * 2 - 1).clamp_(0, 6)
        for number, block in enumerate(self.blocks):
            if number == self.halved_last:
                fine = x
            x = block(x)
        return fine, x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve depthwise, project."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide) if expansion > 1 else None
        self.each = Convolution(wide, wide, kernel, stride, groups=wide)
        self.narrow = Convolution(wide, outputs)
        self.around = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x if self.expand is None else self.expand(x).clamp_(0, 6)
        narrow = self.narrow(self.each(wide).clamp_(0, 6))
        return x + narrow if self.around else narrow


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's `same` padding: halving an even side, it pads more on the right and bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        before, uneven = divmod(kernel - stride, 2)
        super().__init__(inputs, outputs, kernel, stride, 0 if uneven else before, groups=groups)
        self.margin = (before, before + 1) * 2 if uneven else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.margin) if self.margin else x)
