"""The losses of training, each against its equation, and the model that they train, compiled."""

import dataclasses
import math

import pytest
import torch
from micro import fresh_checkpoint, micro_config, seeded

from imprint.config import NoiseConfig
from imprint.model import build_modules, load_modules
from imprint.noise import alphas_cumprod
from training.loop import distillation, losses
from training.loop.model import Model
from training.pairs.batches import Batch
from training.pairs.draw import Draw
from training.settings import TIMESTEPS

EPSILON = NoiseConfig(1000, 0.00085, 0.012, prediction_type="epsilon", zero_terminal_snr=False)
VELOCITY = micro_config().noise  # zero terminal SNR


def batch_of(count: int) -> Batch:
    random = seeded()
    hole = torch.zeros(count, 1, 8, 8)
    hole[:, :, 2:6, 3:5] = 1
    target, background = (torch.randn(count, 4, 8, 8, generator=random) for _ in range(2))
    reference, matte = torch.zeros(count, 3, 28, 28, dtype=torch.uint8), torch.zeros(count, 0, 8, 8)
    return Batch(reference, target, background, hole, matte)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_equation_s_and_only_in_the_hole(prediction):
    config = micro_config()
    config = dataclasses.replace(
        config, noise=dataclasses.replace(config.noise, prediction_type=prediction, zero_terminal_snr=False)
    )
    alpha_bar, batch, offset = alphas_cumprod(config.noise).float(), batch_of(4), torch.zeros(1)

    def oracle(reference, seen, timesteps, dropped):
        """The exact prediction in the hole (plus `offset`), and nonsense outside it."""
        share = alpha_bar[timesteps][:, None, None, None]
        noise = (seen - share.sqrt() * batch.target) / (1 - share).sqrt()
        exact = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * batch.target
        return torch.where(batch.hole > 0, exact + offset, 1e3)

    def loss() -> torch.Tensor:
        return losses.diffusion_loss(oracle, batch, config, alpha_bar, Draw(seeded(1)))[0]

    assert loss().shape == (4,) and loss().max() < 1e-6
    offset += 2.0
    assert torch.allclose(loss(), torch.full((4,), 4.0), rtol=1e-3)  # a small and a large hole weigh the same
    batch.hole[0, :, 0] = 1
    assert torch.allclose(loss(), torch.full((4,), 4.0), rtol=1e-3)


def test_the_matte_s_loss_counts_known_values_in_the_hole_by_their_signal():
    batch, logits = batch_of(2), torch.zeros(2, 8, 8, 8)
    batch.matte = torch.full((2, 8, 8, 8), 0.5)
    signal = torch.tensor([1.0, 0.25])
    assert torch.allclose(losses.matte_loss(logits, batch.matte, batch.hole, signal), math.log(2) * signal)
    wrong = torch.where(batch.hole > 0, logits, 1e3)  # outside the hole nothing counts
    assert torch.allclose(losses.matte_loss(wrong, batch.matte, batch.hole, signal), math.log(2) * signal)
    batch.matte[:, 4:] = -1.0  # nor does what nobody knows
    wrong[:, 4:] = -1e3
    assert torch.allclose(losses.matte_loss(wrong, batch.matte, batch.hole, signal), math.log(2) * signal)
    batch.matte[:] = -1.0
    assert torch.equal(losses.matte_loss(wrong, batch.matte, batch.hole, signal), torch.zeros(2))


def test_conditions_are_dropped_at_the_given_rate():
    seen = []

    def model(reference, picture, timesteps, dropped):
        seen.append(dropped)
        return torch.zeros(len(dropped), 4, 8, 8)

    config, random = micro_config(), Draw(seeded())
    alpha_bar = alphas_cumprod(config.noise).float()
    for rate in (0.0, 0.3, 1.0):
        losses.diffusion_loss(model, batch_of(400), config, alpha_bar, random, dropout=rate)
        assert abs(float(seen[-1].float().mean()) - rate) < 0.07


def test_the_teacher_s_guided_prediction_is_the_target():
    """A student that predicts the teacher's guided output, without the object its unguided one, has no loss."""
    modules = build_modules(micro_config(), with_vae=False)
    load_modules(modules, fresh_checkpoint(micro_config()))
    model, alpha_bar = Model(modules, micro_config()).eval(), alphas_cumprod(micro_config().noise).float()
    batch = batch_of(6)
    batch.reference.random_(0, 255, generator=seeded())

    def loss(student, scale, dropout):
        return losses.diffusion_loss(
            student,
            batch,
            micro_config(),
            alpha_bar,
            Draw(seeded(1)),
            dropout,
            teacher=distillation.Guided(model, scale),
        )[0]

    with torch.no_grad():
        assert loss(model, 1.0, 0.5).max() < 1e-10  # the teacher itself
        assert loss(model, 3.0, 1.0).max() < 1e-10  # nothing to pull towards
        assert loss(model, 3.0, 0.0).min() > 1e-6
        told = distillation.Guided(model, 3.0)
        assert loss(told, 3.0, 0.5).max() < 1e-10
        seen = (batch.reference, batch.target, torch.arange(6) * 100, torch.zeros(6, dtype=torch.bool))
        twice = model(*seen[:3], ~seen[3]) + 3 * (model(*seen) - model(*seen[:3], ~seen[3]))
        torch.testing.assert_close(told(*seen), twice, rtol=1e-3, atol=1e-4)


# --- how timesteps are drawn and weighed
# --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [EPSILON, VELOCITY, dataclasses.replace(VELOCITY, zero_terminal_snr=False)],
    ids=["epsilon", "v", "v that ends in a little signal"],
)
def test_min_snr_weighs_the_implied_picture_s_error_by_the_clamped_snr(config):
    """By the definition: a small error of the prediction, converted to the error of z_0 that it implies."""
    alpha_bar = alphas_cumprod(config)[[1, 100, 400, 700, 990]]
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    clean, noise, wrong = 0.3, -1.2, 0.01
    noisy = signal * clean + spread * noise
    if config.prediction_type == "epsilon":
        implied = (noisy - spread * (noise + wrong)) / signal
    else:
        implied = signal * noisy - spread * (signal * noise - spread * clean + wrong)
    snr = alpha_bar / (1 - alpha_bar)
    expected = (snr + config.zero_terminal_snr).clamp(max=5) * (implied - clean) ** 2
    assert torch.allclose(losses.loss_weights(alpha_bar, config, "min-snr") * wrong**2, expected, rtol=1e-6)
    assert losses.loss_weights(alpha_bar, config, "plain").tolist() == [1.0] * 5


def test_min_snr_keeps_the_last_timesteps_of_a_schedule_that_ends_in_noise():
    alpha_bar = alphas_cumprod(VELOCITY).float()
    weights = losses.loss_weights(alpha_bar, VELOCITY, "min-snr")
    assert bool((weights[-100:] == 1).all()) and bool((weights.diff() >= 0).all())  # and no jump at the last


def test_timesteps():
    random = Draw(seeded())
    uniform, normal = (losses.draw_timesteps(100_000, EPSILON, kind, random) for kind in TIMESTEPS)
    for drawn in (uniform, normal):
        assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() <= 999
    assert abs(float((uniform < 100).float().mean()) - 0.1) < 0.01
    # P(sigmoid(n) < 0.25) = P(n < -1.0986) = 0.136
    assert abs(float((normal < 250).float().mean()) - 0.136) < 0.01 and abs(float(normal.float().mean()) - 499.5) < 5


# --- the adapter's translation loss
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_tokens", "text_tokens"), [(9, 9), (257, 77), (5, 9)])
def test_translation_compares_token_by_token(image_tokens, text_tokens):
    """L1 if both have the same number of tokens; otherwise between means of neighbouring tokens."""
    context, text, nothing = (
        torch.randn(3, image_tokens, 8),
        torch.randn(3, text_tokens, 8),
        torch.zeros(1, text_tokens, 8),
    )
    batch = Batch(*(torch.zeros(3) for _ in range(5)), text=text)

    def model(reference, seen, timesteps, dropped):
        assert seen is None and timesteps is None and not dropped.any()
        return context

    loss = losses.translation_loss(model, batch, nothing, Draw(seeded()), dropout=0.0)
    assert loss.shape == (3,)
    if image_tokens == text_tokens:
        assert torch.allclose(loss, (context - text).abs().mean((1, 2)))
    batch.text = torch.nn.functional.adaptive_avg_pool1d(context.transpose(1, 2), text_tokens).transpose(1, 2)
    if image_tokens >= text_tokens:
        exact = losses.translation_loss(model, batch, nothing, Draw(seeded()), dropout=0.0)
        assert float(exact.max()) < 1e-6


def test_dropped_conditions_translate_to_the_empty_caption():
    nothing, text = torch.full((1, 4, 8), 2.0), torch.randn(2, 4, 8)
    batch = Batch(*(torch.zeros(2) for _ in range(5)), text=text)

    def model(reference, seen, timesteps, dropped):
        assert dropped.all()
        return torch.full((2, 4, 8), 2.5)

    loss = losses.translation_loss(model, batch, nothing, Draw(seeded()), dropout=1.0)
    assert torch.allclose(loss, torch.full((2,), 0.5))


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_training_step_is_the_plain_one_in_channels_last(monkeypatch, whole):
    """Its convolutions take channels_last, whatever layout the part before them leaves behind."""
    compiled, taken = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, mode, dynamic: compiled(part, backend="aot_eager"))
    config = micro_config()
    model = Model(build_modules(config, with_vae=False), config).to(memory_format=torch.channels_last)
    given = torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.randn(2, config.unet.in_channels, 8, 8)
    given = *given, torch.tensor([10, 500]), torch.tensor([False, True])
    results = []
    for name in ("plain", "default"):
        if name == "default":
            model.compile_parts(name, whole)
            model.unet.conv_in.register_forward_pre_hook(lambda _, pictures: taken.append(pictures[0]))
        model(*given).square().mean().backward()
        results.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
        model.zero_grad()
    plain, made = results
    last = [pictures.is_contiguous(memory_format=torch.channels_last) for pictures in (given[1], *taken)]
    assert last == [False, True]
    assert all(torch.allclose(made[name], gradient, atol=1e-6) for name, gradient in plain.items())
