"""The package's interface: every kind of picture, mask and number that comes in, and every file that goes out."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import DrawingPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import cutout, photo, profile, rectangle
from PIL import Image, ImageCms, ImageDraw, ImageOps

from imprint import cli, files, saving
from imprint.crop import Crop, paste
from imprint.detail import _starts
from imprint.errors import ImprintError
from imprint.hole import Hole, separate_areas
from imprint.images import as_picture, open_image, to_rgb, upright
from imprint.mask_reading import as_mask, label_masks, mask_to_tensor
from imprint.profiles import convert_profile, profile_of
from imprint.saving import save_image
from imprint.views import ObjectViews

SHAPES = settings.default.max_examples // 50  # whole composites cost a second each


def with_exif(picture: Image.Image, orientation: int, path: Path) -> Image.Image:
    """The picture as a file that says it is rotated, opened by Pillow alone."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return Image.open(path)


# --- pictures come in upright, in range, in the background's colours
# ----------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_photo_is_upright_in_the_composite(pipeline, scene, tmp_path, orientation):
    subject, background, hole = scene
    turned = with_exif(background, orientation, tmp_path / "turned.png")
    shown = open_image(tmp_path / "turned.png")
    hole = hole.resize(shown.size)
    made = pipeline(subject, None, turned, hole, 1, generator=torch.Generator().manual_seed(0)).images[0]
    same = pipeline(subject, None, shown, hole, 1, generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == shown.size and np.array_equal(np.asarray(made), np.asarray(same))
    assert made.getexif().get(0x0112, 1) == 1 and "exif" not in made.info
    view = ObjectViews.of(with_exif(subject, orientation, tmp_path / "object.png"))
    assert view.pictures[0].shape[2:] == open_image(tmp_path / "object.png").size[::-1]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "data", [b"Exif\0\0garbage!", b"MM\0\xef\0\0\0\x08", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_a_photo_with_broken_exif_is_a_photo(tmp_path, kind, data):
    picture, path = photo(20, 10), tmp_path / f"a.{kind.lower()}"
    picture.save(path, kind, exif=data)
    for opened in (open_image(path), upright(Image.open(path))):
        assert opened.size == (20, 10) and as_picture(opened).shape == (1, 3, 10, 20)


BAD_VALUES = {
    "finite": torch.full((1, 3, 90, 120), torch.nan),
    "uint8": torch.zeros(1, 3, 90, 120, dtype=torch.uint8),
    "from 0 to 255": torch.linspace(0, 255, 90 * 120).reshape(1, 1, 90, 120).expand(1, 3, -1, -1),
    "from -1 to 1": torch.linspace(-1, 1, 90 * 120).reshape(1, 1, 90, 120).expand(1, 3, -1, -1),
}


@pytest.mark.parametrize("message", BAD_VALUES)
@pytest.mark.parametrize("place", range(4))
def test_tensors_that_are_not_pictures_are_refused(pipeline, scene, message, place):
    subject, background, hole = scene
    good = [as_picture(subject.resize(background.size)), torch.ones(1, 90, 120), as_picture(background), as_mask(hole)]
    good[place] = BAD_VALUES[message] if place in (0, 2) else BAD_VALUES[message][:, 0]
    with pytest.raises(ImprintError, match=message):
        pipeline(*good, 1)


def test_an_array_is_refused_and_a_bool_mask_is_a_mask():
    with pytest.raises(ImprintError, match="ndarray; expected a Pillow picture or a tensor"):
        as_picture(np.zeros((3, 4, 4)))
    assert as_mask(torch.ones(1, 4, 4, dtype=torch.bool)).dtype == torch.float32


def test_an_object_in_other_colours_is_converted_to_the_background_s():
    subject = cutout(40, 30, seed=1)
    subject.info["icc_profile"] = profile("wide")
    plain = ObjectViews.of(subject).pictures[0]
    kept = ObjectViews.of(subject, profile=profile("wide")).pictures[0]
    assert torch.equal(kept, as_picture(cutout(40, 30, seed=1)))
    assert (plain - kept).abs().max() > 0.1
    back = convert_profile(convert_profile(subject, None), profile("wide"))
    inside = np.asarray(subject.getchannel("A")) > 0
    assert profile_of(back) == profile("wide") and back.mode == "RGBA"
    assert np.median(np.abs(np.asarray(back)[inside].astype(int) - np.asarray(subject)[inside])) <= 2
    same = cutout(40, 30, seed=1)
    same.info["icc_profile"] = profile("sRGB")  # in other words what no profile means: not a bit is moved
    assert torch.equal(as_picture(same), kept)


# --- masks say where
# ------------------------------------------------------------------------------------------------------


def faint_masks() -> dict[str, Image.Image]:
    """One ellipse as faint masks of every kind."""
    solid = np.asarray(cutout(40, 30).getchannel("A")) > 0
    palette = Image.fromarray(solid.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    alpha = Image.new("RGBA", (40, 30), "white")
    alpha.putalpha(Image.fromarray((solid * 115).astype(np.uint8)))
    return {
        "labels": Image.fromarray(solid.astype(np.uint8)),
        "palette": palette,
        "grey": Image.fromarray((solid * 128).astype(np.uint8)),
        "alpha": alpha,
        "16-bit labels": Image.fromarray(solid.astype(np.uint16)),
        "32-bit labels": Image.fromarray(solid.astype(np.int32) * 255),
        "float": Image.fromarray(solid.astype(np.float32) * 0.1),
    }


@pytest.mark.parametrize("kind", faint_masks())
def test_a_faint_mask_is_a_mask(pipeline, scene, kind):
    white = Image.fromarray((np.asarray(cutout(40, 30).getchannel("A")) > 0).astype(np.uint8) * 255)
    faint = faint_masks()[kind]
    assert torch.equal(mask_to_tensor(faint), mask_to_tensor(white))
    subject, background, _ = scene
    subject = subject.convert("RGB").resize((40, 30))
    tensor = as_mask(mask_to_tensor(white) * 0.3)
    for mask in (faint, tensor):
        assert torch.equal(pipeline.encode_object(subject, mask), pipeline.encode_object(subject, white))
    made = [
        Crop.of(background.resize((40, 30)), mask, pipeline.model_config).frame_mask for mask in (faint, white, tensor)
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[2], made[1])


def test_a_faint_alpha_is_the_object_s_mask(pipeline, scene):
    subject = scene[0].copy()
    subject.putalpha(subject.getchannel("A").point(lambda value: value * 115 // 255))
    assert torch.equal(pipeline.encode_object(subject), pipeline.encode_object(scene[0]))


DEEP = {  # values of a grey ramp from 0 to 1, and what is said of them as a picture and as a mask
    "a float picture": (lambda ramp: ramp, None, None),
    "floats to 255": (lambda ramp: ramp * 255, "from 0 to 255", None),
    "floats from -1": (lambda ramp: 2 * ramp - 1, "from -1 to 1", "from -1 to 1"),
    "NaN": (lambda ramp: np.where(ramp > 0.5, np.nan, ramp), "not finite", "not finite"),
    "infinity": (lambda ramp: np.where(ramp > 0.5, np.inf, ramp), "not finite", "not finite"),
    "minus infinity": (lambda ramp: np.where(ramp > 0.5, -np.inf, ramp), "not finite", "not finite"),
    "float labels": (lambda ramp: (ramp * 2.9).round(), "from 0 to 3", "map of 3 labels"),
    "16 bits": (lambda ramp: (ramp * 65535).astype(np.int32), None, None),
    "more than 16 bits": (lambda ramp: (ramp * 1e6).astype(np.int32), "from 0 to 1e\\+06", None),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_is_in_range_or_refused(kind):
    values, of_picture, of_mask = DEEP[kind]
    ramp = np.linspace(0, 1, 300, dtype=np.float32).reshape(15, 20)
    made = values(ramp)
    image = Image.fromarray(made.astype(np.float32) if made.dtype.kind == "f" else made)
    for border, message in ((as_picture, of_picture), (as_mask, of_mask)):
        if message is None:
            assert (border(image).mean() - 0.5).abs() < 0.01 and border(image).max() == 1
        else:
            with pytest.raises(ImprintError, match=message):
                border(image)


def test_a_map_of_several_labels_is_refused():
    labels = np.zeros((8, 8), np.uint8)
    labels[:4], labels[5:] = 1, 3
    palette = Image.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 128, 0])
    for picture in (Image.fromarray(labels), Image.fromarray(labels.astype(np.uint16)), palette):
        with pytest.raises(ImprintError, match=r"map of 2 labels \(1, 3\)"):
            mask_to_tensor(picture)


def test_labels_may_be_colours_and_shades_of_one_are_a_soft_mask():
    labels = np.zeros((20, 20), np.uint8)
    labels[2:8], labels[10:16], labels[16] = 1, 15, 255  # two things and the void, in the palette of VOC
    palette = Image.fromarray(labels, "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 15, 255]] = (128, 0, 0), (192, 128, 128), (224, 224, 192)
    palette.putpalette(colours.ravel().tolist())
    for picture, numbers in ((palette, "1, 15, 255"), (palette.convert("RGB"), "1, 2, 3")):
        with pytest.raises(ImprintError, match=rf"map of 3 labels \({numbers}\)"):
            mask_to_tensor(picture)
        assert [int(mask.sum()) for mask in label_masks(picture)] == [120, 120, 20]
    soft = cutout(40, 30).getchannel("A").resize((20, 15), Image.BOX)
    white = mask_to_tensor(soft)
    red = Image.merge("RGB", (soft, *[Image.new("L", soft.size)] * 2))
    few = red.quantize(16)
    few.putpalette(few.getpalette()[: 3 * (max(number for _, number in few.getcolors()) + 1)])  # cut off after its last
    for picture, near in ((red, 1 / 64), (few, 1 / 8)):
        assert not label_masks(picture) and torch.allclose(mask_to_tensor(picture), white, atol=near)
    for empty in (Image.new("P", (4, 4)), Image.new("RGB", (4, 4))):
        assert not label_masks(empty) and not mask_to_tensor(empty).any()


@pytest.mark.parametrize("hidden", ["black", "white", "red"])
@pytest.mark.parametrize("colour", ["black", "white", "red", (4, 0, 9)])
def test_strokes_on_nothing_are_a_mask_whatever_their_colour(colour, hidden):
    alpha = cutout(40, 30).getchannel("A").resize((20, 15), Image.BOX)  # with a soft edge
    strokes = Image.new("RGB", alpha.size, hidden)
    strokes.paste(colour, mask=alpha.point(lambda value: 255 * (value > 0)))
    strokes.putalpha(alpha)
    assert torch.allclose(mask_to_tensor(strokes), mask_to_tensor(alpha), atol=1e-6) and not label_masks(strokes)


def test_black_and_white_on_nothing_is_white_s_mask():
    both = Image.new("LA", (20, 10))
    both.paste((0, 255), (2, 2, 18, 8))
    both.paste((255, 255), (4, 4, 9, 6))
    assert torch.equal(mask_to_tensor(both), mask_to_tensor(rectangle(20, 10, (4, 4, 9, 6))))


def test_a_photo_is_no_mask_and_a_cut_out_is_its_alpha(tmp_path):
    with pytest.raises(ImprintError, match="of many colours, such as a photo"):
        mask_to_tensor(photo(60, 40))
    assert torch.equal(mask_to_tensor(cutout(60, 40)), mask_to_tensor(cutout(60, 40).getchannel("A")))
    box = rectangle(60, 40, (12, 9, 40, 30))
    red = Image.new("RGB", (60, 40))
    red.paste((200, 30, 60), mask=box)
    for name in ("a.jpg", "a.webp"):  # with many colours at its edge
        red.save(tmp_path / name, quality=40)
        assert (
            (mask_to_tensor(open_image(tmp_path / name)) > 0.5) == (mask_to_tensor(box) > 0.5)
        ).float().mean() > 0.97


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (128, 0, 128), (0, 200, 60)])
def test_a_wide_soft_brush_of_any_colour_is_a_mask(tmp_path, colour):
    across = np.linspace(-1.4, 1.4, 64)
    brush = np.exp(-(across[:, None] ** 2 + across**2))  # hardly a pixel is black or as bright as its middle
    soft = (brush[..., None] * colour).round().astype(np.uint8)
    on_nothing = np.dstack([np.broadcast_to(colour, soft.shape), brush * 255]).round().astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "a.png")
    Image.fromarray(soft).save(tmp_path / "a.jpg", quality=90)
    Image.fromarray(on_nothing).save(tmp_path / "a.webp", quality=70)
    for name in ("a.png", "a.jpg", "a.webp"):
        opened = open_image(tmp_path / name)
        assert not label_masks(opened)
        assert np.abs(mask_to_tensor(opened)[0].numpy() - brush).mean() < 0.03


def test_a_soft_edge_of_pure_blue_is_no_map_of_labels():
    edge = np.asarray(cutout(40, 30).getchannel("A").resize((200, 150), Image.BICUBIC))
    blue = np.dstack([np.zeros_like(edge), np.zeros_like(edge), edge])  # 29 of 255 is its brightness
    assert np.abs(mask_to_tensor(Image.fromarray(blue))[0].numpy() - edge / edge.max()).max() < 0.03


def test_a_cut_out_without_colours_is_its_alpha_too():
    shades, alpha = photo(60, 40).convert("L"), cutout(60, 40).getchannel("A")
    grey = Image.merge("LA", (shades.point(lambda value: 60 + value // 2), alpha))
    for cut in (grey, grey.convert("RGBA")):
        assert torch.equal(mask_to_tensor(cut), mask_to_tensor(alpha))


def test_a_mask_that_seems_inverted_is_said(pipeline, scene, caplog):
    subject, background, hole = scene
    view, own = subject.convert("RGB"), subject.getchannel("A")
    pipeline(view, own, background, hole, 1)
    pipeline(view, own, background, Image.new("L", background.size, 255), 1)
    assert "white along" not in caplog.text
    pipeline(view, own, background, ImageOps.invert(hole), 1)
    assert caplog.text.count("the mask is white along most of its border") == 1
    pipeline(view, ImageOps.invert(own), background, hole, 1)
    assert caplog.text.count("the object's mask is white along most of its border") == 1


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff"])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_said(tmp_path, caplog, ending):
    path = tmp_path / f"two.{ending}"
    photo(20, 10, seed=1).save(path, save_all=True, append_images=[photo(20, 10, seed=2)])
    opened = open_image(path)
    assert "has 2 pictures: the first is used" in caplog.text and opened.size == (20, 10)
    caplog.clear()
    photo(20, 10).save(path)
    open_image(path)
    assert not caplog.text


# --- pictures go out whole, with their colours, or a sentence says why not
# ---------------------------------------------


PROFILED = "RGB RGBA RGBa RGBX P PA".split()  # modes whose numbers an RGB profile is for
MODES = "1 L LA La I;16 I;16B I F P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB".split()


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Convert an RGBA picture to any of Pillow's modes."""
    grey = np.asarray(picture.convert("L"))
    if mode in ("F", "I", "I;16"):
        return Image.fromarray(
            {"F": grey / np.float32(255), "I": grey * np.int32(257), "I;16": grey * np.uint16(257)}[mode]
        )
    if mode == "I;16B":
        return Image.frombytes(mode, picture.size, (grey * np.uint16(257)).astype(">u2").tobytes())
    if mode == "LAB":
        lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture.convert("RGB"), *lab, outputMode=mode)
    through = {"La": "LA", "PA": "P"}.get(mode, picture.mode)
    return picture.convert(through).convert(mode)


@given(
    mode=st.sampled_from(MODES),
    ending=st.sampled_from(["png", "tiff", "tif", "bmp", "webp", "jpg", "jfif", "gif", "ico", "pdf", "eps"]),
    orientation=st.integers(1, 8),
    kind=st.sampled_from([None, "wide", "sRGB", "lab", b"broken"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_comes_out_is_what_went_in(tmp_path, micro, mode, ending, orientation, kind):
    base = cutout(64, 48, seed=3)
    background = in_mode(base, mode)
    given_profile = kind if isinstance(kind, bytes | None) else profile(kind)
    background.info = background.info | ({"icc_profile": given_profile} if given_profile else {})
    exif = background.getexif()
    exif[0x0112] = orientation
    background.info["exif"] = exif.tobytes()
    size = upright(background).size
    hole = rectangle(*size, (16, 16, 32, 32))
    crop = Crop.of(background, hole, micro)
    made = paste(background, crop.frame[0], crop.area)
    rgb = to_rgb(background)
    assert made.size == rgb.size == size and np.array_equal(np.asarray(made.convert("RGB")), np.asarray(rgb))
    path = tmp_path / f"made.{ending}"
    try:
        save_image(made, path)
    except ImprintError as error:
        lost = ending in ("jpg", "jfif", "bmp") and made.has_transparency_data and "transparency" in str(error)
        assert (ending in ("gif", "ico", "pdf", "eps") or lost) and "end the name in .png" in str(error)
        return
    with Image.open(path) as found:
        found.load()
    assert found.size == size and found.getexif().get(0x0112, 1) == 1
    assert found.has_transparency_data == (mode in ("RGBA", "RGBa", "LA", "La", "PA")) or mode == "P"
    wanted = profile(kind) if kind in ("wide", "sRGB") and mode in PROFILED else None
    if ending != "bmp":
        assert found.info.get("icc_profile") == wanted
        if ending in ("png", "tiff", "tif"):
            assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(rgb))
    elif kind == "wide" and wanted:
        assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(convert_profile(rgb, None)))


# --- nothing computed is lost
# ---------------------------------------------------------------------------------------------


def test_a_folder_that_refuses_chmod_and_a_name_as_long_as_it_may_be(tmp_path, monkeypatch):
    def refuse(*_args, **_named):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    path = tmp_path / ("n" * 240 + ".png")
    save_image(photo(8, 8), path)
    assert open_image(path).size == (8, 8)
    for long in (Path("n" * 252 + ".png"), Path("new", "n" * 252 + ".png"), Path("new", "n" * 300, "a.png")):
        with pytest.raises(ImprintError, match="cannot be written"):
            saving.require_writable(tmp_path / long)
    assert os.listdir(tmp_path) == [path.name]


def test_whether_a_file_can_be_written_is_found_without_making_its_folder(tmp_path, monkeypatch):
    """If two processes check at once, a folder that one creates and removes would disappear under the other."""
    monkeypatch.delattr(os, "rmdir")
    saving.require_writable(tmp_path / "new/folder/a.png")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ImprintError, match="cannot be written"):
        saving.require_writable(tmp_path / "file/new/a.png")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("a.webp", (17_000, 20), "WEBP does not hold 17000x20"),
        ("a.jpg", (20, 70_000), "JPEG does not hold 20x70000"),
        ("a.ico", None, "ICO may not keep"),
        ("a.gif", None, "GIF may not keep"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_the_work(tmp_path, name, size, message):
    with pytest.raises(ImprintError, match=message):
        saving.require_writable(tmp_path / name, size and Image.new("RGB", size))


@pytest.mark.parametrize("ending", ["jpg", "jfif", "bmp"])
def test_transparency_that_a_format_lacks_is_refused_before_the_work(tmp_path, job, capsys, ending):
    words, background = [*job, "--out", str(tmp_path / f"out.{ending}")], open_image(tmp_path / "background.png")
    for alpha, code in ((254, 2), (255, 0)):
        background.putalpha(Image.new("L", background.size, alpha))
        background.save(tmp_path / "background.png")
        assert cli.main(words) == code and ("cannot hold" in capsys.readouterr().err) == (code == 2)


@pytest.fixture
def job(tmp_path, scene, micro_file) -> list[str]:
    """A command line for the micro model, without --out."""
    for name, picture in zip(("object", "background", "hole"), scene):
        picture.save(tmp_path / f"{name}.png")
    words = ["composite", "--checkpoint", str(micro_file), "--steps", "1", "--fit", "fill"]
    for option, name in (("object", "object"), ("background", "background"), ("mask", "hole")):
        words += [f"--{option}", str(tmp_path / f"{name}.png")]
    return words


def test_a_picture_that_cannot_be_saved_is_kept_beside_it(tmp_path, job, capsys, monkeypatch):
    real = files.os.replace

    def refuse(source, target):
        if Path(target).name == "out.png":
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    (tmp_path / "imprint-kept.png").write_bytes(b"another's")
    assert cli.main([*job, "--out", str(tmp_path / "out.png")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    kept = tmp_path / "imprint-kept-2.png"
    assert "No space left" in error and error.endswith(f"is kept as {kept}")
    assert open_image(kept).size == (120, 90) and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("name", ["background", "object", "hole"])
def test_what_the_picture_is_made_of_is_not_written_over(tmp_path, job, capsys, name):
    (tmp_path / "link.png").symlink_to(tmp_path / f"{name}.png")
    before = (tmp_path / f"{name}.png").read_bytes()
    for out in (f"{name}.png", "link.png"):
        assert cli.main([*job, "--out", str(tmp_path / out)]) == 2
        assert "is also an input of the picture" in capsys.readouterr().err
    assert (tmp_path / f"{name}.png").read_bytes() == before
    assert cli.main([*job, "--out", str(tmp_path / f"{name}.png"), "--overwrite"]) == 0
    assert (tmp_path / f"{name}.png").read_bytes() != before


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, job, capsys):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(Path("far") / "out.png")  # from its own folder, and not there yet
    assert cli.main([*job, "--out", str(link)]) == 0 == cli.main([*job, "--out", str(link), "--seed", "1"])
    assert link.is_symlink() and open_image(tmp_path / "far" / "out.png").size == (120, 90)
    assert os.listdir(tmp_path / "far") == ["out.png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    else:  # Windows
        (tmp_path / "pipe.png").symlink_to("pipe.png")
    (tmp_path / "round.png").symlink_to("round.png")
    capsys.readouterr()
    for name in ("pipe.png", "round.png"):
        assert cli.main([*job, "--out", str(tmp_path / name)]) == 2
        assert "not a regular file" in capsys.readouterr().err and os.path.lexists(tmp_path / name)


def test_a_batch_says_so_too(tmp_path, job, micro_file, capsys):
    line = '{"object": "object.png", "background": "background.png", "mask": "hole.png", "out": "background.png"}'
    (tmp_path / "jobs.jsonl").write_text(line + "\n")
    assert cli.main(["batch", str(tmp_path / "jobs.jsonl"), "--checkpoint", str(micro_file)]) == 2
    out, err = capsys.readouterr()
    assert out == "0 written, 0 skipped, 1 failed\n" and "line 1" in err and "an input of" in err


def test_a_batch_in_another_encoding(tmp_path, job, micro_file, capsys):
    lines = '{"object": "object.png", "background": "background.png", "mask": "hole.png", "out": "%s.png"}'
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):  # as PowerShell and Notepad write
        text = ("\ufeff" if encoding == "utf-16-be" else "") + "\r\n".join(lines % f"道{n}{encoding}" for n in range(2))
        (tmp_path / "jobs.jsonl").write_bytes(text.encode(encoding))
        assert cli.main(["batch", str(tmp_path / "jobs.jsonl"), "--checkpoint", str(micro_file)]) == 0
        assert (tmp_path / f"道1{encoding}.png").is_file()
    (tmp_path / "jobs.jsonl").write_bytes(b"\xff\xfe{")
    assert cli.main(["batch", str(tmp_path / "jobs.jsonl")]) == 2 and "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_printing_a_name_never_fails_a_run(tmp_path, job, capfd, monkeypatch, encoding):
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    out = tmp_path / "Straße 道 \udcff.png"
    assert cli.main([*job, "--out", str(out)]) == 0
    stream.flush()
    assert stream.buffer.getvalue().endswith(b" s)\n") and out.is_file()


def test_a_full_disk_behind_stdout_is_no_failure(tmp_path, job, monkeypatch):
    import sys

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([*job, "--out", str(tmp_path / "out.png")]) == 0
        monkeypatch.undo()


# --- numbers: shapes down to one pixel
# ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> DrawingPipeline:
    made = DrawingPipeline.from_checkpoint()
    made.set_progress_bar_config(disable=True)
    return made


def boxes(width: int, height: int) -> st.SearchStrategy:
    """(left, top, right, bottom) in a picture, often one pixel wide or high, or at its borders."""

    def sides(length: int) -> st.SearchStrategy:
        thin = st.integers(0, length - 1).map(lambda start: (start, start + 1))
        whole, any_two = st.just((0, length)), st.tuples(st.integers(0, length - 1), st.integers(1, length))
        return st.one_of(thin, whole, any_two.map(lambda ends: (min(ends[0], ends[1] - 1), ends[1])))

    return st.tuples(sides(width), sides(height)).map(lambda ends: (ends[0][0], ends[1][0], ends[0][1], ends[1][1]))


def shapes(width: int, height: int) -> st.SearchStrategy[Image.Image]:
    """Masks of one to three boxes, apart or overlapping, and of a slanting line."""

    def drawn(shape: list[tuple[int, int, int, int]]) -> Image.Image:
        mask = Image.new("L", (width, height))
        for box in shape:
            mask.paste(255, box)
        return mask

    def line(box: tuple[int, int, int, int]) -> Image.Image:
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).line((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
        return mask

    return st.one_of(st.lists(boxes(width, height), min_size=1, max_size=3).map(drawn), boxes(width, height).map(line))


@given(hole=shapes(48, 90), subject=shapes(60, 40), fit=st.sampled_from(["fill", "contain"]), seed=st.integers(0, 3))
@settings(max_examples=SHAPES)
def test_every_shape_of_hole_and_object_gives_a_picture(shipped, hole, subject, fit, seed):
    background, view, generator = photo(48, 90, seed=2), photo(60, 40, seed=1), torch.Generator().manual_seed(seed)
    made = shipped(view, subject, background, hole, 1, generator=generator, fit=fit, output_type="pt")
    assert made.images.shape == (1, 3, 90, 48)
    assert made.images.isfinite().all() and made.alpha.isfinite().all() and made.shadow.isfinite().all()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pixels", [(slice(2, 38), slice(20, 21)), (slice(9, 10), slice(9, 10))])
def test_the_starts_for_an_outline_of_a_single_column_row_or_pixel_are_finite(turned, pixels):
    planes = torch.zeros(4, 40, 40)
    planes[(slice(None), *pixels)] = 1
    planes = planes.mT if turned else planes
    starts = _starts(planes, planes)
    assert starts and all(math.isfinite(cost) and theta.isfinite().all() for cost, _, theta in starts)
    cost, _, theta = min(starts, key=lambda start: start[0] * start[1])
    assert cost < 1e-6 and torch.allclose(theta, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), atol=1e-5)


def test_a_thin_object_is_there(shipped):
    """A pole with a small flag: the model draws only one column of it where the photo is laid over it."""
    background, hole = Image.new("RGB", (800, 800), (120, 140, 160)), rectangle(800, 800, (378, 60, 423, 761))
    view = Image.new("RGBA", (600, 800))
    for corners, colour in (((300, 30, 308, 771), (60, 60, 60, 255)), ((300, 30, 349, 64), (200, 30, 30, 255))):
        view.paste(colour, corners)
    inside = np.asarray(hole) > 0
    for seed in range(7):
        made = shipped(view, None, background, hole, 2, generator=torch.Generator().manual_seed(seed))
        changed = np.abs(np.asarray(made.images[0], int) - np.asarray(background, int)).max(-1) > 8
        assert changed[inside].mean() > 0.05 and made.alpha.max() > 0.5, seed


# --- several areas in one mask
# ----------------------------------------------------------------------------------------------


def test_areas_are_counted_and_taken_apart():
    mask = torch.zeros(40, 60)
    mask[5:15, 5:15] = mask[25:35, 40:50] = mask[15, 15] = 1  # a corner touches
    areas = separate_areas(mask)
    assert len(areas) == 2 and torch.equal(sum(areas), mask) and areas[0][15, 15] == 1
    assert Hole.find(mask, 64).areas == 2 and Hole.find(areas[0], 64).areas == 1


def test_specks_are_no_areas():
    mask = torch.zeros(40, 60)
    mask[::2, ::2] = 1
    with pytest.raises(ImprintError, match="600 separate areas, but at most 100"):
        separate_areas(mask)


def test_separate_areas_are_said_or_get_an_object_each(tmp_path, job, scene, capsys, caplog):
    mask = rectangle(120, 90, (10, 10, 40, 40))
    mask.paste(255, (80, 50, 110, 80))
    mask.save(tmp_path / "hole.png")
    assert cli.main([*job, "--out", str(tmp_path / "one.png"), "--context", "1"]) == 0
    assert "2 separate areas: one object will span them" in caplog.text
    caplog.clear()
    assert cli.main([*job, "--out", str(tmp_path / "each.png"), "--context", "1", "--each-area"]) == 0
    assert "separate areas" not in caplog.text
    one, each, before = (open_image(tmp_path / f"{name}.png") for name in ("one", "each", "background"))
    changed = np.asarray(each) != np.asarray(before)
    assert changed[12:38, 12:38].mean() > 0.5 and changed[52:78, 82:108].mean() > 0.5
    assert not np.array_equal(np.asarray(each), np.asarray(one))


# --- no value that is not finite goes on
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "message"),
    [("encoder", "sees of the object"), ("vae", "background's latents"), ("unet", "what was sampled")],
)
def test_the_step_that_went_wrong_is_named(pipeline, scene, monkeypatch, part, message):
    module = getattr(pipeline, part)
    weight = next(weight for weight in module.parameters() if weight.ndim > 1)
    kept = weight.data.clone()
    weight.data.fill_(torch.nan)
    try:
        with pytest.raises(ImprintError, match=f"{message}.*not finite"):
            pipeline(*scene[:1], None, *scene[1:], 1)
    finally:
        weight.data.copy_(kept)
