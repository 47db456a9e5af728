"""Folders of tasks: MureCom's and DreamEditBench's layouts, known truths, others' results, and padded crops."""

import json
import shutil

import numpy as np
import pytest
from evaluation import pixels, results, subject_tasks, words
from leaving import failed, refused
from micro import cutout, photo, rectangle
from PIL import Image
from test_light_scores import write_task

from imprint.errors import ImprintError
from training import evaluate
from training.measure import evaluation, networks, statistics
from training.measure.benches import folder_tasks
from training.measure.light import LightTask

NO_SUBJECTS = {"subjects": None, "backgrounds": None, "boxes": None}


def save(picture: Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture
def murecom(tmp_path):
    """Two categories, with boxes as pictures in one and as lines of text in the other."""
    root = tmp_path / "MureCom"
    for category in ("Box", "Sports Car"):
        for number in (0, 1, 10):
            save(photo(120, 90, seed=number), root / category / "bg" / f"{number}.jpg")
            if category == "Box":
                save(rectangle(120, 90, (30 + number, 20, 80, 70)), root / category / "bg" / f"{number}_bbox.png")
        for home in ("fg1", "fg2"):
            for number in range(2):
                folder = root / category / home
                save(photo(80, 80, seed=number), folder / f"{number}.jpg")
                save(rectangle(80, 80, (20, 10, 60, 70)), folder / f"{number}.png")
                save(rectangle(80, 80, (20, 10, 60, 70)), folder / f"{number}_bbox.png")
                save(photo(80, 80, seed=9), folder / f"{number}_rmobj.jpg")
                save(photo(80, 80, seed=8), folder / f"{number}_aug" / "0.jpg")
    lines = "".join(f"Sports Car {number}.jpg 10 {20 + number} 60 80\n" for number in (0, 1, 10))
    (root / "Sports Car/bg/bbox.txt").write_text(lines)
    return root


def test_murecom_s_objects_go_into_their_category_s_backgrounds(murecom):
    tasks, subjects = folder_tasks(murecom)
    assert {name: len(photos) for name, photos in subjects.items()} == {
        "Box-fg1": 2,
        "Box-fg2": 2,
        "Sports Car-fg1": 2,
        "Sports Car-fg2": 2,
    }
    assert len(tasks) == 12 and {task.subject for task in tasks[:4]} == subjects.keys()
    boxes = {(task.subject, task.load().box) for task in tasks}
    assert boxes == {(f"Box-{home}", (30 + at, 20, 80, 70)) for home in ("fg1", "fg2") for at in (0, 1, 10)} | {
        (f"Sports Car-{home}", (10, 20 + at, 60, 80)) for home in ("fg1", "fg2") for at in (0, 1, 10)
    }
    assert tasks[0].load().cutout.size == (40, 60)


def test_objects_without_a_mask_or_a_background_are_said(murecom, capsys):
    for number in range(2):
        (murecom / f"Box/fg1/{number}.png").unlink()
    tasks, subjects = folder_tasks(murecom)
    assert "Box-fg1" not in subjects and len(tasks) == 9
    said = "1 of 4 objects without a photo that has its mask beside it (N.jpg and N.png), such as Box-fg1"
    assert capsys.readouterr().err == f"{murecom}: left out are {said}\n"
    shutil.rmtree(murecom / "Sports Car/bg")
    shutil.rmtree(murecom / "Box/fg2")
    message = "holds no task, but 1 of 3 objects without a photo .*Box-fg1 and 2 of 3 objects without a background"
    with pytest.raises(ImprintError, match=message):
        folder_tasks(murecom)


def test_a_background_without_a_box_and_a_line_that_is_none_are_said(murecom):
    (murecom / "Box/bg/1_bbox.png").unlink()
    with pytest.raises(ImprintError, match=r"1\.jpg has no 1_bbox\.png beside it, and no line in bbox\.txt"):
        folder_tasks(murecom)
    (murecom / "Box/bg/bbox.txt").write_text("Box 1.jpg 2 3 4\n")
    with pytest.raises(ImprintError, match=r"has the line 'Box 1.jpg 2 3 4'; 'CATEGORY N.jpg left top right"):
        folder_tasks(murecom)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"Sports Car 0.jpg 10 20 10 80", r"has the box \[10, 20, 10, 80\] for 0\.jpg, which is empty"),
        (b"Sports Car 0.jpg 60 80 10 20", r"has the box \[60, 80, 10, 20\] for 0\.jpg, which is empty"),
        ("Sports Car 0.jpg 10 20 60 80".encode("utf-16"), r"bbox\.txt is not text .*; save it as UTF-8"),
    ],
)
def test_lines_of_empty_boxes_and_files_that_are_no_text_are_said(murecom, text, message):
    (murecom / "Sports Car/bg/bbox.txt").write_bytes(text)
    with pytest.raises(ImprintError, match=message):
        folder_tasks(murecom)


@pytest.mark.parametrize(
    ("name", "box", "message"),
    [
        ("a.jpg", [768, 0, 800, 100], "is not left, top, right, bottom in 768 x 768 pixels"),
        ("a.jpg", [0, 0, 0.0, 100], "is not left, top, right, bottom"),
        ("../a.jpg", [0, 0, 100, 100], "is not the name of a picture beside it"),
        ("", [0, 0, 100, 100], "is not the name of a picture beside it"),
    ],
)
def test_boxes_beyond_the_picture_and_names_elsewhere_are_refused(tmp_path, name, box, message):
    save(photo(120, 90), tmp_path / "cat/bg/a.jpg")
    (tmp_path / "cat/bg/content.json").write_text(json.dumps([{"image": name, "bbox": box}]))
    with pytest.raises(ImprintError, match=message):
        folder_tasks(tmp_path)


@pytest.mark.parametrize(
    ("box", "expected"),
    [([0, 0, 1, 1], (0, 0, 1, 1)), ([767, 767, 1e9, float("inf")], (119, 89, 120, 90))],
    ids=["small", "beyond"],
)
def test_a_box_of_a_squeezed_picture_lies_in_it_and_is_never_empty(tmp_path, box, expected):
    save(photo(120, 90), tmp_path / "cat/bg/a.jpg")
    save(photo(80, 80), tmp_path / "cat/fg/0.jpg")
    save(rectangle(80, 80, (20, 10, 60, 70)), tmp_path / "cat/fg/0.png")
    (tmp_path / "cat/bg/content.json").write_text(json.dumps([{"image": "a.jpg", "bbox": box}]))
    (task,), _ = folder_tasks(tmp_path)
    assert task.load().box == expected


def test_dreameditbench_s_boxes_are_of_squeezed_pictures(tmp_path):
    root = tmp_path / "shine"
    save(photo(120, 90), root / "cat/bg/found0.jpg")
    (root / "cat/bg/content.json").write_text(json.dumps([{"image": "found0.jpg", "bbox": [192, 192, 576, 768]}]))
    save(photo(80, 80), root / "cat/fg/03.jpg")
    save(rectangle(80, 80, (20, 10, 60, 70)), root / "cat/fg/03.png")
    (task,), subjects = folder_tasks(root)
    assert task.load().box == (30, 22, 90, 90) and list(subjects) == ["cat"]

    own = tmp_path / "background_images_refine"
    save(photo(120, 90), own / "dog/found0.jpg")
    (own / "dog/bbox.json").write_text(json.dumps({"found0.jpg": [128, 128, 384, 512]}))
    for name in ("dog", "dog2", "vase"):  # there is no background for a vase
        save(cutout(60, 50), tmp_path / "dreambooth" / name / "00.png")
    tasks, _ = folder_tasks(own, tmp_path / "dreambooth")
    assert [task.subject for task in tasks] == ["dog", "dog2"]
    assert {task.load().box for task in tasks} == {(30, 22, 90, 90)}
    with pytest.raises(ImprintError, match="holds backgrounds alone: give their objects as --subjects"):
        folder_tasks(own)
    with pytest.raises(ImprintError, match=r"--subjects go with DreamEditBench's bbox\.json"):
        folder_tasks(root, tmp_path / "dreambooth")
    (own / "dog/bbox.json").write_text('{"found0.jpg": [9, 9, 4, 4]}')
    with pytest.raises(ImprintError, match=r"bbox\.json is not a list of pictures and boxes \(ValueError"):
        folder_tasks(own, tmp_path / "dreambooth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImprintError, match="holds no task; known layouts are"):
        folder_tasks(tmp_path / "empty")


def test_murecom_is_measured_with_retrieval_among_its_objects(bench, backbones, murecom, tmp_path):
    more = dict(NO_SUBJECTS, tasks=murecom, backbones=backbones, limit=4, **{"retrieval-backbone": "dino"})
    evaluate.main(
        words(bench, tmp_path / "out", "--metrics", "dino", "background", "retrieval", "--steps", "1", **more)
    )
    found = results(tmp_path / "out")
    assert found["tasks"] == found["subjects"] == 4
    assert all(row.keys() == {"dino", "top-1", "margin", "background"} for row in found["rows"].values())
    with pytest.raises(ImprintError, match="'light' is not for the tasks of"):
        evaluate.read_tasks(
            evaluate.parse(words(bench, tmp_path / "no", tasks=murecom, metrics="light", **NO_SUBJECTS))
        )


@pytest.fixture
def traced(tmp_path):
    for name in ("00", "01"):
        write_task(tmp_path / "tasks", name)
    return tmp_path / "tasks"


def test_gains_of_light_stand_beside_others_results(bench, traced, tmp_path):
    """The truth, given as someone's result, has a gain of 1, pasting 0; the model's is that of `evaluate light`."""
    truth = tmp_path / "truth"
    for name in ("00", "01"):
        save(Image.open(traced / f"{name}_target.png"), truth / f"{name}.png")
    more = dict(NO_SUBJECTS, tasks=traced, results=f"theirs={truth}", steps=1)
    evaluate.main(words(bench, tmp_path / "out", "--metrics", "light", "background", **more))
    found = results(tmp_path / "out")
    rows = found["rows"]
    assert list(rows) == ["micro", "theirs", "copy-paste"]
    for column in ("light", "shadow", "contact"):
        assert rows["theirs"][column]["mean"] == 1 and rows["copy-paste"][column]["mean"] == pytest.approx(0, abs=0.02)
        difference = found["differences"]["theirs"][column]["mean"]
        assert difference == pytest.approx(1 - rows["micro"][column]["mean"])
    assert "| light gain ↑ | shadow gain ↑ | contact gain ↑ | background |" in (tmp_path / "out/results.md").read_text()

    evaluate.main(
        ["light", str(traced), "--results", str(tmp_path / "out/composites/micro"), "--output", str(tmp_path)]
    )
    alone = json.loads((tmp_path / "results.json").read_text())
    for column in ("light", "shadow", "contact"):
        assert rows["micro"][column]["mean"] == pytest.approx(alone[column]["gain"])


def test_a_task_without_ground_counts_for_light_alone(bench, traced, tmp_path):
    alpha = Image.open(traced / "00_alpha.png")
    alpha.save(traced / "00_hole.png")
    evaluate.main(words(bench, tmp_path / "out", tasks=traced, metrics="light", steps=1, **NO_SUBJECTS))
    found = results(tmp_path / "out")
    (first, *_) = [record for record in found["records"] if record["row"] == "micro"]
    assert first["shadow"] is None and first["light"] > 0 and found["rows"]["micro"]["shadow"]["low"] is None


def test_the_hole_of_a_known_truth_is_its_own(traced):
    (task, _), subjects = folder_tasks(traced)
    scene = task.load()
    assert not subjects and np.array_equal(np.asarray(scene.hole("box")) > 127, scene.truth.hole)
    pasted = np.asarray(scene.paste(scene.cutout)) / 255
    assert np.abs(pasted - LightTask.read(traced, "00").pasted()).max() < 1 / 255


def test_others_results_need_all_tasks_at_the_background_s_size_and_may_change_it(bench, tmp_path, capsys):
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    more = dict(results=f"theirs={theirs}", limit=2, steps=1)
    theirs.mkdir()
    evaluate.main(words(bench, out, "--inputs", limit=2))
    assert "2 tasks" in capsys.readouterr().out
    names = sorted(path.name.removesuffix(".background.png") for path in (out / "inputs").glob("*.background.png"))
    assert names == ["bear-0000-one", "cup-0001-two"]
    for name in names:
        parts = {part: Image.open(out / "inputs" / f"{name}.{part}.png") for part in ("object", "background", "hole")}
        assert parts["object"].mode == "RGBA" and parts["background"].size == parts["hole"].size == (120, 90)
    save(photo(120, 90), theirs / "bear-0000-one.jpg")
    assert "lacks 1 of 2 tasks' pictures, such as cup-0001-two.png" in failed(evaluate.main, words(bench, out, **more))
    save(photo(30, 20), theirs / "cup-0001-two.png")
    assert "is 30x20, its background 120x90; give results of" in failed(evaluate.main, words(bench, out, **more))
    save(photo(120, 90), theirs / "cup-0001-two.png")
    capsys.readouterr()
    evaluate.main(words(bench, out, **more))  # a changed background is their own affair, and reported
    assert not results(out)["rows"]["theirs"]["background"]["exact"]
    said = capsys.readouterr().out
    assert "| theirs | changed in 2 of 2, by up to " in said and "FAILED" not in said
    assert "no such folder" in refused(evaluate.main, words(bench, out, results="theirs=absent"))
    assert "two rows have the same name" in refused(evaluate.main, words(bench, out, results=f"micro={theirs}"))


def test_other_steps_are_no_error_for_pasting(bench, tmp_path):
    evaluate.main(words(bench, tmp_path, limit=1, steps=1))
    before = pixels(tmp_path / "composites/copy-paste/bear-0000-one.png")
    more = {"checkpoint": f"again={bench / 'model.safetensors'}", "steps": 2, "seed": 3}
    evaluate.main(words(bench, tmp_path, limit=1, **more))
    assert pixels(tmp_path / "composites/copy-paste/bear-0000-one.png") == before
    assert list(results(tmp_path)["rows"]) == ["again", "copy-paste"]
    assert "boxes = " in failed(
        evaluate.main,
        words(bench, tmp_path, limit=1, boxes=bench / "instances.json", checkpoint=more["checkpoint"], steps=2, seed=3),
    )


def test_a_padded_crop_stands_beside_the_squeezed_one(bench, backbones, tmp_path):
    more = dict(metrics="dino", backbones=backbones, limit=2, steps=1)
    evaluate.main(words(bench, tmp_path / "one", **more))
    evaluate.main(words(bench, tmp_path / "two", "--crop", "squeezed", "padded", **more))
    one, two = results(tmp_path / "one")["rows"]["micro"], results(tmp_path / "two")["rows"]["micro"]
    assert two["dino"] == one["dino"] and two["dino, padded"] != two["dino"]
    assert "DINO, padded ↑" in (tmp_path / "two/results.md").read_text()
    scene = evaluate.read_tasks(evaluate.parse(words(bench, tmp_path)))[0][0].load()
    part = scene.padded().crop(scene.background)
    assert scene.crop(scene.background).size == (35, 30) and part.size == (35, 35)
    assert part.crop((0, 2, 35, 32)).tobytes() == scene.crop(scene.background).tobytes()
    assert part.getpixel((5, 0)) == (255, 255, 255) and scene.padded().target.size == (60, 60)


def test_the_distance_of_padded_crops_is_of_padded_targets(bench, tmp_path, monkeypatch):
    def features(pictures):
        return networks.stack(pictures, 4).flatten(1).double().numpy()

    monkeypatch.setitem(evaluation.NETWORKS, "fid", lambda folder, device: features)
    evaluate.main(words(bench, tmp_path, "--crop", "squeezed", "padded", metrics="fid", steps=1))
    scenes = [task.load().padded() for task in subject_tasks(bench)]
    pasted = [scene.crop(scene.paste(scene.cutout)) for scene in scenes]
    expected = statistics.frechet_distance(*map(features, (pasted, [scene.target for scene in scenes])))
    rows = results(tmp_path)["rows"]
    assert rows["copy-paste"]["fid, padded"]["mean"] == pytest.approx(expected)
    assert rows["copy-paste"]["fid"]["mean"] != pytest.approx(expected)
    assert "| FID ↓ | FID, padded ↓ |" in (tmp_path / "results.md").read_text()
