import dataclasses
import inspect
import math
from unittest.mock import patch

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from drawing import DrawingPipeline, blend_of, run
from micro import concat_config, cutout, fresh_checkpoint, micro_config, photo, rectangle, seeded, third_party_config
from PIL import Image

from imprint.blending import feather
from imprint.checkpoint import Checkpoint, save_checkpoint
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor
from imprint.pipeline import ImprintPipeline


def test_the_same_seed_gives_the_same_picture(pipeline, scene):
    first, second, other = (run(pipeline, scene, seed).images for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_outside_the_blend_mask_every_bit_is_the_background_s(pipeline, scene):
    _, background, hole = scene
    for settings in ({}, {"feather_pixels": 0}, {"feather_pixels": 9}, {"colour_match": 1.0}, {"context": 3.0}):
        for output in ("pt", "pil"):
            image = run(pipeline, scene, output_type=output, **settings).images[0]
            if output == "pil":
                image = image_to_tensor(image)[0]
            within = blend_of(hole, pipeline.model_config, settings.get("feather_pixels"), settings.get("context"))
            before = image_to_tensor(background)[0]
            assert torch.equal(image[:, ~within], before[:, ~within])
            assert not torch.equal(image[:, within], before[:, within])


def test_a_blend_mask_puts_back_a_part_of_what_was_generated(pipeline, scene):
    whole = run(pipeline, scene, feather_pixels=0).images
    tight = torch.zeros(1, 90, 120)
    tight[:, 38:50, 45:60] = 1
    part = run(pipeline, scene, feather_pixels=0, blend_mask=tight).images
    inside = (tight[:, None] > 0).expand_as(part)
    assert torch.equal(part[inside], whole[inside])
    assert torch.equal(part[~inside], image_to_tensor(scene[1])[~inside])
    wide = run(pipeline, scene, feather_pixels=0, blend_mask=torch.ones(1, 90, 120))
    rows, columns = wide.placement.area
    assert torch.equal(
        wide.images[:, :, rows, columns][:, :, 0, 0] != whole[:, :, rows, columns][:, :, 0, 0],
        torch.tensor([[True] * 3]),
    )
    outside = torch.ones(90, 120, dtype=torch.bool)
    outside[rows, columns] = False
    assert torch.equal(wide.images[0][:, outside], image_to_tensor(scene[1])[0][:, outside])


@pytest.mark.parametrize("method", ["feather", "multiband"])
def test_feathering_inwards_leaves_everything_outside_the_hole(pipeline, scene, method):
    settings = {"feather_pixels": 0, "feather_inwards": 6, "blend_method": method}
    image, hard = run(pipeline, scene, **settings).images[0], run(pipeline, scene, feather_pixels=0).images[0]
    ramp, background = feather(mask_to_tensor(scene[2]), 6, 0)[0], image_to_tensor(scene[1])[0]
    assert torch.equal(image[:, ramp == 0], background[:, ramp == 0])
    assert torch.allclose(image[:, ramp == 1], hard[:, ramp == 1], atol=1e-5)
    edge = (ramp > 0) & (ramp < 0.3)
    assert (image - background)[:, edge].abs().mean() < (hard - background)[:, edge].abs().mean()


def test_a_hole_that_fills_the_square_is_feathered_all_around(pipeline, scene):
    """The square's own border is the hole's border: it needs the soft edge too."""
    subject, background, _ = scene
    hole = rectangle(120, 90, (30, 20, 70, 60))
    image = run(pipeline, (subject, background, hole), context=1.0, feather_pixels=0, feather_inwards=4).images[0]
    hard = run(pipeline, (subject, background, hole), context=1.0, feather_pixels=0).images[0]
    ramp = feather(mask_to_tensor(hole), 4, 0)
    assert torch.allclose(image, torch.lerp(image_to_tensor(background)[0], hard, ramp), atol=1e-6)


def test_a_small_hole_is_enlarged_and_said(pipeline, scene, caplog):
    subject, background, _ = scene
    image = run(pipeline, (subject, background, rectangle(120, 90, (60, 40, 62, 43))), feather_pixels=0).images
    assert "hole of 2x3 pixels is too small" in caplog.text and "to 16x16" in caplog.text
    changed = (image != image_to_tensor(background)).any(1)[0]
    assert bool(changed[33:49, 53:69].float().mean() > 0.95) and int(changed.sum()) <= 16 * 16


def test_feather_pixels_are_the_background_s(pipeline, scene):
    hard = run(pipeline, scene, feather_pixels=0).images[0]
    changed = (hard != image_to_tensor(scene[1])[0]).any(0)
    assert bool((changed <= (mask_to_tensor(scene[2])[0] > 0.5)).all())


def test_another_object_changes_only_the_inside(pipeline, scene):
    _, background, hole = scene
    within = blend_of(hole, pipeline.model_config)
    first = run(pipeline, scene).images[0]
    second = run(pipeline, (cutout(44, 60, seed=9), background, hole)).images[0]
    assert torch.equal(first[:, ~within], second[:, ~within])
    assert (first[:, within] - second[:, within]).abs().max() > 1e-3


def test_what_lay_in_the_hole_makes_no_difference(pipeline, scene):
    """No pixel of it reaches the model; with a hard edge, none reaches the picture."""
    subject, background, hole = scene
    other = background.copy()
    other.paste(photo(35, 30, seed=8), (40, 30))
    first, second = (run(pipeline, (subject, b, hole), feather_pixels=0).images for b in (background, other))
    assert torch.equal(first, second)


def test_the_surroundings_do_make_a_difference(pipeline, scene):
    subject, background, hole = scene
    other = photo(120, 90, seed=8)
    inside = mask_to_tensor(hole)[0] > 0.5
    first, second = (run(pipeline, (subject, b, hole)).images[0] for b in (background, other))
    assert not torch.equal(first[:, inside], second[:, inside])


def test_several_results_differ_and_keep_their_background(pipeline, scene):
    images = run(pipeline, scene, num_results=3).images
    assert images.shape == (3, 3, 90, 120)
    within = blend_of(scene[2], pipeline.model_config)
    for image in images:
        assert torch.equal(image[:, ~within], image_to_tensor(scene[1])[0][:, ~within])
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_a_generator_for_each_result(pipeline, scene):
    subject, background, hole = scene
    both = pipeline(
        subject, None, background, hole, generator=[seeded(1), seeded(2)], num_results=2, output_type="pt"
    ).images
    for seed, image in zip((1, 2), both):
        assert torch.allclose(run(pipeline, scene, seed).images[0], image, atol=1e-4)


def test_generators_that_do_not_fit(pipeline, scene):
    for count in (2, 4):
        with pytest.raises(ImprintError, match=f"got {count} generators for 3 results"):
            pipeline(scene[0], None, *scene[1:], generator=[seeded(index) for index in range(count)], num_results=3)
    assert len(pipeline(scene[0], None, *scene[1:], generator=[seeded()], num_results=3).images) == 3


def test_the_callback_s_tensors_are_those_there_are(pipeline, scene):
    """The error is diffusers' own."""
    with pytest.raises(ValueError, match=r"has to be in \['latents'\], but found \['prompt_embeds'\]"):
        run(pipeline, scene, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])


def test_given_noise_is_used(pipeline, scene):
    noise = torch.randn(2, 4, 8, 8, generator=seeded(7))
    images = run(pipeline, scene, seed=1, latents=noise, num_results=2).images
    assert torch.equal(images, run(pipeline, scene, seed=2, latents=noise, num_results=2).images)
    one = run(pipeline, scene, latents=noise[1:]).images[0]
    assert torch.allclose(images[1], one, atol=1e-4)


def test_views_side_by_side(pipeline, scene):
    first, second = cutout(50, 40, seed=1), cutout(33, 70, seed=3)  # of different sizes
    tokens = pipeline.encode_object([first, second])
    assert tokens.shape == (1, 2, 5, 32)
    for view, picture in enumerate((first, second)):
        assert torch.allclose(tokens[:, view : view + 1], pipeline.encode_object(picture), atol=1e-5)
    assert pipeline.adapter(tokens).shape == (1, 10, 32)
    _, background, hole = scene
    one, two = (
        pipeline(views, None, background, hole, generator=seeded(), output_type="pt").images
        for views in ([first], [first, second])
    )
    assert one.shape == two.shape and not torch.equal(one, two)


def test_tensors_and_pictures_are_the_same(pipeline, scene):
    subject, background, hole = scene
    drawn = run(pipeline, scene).images
    given = pipeline(
        image_to_tensor(subject),
        alpha_to_tensor(subject),
        image_to_tensor(background),
        mask_to_tensor(hole),
        generator=seeded(),
        output_type="pt",
    ).images
    assert torch.equal(drawn, given)


def test_a_mask_serves_as_well_as_alpha(pipeline, scene):
    subject, background, hole = scene
    mask = subject.getchannel("A")
    images = pipeline(subject.convert("RGB"), mask, background, hole, generator=seeded(), output_type="pt").images
    assert torch.equal(images, run(pipeline, scene).images)
    # A mask that is given counts, and not the picture's own alpha.
    box = rectangle(*subject.size, (0, 0, *subject.size))
    other = pipeline(subject, box, background, hole, generator=seeded(), output_type="pt").images
    assert not torch.equal(other, images)


def test_the_caller_s_pictures_are_left_as_they_are(pipeline, scene):
    tensors = [
        image_to_tensor(scene[0]),
        alpha_to_tensor(scene[0]),
        image_to_tensor(scene[1]),
        mask_to_tensor(scene[2]),
    ]
    before = [tensor.clone() for tensor in tensors]
    pipeline(*tensors, generator=seeded(), colour_match=1.0, output_type="pt")
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(tensors, before))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "CMYK", "I;16"])
def test_backgrounds_of_any_mode(pipeline, scene, mode):
    subject, background, hole = scene
    if mode == "I;16":
        changed = Image.fromarray(np.asarray(background.convert("L")).astype(np.uint16) * 257)
    else:
        changed = background.convert(mode)
    if "A" in mode:
        changed.putalpha(Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (90, 1))))
    image = run(pipeline, (subject, changed, hole), output_type="pil").images[0]
    within = blend_of(hole, pipeline.model_config)
    assert image.size == background.size
    assert torch.equal(image_to_tensor(image)[0][:, ~within], image_to_tensor(changed)[0][:, ~within])
    assert image.mode == ("RGBA" if "A" in mode else "RGB")
    if "A" in mode:  # the background's own transparency stays
        assert np.array_equal(np.asarray(image)[..., 3], np.asarray(changed)[..., -1])


@pytest.mark.parametrize("size", [(120, 90), (90, 120), (300, 40), (33, 37), (64, 64)])
def test_frames_of_any_shape(pipeline, size):
    width, height = size
    background = photo(width, height, seed=2)
    hole = rectangle(width, height, (width // 3, height // 3, width // 3 + 9, height // 3 + 12))
    made = run(pipeline, (cutout(50, 40), background, hole), output_type="pil")
    assert made.images[0].size == size
    assert made.placement.width == width and made.placement.height == height


def test_a_hole_that_fills_the_frame(pipeline, scene):
    subject, background, _ = scene
    full = Image.new("L", background.size, 255)
    image = run(pipeline, (subject, background, full), colour_match=1.0).images
    assert bool(image.isfinite().all())
    assert torch.equal(image, run(pipeline, (subject, photo(120, 90, seed=77), full), colour_match=1.0).images)


def test_output_types(pipeline, scene):
    pictures = run(pipeline, scene, num_results=2, output_type="pil")
    tensors = run(pipeline, scene, num_results=2)
    latents = run(pipeline, scene, num_results=2, output_type="latent")
    assert [picture.size for picture in pictures.images] == [(120, 90)] * 2
    for picture, tensor in zip(pictures.images, tensors.images):
        assert (image_to_tensor(picture)[0] - tensor).abs().max() <= 0.5 / 255 + 1e-6
    assert latents.images.shape == (2, 4, 8, 8)
    assert pictures.placement == tensors.placement == latents.placement
    images, placement = run(pipeline, scene, num_results=2, return_dict=False)
    assert torch.equal(images, tensors.images) and placement == tensors.placement


def test_outside_the_hole_the_latents_are_the_clean_background_s(pipeline, scene):
    """At every step the UNet sees the clean background there, and never the noised one (IMPRINT's blend)."""
    with patch.object(pipeline.unet, "forward", wraps=pipeline.unet.forward) as forward:
        final = run(pipeline, scene, output_type="latent").images
    seen = [call.args[0] for call in forward.call_args_list]
    assert len(seen) == 3
    outside = (seen[0] == seen[1]).all(1, keepdim=True) & (seen[1] == seen[2]).all(1, keepdim=True)
    assert 0 < int(outside[0].sum()) < 64
    assert torch.equal(final[outside[:1].expand_as(final)], seen[0][:1][outside[:1].expand_as(final)])
    changed = ~outside[:1].expand_as(final)
    assert bool((seen[0][:1] != seen[1][:1])[changed].all())


def test_guidance_of_one_asks_the_unet_once(pipeline, scene):
    with patch.object(pipeline.unet, "forward", wraps=pipeline.unet.forward) as forward:
        plain = run(pipeline, scene, guidance_scale=1.0).images
        run(pipeline, scene, guidance_scale=4.0)
    assert [len(call.args[0]) for call in forward.call_args_list] == [1] * 3 + [2] * 3
    near = run(pipeline, scene, guidance_scale=1.0 + 1e-6).images  # by the long way
    assert torch.allclose(plain, near, atol=1e-4)


def test_weights_may_be_brought_to_their_device_layer_by_layer(micro_file, scene, pipeline):
    """With accelerate's hooks, as in diffusers' sequential CPU offload; guidance needs the null embedding."""
    offloaded = DrawingPipeline.from_checkpoint(micro_file)
    for part in ("encoder", "adapter", "unet", "vae"):
        accelerate.cpu_offload(getattr(offloaded, part), torch.device("cpu"))
    assert offloaded.adapter.null_embedding.is_meta
    assert torch.equal(
        run(offloaded, scene, guidance_scale=2.0).images, run(pipeline, scene, guidance_scale=2.0).images
    )


def test_guidance_of_zero_forgets_the_object(pipeline, scene):
    _, background, hole = scene
    first = run(pipeline, scene, guidance_scale=0.0).images
    assert torch.allclose(first, run(pipeline, (cutout(44, 60, seed=9), background, hole), guidance_scale=0.0).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(micro_file, scene, pipeline, dtype):
    half = DrawingPipeline.from_checkpoint(micro_file, torch_dtype=dtype)
    for part in ("vae", "encoder", "adapter", "unet", "light"):
        assert {tensor.dtype for tensor in getattr(half, part).parameters()} == {dtype}
    image = run(half, scene, feather_pixels=0, num_inference_steps=1, resolution=32).images
    assert image.dtype == torch.float32
    within = blend_of(scene[2], half.model_config, feather_pixels=0)
    assert torch.equal(image[0][:, ~within], image_to_tensor(scene[1])[0][:, ~within])
    assert (
        image - run(pipeline, scene, feather_pixels=0, num_inference_steps=1, resolution=32).images
    ).abs().mean() < 0.05


@pytest.mark.parametrize("config", [concat_config(), third_party_config()])
def test_concat_conditioning(tmp_path, scene, config):
    path = tmp_path / "concat.safetensors"
    save_checkpoint(path, fresh_checkpoint(config))
    pipeline = DrawingPipeline.from_checkpoint(path)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(3))
    unet, vae = pipeline.unet, pipeline.vae
    with (
        patch.object(unet, "forward", wraps=unet.forward) as forward,
        patch.object(vae, "encode", wraps=vae.encode) as encode,
    ):
        image = run(pipeline, scene, latents=noise).images[0]
    seen = [call.args[0] for call in forward.call_args_list]
    assert {tensor.shape[1] for tensor in seen} == {9}
    mask_first = config.concat_order == "mask, background"
    channels = [tensor.split((4, 1, 4) if mask_first else (4, 4, 1), 1) for tensor in (seen[0], seen[-1])]
    (noisy, *beside), (later, *same) = channels
    mask, background = beside if mask_first else beside[::-1]
    assert torch.allclose(noisy[:1], noise, atol=1e-6) and not torch.equal(noisy, later)
    assert all(torch.equal(first, last) for first, last in zip(beside, same))
    hole = mask == (1 if config.concat_mask == "hole" else 0)
    assert set(mask.unique().tolist()) == {0.0, 1.0} and 0 < hole.float().mean() < 0.7
    (painted,) = encode.call_args.args
    pixels = hole[:1].repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(painted)
    assert (painted[pixels] == config.hole_value * 2 - 1).all() and painted[~pixels].std() > 0.1
    assert torch.equal(background[:1], vae.encode(painted).latents)
    within = blend_of(scene[2], pipeline.model_config)
    assert torch.equal(image[:, ~within], image_to_tensor(scene[1])[0][:, ~within])


def test_epsilon_and_the_large_autoencoder(tmp_path, scene):
    config = micro_config()
    config = dataclasses.replace(
        config,
        noise=dataclasses.replace(config.noise, prediction_type="epsilon", zero_terminal_snr=False),
        latent=dataclasses.replace(config.latent, autoencoder="kl", scale_factor=0.18215),
    )
    path = tmp_path / "kl.safetensors"
    save_checkpoint(path, fresh_checkpoint(config, with_vae=False))
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipeline = DrawingPipeline.from_checkpoint(path, vae=vae)
    first, second = (run(pipeline, scene).images for _ in range(2))
    assert torch.equal(first, second)  # the autoencoder's mean, without noise


def test_the_callback_is_called_and_may_change_the_latents(pipeline, scene):
    calls = []

    def watch(pipe, index, timestep, tensors):
        assert pipe is pipeline
        calls.append((index, float(timestep), set(tensors)))
        return {}

    plain = run(pipeline, scene, callback_on_step_end=watch).images
    assert [index for index, _, _ in calls] == [0, 1, 2]
    assert [time for _, time, _ in calls] == sorted((time for _, time, _ in calls), reverse=True)
    assert {frozenset(names) for _, _, names in calls} == {frozenset({"latents"})}
    assert torch.equal(plain, run(pipeline, scene).images)

    changed = run(
        pipeline, scene, callback_on_step_end=lambda p, i, t, given: {"latents": given["latents"] * 0.5}
    ).images
    assert not torch.equal(plain, changed)


def test_steps_and_resolution(pipeline, scene):
    count = []
    for steps in (1, 5):
        count.clear()
        run(pipeline, scene, num_inference_steps=steps, callback_on_step_end=lambda *a: count.append(1) or {})
        assert len(count) == steps
    assert run(pipeline, scene, resolution=96, output_type="latent").images.shape == (1, 4, 12, 12)
    assert run(pipeline, scene, context=3.0).placement.side > run(pipeline, scene).placement.side


def test_colour_match_moves_the_crop_towards_its_surroundings(pipeline, scene):
    subject, background, hole = scene
    dark = background.point(lambda value: value // 4)
    inside = mask_to_tensor(hole)[0] > 0.5
    plain, matched = (run(pipeline, (subject, dark, hole), colour_match=share).images[0] for share in (0.0, 1.0))
    target = image_to_tensor(dark)[0][:, ~inside].mean()
    assert (matched[:, inside].mean() - target).abs() < (plain[:, inside].mean() - target).abs()


def test_the_signature_is_the_documented_one():
    names = list(inspect.signature(ImprintPipeline.__call__).parameters)
    assert names[1:8] == "object_image object_mask background mask num_inference_steps guidance_scale generator".split()


EMPTY, SMALL = Image.new("L", (120, 90)), Image.new("L", (60, 45), 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": EMPTY}, "mask of the hole is empty.*largest value is 0,"),
        ({"mask": SMALL}, "background is 120x90.*mask is 60x45"),
        ({"object_image": photo(50, 40)}, "no mask and no transparency"),
        ({"object_mask": Image.new("L", (50, 40))}, "object's mask is empty"),
        ({"object_mask": SMALL}, "50x40, but its mask is 60x45"),
        ({"object_image": []}, "got 0 view"),
        ({"object_image": [cutout(50, 40)] * 2, "object_mask": [SMALL]}, "2 view.*1 mask"),
        ({"background": torch.zeros(1, 4, 90, 120)}, r"\(1, 4, 90, 120\)"),
        ({"background": torch.zeros(2, 3, 90, 120)}, r"\(2, 3, 90, 120\)"),
        ({"mask": torch.ones(90, 120)}, r"\(90, 120\); expected \(1, H, W\)"),
        ({"num_inference_steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 10**11}, "steps is 100000000000"),
        ({"num_results": 0}, "num_results is 0; it must be a whole number of 1 or more"),
        ({"guidance_scale": float("nan")}, "guidance is nan"),
        ({"guidance_scale": 1e308}, r"guidance is 1e\+308; it must be a finite number$"),
        ({"resolution": 2**20}, "resolution is 1048576; it must be a whole number from 16 to 4096"),
        ({"feather_pixels": 10**20}, "feather is 1"),
        ({"colour_match": 1.5}, "colour match is 1.5"),
        ({"detail": 1.5}, "detail is 1.5"),
        ({"context": 0.5}, "context is 0.5"),
        ({"context": 0}, "context is 0"),
        ({"resolution": 70}, "70.*multiple of 16"),
        ({"resolution": 0}, "resolution is 0"),
        ({"feather_pixels": -1}, "feather is -1;"),
        ({"feather_inwards": -1}, "feather inwards is -1;"),
        ({"blend_method": "poisson"}, "'poisson'.*feather, multiband"),
        ({"blend_mask": torch.ones(1, 9, 12)}, "120x90, but its blend mask is 12x9"),
        ({"blend_mask": torch.zeros(1, 90, 120)}, "the blend mask is empty where the object is drawn"),
        ({"blend_mask": torch.zeros(1, 90, 120), "fit": "contain"}, "the blend mask is empty where the object lies"),
        ({"generator": 5}, "the generator is 5; give a torch.Generator"),
        ({"output_type": "np"}, "'np'.*pil, pt, latent"),
        ({"latents": torch.zeros(1, 4, 9, 9)}, r"\(1, 4, 9, 9\); expected a tensor of shape \(1, 4, 8, 8\)"),
        ({"latents": "noise"}, "the given latents are str"),
        ({"align": "left"}, r"align is 'left'; it must be an imprint\.place\.Align"),
        ({"place": (1, 2), "mask": None}, r"place is \(1, 2\); it must be an imprint\.place\.Place"),
        ({"mask": Image.new("L", (0, 5))}, "the picture is 0x5: it has no pixels"),
        ({"background": Image.new("RGB", (0, 5))}, "the picture is 0x5: it has no pixels"),
        ({"object_mask": Image.new("1", (5, 0))}, "the picture is 5x0: it has no pixels"),
        ({"object_image": torch.full((1, 3, 9, 9), float("nan")), "object_mask": torch.ones(1, 9, 9)}, "not finite"),
    ],
)
def test_bad_input(pipeline, scene, changes, message):
    subject, background, hole = scene
    given = {"object_image": subject, "object_mask": None, "background": background, "mask": hole} | changes
    with pytest.raises(ImprintError, match=message) as caught:
        pipeline(**given)
    assert "\n" not in str(caught.value)


NUMBERS = (
    "num_inference_steps guidance_scale num_results context resolution feather_pixels feather_inwards colour_match "
)
NUMBERS += "detail eta light shadow softness"


@pytest.mark.parametrize("fit", ["fill", "contain"])
@pytest.mark.parametrize("name", NUMBERS.split())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "3", [1], True, 10**400, -(10**400)])
def test_what_is_no_number_is_refused_whoever_makes_the_picture(pipeline, scene, name, value, fit):
    """Even if the object is placed, which ignores most of them: a mistake must not go unnoticed."""
    subject, background, hole = scene
    with pytest.raises(ImprintError, match=r"it must be a (whole|finite) number"):
        pipeline(subject, None, background, hole, fit=fit, **{name: value})


def test_a_pipeline_of_diffusers_own(pipeline):
    assert isinstance(pipeline, diffusers.DiffusionPipeline)
    parts = {"vae", "encoder", "adapter", "unet", "control", "scheduler", "model_config", "light"}
    assert set(pipeline.components) == parts
    assert pipeline.to("cpu") is pipeline


def test_gradients_are_off_and_modules_in_evaluation(micro_file):
    fresh = DrawingPipeline.from_checkpoint(micro_file)
    for part in ("vae", "encoder", "adapter", "unet", "light"):
        module = getattr(fresh, part)
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_the_checkpoint_decides_the_sizes(tmp_path, scene):
    """Another resolution and another number of steps come from the file alone."""
    config = dataclasses.replace(micro_config(), resolution=96)
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=2))
    path = tmp_path / "micro.safetensors"
    checkpoint = fresh_checkpoint(config)
    save_checkpoint(path, Checkpoint(config, checkpoint.parts))
    pipeline = DrawingPipeline.from_checkpoint(path)
    steps = []
    made = run(pipeline, scene, output_type="latent", callback_on_step_end=lambda *a: steps.append(1) or {})
    assert made.images.shape[-1] == 12 and len(steps) == 2
