"""--layers: shadow, object and light as pictures that stack to the composite."""

import re
from pathlib import Path

import numpy as np
import pytest
from micro import photo, rectangle
from PIL import Image, ImageCms
from placing import LAYERS, batch, composite, job, pixels, stacked

from imprint import cli, lazy, mask_reading

ROOT = Path(__file__).parents[1]
MOST_OFF = 2
"""Largest difference, in steps of 1/255, between the stacked layers of one object and the composite."""


def test_layers_are_pictures_that_stack_to_the_composite(workplace):
    assert cli.main(composite("--mask", "box.png", "--layers", "layers")) == 0
    names = sorted(path.name for path in (workplace / "layers").iterdir())
    assert names == ["1-shadow.png", "2-object.png", "3-light.png"]
    off = np.abs(stacked(workplace / "layers", names) - pixels("out.png"))
    assert off.max() <= MOST_OFF and off.mean() < 0.1  # an editor rounds to 8 bits after each of the three


def test_the_pages_say_how_exact_the_stack_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["composite", "--help"])
    pages = [" ".join(capsys.readouterr().out.split())]
    pages += [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "web/docs/ImprintRelight.md")]
    for page in pages:
        assert f"at most {MOST_OFF} of 255 for one object" in page


def test_layers_of_several_areas_and_jobs_keep_apart(workplace):
    mask = rectangle(120, 90, (5, 5, 40, 45))
    mask.paste(255, (80, 40, 110, 85))
    mask.save("two.png")
    assert cli.main(composite("--mask", "two.png", "--each-area", "--layers", "layers")) == 0
    expected = [f"{area}-{number}-{layer}.png" for area in (1, 2) for number, layer in enumerate(LAYERS, 1)]
    assert sorted(path.name for path in (workplace / "layers").iterdir()) == expected
    assert np.abs(stacked(workplace / "layers", expected) - pixels("out.png")).max() <= 2
    assert batch(job("one.png", mask="box.png"), options="--layers of-jobs") == 0
    assert [path.name for path in sorted((workplace / "of-jobs" / "one").iterdir())] == [
        f"{number}-{layer}.png" for number, layer in enumerate(LAYERS, 1)
    ]


def refused(workplace, capsys, monkeypatch, words) -> str:
    """The one line on stderr of a command that fails before a model is loaded and before anything is written."""
    before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(lazy, "open_pipeline", lambda options: pytest.fail("the work was begun"))
        assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("imprint: error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()} == before
    return err


def test_a_drawing_has_no_layers(workplace, capsys, monkeypatch):
    two = rectangle(120, 90, (5, 5, 40, 45))
    two.paste(255, (60, 40, 110, 85))
    two.paste(0, (60, 40, 90, 70))  # a box, and an outline below it
    two.save("two.png")
    for words in (["--mask", "box.png", "--fit", "fill"], ["--mask", "two.png"], ["--mask", "two.png", "--each-area"]):
        words += ["--layers", "layers"]
        assert "object.png would be drawn by the model" in refused(workplace, capsys, monkeypatch, composite(*words))
    lines = [
        {"objects": [{"object": "object.png", "mask": "box.png"}, {"object": "layer.png", "mask": "two.png"}]},
        {"object": "object.png", "at": [50, 70]},
    ]
    lines = [{"background": "background.png", "out": f"{n}.png"} | line for n, line in enumerate(lines, 1)]
    assert batch(*lines, options="--layers layers") == 2
    out, err = capsys.readouterr()
    assert re.search(r"line 1: \S*layer.png would be drawn by the model", err) and out.startswith("1 written")
    assert [path.name for path in (workplace / "layers").iterdir()] == ["2"]


def test_each_mask_is_read_once(workplace, monkeypatch):
    read, calls = mask_reading.mask_to_tensor, []
    monkeypatch.setattr(mask_reading, "mask_to_tensor", lambda mask: calls.append(1) or read(mask))
    for more in ([], ["--layers", "layers"], ["--layers", "each", "--each-area"]):
        calls.clear()
        assert cli.main(composite("--mask", "box.png", *more)) == 0
        assert calls == [1]


def test_an_empty_mask_has_its_own_sentence_with_layers(workplace, capsys, monkeypatch, _placing):
    monkeypatch.undo()
    monkeypatch.setattr(lazy, "open_pipeline", lambda options: _placing)
    monkeypatch.chdir(workplace)
    Image.new("L", (120, 90)).save("empty.png")
    assert cli.main(composite("--mask", "empty.png", "--layers", "layers")) == 2
    assert "mask of the hole is empty" in capsys.readouterr().err


def test_layers_are_not_written_over_what_is_there(workplace, capsys, monkeypatch):
    (workplace / "object.png").rename(workplace / "2-object.png")
    words = composite("--at", "50,70", "--layers", ".", subject="2-object.png")
    assert "2-object.png exists already and would be overwritten" in refused(workplace, capsys, monkeypatch, words)
    assert cli.main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert Image.open("2-object.png").size == (120, 90)
    words = composite("--at", "50,70", "--layers", ".", "--overwrite", "--out", "3-light.png", subject="2-object.png")
    assert "3-light.png would be both a layer and the picture" in refused(workplace, capsys, monkeypatch, words)


def test_an_error_in_a_later_object_leaves_no_layers_of_the_first(workplace, capsys):
    objects = [{"object": "object.png", "at": at} for at in ([50, 70], [900, 2])]
    assert batch({"objects": objects, "background": "background.png", "out": "o.png"}, options="--layers layers") == 2
    assert "outside the 120x90 background" in capsys.readouterr().err
    assert not [path for path in (workplace / "layers").rglob("*") if path.is_file()]


def test_layers_of_pictures_of_one_name_are_refused(workplace, capsys):
    lines = [job(f"{name}/x.png", at=[50, 70]) for name in "ab"]
    assert batch(*lines, options="--layers layers") == 2
    out, err = capsys.readouterr()
    assert "line 2: the layers of x.png would go into the folder of line 1's, x;" in err and out.startswith("1 written")
    assert batch(*lines) == 0  # without layers they are two pictures


@pytest.mark.parametrize("folder", ["background.png", "background.png/layers", "/proc/layers", "a\0b"])
def test_a_folder_for_layers_that_cannot_be_is_refused(workplace, capsys, monkeypatch, folder):
    words = ["--at", "50,70", "--layers", folder]
    assert "1-shadow.png cannot be written" in refused(workplace, capsys, monkeypatch, composite(*words))
    assert batch(job("line.png", at=[50, 70]), options=f"--layers {folder}") == 2
    out, err = capsys.readouterr()
    assert "line 1: " in err and "cannot be written" in err and "Traceback" not in err and out.endswith("1 failed\n")
    assert not (workplace / "line.png").exists()


def test_layers_have_the_composite_s_colour_profile(workplace):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open("background.png").save("background.png", icc_profile=profile)
    assert cli.main(composite("--at", "50,70", "--layers", "layers")) == 0
    for path in (workplace / "out.png", *(workplace / "layers").iterdir()):
        assert Image.open(path).info["icc_profile"] == profile
    photo(120, 90, seed=2).save("background.png")
    assert cli.main(composite("--at", "50,70", "--layers", "without")) == 0
    assert not any("icc_profile" in Image.open(path).info for path in (workplace / "without").iterdir())


def test_layers_of_ten_objects_stack_in_the_order_of_their_names(workplace):
    objects = [{"object": "object.png", "at": [10 * n + 5, 70], "height": 20} for n in range(10)]
    assert batch({"objects": objects, "background": "background.png", "out": "o.png"}, options="--layers layers") == 0
    names = sorted(path.name for path in (workplace / "layers" / "o").iterdir())
    assert names[0] == "01-1-shadow.png" and names[-1] == "10-3-light.png" and len(names) == 30
    difference = np.abs(stacked(workplace / "layers" / "o", names) - pixels("o.png"))
    assert difference.max() <= 10  # at most one for each object
