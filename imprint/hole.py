"""Where in the frame the model works: a square crop around the hole, and its inverse.

The object is generated at the model's full resolution however small the hole is in the frame (AnyDoor, arXiv
2307.09481, section 3.3; IMPRINT does the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .errors import ImprintError, require_number
from .masks import enlarge_boxes, fill_boxes
from .preprocess import bounding_boxes

LEAST_CELLS = 2
"""A hole narrower than this many cells of the latent cannot be generated in: it is enlarged."""

MOST_RESOLUTION = 4096
"""The largest resolution, in pixels, at which the model may see its crop."""
MOST_AREAS = 100
"""The most areas of a mask that get an object each."""


@dataclass(frozen=True)
class Placement:
    """A square of the frame, and the side at which the model sees it; all in pixels."""

    height: int
    width: int
    """The frame's size."""
    top: int
    left: int
    side: int
    """The square; it reaches beyond the frame only if the frame is narrower than the square."""
    resolution: int
    """The square's side at the model."""

    @classmethod
    def around(cls, box: Sequence[int], frame: tuple[int, int], resolution: int, context: float) -> Placement:
        """The square around a box (top, left, bottom, right) of a frame (height, width), moved to lie in it if it fits.

        context: the square's side relative to the longer side of the box, at least 1.
        """
        (height, width), (top, left, bottom, right) = frame, box
        longer = max(bottom - top, right - left)
        # More context than the frame has is useless: beyond the frame there are only repeated border pixels.
        side = max(longer, min(round(longer * context), max(height, width)))
        return cls(
            height=height,
            width=width,
            top=_start(top, bottom, side, height),
            left=_start(left, right, side, width),
            side=side,
            resolution=resolution,
        )

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that the square covers: all that the model sees, and all that it can change."""
        return (
            slice(max(0, self.top), min(self.height, self.top + self.side)),
            slice(max(0, self.left), min(self.width, self.left + self.side)),
        )

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the square that lie in the frame: `area` as the square sees it."""
        return tuple(
            slice(part.start - start, part.stop - start) for part, start in zip(self.area, (self.top, self.left))
        )

    def within(self, area: tuple[slice, slice]) -> Placement:
        """The same square in a part of the frame that covers `self.area`, so that a large frame need not be touched."""
        rows, columns = area
        return replace(
            self,
            height=rows.stop - rows.start,
            width=columns.stop - columns.start,
            top=self.top - rows.start,
            left=self.left - columns.start,
        )

    def extract(self, frames: torch.Tensor, holes: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, resolution, resolution), antialiased; border pixels are repeated beyond the frame.

        holes (B, H, W) of 0 and 1: pixels that must not be repeated; the nearest other pixels of that border are
        repeated instead, or grey if it has none.
        """
        if holes is not None and self.side > min(self.height, self.width):
            frames = torch.stack([_without(frame, hole) for frame, hole in zip(frames, holes)])
        return _resize(self._square(frames), self.resolution)

    def extract_mask(self, masks: torch.Tensor) -> torch.Tensor:
        """(B, H, W) -> (B, resolution, resolution) of 0 and 1: 1 wherever the hole is touched.

        Beyond the frame there is no hole: an object drawn there would be cut off.
        """
        # Every pixel that overlaps the hole, however thin it is; the nearest pixel alone could miss it.
        square = self._square(masks[:, None], "constant")
        return (F.adaptive_max_pool2d(square, self.resolution)[:, 0] > 0).to(masks)

    def insert(self, frames: torch.Tensor, crops: torch.Tensor) -> torch.Tensor:
        """Put (B, C, resolution, resolution) back into a copy of (B, C, H, W); the whole square is replaced."""
        self._check(frames)
        result = frames.clone()
        result[(..., *self.area)] = self._visible(_resize(crops, self.side)).to(frames)
        return result

    def insert_map(self, maps: torch.Tensor) -> torch.Tensor:
        """Enlarge smooth values (B, C, S, S), of any range, to the square -> (B, C, h, w), its part in the frame."""
        return self._visible(F.interpolate(maps, (self.side, self.side), mode="bicubic", align_corners=False))

    def _visible(self, square: torch.Tensor) -> torch.Tensor:
        """(B, C, side, side) -> (B, C, h, w), the part inside the frame."""
        return square[(..., *self.inside)]

    def _square(self, frames: torch.Tensor, beyond: str = "replicate") -> torch.Tensor:
        """(B, C, H, W) -> (B, C, side, side). beyond: what `torch.nn.functional.pad` puts beyond the frame."""
        self._check(frames)
        rows, columns = self.inside
        pads = columns.start, self.side - columns.stop, rows.start, self.side - rows.stop
        part = frames[(..., *self.area)]
        return F.pad(part, pads, mode=beyond) if any(pads) else part  # padding by nothing would copy

    def _check(self, tensor: torch.Tensor) -> None:
        if tuple(tensor.shape[-2:]) != (self.height, self.width):
            raise ImprintError(
                f"the picture or mask is {tensor.shape[-1]}x{tensor.shape[-2]}, but the placement was made for a frame "
                f"of {self.width}x{self.height}; give all of them in the frame's size"
            )


@dataclass(frozen=True)
class Hole:
    """A hole in the frame and the square to generate it in."""

    placement: Placement
    mask: torch.Tensor
    """(h, w) of 0 and 1, `placement.area` of the frame: where to generate."""
    drawn: tuple[int, int]
    """Height and width of the given hole's box, in pixels."""
    size: tuple[int, int]
    """Height and width of the box to generate in; more than `drawn` if that was too small."""
    areas: int = 1
    """Number of separate areas of the mask; one object spans them all."""

    @classmethod
    def find(
        cls,
        mask: torch.Tensor,
        resolution: int,
        context: float = 2.0,
        multiple: int = 8,
        cell: int = 8,
        box: bool = False,
    ) -> Hole:
        """The hole of a mask (H, W), above 0.5, with the square around it; see `Placement.around`.

        A hole that measures fewer than `LEAST_CELLS` cells of the latent along a side, in the frame or in the model's
        crop, is enlarged around its centre to that size. cell: pixels of the crop that one cell of the latent covers.
        box: the hole is its whole box. Raises `ImprintError` for a mask without a hole, a context below 1, and a
        resolution that is not a multiple of `multiple`, or above `MOST_RESOLUTION`.
        """
        check_crop(resolution, context, multiple)
        highest = float(mask.max())
        if not highest > 0.5:
            raise ImprintError(
                f"the mask of the hole is empty (its largest value is {highest:g}, and above 0.5 is hole); "
                "paint where the object goes white on black"
            )
        drawn = bounding_boxes(mask[None])
        wide = enlarge_boxes(drawn, LEAST_CELLS * cell, *mask.shape)
        placement = Placement.around(wide[0].tolist(), mask.shape, resolution, context)
        wide = enlarge_boxes(wide, math.ceil(LEAST_CELLS * cell * placement.side / resolution), *mask.shape)
        rows, columns = placement.area
        hole = (mask[placement.area] > 0.5).float()
        if box or not torch.equal(wide, drawn):
            corner = torch.tensor([rows.start, columns.start] * 2, device=mask.device)
            hole = torch.maximum(hole, fill_boxes(wide - corner, *hole.shape)[0].to(hole))
        top, left, bottom, right = drawn[0].tolist()
        _, areas = _labelled(mask[top:bottom, left:right])
        return cls(placement, hole, _extent(drawn), _extent(wide), areas)

    @property
    def enlarged(self) -> bool:
        """Whether the hole was too small to generate in."""
        return self.drawn != self.size


def separate_areas(mask: torch.Tensor) -> list[torch.Tensor]:
    """Each connected area of a mask (H, W), above 0.5, as a mask of its own; from top to bottom.

    Areas that touch only at a corner are one: otherwise the ragged edge of a painted or enlarged mask would be specks.
    Raises `ImprintError` for more than `MOST_AREAS` of them.
    """
    labels, count = _labelled(mask)
    if count > MOST_AREAS:
        raise ImprintError(
            f"the mask has {count} separate areas, but at most {MOST_AREAS} can get an object each; remove its "
            "specks or dithering"
        )
    return [(labels == label).to(mask) for label in range(1, count + 1)]


def _labelled(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(H, W) -> each pixel's area number, 0 outside, and the number of areas (8-connected)."""
    from scipy.ndimage import label

    labels, count = label((mask > 0.5).cpu().numpy(), torch.ones(3, 3).numpy())
    return torch.from_numpy(labels).to(mask.device), count


def _without(frame: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """A copy of a frame (C, H, W) with a hole (H, W) in grey, whose outermost rows and columns show none of it."""
    frame = torch.where(hole > 0.5, 0.5, frame)  # the resize's filter reaches across the border
    rows = [(frame[:, row], hole[row]) for row in (0, -1)]
    columns = [(frame[:, :, column], hole[:, column]) for column in (0, -1)]
    for line, covered in rows + columns:
        seen = (covered <= 0.5).nonzero()[:, 0]
        if len(seen) == 0:
            line[:] = 0.5
        elif len(seen) < len(covered):
            nearest = torch.bucketize(torch.arange(len(covered), device=seen.device), (seen[1:] + seen[:-1]) / 2)
            line[:] = line[:, seen[nearest]]
    return frame


def _extent(boxes: torch.Tensor) -> tuple[int, int]:
    top, left, bottom, right = boxes[0].tolist()
    return bottom - top, right - left


def check_crop(resolution: int, context: float, multiple: int) -> None:
    """Raise `ImprintError` for an impossible crop; arguments as for `Hole.find`."""
    require_number("context", context, 1)
    require_number("resolution", resolution, multiple, MOST_RESOLUTION, whole=True)
    if resolution % multiple:
        raise ImprintError(f"resolution is {resolution}; it must be a multiple of {multiple}")


def _start(first: int, last: int, side: int, frame: int) -> int:
    """Start of a square's side around [first, last), within the frame where it fits, else centred on the frame."""
    if side >= frame:
        return (frame - side) // 2
    return min(max((first + last - side) // 2, 0), frame - side)


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
