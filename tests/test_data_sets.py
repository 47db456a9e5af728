"""Each data set's own layout, at a tiny size and with typical faults, converted to shards."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import photo
from mutations import mutated
from PIL import Image, ImageDraw, ImageFilter
from preparing import (
    CUT,
    DISC,
    HEIGHT,
    SMALL,
    WIDTH,
    assert_both_stages_train_on,
    disc,
    names,
    prepare,
    read,
    save,
    save_palette,
    save_photo,
    write_broken,
)

from imprint.errors import ImprintError
from training.data.shards import read_parts, read_shards
from training.data.stills import polygons, run_lengths
from training.pairs.photos import Photos

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
    """COCO's packed run lengths, implemented from its description."""
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
