"""Light and shadow for an object whose place is known: what it would look like in this photo's light.

A small network sees the photo with the object pasted into it and gives smooth maps: how much brighter or darker, and how
tinted, each part of the object becomes (a gain and an offset), and how much darker the ground around it; and guesses where the
scene's light comes from, unless that is told. The maps are applied at the photo's own resolution, so that words, faces and edges stay exactly those of the object's photo. The
idea of a colour transform per pixel, predicted small and applied large, is PCT-Net's (CVPR 2023, section 3).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .backbone import WIDTHS, EfficientNetLite
from .directions import light_direction
from .errors import ImprintError, require_finite
from .files import replacing
from .hole import Placement
from .place import PlacedObject
from .sprites import spread

SHIPPED_LIGHT = Path(__file__).parent / "assets" / "imprint-light.safetensors"
"""The light network that comes with the package."""
STRENGTHS = (0.0, 1.5)
"""Least and most strength of light and shadow; 0 is off exactly, 1 what the network says."""
RIPPLE = 4.0
"""Standard deviation of the blur of gain and offset, in pixels of the network: light changes slowly."""
HIDDEN = 0.05
"""Where the object covers this share of a pixel, the background is hidden."""
UNSEEN = 0.006
"""A shadow that takes less than this share of the light is none: there the background stays bit for bit."""
FADE = 0.12
"""Share of the square over which a shadow fades where the square ends within the frame."""
SOFTEST = 0.08
"""Standard deviation of a shadow's blur at softness 1, as a share of the square's side."""

FORMAT = "imprint-light"

SCATTER = 0.2
"""Standard deviation of where light comes from around each of the network's guesses."""

MOST_GAIN = 1.6
"""Natural logarithm: the object's values become at most five times as large or small."""
MOST_OFFSET = 0.4


@dataclass(frozen=True)
class LightConfig:
    """The light network's sizes."""

    resolution: int = 256
    """Side in pixels of the square that it sees."""
    widths: tuple[int, ...] = (48, 96, 192, 256)
    """Channels at half the resolution, and at each further halving."""
    blocks: int = 4
    """Transformer blocks at the coarsest level."""
    guesses: int = 6
    """Of where the light comes from."""
    context: float = 2.2
    """Side of the square over the longer side of the object's box."""
    shadow_power: float = 0.9
    """What the ground keeps is raised to this power, chosen on held-out places: a guess is not always right, and then a
    fainter shadow is less wrong."""


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
        return self._over(self._shaded(), self.relit)

    def layers(self) -> dict[str, torch.Tensor]:
        """`shadow`, `object` and `light`, each (1, 4, h, w) with alpha: laid over the background in this order, as any
        editor does, they give `composite`."""
        black = torch.zeros_like(self.background)
        plain = self._over(self._shaded(), self.colours)
        return {
            "shadow": torch.cat([black, self.shadow], 1),
            "object": torch.cat([self.colours, self.alpha], 1),
            "light": _difference(plain, self.composite()),
        }

    def _shaded(self) -> torch.Tensor:
        return torch.where(self.shadow > 0, self.background * (1 - self.shadow), self.background)

    def _over(self, below: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        return torch.where(self.alpha > 0, torch.lerp(below, colours, self.alpha), below)


@dataclass
class LightMaps:
    """gain (B, 3, S, S) as a natural logarithm, offset (B, 3, S, S), shadow (B, 1, S, S): the share of
    a picture's values that the ground loses."""

    gain: torch.Tensor
    offset: torch.Tensor
    shadow: torch.Tensor
    shading: torch.Tensor
    """(B, 6, S, S): logarithm of what a white surface with the object's normals would return, in the scene's light and
    in that of the object's photo. Learned on the way to `gain`."""
    directions: torch.Tensor
    """(B, K, 3): guesses of where the scene's light comes from, as `LightNet.forward` takes `direction`."""
    chances: torch.Tensor
    """(B, K): natural logarithm of how likely each of them is."""

    def folded(self) -> LightMaps:
        """Of pictures, and after them of their mirror images: the means of both, and the guesses of both."""
        there, back = (LightMaps(*halves) for halves in zip(*(each.chunk(2) for each in vars(self).values())))
        mirror = there.directions.new_tensor([-1.0, 1.0, 1.0])
        return LightMaps(
            *(
                (getattr(there, name) + getattr(back, name).flip(3)) / 2
                for name in ("gain", "offset", "shadow", "shading")
            ),
            torch.cat([there.directions, back.directions * mirror], 1),
            torch.cat([there.chances, back.chances], 1) - math.log(2),
        )

    def likeliest(self) -> torch.Tensor:
        """(B, 3): the guess around which most of all guesses' chances lie."""
        apart = torch.cdist(self.directions, self.directions).square() / (2 * SCATTER**2)
        best = (self.chances[:, None] - apart).logsumexp(2).argmax(1)
        return self.directions[torch.arange(len(best)), best]


class LightNet(nn.Module):
    """A UNet with attention at its coarsest level."""

    def __init__(self, config: LightConfig):
        super().__init__()
        self.config, widths = config, config.widths
        self.backbone = EfficientNetLite().requires_grad_(False)
        self.recognised = nn.Sequential(nn.GroupNorm(8, 2 * sum(WIDTHS)), nn.Conv2d(2 * sum(WIDTHS), widths[-1], 1))
        self.told = nn.Linear(4, widths[-1])
        self.stem = nn.Conv2d(4 * 9, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for wide, narrow in zip(widths[1:], widths[:-1]):
            self.down.append(nn.Sequential(Block(narrow, narrow), nn.Conv2d(narrow, wide, 3, 2, 1)))
            self.up.append(nn.ModuleList([nn.Conv2d(wide, narrow, 1), Block(2 * narrow, narrow)]))
        self.middle = nn.Sequential(
            Block(widths[-1], widths[-1]),
            *(Attention(widths[-1]) for _ in range(config.blocks)),
            Block(widths[-1], widths[-1]),
        )
        self.head = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 4 * 13, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)
        self.guess = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.SiLU(), nn.Linear(widths[-1], 4 * config.guesses)
        )
        nn.init.zeros_(self.guess[-1].weight)
        around = torch.arange(config.guesses) / config.guesses * 2 * torch.pi
        first = torch.stack([around.sin() / 2, torch.full_like(around, 0.4), around.cos() / 2, 0 * around], 1)
        self.guess[-1].bias.data.copy_(first.flatten())

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.stem.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.stem.weight.device

    def forward(
        self,
        picture: torch.Tensor,
        alpha: torch.Tensor,
        background: torch.Tensor,
        direction: torch.Tensor | None = None,
    ) -> LightMaps:
        """`encode` and `decode`, which says what is taken."""
        return self.decode(self.encode(picture, alpha, background), direction)

    def encode(self, picture: torch.Tensor, alpha: torch.Tensor, background: torch.Tensor) -> list[torch.Tensor]:
        """Features at half the resolution and at each further halving, for `decode`.

        picture (B, 3, S, S): the object over the background, both in [0, 1]; alpha (B, 1, S, S); S a multiple of 32.
        """
        count, _, high, wide = picture.shape
        rows = torch.linspace(-1, 1, high, device=picture.device, dtype=picture.dtype).view(1, 1, -1, 1)
        columns = torch.linspace(-1, 1, wide, device=picture.device, dtype=picture.dtype).view(1, 1, 1, -1)
        place = [each.expand(count, 1, high, wide) for each in (rows, columns)]
        x = self.stem(F.pixel_unshuffle(torch.cat([picture * 2 - 1, alpha * 2 - 1, background * 2 - 1, *place], 1), 2))
        features = []
        for block, halve in self.down:
            x = block(x)
            features.append(x)
            x = halve(x)
        seen = self.recognised(self._recognise(picture, background))
        return [*features, x + F.interpolate(seen, x.shape[2:], mode="nearest")]

    def decode(self, features: list[torch.Tensor], direction: torch.Tensor | None = None) -> LightMaps:
        """features: of `encode`. direction (B, 4): where the scene's light comes from, if that is known: x to the right, y up,
        z to the camera, the mean of all directions, weighed by their light, so that its length is 1 for a single lamp and 0
        for light from everywhere; then 1. Four zeros where it is not known.
        """
        *kept, x = features
        told = x.new_zeros(len(x), 4) if direction is None else direction.to(x)
        x = self.middle(x + self.told(told)[..., None, None])
        guesses = self.guess(x.mean((2, 3))).float().unflatten(1, (-1, 4))
        for (narrow, block), skip in zip(reversed(self.up), reversed(kept)):
            x = block(torch.cat([F.interpolate(narrow(x), scale_factor=2.0, mode="nearest"), skip], 1))
        maps = F.pixel_shuffle(self.head(x), 2).float()
        shading = 4 * torch.tanh(maps[:, 7:] / 4)
        # What the object loses of its own light and gains of the scene's, as eyes see it: 2.2 is a screen's exponent.
        change = (shading[:, :3] - shading[:, 3:]) / 2.2
        gain = MOST_GAIN * torch.tanh((change + maps[:, :3]) / MOST_GAIN)
        shadow = torch.sigmoid(maps[:, 6:7] - 3)
        chances = guesses[..., 3].log_softmax(1)
        return LightMaps(gain, MOST_OFFSET * torch.tanh(maps[:, 3:6]), shadow, shading, guesses[..., :3], chances)

    def _recognise(self, *pictures: torch.Tensor) -> torch.Tensor:
        """(B, C, S / 16, S / 16): what the backbone sees in each of the pictures (B, 3, S, S)."""
        with torch.no_grad():
            fine, coarse = self.backbone(torch.cat(pictures))
        seen = torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        return torch.cat(seen.chunk(len(pictures)), 1)


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.around = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.around(x) + self.second(self.first(x))


class Attention(nn.Module):
    """A pre-norm transformer block over all places of a picture (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 32
        self.norm, self.mix = nn.GroupNorm(8, width), nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.mlp = nn.Sequential(
            nn.GroupNorm(8, width), nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, width, high, wide = x.shape
        mixed = self.mix(self.norm(x)).view(count, 3, self.heads, width // self.heads, high * wide).transpose(3, 4)
        seen = F.scaled_dot_product_attention(*mixed.unbind(1))
        x = x + self.out(seen.transpose(2, 3).reshape(x.shape))
        return x + self.mlp(x)


def square_around(net: LightNet, placed: PlacedObject) -> Placement:
    """The square of the frame that the network looks at; its `area` is all that light and shadow may change."""
    return Placement.around(placed.box, placed.size, net.config.resolution, net.config.context)


@torch.no_grad()
def relight(
    net: LightNet,
    frame: torch.Tensor,
    placed: PlacedObject,
    light: float = 1.0,
    shadow: float = 1.0,
    softness: float = 0.0,
    light_from: str | float = "auto",
) -> Lit:
    """Light an object as the scene around it is lit, and let it throw its shadow.

    frame: the background's part `square_around(net, placed).area`, (1, 3, h, w) in [0, 1]. light, shadow: strengths as
    `STRENGTHS` says; softness: from 0, the shadow as the network sees it, to 1; light_from: where the scene's light comes
    from, as `light_direction` takes it, auto: as the network sees it. The network runs where it lies, the
    result lies with the frame. Raises `ImprintError` for strengths beyond their range and for a part of another size.
    """
    require_strengths(light, shadow, softness, light_from)
    square = square_around(net, placed)
    area = square.area
    if tuple(frame.shape[2:]) != tuple(part.stop - part.start for part in area):
        raise ImprintError(
            f"the background's part is {frame.shape[3]}x{frame.shape[2]}, which is not the square around the object; cut "
            "`square_around(net, placed).area` out of the background"
        )
    local = square.within(area)
    colours, alpha = (each.to(frame) for each in placed.within(area))
    plain = Lit(area, frame, colours, colours, alpha, torch.zeros_like(alpha))
    if light == shadow == 0:
        return plain

    own, coverage, scene = (local.extract(each) for each in (colours * alpha, alpha, frame))
    # What the object hides must not be seen on it: the network gets a guess from what lies around.
    free = (coverage < HIDDEN).float()
    if bool(free.any()):
        scene = spread(scene, free)
    picture = own + scene * (1 - coverage)
    seen = [each.to(net.stem.weight) for each in (picture, coverage, scene)]
    maps = _seen(net, seen, light_direction(light_from), with_shadow=shadow > 0)
    for values in (maps.gain, maps.offset, maps.shadow):
        require_finite(values, "the light that the network sees", "its file is broken, or fp32 is needed")
    # Gain and offset are meant inside the outline, the shadow outside it: each is carried over the edge, then enlarged.
    if light:
        inside = (coverage > 0.9 * coverage.max()).float()
        change = local.insert_map(spread(_smooth(torch.cat([maps.gain, maps.offset], 1).to(frame), inside), inside))
        gain, offset = (light * change).chunk(2, 1)
        plain.relit = (colours * gain.exp() + offset).clamp(0, 1)
    outside = (coverage < 0.1).float()
    if shadow and bool(outside.any()):
        lost = spread(maps.shadow.to(frame), outside)
        if softness:
            lost = _softened(lost, softness * SOFTEST * net.config.resolution)
        kept = 1 - local.insert_map(lost * _fading(square, lost)).clamp(0, 1)
        plain.shadow = ((1 - kept ** (shadow * net.config.shadow_power) - UNSEEN) / (1 - UNSEEN)).clamp(min=0)
    return plain


def require_strengths(light: float, shadow: float, softness: float, light_from: str | float = "auto") -> None:
    """Raise `ImprintError` unless the first three are within their ranges and the last is a direction."""
    light_direction(light_from)
    low, high = STRENGTHS
    if not (low <= light <= high and low <= shadow <= high and 0 <= softness <= 1):
        raise ImprintError(
            f"light is {light:g}, shadow {shadow:g} and softness {softness:g}; the first two must be from {low:g} to "
            f"{high:g}, softness from 0 to 1"
        )


def load_light(path: str | os.PathLike = SHIPPED_LIGHT) -> LightNet:
    """The light network of a file, in fp32 on the CPU, ready to be used.

    Raises `ImprintError` for a file that is absent, a pickle, damaged, or none of a light network.
    """
    from .checkpoint import check_digest, open_safetensors

    path = Path(path)
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or "config" not in metadata:
            raise ImprintError(
                f"{path} is a safetensors file, but holds no light network; give one that training.relight has written"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    check_digest(path, metadata, tensors)
    values = json.loads(metadata["config"])
    if values.keys() != asdict(LightConfig()).keys():
        raise ImprintError(
            f"{path}: its light network is described by {', '.join(values)}, and here by {', '.join(asdict(LightConfig()))}; "
            "another version made the file; train it again with this one, or use the network that comes with it"
        )
    net = LightNet(LightConfig(**values | {"widths": tuple(values["widths"])}))
    found, expected = (
        {name: tuple(value.shape) for name, value in each.items()} for each in (tensors, net.state_dict())
    )
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ImprintError(
            f"{path}: {len(odd)} tensors of the light network are missing, of another shape or not its own, '{odd[0]}' among "
            "them; another version made the file; train it again with this one, or use the network that comes with it"
        )
    net.load_state_dict({name: value.float() for name, value in tensors.items()})
    return net.eval().requires_grad_(False)


def save_light(path: str | os.PathLike, net: LightNet, dtype: torch.dtype = torch.float16) -> None:
    """Write a light network; the file is whole or it is not there."""
    from safetensors.torch import save_file

    from .checkpoint import digest

    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in net.state_dict().items()}
    config = json.dumps(asdict(net.config))
    metadata = {"format": FORMAT, "config": config, "sha256": digest(config, sorted(tensors.items()))}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _seen(
    net: LightNet, pictures: list[torch.Tensor], towards: tuple[float, ...] | None, with_shadow: bool
) -> LightMaps:
    """The mean of what the network sees in the pictures (1, C, S, S) and in their mirror images.

    Where it is not told where the light comes from, the shadow is that of its likeliest guess: the median of all shadows that are
    possible is faint, and lies on every side.
    """
    features = net.encode(*(torch.cat([each, each.flip(3)]) for each in pictures))

    def told(towards: Iterable[float]) -> LightMaps:
        x, y, z = towards
        return net.decode(features, features[0].new_tensor([[x, y, z, 1.0], [-x, y, z, 1.0]])).folded()

    if towards is not None:
        return told(towards)
    maps = net.decode(features).folded()
    if with_shadow:
        maps.shadow = told(maps.likeliest()[0].tolist()).shadow
    return maps


def _difference(below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """The most transparent layer (1, 4, h, w) that turns one picture (1, 3, h, w) into another."""
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
    """(1, C, S, S) without the ripples that a network leaves at edges: a blur that sees only what lies within `where`."""
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
