"""Light and shadow for an object whose place is known: what it would look like in this photo's light.

The light network, `imprint.lightnet`, sees the photo with the object pasted into it and gives smooth maps: how much
brighter or darker, and how tinted, each part of the object becomes (a gain and an offset), and how much darker the
ground around it. They are applied at the photo's own resolution, so that words, faces and edges stay exactly those of
the object's photo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .directions import light_direction, require_strengths
from .errors import require_finite, require_same_size
from .hole import Placement
from .images import Picture, picture_part, picture_size
from .lightnet import LightMaps, LightNet, folded_guesses, likeliest, mirrored
from .place import PlacedObject
from .sprites import spread

RIPPLE = 4.0
"""Standard deviation of the blur of gain and offset, in pixels of the network: light changes slowly."""
HIDDEN = 0.05
"""Where the object covers at least this share of a pixel, the background is hidden."""
UNSEEN = 0.006
"""A shadow that takes less than this share of the light is none: there the background stays bit for bit."""
FADE = 0.12
"""Share of the square over which a shadow fades where the square ends within the frame."""
ENDING = 0.03
"""Standard deviation of the blur by which a shadow fades before a mask's edge, as a share of the square's sides."""
POST = 15
"""What hides less than so many 128ths of the square, such as a fence's bars, is no edge for a shadow to fade before."""
SOFTEST = 0.08
"""Standard deviation of a shadow's blur at softness 1, away from the object, as a share of the square's side."""


@dataclass
class Lit:
    """An object in the scene's light, within `area` (rows, columns) of the frame. All (1, C, h, w) in [0, 1]."""

    area: tuple[slice, slice]
    background: torch.Tensor
    colours: torch.Tensor
    """The object's own, as placed."""
    relit: torch.Tensor
    """The same in the scene's light."""
    alpha: torch.Tensor
    shadow: torch.Tensor
    """Share of the background's values that is lost."""

    def composite(self) -> torch.Tensor:
        """(1, 3, h, w): the background bit for bit wherever there is neither object nor shadow."""
        return self._over(self.ground(), self.relit)

    def layers(self) -> dict[str, torch.Tensor]:
        """`shadow`, `object` and `light`, each (1, 4, h, w) with alpha: laid over the background in this order, as any
        editor does, they give `composite`."""
        black = torch.zeros_like(self.background)
        plain = self._over(self.ground(), self.colours)
        return {
            "shadow": torch.cat([black, self.shadow], 1),
            "object": torch.cat([self.colours, self.alpha], 1),
            "light": _difference(plain, self.composite()),
        }

    def ground(self) -> torch.Tensor:
        """(1, 3, h, w): the background with the shadow, without the object."""
        return torch.where(self.shadow > 0, self.background * (1 - self.shadow), self.background)

    def through(self, mask: torch.Tensor) -> Lit:
        """Object and shadow as seen through a mask (1, 1, h, w) in [0, 1].

        The shadow fades before the mask's edge, where a straight cut would show, but passes behind a post.
        """
        seen = F.interpolate((mask > 0).to(mask), (128, 128), mode="area")
        grown = F.max_pool2d(F.pad(seen, (POST - 1,) * 4, mode="replicate"), POST, 1)
        seen = -F.max_pool2d(-grown, POST, 1)
        fade = F.interpolate((2 * _softened(seen, 128 * ENDING) - 1).clamp(min=0), mask.shape[2:], mode="bilinear")
        return replace(self, alpha=self.alpha * mask, shadow=self.shadow * mask * fade)

    def _over(self, below: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        return torch.where(self.alpha > 0, torch.lerp(below, colours, self.alpha), below)


def square_around(net: LightNet, placed: PlacedObject) -> Placement:
    """The square of the frame that the network looks at; its `area` is all that light and shadow may change."""
    return Placement.around(placed.box, placed.size, net.config.resolution, net.config.context)


@torch.no_grad()
def relight(
    net: LightNet,
    background: Picture,
    placed: PlacedObject,
    light: float = 1.0,
    shadow: float = 1.0,
    softness: float = 0.0,
    light_from: str | float = "auto",
) -> Lit:
    """Light an object as the scene around it is lit, and let it throw its shadow.

    background: Pillow, or (1, 3, H, W) in [0, 1]; only its square around the object is looked at. light, shadow:
    strengths as `directions.STRENGTHS` says; softness: from 0, the shadow as the network sees it, to 1; light_from:
    where the scene's light comes from, as `light_direction` takes it, auto: as the network sees it. The network runs
    on its own device; the result is on the object's. Raises `ImprintError` for strengths outside their range, for a
    background of another size, and if the network returns values that are not finite.
    """
    require_strengths(light, shadow, softness, light_from)
    square = square_around(net, placed)
    area = square.area
    require_same_size("the background", picture_size(background), "the placed object", placed.size)
    frame = picture_part(background, area, placed.colours.device)
    local = square.within(area)
    colours, alpha = (each.to(frame) for each in placed.within(area))
    lit = Lit(area, frame, colours, colours, alpha, torch.zeros_like(alpha))
    if light == shadow == 0:
        return lit

    own, coverage, scene = (local.extract(each) for each in (colours * alpha, alpha, frame))
    # What the object hides must not be seen on it: the network gets a guess from what lies around.
    free = (coverage < HIDDEN).float()
    if bool(free.any()):
        scene = spread(scene, free)
    picture = own + scene * (1 - coverage)
    seen = [each.to(net.stem.weight) for each in (picture, coverage, scene)]
    towards = light_direction(light_from)
    towards = None if towards is None else seen[0].new_tensor([towards])
    maps = predict_maps(net, seen, towards, light > 0, shadow > 0)
    for values in (maps.gain, maps.offset, maps.shadow):
        require_finite(values, "the light that the network sees", "its file is broken, or fp32 is needed")
    # Gain and offset are meant inside the outline, the shadow outside it: each is carried over the edge, then enlarged.
    if light:
        inside = (coverage > 0.9 * coverage.max()).float()
        change = local.insert_map(spread(_smooth(torch.cat([maps.gain, maps.offset], 1).to(frame), inside), inside))
        gain, offset = (light * change).chunk(2, 1)
        lit.relit = (colours * gain.exp() + offset).clamp(0, 1)
    # Not beside the outline either: there the network's shadow has a bright rim.
    outside = (F.max_pool2d(coverage, 3, 1, 1) < 0.1).float()
    if shadow and bool(outside.any()):
        lost = spread(maps.shadow.to(frame), outside)
        if softness:  # as in a larger light: sharp where the object stands, softer the farther from it
            reach = SOFTEST * net.config.resolution
            away = (1 - 2 * _softened(coverage, reach)).clamp(min=0)
            lost = lost.lerp(_softened(lost, softness * reach), away)
        kept = 1 - local.insert_map(lost * _fading(square, lost)).clamp(0, 1)
        lit.shadow = ((1 - kept ** (shadow * net.config.shadow_power) - UNSEEN) / (1 - UNSEEN)).clamp(min=0)
    return lit


def predict_maps(
    net: LightNet,
    pictures: list[torch.Tensor],
    towards: torch.Tensor | None = None,
    with_light: bool = True,
    with_shadow: bool = True,
) -> LightMaps:
    """The network's maps for pictures or, if it `mirrors`, their mean over the pictures and their mirror images.

    pictures: `LightNet.encode`'s three arguments. towards (B, 3): where the scene's light comes from, as for
    `LightNet.decode`; if None, the shadow is the one for the likeliest guess, since the median of all possible shadows
    is faint and lies on every side. with_light, with_shadow: which of the maps are needed; less takes less time.
    """
    features = net.encode(*(torch.cat([each, each.flip(3)]) if net.mirrors else each for each in pictures))

    def decoded(directions: torch.Tensor | None = None) -> LightMaps:
        maps = net.decode(features, directions)
        return maps.folded() if net.mirrors else maps

    def told(towards: torch.Tensor) -> LightMaps:
        known = F.pad(towards, (0, 1), value=1.0)
        return decoded(torch.cat([known, mirrored(known)]) if net.mirrors else known)

    if towards is not None:
        return told(towards)
    if not with_light:
        guesses = net.guesses(features)
        return told(likeliest(*folded_guesses(*guesses) if net.mirrors else guesses))
    maps = decoded()
    if with_shadow:
        maps.shadow = told(likeliest(maps.directions, maps.chances)).shadow
    return maps


def _difference(below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """The most transparent layer (1, 4, h, w) that, laid over one picture (1, 3, h, w), gives the other."""
    change = above - below
    share = torch.where(change > 0, change / (1 - below).clamp(min=1e-6), -change / below.clamp(min=1e-6))
    alpha = (share.amax(1, keepdim=True) * 255).ceil().clamp(0, 255) / 255
    colours = torch.where(alpha > 0, (above - below * (1 - alpha)) / alpha.clamp(min=1e-6), torch.zeros_like(below))
    return torch.cat([colours.clamp(0, 1), alpha], 1)


def _fading(square: Placement, maps: torch.Tensor) -> torch.Tensor:
    """(1, 1, S, S): falls to 0 towards those sides of the square that lie within the frame."""
    side = maps.shape[-1]
    steps = (torch.arange(side, device=maps.device) + 0.5) / (FADE * side)
    ramp, whole = steps.clamp(max=1), torch.ones_like(steps)
    sides = (
        (square.top > 0, square.top + square.side < square.height),
        (square.left > 0, square.left + square.side < square.width),
    )
    down, across = ((ramp if first else whole) * (ramp.flip(0) if last else whole) for first, last in sides)
    return (down[:, None] * across)[None, None]


def _smooth(maps: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(1, C, S, S) without the ripples that a network leaves at edges: a blur that sees only what lies within
    `where`.
    """
    blurred = _softened((maps * where).transpose(0, 1), RIPPLE).transpose(0, 1)  # each channel by itself
    return blurred / _softened(where, RIPPLE).clamp(min=1e-3)


def _softened(maps: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian blur; the border is repeated."""
    deviation = max(deviation, 0.01)  # already nothing: smaller ones would be divided by
    reach = math.ceil(2.5 * deviation)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / deviation) ** 2)
    line = (line / line.sum()).to(maps).view(1, 1, -1)
    maps = F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="replicate"), line[..., None])
    return F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="replicate"), line[:, :, None])
