"""Validation: losses on held-out pairs, and sample pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from imprint.config import ImprintConfig
from imprint.images import tensor_to_image
from imprint.matte import matte_pixels
from imprint.noise import make_scheduler
from imprint.pipeline import ImprintPipeline
from imprint.saving import save_image
from imprint.vae import decode

from ..pairs.batches import Batch
from ..pairs.draw import Draw
from ..settings import Train
from .losses import translation_loss
from .model import Model
from .source import AnyPairMaker, BatchSource

SIZE = 128  # pairs, the same for every run of a stage
PART = 16  # of them at once, whatever --batch and --chunk: the random numbers depend on it
SHOWN = 16  # of them that are written as pictures


class Validation:
    """Held-out pairs of a stage; the seed is fixed, so that all runs are evaluated on the same pairs."""

    def __init__(
        self,
        maker: AnyPairMaker,
        autoencoder: torch.nn.Module,
        settings: Train,
        accelerator: Accelerator,
        losses: Callable[[Model, Batch, Draw], tuple[torch.Tensor, torch.Tensor]],
    ):
        """losses: each pair's loss and its matte's, both (B,)."""
        self.autoencoder, self.settings, self.accelerator = autoencoder, settings, accelerator
        self.maker, self.losses = maker, losses
        self.config: ImprintConfig = maker.config
        source = BatchSource(
            maker, autoencoder, dataclasses.replace(settings, seed=0, chunk=PART), 0, accelerator.device
        )
        self.pairs = source.make(SIZE, source.generator(4))

    @torch.no_grad()
    def measure(self, model: Model, nothing: torch.Tensor | None = None) -> dict[str, float]:
        """The model's losses, with fixed noise and nothing dropped.

        nothing: the empty caption's tokens, if the pairs have captions.
        """
        draw = Draw(torch.Generator(self.accelerator.device).manual_seed(0))
        losses, translated = [], []
        with self.accelerator.autocast():
            for start in range(0, len(self.pairs.target), PART):
                part = self.pairs[slice(start, start + PART)]
                losses.append(self.losses(model, part, draw))
                if nothing is not None:
                    translated.append(translation_loss(model, part, nothing, draw))
        loss, matte = (torch.cat(part).mean().item() for part in zip(*losses))
        values = {"held_out_loss": loss, "held_out_matte_loss": matte}
        if translated:
            values["held_out_translation_loss"] = torch.cat(translated).mean().item()
        return values

    @torch.no_grad()
    def sample(self, model: Model, pictures: int) -> None:
        """A grid of reference, background, composite, alpha if there is a matte, and target, after so many pictures."""
        batch = self.pairs[slice(0, min(SHOWN, self.settings.batch))]
        pipeline = ImprintPipeline(
            vae=self.autoencoder,
            encoder=model.encoder,
            adapter=model.adapter,
            unet=model.unet,
            scheduler=make_scheduler(self.config.noise),
            model_config=self.config,
        )
        pipeline.set_progress_bar_config(disable=True)
        device = self.accelerator.device
        noise = torch.randn(batch.target.shape, generator=torch.Generator(device).manual_seed(0), device=device)
        with self.accelerator.autocast():
            context = model.context(batch.reference)
            background, steps = batch.background.float(), self.settings.distill_steps
            latents, logits = pipeline.denoise(context, background, batch.hole, noise, steps)
            shown = [
                decode(self.autoencoder, z.float(), self.config.latent)
                for z in (batch.background, latents, batch.target)
            ]
            if self.config.matte:
                alpha, _ = matte_pixels(logits, batch.hole, self.config)
                shown.insert(2, alpha[:, None].expand(-1, 3, -1, -1))
        side = shown[0].shape[-1]
        reference = F.interpolate(batch.reference.float() / 255, (side, side), mode="bilinear", antialias=True)
        rows = torch.cat([reference, *(picture.float() for picture in shown)], 3)
        half = math.ceil(len(rows) / 2)
        grid = torch.cat([torch.cat(list(rows[:half]), 1), torch.cat(list(rows[-half:]), 1)], 2)
        save_image(tensor_to_image(grid), self.settings.output / f"samples-{pictures:09d}.png")
        for tracker in self.accelerator.trackers:
            tracker.log_images({"samples": grid[None].cpu()}, step=pictures)
