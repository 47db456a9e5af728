"""Settings from flags, files and presets; former names; and the rooms of `training`, whose imports go one way."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from leaving import refused

from imprint.errors import ImprintError
from training import arguments
from training.arguments import flattened
from training.data.settings import Limits, Prepare
from training.light.settings import PrepareLight, Relight
from training.measure.settings import Benchmark, Evaluate, EvaluateLight
from training.settings import STAGES, Start, Train, TuneDecoder, parse_train

ROOT = Path(__file__).parents[1]
GIVEN = ["identity", "--output", "runs/x", "--cutouts", "c", "--photos", "p"]


def test_the_preset_fills_what_is_not_given():
    settings = parse_train(GIVEN)
    stage = STAGES["identity"]
    assert (settings.images, settings.batch, settings.lr) == (stage.images, stage.batch, stage.learning_rate)
    assert settings == Train.of("identity", output=Path("runs/x"), cutouts="c", photos="p")


def test_a_file_is_read_and_flags_win(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch: 7\nlr-warmup: 5\nresolutions: ['64:2', [96, 1]]\ncompile: default\ntrain_all: true\n")
    settings = parse_train([*GIVEN, "--config", str(file), "--batch", "9", "--no-train-all"])
    assert settings.batch == 9 and settings.lr_warmup == 5 and not settings.train_all
    assert settings.resolutions == ((64, 2.0), (96, 1)) and settings.compile == "default"


def test_one_value_alone_is_a_list_of_one(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("resolutions: 96\n")
    assert parse_train([*GIVEN, "--config", str(file)]).resolutions == ((96, 1.0),)
    file.write_text("teachers: first.safetensors\n")
    assert arguments.read_file(file, Relight, {}) == {"teachers": (Path("first.safetensors"),)}
    file.write_text("teachers:\n")
    with pytest.raises(ImprintError, match=r"teachers is \[None\] \(Path was expected\)"):
        arguments.read_file(file, Relight, {})


def test_a_mix_is_a_table_or_words(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("mix: {still: 0.4, piece: 0.6}\n")  # its former name as well
    assert parse_train([*GIVEN, "--config", str(file)]).mix == (("still", 0.4), ("patch", 0.6))
    assert parse_train([*GIVEN, "--mix", "video", "patch:0.5"]).mix == (("video", 1.0), ("patch", 0.5))
    assert parse_train(GIVEN).mix == tuple(STAGES["identity"].mix.items())
    warmup = "warmup --output x --captions c --text-encoder t --init i".split()
    assert parse_train(warmup).mix == () and "takes no --mix" in refused(parse_train, [*warmup, "--mix", "still"])


def test_what_was_given_in_a_file_and_by_flags_is_kept(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch: 7\nresolutions: ['64:2', 96]\n")
    settings = parse_train([*GIVEN, "--config", str(file), "--batch", "9"])
    assert settings.origin.config == str(file)
    assert settings.origin.from_config == {"batch": 7, "resolutions": [[64, 2.0], [96, 1.0]]}
    flags = {"stage": "identity", "output": "runs/x", "cutouts": "c", "photos": "p"}
    assert settings.origin.from_flags == flags | {"batch": 9}
    assert parse_train(GIVEN).origin == arguments.Origin(None, {}, flags)


def test_a_run_s_own_options_are_read_again(tmp_path):
    settings = parse_train([*GIVEN, "--resolutions", "64:2", "96", "--images", "12", "--device", "cpu"])
    described = flattened(settings) | {
        "processes": 2,
        "device": "NVIDIA H200",
        "steps": 3,
        "model": {},
        "mix": dict(settings.mix),
    }
    file = tmp_path / "options.json"
    file.write_text(json.dumps(described))
    assert parse_train(["--config", str(file), "--device", "cpu"]) == settings


def test_former_names_work_with_a_warning(tmp_path, capsys):
    old = "views --output runs/x --views c --photos p --warmup 5 --sides 64 --view-side 80 --config tiny".split()
    assert parse_train(old) == parse_train(
        [*GIVEN, "--lr-warmup", "5", "--resolutions", "64", "--cutout-resolution", "80"]
    )
    warnings = capsys.readouterr().err.splitlines()
    names = ("stage 'views'", "--views", "--warmup", "--sides", "--view-side", "--config tiny")
    assert len(warnings) == len(names) and all(any(f" {name} is now" in line for line in warnings) for name in names)
    file = tmp_path / "options.json"
    file.write_text(
        json.dumps({"stage": "views", "views": "c", "photos": "p", "output": "runs/x", "warmup": 5, "config": "tiny"})
    )
    assert parse_train(["--config", str(file)]) == parse_train([*GIVEN, "--lr-warmup", "5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach: 7", "has 'bach', which is not an option"),
        ("batch: many", "batch is 'many'"),
        ("batch: 2.5", "batch is 2.5 (int was expected)"),
        ("batch: true", "int was expected"),
        ("compile: fast", "one of default"),
        ("train_all: 1", "true or false was expected"),
        (
            "mix: [[mirror, 1]]",
            "--mix is (('mirror', 1),); it must be shares of 0 or more of rendered, still, video, patch",
        ),
        ("mix: {mirror: 1}", "mirror:1 is not a kind of pair with a share"),
        ("a: " + "[" * 5000, "cannot be read"),
        ("- batch", "'option: value' lines were expected"),
        ("batch: [", "cannot be read"),
        ("batch: 0", "--batch is 0; it must be a whole number of 1 or more"),
        ("time_limit: .nan", "--time-limit is nan; it must be a finite number"),
        ("resolutions: [[96, .inf]]", "--resolutions is inf; it must be a finite number"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert message in refused(parse_train, [*GIVEN, "--config", str(file)])


def test_the_warm_up_ends_before_the_run(capsys):
    assert parse_train([*GIVEN, "--images", "64"]).lr_warmup == 32
    assert parse_train(GIVEN).lr_warmup == STAGES["identity"].lr_warmup
    with pytest.raises(SystemExit):
        parse_train([*GIVEN, "--images", "64", "--lr-warmup", "100"])
    assert "--lr-warmup is 100, but the run ends after 64 pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--distill-guidance 2", "--distill-guidance needs --init"),
        ("--distill-steps 2", "--distill-steps needs --init"),
        ("--distill-steps 0", "--distill-steps is 0; it must be a whole number of 1 or more"),
        ("--pool 2 --limit 9", "--limit reads the first samples, --pool all shards in turn"),
        ("--translation 1.5", "--translation is 1.5"),
        ("--accumulate 2 --compile reduce-overhead", "keeps no gradients between batches"),
        ("--matte -1", "--matte is -1; it must be a whole number of 0 or more"),
        ("--skip-bad -1", "--skip-bad is -1; it must be a whole number of 0 or more"),
        ("--lr-warmup -1", "--lr-warmup is -1; it must be a whole number of 0 or more"),
        ("--dropout 1.5", "--dropout is 1.5; it must be a finite number from 0 to 1"),
        ("--clip -1", "--clip is -1.0; it must be a finite number of 0 or more"),
        ("--global-batch 0", "--global-batch is 0"),
        ("--global-batch 8 --accumulate 2", "--accumulate follows from --global-batch: give one of them"),
        ("--mix mirror:1", "mirror:1 is not a kind of pair with a share; kinds are rendered, still, video, patch"),
        ("--mix still:-1", "still:-1 is not a kind of pair with a share"),
        ("--mix still:0", "stage 'identity' needs a --mix with a share above 0"),
        ("--resolutions 384:0", "384:0 is not a resolution with a share above 0"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(options, message):
    assert message in refused(parse_train, [*GIVEN, *options.split()])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "kind", [Train, TuneDecoder, Prepare, PrepareLight, Relight, Evaluate, EvaluateLight], ids=lambda it: it.__name__
)
def test_no_option_takes_a_number_that_is_not_finite(kind, value):
    for field in arguments.flat(kind):
        if field.parse is float:
            words = [f"{arguments.flag(field.name)}={value}"]
            assert f"is {value}; it must be a" in refused(arguments.parse, kind, words, None)


@pytest.mark.parametrize("kind", [Train, TuneDecoder, Prepare, PrepareLight, Relight, Evaluate, Benchmark, Start])
def test_no_option_takes_a_whole_number_that_nothing_counts_to(kind):
    tried = 0
    for field in arguments.flat(kind):
        for value in (2**64, -1) if field.name == "seed" else (2**64,) if field.parse is int else ():
            flag = arguments.flag(field.name)
            assert f"{flag} is " in refused(arguments.parse, kind, [f"{flag}={value}"], None)
            tried += 1
    assert tried > 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Evaluate, "--output x --pairs p --steps 0", "--steps is 0"),
        (Evaluate, "--output x --pairs p --detail -0.5", "--detail is -0.5; it must be a finite number from 0 to 1"),
        (Evaluate, "--output x --pairs p --checkpoint ..=b", "--checkpoint ..=b: its results go into a folder"),
        (TuneDecoder, "--checkpoint a --output b --cutouts c --photos d --lr -1", "--lr is -1.0"),
        (Benchmark, "--output x --steps 0", "--steps is 0"),
        (Benchmark, "--output x --time-limit -1", "--time-limit is -1"),
        (Benchmark, "--output x --memory-batches 8 0", "--memory-batches are (8, 0)"),
        (Prepare, "coco --input x --output y --border -1", "--border is -1"),
        (
            Prepare,
            "coco --input x --output y --min-area 2",
            "--min-area is 2.0; it must be a finite number from 0 to 1",
        ),
        (Prepare, "coco --input x --output y --max-edge -1", "--max-edge is -1"),
    ],
)
def test_numbers_out_of_their_range_are_refused(kind, options, message):
    assert message in refused(arguments.parse, kind, options.split(), None)


@pytest.mark.parametrize(("old", "new"), [("soup", "merge"), ("sheets", "contact_sheets")])
def test_former_commands_work_with_a_warning(monkeypatch, capsys, old, new):
    monkeypatch.setattr(sys, "argv", [old, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"training.{old}", run_name="__main__")
    printed = capsys.readouterr()
    assert left.value.code == 0 and printed.out.startswith("usage: ")
    assert f"training.{old} is now called training.{new}" in printed.err


def test_a_direction_may_begin_with_a_minus(tmp_path):
    from training import evaluate

    assert evaluate.parse(["light", str(tmp_path), "--light-from", "-90,30"]).light_from == "-90,30"


def test_what_is_missing_is_named():
    assert "required: stage, --output" in refused(parse_train, ["--cutouts", "c"])


def test_groups_of_settings_are_flat_on_the_command_line():
    from training import prepare

    settings = prepare.parse("davis --input x --output y --licence BSD --border 0 --views 3 --textures a b".split())
    assert settings.limits == Limits(border=0)
    assert settings.render.views == 3 and settings.render.textures == (Path("a"), Path("b"))
    assert flattened(settings)["border"] == 0 and settings.name == "davis-x"


def test_names_that_a_code_page_lacks_fail_no_script(tmp_path, monkeypatch):
    from micro import fresh_checkpoint, micro_config

    from imprint.checkpoint import save_checkpoint
    from training import merge

    for name in ("杯", "壺"):
        save_checkpoint(tmp_path / f"{name}.safetensors", fresh_checkpoint(micro_config()))
    out, printed = tmp_path / "茶.safetensors", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    merge.main([*(str(tmp_path / f"{name}.safetensors") for name in ("杯", "壺")), "--output", str(out)])
    sys.stdout.flush()
    assert out.is_file() and b"\\u8336.safetensors: the mean of 2" in printed.getvalue()
