"""Blend latents during sampling, and pixels at the end. Pictures are BCHW in [0, 1], masks BHW with 1 = hole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .directions import require_strengths
from .errors import ImprintError, require_number, require_one_of
from .matte import apply_matte
from .preprocess import bounding_boxes

BLENDS = ("feather", "multiband")
"""Transitions of `blend_pictures` from the background to the generated picture."""
MOST_FEATHER = 2**16
"""The widest soft edge, in pixels."""

_NEAR = 32  # pixels: for shorter distances, comparing with each neighbour takes less than scipy's transform
# By Python, since torch's in float64 is not rounded correctly on every CPU.
_ROOTS = torch.tensor([math.sqrt(number) for number in range(4 * _NEAR**2 + 1)], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Finish:
    """How the drawing is put into the background. Raises `ImprintError` for an invalid value."""

    feather_pixels: int | None = None
    """Width of the soft edge outside the mask, in pixels of the background; by default `crop.FEATHER` pixels of the
    crop. Outside it the background is unchanged, bit for bit."""
    feather_inwards: int = 0
    """Width of the soft edge inside the mask, in pixels of the background."""
    blend_method: str = "feather"
    """How the soft edge blends, one of `BLENDS`."""
    colour_match: float = 0.0
    """How far the crop's colours are shifted to the background's around the hole, 0 to 1."""
    matte: bool = True
    """Keep the background, bit for bit, wherever there is neither object nor shadow, also inside the mask (see
    `imprint.matte`); no effect for checkpoints without a matte."""
    detail: float = 1.0
    """How far the object's own photo, in the drawing's light, replaces the drawing where both show the same side, 0 to
    1 (see `imprint.detail`); no effect for checkpoints without a matte."""
    shadow: float = 1.0
    softness: float = 0.0
    light_from: str | float = "auto"
    """Strength, softness and light direction of the object's shadow, inside the mask and beyond, as for
    `imprint.light.relight`; without a matte there is none."""

    def __post_init__(self) -> None:
        require_number("colour match", self.colour_match, 0, 1)
        require_number("detail", self.detail, 0, 1)
        require_strengths(0, self.shadow, self.softness, self.light_from)
        for name, width in (("feather", self.feather_pixels or 0), ("feather inwards", self.feather_inwards)):
            require_number(name, width, 0, MOST_FEATHER, whole=True)
        require_one_of("the blend method", self.blend_method, BLENDS)


def blend_latents(noisy: torch.Tensor, background: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The input of IMPRINT's UNet at every step: `x_in = m * z_t + (1 - m) * z_bg` (arXiv 2403.10701, figure 2).

    The background latent is clean, not noised again as in RePaint. noisy, background: (B, C, h, w). hole: (B, 1, h, w).
    """
    return hole * noisy + (1 - hole) * background


def feather(masks: torch.Tensor, inwards: int = 0, outwards: int = 0) -> torch.Tensor:
    """Make a blend mask (B, H, W) with a linear ramp across each hole's edge.

    The ramp falls from 1, `inwards` pixels inside the hole, to exactly 0, `outwards` pixels outside it (Euclidean
    distance). If both are 0, the result is the hole itself. Raises `ImprintError` for negative widths.
    """
    _check_widths(inwards, outwards)
    blend = torch.zeros_like(masks)
    for index, mask in enumerate(masks):
        if area := surroundings(mask, outwards):
            blend[(index, *area)] = _ramp(_depth(mask[area], inwards, outwards), inwards, outwards).to(masks)
    return blend


def mixed(background: torch.Tensor, generated: torch.Tensor, blend: torch.Tensor) -> torch.Tensor:
    """Mix two pictures: background where blend is 0, bit for bit, and generated where it is 1.

    background, generated: (B, C, H, W). blend: (B, H, W) in [0, 1].
    """
    weight = blend[:, None].to(background)
    return torch.where(weight > 0, torch.lerp(background, generated.to(background), weight), background)


def blend_pictures(
    background: torch.Tensor,
    generated: torch.Tensor,
    masks: torch.Tensor,
    inwards: int = 0,
    outwards: int = 0,
    method: str = "feather",
    matte: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Blend the generated picture into the background, inside the masks and their soft edge.

    Outside, the result is exactly the background. background, generated: (B, C, H, W) in [0, 1]. masks: (B, H, W),
    above 0.5 = generated. inwards, outwards: widths as in `feather`. method: one of `BLENDS`. matte: alpha and shadow,
    each (B, H, W) in [0, 1], as for `apply_matte`. Besides the result, memory is needed only for the masks'
    surroundings. Raises `ImprintError` for negative widths and for another method.
    """
    require_one_of("blend method", method, BLENDS)
    _check_widths(inwards, outwards)
    result = background.clone()
    # The bands' pyramid looks beyond the ramp, by as much as the ramp is wide.
    reach, blend = (outwards, _feathered) if method == "feather" else (inwards + 2 * outwards, _banded)
    for index, mask in enumerate(masks):
        area = surroundings(mask, reach)
        if area is None:
            continue
        here = (slice(index, index + 1), slice(None), *area)
        base, made = background[here], generated[here]
        if matte is not None:
            made = apply_matte(base, made, *(each[(slice(index, index + 1), *area)] for each in matte))
        result[here] = blend(base, made, _depth(mask[area], inwards, outwards), inwards, outwards)
    return result


def _feathered(
    background: torch.Tensor, generated: torch.Tensor, depth: torch.Tensor, inwards: int, outwards: int
) -> torch.Tensor:
    return mixed(background, generated, _ramp(depth, inwards, outwards)[None])


def _banded(
    background: torch.Tensor, generated: torch.Tensor, depth: torch.Tensor, inwards: int, outwards: int
) -> torch.Tensor:
    """Like `_feathered`, but each frequency band is blended over a ramp of its own width.

    After Burt and Adelson's multiresolution spline (ACM Transactions on Graphics 2(4), 1983): the broadest colours
    change over the whole ramp, and each finer band of a Laplacian pyramid over half the width of the band before,
    around the ramp's middle. So a wide edge shows neither a seam nor a double image. Unlike theirs, the ramps are not
    blurred, and exactly 0 outside the edge: there the background stays bit for bit.
    """
    width, middle = inwards + outwards, (inwards - outwards) / 2
    result, level = background, generated.to(background) - background
    left = level  # of the difference, enlarged: this band and all broader ones
    for halving in range(int(math.log2(max(width, 1))), -1, -1):  # from the finest band to the broadest
        half = width / 2 ** (halving + 1)
        weight = _ramp(depth, half + middle, half - middle).to(background)
        broader = 0
        if halving:
            level = F.avg_pool2d(level, 2, ceil_mode=True)
            broader = F.interpolate(level, background.shape[2:], mode="bilinear")
        result, left = result + weight * (left - broader), broader
    return torch.where(weight > 0, result.clamp(0, 1), background)


def match_colour(
    generated: torch.Tensor,
    background: torch.Tensor,
    masks: torch.Tensor,
    ring: int = 16,
    strength: float = 1.0,
    gap: int = 0,
) -> torch.Tensor:
    """Match the generated picture's colours to the background's on a ring *outside* the hole.

    There both show the same place, so their difference is a colour shift of the model and the autoencoder, and not the
    object. Per channel, the mean is shifted and the contrast scaled (by 0.8 to 1.25). gap, ring: the ring's inner and
    outer distance from the hole, in pixels. strength: from 0 (off) to 1. Returns (B, C, H, W) in [0, 1], unchanged if
    there is no ring, as for a hole that fills the frame. Raises `ImprintError` for a strength or a ring that is
    outside its range.
    """
    require_number("colour match", strength, 0, 1)
    if not 0 <= gap < ring:
        raise ImprintError(
            f"the ring is from {gap} to {ring} pixels outside the hole; the first must be 0 or more, the second larger"
        )
    matched = []
    for picture, reference, mask in zip(generated, background, masks):
        if area := surroundings(mask, ring):
            distance = -_depth(mask[area], 0, ring)
            band = ((distance > gap) & (distance < ring)).to(picture.device)
            here = (slice(None), *area)
            source, target = picture[here][:, band], reference[here].to(picture)[:, band]
            if source.shape[1] >= 2:
                contrast = source.std(1)
                gain = (target.std(1) / contrast.clamp(min=1e-4)).clamp(0.8, 1.25)
                gain = torch.where(contrast > 1e-3, gain, 1)
                shift = target.mean(1) - source.mean(1) * gain
                gain, shift = 1 + strength * (gain - 1), strength * shift
                picture = torch.addcmul(shift[:, None, None], picture, gain[:, None, None]).clamp_(0, 1)
        matched.append(picture)
    return torch.stack(matched)


def surroundings(mask: torch.Tensor, reach: int) -> tuple[slice, slice] | None:
    """Rows and columns of a mask (H, W) that contain its hole and `reach` pixels around it; None without a hole.

    Only this part is computed at a hole's edge, however large the frame.
    """
    if not bool(mask.max() > 0.5):
        return None
    (box,) = bounding_boxes(mask[None]).tolist()
    rows, columns = (
        slice(max(0, box[axis] - reach - 1), min(length, box[2 + axis] + reach + 1))
        for axis, length in enumerate(mask.shape)
    )
    return rows, columns


def _depth(mask: torch.Tensor, inwards: int, outwards: int) -> torch.Tensor:
    """(H, W) -> float64 Euclidean distance in pixels from the hole's edge, positive inside.

    The edge is halfway between a pixel of the hole and its neighbour outside. Distances are exact up to `inwards`
    inside and `outwards` outside; beyond, they are larger than that. If `inwards` is 0, the distances inside are not
    computed: every pixel there counts as next to the edge.
    """
    hole = mask > 0.5
    depth = (_distances(hole, inwards) if inwards else hole.double()) - _distances(~hole, outwards)
    return depth - depth.sign() * 0.5


def _distances(inside: torch.Tensor, reach: int) -> torch.Tensor:
    """(H, W) bool -> float64 distance to the nearest pixel that is not inside, exact up to `reach` + 1."""
    if reach >= _NEAR:
        from scipy.ndimage import distance_transform_edt

        if bool(inside.all()):
            return torch.full_like(inside, math.inf, dtype=torch.float64)
        return torch.from_numpy(distance_transform_edt(inside.cpu().numpy())).to(inside.device)
    squares = torch.where(inside, 4 * _NEAR**2, 0).short()
    for axis in (0, 1):
        length = squares.shape[axis]
        wide = F.pad(squares, (0, 0, reach + 1, reach + 1)[:: -1 if axis else 1], value=4 * _NEAR**2)
        for step in range(1, reach + 2):
            beside = torch.minimum(*(wide.narrow(axis, reach + 1 + way * step, length) for way in (-1, 1)))
            squares = torch.minimum(squares, beside + step**2)
    return _ROOTS.to(squares.device)[squares.long()]


def _ramp(depth: torch.Tensor, inwards: float, outwards: float) -> torch.Tensor:
    """1 from `inwards` pixels inside the edge, 0 from `outwards` pixels outside it, linear in between."""
    if inwards + outwards == 0:
        return depth > 0
    return ((depth + outwards) / (inwards + outwards)).clamp(0, 1).float()


def _check_widths(inwards: int, outwards: int) -> None:
    if inwards < 0 or outwards < 0:
        raise ImprintError(f"feather is {inwards} pixels inwards and {outwards} outwards; both must be 0 or more")
