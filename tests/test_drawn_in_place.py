"""An object that the model draws where it was placed: `fit="outline"`, with every way to place it, and every model."""

import json

import pytest
import torch
from micro import cutout, fresh_checkpoint, micro_light, photo, rectangle, seeded, sketched_config, told_config
from PIL import Image

from imprint import cli, phases
from imprint.checkpoint import save_checkpoint
from imprint.errors import ImprintError
from imprint.hint import control_hint
from imprint.images import image_to_tensor
from imprint.mask_reading import alpha_to_tensor
from imprint.pipeline import ImprintPipeline
from imprint.place import Align, Place, place_object
from imprint.views import ObjectViews

CONFIGS = {"sketched": sketched_config, "told": told_config}
WIDTH, HEIGHT = 120, 90
STEP = {"num_inference_steps": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        save_checkpoint(folder / f"{name}.safetensors", fresh_checkpoint(config()))
    return {name: folder / f"{name}.safetensors" for name in CONFIGS}


@pytest.fixture(params=CONFIGS)
def model(request, files):
    pipeline = ImprintPipeline.from_checkpoint(files[request.param])
    pipeline.register_modules(light=micro_light())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def sketched(files):
    pipeline = ImprintPipeline.from_checkpoint(files["sketched"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def background():
    return photo(WIDTH, HEIGHT, seed=2)


def layer_of(width: int, height: int) -> Image.Image:
    """As large as the background, with an ellipse in it."""
    whole = Image.new("RGBA", (WIDTH, HEIGHT))
    whole.paste(cutout(width, height, seed=1), (5, 25))
    return whole


@pytest.fixture
def layer():
    """Wider than high."""
    return layer_of(100, 60)


def test_in_its_outline_and_nowhere_else(model, background, layer):
    made = model(layer, None, background, placed=True, fit="outline", feather_pixels=0, output_type="pt", **STEP)
    assert made.lit is None
    changed = (made.images != image_to_tensor(background)).any(1)[0]
    inside = alpha_to_tensor(layer)[0] > 0.5
    if model.model_config.hole_shape == "box":
        rows, columns = place_object(ObjectViews.of(layer), inside.shape, placed=True).area
        inside[rows, columns] = True
    assert changed[inside].float().mean() > 0.9
    assert not changed[~inside].any()


@pytest.mark.parametrize(
    "where",
    [
        {"placed": True},
        {"place": Place(60, 80, 40)},
        {"align": Align("right", "top", height=40)},
        {"mask": rectangle(WIDTH, HEIGHT, (10, 20, 110, 80))},
        {"mask": rectangle(WIDTH, HEIGHT, (10, 20, 110, 80)), "rotate": 90, "align": Align("left")},
    ],
)
def test_every_way_to_place_it(sketched, background, layer, where, monkeypatch):
    """The model is given the object as it lies, and its sketch there."""
    drawn, seen = [], []
    prepare = sketched.prepare
    monkeypatch.setattr(sketched, "prepare", lambda *given: drawn.append(prepare(*given)) or drawn[-1])
    hint = phases.control_hint
    monkeypatch.setattr(phases, "control_hint", lambda *given: seen.append(given) or hint(*given))
    sketched(layer, None, background, fit="outline", generator=seeded(0), **STEP, **where)
    ((views, crop, _),) = seen
    given = {name: value for name, value in where.items() if name != "mask"}
    mask = None if "mask" not in where else image_to_tensor(where["mask"].convert("RGB"))[0, 0]
    there = place_object(ObjectViews.of(layer), (HEIGHT, WIDTH), mask, **given)
    assert views.corner == there.corner and torch.equal(views.masks[0][0], there.alpha)
    hole = torch.zeros(HEIGHT, WIDTH)
    hole[crop.placement.area] = crop.hole.mask
    assert torch.equal(hole, (there.outline[0] > 0.5).float())
    assert drawn[0].hint is not None


@pytest.mark.parametrize("height", [60, 20])
def test_the_sketch_is_that_of_a_picture_of_the_background_s_size(sketched, background, height):
    """Bit for bit as from the nodes, whose object has no corner, and different from a photo's sketch.

    This also holds if the hole is enlarged, since the object is too small to draw in.
    """
    config, layer = sketched.model_config, layer_of(100, height)
    outline = alpha_to_tensor(layer)
    there = place_object(ObjectViews.of(layer), (HEIGHT, WIDTH), placed=True)
    colours, alpha = there.within((slice(0, HEIGHT), slice(0, WIDTH)))
    whole = ObjectViews((colours,), (alpha[0],))
    prepared = sketched.prepare(there.view, None, background, there.outline)
    same = torch.equal(prepared.crop.hole.mask, (outline[0] > 0.5).float()[prepared.crop.placement.area])
    assert same == (height == 60)
    hint = control_hint(whole, prepared.crop, config.encoder)
    assert torch.equal(prepared.hint, hint)
    photo_of_it = ObjectViews(there.view.pictures, there.view.masks)
    assert not torch.equal(prepared.hint, control_hint(photo_of_it, prepared.crop, config.encoder))


def test_it_is_lit_unless_it_shall_be_drawn(model, background, layer):
    assert model(layer, None, background, placed=True).lit is not None
    for fit in ("fill", "cover"):
        with pytest.raises(ImprintError, match=f"fit is '?{fit}"):
            model(layer, None, background, placed=True, fit=fit)


@pytest.mark.parametrize("name", CONFIGS)
def test_on_the_command_line_and_in_a_jobs_file(files, background, layer, name, tmp_path, capsys):
    layer.save(tmp_path / "layer.png")
    background.save(tmp_path / "background.png")
    model = ["--checkpoint", str(files[name]), "--steps", "1", "--device", "cpu"]
    words = ["--object", str(tmp_path / "layer.png"), "--background", str(tmp_path / "background.png"), "--placed"]

    def composite(out: str, *more: str) -> int:
        return cli.main(["composite", *model, *words, *more, "--out", str(tmp_path / out)])

    assert composite("lit.png") == 0 and composite("drawn.png", "--fit", "outline") == 0
    pixels = {each: Image.open(tmp_path / f"{each}.png").tobytes() for each in ("lit", "drawn")}
    assert pixels["lit"] != pixels["drawn"]
    changes = ("keep", "light", "both") if name == "told" else ()
    for change in changes:
        assert composite(f"{change}.png", "--change", change) == 0
    job = {"object": "layer.png", "background": "background.png", "placed": True}
    jobs = [job | {"fit": "outline", "out": "drawn_again.png"}]
    jobs += [job | {"change": change, "out": f"{change}_again.png"} for change in changes]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert cli.main(["batch", str(tmp_path / "jobs.jsonl"), *model]) == 0
    for each in ("drawn", *changes):
        again = Image.open(tmp_path / f"{each}_again.png").tobytes()
        assert again == Image.open(tmp_path / f"{each}.png").tobytes()
    assert len({Image.open(tmp_path / f"{each}.png").tobytes() for each in changes}) == len(changes)
    capsys.readouterr()
    assert composite("a.png", "--fit", "outline", "--layers", str(tmp_path / "layers")) == 2
    assert "would be drawn by the model" in capsys.readouterr().err
