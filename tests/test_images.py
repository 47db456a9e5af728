import os

import numpy as np
import pytest
import torch
from micro import cutout, huge_png, photo
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import image_to_tensor, open_image, tensor_to_image, to_rgb
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor
from imprint.saving import save_image


def test_pixels_survive_the_way_to_a_tensor_and_back():
    picture = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))
    assert np.array_equal(np.asarray(tensor_to_image(image_to_tensor(picture)[0])), np.asarray(picture))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "YCbCr", "HSV"])
def test_any_mode_becomes_three_channels(mode):
    tensor = image_to_tensor(photo(20, 10).convert(mode))
    assert tensor.shape == (1, 3, 10, 20) and tensor.dtype == torch.float32
    assert 0 <= tensor.min() and 0.2 < tensor.max() <= 1


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_deep_grey_is_scaled_and_not_clipped(dtype, top):
    grey = (np.linspace(0, 1, 64).reshape(8, 8) * top).astype(dtype)
    tensor = image_to_tensor(Image.fromarray(grey))
    assert torch.allclose(tensor[0, 0], torch.linspace(0, 1, 64).reshape(8, 8), atol=1 / 255)


def test_masks():
    white = Image.new("RGBA", (4, 3), (255, 255, 255, 0))
    white.putpixel((1, 2), (255, 255, 255, 255))
    assert mask_to_tensor(white).nonzero().tolist() == [[0, 2, 1]]  # white strokes on nothing
    soft = Image.fromarray(np.array([[0, 51, 255]], np.uint8))
    assert torch.allclose(mask_to_tensor(soft), torch.tensor([[[0, 0.2, 1]]]))


def test_alpha():
    assert alpha_to_tensor(photo(8, 8)) is None
    assert alpha_to_tensor(photo(8, 8).convert("RGBA")) is None  # opaque everywhere says nothing
    assert 0 < alpha_to_tensor(cutout(30, 20)).mean() < 1
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    assert alpha_to_tensor(palette).max() == 0


def test_a_palette_with_transparency_is_read_without_a_warning(recwarn, tmp_path):
    soft = photo(30, 20)
    soft.putalpha(Image.linear_gradient("L").resize(soft.size))
    soft.quantize(16).save(tmp_path / "palette.png")
    image = open_image(tmp_path / "palette.png")
    assert isinstance(image.info["transparency"], bytes)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGBA"))[..., :3]) and not recwarn


def test_a_turned_photo_is_turned_back(tmp_path):
    picture = photo(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (20, 30)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImprintError, match=r"pipe.png is a pipe or a device; give the path of a picture"):
        open_image(tmp_path / "pipe.png")


def test_unreadable_pictures_are_one_sentence(tmp_path):
    whole = tmp_path / "whole.png"
    photo(64, 64).save(whole)
    data = whole.read_bytes()
    bad = {
        "empty.png": b"",
        "text.png": b"this is no picture\n",
        "cut.png": data[: len(data) // 2],
        "header.png": data[:20],
        "damaged.png": data[:60] + bytes(100) + data[160:],
        "huge.png": huge_png(16_000, 9_000),  # refused here
        "vast.png": huge_png(60_000, 60_000),  # refused by Pillow
        "nothing.png": huge_png(0, 5),
    }
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImprintError) as caught:
            open_image(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ImprintError, match="is a folder; give the path of a picture"):
        open_image(tmp_path)
    for path in (tmp_path / "absent.png", tmp_path / "a\0b.png", tmp_path / ("n" * 5000)):
        with pytest.raises(ImprintError, match="no such file"):
            open_image(path)


@pytest.mark.parametrize("content", range(40))
def test_damaged_pictures_never_raise_anything_else(tmp_path, content):
    random = np.random.default_rng(content)
    path = tmp_path / f"picture.{('png', 'jpg', 'webp', 'gif')[content % 4]}"
    cutout(40, 40).convert("RGBA" if content % 4 != 1 else "RGB").save(path)
    data = bytearray(path.read_bytes())
    for place in random.integers(4, len(data), 8):
        data[place] ^= 1 << random.integers(8)
    path.write_bytes(bytes(data))
    try:
        assert open_image(path).width > 0
    except ImprintError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "deep/er/a.PNG"])
def test_saving(tmp_path, name):
    save_image(photo(20, 10), tmp_path / name)
    assert open_image(tmp_path / name).size == (20, 10)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    save_image(photo(8, 8), tmp_path / name)  # over the first
    assert open_image(tmp_path / name).size == (8, 8)


def test_png_and_alpha_are_exact(tmp_path):
    save_image(cutout(20, 10), tmp_path / "a.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), np.asarray(cutout(20, 10)))
    with pytest.raises(ImprintError, match="JPEG has none; end the name in .png"):
        save_image(cutout(20, 10), tmp_path / "a.jpg")
    save_image(photo(20, 10).convert("RGBA"), tmp_path / "a.jpg")  # opaque everywhere
    assert open_image(tmp_path / "a.jpg").mode == "RGB"


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "a.txt": "not a picture format",
        "a": "not a picture format",
        "a.psd": "not a picture format",  # Pillow reads it only
        "file/a.png": "cannot be written",
        "folder.png": "is a folder",
        "a\0b.png": "cannot be written",
    }.items():
        with pytest.raises(ImprintError, match=message):
            save_image(photo(8, 8), tmp_path / name)
    with pytest.raises(ImprintError, match="cannot be written"):
        save_image(photo(17_000, 2), tmp_path / "wide.webp")  # more than the format can hold
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
