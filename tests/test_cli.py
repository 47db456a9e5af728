import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import blend_of
from leaving import refused
from micro import cutout, fresh_checkpoint, huge_png, micro_config, micro_light, rectangle
from PIL import Image, ImageChops
from safetensors.torch import save_file

import imprint
from imprint import __version__, cli, lazy, lightnet, model_pipeline, placed, runner
from imprint import checkpoint as imprint_checkpoint
from imprint.checkpoint import load_checkpoint, save_checkpoint
from imprint.config import ImprintConfig
from imprint.job_settings import JobSettings
from imprint.lightnet import SHIPPED_LIGHT, LightConfig, LightNet, save_light
from imprint.lora import FEW_STEPS
from imprint.mask_reading import mask_to_tensor
from imprint.model import computes_in_bf16
from imprint.pipeline import ImprintPipeline
from imprint.place import is_box
from training.loop.model import with_matte

ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path, scene, micro_file) -> Path:
    """A folder with usable and unusable files.

    object.png (with alpha), plain.png and object-mask.png, background.png, hole.png, and others that cannot be used.
    """
    subject, background, hole = scene
    subject.save(tmp_path / "object.png")
    subject.convert("RGB").save(tmp_path / "plain.png")
    subject.getchannel("A").save(tmp_path / "object-mask.png")
    background.save(tmp_path / "background.png")
    hole.save(tmp_path / "hole.png")
    (tmp_path / "model.safetensors").symlink_to(micro_file)
    (tmp_path / "broken.png").write_bytes((tmp_path / "background.png").read_bytes()[:500])
    (tmp_path / "huge.png").write_bytes(huge_png(40_000, 4_000))
    Image.new("L", background.size).save(tmp_path / "empty.png")
    rectangle(60, 45, (10, 10, 30, 30)).save(tmp_path / "small.png")
    return tmp_path


def command(folder: Path, **changes) -> list[str]:
    """A `composite` command line whose hole is drawn by the model; a change to None omits an option."""
    options = {
        "object": folder / "object.png",
        "background": folder / "background.png",
        "mask": folder / "hole.png",
        "out": folder / "out.png",
        "checkpoint": folder / "model.safetensors",
        "fit": "fill",
    } | changes
    words = ["composite"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
    return words


def failure(capsys, words: list[str]) -> str:
    """The one line on stderr of a command that must fail."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("imprint: error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    return err


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# --- composite -------------------------------------------------------------------------------------------------------


def test_composite_writes_the_picture_and_says_where(files, capsys, micro):
    assert cli.main(command(files)) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(str(files / 'out.png'))} \(\d+\.\d s\)\n", out)
    assert "3/3" in err  # the progress bar over the steps
    within = blend_of(Image.open(files / "hole.png"), micro).numpy()
    made, before = pixels(files / "out.png"), pixels(files / "background.png")
    assert made.shape == before.shape
    assert np.array_equal(made[~within], before[~within])
    assert not np.array_equal(made[within], before[within])


def test_the_seed_decides(files):
    pictures = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c"), (None, "d")):
        assert cli.main(command(files, seed=seed, out=files / f"{name}.png")) == 0
        pictures.append(pixels(files / f"{name}.png"))
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[0], pictures[3])  # by default 0


def test_steps_are_fewer_of_another_scheduler_unless_they_are_given(files, monkeypatch):
    """With --steps, or a checkpoint other than the shipped one, the scheduler is Euler's; otherwise, and with --fast,
    DPM++ 2M. The LoRA is for the two steps of --fast alone, without guidance.

    Without shadows, since --fast also changes the light network.
    """
    own = load_checkpoint(files / "model.safetensors").config.sampling.steps
    shipped = files / "shipped.safetensors"
    shipped.write_bytes((files / "model.safetensors").read_bytes())
    monkeypatch.setattr(imprint_checkpoint, "SHIPPED", shipped)
    seen, schedulers, merged = [], [], []
    monkeypatch.setattr(ImprintPipeline, "progress_bar", spy(ImprintPipeline.progress_bar, seen))
    finish, merge = ImprintPipeline.finish, lazy.merge_lora
    monkeypatch.setattr(lazy, "merge_lora", lambda unet, path: merged.append((path, len(seen))) or merge(unet, path))
    monkeypatch.setattr(
        ImprintPipeline,
        "finish",
        lambda pipeline, *given: schedulers.append(type(pipeline.scheduler).__name__) or finish(pipeline, *given),
    )
    for name, changes in (
        ("plain", []),
        ("eight", ["--steps", "8"]),
        ("fast", ["--fast"]),
        ("fast-eight", ["--fast", "--steps", "8"]),
        ("named", ["--checkpoint", str(shipped)]),
        ("other", ["--checkpoint", str(files / "model.safetensors")]),
        ("fast-other", ["--fast", "--checkpoint", str(files / "model.safetensors")]),
        ("fast-guided", ["--fast", "--guidance", "2"]),
        ("fast-unguided", ["--fast", "--guidance", "1"]),
        ("fast-lora", ["--fast", "--lora", str(FEW_STEPS)]),
        ("fast-two", ["--fast", "--lora", str(FEW_STEPS), "--steps", "2"]),
    ):
        words = command(files, checkpoint=None, out=files / f"{name}.png", dtype="fp32", shadow=0)
        assert cli.main([*words, *changes]) == 0
    assert [call["total"] for call in seen] == [8, 8, 2, 8, 8, own, 4, 4, 2, 4, 2] and own != 8
    assert merged == [(FEW_STEPS, drawn) for drawn in (2, 8, 9, 10)]
    solver, euler = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"
    assert schedulers == [solver, euler, solver, solver, solver, euler, *[solver] * 5]
    assert np.array_equal(pixels(files / "fast.png"), pixels(files / "fast-two.png"))
    assert np.array_equal(pixels(files / "plain.png"), pixels(files / "fast-eight.png"))
    assert not np.array_equal(pixels(files / "plain.png"), pixels(files / "eight.png"))


def test_loras_are_read_before_any_object_is_placed(files, capsys):
    words = command(files, checkpoint=None, fit="contain")
    assert cli.main([*words, "--lora", str(FEW_STEPS)]) == 0
    capsys.readouterr()
    said = failure(capsys, [*words, "--lora", str(FEW_STEPS), "--lora", str(files / "absent.safetensors")])
    assert "absent.safetensors: no such file" in said
    assert "holds 'adapter." in failure(capsys, [*words, "--lora", str(files / "model.safetensors")])


def test_the_lora_of_fast_is_read_when_the_model_draws(files, monkeypatch, capsys):
    monkeypatch.setattr(lazy, "FEW_STEPS", files / "absent.safetensors")
    words = command(files, checkpoint=None, out=files / "made.png")
    assert "absent.safetensors: no such file" in failure(capsys, [*words, "--fast"])
    assert cli.main([*words, "--fast", "--fit", "contain"]) == 0


@pytest.mark.parametrize(
    ("words", "able", "whole", "light"),
    [
        ([], True, torch.float32, torch.float32),
        ([], False, torch.float32, torch.float32),
        (["--fast"], True, torch.bfloat16, torch.bfloat16),
        (["--fast"], False, torch.float32, torch.float32),
        (["--fast", "--dtype", "fp32"], True, torch.float32, torch.float32),
        (["--dtype", "bf16"], True, torch.bfloat16, torch.bfloat16),
        (["--dtype", "bf16"], False, torch.bfloat16, torch.float32),
        (["--dtype", "fp16"], True, torch.float16, torch.float32),
    ],
)
def test_half_precision_is_used_where_the_processor_computes_so(files, monkeypatch, words, able, whole, light):
    seen, call, relight = [], ImprintPipeline.__call__, placed.relight
    for module in (lazy, lightnet):
        monkeypatch.setattr(module, "computes_in_bf16", lambda: able)
    monkeypatch.setattr(
        ImprintPipeline,
        "__call__",
        lambda pipeline, **given: seen.append(pipeline.unet.dtype) or call(pipeline, **given),
    )
    other = micro_light()  # half precision takes minutes where the processor does not compute so

    def spied(net, *given):
        seen.append((net.dtype, net.mirrors))
        return relight(other, *given)

    monkeypatch.setattr(placed, "relight", spied)
    for fit in ("contain", "fill"):
        assert cli.main([*command(files, device="cpu", steps=1), *words, "--fit", fit]) == 0
    assert seen == [(light, "--fast" not in words), whole]


def spy(method, calls: list[dict]):
    """Wrap the method, and record the named arguments of its calls."""

    def watched(*args, **named):
        calls.append(named)
        return method(*args, **named)

    return watched


def test_a_mask_or_the_alpha_channel(files):
    cli.main(command(files, out=files / "alpha.png"))
    masked = command(files, object=files / "plain.png", object_mask=files / "object-mask.png", out=files / "masked.png")
    assert cli.main(masked) == 0
    assert np.array_equal(pixels(files / "alpha.png"), pixels(files / "masked.png"))


def test_several_views(files):
    cutout(30, 60, seed=5).save(files / "second.png")
    cli.main(command(files, out=files / "one.png"))
    assert cli.main(command(files, object=[files / "object.png", files / "second.png"], out=files / "two.png")) == 0
    assert not np.array_equal(pixels(files / "one.png"), pixels(files / "two.png"))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 1},
        {"guidance": 1},
        {"context": 3},
        {"resolution": 32},
        {"feather": 0},
        {"feather_in": 9},
        {"feather": 12, "blend": "multiband"},
        {"colour_match": 1},
        {"dtype": "bf16", "steps": 1},
    ],
)
def test_every_setting_counts(files, changes):
    plain = {"feather": 12} if "blend" in changes else {}
    cli.main(command(files, out=files / "plain-out.png", **plain))
    assert cli.main(command(files, device="cpu", **changes)) == 0
    assert not np.array_equal(pixels(files / "plain-out.png"), pixels(files / "out.png"))


def test_the_matte_may_be_left_out(files):
    """A model that sees the object nowhere leaves the photo unchanged, unless the whole hole is asked for."""
    blind = with_matte(load_checkpoint(files / "model.safetensors"), 2)
    blind.parts["unet"]["conv_out.bias"][4:] = -9.0
    save_checkpoint(files / "blind.safetensors", blind)
    cli.main(command(files, checkpoint=files / "blind.safetensors"))
    assert np.array_equal(pixels(files / "out.png"), pixels(files / "background.png"))
    cli.main([*command(files, checkpoint=files / "blind.safetensors"), "--no-matte"])
    assert not np.array_equal(pixels(files / "out.png"), pixels(files / "background.png"))


def test_a_blend_mask_of_its_own(files, capsys):
    tight = rectangle(120, 90, (50, 40, 60, 50))
    tight.save(files / "tight.png")
    cli.main(command(files, feather=0))
    whole, background = pixels(files / "out.png"), pixels(files / "background.png")
    cli.main(command(files, feather=0, blend_mask=files / "tight.png"))
    inside = np.asarray(tight) > 0
    assert np.array_equal(pixels(files / "out.png")[inside], whole[inside])
    assert np.array_equal(pixels(files / "out.png")[~inside], background[~inside])
    lines = [job(out="a.png", blend_mask="tight.png"), job(out="b.png", blend_mask=None)]
    assert batch(files, lines, "--feather", "0") == 0
    assert np.array_equal(pixels(files / "a.png"), pixels(files / "out.png"))
    assert np.array_equal(pixels(files / "b.png"), whole)
    capsys.readouterr()
    assert "small.png is 60x45" in failure(capsys, command(files, blend_mask=files / "small.png"))


def test_a_small_hole_is_enlarged_and_named(tmp_path, files):
    rectangle(120, 90, (60, 40, 62, 43)).save(files / "dot.png")
    done = process(tmp_path, *command(files, mask=files / "dot.png"))
    assert done.returncode == 0 and "the hole of 2x3 pixels is too small" in done.stderr


def test_other_formats_and_new_folders(files):
    out = files / "new" / "folder" / "out.jpg"
    assert cli.main(command(files, out=out)) == 0
    assert Image.open(out).format == "JPEG" and [path.name for path in out.parent.iterdir()] == ["out.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"object": "absent.png"}, "absent.png: no such file"),
        ({"background": "broken.png"}, "broken.png cannot be read as a picture"),
        ({"mask": "huge.png"}, "huge.png is 40000x4000.*megapixels"),
        ({"object": "model.safetensors"}, "cannot be read as a picture"),
        ({"mask": "empty.png"}, "mask of the hole is empty"),
        ({"mask": "small.png"}, "background.png is 120x90, but its mask .*small.png is 60x45"),
        ({"object": "plain.png"}, "no mask and no transparency"),
        ({"object": "plain.png", "object_mask": "small.png"}, "plain.png is 50x40, but its mask .*small.png is 60x45"),
        ({"object": "background.png", "object_mask": "empty.png"}, "object's mask is empty"),
        ({"object": ["object.png", "object.png"], "object_mask": "object-mask.png"}, "2 view.*1 mask"),
        ({"checkpoint": "absent.safetensors"}, "absent.safetensors: no such file"),
        ({"checkpoint": "background.png"}, "not a safetensors file"),
        ({"out": "out.txt"}, "'.txt' is not a picture format"),
        ({"out": "out"}, "is not a picture format"),
        ({"out": "object.png/out.png"}, "cannot be written"),
        ({"out": "."}, "is a folder; give the name of a file in it"),
        ({"object": "plain.png"}, "--cutout auto"),
        (
            {"out": "background.png"},
            "background.png is also an input .*; give the picture another name, or --overwrite",
        ),
    ],
)
def test_unusable_files(files, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    assert re.search(message, failure(capsys, command(Path(), **changes)))
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "seed is"),
        ({"context": "nan"}, "context is nan"),
        ({"feather_in": -2}, "feather inwards is -2"),
        ({"device": "cuda"}, "no 'cuda' device"),
    ],
)
def test_unusable_settings(files, capsys, changes, message):
    """The pipeline's own messages (all are in test_pipeline.py) and the command line's."""
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert message in failure(capsys, command(files, **changes)).replace("(", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["paint"],
        ["composite"],
        ["composite", "--object", "a.png"],
        ["demo", "--steps", "many"],
        ["demo", "--seed", "1.5"],
        ["demo", "--device", "tpu"],
        ["demo", "--dtype", "int8"],
        ["batch"],
        ["info"],
        ["info", "a", "b"],
        ["demo", "--stps", "3"],
    ],
)
def test_wrong_command_lines_leave_with_two(words):
    refused(cli.main, words)


def test_bad_input_fails_before_the_model_is_loaded(files, capsys, monkeypatch):
    monkeypatch.setattr(lazy, "open_pipeline", lambda options: pytest.fail("loaded"))
    failure(capsys, command(files, object=files / "absent.png"))
    failure(capsys, command(files, out=files / "out.txt"))
    failure(capsys, command(files, seed=-1))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")])
def test_too_little_memory_is_one_line_and_the_other_jobs_are_made(files, capsys, monkeypatch, error):
    real, calls = ImprintPipeline.__call__, []

    def once(*args, **named):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return real(*args, **named)

    monkeypatch.setattr(ImprintPipeline, "__call__", once)
    assert batch(files, [job(out="a.png"), job(out="b.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "1 written, 0 skipped, 1 failed\n" and "line 1: there is not enough memory" in err


def test_without_diffusers_the_extra_is_named(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as Python marks what cannot be imported
    monkeypatch.delitem(sys.modules, "imprint.pipeline")
    assert "pip install 'imprint[pipeline]'" in failure(capsys, command(files))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"resolution": 100}, "resolution is 100"),
        ({"feather": -1}, "feather is -1"),
        ({"checkpoint": "broken.png"}, "is not a safetensors file"),
    ],
)
def test_what_only_drawing_needs_is_also_checked_for_a_placed_object(files, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(files)
    assert message in failure(capsys, command(files, **{"fit": "contain"} | changes))


def test_ctrl_c_leaves_silently(files, capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lazy, "open_pipeline", interrupt)
    assert cli.main(command(files)) == 130
    assert capsys.readouterr() == ("", "")
    assert not (files / "out.png").exists()


# --- batch -----------------------------------------------------------------------------------------------------------


def job(**changes) -> dict:
    values = {"object": "object.png", "background": "background.png", "mask": "hole.png", "out": "out.png"}
    values |= {"seed": 0, "fit": "fill"}
    return {key: value for key, value in (values | changes).items() if value is not ...}


def batch(files: Path, lines: list, *words: str) -> int:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (files / "jobs.jsonl").write_text(text + "\n", encoding="utf-8")
    return cli.main(["batch", str(files / "jobs.jsonl"), "--checkpoint", str(files / "model.safetensors"), *words])


def test_batch_makes_what_composite_makes(files, capsys, monkeypatch):
    loads, load = [], lazy.open_pipeline
    monkeypatch.setattr(lazy, "open_pipeline", lambda options: loads.append(1) or load(options))
    monkeypatch.chdir(files.parent)  # paths are relative to the jobs' folder and not to this one
    lines = [
        job(out="made/a.png", seed=3),
        "",
        job(out="made/b.png", object="plain.png", object_mask="object-mask.png", seed=...),
        job(out="made/c.png", object=["object.png", "plain.png"], object_mask=["object-mask.png"] * 2),
        job(out=str(files / "made" / "ü.png"), object_mask=None),
    ]
    assert batch(files, lines) == 0
    out, err = capsys.readouterr()
    assert out == "4 written, 0 skipped, 0 failed\n"
    assert "4/4" in err and "3/3" not in err  # one bar, over the jobs
    assert loads == [1]
    for seed, name in ((3, "a"), (0, "b")):
        cli.main(command(files, seed=seed))
        assert np.array_equal(pixels(files / "out.png"), pixels(files / "made" / f"{name}.png"))
    assert sorted(path.name for path in (files / "made").iterdir()) == ["a.png", "b.png", "c.png", "ü.png"]


BAD_LINES = {
    "{": "not JSON",
    "[" * 100_000: "not JSON",
    "3": "is int, not an object",
    '["object"]': "is list",
    json.dumps(job(out=...)): "missing keys: out",
    json.dumps(job(stepz=3)): "unknown keys: stepz",
    json.dumps(job(object=3)): "'object' is 3",
    json.dumps(job(object=[])): "'object' is []",
    json.dumps(job(object="")): "'object' is ''",
    json.dumps(job(out=None)): "'out' is None",
    json.dumps(job(background=["a.png", "b.png"])): "path of one file",
    json.dumps(job(object_mask=7)): "'object_mask' is 7",
    json.dumps(job(object_mask=["a.png", "b.png"])): "1 view(s) of the object and 2 mask(s)",
    json.dumps(job(blend_mask=7)): "'blend_mask' is 7",
    json.dumps(job(blend_mask=["a.png", "b.png"])): "path of one file",
    json.dumps(job(blend_mask="small.png")): "make them the same size",
    json.dumps(job(seed=1.5)): "seed is 1.5",
    json.dumps(job(seed=True)): "seed is True",
    json.dumps(job(seed="1")): "seed is '1'",
    json.dumps(job(seed=-1)): "seed is -1",
    json.dumps(job(object="absent.png")): "absent.png: no such file",
    json.dumps(job(background="huge.png")): "huge.png is 40000x4000",
    json.dumps(job(background="broken.png")): "broken.png cannot be read",
    json.dumps(job(mask="empty.png")): "mask of the hole is empty",
    json.dumps(job(mask="small.png")): "make them the same size",
    json.dumps(job(object="plain.png")): "no mask and no transparency",
    json.dumps(job(out="bad.txt")): "not a picture format",
    json.dumps(job(object="a\0b.png")): "'object' is 'a\\x00b.png'",
}


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\n\x00IHDR", json.dumps([job(), job()], indent=1).encode()])
def test_a_file_without_jobs_is_one_sentence(files, capsys, content):
    (files / "jobs.jsonl").write_bytes(content)
    assert cli.main(["batch", str(files / "jobs.jsonl")]) == 2
    err = capsys.readouterr().err
    assert "jobs.jsonl is no file of jobs: none of its" in err and err.count("\n") == 1


def test_layers_need_a_name(files, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command(files), "--layers", ""])
    assert "argument --layers: the name is empty; give a folder" in capsys.readouterr().err


def test_batch_goes_on_past_bad_lines_and_reports_each(files, capsys):
    bad = [
        json.dumps(json.loads(line) | {"out": f"bad-{n}.png"})
        if line.startswith("{") and line != "{" and '"out": "out.png"' in line
        else line
        for n, line in enumerate(BAD_LINES)
    ]
    lines = [job(out="first.png"), *bad, job(out="first.png"), job(out="last.png")]
    assert batch(files, lines) == 2
    out, err = capsys.readouterr()
    reports = dict(re.findall(r"imprint: error: [^\n]*jobs\.jsonl, line (\d+): (.*)", err))
    for number, message in enumerate(BAD_LINES.values(), start=2):
        assert message in reports.pop(str(number))
    assert "is already written by line 1" in reports.pop(str(len(lines) - 1))
    assert not reports
    assert out == f"2 written, 0 skipped, {len(BAD_LINES) + 1} failed\n"
    assert (files / "first.png").is_file() and (files / "last.png").is_file()
    assert not list(files.glob("bad*")) and "Traceback" not in err


def test_batch_reads_a_damaged_checkpoint_once(files, capsys, monkeypatch, micro_file):
    """Each object that is to be drawn is reported; those that are placed need no model."""
    data = bytearray(micro_file.read_bytes())
    data[-1] ^= 1
    (files / "damaged.safetensors").write_bytes(data)
    opened, read = [], lazy.LazyPipeline._opened
    monkeypatch.setattr(lazy.LazyPipeline, "_opened", lambda pipeline: opened.append(1) or read(pipeline))
    job = {"object": "object.png", "background": "background.png", "mask": "hole.png"}
    fits = ("fill", "contain", "fill")
    lines = [json.dumps(job | {"fit": fit, "out": f"{index}.png"}) for index, fit in enumerate(fits)]
    (files / "jobs.jsonl").write_text("\n".join(lines))
    assert cli.main(["batch", str(files / "jobs.jsonl"), "--checkpoint", str(files / "damaged.safetensors")]) == 2
    assert capsys.readouterr().err.count("does not match its checksum") == 2 and len(opened) == 1
    assert [(files / f"{index}.png").exists() for index in range(3)] == [False, True, False]


@pytest.mark.parametrize("settings", [{}, {"fast": True}, {"fast": True, "dtype": "bf16"}, {"dtype": "fp16"}])
@pytest.mark.parametrize("first", ["light", "model"])
def test_placed_and_drawn_objects_share_one_light_network(micro_file, monkeypatch, settings, first):
    read, loads = lazy.load_light, []
    for module in (lazy, model_pipeline):
        monkeypatch.setattr(module, "load_light", lambda: loads.append(1) or read())
    pipeline = lazy.open_pipeline(JobSettings(micro_file, device="cpu", **settings))
    getattr(pipeline, first)
    net, weight = pipeline.model.light, pipeline.light.stem.weight
    assert net is pipeline.light is pipeline.model._light_net() and loads == [1]
    fast = "fast" in settings
    assert net.mirrors != fast and weight.is_contiguous(memory_format=torch.channels_last) == fast
    half = fast and computes_in_bf16()
    assert weight.dtype == (torch.bfloat16 if half else torch.float32)  # never what this processor is slow in


def test_batch_skips_what_is_written(files, capsys, monkeypatch):
    lines = [job(out="a.png"), job(out="b.png")]
    assert batch(files, lines[:1]) == 0
    stamp = (files / "a.png").stat().st_mtime_ns
    assert batch(files, lines) == 0
    assert capsys.readouterr().out.endswith("1 written, 1 skipped, 0 failed\n")
    assert (files / "a.png").stat().st_mtime_ns == stamp
    with monkeypatch.context() as patched:
        patched.setattr(lazy, "open_pipeline", lambda options: pytest.fail("loaded for nothing"))
        assert batch(files, lines) == 0
    assert capsys.readouterr().out == "0 written, 2 skipped, 0 failed\n"
    assert batch(files, lines, "--overwrite") == 0
    assert capsys.readouterr().out == "2 written, 0 skipped, 0 failed\n"
    assert (files / "a.png").stat().st_mtime_ns > stamp


def test_batch_stopped_in_the_middle_goes_on_there(files, capsys, monkeypatch):
    run_job, done = runner.run_job, []

    def stop_at_the_second(*args):
        if done:
            raise KeyboardInterrupt
        done.append(run_job(*args))

    lines = [job(out=f"{name}.png", seed=5) for name in "abc"]
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run_job", stop_at_the_second)
        assert batch(files, lines) == 130
    assert [(files / f"{name}.png").exists() for name in "abc"] == [True, False, False]
    capsys.readouterr()
    assert batch(files, lines) == 0
    assert capsys.readouterr().out == "2 written, 1 skipped, 0 failed\n"
    assert np.array_equal(pixels(files / "a.png"), pixels(files / "c.png"))


def test_batch_of_a_bad_file(files, capsys):
    assert "cannot be read" in failure(capsys, ["batch", str(files / "absent.jsonl")])
    assert "cannot be read" in failure(capsys, ["batch", str(files)])
    (files / "empty.jsonl").write_text("\n\n")
    assert cli.main(["batch", str(files / "empty.jsonl")]) == 0
    assert capsys.readouterr().out == "0 written, 0 skipped, 0 failed\n"
    assert cli.main(["batch", str(files / "background.png")]) == 2  # lines of anything
    assert "Traceback" not in capsys.readouterr().err
    (files / "jobs.jsonl").write_text(json.dumps(job()))
    words = ["batch", str(files / "jobs.jsonl"), "--checkpoint", str(files / "background.png")]
    assert "not a safetensors file" in failure(capsys, words)


# --- info ------------------------------------------------------------------------------------------------------------


def test_info(micro_file, capsys, micro):
    assert cli.main(["info", str(micro_file)]) == 0
    text = capsys.readouterr().out
    assert "checksum verified" in text and "unet.widths" in text
    checkpoint = load_checkpoint(micro_file)
    for part, tensors in checkpoint.parts.items():
        row = next(line for line in text.splitlines() if line.startswith(part + " ")).split()
        count = sum(tensor.numel() for tensor in tensors.values())
        assert row[1:] == [f"{len(tensors):,}", f"{count:,}", f"{4 * count:,}", "float32"]


def test_info_json(micro_file, capsys, micro):
    assert cli.main(["info", str(micro_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format_version"] == 1 and found["checksum"] == "verified"
    assert set(found["parts"]) == {"encoder", "adapter", "unet", "vae"}
    assert ImprintConfig.from_json(json.dumps(found["config"])) == micro


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_info_that_nobody_reads_is_fine_and_on_a_full_disk_a_sentence(micro_file, words, monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["info", str(micro_file), *words]) == 0
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert cli.main(["info", str(micro_file), *words]) == 2
    monkeypatch.undo()
    assert re.search("cannot be printed .*No space left", capfd.readouterr().err) or not os.path.exists("/dev/full")


def test_info_of_mixed_precision_and_of_damaged_files(tmp_path, micro_file, capsys):
    checkpoint = fresh_checkpoint(micro_config(), with_vae=False)
    checkpoint.parts["adapter"]["null_embedding"] = checkpoint.parts["adapter"]["null_embedding"].half()
    save_checkpoint(tmp_path / "mixed.safetensors", checkpoint)
    assert cli.main(["info", str(tmp_path / "mixed.safetensors"), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert parts["adapter"]["dtypes"] == ["float16", "float32"] and "vae" not in parts
    data = bytearray(micro_file.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(bytes(data))
    assert "checksum" in failure(capsys, ["info", str(tmp_path / "damaged.safetensors")])
    assert "no such file" in failure(capsys, ["info", str(tmp_path / "absent")])


def test_info_of_a_light_network(tmp_path, capsys):
    path = tmp_path / "light.safetensors"
    net = LightNet(LightConfig(resolution=64, widths=(8, 8, 32), blocks=1))
    save_light(path, net)
    assert cli.main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "light network, which gives a placed object its light and shadow in a square of 64 x 64 px" in text
    row = next(line for line in text.splitlines() if line.startswith("light ")).split()
    count = sum(tensor.numel() for tensor in net.state_dict().values())
    assert row[1:] == [f"{len(net.state_dict()):,}", f"{count:,}", f"{2 * count:,}", "float16"]
    assert cli.main(["info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "imprint-light" and found["config"]["widths"] == [8, 8, 32]
    assert found["parts"]["light"]["parameters"] == count


def test_info_of_a_lora(tmp_path, capsys):
    path = tmp_path / "lora.safetensors"
    parts = {"lora_down.weight": torch.zeros(4, 3, 3, 3), "lora_up.weight": torch.zeros(5, 4, 1, 1)}
    layer = {f"lora_unet_conv_in.{name}": tensor.half() for name, tensor in parts.items()}
    alpha = {"lora_unet_conv_in.alpha": torch.tensor(4.0)}
    save_file(layer | alpha, path)
    assert cli.main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"{path}: LoRA, which changes layers of a checkpoint's UNet\n" in text and "checksum" not in text
    row = next(line for line in text.splitlines() if line.startswith("unet ")).split()
    assert row[1:] == ["3", "129", "260", "float16,", "float32"]
    assert cli.main(["info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "lora" and found["config"] == {"layers": 1, "ranks": [4]}
    save_file(layer, path)
    assert "of the LoRA's layer 'conv_in', alpha is missing" in failure(capsys, ["info", str(path)])
    save_file(layer | {"lora_unet_conv_in.lora_down.weight": torch.tensor(0.0), **alpha}, path)
    assert "alpha (), down (), up (5, 4, 1, 1) do not belong together" in failure(capsys, ["info", str(path)])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["info", "."], "an Imprint checkpoint or a light network"),
        (["convert", ".", "new.safetensors"], "a released checkpoint"),
        (command(Path(), checkpoint="."), "an Imprint checkpoint"),
        (command(Path(), object="."), "a picture"),
    ],
)
def test_a_folder_in_place_of_a_file_is_said(files, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(files)
    assert f". is a folder; give the path of {expected} (" in failure(capsys, words)


def test_wrong_files_of_info_and_convert_are_said(tmp_path, files, micro_file, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert "; give an Imprint checkpoint or a light network, or" in failure(capsys, ["info", "background.png"])
    Path("text.safetensors").write_text("some text")
    words = ["convert", "text.safetensors", "new.safetensors"]
    assert "not a safetensors file (or only its first bytes); give a released checkpoint, or" in failure(capsys, words)
    save_file({"a": torch.zeros(2)}, "other.safetensors")
    assert "not an Imprint checkpoint; give one, or make one of" in failure(capsys, ["info", "other.safetensors"])
    for path in (micro_file, SHIPPED_LIGHT):
        words = ["convert", str(path), "new.safetensors"]
        assert "is Imprint's own; it is used as it is, without converting it" in failure(capsys, words)
    assert "is a folder; give the name of a file in it" in failure(capsys, ["convert", "other.safetensors", "."])


def test_a_background_that_hides_the_object_is_said(tmp_path, files, capsys, caplog):
    """Its transparency is kept, so that the object cannot be seen there."""
    picture, hole = (Image.open(files / name) for name in ("background.png", "hole.png"))
    for name, alpha, said in (("island", hole, False), ("window", ImageChops.invert(hole), True)):
        picture.putalpha(alpha)
        picture.save(files / f"{name}.png")
        caplog.clear()
        assert cli.main(command(files, background=files / f"{name}.png")) == 0
        assert ("give a background that is opaque there" in caplog.text) == said


def test_a_light_network_in_place_of_a_checkpoint_is_said(tmp_path, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    words = command(Path(), checkpoint=SHIPPED_LIGHT)
    assert "is a safetensors file of format 'imprint-light' but not an Imprint checkpoint" in failure(capsys, words)


# --- the installed command -------------------------------------------------------------------------------------------


def process(folder: Path, *words: str, timeout: float = 120) -> subprocess.CompletedProcess:
    """`python -m imprint` in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'imprint'; import runpy; "
    code += "runpy.run_module('imprint', run_name='__main__', alter_sys=False)"
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_a_placed_object_needs_neither_diffusers_nor_transformers(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom imprint.cli import main\nassert main(['demo']) == 0\n"
    code += "print(sorted({'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "imprint-demo.png").is_file() and done.stdout.endswith("\n[]\n")


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom imprint.cli import main\ntry: main(['--help'])\n"
    code += (
        "except SystemExit: print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 5
    assert all(name in done.stdout for name in ("demo", "composite", "batch", "info"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import imprint; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_completion_lists_what_is_imported_only_when_used():
    assert set(imprint.__all__) <= set(dir(imprint)) and "__version__" in dir(imprint)


@pytest.mark.parametrize("alone", [True, False])
def test_a_process_of_its_own_imports_only_what_it_uses(tmp_path, alone):
    """Later imports still work; if `main` is called by other code, it imports installed packages as usual."""
    words = ["demo", "--fit", "fill", "--steps", "1", "--out", str(tmp_path / "out.png")]
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from imprint.cli import main
sys.argv = ["imprint", *{words!r}]
assert main({None if alone else words!r}) == 0
print(sorted({{"scipy.ndimage", "scipy.stats", "torch"}} & set(sys.modules)))
import scipy.stats
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = ["scipy.ndimage", "torch"] if alone else ["scipy.ndimage", "scipy.stats", "torch"]
    assert done.stdout.splitlines()[-1] == str(found)


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"imprint {__version__}\n"


def test_demo(tmp_path):
    """The README's first command, with the shipped checkpoint."""
    done = process(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "imprint-demo.png"
    assert re.fullmatch(rf"{re.escape(str(path))} \(\d+\.\d s\)\n", done.stdout)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    background, box = cli.SAMPLES / "room.jpg", Image.open(cli.SAMPLES / "box.png").getbbox()
    made, before = Image.open(path), Image.open(background)
    assert made.size == before.size
    change = pixels(path).astype(int) - pixels(background)
    left, top, right, bottom = box
    assert (np.abs(change[top:bottom, left:right]) > 4).mean() > 0.5  # the object
    change[top:bottom, left:right] = 0
    assert change.max() == 0 and change.min() < 0  # and its shadow alone
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def test_errors_of_the_process(tmp_path):
    done = process(tmp_path, "info", "absent.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imprint: error: absent.safetensors: no such file") and done.stderr.count("\n") == 1


def test_the_demo_s_pictures_are_usable():
    subject, background, box = (Image.open(cli.SAMPLES / name) for name in ("duck.webp", "room.jpg", "box.png"))
    assert subject.has_transparency_data and background.size == box.size
    assert 0 < float((mask_to_tensor(box) > 0.5).float().mean()) < 0.5 and is_box(mask_to_tensor(box)[0])
