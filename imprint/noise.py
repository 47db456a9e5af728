"""The forward process, the same numbers for training, diffusers and ComfyUI."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from .config import NoiseConfig
from .errors import ImprintError, require_number

if TYPE_CHECKING:
    from diffusers import EulerDiscreteScheduler, SchedulerMixin

FINITE_SIGMA = 14.7
"""Where second-order samplers start: at Stable Diffusion's largest sigma, for which they were designed. In a step from
the largest sigma of a zero-terminal-SNR process, 4,518, which stands for infinity, they multiply the difference of two
predictions by it: the picture changes colour, or is garbage."""

# Exactly zero would make sigma infinite; this is ComfyUI's value, so that both follow the same schedule.
_LAST_ALPHA_BAR = 4.8973451890853435e-08


def alphas_cumprod(config: NoiseConfig) -> torch.Tensor:
    """(T,) float64: the signal's share of power at each timestep, SD's scaled-linear schedule.

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
        steps_offset=1,  # as latent diffusion's samplers, whose last timestep is 1; "trailing" ignores it
    )
    # For those made of it: DDIM and DDPM would clip latents to [-1, 1], and DDIM end at no noise where its authors'
    # does not.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=config.timestep_spacing == "trailing")
    return scheduler


def check_sampling(config: NoiseConfig, steps: int, guidance: float | None = None, eta: float | None = None) -> None:
    """Raise `ImprintError` for values that no sampler of this process takes."""
    require_number("steps", steps, 1, config.timesteps, whole=True)
    for name, value in (("guidance", guidance), ("eta", eta)):
        if value is not None:
            require_number(name, value)


def with_timesteps(scheduler: SchedulerMixin, steps: int) -> SchedulerMixin:
    """The scheduler, set to this many steps, with its schedule on the CPU; if of second order, a copy that starts at
    `FINITE_SIGMA` at most.

    Raises `ImprintError` for a scheduler of another process than `alphas_cumprod`'s, and for too few steps.
    """
    name = type(scheduler).__name__
    if not all(hasattr(scheduler, each) for each in ("alphas_cumprod", "add_noise", "scale_model_input", "order")):
        raise ImprintError(
            f"{name} has another noise process than this model was trained on, so its pictures would be noise; take "
            "one with the same process, such as EulerDiscreteScheduler, DPMSolverMultistepScheduler or DDIMScheduler"
        )
    try:
        inspect.signature(scheduler.step).bind("prediction", "timestep", "sample")
    except TypeError as error:
        raise ImprintError(
            f"{name} needs more inputs at each step than the pipeline has ({error}); take another"
        ) from error
    if scheduler.order > 1:
        sigmas = (1 / scheduler.alphas_cumprod - 1).sqrt()
        count = int((sigmas <= FINITE_SIGMA).sum())
        if count < len(sigmas):
            betas = scheduler.betas[:count].tolist()
            scheduler = type(scheduler).from_config(scheduler.config, trained_betas=betas, num_train_timesteps=count)
    try:
        scheduler.set_timesteps(max(steps, 2), device="cpu")  # a single timestep has no direction
        to_noise = bool(scheduler.timesteps[0] < scheduler.timesteps[-1])
        if steps == 1:
            scheduler.set_timesteps(1, device="cpu")
    except ValueError as error:
        raise ImprintError(f"{name} cannot take {steps} step(s) ({error}); give more, or another scheduler") from error
    if to_noise:
        raise ImprintError(f"{name} goes from a picture to noise; take the scheduler that goes the other way")
    return scheduler
