"""From groups of linear radiance, and from photos, to what the light network is trained with.

Everything happens on the device that holds the groups: exposures, white balances, contrast and crops are drawn anew for
every batch, as different cameras would have taken the object's photo and the scene's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .scenes import LIGHTS

_LUMINANCE = (0.2126, 0.7152, 0.0722)
_START = {
    "lit": 0,
    "bare": 3 * LIGHTS,
    "photo": 4 * LIGHTS,
    "alone": 7 * LIGHTS,
    "alpha": 7 * LIGHTS + 3,
    "normal": 7 * LIGHTS + 4,
}


@dataclass
class LightBatch:
    """All (B, C, S, S) float32; pictures in [0, 1]."""

    picture: torch.Tensor
    """The object, in the light and colours of its own photo, over the background."""
    alpha: torch.Tensor
    background: torch.Tensor
    """Without the object; behind it, it may be guessed."""
    target: torch.Tensor
    """The object as the scene lights it, where alpha is above 0."""
    shadow: torch.Tensor
    """Share of light that the ground loses."""
    shading: torch.Tensor
    """As in `imprint.light.LightMaps`."""
    rendered: torch.Tensor
    """(B, 1, 1, 1): 1 where shadow and shading are known, 0 for photos."""


def luminance(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (pictures * pictures.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def tone(linear: torch.Tensor) -> torch.Tensor:
    """Exposed linear radiance as a photo shows it: a soft shoulder above 0.7, then sRGB, in [0, 1]."""
    c = torch.where(linear > 0.7, 1 - 0.3 * torch.exp((0.7 - linear.clamp(max=50)) / 0.3), linear)
    return torch.where(c > 0.0031308, 1.055 * c.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * c).clamp(0, 1)


def settle_shadows(groups: torch.Tensor) -> None:
    """Turn the radiance of the bare ground into the share of light that it keeps, in place, without the tracer's noise."""
    for part in groups.split(32):
        alpha = part[:, _START["alpha"]].float()
        free = (alpha < 0.02).float()[:, None]
        for light in range(LIGHTS):
            lit = luminance(part[:, 3 * light : 3 * light + 3].float())
            bare = part[:, _START["bare"] + light, None].float()
            known = free * (bare > 1e-4)
            ratio = torch.where(known > 0, (lit / bare.clamp(min=1e-6)).clamp(0, 1.03), 1.0)
            ratio = _median(ratio)
            ratio = _gauss(ratio * known) / _gauss(known).clamp(min=1e-3)
            part[:, _START["bare"] + light] = torch.where(known > 0, ratio, 1.0)[:, 0].clamp(0, 1).to(part)


def irradiance(panorama: torch.Tensor, rows: int = 16) -> torch.Tensor:
    """(H, W, 3) linear -> (3, rows, 2 * rows): logarithm of what a white matt surface returns, by its normal."""
    small = F.interpolate(panorama.float().permute(2, 0, 1)[None], (64, 128), mode="area")[0].reshape(3, -1)
    rays, size = _rays(64), _sizes(64)
    cosine = (_rays(rows) @ rays.T).clamp(min=0) * size
    light = small @ (cosine / cosine.sum(1, keepdim=True)).T
    return light.clamp(min=1e-4).log().reshape(3, rows, 2 * rows)


def draw_rendered(
    groups: torch.Tensor,
    places: torch.Tensor,
    turns: torch.Tensor,
    lights: torch.Tensor,
    chosen: torch.Tensor,
    photos: torch.Tensor | None = None,
    augment: bool = True,
) -> LightBatch:
    """A batch of path-traced pairs.

    groups (N, C, S, S) float16 after `settle_shadows`; places, turns (N, `LIGHTS` + 1); lights (P, 3, h, 2h) of
    `irradiance`; chosen (B,) indices; photos as in `draw_photographed`: their fine detail sharpens half of the scenes, since
    a view cut out of a panorama is softer than a photo.
    """
    part = groups[chosen]
    count, device = len(part), part.device
    rows = torch.arange(count, device=device)
    draw = lambda *shape: torch.randn(*shape, device=device)
    uniform = lambda *shape: torch.rand(*shape, device=device)

    light = (
        torch.randint(LIGHTS, (count,), device=device)
        if augment
        else torch.zeros(count, dtype=torch.long, device=device)
    )
    other = (light + 1 + torch.randint(LIGHTS - 1, (count,), device=device)) % LIGHTS
    kind = uniform(count) if augment else torch.zeros(count, device=device)
    # Its own photo: cut out in the air, or on the ground of another place, or even in the same light.
    source = torch.where(kind < 0.5, LIGHTS, torch.where(kind < 0.88, other, light))
    three = lambda start, index: torch.stack([part[rows, start + 3 * index + channel] for channel in range(3)], 1)
    lit, photo = three(0, light), three(_START["photo"], light)
    alone = part[:, _START["alone"] : _START["alone"] + 3]
    own = torch.where((source < LIGHTS)[:, None, None, None], three(0, source.clamp(max=LIGHTS - 1)), alone)
    kept = part[rows, _START["bare"] + light][:, None]
    alpha = part[:, _START["alpha"], None]
    normal = part[:, _START["normal"] : _START["normal"] + 3]
    layers = torch.cat([lit, photo, own, kept, alpha, normal], 1).float()
    if augment:
        layers = _cropped(layers)
    lit, photo, own, kept, alpha, normal = layers.split([3, 3, 3, 1, 1, 3], 1)
    alpha = alpha.clamp(0, 1)
    solid = (alpha > 0.9).float()

    shade = torch.cat(
        [
            _shading(lights, places[chosen][rows, index], turns[chosen][rows, index], normal)
            for index in (light, source)
        ],
        1,
    )
    middle = luminance(photo).clamp(min=1e-4).log().mean((1, 2, 3), keepdim=True).exp()
    spread = 0.35 if augment else 0.0
    exposure = 0.18 / middle * (spread * draw(count, 1, 1, 1)).exp()
    brightest = _quantile(luminance(lit), solid, 0.97)
    exposure = torch.where(uniform(count, 1, 1, 1) < 0.9, torch.minimum(exposure, 0.9 / brightest), exposure)
    own_exposure = (
        0.55 / _quantile(luminance(own), solid, 0.9) * ((0.28 if augment else 0.0) * draw(count, 1, 1, 1)).exp()
    )
    balance = (0.07 * augment * draw(count, 3, 1, 1)).exp()
    own_balance = (0.09 * augment * draw(count, 3, 1, 1)).exp()
    if augment:
        alike = ((source == light)[:, None, None, None]) & (uniform(count, 1, 1, 1) < 0.6)  # nothing has to change
        own_exposure, own_balance = torch.where(alike, exposure, own_exposure), torch.where(alike, balance, own_balance)
    shade = shade + torch.cat(
        [(exposure * balance).log().expand(-1, 3, -1, -1), (own_exposure * own_balance).log().expand(-1, 3, -1, -1)], 1
    )
    target, background, own = (
        tone(lit * exposure * balance),
        tone(photo * exposure * balance),
        tone(own * own_exposure * own_balance),
    )
    if augment:
        look = _look(count, device)
        target, background = look(target), look(background)
        own = torch.where(alike, target, _look(count, device)(own))
        swap = torch.rand((), device=device) < 0.15
        if swap:
            order = torch.randperm(3, device=device)
            target, background, own = target[:, order], background[:, order], own[:, order]
            shade = torch.cat([shade[:, :3][:, order], shade[:, 3:][:, order]], 1)
    if augment and photos is not None:
        sharp = photos[torch.randint(len(photos), (count,), device=device), :3].float() / 255
        sharp = _cropped(sharp.flip(3))
        sharp = sharp - F.avg_pool2d(sharp, 9, 1, 4, count_include_pad=False)
        strength = (
            1.2
            * uniform(count, 1, 1, 1)
            * (uniform(count, 1, 1, 1) < 0.5)
            * background.mean((1, 2, 3), keepdim=True).clamp(max=0.5)
            / 0.5
        )
        background = (background + strength * sharp).clamp(0, 1)
    flip = (uniform(count, 1, 1, 1) < 0.5) & augment
    made = [torch.where(flip, each.flip(3), each) for each in (own, alpha, background, target, 1 - kept, shade)]
    own, alpha, background, target, shadow, shade = made
    guess = uniform(count, 1, 1, 1) < 0.5
    background = torch.where(guess, fill_in(background, alpha), background)
    picture = own * alpha + background * (1 - alpha)
    return LightBatch(picture, alpha, background, target, shadow, shade, torch.ones(count, 1, 1, 1, device=device))


def draw_photographed(photos: torch.Tensor, chosen: torch.Tensor, augment: bool = True) -> LightBatch:
    """A batch of pairs from photos: the object recoloured or relit, the photo itself the truth.

    photos (N, 4, S, S) uint8: a photo and its object's mask.
    """
    part = photos[chosen].float() / 255
    count, device = len(part), part.device
    draw = lambda *shape: torch.randn(*shape, device=device)
    if augment:
        flip = torch.rand(count, 1, 1, 1, device=device) < 0.5
        part = torch.where(flip, part.flip(3), part)
        part = _cropped(part)
    photo, alpha = part[:, :3].clamp(0, 1), part[:, 3:].clamp(0, 1)
    if augment:
        photo = _look(count, device)(photo)
    background = fill_in(photo, alpha)
    rows = torch.linspace(-1, 1, part.shape[2], device=device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, part.shape[3], device=device).view(1, 1, 1, -1)
    slope = 0.22 * (draw(count, 1, 1, 1) * rows + draw(count, 1, 1, 1) * columns)
    tint_slope = 0.05 * (draw(count, 3, 1, 1) * rows + draw(count, 3, 1, 1) * columns)
    factor = (0.28 * draw(count, 1, 1, 1) + 0.1 * draw(count, 3, 1, 1) + slope + tint_slope).exp()
    own = (_look(count, device)(photo) * factor).clamp(0, 1)
    untouched = torch.rand(count, 1, 1, 1, device=device) < 0.25
    own = torch.where(untouched, photo, own)
    picture = own * alpha + background * (1 - alpha)
    zero = torch.zeros_like(alpha)
    return LightBatch(picture, alpha, background, photo, zero, zero.repeat(1, 6, 1, 1), zero[:, :, :1, :1])


def fill_in(pictures: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Guess what lies behind an object from what lies around it: means over ever larger surroundings."""
    known = (alpha < 0.05).float()
    levels = [(pictures * known, known)]
    while levels[-1][0].shape[-1] > 2:
        colours, share = levels[-1]
        levels.append((F.avg_pool2d(colours, 2), F.avg_pool2d(share, 2)))
    guess = levels[-1][0] / levels[-1][1].clamp(min=1e-4)
    for colours, share in reversed(levels[:-1]):
        guess = F.interpolate(guess, colours.shape[2:], mode="bilinear", align_corners=False)
        guess = colours + guess * (1 - share.clamp(max=1))
    return torch.lerp(pictures, guess, (alpha * 20).clamp(0, 1)).clamp(0, 1)


def _look(count: int, device) -> callable:
    """A camera's contrast and saturation, drawn for each picture."""
    power = (0.1 * torch.randn(count, 1, 1, 1, device=device)).exp()
    colour = (0.12 * torch.randn(count, 1, 1, 1, device=device)).exp()

    def apply(pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.clamp(min=1e-5) ** power
        grey = luminance(pictures)
        return (grey + (pictures - grey) * colour).clamp(0, 1)

    return apply


def _cropped(layers: torch.Tensor) -> torch.Tensor:
    """A random square of 72 to 100 % of each, brought to the full size."""
    count, device = len(layers), layers.device
    scale = 0.72 + 0.28 * torch.rand(count, device=device)
    shift = (2 * torch.rand(count, 2, device=device) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, (count, 1, *layers.shape[2:]), align_corners=False)
    return F.grid_sample(layers, grid, padding_mode="border", align_corners=False)


def _quantile(values: torch.Tensor, where: torch.Tensor, share: float) -> torch.Tensor:
    """(B, 1, 1, 1): the quantile of values (B, 1, H, W) where `where` is 1, from a coarse grid of them."""
    values, where = values[:, :, ::4, ::4].flatten(1), where[:, :, ::4, ::4].flatten(1)
    ordered = torch.where(where > 0, values, torch.inf).sort(1).values
    index = ((where.sum(1) - 1).clamp(min=0) * share).long()
    found = ordered.gather(1, index[:, None])[:, 0]
    return torch.where(found.isfinite(), found, 0.5).clamp(min=1e-3).view(-1, 1, 1, 1)


def _shading(lights: torch.Tensor, places: torch.Tensor, turns: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S): `irradiance` of each sample's panorama, turned, at its normals (B, 3, S, S)."""
    normals = F.normalize(normals, dim=1)
    angle = turns.view(-1, 1, 1) * (math.pi / 180)
    x = normals[:, 0] * angle.cos() - normals[:, 2] * angle.sin()
    z = normals[:, 0] * angle.sin() + normals[:, 2] * angle.cos()
    across = torch.atan2(x, -z) / math.pi  # Mitsuba's panoramas start at -z
    down = torch.acos(normals[:, 1].clamp(-1, 1)) / math.pi * 2 - 1
    across = torch.remainder(across, 2) - 1
    return F.grid_sample(lights[places], torch.stack([across, down], -1), padding_mode="border", align_corners=False)


def _rays(rows: int) -> torch.Tensor:
    """(rows * 2 * rows, 3) directions of a panorama's pixels, as Mitsuba has them."""
    polar = ((torch.arange(rows) + 0.5) / rows * math.pi)[:, None]
    around = ((torch.arange(2 * rows) + 0.5) / rows * math.pi)[None]
    return torch.stack(
        torch.broadcast_tensors(around.sin() * polar.sin(), polar.cos(), -around.cos() * polar.sin()), -1
    ).reshape(-1, 3)


def _sizes(rows: int) -> torch.Tensor:
    polar = ((torch.arange(rows) + 0.5) / rows * math.pi).sin()
    return polar[:, None].expand(-1, 2 * rows).reshape(-1)


def _median(pictures: torch.Tensor) -> torch.Tensor:
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    high, wide = pictures.shape[2:]
    shifted = [padded[:, :, y : y + high, x : x + wide] for y in range(3) for x in range(3)]
    return torch.cat(shifted, 1).median(1, keepdim=True).values


def _gauss(pictures: torch.Tensor) -> torch.Tensor:
    line = torch.exp(-0.5 * torch.arange(-3, 4, device=pictures.device).float() ** 2)
    line = (line / line.sum()).view(1, 1, -1)
    pictures = F.conv2d(F.pad(pictures, (3, 3, 3, 3), mode="replicate"), line[..., None])
    return F.conv2d(pictures, line[:, :, None])
