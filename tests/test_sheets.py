"""The contact sheets: they show the given objects, holes and photos, and are reproducible."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation import pixels, write_data
from micro import photo
from PIL import Image

from training import contact_sheets
from training.measure import contact_sheets as sheets


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = write_data(tmp_path_factory.mktemp("sheets"))
    Image.eval(photo(120, 90, seed=5), lambda value: value // 8).save(root / "backgrounds" / "night.png")
    return root


def run(bench, output, **changes) -> None:
    options = {name: bench / name for name in ("subjects", "backgrounds")} | {"checkpoint": bench / "model.safetensors"}
    options |= {"output": output} | changes
    contact_sheets.main([word for name, value in options.items() for word in (f"--{name}", str(value))])


def test_the_sheets_and_where_the_boxes_are(bench, tmp_path, monkeypatch, capsys):
    for name, value in {"POSED": 2, "LIT": 1, "BOXED": 3, "TILE": 64}.items():
        monkeypatch.setattr(sheets, name, value)
    run(bench, tmp_path / "one")
    assert "boxes.jpg" in capsys.readouterr().out
    truth = json.loads((tmp_path / "one" / "boxes.json").read_text())
    assert [entry["object"] for entry in truth] == ["cup", "bear", "cup"]  # after two poses and three lights
    for entry in truth:
        left, top, right, bottom = entry["box"]
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    assert Image.open(tmp_path / "one" / "boxes.jpg").size == (3 * 64 + 2 * sheets.GAP, 64)
    run(bench, tmp_path / "two")
    for name in ("pose.jpg", "light.jpg", "boxes.jpg"):
        assert pixels(tmp_path / "one" / name) == pixels(tmp_path / "two" / name)


def test_a_sheet_never_writes_over_a_photo(bench):
    photo(60, 50).save(bench / "backgrounds" / "boxes.jpg")
    with pytest.raises(SystemExit, match=r"boxes.jpg is also an input, and would be overwritten"):
        run(bench, bench / "backgrounds")
    (bench / "backgrounds" / "boxes.jpg").unlink()


def test_holes_follow_the_changed_object_and_fit_their_box(bench):
    made = sheets.Sheets(None, bench / "subjects", bench / "backgrounds")
    scene = made.scene(bench / "backgrounds" / "one.png", across=0.0)
    assert scene.subject == "bear" and scene.box[0] == 0
    cutout = scene.cutout.copy()
    cutout.paste(0, (0, 0, cutout.width // 2, cutout.height))  # the right half of the object alone
    sides = {}
    for name, change in sheets.POSES.items():
        hole = np.asarray(sheets.replace(scene, cutout=change(cutout)).hole("precise")) > 0
        sides[name] = np.nonzero(hole)[1].mean() - (scene.box[0] + scene.box[2]) / 2
    assert sides["mirrored"] < 0 < sides["squashed"]


def test_bad_folders_are_named(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    for changes, message in (
        ({"backgrounds": tmp_path / "none"}, "none: no such folder"),
        ({"backgrounds": tmp_path / "empty"}, "holds no photo"),
        ({"subjects": tmp_path / "empty"}, "holds no subject"),
        ({"checkpoint": tmp_path / "none.safetensors"}, "none.safetensors"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(bench, tmp_path / "out", **changes)
