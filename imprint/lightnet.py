"""The light network: what it sees, what it gives, and its file.

A UNet with attention at its coarsest level sees a photo with an object pasted into it, and gives smooth maps of how the
object's colours and the ground's brightness change, and guesses of where the scene's light comes from; `imprint.light`
applies them. The idea of a colour transform per pixel, predicted small and applied large, is PCT-Net's (CVPR 2023,
section 3).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .backbone import WIDTHS, EfficientNetLite
from .checkpoint import check_digest, digest, open_safetensors, tensors_in, write_tensors
from .errors import ImprintError
from .fields import from_dict, require, require_at_most, require_positive
from .model import Unfilled, computes_in_bf16

SHIPPED_LIGHT = Path(__file__).parent / "assets" / "imprint-light.safetensors"
"""The light network that comes with the package."""
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
    """Number of guesses of where the light comes from."""
    context: float = 2.2
    """Side of the square relative to the longer side of the object's box."""
    shadow_power: float = 0.9
    """What the ground keeps is raised to this power, chosen on held-out places: a guess is not always right, and then a
    fainter shadow is less wrong."""

    def __post_init__(self) -> None:
        require_positive(self, "blocks")
        require_at_most(self, 2048, "resolution", "widths", "guesses")
        require_at_most(self, 100, "blocks")
        require(self.resolution % 32 == 0, f"resolution is {self.resolution}; it must be a multiple of 32")
        fits = not any(width % 8 for width in self.widths) and self.widths[-1] % 32 == 0
        require(fits, f"widths are {self.widths}; they must be multiples of 8, and the last one of 32")


@dataclass
class LightMaps:
    """The network's output."""

    gain: torch.Tensor
    """(B, 3, S, S): natural logarithm of the factor on the object's colours."""
    offset: torch.Tensor
    """(B, 3, S, S): what is then added to them."""
    shadow: torch.Tensor
    """(B, 1, S, S): the share of its values that the ground loses."""
    shading: torch.Tensor
    """(B, 6, S, S): logarithm of what a white surface with the object's normals would return, in the scene's light and
    in that of the object's photo. Learned on the way to `gain`."""
    directions: torch.Tensor
    """(B, K, 3): guesses of where the scene's light comes from, as `LightNet.forward` takes `direction`."""
    chances: torch.Tensor
    """(B, K): natural logarithm of how likely each of them is."""

    def folded(self) -> LightMaps:
        """The maps of pictures (the first half of the batch) averaged with those of their mirror images (the second),
        and the guesses of both: (2B, ...) -> (B, ...), with 2K guesses.
        """
        pairs = (each.chunk(2) for each in (self.gain, self.offset, self.shadow, self.shading))
        return LightMaps(
            *((there + back.flip(3)) / 2 for there, back in pairs), *folded_guesses(self.directions, self.chances)
        )


def folded_guesses(directions: torch.Tensor, chances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The guesses of `LightMaps.folded`: (2B, K, 3) and (2B, K) -> (B, 2K, 3) and (B, 2K)."""
    there, back = directions.chunk(2)
    return torch.cat([there, mirrored(back)], 1), torch.cat(chances.chunk(2), 1) - math.log(2)


def mirrored(directions: torch.Tensor) -> torch.Tensor:
    """Directions (..., 3 or more), x first, in the mirror image."""
    return torch.cat([-directions[..., :1], directions[..., 1:]], -1)


def likeliest(directions: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """The direction (B, 3), of guesses as in `LightMaps`, around which the probability is highest."""
    apart = torch.cdist(directions, directions).square() / (2 * SCATTER**2)
    best = (chances[:, None] - apart).logsumexp(2).argmax(1)
    return directions[torch.arange(len(best), device=best.device), best]


class LightNet(nn.Module):
    """A UNet with attention at its coarsest level."""

    mirrors: bool = True
    """Whether `relight` also lets it see the mirror image, and takes the mean: better light in twice the time."""

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
        """Its weights' type."""
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
        """`decode` after `encode`; they describe the arguments."""
        return self.decode(self.encode(picture, alpha, background), direction)

    def encode(self, picture: torch.Tensor, alpha: torch.Tensor, background: torch.Tensor) -> list[torch.Tensor]:
        """Features at half the resolution and at each further halving, for `decode`.

        picture (B, 3, S, S): the object over the background; alpha (B, 1, S, S): the object's; background (B, 3, S, S):
        the scene without it. All are in [0, 1], and S is a multiple of 32.
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
        """The maps and guesses from features that `encode` made.

        direction (B, 4): where the scene's light comes from, if known: x to the right, y up, z to the camera, the mean
        of all directions weighted by their light, so that its length is 1 for a single lamp and 0 for light from
        everywhere; then 1. Four zeros if it is not known.
        """
        x, *guesses = self._guessed(features, direction)
        kept = features[:-1]
        for (narrow, block), skip in zip(reversed(self.up), reversed(kept)):
            x = block(torch.cat([F.interpolate(narrow(x), scale_factor=2.0, mode="nearest"), skip], 1))
        maps = F.pixel_shuffle(self.head(x), 2).float()
        shading = 4 * torch.tanh(maps[:, 7:] / 4)
        # What the object loses of its own light and gains of the scene's, as eyes see it: 2.2 is a screen's exponent.
        change = (shading[:, :3] - shading[:, 3:]) / 2.2
        gain = MOST_GAIN * torch.tanh((change + maps[:, :3]) / MOST_GAIN)
        shadow = torch.sigmoid(maps[:, 6:7] - 3)
        return LightMaps(gain, MOST_OFFSET * torch.tanh(maps[:, 3:6]), shadow, shading, *guesses)

    def guesses(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Directions and chances alone, as `decode` gives them: a third of its time."""
        return self._guessed(features, None)[1:]

    def _guessed(
        self, features: list[torch.Tensor], direction: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The coarsest features (B, C, h, w) after attention, directions (B, K, 3) and chances (B, K)."""
        x = features[-1]
        told = x.new_zeros(len(x), 4) if direction is None else direction.to(x)
        x = self.middle(x + self.told(told)[..., None, None])
        guesses = self.guess(x.mean((2, 3))).float().unflatten(1, (-1, 4))
        return x, guesses[..., :3], guesses[..., 3].log_softmax(1)

    def _recognise(self, *pictures: torch.Tensor) -> torch.Tensor:
        """(B, C, S / 16, S / 16): what the backbone sees in each of the pictures (B, 3, S, S)."""
        with torch.no_grad():
            fine, coarse = self.backbone(torch.cat(pictures))
        seen = torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        return torch.cat(seen.chunk(len(pictures)), 1)


class Block(nn.Module):
    """A residual block with pre-activation (He et al., arXiv 1603.05027): (B, C, H, W) -> (B, C', H, W)."""

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


def is_light(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is a light network's. Raises `ImprintError` for any other kind of file."""
    with open_safetensors(Path(path), "an Imprint checkpoint or a light network") as file:
        return (file.metadata() or {}).get("format") == FORMAT


def read_light(path: str | os.PathLike) -> tuple[LightConfig, dict[str, torch.Tensor]]:
    """A light network's sizes and tensors as they are in its file, after verifying the checksum.

    Raises `ImprintError` for a file that is missing, a pickle, damaged, or not a light network's.
    """
    path = Path(path)
    with open_safetensors(path, "a light network") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or "config" not in metadata:
            raise ImprintError(
                f"{path} is a safetensors file, but holds no light network; give one that training.relight has written"
            )
        tensors = tensors_in(file, path)
    check_digest(path, metadata, tensors)
    try:
        values = json.loads(metadata["config"])
        if isinstance(values, dict) and values.keys() != asdict(LightConfig()).keys():
            raise ImprintError(
                f"its light network is described by {', '.join(values)}, and here by "
                f"{', '.join(asdict(LightConfig()))}; another version made the file"
            )
        return from_dict(LightConfig, values, "the light network's configuration"), tensors
    except (ValueError, RecursionError) as error:  # of which ImprintError is one
        raise ImprintError(
            f"{path}: {error}; train it again with this version, or use the network that comes with it"
        ) from error


def load_light(path: str | os.PathLike = SHIPPED_LIGHT) -> LightNet:
    """The light network of a file, in fp32 on the CPU, ready to be used.

    Raises `ImprintError` as `read_light` does, and for tensors of other names or shapes than the network's.
    """
    config, tensors = read_light(path)
    with Unfilled():
        net = LightNet(config)
    found, expected = (
        {name: tuple(value.shape) for name, value in each.items()} for each in (tensors, net.state_dict())
    )
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ImprintError(
            f"{path}: {len(odd)} tensors of the light network are missing, of another shape or not its own, '{odd[0]}' "
            "among them; another version made the file; train it again with this one, or use the network that comes "
            "with it"
        )
    net.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return net.eval().requires_grad_(False)


def at_full_speed(net: LightNet) -> LightNet:
    """The network, converted to fp32 if its CPU has no instructions for its precision: a hundred times faster."""
    if net.device.type == "cpu" and not (net.dtype == torch.bfloat16 and computes_in_bf16()):
        net.float()
    return net


def save_light(path: str | os.PathLike, net: LightNet, dtype: torch.dtype = torch.float16) -> None:
    """Write a light network; the file is complete or absent. dtype: of its tensors.

    Raises `ImprintError` if it cannot be written.
    """
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in net.state_dict().items()}
    config = json.dumps(asdict(net.config))
    metadata = {"format": FORMAT, "config": config, "sha256": digest(config, sorted(tensors.items()))}
    write_tensors(path, tensors, metadata)
