"""The matte: the maps and their targets, the picture, adding a matte to a model, and the pipeline with one."""

import dataclasses

import diffusers
import pytest
import torch
from drawing import DrawingPipeline
from micro import fresh_checkpoint, matte_config, micro_config, seeded

from imprint.blending import BLENDS, blend_pictures
from imprint.checkpoint import save_checkpoint
from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.mask_reading import mask_to_tensor
from imprint.matte import apply_matte, matte_pixels, split_matte
from training.loop.model import with_matte
from training.pairs.holes import matte_values

WHOLE = torch.ones(1, 1, 8, 8)  # a hole


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


def test_the_maps_are_the_targets_backwards():
    """Reading inverts the targets for blocks of the matte's size, all object or all free, and for a smooth shadow."""
    config = matte_config()
    size = config.latent.downscale // config.matte
    alpha = (noise(2, 16, 16, seed=1) > 0.5).float()
    shadow = torch.linspace(0.1, 0.9, 16).expand(2, 16, 16)
    values = matte_values(
        *(each.repeat_interleave(size, 1).repeat_interleave(size, 2) for each in (alpha, shadow)), config
    )
    assert values.shape == (2, 2 * config.matte**2, 8, 8)
    read_alpha, read_shadow = matte_pixels(torch.logit(values, 1e-6), WHOLE, config)
    assert read_alpha.shape == read_shadow.shape == (2, 64, 64)
    # The four pixels around a block's middle are mostly its own; along each axis a sixteenth is each neighbour's.
    middle = read_alpha.reshape(2, 16, size, 16, size)[:, 1:-1, 1:3, 1:-1, 1:3].mean((2, 4))
    rows = 0.0625 * (alpha[:, :-2] + alpha[:, 2:]) + 0.875 * alpha[:, 1:-1]
    expected = 0.0625 * (rows[..., :-2] + rows[..., 2:]) + 0.875 * rows[..., 1:-1]
    assert torch.allclose(middle, expected, atol=1e-5)
    read = read_shadow.reshape(2, 16, size, 16, size).mean((2, 4))
    assert torch.allclose(read[..., 3:-3], ((shadow - 0.05) / 0.9)[..., 3:-3], atol=1e-5)


def test_the_latent_s_grid_does_not_show_in_a_shadow():
    """Alternating dark and light cells almost vanish; over all cells, their mean remains."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    _, shadow = matte_pixels(board.expand(1, 8, 8, 8), WHOLE, matte_config())
    flat = torch.tensor([-1.0, 1.0]).sigmoid().sub(0.05).div(0.9)
    assert shadow[:, 8:-8, 8:-8].std() < 0.2 * flat.std()
    assert torch.allclose(shadow[:, 8:-8, 8:-8].mean(), flat.mean(), atol=0.01)


def test_a_shadow_fades_over_the_last_cell_of_the_hole_and_not_at_the_picture_s_edge():
    hole = torch.zeros(1, 1, 8, 8)
    hole[:, :, 2:, 2:6] = 1  # down to the picture's edge
    _, shadow = matte_pixels(torch.full((1, 8, 8, 8), 2.0), hole, matte_config())
    full = float(shadow[0, 63, 32])
    assert full > 0.8
    side, top = shadow[0, 40, 16:32] / full, shadow[0, 16:32, 32] / full
    for line in (side, top):
        assert line[0] < 0.3 and (line.diff() > -1e-6).all() and (line[10:] > 0.99).all()


def test_an_unsure_edge_is_made_narrow_and_a_shadow_stays_as_soft_as_it_is():
    ramp = torch.linspace(0.01, 0.99, 8)[:, None].expand(1, 8, 8, 8)
    alpha, shadow = matte_pixels(torch.logit(ramp), WHOLE, matte_config())
    soft = [int(((each > 0) & (each < 1)).sum(1).max()) for each in (alpha, shadow)]
    assert soft[0] < 0.6 * soft[1], soft


def test_what_is_nearly_nothing_is_nothing():
    alpha, shadow = matte_pixels(torch.full((1, 8, 8, 8), -3.0), WHOLE, matte_config())
    assert not alpha.any() and not shadow.any()
    alpha, _ = matte_pixels(torch.full((1, 8, 8, 8), 3.0), WHOLE, matte_config())
    assert torch.equal(alpha, torch.ones(1, 64, 64))


def test_nothing_is_outside_the_hole():
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 2:5, 3:] = 1
    alpha, shadow = matte_pixels(torch.full((2, 8, 8, 8), 3.0), hole, matte_config())
    # Of the four pixels that a value covers, two are mixed with its neighbour's.
    assert torch.equal(alpha[:, 18:38, 26:], torch.ones(2, 20, 38))
    assert torch.equal(shadow[:, 26:30, 34:], torch.ones(2, 4, 30))  # a cell from the edge
    for each in (alpha, shadow):
        assert not each[:, :14].any() and not each[:, 42:].any() and not each[:, :, :22].any()


def test_half_covered_pixels_are_wholly_generated_and_the_unknown_stays_unknown():
    config = matte_config()
    values = matte_values(torch.full((1, 64, 64), 0.5), torch.full((1, 64, 64), -1.0), config)
    assert torch.equal(values[:, :4], torch.ones(1, 4, 8, 8)) and torch.equal(values[:, 4:], -torch.ones(1, 4, 8, 8))
    assert matte_values(torch.ones(3, 64, 64), torch.ones(3, 64, 64), micro_config()).shape == (3, 0, 8, 8)


def test_the_picture_is_the_equation_and_the_background_where_both_maps_are_0():
    background, generated = noise(2, 3, 40, 40), noise(2, 3, 40, 40, seed=1)
    alpha, shadow = noise(2, 40, 40, seed=2), noise(2, 40, 40, seed=3)
    free = noise(2, 40, 40, seed=4) > 0.5
    alpha[free], shadow[free] = 0, 0
    a, s = alpha[:, None], shadow[:, None]
    picture = apply_matte(background, generated, alpha, shadow)
    assert torch.allclose(picture, a * generated + (1 - a) * (1 - s) * background, atol=1e-6)
    kept = free[:, None].expand_as(picture)
    assert torch.equal(picture[kept], background[kept])


@pytest.mark.parametrize("method", BLENDS)
def test_blending_with_a_matte_keeps_what_is_free_in_the_hole(method):
    background, generated = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    masks = torch.zeros(2, 64, 64)
    masks[0, 10:50, 10:50] = masks[1, 30:64, 0:20] = 1
    everything = torch.ones(2, 64, 64), torch.zeros(2, 64, 64)
    plain = blend_pictures(background, generated, masks, 0, 3, method)
    assert torch.equal(blend_pictures(background, generated, masks, 0, 3, method, everything), plain)
    nothing = torch.zeros(2, 64, 64), torch.zeros(2, 64, 64)
    assert torch.equal(blend_pictures(background, generated, masks, 0, 3, method, nothing), background)
    shade = torch.zeros(2, 64, 64), torch.full((2, 64, 64), 0.5)
    shaded = blend_pictures(background, generated, masks, 0, 0, "feather", shade)
    assert torch.equal(shaded, torch.where(masks[:, None] > 0, background * 0.5, background))


def test_a_grown_matte_leaves_the_prediction_as_it_was():
    checkpoint = fresh_checkpoint(micro_config())
    grown = with_matte(checkpoint, 2)
    assert grown.config == matte_config() and with_matte(grown, 0).config == checkpoint.config
    weight, bias = (grown.parts["unet"][f"conv_out.{name}"] for name in ("weight", "bias"))
    assert torch.equal(weight[:4], checkpoint.parts["unet"]["conv_out.weight"])
    assert weight.shape[0] == 12 and not weight[4:].any() and not bias[4:].any()
    assert with_matte(grown, 0).parts["unet"]["conv_out.weight"].shape[0] == 4
    with pytest.raises(ImprintError, match="matte is 3; it must divide"):
        with_matte(checkpoint, 3)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """The same model without a matte, and with one that sees the object everywhere, nowhere, or in random places."""
    folder, plain = tmp_path_factory.mktemp("matte"), fresh_checkpoint(micro_config())
    made = {"plain": plain, "object": with_matte(plain, 2), "nothing": with_matte(plain, 2)}
    made["varied"] = with_matte(plain, 2)
    for name, value in (("object", 9.0), ("nothing", -9.0)):
        made[name].parts["unet"]["conv_out.bias"][4:8] = value
        made[name].parts["unet"]["conv_out.bias"][8:] = -9.0
    varied = made["varied"].parts["unet"]["conv_out.weight"]
    varied[4:] = torch.randn(varied[4:].shape, generator=seeded())
    loaded = {}
    for name, checkpoint in made.items():
        path = folder / f"{name}.safetensors"
        save_checkpoint(path, checkpoint)
        loaded[name] = DrawingPipeline.from_checkpoint(path)
    return loaded


def run(pipeline, scene, **settings):
    thing, background, hole = scene
    return pipeline(thing, None, background, hole, generator=seeded(), output_type="pt", **settings)


def test_a_matte_that_sees_the_object_everywhere_changes_nothing_in_the_hole(pipelines, scene):
    plain, matted = run(pipelines["plain"], scene), run(pipelines["object"], scene, num_results=1, shadow=0.0)
    assert plain.alpha is None and not matted.shadow.any()
    alpha = matted.placement.insert(torch.zeros(1, 1, 90, 120), matted.alpha[:, None])
    inside = mask_to_tensor(scene[2])[:, None] > 0
    assert alpha[inside].mean() > 0.98  # beside the hole's edge, as soft as the maps are
    sure = (alpha > 0.9999).expand_as(plain.images)
    assert torch.allclose(plain.images[sure], matted.images[sure], atol=1e-3)
    free = (alpha == 0).expand_as(plain.images)
    assert torch.equal(matted.images[free], image_to_tensor(scene[1])[free])


def test_a_matte_that_sees_nothing_leaves_the_background(pipelines, scene):
    result = run(pipelines["nothing"], scene)
    empty = run(pipelines["nothing"], scene, matte=False)
    plain = run(pipelines["plain"], scene)
    assert not result.alpha.any() and not torch.equal(result.images, plain.images)
    assert torch.allclose(empty.images, plain.images, atol=1e-5) and empty.alpha is None
    assert torch.equal(result.images, image_to_tensor(scene[1]))


@pytest.mark.parametrize("scheduler, calls", [("EulerDiscreteScheduler", 3), ("HeunDiscreteScheduler", 5)])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_the_matte_is_the_last_evaluation_s_with_the_object(pipelines, scene, scheduler, calls, guidance):
    """Even if a scheduler evaluates more than once a step; the matte needs no evaluation of its own."""
    pipeline = DrawingPipeline(**pipelines["varied"].components)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    config, denoise, holes, outputs = pipeline.model_config, pipeline.denoise, [], []
    pipeline.denoise = lambda **named: holes.append(named["hole"]) or denoise(**named)
    watch = pipeline.unet.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.sample))
    result = run(pipeline, scene, num_results=2, guidance_scale=guidance)
    watch.remove()
    assert [len(output) for output in outputs] == calls * [2 if guidance == 1 else 4]
    mattes = [matte_pixels(split_matte(output[-2:], config)[1], *holes, config) for output in outputs]
    assert torch.equal(result.alpha, mattes[-1][0])
    assert not torch.allclose(mattes[-2][0], result.alpha, atol=1e-2)


def test_the_presets_have_a_matte():
    for name, config in PRESETS.items():
        assert config.matte == 4, name
        output = torch.zeros(1, config.unet.out_channels, 2, 2)
        assert [part.shape[1] for part in split_matte(output, config)] == [4, 32]
    with pytest.raises(ImprintError, match="matte 2 on 4 latent channels need 4 and 12"):
        dataclasses.replace(micro_config(), matte=2)
