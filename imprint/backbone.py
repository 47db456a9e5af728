"""EfficientNet-Lite0: what is seen in a picture, as ImageNet's thousand classes taught it (Tan and Le, EfficientNet,
ICML 2019; the Lite variants without squeeze-and-excitation are Google's, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
"""Kernel, stride of the first block, expansion, channels and blocks. ImageNet's last stage and its classes are left
out."""
WIDTHS = 112, 192
"""Channels of the features at a 16th and at a 32nd of the picture's resolution."""


class EfficientNetLite(nn.Module):
    """Its first six stages, with their batch norms folded into the convolutions before them."""

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
        """The block that halves the resolution for the last time."""

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pictures (B, 3, S, S) in [0, 1], S a multiple of 32 -> features (B, C, S / 16, S / 16) and (B, C, S / 32, S /
        32), with `WIDTHS` channels.
        """
        x = self.stem(pictures * 2 - 1).clamp_(0, 6)
        for number, block in enumerate(self.blocks):
            if number == self.halved_last:
                fine = x
            x = block(x)
        return fine, x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: wider, each channel by itself, narrow again."""

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
    """With TensorFlow's padding `same`: where it halves an even side, more on the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        before, uneven = divmod(kernel - stride, 2)
        super().__init__(inputs, outputs, kernel, stride, 0 if uneven else before, groups=groups)
        self.margin = (before, before + 1) * 2 if uneven else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.margin) if self.margin else x)
