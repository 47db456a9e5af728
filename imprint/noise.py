"""The forward process, the same numbers for training, diffusers and ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .config import NoiseConfig

if TYPE_CHECKING:
    from diffusers import EulerDiscreteScheduler

# Exactly zero would make sigma infinite; this is the value that ComfyUI puts there, so that both walk the same
# schedule.
_LAST_ALPHA_BAR = 4.8973451890853435e-08


def alphas_cumprod(config: NoiseConfig) -> torch.Tensor:
    """(T,) float64: the share of signal power at each timestep, SD's scaled-linear schedule.

    With zero terminal SNR the square roots are shifted and scaled so that the last is 0 and the first stays (Lin et
    al., arXiv 2305.08891, algorithm 1).
    """
    ends = config.beta_start**0.5, config.beta_end**0.5
    alpha_bar = (1 - torch.linspace(*ends, config.timesteps, dtype=torch.float64) ** 2).cumprod(0)
    if config.zero_terminal_snr:
        root = alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alpha_bar = root**2
        alpha_bar[-1] = _LAST_ALPHA_BAR
    return alpha_bar


def make_scheduler(config: NoiseConfig) -> EulerDiscreteScheduler:
    """diffusers' Euler scheduler on this process; any other can be built with
    `OtherScheduler.from_config(scheduler.config)`."""
    from diffusers import EulerDiscreteScheduler

    alpha_bar = alphas_cumprod(config)
    alphas = alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=config.timesteps,
        trained_betas=(1 - alphas).tolist(),
        prediction_type=config.prediction_type,
        timestep_spacing=config.timestep_spacing,
        steps_offset=1,  # as latent diffusion's samplers, whose last timestep is 1; "trailing" takes no notice
    )
    # For those made of it: DDIM and DDPM would clip latents to [-1, 1], and DDIM end at no noise where its authors'
    # does not.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=config.timestep_spacing == "trailing")
    return scheduler
