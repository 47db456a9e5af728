"""Masks cut out of photos: which objects are found, and which photos get none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from imprint.errors import ImprintError
from training import cutout
from training.data import grabcut, stills
from training.data.items import Dropped


def photo(left: int = 70, width: int = 100, contrast: float = 1.0) -> tuple[Image.Image, np.ndarray]:
    """240 x 200: an ellipse of reddish noise on a light grey ground, and its mask (200, 240) bool."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :240]
    mask = ((x - left - width / 2) / (width / 2)) ** 2 + ((y - 100) / 55) ** 2 < 1
    ground = 190 + rng.normal(0, 6, (200, 240, 3))
    thing = np.array([150, 60, 50]) + rng.normal(0, 25, (200, 240, 3))
    pixels = ground + (thing - ground) * contrast * mask[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def test_an_object_on_plain_ground_is_cut_out():
    picture, mask = photo()
    found = grabcut.cut_out(picture)
    assert (found & mask).sum() / (found | mask).sum() > 0.95


@pytest.mark.parametrize("options", [{"contrast": 0}, {"left": -30}, {"width": 10}, {"left": 2, "width": 236}])
def test_no_mask_without_one_whole_object(options):
    with pytest.raises(Dropped) as dropped:
        grabcut.cut_out(photo(**options)[0])
    assert dropped.value.reason


def test_holes_and_pieces():
    mask = photo()[1]
    mask[100, 120] = mask[:, 0] = False
    mask[10, 10] = True
    assert (grabcut.whole(mask) == photo()[1]).all()
    mask[140:190, 10:40] = True
    with pytest.raises(Dropped, match="pieces"):
        grabcut.whole(mask)


def test_colours_of_the_other_side_are_counted():
    picture, mask = photo()
    pixels = np.asarray(picture)
    assert grabcut.contrast(pixels, mask) > 0.99 and grabcut.overlap(pixels, mask) < 0.02
    half = mask & (np.arange(240) < 120)  # the other half is taken for ground
    assert grabcut.contrast(pixels, half) < 0.9 and grabcut.overlap(pixels, half) > 0.2


@pytest.mark.parametrize("shade", [1.0, 0.5])
def test_ground_in_a_mask_is_noticed_even_in_shadow(shade):
    picture, mask = photo()
    pixels = np.array(picture)
    assert not any(grabcut.swallowed(pixels, mask, steps) > most for steps, most in grabcut.SWALLOWED.items())
    pixels[90:120, 100:115] = pixels[:30, :15] * shade
    assert any(grabcut.swallowed(pixels, mask, steps) > most for steps, most in grabcut.SWALLOWED.items())


def test_the_command_goes_on_and_prepare_finds_its_masks(tmp_path, capsys, monkeypatch):
    (tmp_path / "images/more").mkdir(parents=True)
    photo()[0].save(tmp_path / "images/more/good.png")
    photo(contrast=0)[0].save(tmp_path / "images/flat.png")
    (tmp_path / "images/broken.jpg").write_bytes(b"no picture")
    cutout.main([str(tmp_path), "--workers", "1"])
    said = capsys.readouterr().out
    assert "kept: 1" in said and "broken picture: 1" in said
    report = json.loads((tmp_path / "masks/cutout.json").read_text())
    assert sum(report["counts"].values()) == len(report["photos"]) == 3
    assert report["photos"]["more/good.png"] == grabcut.KEPT
    assert Image.open(tmp_path / "masks/cutout.png").getpixel((0, 0)) != (40, 40, 40)
    found = {group.name: group.data[1] for group in stills.folder_groups(tmp_path, None) if group.data[0]}
    assert found == {"more/good.png": tmp_path / "masks/more/good.png", "flat.png": None, "broken.jpg": None}

    def stopped(_picture):
        raise KeyboardInterrupt

    (tmp_path / "masks/more/good.png").unlink()
    monkeypatch.setattr(grabcut, "cut_out", stopped)
    with pytest.raises(SystemExit) as left:
        cutout.main([str(tmp_path), "--workers", "1"])
    assert left.value.code == 130 and "finished masks are kept" in capsys.readouterr().err
    monkeypatch.undo()
    for text in ("[]", '{"photos": []}', '{"photos": 3}', "{"):
        (tmp_path / "masks/cutout.json").write_text(text)
        cutout.main([str(tmp_path), "--workers", "1"])
        assert json.loads((tmp_path / "masks/cutout.json").read_text()) == report
        capsys.readouterr()

    monkeypatch.setattr(grabcut, "cut_out", lambda picture: pytest.fail("done before"))
    (tmp_path / "images/broken.jpg").unlink()
    cutout.main([str(tmp_path), "--workers", "1"])
    assert "broken" not in capsys.readouterr().out


def test_a_photo_with_a_mask_of_its_own_is_left_alone(tmp_path):
    photo()[0].save(tmp_path / "a.png")
    photo()[0].save(tmp_path / "a.mask.png")
    with pytest.raises(ImprintError, match="no photos without masks"):
        grabcut.run(tmp_path, tmp_path / "masks", workers=1)
    with pytest.raises(SystemExit, match="no photos"):
        cutout.main([str(tmp_path)])
