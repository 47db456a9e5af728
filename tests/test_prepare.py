"""Each data set's own layout, made here at a tiny size and with what goes wrong in practice, into shards."""

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import cutout, micro_config, photo
from mutations import mutated
from PIL import Image, ImageDraw, ImageFilter
from test_borders import profile

pytest.importorskip("webdataset", reason="the extra 'train' is not installed")
pytest.importorskip("trimesh", reason="the extra 'train' is not installed")

import trimesh

from imprint.errors import ImprintError
from imprint.images import open_image, to_srgb
from training import prepare as command
from training.data.filters import Limits, edge_width, unusable_objects
from training.data.items import read_names
from training.data.shards import Record, Sample, held_out, read_parts, read_shards
from training.data.stills import polygons, run_lengths
from training.pairs.making import KINDS, PairMaker
from training.pairs.pictures import Photos, Views

CPU = torch.device("cpu")

WIDTH, HEIGHT = 120, 90
DISC = (30, 20, 80, 70)
SMALL = (40, 40, 46, 46)  # 0.3 % of the picture
CUT = (70, 40, 130, 80)  # by the right border


def disc(
    box: tuple[int, int, int, int] = DISC, value: int = 255, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=value)
    return mask


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    return save(photo(*size, seed=seed), path)


def save_palette(path: Path, *objects: tuple[tuple[int, int, int, int], int]) -> None:
    """A palette PNG: (box, number) for each object."""
    mask = Image.new("P", (WIDTH, HEIGHT))
    mask.putpalette([channel for value in range(256) for channel in (value * 37 % 256, value * 91 % 256, value)])
    for box, number in objects:
        ImageDraw.Draw(mask).ellipse(box, fill=number)
    save(mask, path)


def write_broken(path: Path, text: str = "broken") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prepare(source: str, root: Path, output: Path | str, **changes) -> dict:
    """Runs the command's options; a change to None leaves an option out. Returns the report."""
    values = {"input": root, "output": output, "licence": "CC0", "workers": 1, "held-out": 0, "name": "data"} | changes
    words = [str(word) for name, value in values.items() if value is not None for word in (f"--{name}", value)]
    return command.run(command.parse([source, *words]))


def read(output: Path, split: str = "train") -> dict:
    """Samples by clip and frame."""
    return {(sample.record.clip, sample.record.frame): sample for sample in read_shards(output / split)}


def names(output: Path) -> set[tuple[str, str]]:
    """(reason, last part of the name) of all that was dropped."""
    lines = (output / "data.dropped.tsv").read_text().splitlines()
    return {(reason, what.rsplit("/", 1)[-1]) for reason, what, _ in (line.split("\t") for line in lines)}


def assert_both_stages_train_on(output: Path, *kinds: str, views: Path | None = None) -> None:
    """Pairs of all these kinds, and no others, are made of the shards for either stage."""
    scene, mask = photo(WIDTH, HEIGHT, 1), Image.new("L", (WIDTH, HEIGHT))
    plain = [Sample(Record("", "", 0, "", "", (0, 0)), scene, mask)]
    thing = [Sample(Record("", "", view, "", "", (0, 2)), cutout(32, 32, view)) for view in range(2)]
    loaded = Views.load(views, CPU, side=32) if views else Views.of(thing)
    photos = Photos.load(output, CPU, side=64) if kinds else Photos.of(plain, 64)
    for stage in ("identity", "compositing"):
        maker = PairMaker(micro_config(), stage, loaded, photos, dict.fromkeys(KINDS, 1.0))
        assert set(maker.mix) == {"patch", "rendered", *kinds}
        pairs = maker(8, torch.Generator().manual_seed(0))
        assert pairs.target.shape == (8, 3, 64, 64) and all(
            torch.isfinite(part).all() for part in (pairs.reference, pairs.target)
        )


# --- video -----------------------------------------------------------------------------------------------------------


def test_davis(tmp_path):
    root = tmp_path / "DAVIS"
    for frame in range(4):
        save_photo(root / f"JPEGImages/480p/bear/{frame:05d}.jpg", frame)
        save(disc(), root / f"Annotations/480p/bear/{frame:05d}.png")  # 2016: 0 and 255
        save_photo(root / f"JPEGImages/480p/dogs/{frame:05d}.jpg", frame)
        save_palette(root / f"Annotations/480p/dogs/{frame:05d}.png", (DISC, 1), ((85, 30, 110, 60), 2), (SMALL, 255))
        save_photo(root / f"JPEGImages/Full-Resolution/bear/{frame:05d}.jpg", frame)
    write_broken(root / "JPEGImages/480p/bear/00001.jpg")
    write_broken(root / "JPEGImages/480p/bear/Thumbs.db")
    write_broken(root / "Annotations/480p/bear/00002.png")
    (root / "Annotations/480p/dogs/00003.png").unlink()
    save(disc(), root / "Annotations/480p/dogs/00009.png")
    save_palette(root / "Annotations/480p/dogs/00002.png", (CUT, 1), (SMALL, 2))

    report = prepare("davis", root, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert set(samples) == {("bear", 0), ("bear", 3), ("dogs", 0), ("dogs", 1)}
    record, picture, mask, _ = samples["dogs", 1]
    assert (record.source, record.licence, record.gap) == ("DAVIS", "CC0", (1, 7)) and picture.size == (WIDTH, HEIGHT)
    assert set(np.unique(mask)) == {0, 1, 2} and set(np.unique(samples["bear", 0][2])) == {0, 1}
    assert report["counts"]["train"] == {"pictures": 4, "objects": 6, "groups": 2}
    assert names(tmp_path / "out") == {
        ("broken picture", "00001.jpg"),
        ("odd file", "Thumbs.db"),
        ("broken mask", "00002.png"),
        ("no mask", "00003.png"),
        ("mask without a picture", "00009.png"),
        ("object cut by the border", "00002.jpg object 1"),
    }
    assert sum(report["dropped"].values()) == 6
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video")


def test_youtube_vos(tmp_path):
    root = tmp_path / "ytvos"
    for frame in (0, 5, 10):
        save_photo(root / f"train/JPEGImages/003234408d/{frame:05d}.jpg", frame)
        boxes = ((10, 10, 50, 50), 1), ((60, 30, 100, 70), 3), ((8, 60, 40, 80), 7)
        save_palette(root / f"train/Annotations/003234408d/{frame:05d}.png", *boxes)
    save_photo(root / "train/JPEGImages/003234408d/00015.jpg")  # not annotated
    objects = {"1": {"category": "penguin", "frames": []}, "3": {"category": "penguin", "frames": []}}
    videos = {"003234408d": {"objects": objects}, "0043f083b5": {"objects": {}}}
    (root / "train/meta.json").write_text(json.dumps({"videos": videos}))

    report = prepare("youtube-vos", root, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert [frame for _, frame in samples] == [0, 5, 10]
    assert all(set(np.unique(mask)) == {0, 1, 3} for _, _, mask, _ in samples.values())  # 7 is not in meta.json
    assert names(tmp_path / "out") == {("no mask", "00015.png"), ("no such clip", "0043f083b5")}
    assert report["counts"]["train"]["objects"] == 6
    (root / "train/meta.json").write_text("{}")
    with pytest.raises(ImprintError, match=r"meta\.json cannot be used"):
        prepare("youtube-vos", root, tmp_path / "other")
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video")


@pytest.mark.parametrize(("folder", "images"), [("VIPSeg", "imgs"), ("VIPSeg_720P", "images")])
def test_vipseg(tmp_path, folder, images):
    root = tmp_path / "set" / folder
    categories = [{"id": 0, "name": "wall", "isthing": 0}, {"id": 60, "name": "person", "isthing": 1}]
    write_broken(root / "panoVIPSeg_categories.json", json.dumps(categories))
    for frame in (408, 423):
        save_photo(root / images / f"12_abc/{frame:08d}.jpg", frame)
        values = np.ones((HEIGHT, WIDTH), np.uint16)  # wall
        values[20:60, 10:50] = 6101  # the second person comes first in the file
        values[20:60, 60:100] = 6100
        values[70:80, 10:100] = 7000  # of no category
        values[5:15, 10:100] = 101  # an instance of a wall
        save(Image.fromarray(values), root / "panomasks" / f"12_abc/{frame:08d}.png")

    report = prepare("vipseg", tmp_path / "set", tmp_path / "out")
    samples = read(tmp_path / "out")
    assert set(samples) == {("12_abc", 0), ("12_abc", 1)}  # places in the clip
    for _, _, mask, _ in samples.values():
        assert np.asarray(mask)[40, 80] == 1 and np.asarray(mask)[40, 30] == 2 and len(np.unique(mask)) == 3
    assert report["counts"]["train"] == {"pictures": 2, "objects": 4, "groups": 1} and not report["dropped"]
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video")


# --- stills ----------------------------------------------------------------------------------------------------------


def packed(counts: list[int]) -> str:
    """COCO's packed run lengths, written from its description."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = not ((value == 0 and not bits & 16) or (value == -1 and bits & 16))
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *([0] if flat[0] else []), *edges, len(flat)]).tolist()


def test_run_lengths_and_polygons_are_the_same_shape():
    mask = np.asarray(disc()) > 0
    assert np.array_equal(run_lengths(runs(mask), mask.shape), mask)
    assert np.array_equal(run_lengths(packed(runs(mask)), mask.shape), mask)
    # As pycocotools packs a 4 x 5 mask with rows 1 and 2 of columns 1 to 3 set.
    assert np.argwhere(run_lengths("5220003", (4, 5)).any(0)).ravel().tolist() == [1, 2, 3]
    assert polygons([[1, 1, 3, 1, 3, 2, 1, 2]], (4, 5)).sum() == 6
    with pytest.raises(ValueError, match="run lengths"):
        run_lengths([3, 4], (4, 5))


@pytest.mark.parametrize("layout", ["own", "flat"])
def test_coco(tmp_path, layout):
    root = tmp_path / "coco"
    folder, table = (
        ("train2017", "annotations/instances_train2017.json") if layout == "own" else ("images", "instances.json")
    )
    for number in range(3):
        save_photo(root / folder / f"{number:012d}.jpg", number)
    write_broken(root / folder / f"{3:012d}.jpg")
    box = [30, 20, 90, 20, 90, 75, 30, 75]
    inner = np.asarray(disc((45, 30, 70, 60))) > 0

    def thing(picture, area, shape, **more):
        return {"image_id": picture, "area": area, "segmentation": shape, "iscrowd": 0} | more

    annotations = [
        thing(0, 600, {"counts": packed(runs(inner)), "size": [HEIGHT, WIDTH]}),
        thing(0, 3300, [box]),
        thing(0, 9000, {"counts": [0, HEIGHT * WIDTH]}, iscrowd=1),
        thing(1, 60, [[50, 50, 58, 50, 58, 58]]),
        thing(2, 60, [[50, 50, 58]]),  # odd number of coordinates
        thing(3, 3300, [box]),
        thing(4, 3300, [box]),
    ]
    images = [
        {
            "id": number,
            "file_name": f"{number:012d}.jpg",
            "width": WIDTH,
            "height": HEIGHT,
            "license": 4 if number else 9,
        }
        for number in range(5)
    ]
    tables = {"images": images, "annotations": annotations, "licenses": [{"id": 4, "name": "Attribution License"}]}
    write_broken(root / table, json.dumps(tables))

    report = prepare("coco", root, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert set(samples) == {(f"{number:012d}", 0) for number in range(3)}
    record, _, mask, _ = samples["000000000000", 0]
    assert set(np.unique(mask)) == {0, 1, 2} and np.asarray(mask)[45, 58] == 2  # the smaller lies in front
    assert record.licence == "CC0" and samples["000000000001", 0][0].licence == "Attribution License"
    assert samples["000000000001", 0][2] is None  # a background
    assert report["counts"]["train"] == {"pictures": 3, "objects": 2, "groups": 3}
    assert names(tmp_path / "out") == {
        ("crowd", "000000000000.jpg"),
        ("object under 1% of the picture", "000000000001.jpg object 1"),
        ("broken mask", "000000000002.jpg"),
        ("broken picture", "000000000003.jpg"),
        ("no picture", "000000000004.jpg"),
    }
    assert_both_stages_train_on(tmp_path / "out/train", "still")


TABLES = {
    "coco": {
        "images": [{"id": 1, "file_name": "one.jpg", "width": WIDTH, "height": HEIGHT, "license": 4}],
        "annotations": [
            {"image_id": 1, "area": 3300, "segmentation": [[30, 20, 90, 20, 90, 75, 30, 75]], "iscrowd": 0},
            {"image_id": 1, "area": 9000, "segmentation": {"counts": [0, HEIGHT * WIDTH]}},
        ],
        "licenses": [{"id": 4, "name": "Attribution License"}],
    },
    "captions": {
        "images": [{"id": 1, "file_name": "one.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a thing"}, {"image_id": 1, "caption": "the other"}],
    },
}


@pytest.mark.parametrize("source", TABLES)
@given(data=st.data())
@settings(max_examples=60)
def test_broken_annotations_are_said_or_left_out(tmp_path_factory, source, data):
    root = tmp_path_factory.mktemp("in")
    table = root / f"{source.replace('coco', 'instances')}.json"
    save_photo(root / "images" / "one.jpg")
    write_broken(table, json.dumps(data.draw(mutated(TABLES[source]))))
    try:
        report = prepare(source, root, root / "out")
    except ImprintError as error:
        assert str(root) in str(error) and "\n" not in str(error)
    else:
        assert report["counts"]["train"].get("pictures") or report["dropped"]


def test_ppr10k(tmp_path):
    root = tmp_path / "PPR10K"
    for split, names_ in (("train", ("0_0", "0_1", "1_0")), ("val", ("1500_0",))):
        for name in names_:
            save_photo(root / split / "target_a" / f"{name}.tif")
            save(disc().convert("1"), root / split / "masks" / f"{name}.png")
    save(disc(CUT), root / "train/masks/1_0.png")
    (root / "train/masks/0_1.png").unlink()

    report = prepare("ppr10k", root, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert set(samples) == {("0_0", 0), ("1_0", 0), ("1500_0", 0)} and samples["1_0", 0][2] is None
    assert report["dropped"] == {"no mask": 1, "object cut by the border": 1}
    assert not any("border" in what for counts in report["counts"].values() for what in counts)
    kept = prepare("ppr10k", root, tmp_path / "kept", border=0)
    assert kept["dropped"] == {"no mask": 1}
    said = [counts.get("cut by the border (no training targets)", 0) for counts in kept["counts"].values()]
    assert sum(said) == 1  # it is written, and said not to be trained on
    with_masks = Photos.of(read_shards(tmp_path / "kept/train"))
    assert int(with_masks.annotated) == 3 and len(with_masks.items) == 2
    assert_both_stages_train_on(tmp_path / "out/train", "still")


@pytest.mark.parametrize("given", ["PPR10K", "PPR10K/train_val_images_tif_360p"])
@pytest.mark.parametrize("masks", ["masks_360p", "masks_360p/train"])
def test_ppr10k_s_masks_are_found_from_either_folder(tmp_path, given, masks):
    save_photo(tmp_path / "PPR10K/train_val_images_tif_360p/train/target_a/0_0.tif")
    save(disc().convert("1"), tmp_path / "PPR10K" / masks / "0_0.png")
    assert prepare("ppr10k", tmp_path / given, tmp_path / "out")["counts"]["train"]["objects"] == 1


def test_any_folder(tmp_path):
    root = tmp_path / "stock"
    save_photo(root / "images/plain.jpg", size=(900, 30))
    save_photo(root / "images/deep/beside.jpg")
    save(disc(), root / "images/deep/beside_mask.png")
    save_photo(root / "images/apart.jpg")
    save_palette(root / "masks/apart.png", ((10, 10, 50, 50), 1), ((60, 30, 100, 70), 2))
    cutout = photo(WIDTH, HEIGHT)
    cutout.putalpha(disc())
    save(cutout, root / "images/cutout.png")
    save_photo(root / "images/soft.jpg")
    save(disc().filter(ImageFilter.GaussianBlur(6)), root / "images/soft.mask.png")
    save_photo(root / "images/other.jpg")
    save(disc(size=(60, 45)), root / "images/other.mask.png")
    save_photo(root / "images/nothing.jpg")
    save(disc(value=0), root / "images/nothing.mask.png")
    save_photo(root / "images/faint.jpg")
    save(disc(value=1), root / "images/faint.mask.png")  # a number without a palette: a mask says where, not how much
    save_photo(root / "images/numbered.jpg")
    labels = disc(value=1)
    ImageDraw.Draw(labels).ellipse((90, 60, 110, 80), fill=2)
    save(labels, root / "images/numbered.mask.png")  # several need a palette
    write_broken(root / "images/notes.md")
    write_broken(root / "images/broken.png")
    save_photo(root / "images/left.png")
    save(disc(), root / "masks/lonely.png")
    (tmp_path / "exclude.txt").write_text("00 left.png\n")

    report = prepare("folder", root, tmp_path / "out", exclude=tmp_path / "exclude.txt")
    objects = {clip: mask and set(np.unique(mask)) for (clip, _), (_, _, mask, _) in read(tmp_path / "out").items()}
    assert objects == {
        "plain": None,
        "deep/beside": {0, 1},
        "apart": {0, 1, 2},
        "cutout": {0, 1},
        "soft": None,
        "other": None,
        "nothing": None,
        "faint": {0, 1},
        "numbered": None,
    }
    assert read(tmp_path / "out")["plain", 0][1].size == (640, 21)
    assert names(tmp_path / "out") == {
        ("soft mask", "soft.jpg"),
        ("mask of another size", "other.jpg"),
        ("empty mask", "nothing.jpg"),
        ("broken mask", "numbered.mask.png"),
        ("odd file", "notes.md"),
        ("broken picture", "broken.png"),
        ("excluded", "left.png"),
        ("mask without a picture", "lonely.png"),
    }
    assert report["counts"] == {"train": {"pictures": 9, "objects": 5, "groups": 9}, "held-out": {}}
    assert prepare("pixabay", root, tmp_path / "same")["counts"]["train"]["objects"] == 5
    assert_both_stages_train_on(tmp_path / "out/train", "still")


def test_cut_outs_get_room_and_a_ground_and_are_no_backgrounds(tmp_path):
    for name, box in (("tight", (0, 0, 119, 89)), ("corner", (0, 0, 40, 40)), ("roomy", DISC)):
        image = Image.new("RGB", (WIDTH, HEIGHT), "red")
        image.putalpha(disc(box))
        save(image, tmp_path / f"in/{name}.png")
    soft = photo(WIDTH, HEIGHT)
    soft.putalpha(disc().filter(ImageFilter.GaussianBlur(6)))
    save(soft, tmp_path / "in/soft.png")
    report = prepare("folder", tmp_path / "in", tmp_path / "out")
    assert report["dropped"] == {"soft mask": 1} and report["counts"]["train"]["objects"] == 3
    for (name, _), (_, picture, mask, _) in read(tmp_path / "out").items():
        pixels, inside = np.asarray(picture).astype(int), np.asarray(mask) == 1
        rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
        assert rows[0] > 1 and columns[0] > 1 and rows[-1] < picture.height - 2 and columns[-1] < picture.width - 2
        assert abs(pixels[2, 2] - 128).max() < 12 and abs(pixels[~inside].mean(0) - 128).max() < 25, name
    assert read(tmp_path / "out")["roomy", 0].picture.size == (WIDTH, HEIGHT)
    assert_both_stages_train_on(tmp_path / "out/train", "still", views=tmp_path / "out/train")


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA"])
def test_a_png_beside_a_photo_of_its_name_is_its_mask(tmp_path, kind):
    save_photo(tmp_path / "in/0.jpg")
    if kind == "RGBA":
        mask = photo(WIDTH, HEIGHT)
        mask.putalpha(disc())
    else:
        mask = disc(value=1) if kind == "P" else disc()
        mask = mask.convert(kind)
    save(mask, tmp_path / "in/0.png")
    save_photo(tmp_path / "in/1.jpg", 1)
    save_photo(tmp_path / "in/1.png", 2)  # another photo
    prepare("folder", tmp_path / "in", tmp_path / "out")
    found = [sample.mask and np.asarray(sample.mask) for sample in read_shards(tmp_path / "out/train")]
    (mask,) = (mask for mask in found if mask is not None)
    assert len(found) == 3 and np.array_equal(mask == 1, np.asarray(disc()) > 128)


def test_where_nothing_is_made_the_command_fails(tmp_path):
    write_broken(tmp_path / "in/broken.png")
    words = ["folder", "--input", tmp_path / "in", "--output", tmp_path / "out", "--licence", "CC0", "--workers", "1"]
    with pytest.raises(SystemExit, match="nothing was made"):
        command.main(list(map(str, words)))


@pytest.mark.parametrize("layout", ["coco", "bare coco", "folder"])
def test_captions(tmp_path, layout):
    root = tmp_path / "in"
    captions = [{"image_id": 7, "caption": "A  dog."}, {"image_id": 7, "caption": "One dog\n"}]
    places = {"coco": "val2017", "bare coco": "images", "folder": "."}
    for number in (7, 8):
        save_photo(root / places[layout] / f"{number:012d}.jpg", number)
    if layout == "coco":
        images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (7, 8)]
        tables = {"annotations": captions, "images": images}
        write_broken(root / "annotations/captions_val2017.json", json.dumps(tables))
    elif layout == "bare coco":
        write_broken(root / "captions.json", json.dumps({"annotations": captions}))
    else:
        write_broken(root / f"{7:012d}.txt", "\ufeff A dog.\n\nOne dog \n")
        write_broken(root / "lonely.txt", "Nothing.")

    report = prepare("captions", root, tmp_path / "out")
    (parts,) = read_parts(str(tmp_path / "out/train/data-000000.tar"))
    assert parts["txt"].decode() == "A dog.\nOne dog" and set(parts) == {"__key__", "__url__", "jpg", "json", "txt"}
    expected = {"no caption": 1} | ({"caption without a picture": 1} if layout == "folder" else {})
    assert report["dropped"] == expected


# --- multi-view ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["2.0", "1.0", "rgba"])
def test_mvimgnet(tmp_path, layout):
    root = tmp_path / "MVImgNet"
    for thing in ("0100012d", "010005ca"):
        folder = root / "1" / thing
        for frame in range(1, 17):
            picture = photo(WIDTH, HEIGHT, frame)
            save(picture, folder / "images" / f"{frame:03d}.jpg")
            if layout == "2.0":
                save(disc(), folder / "masks" / f"{frame:03d}.png")
            elif layout == "1.0":
                save(disc(), tmp_path / "mask" / "1" / thing / f"{frame:03d}.jpg.png")
            else:
                picture.putalpha(disc(value=255 if frame > 1 else 128))  # faint, and an object all the same
                save(picture, folder / "images" / f"{frame:03d}_rgba.png")
        write_broken(folder / "sparse/0/cameras.bin")
    for frame in range(1, 16):
        write_broken(root / f"1/010005ca/images/{frame:03d}.jpg")

    report = prepare("mvimgnet", root, tmp_path / "out", views=8)
    samples = read(tmp_path / "out")
    frames = sorted(frame for _, frame in samples)
    assert {clip for clip, _ in samples} == {"1/0100012d"}
    assert frames == list(range(0, 16, 2))
    assert all(record.gap == (2, 16) and record.object == "1/0100012d" for record, *_ in samples.values())
    assert all(set(np.unique(mask)) == {0, 1} for _, _, mask, _ in samples.values())
    assert report["dropped"]["broken picture"] == 8
    assert_both_stages_train_on(tmp_path / "out/train", "still", "video", views=tmp_path / "out/train")


def test_objaverse_and_meshes(tmp_path):
    root = tmp_path / ".objaverse" / "hf-objaverse-v1"
    for chunk, uid, colour in (("000-000", "aa", 200), ("000-001", "bb", 90)):
        mesh = trimesh.creation.box()
        mesh.visual.vertex_colors = [colour, 40, 255 - colour, 255]
        (root / "glbs" / chunk).mkdir(parents=True)
        mesh.export(root / "glbs" / chunk / f"{uid}.glb")
    write_broken(root / "glbs/000-001/cc.glb")
    (root / "metadata").mkdir()
    with gzip.open(root / "metadata/000-000.json.gz", "wt") as file:
        json.dump({"aa": {"license": "by-sa", "name": "A box"}}, file)

    try:
        report = prepare("objaverse", root.parent, tmp_path / "out", licence=None, views=3, resolution=48)
    except ImprintError as error:
        if "OpenGL 3.3 was expected" not in str(error):
            raise
        pytest.skip(str(error))
    samples = list(read_shards(tmp_path / "out" / "train"))
    assert Counter(record.object for record, *_ in samples) == {"000-000/aa.glb 0": 3, "000-001/bb.glb 0": 3}
    assert {record.source: record.licence for record, *_ in samples} == {
        "Objaverse 000-000/aa.glb": "CC-BY-SA-4.0",
        "Objaverse 000-001/bb.glb": "unknown",
    }
    for record, picture, *_ in samples:
        alpha = np.asarray(picture)[..., 3]
        assert picture.mode == "RGBA" and picture.size == (48, 48) and record.gap == (0, 3)
        assert 0.05 < (alpha > 127).mean() < 0.95 and not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    lights = {
        tuple(np.asarray(picture)[..., :3].max((0, 1))) for record, picture, *_ in samples if "aa" in record.object
    }
    assert len(lights) == 3  # each view has a light of its own
    assert report["dropped"] == {"broken mesh": 1}

    index = [{"file": "000-000/aa.glb", "source": "here", "licence": "MIT", "procedural": False}]
    (root / "glbs/index.json").write_text(json.dumps(index))
    save_photo(tmp_path / "photos/one.jpg")
    more = dict(identities=12, textures=tmp_path / "photos", views=2, resolution=32, licence=None)
    report = prepare("meshes", root / "glbs", tmp_path / "meshes", **more)
    licences = {record.source: record.licence for record, *_ in read_shards(tmp_path / "meshes" / "train")}
    assert licences == {"here 000-000/aa.glb": "MIT", "unknown 000-001/bb.glb": "unknown"}
    assert report["counts"]["train"] == {"pictures": 16, "objects": 16, "groups": 8}
    assert report["dropped"] == {"broken mesh": 4}
    assert_both_stages_train_on(tmp_path / "out/train", views=tmp_path / "out/train")


def test_meshes_lit_by_panoramas_bring_the_place_and_their_shadow_along(tmp_path, capsys):
    cv2 = pytest.importorskip("cv2", reason="the extra 'train' is not installed")
    mesh = trimesh.creation.box()
    mesh.visual.vertex_colors = [200, 40, 90, 255]
    (tmp_path / "meshes").mkdir()
    mesh.export(tmp_path / "meshes/box.glb")
    (tmp_path / "panoramas").mkdir()
    sky = np.full((64, 128, 3), 0.1, np.float32)
    sky[10:14, 30:34] = 300
    cv2.imwrite(str(tmp_path / "panoramas/noon.hdr"), sky)
    options = dict(identities=3, views=3, resolution=48, licence=None, relit=2)
    try:
        report = prepare("meshes", tmp_path / "meshes", tmp_path / "out", panoramas=tmp_path / "panoramas", **options)
    except ImprintError as error:
        if "OpenGL 3.3 was expected" not in str(error):
            raise
        pytest.skip(str(error))
    assert report["counts"]["train"] == {"pictures": 15, "objects": 15, "groups": 3}
    samples = list(read_shards(tmp_path / "out/train"))
    assert [sample.record.frame for sample in samples[:5]] == [0, 0, 1, 1, 2]
    for sample in samples:
        lit = sample.scene is not None
        assert lit == (sample.record.shadow is not None) and (not lit or sample.scene.size == (36, 36))
    views = Views.load(tmp_path / "out/train", CPU)
    assert views.count.tolist() == [3, 3, 3] and views.twin.tolist() == [0, 1, -1, 2, 3, -1, 4, 5, -1]
    assert_both_stages_train_on(tmp_path / "out/train", views=tmp_path / "out/train")

    with pytest.raises(SystemExit):
        prepare("meshes", tmp_path / "meshes", tmp_path / "no", **options)
    assert "--relit needs the light of --panoramas" in capsys.readouterr().err
    with pytest.raises(ImprintError, match=r"hold no \.hdr;"):
        prepare("meshes", tmp_path / "meshes", tmp_path / "no", panoramas=tmp_path / "meshes", **options)


# --- what all sources share ------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path) -> Path:
    """Twelve clips of three frames in DAVIS's layout, one picture of them broken."""
    root = tmp_path / "clips"
    for clip in range(12):
        for frame in range(3):
            save_photo(root / f"JPEGImages/480p/clip{clip}/{frame:05d}.jpg", 10 * clip + frame, (64, 48))
            save(disc((15, 10, 45, 40), size=(64, 48)), root / f"Annotations/480p/clip{clip}/{frame:05d}.png")
    write_broken(root / "JPEGImages/480p/clip3/00000.jpg")
    return root


def content(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


SHARDS = {"held-out": 0.3, "shard-size": 9}


def test_the_split_is_by_clip_and_shards_hold_whole_clips(clips, tmp_path):
    report = prepare("davis", clips, tmp_path / "out", **SHARDS)
    sides = {split: {clip for clip, _ in read(tmp_path / "out", split)} for split in ("train", "held-out")}
    assert sides["held-out"] == {f"clip{clip}" for clip in range(12) if held_out(f"clip{clip}", 0.3)}
    assert sides["train"] and sides["held-out"] and not sides["train"] & sides["held-out"]
    found = Counter()
    for shard in (tmp_path / "out").rglob("*.tar"):
        members = Counter(record.clip for record, *_ in read_shards(shard))
        assert 0 < sum(members.values()) <= 9
        found.update(dict.fromkeys(members, 1))
    assert set(found.values()) == {1}
    total = Counter(report["counts"]["train"]) + Counter(report["counts"]["held-out"])
    assert total == {"pictures": 35, "objects": 35, "groups": 12} and report["dropped"] == {"broken picture": 1}
    sheet = Image.open(tmp_path / "out" / "data.png")
    assert sheet.size == (8 * 192, 5 * 192)
    assert (np.asarray(sheet) == (255, 70, 70)).all(2).any()  # an outline
    listed = (tmp_path / "out" / "train" / "shards.txt").read_text().split()
    assert listed == sorted(path.name for path in (tmp_path / "out" / "train").glob("*.tar")) and len(listed) > 1


def test_a_signal_to_the_command_alone_ends_its_workers(monkeypatch):
    from training.data import engines

    def interrupt():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engines, "PATIENCE", 0.2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes that run tests may ignore it
    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(engines.in_processes(time.sleep, [60.0, 60.0], 2, "naps"))
        assert time.monotonic() - began < 30 and not multiprocessing.active_children()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_same_command_gives_the_same_bytes_and_goes_on_where_it_was_stopped(clips, tmp_path, monkeypatch):
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    written = []
    from training.data import engines

    write = engines.write_shard

    def stop_at_third(job, **settings):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job)
        return write(job, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "write_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            prepare("davis", clips, tmp_path / "stopped", **SHARDS)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("*.tar")}
    assert len(kept) == 2
    prepare("davis", clips, tmp_path / "stopped", **SHARDS)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())

    before = content(tmp_path / "whole")
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    assert content(tmp_path / "whole") == before
    # A shard without its report may be half a shard: it is made again.
    report = next((tmp_path / "whole" / "reports").rglob("train-000001.json"))
    shard = tmp_path / "whole" / "train" / "data-000001.tar"
    report.unlink()
    shard.write_bytes(b"half")
    prepare("davis", clips, tmp_path / "whole", **SHARDS)
    assert content(tmp_path / "whole") == before


def test_a_new_process_finds_the_package_and_not_the_clone_that_has_its_name():
    """pytest's default would put the folder above the repository first, which is a package too: for ComfyUI."""
    assert str(Path(__file__).parents[2]) not in sys.path


def test_workers_change_nothing(clips, tmp_path):
    prepare("davis", clips, tmp_path / "one", **SHARDS)
    prepare("davis", clips, tmp_path / "two", **SHARDS | {"workers": 2})
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_options_or_other_data_are_refused(clips, tmp_path):
    prepare("davis", clips, tmp_path / "out", **SHARDS)
    with pytest.raises(ImprintError, match="begun with longest_side = 640, not 32"):
        prepare("davis", clips, tmp_path / "out", **SHARDS | {"longest-side": 32})
    shutil.rmtree(clips / "JPEGImages/480p/clip5")
    with pytest.raises(ImprintError, match="begun with groups = 12, not 11"):
        prepare("davis", clips, tmp_path / "out", **SHARDS)


def test_on_ray_the_result_is_the_same(clips, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        prepare("davis", clips, tmp_path / "ray", **SHARDS | {"shard-size": 18, "engine": "ray"})
    finally:
        ray.shutdown()
    prepare("davis", clips, tmp_path / "one", **SHARDS | {"shard-size": 18})
    assert content(tmp_path / "ray") == content(tmp_path / "one")


def test_output_may_be_anywhere_that_fsspec_knows(clips, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    for _ in range(2):  # the second time all is there
        prepare("davis", clips, "memory://bucket/set", **SHARDS)
    prepare("davis", clips, tmp_path / "local", **SHARDS)
    memory = fsspec.filesystem("memory")
    there = {name.removeprefix("/bucket/set/"): memory.cat(name) for name in memory.find("/bucket/set")}
    assert there == content(tmp_path / "local")
    local = [record for record, *_ in read_shards(tmp_path / "local" / "train")]
    assert [record for record, *_ in read_shards("memory://bucket/set/train")] == local


@pytest.mark.parametrize("output", [".", "shards"])
def test_an_output_in_the_input_is_refused(tmp_path, output):
    save_photo(tmp_path / "a.png", 0)
    with pytest.raises(ImprintError, match="lies in --input"):
        prepare("folder", tmp_path, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_list_of_names_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffone.jpg\r\ntwo.jpg".encode())
    assert read_names(tmp_path / "names.txt") == {"one.jpg", "two.jpg"}


def test_filters():
    labels = np.zeros((100, 200), np.uint8)
    labels[50, 10:200] = 1  # under 1 %, and at the border
    labels[10:30, 20:40] = 2
    labels[60:90, 100:198] = 3  # two pixels from the border
    assert unusable_objects(labels, Limits()) == {1: "object under 1% of the picture", 3: "object cut by the border"}
    assert unusable_objects(labels, Limits(border=2)).keys() == {1}
    assert unusable_objects(np.full((10, 10), 4, np.uint8), Limits()) == {4: "object over 64% of the picture"}
    hard = np.asarray(disc(), np.float32) / 255
    soft = np.asarray(disc().filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
    assert edge_width(hard) == 0 and 5 < edge_width(soft) < 12


@pytest.mark.parametrize("part", [0.001, 0.999])
def test_of_little_data_one_group_is_on_either_side(tmp_path, part):
    for number in range(3):
        save_photo(tmp_path / f"in/{number}.jpg", number)
    counts = prepare("folder", tmp_path / "in", tmp_path / "out", **{"held-out": part})["counts"]
    assert sorted(counts[split]["pictures"] for split in counts) == [1, 2]


def test_a_dry_run_tries_the_output(tmp_path):
    save_photo(tmp_path / "in/0.jpg")
    words = ["folder", "--input", tmp_path / "in", "--output", "/proc/x", "--licence", "CC0", "--dry-run"]
    with pytest.raises(SystemExit, match="cannot be written"):
        command.main(list(map(str, words)))


def test_pictures_of_every_kind_are_srgb_in_shards(tmp_path):
    """Wide colours are converted, deep grey is scaled, CMYK and what is turned by its EXIF are as they look."""
    plain, root = photo(8, 6, seed=3).resize((WIDTH, HEIGHT), Image.BICUBIC), tmp_path / "in"  # smooth: JPEGs are made
    wide, turned = plain.copy(), plain.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.asarray(plain.convert("L"))
    root.mkdir()
    wide.save(root / "wide.png", icc_profile=profile("wide"))
    turned.save(root / "turned.png", exif=exif)
    Image.fromarray(grey * np.uint16(257)).save(root / "deep.png")
    plain.convert("CMYK").save(root / "inks.tif")
    prepare("folder", root, tmp_path / "out", quality=100)
    made = {clip: np.asarray(sample.picture).astype(int) for (clip, _), sample in read(tmp_path / "out").items()}
    colours, grey = np.asarray(plain).astype(int), np.repeat(grey[..., None], 3, 2)
    for name, expected in (("turned", colours), ("deep", grey), ("inks", colours)):
        assert np.abs(made[name] - expected).mean() < 3, name
    assert np.abs(made["wide"] - np.asarray(to_srgb(open_image(root / "wide.png")))).mean() < 3
    assert np.abs(made["wide"] - colours).mean() > 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_one_like_any_other(tmp_path):
    root, name = tmp_path / "in", os.fsdecode(b"caf\xe9.jpg")
    save_photo(root / "ok.jpg")
    (root / "ok.jpg").rename(root / name)
    write_broken(root / os.fsdecode(b"\xff.png"))
    report = prepare("folder", root, tmp_path / "out")
    assert report["counts"]["train"]["pictures"] == 1 and report["dropped"] == {"broken picture": 1}
    (sample,) = read(tmp_path / "out").values()
    assert sample.record.clip == Path(name).stem
    assert "\\udcff.png" in (tmp_path / "out" / "data.dropped.tsv").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "[]", "null", '{"options": 3}', '{"size": "x"}', "{"])
def test_broken_reports_are_made_again(clips, tmp_path, text):
    first = prepare("davis", clips, tmp_path / "out")
    for report in (tmp_path / "out" / "data.json", *(tmp_path / "out" / "reports").rglob("*.json")):
        report.write_text(text)
    assert prepare("davis", clips, tmp_path / "out") == first


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "a.b", ".", "\udcff"])
def test_a_name_that_would_leave_the_folder_or_break_the_keys_is_refused(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as left:
        command.parse(["folder", "--input", "x", "--output", "y", "--licence", "CC0", "--name", name])
    assert left.value.code == 2 and "--name is" in capsys.readouterr().err


def test_the_split_never_moves():
    kept = [name for name in map(str, range(1000)) if held_out(name, 0.05)]
    assert 20 < len(kept) < 90
    assert set(kept) <= {name for name in map(str, range(1000)) if held_out(name, 0.1)}
    assert not held_out("bear", 0.0) and held_out("bear", 1.0)


@pytest.mark.parametrize(
    "source", ["davis", "youtube-vos", "vipseg", "coco", "ppr10k", "mvimgnet", "objaverse", "meshes", "folder"]
)
def test_a_folder_of_another_layout_is_one_sentence(tmp_path, source):
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit) as left:
        command.main([source, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--licence", "CC0"])
    assert str(left.value.code).startswith("error: ") and str(tmp_path / "in") in str(left.value.code)
    assert not (tmp_path / "out").exists()


def test_the_command_line(clips, tmp_path, capsys):
    with pytest.raises(SystemExit, match="no such folder"):
        command.main(["davis", "--input", str(tmp_path / "absent"), "--output", "x", "--licence", "CC0"])
    with pytest.raises(SystemExit) as left:
        command.main(["davis", "--input", str(clips), "--output", "x"])
    assert left.value.code == 2 and "give --licence" in capsys.readouterr().err
    words = ["davis", "--input", str(clips), "--output", str(tmp_path / "out"), "--licence", "BSD", "--workers", "1"]
    command.main([*words, "--dry-run"])
    assert json.loads(capsys.readouterr().out)["shards"] == 2 and not (tmp_path / "out").exists()
    command.main(words)
    printed = capsys.readouterr().out
    assert "dropped, broken picture: 1" in printed and "davis-clips.dropped.tsv" in printed
    assert (tmp_path / "out" / "davis-clips.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--held-out 1.5", "--held-out is 1.5; it is a share"),
        ("--quality 101", "--quality is 101; it goes up to 100"),
        ("--relit 2", "--relit needs the light of --panoramas"),
        ("--relit 9 --panoramas p", "--relit is 9; it is a number of the 8 views"),
    ],
)
def test_options_that_do_not_go_together(capsys, options, message):
    with pytest.raises(SystemExit) as left:
        command.parse(f"meshes --input x --output y --licence CC0 {options}".split())
    assert left.value.code == 2 and message in capsys.readouterr().err
