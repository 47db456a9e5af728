"""ControlCom's additions to the other third-party models: what to change, local blocks, and boxes as holes.

That its tokens, predictions and latents match its authors' code is tested in `test_third_party.py`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import third_party_weights
import torch
from drawing import DrawingPipeline
from micro import cutout, fresh_checkpoint, micro_config, photo, rectangle, seeded, told_config
from PIL import Image
from safetensors.torch import load_file

from imprint import cli
from imprint.changes import CHANGES
from imprint.checkpoint import load_checkpoint, save_checkpoint
from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.local import LocalScene, fill, input_blocks, roi_align
from imprint.mask_reading import alpha_to_tensor
from imprint.pipeline import ImprintPipeline
from imprint.place import Place
from imprint.third_party import from_tensors, read_third_party, with_diffusers_names
from imprint.unet import predict, with_background

GOLDEN = load_file(third_party_weights.FOLDER / "controlcom.safetensors")


@pytest.fixture(scope="module")
def told_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("told") / "told.safetensors"
    save_checkpoint(path, fresh_checkpoint(told_config()))
    return path


@pytest.fixture
def told(told_file):
    """A pipeline with a small model that is told what to change; a placed object is placed."""
    pipeline = ImprintPipeline.from_checkpoint(told_file)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def scene():
    return cutout(40, 30), photo(100, 80, seed=1), rectangle(100, 80, (30, 20, 70, 60))


# --- local blocks


@pytest.mark.parametrize("region", ["corner", "box"])
def test_roi_align_is_torchvision_s(region):
    features = third_party_weights.uniform("features", (1, 2, 40, 40))
    box = torch.tensor([[3.0, 7.0, 29.0, 36.0]])
    found = roi_align(features, box / 40 if region == "corner" else box, 16)
    assert (found[:, :1] - GOLDEN[f"roi_{region}"]).abs().max() < 1e-6


def test_the_published_region_is_the_map_s_first_cells():
    """A box given in fractions of the map ends at most one cell from its corner: most of the map is not seen."""
    features = torch.zeros(1, 1, 32, 32)
    features[:, :, 3:, :] = features[:, :, :, 3:] = 9
    boxes = torch.tensor([[0.1, 0.2, 0.9, 0.95]])
    assert not roi_align(features, boxes, 16).any()
    assert roi_align(features, boxes * 32, 16).mean() > 8


def test_fill_is_the_nearest_value_in_its_box():
    square = torch.rand(2, 3, 16, 16)
    boxes = [(3, 5, 10, 20), (0, 1, 24, 24)]
    found = fill(square, torch.tensor(boxes), (24, 24))
    for index, (top, left, bottom, right) in enumerate(boxes):
        expected = torch.zeros(3, 24, 24)
        part = torch.nn.functional.interpolate(square[index : index + 1], (bottom - top, right - left))[0]
        expected[:, top:bottom, left:right] = part
        assert torch.equal(found[index], expected)


def test_boxes_are_rounded_down_at_coarser_levels_and_never_empty():
    hole = torch.zeros(2, 1, 16, 16)
    hole[0, :, 4:12, 5:13] = hole[1, :, 15:, 15:] = 1
    config = told_config()
    seen = with_background(torch.zeros(2, 4, 16, 16), torch.zeros(2, 4, 16, 16), hole, config, "pose")
    scene = LocalScene.of(seen, torch.zeros(2, 4, 32), config)
    assert scene.boxes.tolist() == [[4, 5, 12, 13], [15, 15, 16, 16]]
    assert scene.cells(16, 16).tolist() == scene.boxes.tolist()
    assert scene.cells(8, 8).tolist() == [[2, 2, 6, 6], [7, 7, 8, 8]]
    assert scene.changes.tolist() == [[0, 1], [0, 1]]


def test_local_blocks_follow_the_layers_that_they_do_in_the_file():
    unet = replace(told_config().unet, widths=(32, 64, 64, 64), transformer_layers=(1, 1, 1, 0), heads=(1,) * 4)
    assert input_blocks(replace(unet, layers_per_block=2, local_levels=2)) == [1, 2, 4, 5]


def test_local_tokens_change_the_box_and_a_batch_is_its_pictures(told):
    """Two holes in one batch give the same as each by itself."""
    config, unet = told.model_config, told.unet
    side = config.resolution // config.latent.downscale
    noise, background = torch.randn(2, 4, side, side, generator=seeded(1)), torch.zeros(2, 4, side, side)
    hole = torch.zeros(2, 1, side, side)
    hole[0, :, 1:4, 1:4] = hole[1, :, 3:8, 2:7] = 1
    context, local = torch.randn(2, 1, 32, generator=seeded(2)), torch.randn(2, 4, 32, generator=seeded(3))
    seen = with_background(noise, background, hole, config, "both")
    together = predict(unet, seen, 500, context, config, local)
    for index in range(2):
        one = slice(index, index + 1)
        alone = predict(unet, seen[one], 500, context[one], config, local[one])
        assert (alone - together[one]).abs().max() < 1e-5
    assert (predict(unet, seen, 500, context, config, -local) - together).abs().max() > 1e-3


# --- what may be changed


def test_their_code_s_prediction_with_another_change_is_ours():
    checkpoint = with_diffusers_names(from_tensors(third_party_weights.random_weights("small", "controlcom")))
    from imprint.model import build_modules, load_modules

    modules, config = build_modules(checkpoint.config), checkpoint.config
    load_modules(modules, checkpoint)
    given = third_party_weights.scene("small")
    with torch.no_grad():
        _, local = config.encoder.split(modules["encoder"].eval()(given["pixels"]))
        found = {}
        for change in CHANGES:
            seen = with_background(given["noise"], given["background"], given["hole"], config, change)
            found[change] = predict(modules["unet"].eval(), seen, 500, GOLDEN["context"], config, local)
    assert (found["pose"][..., ::2, ::2] - GOLDEN["prediction_turned"]).abs().max() < 1e-3
    assert (found["light"] - GOLDEN["prediction"]).abs().max() < 1e-3
    for one in CHANGES:
        assert all((found[one] - found[other]).abs().max() > 0.1 for other in CHANGES if other != one)


def test_only_the_object_s_box_changes(told, scene):
    """For an outline, the model draws in its box; outside the box and its soft edge the photo stays."""
    subject, background, _ = scene
    outline = Image.new("L", background.size)
    outline.paste(255, (40, 20, 60, 60))
    outline.paste(255, (30, 35, 70, 45))  # a cross
    result = told(subject, None, background, outline, generator=seeded(0), feather_pixels=0)
    changed = (np.asarray(result.images[0]) != np.asarray(background)).any(2)
    assert changed[20:60, 30:70].mean() > 0.9
    changed[20:60, 30:70] = False
    assert not changed.any()


@pytest.mark.parametrize("change", CHANGES)
def test_with_change_the_model_draws_where_the_object_lies(told, scene, change, monkeypatch):
    """Where the model draws depends on `change`.

    keep and light: in the object's own box, as fitted into the mask's, from the object's photo as it lies there; pose
    and both: in the mask's whole box, from the photo as it is.
    """
    subject, background, mask = scene
    drawn = []
    prepare = told.prepare
    monkeypatch.setattr(told, "prepare", lambda *given: drawn.append(prepare(*given)) or drawn[-1])
    result = told(subject, None, background, mask, generator=seeded(0), change=change)
    assert result.lit is None
    (prepared,) = drawn
    wide = subject.crop(alpha_box(subject))
    box = (30, 20, 70, 60) if change in ("pose", "both") else None
    found = Image.fromarray(prepared.crop.frame_mask[0].numpy().astype(np.uint8) * 255)
    left, top, right, bottom = found.getbbox()
    rows, columns = prepared.crop.area
    here = (left + columns.start, top + rows.start, right + columns.start, bottom + rows.start)
    if box:
        assert here == box and prepared.views.pictures[0].shape[2:] == subject.size[::-1]
    else:
        assert here[3] == 60 and 38 <= here[2] - here[0] <= 40  # on the lower edge, as wide as the box
        assert abs((here[3] - here[1]) / 40 - wide.height / wide.width) < 0.1
        assert prepared.views.pictures[0].shape[2:] == (here[3] - here[1], here[2] - here[0])


def alpha_box(image: Image.Image) -> tuple[int, int, int, int]:
    return Image.fromarray((alpha_to_tensor(image)[0].numpy() > 0.5).astype(np.uint8)).getbbox()


def test_a_placed_object_is_lit_unless_it_is_said_what_to_change(told, scene):
    subject, background, _ = scene
    place = Place(50, 60, 30)
    lit = told(subject, None, background, place=place, output_type="pt")
    drawn = told(subject, None, background, place=place, change="light", generator=seeded(0), output_type="pt")
    assert lit.lit is not None and drawn.lit is None and not torch.equal(lit.images, drawn.images)
    others = [
        told(subject, None, background, place=place, change=change, generator=seeded(0), output_type="pt").images
        for change in CHANGES
        if change != "light"
    ]
    assert all(not torch.equal(drawn.images, other) for other in others)
    with pytest.raises(ImprintError, match="change is 'colour'; it must be one of keep, light, pose, both"):
        told(subject, None, background, place=place, change="colour")


def test_several_results_are_those_one_by_one(told, scene):
    noise = torch.randn(2, 4, 8, 8, generator=seeded(4))
    settings = {"output_type": "pt", "change": "both"}
    together = told(*scene[:1], None, *scene[1:], latents=noise, num_results=2, **settings).images
    for index in range(2):
        alone = told(*scene[:1], None, *scene[1:], latents=noise[index : index + 1], **settings).images
        assert (together[index] - alone[0]).abs().max() < 1e-4


def test_other_checkpoints_cannot_be_told(scene, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", fresh_checkpoint(micro_config()))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ImprintError, match="this checkpoint has no choice of what to change"):
        pipeline(scene[0], None, *scene[1:], change="light")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"changes": False}, "local_levels is 1"),
        ({"background": "blend"}, "and no matte"),
        ({"matte": 2}, "and no matte"),
        ({"hole_shape": "round"}, "'outline' or 'box'"),
    ],
)
def test_configurations_that_cannot_be(changes, words):
    with pytest.raises(ImprintError, match=words):
        replace(told_config(), **changes)
    config = told_config()
    for part, field, value in (("unet", "local_levels", 2), ("unet", "local_levels", 0), ("encoder", "local_layer", 5)):
        with pytest.raises(ImprintError, match="local"):
            replace(config, **{part: replace(getattr(config, part), **{field: value})})


# --- files and the command line


def test_composites_on_the_command_line(told_file, scene, tmp_path, capsys):
    subject, background, mask = scene
    for name, picture in (("object", subject), ("background", background), ("mask", mask)):
        picture.save(tmp_path / f"{name}.png")
    words = ["--checkpoint", str(told_file), "--background", str(tmp_path / "background.png"), "--steps", "1"]
    words += ["--object", str(tmp_path / "object.png"), "--mask", str(tmp_path / "mask.png"), "--device", "cpu"]
    for change in ("keep", "both"):
        assert cli.main(["composite", *words, "--change", change, "--out", str(tmp_path / f"{change}.png")]) == 0
    assert Image.open(tmp_path / "keep.png").tobytes() != Image.open(tmp_path / "both.png").tobytes()
    more = ["--change", "light", "--layers", str(tmp_path), "--out", str(tmp_path / "a.png")]
    assert cli.main(["composite", *words, *more]) == 2
    assert "without fit and change, or leave --layers out" in capsys.readouterr().err
    job = {"object": "object.png", "background": "background.png", "mask": "mask.png", "change": "keep", "out": "b.png"}
    lines = [json.dumps(job), json.dumps(job | {"change": "colour", "out": "c.png"})]
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    assert cli.main(["batch", str(tmp_path / "jobs.jsonl"), *words[:2], "--steps", "1", "--device", "cpu"]) == 2
    assert "line 2: change is 'colour'" in capsys.readouterr().err
    assert Image.open(tmp_path / "b.png").tobytes() == Image.open(tmp_path / "keep.png").tobytes()


def test_converting_with_the_region_that_was_meant(tmp_path):
    released, out = tmp_path / "ControlCom.pth", tmp_path / "ours.safetensors"
    weights = third_party_weights.random_weights("small", "controlcom")
    torch.save({"state_dict": weights}, released)
    found = {}
    for region in ("corner", "box"):
        assert cli.main(["convert", str(released), str(out), "--local-region", region]) == 0
        checkpoint = load_checkpoint(out)
        assert checkpoint.config.unet.local_region == region
        assert ImprintConfig.from_json(checkpoint.config.to_json()) == checkpoint.config
        pipeline = ImprintPipeline.from_checkpoint(out)
        given = third_party_weights.scene("small")
        seen = with_background(given["noise"], given["background"], given["hole"], checkpoint.config, "light")
        local = torch.randn(1, 256, 1024, generator=seeded(0))
        found[region] = predict(pipeline.unet, seen, 500, GOLDEN["context"], checkpoint.config, local)
    assert (found["box"] - found["corner"]).abs().max() > 0.01


@pytest.mark.parametrize(
    "missing",
    [
        "cond_stage_model.proj_out.bias",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.2.SPADE.conv_beta.bias",
        "model.diffusion_model.input_blocks.3.2.local_proj_in.weight",
        "model.diffusion_model.input_blocks.3.2.",
        "SPADE",
    ],
)
def test_a_partial_file_says_what_is_missing(missing):
    """Even if nothing is left of one level's local blocks, or of all."""
    shapes = third_party_weights.shapes("small", "controlcom")
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if missing not in name}
    with pytest.raises(ImprintError) as caught:
        with_diffusers_names(from_tensors(tensors))
    message = str(caught.value)
    assert (f"'{missing}'" in message or "is missing" in message) and "\n" not in message, message


def test_a_whole_lightning_file_is_read_for_its_weights(tmp_path):
    """A training run's file also holds an average and an optimizer's moments, which are ignored."""
    shapes = third_party_weights.shapes("small", "controlcom")
    weights = {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}
    average = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in weights.items() if "diffusion" in name}
    moments = {index: {"exp_avg": tensor, "step": 7} for index, tensor in enumerate(weights.values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-5, "params": list(moments)}]}
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 19, "state_dict": weights | average, "optimizer_states": [optimizer]}, path)
    whole, expected = read_third_party(path), from_tensors(weights)
    assert whole.config == expected.config
    assert {part: tensors.keys() for part, tensors in whole.parts.items()} == {
        part: tensors.keys() for part, tensors in expected.parts.items()
    }
    with_diffusers_names(whole)
