"""Where in the frame the model works: a square crop around the hole, and the way back.

The object is generated at the model's full resolution however small the hole is in the frame (AnyDoor, arXiv 2307.09481,
section 3.3; IMPRINT does the same).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .blending import composite
from .errors import ImprintError
from .preprocess import bounding_boxes


@dataclass(frozen=True)
class Placement:
    """A square of the frame, and the side at which the model sees it; all in pixels."""

    height: int
    width: int
    """The frame's size."""
    top: int
    left: int
    side: int
    """The square; it may reach past a frame that is narrower than it, never past both borders needlessly."""
    resolution: int
    """The square's side at the model."""

    @classmethod
    def around(cls, mask: torch.Tensor, resolution: int, context: float = 2.0, multiple: int = 8) -> Placement:
        """The square around a hole.

        mask (H, W) with 1 = hole, of the frame's size. context: the square's side over the longer side of the hole's box,
        at least 1. The square is moved to lie within the frame where it fits there. Raises `ImprintError` for an empty
        mask, a context below 1, or a resolution that is not a whole multiple of `multiple`.
        """
        if not 1 <= context < math.inf:
            raise ImprintError(
                f"context is {context:g}; the crop must hold the whole hole, so give a number of 1 or more"
            )
        if resolution < multiple or resolution % multiple:
            raise ImprintError(f"resolution is {resolution}; it must be a positive multiple of {multiple}")
        height, width = mask.shape
        top, left, bottom, right = bounding_boxes(mask[None], threshold=0)[0].tolist()
        longer = max(bottom - top, right - left)
        # More context than the frame has is none: beyond the frame there are only repeated border pixels.
        side = max(longer, min(round(longer * context), max(height, width)))
        return cls(
            height=height,
            width=width,
            top=_start(top, bottom, side, height),
            left=_start(left, right, side, width),
            side=side,
            resolution=resolution,
        )

    def extract(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, resolution, resolution), antialiased; border pixels are repeated beyond the frame."""
        return _resize(self._square(frames), self.resolution)

    def extract_mask(self, masks: torch.Tensor) -> torch.Tensor:
        """(B, H, W) -> (B, resolution, resolution) of 0 and 1: 1 wherever the hole is touched.

        Beyond the frame the border is repeated here too: where the hole touches the border, the repeated pixels are the
        hole's, and must not be seen either.
        """
        # Every pixel that overlaps the hole, however thin it is; the nearest pixel alone could miss it.
        return (F.adaptive_max_pool2d(self._square(masks[:, None]), self.resolution)[:, 0] > 0).to(masks)

    def insert(self, frames: torch.Tensor, crops: torch.Tensor, blend: torch.Tensor | None = None) -> torch.Tensor:
        """Put (B, C, resolution, resolution) back into a copy of (B, C, H, W).

        blend (B, H, W) in [0, 1]: how much of the crop each frame pixel takes; where it is 0 the frame's pixels stay bit
        for bit. Without it the whole square is replaced.
        """
        self._check(frames)
        rows, columns = self._inside
        square = _resize(crops, self.side)[
            :, :, rows.start - self.top : rows.stop - self.top, columns.start - self.left : columns.stop - self.left
        ]
        result = frames.clone()
        if blend is None:
            result[:, :, rows, columns] = square.to(frames)
        else:
            result[:, :, rows, columns] = composite(frames[:, :, rows, columns], square, blend[:, rows, columns])
        return result

    def _square(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, side, side)."""
        self._check(frames)
        rows, columns = self._inside
        pads = (
            columns.start - self.left,
            self.left + self.side - columns.stop,
            rows.start - self.top,
            self.top + self.side - rows.stop,
        )
        return F.pad(frames[:, :, rows, columns], pads, mode="replicate")

    @property
    def _inside(self) -> tuple[slice, slice]:
        """The part of the square within the frame."""
        return (
            slice(max(0, self.top), min(self.height, self.top + self.side)),
            slice(max(0, self.left), min(self.width, self.left + self.side)),
        )

    def _check(self, tensor: torch.Tensor) -> None:
        if tuple(tensor.shape[-2:]) != (self.height, self.width):
            raise ImprintError(
                f"the picture or mask is {tensor.shape[-1]}x{tensor.shape[-2]}, but the placement was made for a frame "
                f"of {self.width}x{self.height}; give all of them in the frame's size"
            )


def _start(first: int, last: int, side: int, frame: int) -> int:
    """Start of a square's side around [first, last), within the frame where it fits, else centred on the frame."""
    if side >= frame:
        return (frame - side) // 2
    return min(max((first + last - side) // 2, 0), frame - side)


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
