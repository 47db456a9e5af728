"""The losses and the sampling of timesteps, each equation with its source. The loop is in `run`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from imprint.config import ImprintConfig, NoiseConfig
from imprint.matte import split_matte
from imprint.unet import with_background

from ..pairs.batches import Batch
from ..pairs.draw import Draw

MIN_SNR_GAMMA = 5.0  # the paper's own choice
PYRAMID_LEVELS = 4  # the last is an eighth of the size, as a latent

Predictor = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes `Model`'s arguments and returns the UNet's output (B, C, h, w)."""


def draw_timesteps(count: int, config: NoiseConfig, kind: str, draw: Draw) -> torch.Tensor:
    """(count,) int64 timesteps in [0, T).

    `uniform` is DDPM's (arXiv 2006.11239, algorithm 1). `logit-normal` is T times the sigmoid of a standard normal
    (Esser et al., arXiv 2403.03206, section 3.1, with its m = 0 and s = 1): more of the middle, where prediction is
    neither trivial nor hopeless, and hardly any at both ends.
    """
    if kind == "uniform":
        return draw.integers(config.timesteps, count)
    place = draw.normal(count).sigmoid()
    return (place * config.timesteps).long().clamp(max=config.timesteps - 1)


def loss_weights(signal: torch.Tensor, config: NoiseConfig, kind: str) -> torch.Tensor:
    """The weight of each sample's squared error, (B,), from alpha_bar at its timestep, the signal's share of power.

    `plain` is 1, the papers' own loss. `min-snr` (Hang et al., arXiv 2303.09556, section 3.4) weights the error of the
    picture implied by a prediction by min(SNR, gamma), with SNR = alpha_bar / (1 - alpha_bar): for a prediction of
    eps that is min(SNR, gamma) / SNR, and of v min(SNR, gamma) / (SNR + 1). With zero terminal SNR
    the last timesteps would hardly be learned, and the very last not at all, although sampling starts there. The plain
    loss of v weights the implied picture's error by SNR + 1 (arXiv 2202.00512, section 4), so for v that is clamped.
    """
    if kind == "plain":
        return torch.ones_like(signal)
    snr = signal / (1 - signal)
    plain = snr if config.prediction_type == "epsilon" else snr + 1
    return (plain if config.zero_terminal_snr else snr).clamp(max=MIN_SNR_GAMMA) / plain


def diffusion_loss(
    model: torch.nn.Module,
    batch: Batch,
    config: ImprintConfig,
    alpha_bar: torch.Tensor,
    draw: Draw,
    dropout: float = 0.0,
    timesteps: torch.Tensor | None = None,
    teacher: Predictor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's mean squared error in the hole, and the matte's loss: both (B,).

    z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps (Ho et al., arXiv 2006.11239, equation 4); the target is eps, or v =
    sqrt(a_t) eps - sqrt(1 - a_t) z_0 (Salimans and Ho, arXiv 2202.00512, section 4). The loss is IMPRINT's `|| eps -
    G(z_t, t, E(I)) ||^2` (section 3.1), restricted to the hole (section 3.2). timesteps (B,): by default drawn
    uniformly. dropout: the probability of dropping the object, for classifier-free guidance. With a teacher, the target
    is its prediction.
    """
    count = len(batch.target)
    if timesteps is None:
        timesteps = draw_timesteps(count, config.noise, "uniform", draw)
    noise = draw.normal(tuple(batch.target.shape))
    dropped = draw.chance(dropout, count)
    signal, spread = (share.sqrt()[:, None, None, None] for share in (alpha_bar[timesteps], 1 - alpha_bar[timesteps]))
    clean = batch.target.float()
    noisy = signal * clean + spread * noise
    target = noise if config.noise.prediction_type == "epsilon" else signal * noise - spread * clean
    seen = with_background(noisy, batch.background.float(), batch.hole.float(), config)
    prediction, logits = split_matte(model(batch.reference, seen, timesteps, dropped).float(), config)
    if teacher:
        target, _ = split_matte(teacher(batch.reference, seen, timesteps, dropped), config)
    return hole_error(prediction, target, batch.hole), matte_loss(logits, batch.matte, batch.hole, alpha_bar[timesteps])


def hole_error(prediction: torch.Tensor, target: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The mean squared error (B,) of (B, C, h, w) in the hole (B, 1, h, w)."""
    error = (F.mse_loss(prediction, target, reduction="none") * hole).sum((1, 2, 3))
    return error / (hole.sum((1, 2, 3)) * target.shape[1])


def matte_loss(logits: torch.Tensor, matte: torch.Tensor, hole: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of alpha and shadow in the hole where they are known: (B,), 0 for a model without a matte.

    logits, matte (B, 2 * matte**2, h, w), -1 where the matte is unknown. Weighted by the signal's share of power (B,):
    pure noise tells nothing, and the matte is read where there is little noise, at sampling's last evaluation (with 20
    steps timestep 49, where the signal's share is 95 %; with 8 steps timestep 124, 85 %).
    """
    target = matte.float()
    known = (target >= 0) * hole
    error = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none") * known
    return signal * error.sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)


def translation_loss(
    model: torch.nn.Module,
    batch: Batch,
    nothing: torch.Tensor,
    draw: Draw,
    dropout: float = 0.0,
) -> torch.Tensor:
    """ObjectStitch's translation loss `|| T(E(I)) - C(text) ||_1` (arXiv 2212.00932, section 3.2): (B,).

    The adapter T turns an image's tokens E(I) into those C(text) that the text encoder gives for its caption,
    `batch.text` (B, M, W); both encoders are frozen. ObjectStitch's adapter has as many tokens as the text, and so
    has ours of kind `conv`. Kind `tokens` has more, and no patch corresponds to a word: its neighbouring tokens are
    averaged down to M, which pulls the adapter's output to the range of text tokens while keeping all of them. Dropped
    conditions are pulled towards the empty caption's tokens, `nothing` (1, M, W): guidance then starts from Stable
    Diffusion's own.
    """
    dropped = draw.chance(dropout, len(batch.reference))
    context = model(batch.reference, None, None, dropped).float()
    text = torch.where(dropped[:, None, None], nothing.to(batch.text), batch.text).float()
    tokens = min(context.shape[1], text.shape[1])
    context, text = (F.adaptive_avg_pool1d(each.transpose(1, 2), tokens) for each in (context, text))
    return F.l1_loss(context, text, reduction="none").mean((1, 2))


# --- pictures --------------------------------------------------------------------------------------------------------


def structural_similarity(picture: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIM at every pixel (Wang et al. 2004, equation 13), of pictures (B, C, H, W) in [0, 1]; 1 = alike.

    The Gaussian window of 11 pixels has a standard deviation of 1.5; pictures are reflected at their borders.
    """
    line = torch.exp(-((torch.arange(-5, 6, device=picture.device) / 1.5) ** 2) / 2)
    line = line / line.sum()

    def blurred(values: torch.Tensor) -> torch.Tensor:
        flat = F.pad(values.flatten(0, 1)[:, None], (5,) * 4, "reflect")
        return F.conv2d(F.conv2d(flat, line[None, None, None]), line[None, None, :, None]).view_as(values)

    mean, other = blurred(picture), blurred(target)
    spread = blurred(picture.square()) - mean.square()
    other_spread = blurred(target.square()) - other.square()
    shared = blurred(picture * target) - mean * other
    luminance = (2 * mean * other + 0.01**2) / (mean.square() + other.square() + 0.01**2)
    return luminance * (2 * shared + 0.03**2) / (spread + other_spread + 0.03**2)


def laplacian(pictures: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """(B, C, H, W) -> its Laplacian pyramid, finest level first, with the low-pass residual last."""
    bands = []
    for _ in range(levels - 1):
        half = F.avg_pool2d(pictures, 2)
        bands.append(pictures - F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False))
        pictures = half
    return [*bands, pictures]


def reconstruction_loss(picture: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The L1 distance of pictures (B, 3, H, W) and of the levels of their Laplacian pyramids: a scalar.

    The pyramid (Bojanowski et al., arXiv 1707.05776) makes edges at every scale count as well as the colours of areas.
    """
    levels = zip(laplacian(picture, PYRAMID_LEVELS), laplacian(target, PYRAMID_LEVELS))
    return F.l1_loss(picture, target) + sum(F.l1_loss(ours, theirs) for ours, theirs in levels)
