"""The evaluation's tasks: subjects with masks, boxes, and pairs of frames."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation import ROOT, pairs, subject_tasks, words
from hypothesis import given
from hypothesis import strategies as st
from leaving import failed
from micro import cutout, photo, rectangle
from mutations import mutated
from PIL import Image

from imprint.errors import ImprintError
from training import evaluate
from training.data.shards import Record, sample, shard_writer
from training.measure import tasks


def test_subjects_are_photos_with_masks(bench):
    subjects = tasks.read_subjects(bench / "subjects")
    assert {name: len(photos) for name, photos in subjects.items()} == {"bear": 1, "cup": 2}
    cut, view = subjects["bear"][0].load()
    assert cut.size == view.size == (40, 60) and cut.getchannel("A").getextrema() == (255, 255)
    whole = Image.open(bench / "subjects" / "bear" / "00.jpg")
    assert view.tobytes() == whole.crop((20, 10, 60, 70)).tobytes()
    cut, view = subjects["cup"][0].load()
    assert view.getpixel((0, 0)) == (255, 255, 255) and cut.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("strength", [1, 128, 255])
def test_a_mask_says_where_however_faint_it_is(tmp_path, strength):
    picture, mask = photo(30, 20), rectangle(30, 20, (5, 5, 15, 12)).point(lambda value: value * strength // 255)
    cut = picture.copy()
    cut.putalpha(mask)
    for home, files in (("cut", {"00.png": cut}), ("photo", {"00.png": picture, "00.mask.png": mask})):
        (tmp_path / home).mkdir()
        for name, image in files.items():
            image.save(tmp_path / home / name)
    for (loaded,) in tasks.read_subjects(tmp_path).values():
        cutout, _ = loaded.load()
        assert cutout.size == (10, 7) and cutout.getchannel("A").getextrema() == (255, 255)


def test_opaque_pictures_without_a_mask_are_left_out(tmp_path):
    (tmp_path / "bear").mkdir()
    photo(30, 20).convert("RGBA").save(tmp_path / "bear" / "00.png")
    with pytest.raises(ImprintError, match="holds no subject with a mask"):
        tasks.read_subjects(tmp_path)


def test_a_mask_of_another_size_is_refused(bench, tmp_path):
    (tmp_path / "bear").mkdir()
    photo(30, 20).save(tmp_path / "bear" / "00.jpg")
    rectangle(20, 30, (5, 5, 9, 9)).save(tmp_path / "bear" / "00.mask.png")
    with pytest.raises(SystemExit, match=r"00.jpg is 30x20, but its mask .* is 20x30; make them the same size"):
        evaluate.main(words(bench, tmp_path / "out", subjects=tmp_path))


@pytest.mark.parametrize("clip", ["../../outside", "/root/x", "a/b", "..", "c:\\x", "x" * 300])
def test_names_from_shards_stay_in_the_output_folder(clip):
    safe = tasks.file_name(clip)
    assert Path(safe).name == safe and "\\" not in safe and ":" not in safe and len(safe) < 120
    assert safe != tasks.file_name(f"{clip}/")  # others keep other names
    assert tasks.file_name("bear_01.b") == "bear_01.b"


def test_clips_of_any_name_are_tasks(tmp_path):
    mask = rectangle(40, 30, (10, 5, 25, 20)).point(lambda value: value // 255)
    with shard_writer(tmp_path / "pairs-000000.tar") as writer:
        for frame in range(2):
            record = Record("thing", "../../thing", frame, "test", "CC0")
            writer.write(sample(f"{frame}", pixels_of(photo(40, 30, frame)), "png", record, mask))
    (task,) = tasks.pair_tasks(tmp_path)
    assert "/" not in task.name and task.subject == "../../thing"


def pixels_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_first_tasks_cover_all_subjects(bench):
    made = subject_tasks(bench)
    assert [task.name for task in made] == ["bear-0000-one", "cup-0001-two", "bear-0001-two", "cup-0000-one"]
    assert made[0].seed(0) != made[1].seed(0) != made[1].seed(1)


LISTED = [
    {"background": "a.png", "box": [10, 10, 40, 40], "subject": "cup"},
    {"background": "a.png", "box": [1.5, 1, 9, 9]},
]
ANNOTATED = {
    "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 50}],
    "annotations": [{"image_id": 1, "bbox": [10, 10, 30, 30], "iscrowd": 0}],
}


@given(listed=mutated(LISTED), annotated=mutated(ANNOTATED), box=st.lists(st.floats(), min_size=4, max_size=4))
def test_broken_boxes_are_said(tmp_path_factory, listed, annotated, box):
    folder = tmp_path_factory.mktemp("boxes")
    photo(60, 50).save(folder / "a.png")
    cutout(20, 20).save(folder / "cup.png")
    lines = listed if isinstance(listed, list) else [listed]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "b.json").write_text(json.dumps(annotated))
    (folder / "c.jsonl").write_text(json.dumps({"background": "a.png", "box": box}))
    for name in ("a.jsonl", "b.json", "c.jsonl"):
        try:
            boxes = tasks.read_boxes(folder / name, folder)
            scenes = [
                task.load() for task in tasks.subject_tasks({"cup": [tasks.Photo(folder / "cup.png", None)]}, boxes)
            ]
        except ImprintError as error:
            assert "\n" not in str(error)
            continue
        for scene in scenes:
            left, top, right, bottom = scene.box
            assert 0 <= left < right <= 60 and 0 <= top < bottom <= 50 and scene.crop(scene.background).size


def test_coco_lends_the_largest_box_of_fit_size(bench):
    assert tasks.read_boxes(bench / "instances.json", bench / "backgrounds") == [
        (bench / "backgrounds" / "one.png", (40, 30, 75, 60), None),
        (bench / "backgrounds" / "two.png", (10, 20, 60, 70), None),
    ]


def test_pairs_are_apart_and_near(bench):
    made = tasks.pair_tasks(bench / "pairs")
    assert [task.name for task in made] == ["bus-2-00000-00005", "swan-2-00000-00006"]
    scene = made[1].load()
    assert scene.box == (16, 20, 57, 61) and scene.cutout.size == (41, 41)
    assert scene.target == scene.background.crop(scene.box)
    assert scene.cutout.getpixel((20, 20)) == (200, 40, 40, 255) and scene.cutout.getpixel((0, 0))[3] == 0


def test_a_cutout_stands_on_the_box_s_lower_edge(bench):
    scene = tasks.Scene(
        "x", Image.new("RGBA", (10, 20), "red"), Image.new("RGB", (60, 60)), (5, 10, 45, 50), photo(9, 9)
    )
    pasted = scene.paste(scene.cutout)
    assert pasted.getbbox() == (15, 10, 35, 50)
    assert scene.hole("box").getbbox() == (5, 10, 45, 50)
    scene.background.paste("white", (5, 10, 45, 50))
    assert scene.paste(scene.cutout).getpixel((5, 10)) == (255, 255, 255)
    assert scene.paste(scene.cutout, emptied=True) == pasted
    assert scene.hole("precise").getbbox() == (15, 10, 35, 50)
    assert np.asarray(scene.hole("coarse")).sum() > np.asarray(scene.hole("precise")).sum()


def test_the_boxes_of_the_identity_score_are_two_for_each_of_25_subjects(tmp_path):
    path = ROOT / "training" / "boxes.jsonl"
    for line in path.read_text().splitlines():
        (tmp_path / json.loads(line)["background"]).touch()
    boxes = tasks.read_boxes(path, tmp_path)
    subjects = [subject for _, _, subject in boxes]
    assert len(boxes) == 50 and {subjects.count(subject) for subject in subjects} == {2} and None not in subjects
    assert len({background for background, _, _ in boxes}) == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"background": "one.png", "box": [40, 30, 40, 60]}', "is not a file of boxes"),
        ('{"background": "one.png", "box": [40, 30, 60]}', "is not a file of boxes"),
        ('{"background": "one.png", "box": [100, 30, 140, 60]}', "ends beyond"),
        ('{"background": "one.png", "box": [40, 30, 75, 60], "subject": "cow"}', "is for 'cow', which is not in"),
        ("[]", "is not a file of boxes"),
        ("", "names no box"),
    ],
)
def test_bad_boxes_leave_with_a_sentence(bench, tmp_path, line, message):
    (tmp_path / "boxes.jsonl").write_text(line)
    assert message in failed(evaluate.main, words(bench, tmp_path, boxes=tmp_path / "boxes.jsonl"))


def test_shards_without_pairs_leave_with_a_sentence(bench, tmp_path):
    with shard_writer(tmp_path / "pairs" / "a.tar") as writer:
        picture = (bench / "backgrounds" / "one.png").read_bytes()
        writer.write(sample("a", picture, "png", Record("", "one", 0, "test", "CC0")))
    with pytest.raises(SystemExit, match="holds no two frames of an object"):
        evaluate.main(pairs(bench, tmp_path / "out", pairs=tmp_path / "pairs"))
