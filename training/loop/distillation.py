"""What a student learns from a frozen model instead of from pictures: its guidance, or to draw in a few steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from imprint.config import ImprintConfig, NoiseConfig
from imprint.matte import split_matte
from imprint.unet import with_background

from ..pairs.batches import Batch
from ..pairs.draw import Draw
from .losses import Predictor, hole_error, matte_loss

SUBSTEPS = 4
"""The teacher's steps for each of the student's."""


@dataclass(frozen=True)
class Guided:
    """A frozen model's prediction with classifier-free guidance (arXiv 2207.12598, equation 6), as a target to
    distil (Meng et al., arXiv 2210.03142, section 3.1, at a single scale). Where the object is dropped it is the
    unconditional prediction, so that guidance applied on top multiplies."""

    model: torch.nn.Module
    scale: float

    @torch.no_grad()
    def __call__(
        self, reference: torch.Tensor, seen: torch.Tensor, timesteps: torch.Tensor, dropped: torch.Tensor
    ) -> torch.Tensor:
        """Takes the model's arguments; returns (B, C, h, w)."""
        nothing = torch.ones_like(dropped)
        without, with_object = (self.model(reference, seen, timesteps, mask).float() for mask in (nothing, ~nothing))
        guided = torch.lerp(without, with_object, self.scale)
        return torch.where(dropped[:, None, None, None], without, guided)


class SamplingPath:
    """A sampling path in `steps` steps, each made of `SUBSTEPS` of DPM-Solver++ (2M) (arXiv 2211.01095, algorithm 2).

    Timesteps are spaced "trailing" (arXiv 2305.08891, section 3.3), as sampling spaces them: the first is the noisiest.
    Every step begins anew, with a substep of first order, and so does the last substep of all, which ends at the clean
    picture: that is how samplers take few steps. Rows of a batch may be at different places of the path.
    """

    def __init__(self, steps: int, noise: NoiseConfig, alpha_bar: torch.Tensor):
        """alpha_bar (T,): of `alphas_cumprod`."""
        self.steps, self.predicts_noise = steps, noise.prediction_type == "epsilon"
        count, device = steps * SUBSTEPS, alpha_bar.device
        times = torch.arange(noise.timesteps, 0, -noise.timesteps / count, device="cpu").round().long()[:count] - 1
        share = torch.cat([alpha_bar.double().cpu()[times], torch.ones(1, dtype=torch.float64, device="cpu")])
        signal, spread = share.sqrt(), (1 - share).sqrt()
        log_snr = (signal / spread).log().tolist()
        first = [index for index in range(count) if index % SUBSTEPS == 0 or index == count - 1]
        ratios = [
            0.0 if index in first else (log_snr[index + 1] - log_snr[index]) / (log_snr[index] - log_snr[index - 1]) / 2
            for index in range(count)
        ]
        self.times = times.to(device)
        self.signal, self.spread = signal.float().to(device), spread.float().to(device)
        self.ratios = torch.tensor(ratios, device=device)

    def clean(self, output: torch.Tensor, noisy: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The clean latents implied by a prediction (B, C, h, w); place (B,): indices of substeps."""
        signal, spread = _rows(self.signal[place]), _rows(self.spread[place])
        return (noisy - spread * output) / signal if self.predicts_noise else signal * noisy - spread * output

    def prediction(self, clean: torch.Tensor, noisy: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The inverse of `clean`."""
        signal, spread = _rows(self.signal[place]), _rows(self.spread[place])
        return (noisy - signal * clean) / spread if self.predicts_noise else (signal * noisy - clean) / spread

    def moved(self, noisy: torch.Tensor, clean: torch.Tensor, place: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """DDIM's step without noise (arXiv 2010.02502, equation 12) between places (B,), towards `clean`."""
        kept = _rows(self.spread[to] / self.spread[place])
        return kept * noisy + (_rows(self.signal[to]) - _rows(self.signal[place]) * kept) * clean

    def towards(self, moved: torch.Tensor, noisy: torch.Tensor, place: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """The clean latents for which `moved` leads to these latents (arXiv 2202.00512, appendix G)."""
        kept = _rows(self.spread[to] / self.spread[place])
        return (moved - kept * noisy) / (_rows(self.signal[to]) - _rows(self.signal[place]) * kept)


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def few_steps_loss(
    model: Predictor,
    teacher: Predictor,
    path: SamplingPath,
    batch: Batch,
    config: ImprintConfig,
    draw: Draw,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each sample's mean squared error in the hole, the matte's loss, and timesteps: all (B,).

    Progressive distillation (Salimans and Ho, arXiv 2202.00512, algorithm 2) to `path.steps` steps at once: the target
    is the prediction with which one step leads where `SUBSTEPS` of the teacher's lead. A step starts from pure noise or
    from where the student's own steps before it have led, since that is what it will meet in sampling. The matte, which
    sampling reads at the last step, learns the teacher's of its last substep: it belongs to the picture drawn.
    """
    hole, background = batch.hole.float(), batch.background.float()
    noise = draw.normal(tuple(batch.target.shape))
    step = draw.integers(path.steps, len(noise))
    dropped = draw.chance(dropout, len(noise))

    def evaluated(predictor: Predictor, noisy: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = with_background(noisy, background, hole, config)
        return split_matte(predictor(batch.reference, seen, path.times[place], dropped).float(), config)

    noisy = noise
    with torch.no_grad():
        for before in range(path.steps - 1):
            place = torch.full_like(step, before * SUBSTEPS)
            output, _ = evaluated(model, noisy, place)
            further = path.moved(noisy, path.clean(output, noisy, place), place, place + SUBSTEPS)
            noisy = torch.where(_rows(step > before), further, noisy)
        start = step * SUBSTEPS
        latents, last = noisy, None
        for place in (start + index for index in range(SUBSTEPS)):
            output, logits = evaluated(teacher, latents, place)
            clean = path.clean(output, latents, place)
            corrected = clean if last is None else torch.lerp(last, clean, 1 + _rows(path.ratios[place]))
            latents, last = path.moved(latents, corrected, place, place + 1), clean
        target = path.prediction(path.towards(latents, noisy, start, start + SUBSTEPS), noisy, start)
        matte = logits.sigmoid()
    output, logits = evaluated(model, noisy, start)
    last_step = (step == path.steps - 1).float()
    return hole_error(output, target, hole), matte_loss(logits, matte, hole, last_step), path.times[start]
