"""AnyDoor's released file: our code computes the same from it as its own code."""

import pytest
import third_party_weights as weights
import torch
from diffusers import DDIMScheduler
from drawing import DrawingPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from test_third_party import write

from imprint import cli
from imprint.checkpoint import load_checkpoint
from imprint.config import PRESETS, ImprintConfig
from imprint.crop import Crop
from imprint.errors import ImprintError
from imprint.hint import control_hint, high_frequencies
from imprint.model import build_modules, load_modules
from imprint.noise import make_scheduler
from imprint.preprocess import black_picture, prepare_object
from imprint.third_party import from_tensors, kind_of, open_checkpoint, read_third_party, with_diffusers_names
from imprint.unet import control_residuals, predict
from imprint.views import ObjectViews

KIND = "anydoor"
GOLDEN = weights.FOLDER / f"{KIND}.safetensors"


def synthetic(size: str) -> dict[str, torch.Tensor]:
    """Every tensor of the released file with its shape, filled with one number: small on disk."""
    shapes = weights.shapes(size, KIND).items()
    return {name: torch.tensor(index % 7 / 1000).expand(shape) for index, (name, shape) in enumerate(shapes)}


def metadata() -> dict[str, str]:
    with safe_open(GOLDEN, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def pipeline():
    """The pipeline with the seeded weights, in fp32."""
    checkpoint = with_diffusers_names(from_tensors(weights.random_weights("small", KIND)))
    modules = build_modules(checkpoint.config)
    load_modules(modules, checkpoint)
    for module in modules.values():
        module.eval().requires_grad_(False)
    scheduler = make_scheduler(checkpoint.config.noise)
    return DrawingPipeline(**modules, scheduler=scheduler, model_config=checkpoint.config)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def contexts(pipeline):
    """The object's context and the one without an object."""
    context = pipeline.adapter(pipeline.encoder(weights.scene("small")["pixels"])[None])
    return context, pipeline.null_context(context)


# --- against its code
# -------------------------------------------------------------------------------------------------


def test_its_code_s_tokens_are_ours(contexts, golden):
    for ours, name in zip(contexts, ("context", "null")):
        assert ours.shape == (1, 257, 48) and ours.std() > 0.9
        assert (ours[:, ::16] - golden[name]).abs().max() < 1e-3
    assert (contexts[0] - contexts[1]).abs().max() > 1


def test_its_code_s_prediction_is_ours(pipeline, contexts, golden):
    scene = weights.scene("small")
    given = scene["noise"], torch.tensor(500), contexts[0]

    def predicted(hint: torch.Tensor | None) -> torch.Tensor:
        residuals = None if hint is None else control_residuals(pipeline.control, *given, hint)
        return predict(pipeline.unet, *given, pipeline.model_config, residuals=residuals)

    assert (predicted(scene["hint"]) - golden["prediction"]).abs().max() < 1e-3
    for other in (-scene["hint"], None):  # the hint is seen
        assert (predicted(other) - golden["prediction"]).abs().max() > 0.3


def test_the_controlnet_never_sees_the_latent(pipeline, contexts):
    scene = weights.scene("small")
    given = torch.tensor(500), contexts[0], scene["hint"]
    one, other = (pipeline.control(latent, *given).mid_block_res_sample for latent in (scene["noise"], -scene["noise"]))
    assert torch.equal(one, other) and one.std() > 0.1


def test_its_sampler_s_latents_after_ten_steps_are_ours(pipeline, contexts, golden):
    scene, latents = weights.scene("small"), []
    theirs = DDIMScheduler.from_config(pipeline.scheduler.config)

    def keep(_pipeline, _index, _timestep, given):
        latents.append(given["latents"])
        return {}

    given = (contexts[0], scene["background"], scene["hole"], scene["noise"])
    DrawingPipeline(**pipeline.components | {"scheduler": theirs}).denoise(
        *given, steps=10, guidance=5.0, callback=keep, hint=scene["hint"]
    )
    assert len(latents) == 10 and golden["latent"].std() > 1
    assert (latents[-1] - golden["latent"]).abs().max() < 1e-3
    with pytest.raises(ImprintError, match=r"ControlNet; give the hint"):
        pipeline.denoise(*given, steps=1)


@pytest.mark.parametrize("hole", weights.HOLES)
def test_its_code_s_hint_is_ours_to_the_last_bit(pipeline, hole):
    """In a box, in the user's shape, and beyond the background's border, in the square that its code used."""
    scene, said = weights.collage_scene(hole), metadata()
    top, bottom, left, right = map(int, said[f"{hole}.square"].split())
    mask = scene["mask"].clone()
    mask[:, scene["mask"][0].any(1).nonzero().max()] = 0  # its code loses the last row and column of the object's box
    mask[:, :, scene["mask"][0].any(0).nonzero().max()] = 0
    views, encoder = ObjectViews.of(scene["object"], mask), pipeline.model_config.encoder
    crop = Crop.of(
        scene["background"][..., top:bottom, left:right],
        scene["hole"][..., top:bottom, left:right],
        pipeline.model_config,
        context=9.0,
    )
    hint = control_hint(views, crop, encoder)
    assert hint.shape == (1, 4, 512, 512) and hint.min() == -1 and hint.max() == 1
    whole = torch.cat([(hint[:, :3] + 1) * 127.5, hint[:, 3:] + 1], 1)
    assert weights.digest(whole) == said[f"{hole}.hint"]
    _, cutout = prepare_object(scene["object"], mask, encoder)
    assert weights.digest(cutout[0].movedim(0, -1) * 255) == said["reference"]


def test_a_placed_object_is_sketched_where_it_lies(pipeline):
    """Given in a picture of the background's size, with its mask as the hole, it is neither stretched nor shrunk."""
    picture, hole = torch.zeros(1, 3, 512, 512), torch.zeros(1, 512, 512)
    picture[:, :, 200:300, 100:400] = (torch.arange(300) % 20 < 10).float()  # stripes, three times as wide as high
    hole[:, 200:300, 100:400] = 1
    config, found = pipeline.model_config, {}
    crop = Crop.of(torch.ones(1, 3, 512, 512), hole, config, context=9.0)
    for name, more in (("placed", 0), ("not", 8)):  # a picture of another size was not placed
        views = ObjectViews.of(torch.nn.functional.pad(picture, (0, more)), torch.nn.functional.pad(hole, (0, more)))
        sketch = control_hint(views, crop, config.encoder)[0, :3, 196:304, 87:413].amax(0) > -0.99
        extents = [line.nonzero() for line in (sketch.any(1), sketch.any(0))]
        found[name] = [int(extent.max() - extent.min() + 1) for extent in extents]
    height, width = found["placed"]
    assert 80 <= height <= 100 and 270 <= width <= 300  # less what is left out at the object's edge
    assert found["not"][0] < 40  # in a square of its own width, squeezed to the box's height


def test_the_golden_numbers_say_where_they_come_from():
    assert len(metadata()["commit"]) == 40 and "/" in metadata()["repository"]


def test_high_frequencies_are_edges_in_the_object_alone():
    picture = torch.zeros(1, 3, 224, 224)
    picture[..., 112:] = 200
    mask = torch.zeros(1, 224, 224)
    mask[:, 56:168, 56:168] = 255
    edges = high_frequencies(picture, mask)
    seen = edges.amax((0, 1)) > 0
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    assert (columns - 112).abs().max() <= 3
    assert 58 <= rows.min() <= 61 and 163 <= rows.max() <= 166  # four pixels of 256 within the mask
    assert not high_frequencies(picture // 8, mask).any()  # faint ones are none


def test_no_object_is_a_black_picture(pipeline):
    pixels = black_picture(pipeline.model_config.encoder)
    assert pixels.shape == (1, 3, 224, 224) and pixels.std((2, 3)).max() < 1e-6 and pixels.max() < -1.8


def test_a_whole_composite(pipeline):
    given = {"num_inference_steps": 1, "output_type": "pt", "context": 1.5}
    pipeline.set_progress_bar_config(disable=True)
    scene = weights.collage_scene("box")
    result = pipeline(
        scene["object"],
        scene["mask"],
        scene["background"][..., ::4, ::4],
        scene["hole"][..., ::4, ::4],
        **given,
        resolution=64,
        num_results=2,
    )
    assert result.images.shape == (2, 3, 175, 200) and result.images.isfinite().all()
    with pytest.raises(ImprintError, match=r"got 2 views.*takes one picture"):
        pipeline.encode_object([scene["object"]] * 2, [scene["mask"]] * 2)


# --- files
# -------------------------------------------------------------------------------------------------------------


def test_the_released_file_s_key_list(tmp_path):
    """At full size, in a trainer's file that also has the optimizer's moments: sizes, and every name of every part."""
    moments = {index: {"step": 8687, "exp_avg": torch.tensor(1.0).expand(9, 9)} for index in range(3)}
    beside = {"optimizer_states": [{"state": moments, "param_groups": [{"params": [0, 1, 2]}]}], "lr_schedulers": []}
    file = write(tmp_path / "epoch=1-step=8687.ckpt", synthetic("full"), epoch=1, global_step=8687, **beside)
    assert file.stat().st_size < 2e6
    read = read_third_party(file)
    for kind in ("weight", "bias"):
        assert not read.parts["control"][f"input_blocks.0.0.{kind}"].any()
    checkpoint = with_diffusers_names(read)  # which compares names and shapes with the modules
    config = checkpoint.config
    assert kind_of(config) == KIND and ImprintConfig.from_json(config.to_json()) == config
    encoder, unet = config.encoder, config.unet
    assert (encoder.width, encoder.layers, encoder.heads, encoder.image_size) == (1536, 40, 24, 224)
    assert encoder.swiglu and encoder.tokens == 257 and config.adapter.output_width == 1024
    assert unet.widths == (320, 640, 1280, 1280) and unet.transformer_layers == (1, 1, 1, 0)
    assert unet.heads == (5, 10, 20, 20) and unet.linear_projections and unet.upcast_attention
    assert (unet.in_channels, unet.out_channels, unet.layers_per_block, unet.context_width) == (4, 4, 2, 1024)
    count = sum(tensor.numel() for part in checkpoint.parts.values() for tensor in part.values())
    positions = (37**2 - 16**2) * 1536
    assert count == 2_451_860_627 - 13 * 1000 - positions  # what its code holds, without the schedule's tables


def test_convert(tmp_path, capsys):
    file, out = write(tmp_path / "released.ckpt", synthetic("small")), tmp_path / "ours.safetensors"
    assert cli.main(["convert", str(file), str(out)]) == 0
    assert KIND in capsys.readouterr().out
    checkpoint, source = load_checkpoint(out), with_diffusers_names(read_third_party(file))
    assert checkpoint.config == source.config and kind_of(checkpoint.config) == KIND
    assert checkpoint.parts.keys() == {"encoder", "adapter", "unet", "vae", "control"}
    for part, tensors in source.parts.items():
        assert tensors.keys() == checkpoint.parts[part].keys()
        for name, tensor in tensors.items():
            made = checkpoint.parts[part][name]
            assert made.dtype == torch.float16 and torch.equal(made, tensor.half()), f"{part}.{name}"
    pipeline = DrawingPipeline.from_checkpoint(out, torch_dtype=torch.float16)
    assert not pipeline.control.conv_in.weight.any() and pipeline.model_config == checkpoint.config
    pipeline.save_checkpoint(tmp_path / "again.safetensors")
    assert load_checkpoint(tmp_path / "again.safetensors").parts["control"].keys() == checkpoint.parts["control"].keys()


def test_a_converted_checkpoint_needs_its_controlnet(tmp_path):
    checkpoint = with_diffusers_names(from_tensors(synthetic("small")))
    del checkpoint.parts["control"]
    with pytest.raises(ImprintError, match="part 'control' has 0 tensors"):
        load_modules(build_modules(checkpoint.config), checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.projector.weight",
        "cond_stage_model.model.pos_embed",
        "cond_stage_model.model.blocks.1.mlp.w12.bias",
        "control_model.input_blocks.0.0.bias",
        "control_model.zero_convs.1.0.weight",
        "control_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_a_file_without_a_tensor_is_refused(tmp_path, name):
    tensors = synthetic("small")
    del tensors[name]
    file = write(tmp_path / "partial.ckpt", tensors)
    assert cli.main(["convert", str(file), str(tmp_path / "out.safetensors")]) == 2
    with pytest.raises(ImprintError, match="lacks the tensor|tensors where|missing"):
        with_diffusers_names(read_third_party(file))
    assert not (tmp_path / "out.safetensors").exists()


def test_another_controlnet_is_refused(tmp_path):
    """A ControlNet of Stable Diffusion 2.1 beside its UNet has a text encoder."""
    tensors = {name: value for name, value in synthetic("small").items() if not name.startswith("cond_stage_model.")}
    file = write(tmp_path / "control_sd21.ckpt", tensors)
    with pytest.raises(ImprintError, match=r"lacks the tensor 'cond_stage_model.* every file of anydoor has"):
        open_checkpoint(file)
    with pytest.raises(ImprintError, match="lacks the tensor"):
        read_third_party(write(tmp_path / "released.ckpt", synthetic("small")), "objectstitch")


def test_a_background_of_one_line_has_a_hint():
    tiny, mask = PRESETS["tiny"], torch.ones(1, 1, 300)
    views = ObjectViews.of(torch.rand(1, 3, 8, 8), torch.ones(1, 8, 8))
    hint = control_hint(views, Crop.of(torch.rand(1, 3, 1, 300), mask, tiny), tiny.encoder)
    assert hint.shape == (1, 4, tiny.resolution, tiny.resolution) and hint.isfinite().all()
