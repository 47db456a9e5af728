"""The options and keys that say where an object goes, on the command line and in jobs files."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import rectangle
from mutations import mutated
from PIL import Image
from placing import LAYERS, batch, composite, job, pixels

from imprint import cli
from imprint.errors import ImprintError
from imprint.job_keys import PLACING
from imprint.jobs import Job
from imprint.place import Align, Place

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
def test_options_keys_and_arguments_say_the_same(workplace, placing, scene, way, capsys):
    words, keys, arguments = WAYS[way]
    assert cli.main(composite(*words)) == 0
    assert batch(job("line.png", **keys)) == 0
    subject, background, box = scene
    given = {"mask": box} if "mask" in keys else {}
    expected = np.asarray(placing(subject, None, background, **given, **arguments).images[0])
    assert np.array_equal(pixels("out.png"), expected) and np.array_equal(pixels("line.png"), expected)
    assert not np.array_equal(expected, np.asarray(background))


def test_a_placed_picture_needs_no_mask(workplace, placing, scene, layer):
    assert cli.main(composite("--placed", subject="layer.png")) == 0
    assert batch(job("line.png", object="layer.png", placed=True)) == 0
    expected = np.asarray(placing(layer, None, scene[1], placed=True).images[0])
    assert np.array_equal(pixels("out.png"), expected) and np.array_equal(pixels("line.png"), expected)


def test_options_of_a_batch_are_for_lines_that_do_not_say(workplace, placing, scene):
    lines = [
        job("plain.png", mask="box.png"),
        job("own.png", mask="box.png", shadow=1),
    ]
    assert batch(*lines, options="--shadow 0 --light 0") == 0
    subject, background, box = scene
    for name, shadow in (("plain", 0), ("own", 1)):
        expected = placing(subject, None, background, box, light=0, shadow=shadow).images[0]
        assert np.array_equal(pixels(f"{name}.png"), np.asarray(expected))


def test_several_objects_in_a_line_are_one_after_another(workplace):
    """The line's other values apply to objects that do not give their own."""
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
    made = sorted(path.name for path in (workplace / "layers" / "together").iterdir())
    assert made == [f"{n}-{m}-{name}.png" for n in (1, 2, 3) for m, name in enumerate(LAYERS, 1)]
    for number, name in itertools.product((1, 2, 3), enumerate(LAYERS, 1)):
        one, many = (f"layers/{stem}{name[0]}-{name[1]}.png" for stem in (f"{number}/", f"together/{number}-"))
        assert np.array_equal(pixels(one), pixels(many))


@pytest.mark.parametrize("own", [{}, {"out": "own.png"}], ids=["without", "with"])
def test_a_job_can_be_told_where_to_write(workplace, own):
    line = {"background": "background.png", "objects": [{"object": "object.png", "at": [50, 70]}] * 2}
    job = Job.from_json(json.dumps(line | own).encode(), workplace, 0, out=workplace / "elsewhere.png")
    assert job.out == workplace / "elsewhere.png"
    if not own:
        with pytest.raises(ImprintError, match="missing keys: out"):
            Job.from_json(json.dumps(line).encode(), workplace, 0)


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
    "would be overwritten": {
        "objects": [{"object": "object.png", "at": [50, 70]}, {"object": "layer.png", "placed": True}],
        "out": "layer.png",
    },
}


@pytest.mark.parametrize("message", BAD_OBJECTS)
def test_bad_objects_are_reported(workplace, capsys, message):
    line = {"background": "background.png", "out": "line.png"} | BAD_OBJECTS[message]
    assert batch({key: value for key, value in line.items() if value is not ...}) == 2
    err = capsys.readouterr().err
    assert f"line 1: {message}" in err.replace("layer.png is also an input of the picture, and ", ""), err
    assert not (workplace / "line.png").exists()


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
    "rotate and flip are for an object that is fitted into a box": {
        "placed": True,
        "object": "layer.png",
        "flip": True,
    },
    "fit is 'cover'; it must be one of contain, fill, outline": {"mask": "box.png", "fit": "cover"},
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


def test_each_bad_key_has_its_sentence_and_the_others_are_made(workplace, capsys):
    lines = [job(f"{index}.png", **keys) for index, keys in enumerate(BAD_KEYS.values())]
    lines.append(job("last.png", at=[50, 70]))
    assert batch(*lines) == 2
    out, err = capsys.readouterr()
    reports = dict(re.findall(r"jobs\.jsonl, line (\d+): (.*)", err))
    for number, message in enumerate(BAD_KEYS, 1):
        assert message in reports.pop(str(number)), message
    assert not reports and "Traceback" not in err
    assert out == f"1 written, 0 skipped, {len(BAD_KEYS)} failed\n" and (workplace / "last.png").is_file()


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
        (["--at", "5,5", "--each-area"], "every area of the mask gets an object"),
    ],
)
def test_bad_options(workplace, capsys, words, message):
    assert cli.main(composite(*words)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_every_name_is_an_option_and_a_key(capsys):
    with pytest.raises(SystemExit):
        cli.main(["composite", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in PLACING) and "--layers" in text


def test_each_label_of_a_map_gets_an_object_also_where_they_touch(workplace, capsys):
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
        error = capsys.readouterr().err
        assert "map of 2 labels (1, 2)" in error and "--each-area puts an object into each label" in error


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
def test_any_line_is_made_or_has_a_sentence(workplace, capsys, line):
    (workplace / "any.png").unlink(missing_ok=True)
    (workplace / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    done = cli.main(["batch", "jobs.jsonl", "--steps", "1"])
    out, err = capsys.readouterr()
    if done == 0:
        assert out == "1 written, 0 skipped, 0 failed\n"
    else:
        assert done == 2 and out == "0 written, 0 skipped, 1 failed\n" and "jobs.jsonl, line 1: " in err


@pytest.mark.parametrize("key", ["object", "object_mask", "background", "mask", "out"])
@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "", 3, ["a.png", "\0"]])
def test_what_no_file_can_be_called_is_said(workplace, capsys, key, name):
    line = job("one.png", mask="box.png")
    lines = [line | {key: name}, line | {"out": "two.png"}]
    assert batch(*lines) == 2
    out, err = capsys.readouterr()
    assert f"line 1: '{key}' is" in err and out == "1 written, 0 skipped, 1 failed\n"


@pytest.mark.parametrize("words", [["--at", "-10,80"], ["--at=-10,80"], ["--at", "-10.0, 80"], ["--at", "-1e1,80"]])
def test_a_place_left_of_the_frame(workplace, placing, scene, words):
    assert cli.main(composite(*words)) == 0
    expected = placing(scene[0], None, scene[1], place=Place(-10, 80, 31)).images[0]
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_at_without_a_place_is_a_mistake(capsys):
    for words in (["--at"], ["--at", "--flip"]):
        with pytest.raises(SystemExit):
            cli.main(composite(*words))
        assert "argument --at: expected one argument" in capsys.readouterr().err
