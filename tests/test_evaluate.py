"""The evaluation on a micro model and networks of random weights, saved in a folder as the real ones lie there."""

import dataclasses
import json
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from micro import cutout, fresh_checkpoint, micro_config, photo, rectangle
from PIL import Image, ImageDraw

pytest.importorskip("dreamsim", reason="the extra 'evaluate' is not installed")
pytest.importorskip("torch_fidelity", reason="the extra 'evaluate' is not installed")
pytest.importorskip("torchmetrics", reason="the extra 'evaluate' is not installed")
pytest.importorskip("webdataset", reason="the extra 'evaluate' is not installed")

import peft
import transformers
from dreamsim.config import dreamsim_args
from dreamsim.feature_extraction import load_clip_as_dino
from dreamsim.feature_extraction.vision_transformer import VisionTransformer
from dreamsim.model import PerceptualModel
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchvision.models import alexnet

from imprint.checkpoint import save_checkpoint
from imprint.config import tokens_adapter
from imprint.errors import ImprintError
from imprint.pipeline import ImprintPipeline
from training import evaluate, metrics, tasks
from training.shards import Record, sample, shard_writer

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
ALEXNET = "checkpoints/alexnet-owt-7be5be79.pth"
NEEDS = {  # what each metric looks for in the folder of networks
    "clip-i": "clip-vit-base-patch32",
    "dino": "dino-vits16",
    "dinov2": "dinov2-base",
    "dreamsim": "dreamsim",
    "lpips": ALEXNET,
    "fid": "checkpoints/weights-inception-2015-12-05-6726825d.pth",
    "retrieval": "dinov2-base",
    "mobilenet": "mobilenet_v1_0.75_224.safetensors",
}


def small_vit(patch_size: int) -> VisionTransformer:
    return VisionTransformer(
        patch_size=patch_size, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2, num_classes=0, qkv_bias=True
    )


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Iterator[Path]:
    """Every network that `training.metrics` names but MobileNet, small where its architecture allows."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    clip = transformers.CLIPVisionConfig(intermediate_size=64, projection_dim=16, **sizes)
    vit = transformers.ViTConfig(intermediate_size=64, **sizes)
    dinov2 = transformers.Dinov2Config(**sizes)
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(folder / NEEDS["clip-i"])
    transformers.ViTModel(vit).save_pretrained(folder / NEEDS["dino"])
    transformers.Dinov2Model(dinov2).save_pretrained(folder / NEEDS["dinov2"])

    (folder / "checkpoints").mkdir()
    tensors = {
        # The classifier is not used: one number stands for each of its tensors.
        name: torch.zeros(()).expand(tensor.shape) if name.startswith("classifier") else tensor
        for name, tensor in alexnet().state_dict().items()
    }
    torch.save(tensors, folder / ALEXNET)
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with (
        patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(network, "load_state_dict", lambda *_: None),
    ):
        inception = network("random", ["2048"])
    torch.save({name: tensor.half() for name, tensor in inception.state_dict().items()}, folder / NEEDS["fid"])

    cache = folder / "dreamsim"
    cache.mkdir()
    with patch.object(load_clip_as_dino, "vit_base", small_vit), patch.object(metrics, "DREAMSIM", "clip_vitb32"):
        model = small_vit(32)
        model.pos_drop = torch.nn.LayerNorm(32)  # as the package turns CLIP into DINO
        state = model.state_dict() | {"proj": torch.randn(32, 16)}
        torch.save({"state_dict": state}, cache / "clip_vitb32_pretrain.pth.tar")
        model = PerceptualModel(**dreamsim_args["model_config"]["clip_vitb32"], device="cpu", load_dir=str(cache))
        adapter = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=2, target_modules=["qkv"]))
        adapter.save_pretrained(cache / "clip_vitb32_single_lora")
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """subjects/ of three kinds of layout, backgrounds/, boxes.jsonl, instances.json, pairs/ and model.safetensors."""
    root = tmp_path_factory.mktemp("data")
    for name in ("bear", "cup", "unmasked"):
        (root / "subjects" / name).mkdir(parents=True)
    for number in range(2):
        cutout(60, 50, seed=number).save(root / "subjects" / "cup" / f"{number:02d}.png")
    picture = photo(80, 80, seed=7)
    picture.save(root / "subjects" / "bear" / "00.jpg")
    rectangle(80, 80, (20, 10, 60, 70)).save(root / "subjects" / "bear" / "00.mask.png")
    picture.save(root / "subjects" / "bear" / "01.jpg")
    picture.save(root / "subjects" / "unmasked" / "00.jpg")

    (root / "backgrounds").mkdir()
    for name, seed in (("one", 3), ("two", 4)):
        photo(120, 90, seed=seed).save(root / "backgrounds" / f"{name}.png")
    boxes = [("one.png", [40, 30, 75, 60]), ("two.png", [10, 20, 60, 70])]
    (root / "boxes.jsonl").write_text("".join(json.dumps({"background": n, "box": b}) + "\n" for n, b in boxes))
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 120, "height": 90} for i, name in enumerate(("one", "two"))
    ]
    found = [
        (0, [5, 5, 10, 10]),
        (0, [40, 30, 35, 30.4]),
        (0, [0, 0, 119, 89]),
        (1, [10, 20, 50, 50]),
        (1, [10, 20, 20, 20]),
    ]
    annotations = [{"image_id": image, "bbox": box, "iscrowd": 0} for image, box in found]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))

    with shard_writer(root / "pairs" / "video.tar") as writer:
        for clip, frames in (("swan", (0, 2, 6, 8, 40)), ("bus", (0, 5)), ("still", (3,))):
            for frame in frames:
                picture, mask = photo(96, 80, seed=frame), Image.new("L", (96, 80))
                box = (10 + frame, 20, 50 + frame, 60)
                ImageDraw.Draw(picture).ellipse(box, fill=(200, 40, 40))
                ImageDraw.Draw(mask).ellipse(box, fill=2)
                ImageDraw.Draw(mask).rectangle((0, 0, 3, 3), fill=1)  # too small an object
                path = root / "frame.png"
                picture.save(path)
                record = Record("", clip, frame, "test", "CC0")
                writer.write(sample(f"{clip}-{frame:05d}", path.read_bytes(), "png", record, mask))
    save_checkpoint(root / "model.safetensors", fresh_checkpoint(micro_config()))
    return root


def words(data: Path, output: Path, *more: str, **changes) -> list[str]:
    """A command line; a change to None leaves an option out."""
    options = {
        "checkpoint": f"micro={data / 'model.safetensors'}",
        "subjects": data / "subjects",
        "backgrounds": data / "backgrounds",
        "boxes": data / "boxes.jsonl",
        "output": output,
        "metrics": "background",
        "device": "cpu",
    } | changes
    given = (word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))
    return [*given, *more]


def pairs(data: Path, output: Path, *more: str, **changes) -> list[str]:
    return words(
        data, output, *more, **{"subjects": None, "backgrounds": None, "boxes": None, "pairs": data / "pairs"} | changes
    )


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def first_run(data, backbones, tmp_path_factory) -> Path:
    """The folder of a run with all metrics; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "out"
    evaluate.main(words(data, folder, metrics=None, backbones=backbones))
    return folder


def scene_of(target: Image.Image) -> tasks.Scene:
    return tasks.Scene("cup", cutout(20, 20), photo(64, 64), (10, 10, 42, 42), target)


# --- every metric ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "same"), [("clip-i", 1), ("dino", 1), ("dinov2", 1), ("dreamsim", 0), ("lpips", 0)])
def test_a_metric_of_the_target_itself_is_the_best_there_is(data, backbones, name, same):
    options = evaluate.parse(words(data, data, metrics=name, backbones=backbones))
    metric = evaluate.load_metrics(options, {})[name]
    target, other = photo(50, 40, seed=1), photo(50, 40, seed=2)
    (scores,) = metric(scene_of(target), [target, other, target]).values()
    assert scores[0] == pytest.approx(same, abs=1e-6) and scores[2] == pytest.approx(scores[0], abs=1e-6)
    assert abs(scores[1] - same) > 1e-4
    assert (scores[1] < same) == (metrics.COLUMNS[name].better == "higher")
    (alone,) = metric(scene_of(target), [other]).values()  # the other crops have no part in a crop's score
    assert alone == pytest.approx(scores[1:2], abs=1e-5)


def test_similarity_is_the_cosine_of_the_model_s_own_features(backbones):
    one, two = photo(32, 32, seed=1), photo(32, 32, seed=2)
    model = transformers.AutoModel.from_pretrained(backbones / "dino-vits16").eval()
    processor = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
    x = torch.stack([torch.from_numpy(np.asarray(p) / 255).permute(2, 0, 1).float() for p in (one, two)])
    x = (x - processor["mean"][:, None, None]) / processor["std"][:, None, None]
    with torch.no_grad():
        a, b = model(x).last_hidden_state[:, 0]
    metric = metrics.Similarity("dino", metrics.Backbone("dino", backbones, CPU))
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
    assert torch.allclose(metrics.Backbone("mobilenet", tmp_path, CPU)([picture]), expected, atol=1e-5)


def test_retrieval_finds_what_was_pasted(data, backbones):
    subjects = tasks.read_subjects(data / "subjects")
    metric = metrics.Retrieval(metrics.Backbone("dinov2", backbones, CPU), subjects)
    scene = dataclasses.replace(scene_of(photo(50, 40)), subject="cup")
    own, other = (scene.crop(scene.paste(subjects[name][-1].load()[0])) for name in ("cup", "bear"))
    scores = metric(scene, [own, other])
    assert scores["top-1"] == [1, 0]
    assert scores["margin"][0] > 0 and scores["margin"][1] == pytest.approx(-scores["margin"][0], abs=1e-6)


def test_retrieval_needs_a_choice(data, backbones):
    one = {"bear": tasks.read_subjects(data / "subjects")["bear"]}
    with pytest.raises(ImprintError, match="there is 1; give two or more"):
        metrics.Retrieval(metrics.Backbone("dinov2", backbones, CPU), one)


@pytest.mark.parametrize(("count", "width"), [(12, 5), (5, 12)])
def test_the_frechet_distance_is_torch_fidelity_s(count, width):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(count, width)), random.normal(1, 2, size=(count + 2, width))
    theirs = [fid_features_to_statistics(torch.from_numpy(features)) for features in (first, second)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, abs=1e-5)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(first, first + 2) == pytest.approx(4 * width, abs=1e-9)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_s_interval_is_that_of_the_mean_over_subjects():
    values = np.random.default_rng(0).normal(3, 2, 200)
    found = metrics.bootstrap(values, [str(i) for i in range(200)])
    reach = 1.96 * values.std() / 200**0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - reach, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + reach, abs=0.05)


def test_more_tasks_of_the_same_subjects_do_not_narrow_the_interval():
    few, subjects = [0.1, 0.5, 0.9, 0.2], list("abcd")
    assert metrics.bootstrap(few * 10, subjects * 10) == pytest.approx(metrics.bootstrap(few, subjects))


def test_one_subject_has_no_interval():
    assert metrics.bootstrap([1.0, 2.0], ["a", "a"]) == {"mean": 1.5, "low": None, "high": None}
    assert metrics.jackknife(lambda i: float(len(i)), ["a", "a"]) == {"mean": 2.0, "low": None, "high": None}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0] * 2)
    found = metrics.jackknife(lambda i: values[i].mean(), list("abcdefgh"))
    assert found["mean"] == values.mean()
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * values.std(ddof=1) / 8**0.5)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_subjects_are_photos_with_masks(data):
    subjects = tasks.read_subjects(data / "subjects")
    assert {name: len(photos) for name, photos in subjects.items()} == {"bear": 1, "cup": 2}
    cut, view = subjects["bear"][0].load()
    assert cut.size == view.size == (40, 60) and cut.getchannel("A").getextrema() == (255, 255)
    assert view == Image.open(data / "subjects" / "bear" / "00.jpg").crop((20, 10, 60, 70))
    cut, view = subjects["cup"][0].load()
    assert view.getpixel((0, 0)) == (255, 255, 255) and cut.getpixel((0, 0))[3] == 0


def test_a_mask_of_another_size_is_refused(data, tmp_path):
    (tmp_path / "bear").mkdir()
    photo(30, 20).save(tmp_path / "bear" / "00.jpg")
    rectangle(20, 30, (5, 5, 9, 9)).save(tmp_path / "bear" / "00.mask.png")
    with pytest.raises(SystemExit, match=r"00.jpg is 30x20, its mask .* 20x30; make them the same size"):
        evaluate.main(words(data, tmp_path / "out", subjects=tmp_path))


def test_the_first_tasks_cover_all_subjects(data):
    boxes = tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    made = tasks.subject_tasks(tasks.read_subjects(data / "subjects"), boxes)
    assert [task.name for task in made] == ["bear-0000-one", "cup-0001-two", "bear-0001-two", "cup-0000-one"]
    assert made[0].seed(0) != made[1].seed(0) != made[1].seed(1)


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


def test_a_run_measures_everything_and_shows_it(first_run):
    found = results(first_run)
    assert found["tasks"] == 4 and found["subjects"] == 2 and len(found["records"]) == 8
    assert set(found["rows"]) == {"micro", "copy-paste"} and set(found["differences"]) == {"copy-paste"}
    columns = {"clip-i", "dino", "dinov2", "dreamsim", "lpips", "fid", "top-1", "margin"}
    for row in found["rows"].values():
        assert set(row) == columns | {"background"} and row["background"]["exact"]
        assert all(np.isfinite(list(row[column].values())).all() for column in columns)
        assert row["dino"]["low"] <= row["dino"]["mean"] <= row["dino"]["high"]
    own = [record["lpips"] for record in found["records"] if record["row"] == "micro"]
    assert found["rows"]["micro"]["lpips"]["mean"] == pytest.approx(np.mean(own))
    difference = found["rows"]["copy-paste"]["lpips"]["mean"] - found["rows"]["micro"]["lpips"]["mean"]
    assert found["differences"]["copy-paste"]["lpips"]["mean"] == pytest.approx(difference)
    assert next(record for record in found["records"] if record["row"] == "copy-paste")["task"] == "bear-0000-one"

    text = (first_run / "results.md").read_text()
    assert (
        "| micro |" in text
        and "| copy-paste |" in text
        and text.count("exact |") == 2
        and "bootstrap over subjects" in text
    )
    assert {len(re.findall(r"\|", line)) for line in text.splitlines()[2:6]} == {11}
    assert Image.open(first_run / "grid.png").width == 5 * evaluate.CELL


def test_composites_are_the_pipeline_s_with_the_task_s_seed(data, first_run):
    task = tasks.subject_tasks(
        tasks.read_subjects(data / "subjects"), tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    )[3]
    pipeline, scene = ImprintPipeline.from_checkpoint(data / "model.safetensors"), task.load()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(task.seed(0))
    made = pipeline(
        scene.cutout, scene.cutout.getchannel("A"), scene.background, scene.hole("box"), generator=generator
    )
    expected = {"micro": made.images[0], "copy-paste": scene.paste(scene.cutout)}
    for row, picture in expected.items():
        assert pixels(first_run / "composites" / row / f"{task.name}.png") == picture.tobytes()


def test_an_interrupted_run_continues_and_keeps_what_is_there(data, tmp_path, first_run, monkeypatch):
    make, made = evaluate.sampler, []

    def failing(row, options):
        sample = make(row, options)

        def sample_once(*arguments):
            if made:
                raise KeyboardInterrupt
            made.append(sample(*arguments))
            return made[0]

        return sample_once

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(evaluate, "sampler", failing)
        evaluate.main(words(data, tmp_path))
    (kept,) = (tmp_path / "composites" / "micro").glob("*.png")
    before = kept.stat().st_mtime_ns
    evaluate.main(words(data, tmp_path))
    assert kept.stat().st_mtime_ns == before
    for path in (first_run / "composites" / "micro").glob("*.png"):
        assert (tmp_path / "composites" / "micro" / path.name).read_bytes() == path.read_bytes()

    monkeypatch.setattr(evaluate, "sampler", None)  # nothing is left to sample
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
    evaluate.main(pairs(data, tmp_path, metrics="lpips", backbones=backbones))
    found = results(tmp_path)
    assert found["tasks"] == 2 and list(found["rows"]) == ["micro", "copy-paste", "copy-paste, box emptied"]
    task = tasks.pair_tasks(data / "pairs")[0]
    scene = task.load()
    metric = metrics.LPIPS(backbones, CPU)
    rows = ["micro", "copy-paste", "copy-paste-box-emptied"]
    crops = [scene.crop(Image.open(tmp_path / "composites" / row / f"{task.name}.png")) for row in rows]
    expected = metric(scene, crops)["lpips"]
    assert [record["lpips"] for record in found["records"][:3]] == pytest.approx(expected)


def test_the_ablations_are_rows_of_their_own(data, tmp_path):
    more = ["--ablation", "cls-only", "box-mask", "--mask-level", "precise"]
    evaluate.main(words(data, tmp_path, *more, limit=1))
    assert list(results(tmp_path)["rows"]) == ["micro", "micro, CLS only", "micro, box mask only", "copy-paste"]
    folder = tmp_path / "composites"
    made = {path.name: pixels(path / "bear-0000-one.png") for path in folder.iterdir()}
    assert len(set(made.values())) == 4


def test_cls_only_gives_the_adapter_one_token(data):
    pipeline = ImprintPipeline.from_checkpoint(data / "model.safetensors")
    whole = pipeline.encode_object(cutout(20, 20))
    evaluate.keep_cls_only(pipeline, data)
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


def readme_commands() -> list[list[str]]:
    text = (ROOT / "training" / "README.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("python -m training.evaluate ")]


@pytest.mark.parametrize("command", readme_commands(), ids=lambda command: command[-1])
def test_the_readme_s_commands_run(data, backbones, tmp_path, command):
    ours = {
        "DREAMBOOTH": data / "subjects",
        "COCO/val2017": data / "backgrounds",
        "COCO/annotations/instances_val2017.json": data / "instances.json",
        "data/photos/held-out": data / "pairs",
        command[command.index("--output") + 1]: tmp_path,
    }
    end = next((i for i, word in enumerate(command) if i > 4 and word.startswith("--")), len(command))
    assert command[3] == "--checkpoint"
    checkpoints = [f"{word.partition('=')[0]}={data / 'model.safetensors'}" for word in command[4:end]]
    rest = [str(ours.get(word, word)) for word in command[end:]]
    small = shlex.split(f"--limit 2 --steps 2 --device cpu --dtype fp32 --backbones '{backbones}'")
    evaluate.main(["--checkpoint", *checkpoints, *rest, *small])
    assert results(tmp_path)["tasks"] == 2 and len(results(tmp_path)["rows"]) > len(checkpoints)


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


def test_a_missing_package_is_a_sentence(data, backbones, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.lpip", None)
    with pytest.raises(SystemExit, match=r"pip install 'imprint\[evaluate\]'"):
        evaluate.main(words(data, tmp_path / "out", metrics="lpips", backbones=backbones))


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
