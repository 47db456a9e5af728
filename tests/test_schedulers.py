"""diffusers' schedulers: those that the pipeline accepts, what they draw, and the noise schedule itself."""

import copy
import dataclasses

import diffusers
import pytest
import torch
from drawing import DrawingPipeline, blend_of, run
from micro import seeded
from PIL import Image

from imprint.checkpoint import SHIPPED
from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.mask_reading import mask_to_tensor
from imprint.noise import alphas_cumprod, make_scheduler
from imprint.preprocess import bounding_boxes

SCHEDULERS = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
]


def test_pipelines_that_share_modules_draw_at_the_same_time(pipeline, scene):
    """As the pipeline's docstring says: with a scheduler each, a drawing inside another one's steps changes neither."""
    other = type(pipeline)(**pipeline.components | {"scheduler": copy.deepcopy(pipeline.scheduler)})
    alone = run(pipeline, scene, num_inference_steps=3).images[0]
    inside = []

    def draw(_pipeline, _step, _timestep, given):
        inside.append(run(other, scene, num_inference_steps=2).images[0])
        return given

    assert torch.equal(run(pipeline, scene, num_inference_steps=3, callback_on_step_end=draw).images[0], alone)
    assert len(inside) == 3 and all(torch.equal(each, inside[0]) for each in inside)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_other_schedulers(pipeline, scene, name, prediction):
    noise = pipeline.model_config.noise
    if prediction == "epsilon":
        noise = dataclasses.replace(noise, prediction_type="epsilon", zero_terminal_snr=False)
    own = make_scheduler(noise)
    pipeline.scheduler = getattr(diffusers, name).from_config(own.config)
    within = blend_of(scene[2], pipeline.model_config)
    image = run(pipeline, scene, num_inference_steps=4).images[0]
    assert bool(image.isfinite().all())
    assert torch.equal(image[:, ~within], image_to_tensor(scene[1])[0][:, ~within])
    assert torch.equal(image, run(pipeline, scene, num_inference_steps=4).images[0])


@pytest.fixture(scope="module")
def colours():
    """The shipped checkpoint's drawing of one object with a scheduler and number of steps, in 6 x 6 broad colours."""
    pipeline = DrawingPipeline.from_checkpoint()
    own = pipeline.scheduler
    views = [Image.open(SHIPPED.parent / "samples" / f"{name}.png") for name in ("object", "background", "hole")]
    top, left, bottom, right = bounding_boxes(mask_to_tensor(views[2]))[0].tolist()

    def draw(name: str, steps: int) -> torch.Tensor:
        pipeline.scheduler = getattr(diffusers, name).from_config(own.config)
        drawn = run(pipeline, views, guidance_scale=1.0, num_inference_steps=steps, resolution=128, detail=0.0).images
        return torch.nn.functional.adaptive_avg_pool2d(drawn[..., top:bottom, left:right], 6)

    return draw


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_a_sampler_of_second_order_draws_what_euler_draws(colours, name):
    """From sigma 4,518 these gave another colour, or garbage."""
    euler = colours("EulerDiscreteScheduler", 8)
    for steps in (4, 8):
        assert (colours(name, steps) - euler).abs().mean() < 0.08, steps


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscrete", "IPNDM", "EDMEuler", "DDIMInverse", "DPMSolverMultistepInverse", "CogVideoXDPM"]
)
def test_schedulers_that_do_not_fit_are_refused(pipeline, scene, name):
    for steps in (None, 1):
        pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)
        with pytest.raises(ImprintError, match=f"{name}Scheduler .* take "):
            run(pipeline, scene, num_inference_steps=steps, fit="fill")


def test_too_few_steps_for_a_scheduler(pipeline, scene):
    pipeline.scheduler = diffusers.PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ImprintError, match=r"PNDMScheduler cannot take 1 step.*give more"):
        run(pipeline, scene, num_inference_steps=1)


def test_eta_reaches_the_schedulers_that_take_it(pipeline, scene):
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    still, noisy = (run(pipeline, scene, eta=eta).images for eta in (0.0, 1.0))
    assert not torch.equal(still, noisy)
    assert torch.equal(noisy, run(pipeline, scene, eta=1.0).images)


class Oracle(torch.nn.Module):
    """Stands in for the UNet: knows the clean latents, and predicts v exactly for them."""

    dtype = torch.float32

    def __init__(self, clean: torch.Tensor, alpha_bar: torch.Tensor):
        super().__init__()
        self.clean, self.alpha_bar = clean, alpha_bar.float()

    def forward(self, sample, timestep, context, **_others):
        share = self.alpha_bar[timestep.long()]
        noise = (sample - share.sqrt() * self.clean) / (1 - share).sqrt()
        value = share.sqrt() * noise - (1 - share).sqrt() * self.clean
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=value)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", *SCHEDULERS[:3]])
def test_a_perfect_unet_is_sampled_to_its_picture(pipeline, name):
    """The noise schedule, its scaling and every scheduler agree with training's equation, starting at pure noise."""
    clean = torch.randn(1, 4, 8, 8, generator=seeded(3))
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    noise_config, hole = pipeline.model_config.noise, torch.ones(1, 1, 8, 8)
    pipeline.unet = Oracle(clean, alphas_cumprod(noise_config))
    context = torch.zeros(1, 5, 32)
    made, _ = pipeline.denoise(
        context, torch.zeros_like(clean), hole, torch.randn(clean.shape, generator=seeded()), 12, 1.0
    )
    assert (made - clean).abs().max() < 0.02


@pytest.mark.parametrize("name", PRESETS)
def test_the_schedule_is_stable_diffusion_s(name):
    config = PRESETS[name].noise
    plain = dataclasses.replace(config, zero_terminal_snr=False)
    expected = diffusers.DDIMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert torch.allclose(alphas_cumprod(plain).float(), expected, atol=1e-5)
    if config.zero_terminal_snr:
        rescaled = diffusers.DDIMScheduler(
            1000, 0.00085, 0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
        ).alphas_cumprod
        assert torch.allclose(alphas_cumprod(config).float(), rescaled, atol=1e-5)
        assert 0 < alphas_cumprod(config)[-1] < 1e-6  # not quite zero: sigma must be a number
    scheduler = make_scheduler(config)
    assert torch.allclose(scheduler.alphas_cumprod, alphas_cumprod(config).float(), rtol=1e-3, atol=1e-7)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999 and bool(scheduler.sigmas.isfinite().all())
