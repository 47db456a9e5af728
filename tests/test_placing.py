"""An object that is placed, through the pipeline, the command line and a jobs file; the model draws none of them."""

import builtins
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import cutout, micro_light, photo, rectangle
from mutations import mutated
from PIL import Image, ImageCms
from torch.utils._python_dispatch import TorchDispatchMode

from imprint import cli
from imprint import cutout as removal
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.jobs import Job
from imprint.light import square_around
from imprint.options import PLACING
from imprint.pipeline import ImprintPipeline
from imprint.place import Align, Place, PlacedObject, place_object
from imprint.views import ObjectViews

NAMES = ("object", "background", "box", "layer")


@pytest.fixture(scope="module")
def _placing(micro_file):
    pipeline = ImprintPipeline.from_checkpoint(micro_file)
    pipeline.register_modules(light=micro_light())
    return pipeline


@pytest.fixture
def placing(_placing, monkeypatch) -> ImprintPipeline:
    """The micro model with a small light network; drawing with it fails the test."""
    monkeypatch.setattr(_placing, "prepare", lambda *_, **__: pytest.fail("the model drew"))
    return _placing


@pytest.fixture
def layer() -> Image.Image:
    """The object in a picture of the frame's size, as an artist has put it there."""
    whole = Image.new("RGBA", (120, 90))
    subject = cutout(40, 50, seed=1)
    soft = Image.fromarray(np.asarray(subject.getchannel("A").resize((13, 17)).resize((40, 50), Image.BICUBIC)))
    subject.putalpha(soft)
    whole.paste(subject, (60, 30))
    return whole


def place_of(scene, rotate: float = 0, flip: bool = False) -> PlacedObject:
    subject, background, box = scene
    mask = torch.from_numpy(np.array(box)) / 255
    return place_object(ObjectViews.of(subject), background.size[::-1], mask, rotate=rotate, flip=flip)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_box_takes_the_object_s_photo_and_nothing_beyond_its_square_changes(placing, scene):
    subject, background, box = scene
    made = placing(subject, None, background, box, output_type="pt")
    placed = place_of(scene)
    before = image_to_tensor(background)
    changed = (made.images != before).any(1)[0]
    rows, columns = placed.area
    assert changed[rows, columns].float().mean() > 0.5
    changed[square_around(placing.light, placed).area] = False
    assert not changed.any()
    assert (made.lit.shadow > 0).any() and made.lit.area == square_around(placing.light, placed).area
    assert made.alpha.shape == made.shadow.shape == (1, 64, 64) and made.alpha.max() > 0.9


def test_without_light_and_shadow_it_is_a_paste_bit_for_bit(placing, scene, layer):
    subject, background, box = scene
    off = {"light": 0.0, "shadow": 0.0}
    made = placing(layer, None, background, placed=True, **off).images[0]
    alpha, expected = np.asarray(layer)[..., 3], np.asarray(layer)[..., :3]
    assert np.array_equal(np.asarray(made)[alpha == 255], expected[alpha == 255]) and (alpha == 255).sum() > 200
    assert np.array_equal(np.asarray(made)[alpha == 0], np.asarray(background)[alpha == 0])
    blended = np.asarray(Image.alpha_composite(background.convert("RGBA"), layer).convert("RGB")).astype(int)
    assert np.abs(blended - np.asarray(made)).max() <= 1

    rows, columns = place_of(scene).area
    made = np.asarray(placing(subject, None, background, box, **off).images[0])
    outside = np.ones(made.shape[:2], dtype=bool)
    outside[rows, columns] = False
    assert np.array_equal(made[outside], np.asarray(background)[outside])


def test_light_changes_colours_and_not_where_the_object_is(placing, scene, layer):
    _, background, _ = scene
    plain = placing(layer, None, background, placed=True, light=0, shadow=0, output_type="pt")
    lit = placing(layer, None, background, placed=True, light=1.5, shadow=0, output_type="pt")
    assert torch.equal(plain.lit.alpha, lit.lit.alpha) and torch.equal(plain.alpha, lit.alpha)
    alpha = torch.from_numpy(np.asarray(layer)[..., 3].copy())
    changed = (plain.images != lit.images).any(1)[0]
    assert not changed[alpha == 0].any() and changed[alpha == 255].float().mean() > 0.9


def test_a_place_is_the_box_s_own(placing, scene):
    """`place` and a box that gives the same place give the same picture."""
    subject, background, box = scene
    placed = place_of(scene)
    top, _left, bottom, _right = placed.box
    place = Place((40 + 75) / 2, bottom, bottom - top)
    by_box, by_place = (
        placing(subject, None, background, output_type="pt", **where).images
        for where in ({"mask": box}, {"place": place})
    )
    assert torch.equal(by_box, by_place)


def test_rotate_and_flip_reach_the_box(placing, scene):
    subject, background, box = scene
    made = placing(subject, None, background, box, rotate=90, flip=True, light=0, shadow=0).lit
    placed = place_of(scene, 90, True)
    assert torch.equal(made.alpha[made.alpha > 0], placed.alpha[placed.alpha > 0])
    assert torch.equal(made.colours, placed.within(made.area)[0])


def test_an_outline_and_fill_still_go_through_the_model(_placing, scene):
    subject, background, box = scene
    outline = box.copy()
    outline.paste(0, (40, 30, 55, 45))
    steps = []
    for mask, fit in ((outline, "contain"), (outline, "fill"), (box, "fill")):
        made = _placing(
            subject, None, background, mask, 1, fit=fit, callback_on_step_end=lambda *_: steps.append(1) or {}
        )
        assert made.lit is None
    assert len(steps) == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16"])
def test_backgrounds_of_every_kind_keep_what_is_beyond(placing, layer, mode):
    background = photo(120, 90, seed=2)
    if "A" in mode:
        background.putalpha(photo(120, 90, seed=3).convert("L"))
    background = background.convert("L").convert("I;16") if mode == "I;16" else background.convert(mode)
    made = placing(layer, None, background, placed=True)
    assert made.images[0].size == (120, 90) and made.images[0].mode == ("RGBA" if "A" in mode else "RGB")
    before, after = image_to_tensor(background), image_to_tensor(made.images[0])
    kept = torch.ones(90, 120, dtype=torch.bool)
    kept[made.lit.area] = ((made.lit.alpha == 0) & (made.lit.shadow == 0))[0, 0]
    assert torch.equal(after[0][:, kept], before[0][:, kept])
    if "A" in mode:
        assert np.array_equal(np.asarray(made.images[0])[..., 3], np.asarray(background.convert("RGBA"))[..., 3])


def test_pillow_and_tensors_give_the_same(placing, scene):
    subject, background, box = scene
    as_picture = placing(subject, None, background, box).images[0]
    as_tensor = placing(subject, None, image_to_tensor(background), box, output_type="pt", num_results=2).images
    assert as_tensor.shape == (2, 3, 90, 120) and torch.equal(as_tensor[0], as_tensor[1])
    assert torch.equal((as_tensor[:1] * 255).round() / 255, image_to_tensor(as_picture))


def test_a_blend_mask_limits_what_changes(placing, scene):
    subject, background, box = scene
    blend = torch.zeros(1, 90, 120)
    blend[:, :45] = 1
    made = placing(subject, None, background, box, blend_mask=blend, output_type="pt").images
    whole = placing(subject, None, background, box, output_type="pt").images
    assert torch.equal(made[:, :, 45:], image_to_tensor(background)[:, :, 45:])
    assert torch.equal(made[:, :, :45], whole[:, :, :45]) and not torch.equal(made, whole)
    with pytest.raises(ImprintError, match="120x90, but its blend mask is 12x9"):
        placing(subject, None, background, box, blend_mask=torch.ones(1, 9, 12))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 5)])
def test_tiny_frames(placing, size):
    background = photo(*size, seed=2)
    made = placing(cutout(30, 30, seed=1), None, background, Image.new("L", size, 255))
    assert made.images[0].size == size
    made = placing(cutout(30, 30, seed=1), None, background, place=Place(0.5, 1, 60))
    assert made.images[0].size == size


def test_a_large_frame_is_not_copied_as_numbers(placing):
    """32 megapixels around a small object: no tensor is as large as the frame."""
    background, largest = Image.new("RGB", (8000, 4000), (90, 120, 60)), []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            largest.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    with Watched():
        made = placing(cutout(50, 40, seed=1), None, background, place=Place(7990, 3990, 40))
    assert 64 * 64 < max(largest) < 1_000_000
    pixels = np.asarray(made.images[0])
    assert (pixels[:3800] == (90, 120, 60)).all() and (pixels[3960:, 7960:] != (90, 120, 60)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(micro_file, scene, dtype):
    """The light network in the pipeline's precision; off is off there too."""
    half = ImprintPipeline.from_checkpoint(micro_file, torch_dtype=dtype)
    assert half.light.dtype == dtype
    subject, background, box = scene
    whole = ImprintPipeline.from_checkpoint(micro_file)
    if dtype == torch.float16:  # a CPU takes half a minute for the shipped network's convolutions in it
        half.register_modules(light=micro_light().to(dtype))
        whole.register_modules(light=micro_light())
    made, expected = (each(subject, None, background, box, output_type="pt").images for each in (half, whole))
    assert made.dtype == torch.float32 and (made - expected).abs().mean() < 0.01
    off, plain = (each(subject, None, background, box, light=0, shadow=0).images[0] for each in (half, whole))
    assert np.array_equal(np.asarray(off), np.asarray(plain))


def test_a_pipeline_without_a_light_network_takes_the_shipped_one(_placing, scene):
    parts = {name: part for name, part in _placing.components.items() if name != "light"}
    pipeline = ImprintPipeline(**parts)
    assert pipeline.light is None
    made = pipeline(scene[0], None, *scene[1:], output_type="pt")
    assert pipeline.light is not None and made.images.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "got nothing to say where the object goes"),
        ({"placed": True}, "got placed and mask"),
        ({"mask": None, "placed": True}, "the placed object is 50x40, but the background is 120x90"),
        ({"fit": "cover"}, "fit is 'cover'"),
        ({"light": 1.6}, "light is 1.6, shadow 1 and softness 0"),
        ({"shadow": -1}, "shadow is -1"),
        ({"softness": 2}, "softness 2"),
        ({"rotate": "left"}, "rotate is 'left'"),
        ({"output_type": "latent"}, "never in the model's latents"),
        ({"mask": Image.new("L", (120, 90))}, "mask of the hole is empty"),
        ({"mask": Image.new("L", (60, 45), 255)}, "background is 120x90.*mask is 60x45"),
        ({"mask": None, "place": Place(-500, 5, 20)}, "outside the 120x90 background"),
    ],
)
def test_bad_input(_placing, scene, changes, message):
    subject, background, box = scene
    given = {"object_image": subject, "object_mask": None, "background": background, "mask": box} | changes
    with pytest.raises(ImprintError, match=message) as caught:
        _placing(**given)
    assert "\n" not in str(caught.value)


# --- the command line and jobs files ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, scene, layer, placing, monkeypatch):
    """A folder with object.png, background.png, box.png, outline.png and layer.png, and a model that is loaded
    already.
    """
    for name, picture in zip(NAMES, (*scene, layer)):
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.setattr(cli, "_pipeline", lambda options: placing)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composite(*words: str, subject: str = "object.png") -> list[str]:
    return ["composite", "--object", subject, "--background", "background.png", "--out", "out.png", *words]


LAYERS = ("shadow", "object", "light")


def job(out: str, **keys) -> dict:
    """A line of a jobs file."""
    return {"object": "object.png", "background": "background.png", "out": out} | keys


def batch(*lines: dict, options: str = "") -> int:
    """`imprint batch` of these lines, in the working folder; its exit code."""
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return cli.main(["batch", "jobs.jsonl", *options.split()])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def stacked(folder: Path, names: Sequence[str]) -> np.ndarray:
    """The layers of these names over background.png, as an editor stacks them."""
    picture = Image.open("background.png").convert("RGBA")
    for name in names:
        picture = Image.alpha_composite(picture, Image.open(folder / name))
    return np.asarray(picture.convert("RGB")).astype(int)


WAYS = {  # options, keys, the pipeline's arguments
    "box": (["--mask", "box.png"], {"mask": "box.png"}, {}),
    "turned box": (
        ["--mask", "box.png", "--rotate", "auto", "--flip"],
        {"mask": "box.png", "rotate": "auto", "flip": True},
        {"rotate": "auto", "flip": True},
    ),
    "box by degrees": (
        ["--mask", "box.png", "--rotate", "-30", "--fit", "contain"],
        {"mask": "box.png", "rotate": -30, "fit": "contain"},
        {"rotate": -30.0},
    ),
    "at": (["--at", "50,70"], {"at": [50, 70]}, {"place": Place(50, 70, 31)}),
    "at with all": (
        ["--at", "50.5, 70", "--height", "25", "--rotate", "90", "--flip"],
        {"at": "50.5,70", "height": 25, "rotate": 90, "flip": True},
        {"place": Place(50.5, 70, 25, 90, True)},
    ),
    "aligned": (["--align", "right"], {"align": "right"}, {"align": Align("right")}),
    "aligned with all": (
        ["--align", "top, left", "--inset", "0.1", "--height", "25", "--rotate", "90", "--flip"],
        {"align": ["left", "top"], "inset": 0.1, "height": 25, "rotate": 90, "flip": True},
        {"align": Align("left", "top", 0.1, 25), "rotate": 90.0, "flip": True},
    ),
    "aligned in a box": (
        ["--mask", "box.png", "--align", "left,middle", "--inset", "0.2", "--rotate", "auto"],
        {"mask": "box.png", "align": "left,middle", "inset": 0.2, "rotate": "auto"},
        {"align": Align("left", "middle", 0.2), "rotate": "auto"},
    ),
    "strengths": (
        ["--at", "50,70", "--light", "0.5", "--shadow", "1.5", "--softness", "0.3", "--light-from", "behind-left"],
        {"at": [50, 70], "light": 0.5, "shadow": 1.5, "softness": 0.3, "light_from": 315},
        {"place": Place(50, 70, 31), "light": 0.5, "shadow": 1.5, "softness": 0.3, "light_from": "behind left"},
    ),
    "a direction in degrees": (
        ["--at", "50,70", "--light-from", "-90,30"],
        {"at": [50, 70], "light_from": [-90, 30]},
        {"place": Place(50, 70, 31), "light_from": "270, 30"},
    ),
    "off": (
        ["--at", "50,70", "--light", "0", "--shadow", "0"],
        {"at": [50, 70], "light": 0, "shadow": 0},
        {"place": Place(50, 70, 31), "light": 0.0, "shadow": 0.0},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_options_keys_and_arguments_say_the_same(files, placing, scene, way, capsys):
    words, keys, arguments = WAYS[way]
    assert cli.main(composite(*words)) == 0
    assert batch(job("line.png", **keys)) == 0
    subject, background, box = scene
    given = {"mask": box} if "mask" in keys else {}
    expected = np.asarray(placing(subject, None, background, **given, **arguments).images[0])
    assert np.array_equal(pixels("out.png"), expected) and np.array_equal(pixels("line.png"), expected)
    assert not np.array_equal(expected, np.asarray(background))


def test_a_placed_picture_needs_no_mask(files, placing, scene, layer):
    assert cli.main(composite("--placed", subject="layer.png")) == 0
    assert batch(job("line.png", object="layer.png", placed=True)) == 0
    expected = np.asarray(placing(layer, None, scene[1], placed=True).images[0])
    assert np.array_equal(pixels("out.png"), expected) and np.array_equal(pixels("line.png"), expected)


def test_options_of_a_batch_are_for_lines_that_do_not_say(files, placing, scene):
    lines = [
        job("plain.png", mask="box.png"),
        job("own.png", mask="box.png", shadow=1),
    ]
    assert batch(*lines, options="--shadow 0 --light 0") == 0
    subject, background, box = scene
    for name, shadow in (("plain", 0), ("own", 1)):
        expected = placing(subject, None, background, box, light=0, shadow=shadow).images[0]
        assert np.array_equal(pixels(f"{name}.png"), np.asarray(expected))


def test_several_objects_in_a_line_are_one_after_another(files):
    """What the line says besides its objects holds for those that do not say it themselves."""
    first = {"object": "object.png", "mask": "box.png"}
    second = {"object": "object.png", "at": [80, 80], "height": 30, "shadow": 0}
    third = {"object": "layer.png", "placed": True, "light": 0}
    common = {"background": "background.png", "out": "together.png", "softness": 0.5}
    steps = [
        common | first | {"out": "1.png"},
        common | second | {"out": "2.png", "background": "1.png"},
        common | third | {"out": "3.png", "background": "2.png"},
    ]
    lines = [*steps, common | {"objects": [first, second, third]}]
    assert batch(*lines, options="--layers layers") == 0
    pictures = [pixels(f"{number}.png") for number in (1, 2, 3)]
    assert np.array_equal(pixels("together.png"), pictures[2])
    assert not any(np.array_equal(each, pictures[2]) for each in (*pictures[:2], pixels("background.png")))
    made = sorted(path.name for path in (files / "layers" / "together").iterdir())
    assert made == [f"{n}-{m}-{name}.png" for n in (1, 2, 3) for m, name in enumerate(LAYERS, 1)]
    for number, name in itertools.product((1, 2, 3), enumerate(LAYERS, 1)):
        one, many = (f"layers/{stem}{name[0]}-{name[1]}.png" for stem in (f"{number}/", f"together/{number}-"))
        assert np.array_equal(pixels(one), pixels(many))


@pytest.mark.parametrize("own", [{}, {"out": "own.png"}], ids=["without", "with"])
def test_a_job_can_be_told_where_to_write(files, own):
    line = {"background": "background.png", "objects": [{"object": "object.png", "at": [50, 70]}] * 2}
    job = Job.from_json(json.dumps(line | own).encode(), files, 0, out=files / "elsewhere.png")
    assert {each.out for each in job.each} == {files / "elsewhere.png"}
    if not own:
        with pytest.raises(ImprintError, match="missing keys: out"):
            Job.from_json(json.dumps(line).encode(), files, 0)


BAD_OBJECTS = {
    "missing keys: background": {"objects": [{"object": "object.png", "at": [1, 2]}], "background": ...},
    "missing keys: none, unknown keys: object;": {
        "objects": [{"object": "object.png", "at": [1, 2]}],
        "object": "object.png",
    },
    "'objects' is []; it must be a list": {"objects": []},
    "'objects' is 'object.png'; it must be a list": {"objects": "object.png"},
    "object 2 of 2: missing keys: object": {"objects": [{"object": "object.png", "at": [1, 2]}, {"at": [1, 2]}]},
    "object 1 of 1: this is str": {"objects": ["object.png"]},
    "object 1 of 1: missing keys: none, unknown keys: out": {
        "objects": [{"object": "object.png", "at": [1, 2], "out": "a.png"}]
    },
    "object 2 of 2: light is 2": {
        "objects": [{"object": "object.png", "at": [50, 70]}, {"object": "object.png", "at": [50, 70], "light": 2}]
    },
    "object 1 of 1: got at and mask": {"objects": [{"object": "object.png", "at": [1, 2]}], "mask": "box.png"},
    "would be lost": {
        "objects": [{"object": "object.png", "at": [50, 70]}, {"object": "layer.png", "placed": True}],
        "out": "layer.png",
    },
}


@pytest.mark.parametrize("message", BAD_OBJECTS)
def test_bad_objects_are_reported(files, capsys, message):
    line = {"background": "background.png", "out": "line.png"} | BAD_OBJECTS[message]
    assert batch({key: value for key, value in line.items() if value is not ...}) == 2
    err = capsys.readouterr().err
    assert f"line 1: {message}" in err.replace("layer.png is also what the picture is made of, and ", ""), err
    assert not (files / "line.png").exists()


BAD_KEYS = {
    "got nothing to say where": {},
    "got at and mask to say": {"at": [1, 2], "mask": "box.png"},
    "got placed and at to say": {"at": [1, 2], "placed": True},
    "placed is 'yes'; it must be true or false": {"placed": "yes"},
    "flip is 1; it must be true or false": {"mask": "box.png", "flip": 1},
    "at is [1]; it must be x,y": {"at": [1]},
    "at is 'here,there'": {"at": "here,there"},
    "at is True; it must be x,y": {"at": True},
    "got at and align to say": {"at": [1, 2], "align": "left"},
    "got placed and align to say": {"placed": True, "object": "layer.png", "align": "left"},
    "align is 'centre'; it must be left, center or right, and": {"align": "centre"},
    "align is 'left,right'; it must be": {"align": "left,right"},
    "align is []; it must be": {"mask": "box.png", "align": []},
    "align is 5; it must be": {"align": 5},
    "align is ['left', 5]; it must be": {"align": ["left", 5]},
    "inset goes with align": {"mask": "box.png", "inset": 0.1},
    "inset is 0.5; it must be less than half": {"align": "left", "inset": 0.5},
    "inset is nan; it must be a finite number from 0 to 0.5": {"align": "left", "inset": "nan"},
    "inset is 'wide'; it must be a finite number from 0 to 0.5": {"align": "left", "inset": "wide"},
    "height is 200, but in the 120x90 pixels where it is aligned": {"align": "left", "height": 200},
    "height goes with at or align": {"mask": "box.png", "height": 5},
    "height is 0; it must be a finite number of 1 or more": {"at": [1, 2], "height": 0},
    "height is 'tall'; it must be a finite number of 1 or more": {"at": [1, 2], "height": "tall"},
    "height is nan; it must be a finite number of 1": {"at": [1, 2], "height": "nan"},
    "rotate (in degrees, or auto) is 'left'; it must be a finite number": {"mask": "box.png", "rotate": "left"},
    "rotate (in degrees, or auto) is inf; it must be a finite number": {"mask": "box.png", "rotate": "inf"},
    "rotate is auto, which fills a box": {"at": [1, 2], "rotate": "auto"},
    "rotate and flip turn what is fitted into a box": {"placed": True, "object": "layer.png", "flip": True},
    "fit is 'cover'; it must be contain or fill": {"mask": "box.png", "fit": "cover"},
    "light is 2; it must be a finite number from 0 to 1.5": {"mask": "box.png", "light": 2},
    "shadow is -1; it must be a finite number from 0 to 1.5": {"mask": "box.png", "shadow": -1},
    "softness is 1.2; it must be a finite number from 0 to 1": {"mask": "box.png", "softness": 1.2},
    "light_from is 'up'; it must be one of auto, behind": {"mask": "box.png", "light_from": "up"},
    "shadow is 'dark'; it must be a finite number": {"mask": "box.png", "shadow": "dark"},
    "light is True; it must be a finite number": {"mask": "box.png", "light": True},
    "outside the 120x90 background": {"at": [900, 2]},
    "many times the 120x90 background": {"at": [50, 80], "height": 1e6},
    "the placed object is 50x40, but the background is 120x90": {"placed": True},
    "unknown keys: mirrored": {"mask": "box.png", "mirrored": True},
    "at is ['nan', 5]; it must be x,y": {"at": ["nan", 5]},
    "it must be a finite number of 1 or more": {"at": [50, 70], "height": 10**400},
}


def test_each_bad_key_has_its_sentence_and_the_others_are_made(files, capsys):
    lines = [job(f"{index}.png", **keys) for index, keys in enumerate(BAD_KEYS.values())]
    lines.append(job("last.png", at=[50, 70]))
    assert batch(*lines) == 2
    out, err = capsys.readouterr()
    reports = dict(re.findall(r"jobs\.jsonl, line (\d+): (.*)", err))
    for number, message in enumerate(BAD_KEYS, 1):
        assert message in reports.pop(str(number)), message
    assert not reports and "Traceback" not in err
    assert out == f"1 written, 0 skipped, {len(BAD_KEYS)} failed\n" and (files / "last.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got nothing to say where"),
        (["--mask", "box.png", "--placed"], "got placed and mask"),
        (["--at", "5"], "at is '5'; it must be x,y"),
        (["--mask", "box.png", "--height", "9"], "height goes with at or align"),
        (["--align", "left,up"], "align is 'left,up'; it must be left, center or right, and top, middle or bottom"),
        (["--align", "left", "--inset", "-1"], "inset is -1.0; it must be a finite number from 0 to 0.5"),
        (["--align", "left", "--fit", "fill"], "rotate, flip and align are for an object that is fitted"),
        (["--mask", "box.png", "--rotate", "left"], "is 'left'; it must be a finite number"),
        (["--mask", "box.png", "--rotate", "nan"], "is nan; it must be a finite number"),
        (["--mask", "box.png", "--light", "3"], "light is 3.0; it must be a finite number from 0 to 1.5"),
        (["--at", "5,5", "--each-area"], "each area of a mask takes an object of its own"),
    ],
)
def test_bad_options(files, capsys, words, message):
    assert cli.main(composite(*words)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_every_name_is_an_option_and_a_key(capsys):
    with pytest.raises(SystemExit):
        cli.main(["composite", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in PLACING) and "--layers" in text


def test_layers_are_pictures_that_stack_to_the_composite(files):
    assert cli.main(composite("--mask", "box.png", "--layers", "layers")) == 0
    names = sorted(path.name for path in (files / "layers").iterdir())
    assert names == ["1-shadow.png", "2-object.png", "3-light.png"]
    off = np.abs(stacked(files / "layers", names) - pixels("out.png"))
    assert off.max() <= 2 and off.mean() < 0.1  # an editor rounds to 8 bits after each of the three


def test_layers_of_several_areas_and_jobs_keep_apart(files):
    mask = rectangle(120, 90, (5, 5, 40, 45))
    mask.paste(255, (80, 40, 110, 85))
    mask.save("two.png")
    assert cli.main(composite("--mask", "two.png", "--each-area", "--layers", "layers")) == 0
    expected = [f"{area}-{number}-{layer}.png" for area in (1, 2) for number, layer in enumerate(LAYERS, 1)]
    assert sorted(path.name for path in (files / "layers").iterdir()) == expected
    assert np.abs(stacked(files / "layers", expected) - pixels("out.png")).max() <= 2
    assert batch(job("one.png", mask="box.png"), options="--layers of-jobs") == 0
    assert [path.name for path in sorted((files / "of-jobs" / "one").iterdir())] == [
        f"{number}-{layer}.png" for number, layer in enumerate(LAYERS, 1)
    ]


def test_each_label_of_a_map_gets_an_object_also_where_they_touch(files, capsys):
    first, second = (5, 5, 40, 45), (40, 5, 75, 45)
    labels = Image.new("L", (120, 90))
    labels.paste(1, first)
    labels.paste(2, second)
    palette = labels.copy()
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    for number, mask in enumerate((labels, palette)):
        mask.save(f"labels-{number}.png")
        rectangle(120, 90, first).save("first.png")
        rectangle(120, 90, second).save("second.png")
        assert cli.main(composite("--mask", "first.png")) == 0
        words = composite("--mask", "second.png", "--overwrite")
        words[words.index("background.png")] = "out.png"
        assert cli.main(words) == 0
        one_by_one = pixels("out.png")
        assert cli.main(composite("--mask", f"labels-{number}.png", "--each-area")) == 0
        assert np.array_equal(pixels("out.png"), one_by_one)
        assert cli.main(composite("--mask", f"labels-{number}.png")) == 2
        assert "map of 2 labels (1, 2)" in capsys.readouterr().err


LINES = (
    {
        "object": ["object.png"],
        "background": "background.png",
        "out": "any.png",
        "mask": "box.png",
        "align": "left,bottom",
    }
    | {"inset": 0.1, "height": 30, "rotate": 5, "flip": True, "fit": "contain", "light": 1, "softness": 0, "seed": 3},
    {"background": "background.png", "out": "any.png", "shadow": 0.5}
    | {"objects": [{"object": "object.png", "at": [50, 90], "height": 20}, {"object": "layer.png", "placed": True}]},
)


@given(line=st.sampled_from(LINES).flatmap(mutated))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_is_made_or_has_a_sentence(files, capsys, line):
    (files / "any.png").unlink(missing_ok=True)
    (files / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    done = cli.main(["batch", "jobs.jsonl", "--steps", "1"])
    out, err = capsys.readouterr()
    if done == 0:
        assert out == "1 written, 0 skipped, 0 failed\n"
    else:
        assert done == 2 and out == "0 written, 0 skipped, 1 failed\n" and "jobs.jsonl, line 1: " in err


@pytest.mark.parametrize("key", ["object", "object_mask", "background", "mask", "out"])
@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "", 3, ["a.png", "\0"]])
def test_what_no_file_can_be_called_is_said(files, capsys, key, name):
    line = job("one.png", mask="box.png")
    lines = [line | {key: name}, line | {"out": "two.png"}]
    assert batch(*lines) == 2
    out, err = capsys.readouterr()
    assert f"line 1: '{key}' is" in err and out == "1 written, 0 skipped, 1 failed\n"


def refused(files, capsys, monkeypatch, words) -> str:
    """The one line on stderr of a command that fails before a model is loaded and before anything is written."""
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(cli, "_pipeline", lambda options: pytest.fail("the work was begun"))
        assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("imprint: error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before
    return err


def test_a_drawing_has_no_layers(files, capsys, monkeypatch):
    two = rectangle(120, 90, (5, 5, 40, 45))
    two.paste(255, (60, 40, 110, 85))
    two.paste(0, (60, 40, 90, 70))  # a box, and an outline below it
    two.save("two.png")
    for words in (["--mask", "box.png", "--fit", "fill"], ["--mask", "two.png"], ["--mask", "two.png", "--each-area"]):
        words += ["--layers", "layers"]
        assert "object.png would be drawn by the model" in refused(files, capsys, monkeypatch, composite(*words))
    lines = [
        {"objects": [{"object": "object.png", "mask": "box.png"}, {"object": "layer.png", "mask": "two.png"}]},
        {"object": "object.png", "at": [50, 70]},
    ]
    lines = [{"background": "background.png", "out": f"{n}.png"} | line for n, line in enumerate(lines, 1)]
    assert batch(*lines, options="--layers layers") == 2
    out, err = capsys.readouterr()
    assert re.search(r"line 1: \S*layer.png would be drawn by the model", err) and out.startswith("1 written")
    assert [path.name for path in (files / "layers").iterdir()] == ["2"]


def test_an_empty_mask_has_its_own_sentence_with_layers(files, capsys, monkeypatch, _placing):
    monkeypatch.undo()
    monkeypatch.setattr(cli, "_pipeline", lambda options: _placing)
    monkeypatch.chdir(files)
    Image.new("L", (120, 90)).save("empty.png")
    assert cli.main(composite("--mask", "empty.png", "--layers", "layers")) == 2
    assert "mask of the hole is empty" in capsys.readouterr().err


def test_layers_are_not_written_over_what_is_there(files, capsys, monkeypatch):
    (files / "object.png").rename(files / "2-object.png")
    words = composite("--at", "50,70", "--layers", ".", subject="2-object.png")
    assert "2-object.png is there already, and would be lost" in refused(files, capsys, monkeypatch, words)
    assert cli.main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert Image.open("2-object.png").size == (120, 90)
    words = composite("--at", "50,70", "--layers", ".", "--overwrite", "--out", "3-light.png", subject="2-object.png")
    assert "3-light.png is a layer and also what" in refused(files, capsys, monkeypatch, words)


def test_an_error_in_a_later_object_leaves_no_layers_of_the_first(files, capsys):
    objects = [{"object": "object.png", "at": at} for at in ([50, 70], [900, 2])]
    assert batch({"objects": objects, "background": "background.png", "out": "o.png"}, options="--layers layers") == 2
    assert "outside the 120x90 background" in capsys.readouterr().err
    assert not [path for path in (files / "layers").rglob("*") if path.is_file()]


def test_layers_of_pictures_of_one_name_are_refused(files, capsys):
    lines = [job(f"{name}/x.png", at=[50, 70]) for name in "ab"]
    assert batch(*lines, options="--layers layers") == 2
    out, err = capsys.readouterr()
    assert "line 2: the layers of x.png would lie in the folder of line 1's, x;" in err and out.startswith("1 written")
    assert batch(*lines) == 0  # without layers they are two pictures


@pytest.mark.parametrize("folder", ["background.png", "background.png/layers", "/proc/layers", "a\0b"])
def test_a_folder_for_layers_that_cannot_be_is_refused(files, capsys, monkeypatch, folder):
    words = ["--at", "50,70", "--layers", folder]
    assert "1-shadow.png cannot be written" in refused(files, capsys, monkeypatch, composite(*words))
    assert batch(job("line.png", at=[50, 70]), options=f"--layers {folder}") == 2
    out, err = capsys.readouterr()
    assert "line 1: " in err and "cannot be written" in err and "Traceback" not in err and out.endswith("1 failed\n")
    assert not (files / "line.png").exists()


def test_layers_have_the_composite_s_colour_profile(files):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open("background.png").save("background.png", icc_profile=profile)
    assert cli.main(composite("--at", "50,70", "--layers", "layers")) == 0
    for path in (files / "out.png", *(files / "layers").iterdir()):
        assert Image.open(path).info["icc_profile"] == profile
    photo(120, 90, seed=2).save("background.png")
    assert cli.main(composite("--at", "50,70", "--layers", "without")) == 0
    assert not any("icc_profile" in Image.open(path).info for path in (files / "without").iterdir())


def test_layers_of_ten_objects_stack_in_the_order_of_their_names(files):
    objects = [{"object": "object.png", "at": [10 * n + 5, 70], "height": 20} for n in range(10)]
    assert batch({"objects": objects, "background": "background.png", "out": "o.png"}, options="--layers layers") == 0
    names = sorted(path.name for path in (files / "layers" / "o").iterdir())
    assert names[0] == "01-1-shadow.png" and names[-1] == "10-3-light.png" and len(names) == 30
    difference = np.abs(stacked(files / "layers" / "o", names) - pixels("o.png"))
    assert difference.max() <= 10  # at most one for each object


@pytest.mark.parametrize("words", [["--at", "-10,80"], ["--at=-10,80"], ["--at", "-10.0, 80"], ["--at", "-1e1,80"]])
def test_a_place_left_of_the_frame(files, placing, scene, words):
    assert cli.main(composite(*words)) == 0
    expected = placing(scene[0], None, scene[1], place=Place(-10, 80, 31)).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_at_without_a_place_is_a_mistake(capsys):
    for words in (["--at"], ["--at", "--flip"]):
        with pytest.raises(SystemExit):
            cli.main(composite(*words))
        assert "argument --at: expected one argument" in capsys.readouterr().err


# --- a plain photo is cut out, by a stand-in for rembg, an extra with weights of its own ------------------------------


@pytest.fixture
def rembg(monkeypatch):
    """A module rembg whose mask is what is not grey; it keeps what it was asked."""
    module = ModuleType("rembg")
    module.asked = []

    def remove(photo, session, only_mask):
        module.asked.append((photo.mode, session, only_mask))
        return Image.fromarray((np.asarray(photo) != 128).any(2).astype(np.uint8) * 255)

    module.remove, module.new_session = remove, lambda name: f"session of {name}"
    monkeypatch.setitem(sys.modules, "rembg", module)
    removal._session.cache_clear()
    yield module
    removal._session.cache_clear()


def plain(files) -> Image.Image:
    """object.png on grey, without transparency, also as plain.png."""
    subject = Image.open(files / "object.png")
    photo = Image.new("RGB", subject.size, (128, 128, 128))
    photo.paste(subject, mask=subject.getchannel("A").point(lambda value: 255 * (value > 127)))
    photo.save(files / "plain.png")
    return photo


def test_a_plain_photo_is_cut_out(files, rembg):
    photo = plain(files)
    removal.cut_out(photo).save("mask.png")
    assert cli.main(composite("--mask", "box.png", "--object-mask", "mask.png", subject="plain.png")) == 0
    expected = pixels("out.png")
    rembg.asked.clear()
    assert cli.main(composite("--mask", "box.png", "--cutout", "auto", subject="plain.png")) == 0
    assert np.array_equal(pixels("out.png"), expected)
    assert rembg.asked == [("RGB", f"session of {removal.WEIGHTS}", True)]
    assert batch(job("line.png", object="plain.png", mask="box.png"), options="--cutout auto") == 0
    assert np.array_equal(pixels("line.png"), expected)


def test_what_has_a_mask_is_left_as_it_is(files, rembg):
    assert cli.main(composite("--mask", "box.png")) == 0
    expected = pixels("out.png")
    assert cli.main(composite("--mask", "box.png", "--cutout", "auto")) == 0
    assert np.array_equal(pixels("out.png"), expected) and not rembg.asked


def test_without_the_option_a_plain_photo_is_refused(files, capsys):
    plain(files)
    assert cli.main(composite("--mask", "box.png", subject="plain.png")) == 2
    assert "no mask and no transparency" in capsys.readouterr().err


def test_what_is_missing_is_said(rembg, monkeypatch):
    photo = Image.new("RGB", (40, 30))
    with pytest.raises(ImprintError, match="no object was found"):
        removal.cut_out(Image.new("RGB", (40, 30), (128, 128, 128)))

    def fail(name):
        raise ConnectionError("no route to host")

    removal._session.cache_clear()
    monkeypatch.setattr(rembg, "new_session", fail)
    with pytest.raises(ImprintError, match=r"cannot load its weights .*no route to host.*U2NET_HOME"):
        removal.cut_out(photo)
    monkeypatch.delitem(sys.modules, "rembg")
    real = builtins.__import__

    def absent(name, *rest):
        if name == "rembg":
            raise ModuleNotFoundError("No module named 'rembg'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImprintError, match=r"pip install 'imprint\[cutout\]'"):
        removal.cut_out(photo)
