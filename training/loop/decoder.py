"""Fine-tuning the autoencoder's decoder."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from imprint.checkpoint import Checkpoint, load_checkpoint, save_computed
from imprint.config import LatentConfig
from imprint.errors import ImprintError
from imprint.files import require_writable
from imprint.images import tensor_to_image
from imprint.model import load_modules
from imprint.saving import save_computed as save_computed_picture
from imprint.vae import build_autoencoder, decode, encode

from ..data.shards import SPLITS
from ..pairs.pair_maker import PairMaker
from ..settings import Train, TuneDecoder
from .losses import reconstruction_loss, structural_similarity
from .model import with_matte
from .source import open_pair_maker

PART = 32  # held-out pictures per batch
SHOWN = 8  # of them that are written as pictures


@dataclass
class HeldOut:
    """Held-out pictures, and the latents to decode them from."""

    target: torch.Tensor
    """(N, 3, R, R)."""
    latents: torch.Tensor
    """(N, C, h, w) as the UNet sees them."""
    object: torch.Tensor
    """(N, 1, R, R) of 0 and 1."""
    latent: LatentConfig

    @classmethod
    @torch.no_grad()
    def make(cls, maker: PairMaker, autoencoder: torch.nn.Module, count: int) -> HeldOut:
        """The same pictures in every run on the same device."""
        config, device = maker.config, maker.photos.rgb.device
        generator = torch.Generator(device).manual_seed(0)
        parts, number = [], math.ceil(count / PART)
        for index in range(number):
            pairs = maker(count, generator, (index, number))
            alpha = F.pixel_shuffle(pairs.matte, config.matte)[:, :1]
            parts.append((pairs.target, encode(autoencoder, pairs.target, config.latent), (alpha > 0.5).float()))
        return cls(*(torch.cat(part) for part in zip(*parts)), config.latent)

    @torch.no_grad()
    def decoded(self, autoencoder: torch.nn.Module) -> torch.Tensor:
        """(N, 3, R, R), decoded as composites are."""
        return torch.cat([decode(autoencoder, part, self.latent) for part in self.latents.split(PART)])

    def measure(self, decoded: torch.Tensor) -> dict[str, float]:
        """Means over the pictures: peak signal-to-noise ratio in dB, structural similarity, and detail.

        The last is the strength of `detail` relative to the target's: below 1 is blurred, above is sharpened or noisy.
        """
        error, similarity = (decoded - self.target).square(), structural_similarity(decoded, self.target)
        ours, theirs = (detail(pictures).square() for pictures in (decoded, self.target))
        values = {}
        for place, mask in (("picture", torch.ones_like(self.object)), ("object", self.object)):
            values[f"PSNR, {place}"] = (-10 * _mean_in(error, mask).log10()).nanmean().item()
            values[f"SSIM, {place}"] = _mean_in(similarity, mask).nanmean().item()
            strengths = (_mean_in(band, mask).sqrt().nanmean() for band in (ours, theirs))
            values[f"detail, {place}"] = torch.div(*strengths).item()
        return values


def _mean_in(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) and (B, 1, H, W) -> (B,) means where the mask is 1; NaN if it is 1 nowhere."""
    return (values * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * values.shape[1])


def load_taesd(checkpoint: Checkpoint, device: torch.device) -> torch.nn.Module:
    """The checkpoint's TAESD in fp32, with a trainable decoder. Raises `ImprintError` if it has none."""
    if (kind := checkpoint.config.latent.autoencoder) != "tiny":
        raise ImprintError(
            f"{checkpoint.path} has an autoencoder of kind '{kind}'; only the decoder of 'tiny', TAESD, is trained here"
        )
    if "vae" not in checkpoint.parts:
        raise ImprintError(
            f"{checkpoint.path} has no autoencoder; export it with one, as training.train does, and give that file"
        )
    autoencoder = build_autoencoder(checkpoint.config.latent)
    load_modules({"vae": autoencoder}, checkpoint)
    autoencoder.encoder.requires_grad_(False)
    return autoencoder.to(device, memory_format=torch.channels_last)


def fine_tune(
    autoencoder: torch.nn.Module, maker: PairMaker, options: TuneDecoder, device: torch.device, began: float
) -> None:
    """Train the decoder on fresh pictures until `--images` are done, or `--time-limit` seconds have passed since
    `began`.

    The target for detail, structures below about 4 pixels, is `--keep` times what the decoder drew initially plus 1 -
    `--keep` times the target's. With the target alone, detail that a latent does not determine would become its
    average, a blur; a mixture of the two is optimal at each degree of sharpness (Freirich et al., arXiv 2107.02555).

    The learning rate follows a cosine to 0 at whichever of the two limits is nearer. Raises `ImprintError` for a loss
    that is not finite.
    """
    latent, decoder, on_gpu = maker.config.latent, autoencoder.decoder, device.type == "cuda"
    original = copy.deepcopy(decoder).requires_grad_(False)
    draw, draw_as_before = map(torch.compile, (decoder, original)) if options.compile else (decoder, original)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0, fused=on_gpu)
    generator = torch.Generator(device).manual_seed(options.seed)
    start, steps = time.monotonic(), math.ceil(options.images / options.batch)
    seconds = math.inf if options.time_limit is None else max(options.time_limit - (start - began), 1e-3)
    with tqdm(total=steps * options.batch, unit="picture", mininterval=1) as bar:
        while (progress := max(bar.n / bar.total, (time.monotonic() - start) / seconds)) < 1 or bar.n == 0:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
            target = maker(options.batch, generator).target.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                latents = encode(autoencoder, target, latent) / latent.scale_factor
                before, drawn = draw_as_before(latents) / 2 + 0.5, draw(latents) / 2 + 0.5
            wanted = target + options.keep * (detail(before.float()) - detail(target))
            loss = reconstruction_loss(drawn.float(), wanted)  # without the clamp of `decode`, which has no gradient
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(value := loss.item()):
                raise ImprintError(f"the loss is {value} after {bar.n} pictures; lower --lr. Nothing was written")
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update(options.batch)


def detail(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> what is lost when the picture is reduced to a quarter of its size."""
    quarter = F.avg_pool2d(pictures, 4)
    return pictures - F.interpolate(quarter, scale_factor=4, mode="bilinear", align_corners=False)


def tune(options: TuneDecoder) -> None:
    """Train, write the checkpoint with a picture beside it, and print the change on the held-out pictures."""
    began, picture = time.monotonic(), options.output.with_suffix(".png")
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    for path in (options.output, picture):
        require_writable(path)
    checkpoint = load_checkpoint(options.checkpoint)
    autoencoder = load_taesd(checkpoint, device)
    config = with_matte(checkpoint, checkpoint.config.latent.downscale).config  # with alpha at every pixel
    given = dict(output=options.output, cutouts=options.cutouts, photos=options.photos, limit=options.limit)
    settings = Train.of("compositing", **given)
    maker, held_out = (open_pair_maker(settings, config, split, device, (0, 1)) for split in SPLITS)
    held_out = HeldOut.make(held_out, autoencoder, options.held_out)
    before = held_out.decoded(autoencoder)
    fine_tune(autoencoder, maker, options, device, began)

    weights = checkpoint.parts["vae"]
    tuned = {name: value.to(weights[name]) for name, value in autoencoder.decoder.state_dict(prefix="decoder.").items()}
    result = replace(checkpoint, parts=checkpoint.parts | {"vae": weights | tuned})
    load_modules({"vae": autoencoder}, result)  # measured with the file's own, rounded weights
    after = held_out.decoded(autoencoder)
    save_computed(result, options.output)
    rows = torch.cat([held_out.target, before, after], 3)[:SHOWN]
    save_computed_picture(tensor_to_image(torch.cat(list(rows), 1)), picture)
    print(f"{options.output}; target, before and after: {picture}")
    print(f"{options.held_out} held-out pictures of {maker.config.resolution} px: before, after")
    for (name, old), new in zip(held_out.measure(before).items(), held_out.measure(after).values()):
        print(f"{name:16} {old:8.4f} {new:8.4f}")
