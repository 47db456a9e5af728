"""The evaluation on a micro model and networks of random weights, saved in a folder as the real ones lie there.

DreamSim, LPIPS and FID, which need the extra `evaluate`, are in `test_evaluate_extra.py`.
"""

import dataclasses
import io
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from micro import cutout, fresh_checkpoint, micro_config, photo, rectangle
from mutations import mutated
from PIL import Image

pytest.importorskip("webdataset", reason="the extra 'train' is not installed")

from drawing import DrawingPipeline
from evaluation import (
    CPU,
    LIGHT,
    NEEDS,
    ROOT,
    check_readme_command,
    check_that_the_target_is_best,
    pairs,
    pixels,
    readme_commands,
    results,
    scene_of,
    words,
    write_backbones,
    write_data,
)

from imprint.checkpoint import save_checkpoint
from imprint.config import tokens_adapter
from imprint.errors import ImprintError
from training import evaluate
from training.data.shards import Record, sample, shard_writer
from training.measure import composites, evaluation, networks, report, statistics, tasks


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Path:
    return write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first_run(data, backbones, tmp_path_factory) -> Path:
    """The folder of a run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "out"
    evaluate.main(words(data, folder, "--metrics", *LIGHT, "retrieval", backbones=backbones))
    return folder


# --- every metric ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip-i", "dino", "dinov2"])
def test_a_metric_of_the_target_itself_is_the_best_there_is(data, backbones, name):
    check_that_the_target_is_best(name, 1, data, backbones)


def test_similarity_is_the_cosine_of_the_model_s_own_features(backbones):
    one, two = photo(32, 32, seed=1), photo(32, 32, seed=2)
    model = transformers.AutoModel.from_pretrained(backbones / "dino-vits16").eval()
    processor = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
    x = torch.stack([torch.from_numpy(np.asarray(p) / 255).permute(2, 0, 1).float() for p in (one, two)])
    x = (x - processor["mean"][:, None, None]) / processor["std"][:, None, None]
    with torch.no_grad():
        a, b = model(x).last_hidden_state[:, 0]
    metric = networks.Similarity("dino", networks.Backbone("dino", backbones, CPU))
    assert metric(scene_of(one), [two])["dino"][0] == pytest.approx(
        torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6
    )


def test_mobilenet_is_built_from_keras_names(tmp_path):
    """Against the convolutions written out: TensorFlow pads "same", and batch norm's epsilon is 1e-3."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    widths, weights = [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768], {}

    def norm(name: str, width: int) -> None:
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[f"{name}.{part}"] = torch.rand(width) + 0.5

    weights["conv1.kernel"] = torch.randn(3, 3, 3, 24) * 0.3
    norm("conv1_bn", 24)
    for block in range(1, 14):
        weights[f"conv_dw_{block}.depthwise_kernel"] = torch.randn(3, 3, widths[block - 1], 1) * 0.3
        weights[f"conv_pw_{block}.kernel"] = (
            torch.randn(1, 1, widths[block - 1], widths[block]) * widths[block - 1] ** -0.5
        )
        norm(f"conv_dw_{block}_bn", widths[block - 1])
        norm(f"conv_pw_{block}_bn", widths[block])
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / NEEDS["mobilenet"])

    def layer(
        x: torch.Tensor, name: str, kernel: torch.Tensor, norm: str, stride: int, groups: int = 1
    ) -> torch.Tensor:
        size = kernel.shape[-1]
        padding = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, (padding // 2, padding - padding // 2) * 2)
        x = torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)
        mean, variance, gamma, beta = (
            weights[f"{norm}.{p}"] for p in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3).clamp(0, 6)

    picture = photo(224, 224, seed=1)
    x = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1)[None].float() * 2 - 1
    x, pooled = layer(x, "conv1", weights["conv1.kernel"].permute(3, 2, 0, 1), "conv1_bn", 2), []
    for block in range(1, 14):
        depthwise = weights[f"conv_dw_{block}.depthwise_kernel"].permute(2, 3, 0, 1)
        x = layer(x, "", depthwise, f"conv_dw_{block}_bn", 2 if block in (2, 4, 6, 12) else 1, x.shape[1])
        x = layer(x, "", weights[f"conv_pw_{block}.kernel"].permute(3, 2, 0, 1), f"conv_pw_{block}_bn", 1)
        if block in (3, 5, 9, 11, 13):
            pooled.append(torch.nn.functional.normalize(x.mean((2, 3)).sqrt(), dim=1))
    expected = torch.nn.functional.normalize(torch.cat(pooled, 1), dim=1)
    assert torch.allclose(networks.Backbone("mobilenet", tmp_path, CPU)([picture]), expected, atol=1e-5)


def test_retrieval_finds_what_was_pasted(data, backbones):
    subjects = tasks.read_subjects(data / "subjects")
    metric = networks.Retrieval(networks.Backbone("dinov2", backbones, CPU), subjects)
    scene = dataclasses.replace(scene_of(photo(50, 40)), subject="cup")
    own, other = (scene.crop(scene.paste(subjects[name][-1].load()[0])) for name in ("cup", "bear"))
    scores = metric(scene, [own, other])
    assert scores["top-1"] == [1, 0]
    assert scores["margin"][0] > 0 and scores["margin"][1] == pytest.approx(-scores["margin"][0], abs=1e-6)


def test_retrieval_needs_a_choice(data, backbones):
    one = {"bear": tasks.read_subjects(data / "subjects")["bear"]}
    with pytest.raises(ImprintError, match="there is 1; give two or more"):
        networks.Retrieval(networks.Backbone("dinov2", backbones, CPU), one)


@pytest.mark.parametrize(("count", "width"), [(12, 5), (5, 12)])
def test_the_frechet_distance_is_that_of_the_covariances(count, width):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(count, width)), random.normal(1, 2, size=(count + 2, width))
    a, b = (np.cov(features, rowvar=False) for features in (first, second))
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert statistics.frechet_distance(first, second) == pytest.approx(expected, abs=1e-5)
    assert statistics.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert statistics.frechet_distance(first, first + 2) == pytest.approx(4 * width, abs=1e-9)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_s_interval_is_that_of_the_mean_over_subjects():
    values = np.random.default_rng(0).normal(3, 2, 200)
    found = statistics.bootstrap(values, [str(i) for i in range(200)])
    reach = 1.96 * values.std() / 200**0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - reach, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + reach, abs=0.05)


def test_more_tasks_of_the_same_subjects_do_not_narrow_the_interval():
    few, subjects = [0.1, 0.5, 0.9, 0.2], list("abcd")
    assert statistics.bootstrap(few * 10, subjects * 10) == pytest.approx(statistics.bootstrap(few, subjects))


def test_one_subject_has_no_interval():
    assert statistics.bootstrap([1.0, 2.0], ["a", "a"]) == {"mean": 1.5, "low": None, "high": None}
    assert statistics.jackknife(lambda i: float(len(i)), ["a", "a"]) == {"mean": 2.0, "low": None, "high": None}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0] * 2)
    found = statistics.jackknife(lambda i: values[i].mean(), list("abcdefgh"))
    assert found["mean"] == values.mean()
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * values.std(ddof=1) / 8**0.5)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_subjects_are_photos_with_masks(data):
    subjects = tasks.read_subjects(data / "subjects")
    assert {name: len(photos) for name, photos in subjects.items()} == {"bear": 1, "cup": 2}
    cut, view = subjects["bear"][0].load()
    assert cut.size == view.size == (40, 60) and cut.getchannel("A").getextrema() == (255, 255)
    whole = Image.open(data / "subjects" / "bear" / "00.jpg")
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


def test_a_mask_of_another_size_is_refused(data, tmp_path):
    (tmp_path / "bear").mkdir()
    photo(30, 20).save(tmp_path / "bear" / "00.jpg")
    rectangle(20, 30, (5, 5, 9, 9)).save(tmp_path / "bear" / "00.mask.png")
    with pytest.raises(SystemExit, match=r"00.jpg is 30x20, but its mask .* is 20x30; make them the same size"):
        evaluate.main(words(data, tmp_path / "out", subjects=tmp_path))


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


def test_the_first_tasks_cover_all_subjects(data):
    boxes = tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    made = tasks.subject_tasks(tasks.read_subjects(data / "subjects"), boxes)
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


def test_coco_lends_the_largest_box_of_fit_size(data):
    assert tasks.read_boxes(data / "instances.json", data / "backgrounds") == [
        (data / "backgrounds" / "one.png", (40, 30, 75, 60), None),
        (data / "backgrounds" / "two.png", (10, 20, 60, 70), None),
    ]


def test_pairs_are_apart_and_near(data):
    made = tasks.pair_tasks(data / "pairs")
    assert [task.name for task in made] == ["bus-2-00000-00005", "swan-2-00000-00006"]
    scene = made[1].load()
    assert scene.box == (16, 20, 57, 61) and scene.cutout.size == (41, 41)
    assert scene.target == scene.background.crop(scene.box)
    assert scene.cutout.getpixel((20, 20)) == (200, 40, 40, 255) and scene.cutout.getpixel((0, 0))[3] == 0


def test_a_cutout_stands_on_the_box_s_lower_edge(data):
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


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_run_measures_and_shows_it(first_run):
    found = results(first_run)
    assert found["tasks"] == 4 and found["subjects"] == 2 and len(found["records"]) == 8
    assert set(found["rows"]) == {"micro", "copy-paste"} and set(found["differences"]) == {"copy-paste"}
    columns = {"clip-i", "dino", "dinov2", "top-1", "margin"}
    for row in found["rows"].values():
        assert set(row) == columns | {"background"} and row["background"]["exact"]
        assert all(np.isfinite(list(row[column].values())).all() for column in columns)
        assert row["dino"]["low"] <= row["dino"]["mean"] <= row["dino"]["high"]
    own = [record["dino"] for record in found["records"] if record["row"] == "micro"]
    assert found["rows"]["micro"]["dino"]["mean"] == pytest.approx(np.mean(own))
    difference = found["rows"]["copy-paste"]["dino"]["mean"] - found["rows"]["micro"]["dino"]["mean"]
    assert found["differences"]["copy-paste"]["dino"]["mean"] == pytest.approx(difference)
    assert next(record for record in found["records"] if record["row"] == "copy-paste")["task"] == "bear-0000-one"

    text = (first_run / "results.md").read_text()
    assert (
        "| micro |" in text
        and "| copy-paste |" in text
        and text.count("exact |") == 2
        and "bootstrap over subjects" in text
    )
    assert {len(re.findall(r"\|", line)) for line in text.splitlines()[2:6]} == {8}
    assert Image.open(first_run / "grid.png").width == 5 * report.CELL


def test_fid_is_of_all_crops_and_of_rows_alone(data, tmp_path, monkeypatch):
    def features(pictures):
        return networks.stack(pictures, 4).flatten(1).double().numpy()

    monkeypatch.setitem(evaluation.NETWORKS, "fid", lambda folder, device: features)
    evaluate.main(words(data, tmp_path, metrics="fid"))
    made = tasks.subject_tasks(
        tasks.read_subjects(data / "subjects"), tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    )
    scenes = [task.load() for task in made]
    pasted = [scene.crop(scene.paste(scene.cutout)) for scene in scenes]
    found, expected = (
        results(tmp_path),
        statistics.frechet_distance(*map(features, (pasted, [s.target for s in scenes]))),
    )
    assert found["rows"]["copy-paste"]["fid"]["mean"] == pytest.approx(expected)
    assert "| FID ↓ |" in (tmp_path / "results.md").read_text() and found["differences"] == {"copy-paste": {}}


def test_composites_are_the_pipeline_s_with_the_task_s_seed(data, first_run):
    task = tasks.subject_tasks(
        tasks.read_subjects(data / "subjects"), tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    )[3]
    pipeline, scene = DrawingPipeline.from_checkpoint(data / "model.safetensors"), task.load()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(task.seed(0))
    made = pipeline(
        scene.cutout, scene.cutout.getchannel("A"), scene.background, scene.hole("box"), generator=generator
    )
    expected = {"micro": made.images[0], "copy-paste": scene.paste(scene.cutout)}
    for row, picture in expected.items():
        assert pixels(first_run / "composites" / row / f"{task.name}.png") == picture.tobytes()


def test_an_interrupted_run_continues_and_keeps_what_is_there(data, tmp_path, first_run, monkeypatch, capsys):
    make, made = composites.sampler, []

    def failing(row, options):
        sample = make(row, options)

        def sample_once(*arguments):
            if made:
                raise KeyboardInterrupt
            made.append(sample(*arguments))
            return made[0]

        return sample_once

    with monkeypatch.context() as interrupted, pytest.raises(SystemExit) as left:
        interrupted.setattr(composites, "sampler", failing)
        evaluate.main(words(data, tmp_path))
    assert left.value.code == 130 and "stopped: composites that are made are kept" in capsys.readouterr().err
    (kept,) = (tmp_path / "composites" / "micro").glob("*.png")
    before = kept.stat().st_mtime_ns
    evaluate.main(words(data, tmp_path))
    assert kept.stat().st_mtime_ns == before
    for path in (first_run / "composites" / "micro").glob("*.png"):
        assert (tmp_path / "composites" / "micro" / path.name).read_bytes() == path.read_bytes()

    monkeypatch.setattr(composites, "sampler", None)  # nothing is left to sample
    evaluate.main(words(data, tmp_path))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 2}, {"mask-level": "coarse"}, {"boxes": "instances.json"}])
def test_a_folder_is_not_mixed(data, first_run, changes):
    changes = {name: data / value if name == "boxes" else value for name, value in changes.items()}
    with pytest.raises(
        SystemExit, match="holds composites made with .*give the same options to go on, or another --output"
    ):
        evaluate.main(words(data, first_run, **changes))


def test_a_changed_background_is_a_failure(data, tmp_path, capsys):
    evaluate.main(words(data, tmp_path, limit=2))
    assert "FAILED" not in capsys.readouterr().out
    path = tmp_path / "composites" / "micro" / "cup-0001-two.png"
    with Image.open(path) as image:
        image.load()
    red, green, blue = image.getpixel((119, 0))
    image.putpixel((119, 0), (red, green, blue - 3 if blue > 2 else blue + 3))
    image.save(path)
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(data, tmp_path, limit=2))
    assert left.value.code == "error: the background was changed outside the hole and its soft edge: micro"
    assert "**FAILED**: changed in 1 of 2, by up to 3 of 255" in capsys.readouterr().out
    found = results(tmp_path)
    assert found["rows"]["micro"]["background"] == {"exact": False, "tasks_changed": 1, "largest_change": 3}
    assert [record["changed_pixels"] for record in found["records"]] == [0, 0, 1, 0]


def test_a_composite_of_another_size_is_named(data, tmp_path):
    evaluate.main(words(data, tmp_path, limit=1))
    path = tmp_path / "composites" / "micro" / "bear-0000-one.png"
    photo(30, 20).save(path)
    with pytest.raises(SystemExit, match=re.escape(f"{path} is 30x20, its background 120x90; delete it")):
        evaluate.main(words(data, tmp_path, limit=1))


def test_video_pairs_are_compared_with_the_second_frame(data, backbones, tmp_path):
    evaluate.main(pairs(data, tmp_path, metrics="dino", backbones=backbones))
    found = results(tmp_path)
    assert found["tasks"] == 2 and list(found["rows"]) == ["micro", "copy-paste", "copy-paste, box emptied"]
    task = tasks.pair_tasks(data / "pairs")[0]
    scene = task.load()
    metric = networks.Similarity("dino", networks.Backbone("dino", backbones, CPU))
    rows = ["micro", "copy-paste", "copy-paste-box-emptied"]
    crops = [scene.crop(Image.open(tmp_path / "composites" / row / f"{task.name}.png")) for row in rows]
    expected = metric(scene, crops)["dino"]
    assert [record["dino"] for record in found["records"][:3]] == pytest.approx(expected)


def test_the_ablations_are_rows_of_their_own(data, tmp_path):
    more = ["--ablation", "cls-only", "box-mask", "--mask-level", "precise"]
    evaluate.main(words(data, tmp_path, *more, limit=1))
    assert list(results(tmp_path)["rows"]) == ["micro", "micro, CLS only", "micro, box mask only", "copy-paste"]
    folder = tmp_path / "composites"
    made = {path.name: pixels(path / "bear-0000-one.png") for path in folder.iterdir()}
    assert len(set(made.values())) == 4


def test_cls_only_gives_the_adapter_one_token(data):
    pipeline = DrawingPipeline.from_checkpoint(data / "model.safetensors")
    whole = pipeline.encode_object(cutout(20, 20))
    composites.keep_cls_only(pipeline, data)
    assert torch.equal(pipeline.encode_object(cutout(20, 20)), whole[:, :, :1]) and whole.shape[2] == 5


def test_an_adapter_of_fixed_tokens_refuses_cls_only(data, tmp_path):
    config = micro_config()
    adapter = dataclasses.replace(
        tokens_adapter(config.encoder, layers=1, heads=2, output_width=32), kind="conv", output_tokens=3
    )
    save_checkpoint(tmp_path / "conv.safetensors", fresh_checkpoint(dataclasses.replace(config, adapter=adapter)))
    with pytest.raises(SystemExit, match="cannot do with CLS alone"):
        evaluate.main(words(data, tmp_path / "out", "--ablation", "cls-only", checkpoint=tmp_path / "conv.safetensors"))


# --- the README's commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", readme_commands(), ids=lambda command: command[-1])
def test_the_readme_s_commands_run(data, backbones, tmp_path, command):
    light = LIGHT if "--pairs" in command else (*LIGHT, "retrieval")
    check_readme_command(command, data, backbones, tmp_path, "--metrics", *light)


def test_the_boxes_of_the_identity_score_are_two_for_each_of_25_subjects(tmp_path):
    path = ROOT / "training" / "boxes.jsonl"
    for line in path.read_text().splitlines():
        (tmp_path / json.loads(line)["background"]).touch()
    boxes = tasks.read_boxes(path, tmp_path)
    subjects = [subject for _, _, subject in boxes]
    assert len(boxes) == 50 and {subjects.count(subject) for subject in subjects} == {2} and None not in subjects
    assert len({background for background, _, _ in boxes}) == 50


# --- what is missing or wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", NEEDS)
def test_a_missing_network_is_a_sentence_before_any_work(data, tmp_path, metric):
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(data, tmp_path / "out", metrics=metric, backbones=tmp_path))
    message = str(left.value.code)
    assert message.startswith("error: ") and NEEDS[metric] in message and not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_a_sentence(data, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    with pytest.raises(
        SystemExit, match=r"'dino' needs facebook/dino-vits16 from the hub, which cannot be had \(OSError: We"
    ):
        evaluate.main(words(data, tmp_path / "out", metrics="dino"))


@pytest.mark.parametrize("metric", evaluation.NETWORKS)
def test_a_missing_package_is_a_sentence(data, tmp_path, metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    some_network(metric, tmp_path)
    with pytest.raises(SystemExit, match=rf"'{metric}' needs the package 'torchvision'; pip install .*evaluate"):
        evaluate.main(words(data, tmp_path / "out", metrics=metric, backbones=tmp_path))


@pytest.mark.parametrize("metric", evaluation.NETWORKS)
def test_a_torchvision_of_another_torch_is_a_sentence(data, tmp_path, metric, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    some_network(metric, tmp_path)
    with pytest.raises(SystemExit, match="does not import here .RuntimeError: operator torchvision::nms .* built for"):
        evaluate.main(words(data, tmp_path / "out", metrics=metric, backbones=tmp_path))


def some_network(metric: str, folder: Path) -> None:
    """Something under the name that a metric looks for, which it does not get to load."""
    path = folder / NEEDS[metric]
    path.parent.mkdir(exist_ok=True)
    torch.save({}, path)


class Trap:
    def __reduce__(self):
        return open, ("trapped", "w")


@pytest.mark.parametrize("metric", ["lpips", "fid"])
def test_a_pickle_that_would_run_code_is_refused(data, tmp_path, metric, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NEEDS[metric]
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SystemExit, match="cannot be had"):
        evaluate.main(words(data, tmp_path / "out", metrics=metric, backbones=tmp_path))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "x=absent.safetensors"}, "absent.safetensors: no such file"),
        ({"subjects": "absent"}, "absent: no such folder"),
        ({"subjects": "backgrounds"}, "holds no subject with a mask"),
        ({"boxes": "absent.jsonl"}, "absent.jsonl cannot be read"),
        ({"boxes": "model.safetensors"}, "is not a file of boxes"),
        ({"backgrounds": "subjects"}, "one.png: no such file"),
        ({"backgrounds": "subjects", "boxes": "instances.json"}, "names no box on a picture"),
        ({"device": "nonsense"}, "torch cannot use the device 'nonsense'"),
        ({"metrics": "fid", "limit": 1}, "'fid' compares sets of pictures, and there is 1 task"),
    ],
)
def test_bad_input_leaves_with_a_sentence(data, tmp_path, changes, message):
    changes = {
        name: data / value if name in ("subjects", "boxes", "backgrounds") else value for name, value in changes.items()
    }
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(data, tmp_path, **changes))
    assert str(left.value.code).startswith("error: ") and message in str(left.value.code)


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
def test_bad_boxes_leave_with_a_sentence(data, tmp_path, line, message):
    (tmp_path / "boxes.jsonl").write_text(line)
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(data, tmp_path, boxes=tmp_path / "boxes.jsonl"))
    assert str(left.value.code).startswith("error: ") and message in str(left.value.code)


def test_shards_without_pairs_leave_with_a_sentence(data, tmp_path):
    with shard_writer(tmp_path / "pairs" / "a.tar") as writer:
        picture = (data / "backgrounds" / "one.png").read_bytes()
        writer.write(sample("a", picture, "png", Record("", "one", 0, "test", "CC0")))
    with pytest.raises(SystemExit, match="holds no two frames of an object"):
        evaluate.main(pairs(data, tmp_path / "out", pairs=tmp_path / "pairs"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--boxes", "x"], "give --subjects, --backgrounds and --boxes, or --pairs alone"),
        (["--pairs", "x", "--metrics", "retrieval"], "chooses among --subjects"),
        (["--pairs", "x", "--ablation", "box-mask"], "holes are boxes already"),
        (["--pairs", "x", "--limit", "0"], "--limit is 0"),
        (["--pairs", "x", "--checkpoint", "a b=1", "a/b=2"], "two rows have the same name"),
        (["--pairs", "x", "--metrics", "psnr"], "invalid choice"),
    ],
)
def test_wrong_options_leave_with_two(capsys, more, message):
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--output", "x", *more])
    assert left.value.code == 2 and message in capsys.readouterr().err
