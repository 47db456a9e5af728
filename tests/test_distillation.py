"""Distillation to few steps: the teacher's path against diffusers' sampler, and the loss against what it promises."""

import dataclasses

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from micro import matte_config, micro_config, seeded
from test_losses import batch_of

from imprint.config import ImprintConfig
from imprint.noise import alphas_cumprod, make_scheduler
from training.loop.distillation import SUBSTEPS, SamplingPath, few_steps_loss
from training.pairs.draw import Draw


def config_of(prediction: str) -> ImprintConfig:
    config = micro_config()
    zero = prediction == "v_prediction"
    return dataclasses.replace(
        config, noise=dataclasses.replace(config.noise, prediction_type=prediction, zero_terminal_snr=zero)
    )


def path_of(config: ImprintConfig, steps: int) -> SamplingPath:
    return SamplingPath(steps, config.noise, alphas_cumprod(config.noise).float())


def drawn_to(colour: torch.Tensor, path: SamplingPath):
    """A model whose every prediction implies the clean latents `colour`."""

    def predictor(reference, seen, timesteps, dropped):
        place = (path.times[None] == timesteps[:, None]).long().argmax(1)
        return path.prediction(colour.expand_as(seen), seen, place)

    return predictor


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_teacher_s_path_is_diffusers_dpm_plus_plus(prediction):
    """In one step of the student the teacher takes `SUBSTEPS` of the sampler that few-step drawing uses."""
    config = config_of(prediction)
    path, batch, found = path_of(config, 1), batch_of(3), []
    batch.hole[:] = 1

    def teacher(reference, seen, timesteps, dropped):
        return torch.tanh(seen * 0.7) * (1 + timesteps[:, None, None, None] / 2000)

    def student(reference, seen, timesteps, dropped):
        found.append(seen)
        return torch.zeros_like(seen)

    error, _, timesteps = few_steps_loss(student, teacher, path, batch, config, Draw(seeded(1)))
    scheduler = DPMSolverMultistepScheduler.from_config(make_scheduler(config.noise).config)
    scheduler.set_timesteps(SUBSTEPS)
    assert path.times.tolist() == scheduler.timesteps.tolist() and timesteps.tolist() == [path.times[0]] * 3
    noise = latents = found[0]
    for timestep in scheduler.timesteps:
        output = teacher(None, latents, timestep.expand(3), None)
        latents = scheduler.step(output, timestep, latents).prev_sample
    start = torch.zeros(3, dtype=torch.long)
    wanted = path.prediction(latents, noise, start)
    torch.testing.assert_close(error, wanted.square().mean((1, 2, 3)), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_student_that_leads_where_the_teacher_leads_has_no_loss(prediction, steps):
    """A path to one picture is straight, so that the teacher itself takes it in any number of steps."""
    config = config_of(prediction)
    path, batch = path_of(config, steps), batch_of(64)
    teacher = drawn_to(torch.tensor([0.5, -1.0, 0.2, 0.0])[None, :, None, None], path)
    error, _, timesteps = few_steps_loss(teacher, teacher, path, batch, config, Draw(seeded(2)))
    assert error.max() < 1e-6
    assert set(timesteps.tolist()) == set(path.times[::SUBSTEPS].tolist())

    def wrong(*given):
        return teacher(*given) + 0.5

    error, _, timesteps = few_steps_loss(wrong, teacher, path, batch, config, Draw(seeded(2)))
    torch.testing.assert_close(error, torch.full((64,), 0.25), rtol=1e-3, atol=1e-4)


def test_later_steps_start_where_the_student_has_led():
    """The student is trained on its own mistakes: its second step sees what its first has made of the noise."""
    config = config_of("v_prediction")
    path, batch, seen_by_student = path_of(config, 2), batch_of(32), []
    ours, theirs = (torch.full((1, 4, 1, 1), value) for value in (2.0, -1.0))
    teacher, student = drawn_to(theirs, path), drawn_to(ours, path)

    def watched(reference, seen, timesteps, dropped):
        seen_by_student.append((seen, timesteps))
        return student(reference, seen, timesteps, dropped)

    few_steps_loss(watched, teacher, path, batch, config, Draw(seeded(3)))
    (noise, _), (begun, timesteps) = seen_by_student
    second = timesteps == path.times[SUBSTEPS]
    assert 0 < int(second.sum()) < 32
    inside = batch.hole.expand_as(noise) > 0
    zero = torch.zeros(32, dtype=torch.long)
    led = path.moved(noise, ours.expand_as(noise), zero, zero + SUBSTEPS)
    expected = torch.where(second[:, None, None, None], led, noise)
    torch.testing.assert_close(begun[inside], expected[inside])


def test_the_matte_is_the_teacher_s_at_the_last_step_alone():
    config = matte_config()
    path, batch = path_of(config, 2), batch_of(32)
    batch.matte = torch.zeros(32, config.unet.out_channels - 4, 8, 8)
    plain = drawn_to(torch.zeros(1, 4, 1, 1), path)

    def with_logits(value):
        def predictor(reference, seen, *given):
            logits = torch.full((len(seen), config.unet.out_channels - 4, *seen.shape[2:]), value)
            return torch.cat([plain(reference, seen, *given), logits], 1)

        return predictor

    def matte(student, teacher):
        return few_steps_loss(with_logits(student), with_logits(teacher), path, batch, config, Draw(seeded(4)))[1:]

    loss, timesteps = matte(-20.0, 20.0)
    assert torch.equal(loss > 0, timesteps == path.times[SUBSTEPS]) and loss.max() > 10
    assert matte(20.0, 20.0)[0].max() < 1e-6
