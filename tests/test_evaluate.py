"""Whole evaluations with a micro model and random networks, and what happens if inputs are missing or wrong."""

import dataclasses
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from drawing import DrawingPipeline
from evaluation import (
    CPU,
    LIGHT,
    NEEDS,
    check_readme_command,
    pairs,
    pixels,
    readme_commands,
    results,
    subject_tasks,
    words,
)
from leaving import failed, refused
from micro import cutout, fresh_checkpoint, micro_config, photo, seeded
from PIL import Image

from imprint.checkpoint import save_checkpoint
from imprint.config import tokens_adapter
from training import evaluate
from training.measure import composites, evaluation, networks, report, statistics, tasks


@pytest.fixture(scope="module")
def first_run(bench, backbones, tmp_path_factory) -> Path:
    """The folder of a run; tests must not change it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    evaluate.main(words(bench, folder, "--metrics", *LIGHT, "retrieval", backbones=backbones))
    return folder


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


def test_fid_is_of_all_crops_and_of_rows_alone(bench, tmp_path, monkeypatch):
    def features(pictures):
        return networks.stack(pictures, 4).flatten(1).double().numpy()

    monkeypatch.setitem(evaluation.NETWORKS, "fid", lambda folder, device: features)
    evaluate.main(words(bench, tmp_path, metrics="fid"))
    made = subject_tasks(bench)
    scenes = [task.load() for task in made]
    pasted = [scene.crop(scene.paste(scene.cutout)) for scene in scenes]
    found, expected = (
        results(tmp_path),
        statistics.frechet_distance(*map(features, (pasted, [s.target for s in scenes]))),
    )
    assert found["rows"]["copy-paste"]["fid"]["mean"] == pytest.approx(expected)
    assert "| FID ↓ |" in (tmp_path / "results.md").read_text() and found["differences"] == {"copy-paste": {}}


def test_composites_are_the_pipeline_s_with_the_task_s_seed(bench, first_run):
    task = subject_tasks(bench)[3]
    pipeline, scene = DrawingPipeline.from_checkpoint(bench / "model.safetensors"), task.load()
    generator = seeded(task.seed(0))
    made = pipeline(
        scene.cutout, scene.cutout.getchannel("A"), scene.background, scene.hole("box"), generator=generator
    )
    expected = {"micro": made.images[0], "copy-paste": scene.paste(scene.cutout)}
    for row, picture in expected.items():
        assert pixels(first_run / "composites" / row / f"{task.name}.png") == picture.tobytes()


def test_an_interrupted_run_continues_and_keeps_what_is_there(bench, tmp_path, first_run, monkeypatch, capsys):
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
        evaluate.main(words(bench, tmp_path))
    assert left.value.code == 130 and "stopped: composites that are made are kept" in capsys.readouterr().err
    (kept,) = (tmp_path / "composites" / "micro").glob("*.png")
    before = kept.stat().st_mtime_ns
    evaluate.main(words(bench, tmp_path))
    assert kept.stat().st_mtime_ns == before
    for path in (first_run / "composites" / "micro").glob("*.png"):
        assert (tmp_path / "composites" / "micro" / path.name).read_bytes() == path.read_bytes()

    monkeypatch.setattr(composites, "sampler", None)  # nothing is left to sample
    evaluate.main(words(bench, tmp_path))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 2}, {"mask-level": "coarse"}, {"boxes": "instances.json"}])
def test_a_folder_is_not_mixed(bench, first_run, changes):
    changes = {name: bench / value if name == "boxes" else value for name, value in changes.items()}
    with pytest.raises(
        SystemExit, match="holds composites made with .*give the same options to go on, or another --output"
    ):
        evaluate.main(words(bench, first_run, **changes))


def test_a_changed_background_is_a_failure(bench, tmp_path, capsys):
    evaluate.main(words(bench, tmp_path, limit=2))
    assert "FAILED" not in capsys.readouterr().out
    path = tmp_path / "composites" / "micro" / "cup-0001-two.png"
    with Image.open(path) as image:
        image.load()
    red, green, blue = image.getpixel((119, 0))
    image.putpixel((119, 0), (red, green, blue - 3 if blue > 2 else blue + 3))
    image.save(path)
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(bench, tmp_path, limit=2))
    assert left.value.code == "error: the background was changed outside the hole and its soft edge: micro"
    assert "**FAILED**: changed in 1 of 2, by up to 3 of 255" in capsys.readouterr().out
    found = results(tmp_path)
    expected = {"exact": False, "tasks_changed": 1, "largest_change": 3, "failed": True}
    assert found["rows"]["micro"]["background"] == expected
    assert [record["changed_pixels"] for record in found["records"]] == [0, 0, 1, 0]


def test_a_composite_of_another_size_is_named(bench, tmp_path):
    evaluate.main(words(bench, tmp_path, limit=1))
    path = tmp_path / "composites" / "micro" / "bear-0000-one.png"
    photo(30, 20).save(path)
    with pytest.raises(SystemExit, match=re.escape(f"{path} is 30x20, its background 120x90; delete it")):
        evaluate.main(words(bench, tmp_path, limit=1))


def test_video_pairs_are_compared_with_the_second_frame(bench, backbones, tmp_path):
    evaluate.main(pairs(bench, tmp_path, metrics="dino", backbones=backbones))
    found = results(tmp_path)
    assert found["tasks"] == 2 and list(found["rows"]) == ["micro", "copy-paste", "copy-paste, box emptied"]
    task = tasks.pair_tasks(bench / "pairs")[0]
    scene = task.load()
    metric = networks.Similarity("dino", networks.Backbone("dino", backbones, CPU))
    rows = ["micro", "copy-paste", "copy-paste-box-emptied"]
    crops = [scene.crop(Image.open(tmp_path / "composites" / row / f"{task.name}.png")) for row in rows]
    expected = metric(scene, crops)["dino"]
    assert [record["dino"] for record in found["records"][:3]] == pytest.approx(expected)


def test_the_ablations_are_rows_of_their_own(bench, tmp_path):
    more = ["--ablation", "cls-only", "box-mask", "--mask-level", "precise"]
    evaluate.main(words(bench, tmp_path, *more, limit=1))
    assert list(results(tmp_path)["rows"]) == ["micro", "micro, CLS only", "micro, box mask only", "copy-paste"]
    folder = tmp_path / "composites"
    made = {path.name: pixels(path / "bear-0000-one.png") for path in folder.iterdir()}
    assert len(set(made.values())) == 4


def test_cls_only_gives_the_adapter_one_token(bench):
    pipeline = DrawingPipeline.from_checkpoint(bench / "model.safetensors")
    whole = pipeline.encode_object(cutout(20, 20))
    composites.keep_cls_only(pipeline, bench)
    assert torch.equal(pipeline.encode_object(cutout(20, 20)), whole[:, :, :1]) and whole.shape[2] == 5


def test_an_adapter_of_fixed_tokens_refuses_cls_only(bench, tmp_path):
    config = micro_config()
    adapter = dataclasses.replace(
        tokens_adapter(config.encoder, layers=1, heads=2, output_width=32), kind="conv", output_tokens=3
    )
    save_checkpoint(tmp_path / "conv.safetensors", fresh_checkpoint(dataclasses.replace(config, adapter=adapter)))
    with pytest.raises(SystemExit, match="cannot do with CLS alone"):
        evaluate.main(
            words(bench, tmp_path / "out", "--ablation", "cls-only", checkpoint=tmp_path / "conv.safetensors")
        )


# --- the README's commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", readme_commands(), ids=lambda command: command[-1])
def test_the_readme_s_commands_run(bench, backbones, tmp_path, command):
    light = LIGHT if "--pairs" in command else (*LIGHT, "retrieval")
    check_readme_command(command, bench, backbones, tmp_path, "--metrics", *light)


# --- what is missing or wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", NEEDS)
def test_a_missing_network_is_a_sentence_before_any_work(bench, tmp_path, metric):
    with pytest.raises(SystemExit) as left:
        evaluate.main(words(bench, tmp_path / "out", metrics=metric, backbones=tmp_path))
    message = str(left.value.code)
    assert message.startswith("error: ") and NEEDS[metric] in message and not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_a_sentence(bench, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    with pytest.raises(
        SystemExit, match=r"'dino' needs facebook/dino-vits16 from the hub, which could not be loaded \(OSError: We"
    ):
        evaluate.main(words(bench, tmp_path / "out", metrics="dino"))


@pytest.mark.parametrize("metric", evaluation.NETWORKS)
def test_a_missing_package_is_a_sentence(bench, tmp_path, metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    some_network(metric, tmp_path)
    with pytest.raises(SystemExit, match=rf"'{metric}' needs the package 'torchvision'; pip install .*evaluate"):
        evaluate.main(words(bench, tmp_path / "out", metrics=metric, backbones=tmp_path))


@pytest.mark.parametrize("metric", evaluation.NETWORKS)
def test_a_torchvision_of_another_torch_is_a_sentence(bench, tmp_path, metric, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    some_network(metric, tmp_path)
    with pytest.raises(SystemExit, match="does not import here .RuntimeError: operator torchvision::nms .* built for"):
        evaluate.main(words(bench, tmp_path / "out", metrics=metric, backbones=tmp_path))


def some_network(metric: str, folder: Path) -> None:
    """A placeholder under the name that a metric looks for; it is never loaded."""
    path = folder / NEEDS[metric]
    path.parent.mkdir(exist_ok=True)
    torch.save({}, path)


class Trap:
    def __reduce__(self):
        return open, ("trapped", "w")


@pytest.mark.parametrize("metric", ["lpips", "fid"])
def test_a_pickle_that_would_run_code_is_refused(bench, tmp_path, metric, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NEEDS[metric]
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SystemExit, match="could not be loaded"):
        evaluate.main(words(bench, tmp_path / "out", metrics=metric, backbones=tmp_path))
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
def test_bad_input_leaves_with_a_sentence(bench, tmp_path, changes, message):
    changes = {
        name: bench / value if name in ("subjects", "boxes", "backgrounds") else value
        for name, value in changes.items()
    }
    assert message in failed(evaluate.main, words(bench, tmp_path, **changes))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--boxes", "x"], "give --subjects, --backgrounds and --boxes, or --pairs alone"),
        (["--pairs", "x", "--metrics", "retrieval"], "chooses among --subjects"),
        (["--pairs", "x", "--ablation", "box-mask"], "holes are already boxes"),
        (["--pairs", "x", "--limit", "0"], "--limit is 0"),
        (["--pairs", "x", "--checkpoint", "a b=1", "a/b=2"], "two rows have the same name"),
        (["--pairs", "x", "--metrics", "psnr"], "invalid choice"),
    ],
)
def test_wrong_options_leave_with_two(more, message):
    assert message in refused(evaluate.main, ["--output", "x", *more])
