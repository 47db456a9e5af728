"""The square of a background that the model works in, and the way back into the background.

    crop = Crop.of(background, mask, config)
    ... crop.painted -> latents -> sampling -> a drawing of the square ...
    paste(background, crop.put_back(drawing)[0], crop.area)

The *mask* is what the user draws: white where the object goes. The *hole* is what the model fills: the same pixels,
enlarged if they are too few to draw in, and then all latent cells that they touch. The model never sees what is inside
the hole. Everything here touches only the square's part of the background, which may have 67 megapixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from PIL import Image

from .blending import blend_pictures, feather, match_colour
from .config import ImprintConfig
from .errors import ImprintError, require_same_size
from .hole import Hole, Placement
from .images import Picture, alpha_channel, as_picture, picture_part, picture_size, tensor_to_image, to_rgb, upright
from .mask_reading import as_mask_in_place
from .masks import hole_pixels, latent_hole, paint_hole

FEATHER = 4
"""Default width of the soft edge around the hole, in pixels of the model's crop."""
MOST_PIXELS = 2**21
"""A larger crop stays on the CPU: working on it would take more of a GPU's memory than drawing does."""
FAINT = 0.05
"""Alpha below which a pixel can hardly be seen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """What the model drew, in a crop's `frame`."""

    picture: torch.Tensor
    """(B, 3, h, w) in [0, 1]: the drawn object and its surroundings."""
    alpha: torch.Tensor | None = None
    """(B, h, w) in [0, 1]: the object's share of each pixel; None: the picture replaces everything inside the mask."""

    def over(
        self, frames: torch.Tensor, mask: torch.Tensor, inwards: int = 0, outwards: int = 0, method: str = "feather"
    ) -> torch.Tensor:
        """Frames (B, 3, h, w) with the drawing over them, within a mask (1, h, w) and its soft edge.

        inwards, outwards, method: as in `blend_pictures`. Outside the edge the frames are unchanged, bit for bit.
        """
        matte = None if self.alpha is None else (self.alpha, torch.zeros_like(self.alpha))
        masks = mask.expand(len(frames), -1, -1)
        return blend_pictures(frames, self.picture, masks, inwards, outwards, method, matte)


@dataclass(frozen=True)
class Crop:
    """A square around the hole in a background, and the part of the background that may change."""

    hole: Hole
    area: tuple[slice, slice]
    """Rows and columns of the background that `frame` is."""
    frame: torch.Tensor
    """(1, 3, h, w) in [0, 1]: the square plus one pixel around it; nothing beyond it ever changes."""
    frame_mask: torch.Tensor
    """(1, h, w) of 0 and 1: the hole in it."""
    picture: torch.Tensor
    """(1, 3, R, R) in [0, 1]: the square at the model's resolution R."""
    mask: torch.Tensor
    """(1, R, R) of 0 and 1: all pixels of it that the hole touches."""
    latent_mask: torch.Tensor
    """(1, 1, R / downscale, R / downscale) of 0 and 1: all cells that the hole touches; these are generated."""
    painted: torch.Tensor
    """`picture` with these cells painted grey: what the model sees of the background."""

    @classmethod
    def of(
        cls,
        background: Picture,
        mask: Picture,
        config: ImprintConfig,
        resolution: int | None = None,
        context: float | None = None,
        device: torch.device | str = "cpu",
    ) -> Crop:
        """background: Pillow or (1, 3, H, W); mask: Pillow or (1, H, W) of its size, above 0.5 = where the object goes.

        resolution: R; context: the square's side relative to the longer side of the hole's box; both by default the
        configuration's. The crop is on `device`, whatever the inputs', or on the CPU if it has more than `MOST_PIXELS`;
        nothing beyond it is moved or copied.
        Raises `ImprintError` for sizes that differ, and as `Hole.find` does.
        """
        size, mask = picture_size(background), as_mask_in_place(mask)
        require_same_size("the background", size, "its mask", mask.shape[1:])
        hole = Hole.find(
            mask[0],
            *config.crop_size(resolution, context),
            config.multiple,
            config.latent.downscale,
            config.hole_shape == "box",
        )
        device = device if hole.placement.side**2 <= MOST_PIXELS else "cpu"
        hole = replace(hole, mask=hole.mask.to(device))
        # One pixel more than the square: the edge of a hole that fills the square lies there.
        area = tuple(
            slice(max(0, part.start - 1), min(length, part.stop + 1)) for part, length in zip(hole.placement.area, size)
        )
        frame, local = picture_part(background, area, device), hole.placement.within(area)
        frame_mask = frame.new_zeros(1, *frame.shape[2:])
        frame_mask[(0, *local.area)] = hole.mask
        picture, inside = local.extract(frame, frame_mask), local.extract_mask(frame_mask)
        latent_mask = latent_hole(inside, config.latent.downscale)
        painted = paint_hole(picture, latent_mask, config.hole_value)
        return cls(hole, area, frame, frame_mask, picture, inside, latent_mask, painted)

    @property
    def placement(self) -> Placement:
        """The square's place in the background."""
        return self.hole.placement

    @property
    def feather(self) -> int:
        """`FEATHER` in pixels of the background."""
        return round(FEATHER * self.placement.side / self.placement.resolution)

    def blend_part(self, mask: Picture) -> torch.Tensor:
        """A blend mask of the background's size, cropped to `frame`: -> (1, h, w) in [0, 1].

        Raises `ImprintError` for one of another size, or with nothing above 0.5 there.
        """
        mask, placement = as_mask_in_place(mask), self.placement
        require_same_size("the background", (placement.height, placement.width), "its blend mask", mask.shape[1:])
        part = mask[(slice(None), *self.area)].to(self.frame.device)
        if not bool((part > 0.5).any()):
            raise ImprintError(
                "the blend mask is empty where the object is drawn, so that nothing of it would be seen; paint it "
                "white there, or leave it out"
            )
        return part

    def matched(self, drawings: torch.Tensor, strength: float) -> torch.Tensor:
        """Drawings of the square (B, 3, R, R) colour-matched to the background around the hole; see `match_colour`."""
        inside = hole_pixels(self.latent_mask, self.picture.shape[2] // self.latent_mask.shape[2])[:, 0]
        return match_colour(
            drawings, self.picture.expand_as(drawings), inside.expand(len(drawings), -1, -1), strength=strength
        )

    def put_back(self, square: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Put (B, C, R, R) back -> (B, C, h, w). onto: the surroundings, of that shape; by default `frame`."""
        onto = self.frame.expand(len(square), -1, -1, -1) if onto is None else onto
        return self.placement.within(self.area).insert(onto, square)

    def put_back_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """Put alpha or shadow of the square (B, R, R) back -> (B, h, w), 0 around it."""
        return self.put_back(maps[:, None], maps.new_zeros(len(maps), 1, *self.frame.shape[2:]))[:, 0]

    def taken(self, maps: torch.Tensor) -> torch.Tensor:
        """The inverse of `put_back_maps`: maps of the frame (B, h, w) -> (B, R, R)."""
        return self.placement.within(self.area).extract(maps[:, None])[:, 0]

    def write(self, whole: torch.Tensor, square: torch.Tensor) -> None:
        """`put_back` in place, into the whole background or a map of its size, (B, C, H, W)."""
        area = (slice(None), slice(None), *self.area)
        whole[area] = self.put_back(square.to(whole), whole[area])

    def changed_area(self) -> torch.Tensor:
        """(H, W) bool: the hole and its soft edge in the whole background, all that a composite may change."""
        whole = self.frame.new_zeros(1, self.placement.height, self.placement.width)
        whole[(0, *self.placement.area)] = self.hole.mask
        return feather(whole, outwards=self.feather)[0] > 0


def union(*areas: tuple[slice, slice]) -> tuple[slice, slice]:
    """The smallest area that contains all of these."""
    return tuple(slice(min(each.start for each in lines), max(each.stop for each in lines)) for lines in zip(*areas))


def inner(area: tuple[slice, slice], part: tuple[slice, slice]) -> tuple[slice, slice]:
    """A part's rows and columns relative to an area that contains it."""
    return tuple(slice(own.start - whole.start, own.stop - whole.start) for whole, own in zip(area, part))


def paste(background: Picture, part: torch.Tensor, area: tuple[slice, slice]) -> Image.Image:
    """The whole background in RGB, upright, with its transparency, and with a changed area (3, h, w) pasted in."""
    own = isinstance(background, Image.Image)
    background = upright(background) if own else background
    image = to_rgb(background) if own else tensor_to_image(background[0])
    rows, columns = area
    image.paste(tensor_to_image(part), (columns.start, rows.start))
    if own and background.has_transparency_data:
        image.putalpha(alpha_channel(background))
    return image


def paste_all(
    background: Picture, parts: torch.Tensor, area: tuple[slice, slice], output_type: str
) -> list[Image.Image] | torch.Tensor:
    """`paste` of each of (B, 3, h, w) for "pil"; for "pt" the same as (B, 3, H, W) in [0, 1]."""
    if output_type == "pil":
        _say_if_hidden(background, parts[0], area)
        return [paste(background, part, area) for part in parts]
    images = as_picture(background).repeat(len(parts), 1, 1, 1)
    images[(..., *area)] = parts
    return images


def _say_if_hidden(background: Picture, part: torch.Tensor, area: tuple[slice, slice]) -> None:
    """Warn if most of what (3, h, w) changes can hardly be seen, since the background's transparency is kept."""
    if not (isinstance(background, Image.Image) and background.has_transparency_data):
        return
    alpha = picture_part(alpha_channel(upright(background)), area)[0, 0]
    changed = (part.cpu() - picture_part(background, area)[0]).abs().amax(0) > 0.5 / 255
    hidden = float((alpha[changed] < FAINT).sum() / max(1, int(changed.sum())))
    if hidden > 0.5:
        _log.warning(
            "the background is transparent in %.0f %% of what the object and its shadow change, and stays so: they can "
            "hardly be seen; give a background that is opaque there",
            100 * hidden,
        )
