"""A plain photo is cut out by a stand-in for rembg, an extra with its own weights."""

import builtins
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from placing import batch, composite, job, pixels

from imprint import cli
from imprint import cutout as removal
from imprint.errors import ImprintError


@pytest.fixture
def rembg(monkeypatch):
    """A module rembg whose mask is everything that is not grey; it records its calls."""
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


def plain(workplace) -> Image.Image:
    """object.png on grey, without transparency, as plain.png too."""
    subject = Image.open(workplace / "object.png")
    photo = Image.new("RGB", subject.size, (128, 128, 128))
    photo.paste(subject, mask=subject.getchannel("A").point(lambda value: 255 * (value > 127)))
    photo.save(workplace / "plain.png")
    return photo


def test_a_plain_photo_is_cut_out(workplace, rembg):
    photo = plain(workplace)
    removal.cut_out(photo).save("mask.png")
    assert cli.main(composite("--mask", "box.png", "--object-mask", "mask.png", subject="plain.png")) == 0
    expected = pixels("out.png")
    rembg.asked.clear()
    assert cli.main(composite("--mask", "box.png", "--cutout", "auto", subject="plain.png")) == 0
    assert np.array_equal(pixels("out.png"), expected)
    assert rembg.asked == [("RGB", f"session of {removal.WEIGHTS}", True)]
    assert batch(job("line.png", object="plain.png", mask="box.png"), options="--cutout auto") == 0
    assert np.array_equal(pixels("line.png"), expected)


def test_what_has_a_mask_is_left_as_it_is(workplace, rembg):
    assert cli.main(composite("--mask", "box.png")) == 0
    expected = pixels("out.png")
    assert cli.main(composite("--mask", "box.png", "--cutout", "auto")) == 0
    assert np.array_equal(pixels("out.png"), expected) and not rembg.asked


def test_without_the_option_a_plain_photo_is_refused(workplace, capsys):
    plain(workplace)
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
