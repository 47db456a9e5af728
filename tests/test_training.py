"""Both stages for a few steps on a CPU, with data made here in the documented layouts."""

import dataclasses
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import third_party_weights
import torch
from drawing import DrawingPipeline
from filelock import FileLock
from leaving import failed, refused
from PIL import Image
from runs import ROOT, stats, weights, words

from imprint.checkpoint import load_checkpoint, read_config, save_checkpoint
from imprint.errors import ImprintError
from imprint.third_party import from_tensors
from training import train
from training.loop import run as training_run
from training.loop import state, validation
from training.loop.log import Log
from training.loop.model import require_trainable
from training.loop.run import Run
from training.loop.schedule import learning_rate
from training.loop.stopping import SIGNALS
from training.pairs.photos import Photos
from training.pairs.streams import Pool
from training.settings import Train, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def first_run(data, tmp_path_factory, micro_preset) -> Path:
    """The folder of stage 1 after two steps, from random weights; tests must not change it."""
    folder = tmp_path_factory.mktemp("run") / "views"
    train.main(words(data, folder))
    return folder


# --- two steps of each stage -----------------------------------------------------------------------------------------


def test_two_steps_of_each_stage_write_checkpoints_that_the_pipeline_loads(data, tmp_path, scene, first_run):
    subject, background, hole = scene
    train.main(words(data, tmp_path / "two", "compositing", init=first_run / "checkpoint.safetensors"))
    for folder in (first_run, tmp_path / "two"):
        names = {path.name for path in folder.iterdir()}
        assert names == set(
            """
            options.json data.json stats.jsonl usable.json .lock tensorboard samples-000000004.png state-000000002
            checkpoint.safetensors checkpoint-000000004.safetensors best.safetensors
        """.split()
        )
        described = json.loads((folder / "options.json").read_text())
        assert described["steps"] == 2 and described["model"]["resolution"] == 64 and described["mix"]
        assert [line["step"] for line in stats(folder)] == [1, 2, 2]
        assert all(np.isfinite(line["loss"]) for line in stats(folder)[:2]) and np.isfinite(
            stats(folder)[2]["held_out_loss"]
        )
        assert Image.open(folder / "samples-000000004.png").width % 64 == 0
        pipeline = DrawingPipeline.from_checkpoint(folder / "checkpoint.safetensors")
        assert pipeline(subject, None, background, hole).images[0].size == background.size
        assert {tensor.dtype for tensor in weights(folder / "checkpoint.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("stage", "trained", "frozen"),
    [
        (
            "identity",
            ("encoder.", "adapter.", "unet.up_blocks.", "unet.conv_out."),
            ("unet.down_blocks.", "unet.conv_in.", "vae."),
        ),
        ("compositing", ("adapter.", "unet.down_blocks.", "unet.up_blocks."), ("encoder.", "vae.")),
    ],
)
@pytest.mark.parametrize("start", ["start", "third-party"])
def test_each_stage_trains_its_own_part(data, tmp_path, start, stage, trained, frozen):
    """Also from a third-party checkpoint: CLIP, nine channels in their order, epsilon."""
    start, made = data / f"{start}.safetensors", tmp_path / "run" / "checkpoint.safetensors"
    train.main(words(data, tmp_path / "run", stage, init=start))
    assert read_config(made) == read_config(start)
    before, after = weights(start), weights(made)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].half())}
    assert not [name for name in changed if name.startswith(frozen)]
    for prefix in trained:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_from_random_weights_everything_is_trained(data, tmp_path):
    run = Run(parse_train(words(data, tmp_path / "run")))
    names = {name for name, parameter in run.raw.named_parameters() if not parameter.requires_grad}
    assert names and all("mask_token" in name for name in names)


# --- continuing ------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_with_the_losses_of_an_unbroken_one(data, tmp_path):
    """Killed after the fifth of six steps: steps five and six are done again, from the state of the fourth."""
    steps = {"steps": 6}
    train.main(words(data, tmp_path / "unbroken", **steps))
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from micro import micro_config
from imprint.config import PRESETS
from training import train
from training.loop import validation
from training.loop.log import Log
from training.loop.model import require_trainable
validation.SIZE = {validation.SIZE}
PRESETS["micro"] = micro_config()
log = Log.write
def log_then_die(self, step, **values):
    log(self, step, **values)
    if step == 5:
        open(self.state.folder / "stats.jsonl", "a").write('{{"step": 5, "lo')  # in the middle of a line
        os.kill(os.getpid(), signal.SIGKILL)
Log.write = log_then_die
train.main(sys.argv[1:])
"""
    command = words(data, tmp_path / "killed", **steps)
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    (tmp_path / "killed" / "state.tmp").mkdir()  # as if it had been killed while saving
    (tmp_path / "killed" / "state.tmp" / "model.safetensors").write_bytes(b"half")

    train.main(command)
    assert stats(tmp_path / "killed") == stats(tmp_path / "unbroken")
    assert [line["step"] for line in stats(tmp_path / "killed")] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    first, second = (weights(tmp_path / run / "checkpoint.safetensors") for run in ("unbroken", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    states = sorted(path.name for path in (tmp_path / "killed").glob("state*"))
    assert states == ["state-000000004", "state-000000006"]  # the newest two, and nothing half done


def test_a_run_over_streamed_shards_continues_with_the_losses_of_an_unbroken_one(data, tmp_path, monkeypatch):
    command = {
        name: words(data, tmp_path / name, steps=3, pool=1, block=1, reuse=1) for name in ("unbroken", "stopped")
    }
    turns, at = [], Pool.at
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "at", lambda pool, turn: turns.append((pool.wanted.kind, turn)) or at(pool, turn))
        train.main(command["unbroken"])
    assert {(Photos, turn) for turn in range(3)} <= set(turns)
    log = Log.write

    def stop_at_three(self, step, **values):
        log(self, step, **values)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", stop_at_three)
        with pytest.raises(SystemExit, match="stopped at once"):
            train.main(command["stopped"])
    train.main(command["stopped"])
    assert stats(tmp_path / "stopped") == stats(tmp_path / "unbroken")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(data, tmp_path, monkeypatch, capsys, number):
    steps, original, before = [], Run.step, signal.getsignal(number)

    def step(self, source, index, meter):
        original(self, source, index, meter)
        steps.append(index)
        if index == 0 and len(steps) == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "step", step)
    command = words(data, tmp_path / "run", steps=3, **{"save-every": 100})
    with pytest.raises(SystemExit) as left:
        train.main(command)
    assert left.value.code == 128 + number and "state-000000001 is the last complete state" in capsys.readouterr().err
    train.main(command)
    assert steps == [0, 1, 2] and signal.getsignal(number) == before


def test_two_runs_never_write_into_one_folder(data, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(SystemExit, match="another run is writing into"):
        train.main(words(data, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), OSError(37, "No locks available")])
def test_a_folder_that_cannot_be_locked_is_trained_in(data, tmp_path, monkeypatch, capsys, first_run, error):
    def refuse(_lock, timeout):
        raise error

    monkeypatch.setattr(state.FileLock, "acquire", refuse)
    train.main(words(data, tmp_path))
    assert ".lock cannot be locked" in capsys.readouterr().err and stats(tmp_path) == stats(first_run)


def test_processes_that_torch_leaves_unconnected_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(training_run, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(SystemExit, match="2 processes were started, but .* does not connect them"):
        train.main(words(data, tmp_path))


def test_a_finished_run_is_left_as_it_is(data, first_run):
    before, log = weights(first_run / "checkpoint.safetensors"), stats(first_run)
    train.main(words(data, first_run))
    after = weights(first_run / "checkpoint.safetensors")
    assert stats(first_run) == log and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_continuing_with_other_options_is_refused(data, first_run):
    with pytest.raises(SystemExit, match=r"begun with lr = 0\.01, not 0\.02"):
        train.main(words(data, first_run, lr=0.02))


def test_a_run_killed_before_its_first_state_begins_anew(data, tmp_path, first_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state.State, "save", lambda run, step: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            train.main(words(data, tmp_path / "run"))
    train.main(words(data, tmp_path / "run"))
    assert stats(tmp_path / "run") == stats(first_run)


def test_the_seed_decides(data, tmp_path, first_run):
    for name, seed in (("again", 0), ("other", 1)):
        train.main(words(data, tmp_path / name, seed=seed))
    assert stats(tmp_path / "again") == stats(first_run)
    assert stats(tmp_path / "other")[0]["loss"] != stats(first_run)[0]["loss"]


@pytest.mark.parametrize("name", ["options.json", "data.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cutouts/train": 3}', "\xff"])
def test_a_run_whose_description_is_broken_is_said(data, tmp_path, first_run, name, text):
    folder = shutil.copytree(first_run, tmp_path / "run")
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        SystemExit, match=rf"{re.escape(str(folder))}.*; repair it|was begun with stage|is absent|and is of"
    ):
        train.main(words(data, folder))


def test_a_state_that_is_not_whole_is_said_and_others_are_left_alone(data, tmp_path, first_run):
    folder = shutil.copytree(first_run, tmp_path / "run")
    (folder / "state-of-the-art").mkdir()
    with (folder / "stats.jsonl").open("a") as log:
        log.write('{"step"\n[]\n{}\n')
    with (folder / "stats.jsonl").open("ab") as log:
        log.write(b"\xff\0\n")
    train.main(words(data, folder, steps=2))
    assert stats(folder) == stats(first_run) and (folder / "state-of-the-art").is_dir()
    (weight,) = folder.glob("state-000000002/model.safetensors")
    weight.write_bytes(weight.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"state-000000002 cannot be read .*; delete it"):
        train.main(words(data, folder, steps=2))
    shutil.rmtree(weight.parent)
    train.main(words(data, folder, steps=2))
    assert stats(folder) == stats(first_run)


# --- the command line ------------------------------------------------------------------------------------------------


def test_dry_run_prints_the_run_and_makes_nothing(data, tmp_path, capsys):
    train.main([*words(data, tmp_path / "run"), "--dry-run"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and printed["batch"] == 2 and printed["model"]["encoder"]["width"] == 32
    with pytest.MonkeyPatch.context() as patch:  # of several processes one prints
        patch.setattr("accelerate.Accelerator.is_main_process", False)
        train.main([*words(data, tmp_path / "run"), "--dry-run"])
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": None}, "give --vae"),
        ({"vae": "absent.safetensors"}, "absent.safetensors cannot be read"),
        ({"cutouts": "absent"}, "holds no .tar shard"),
        ({"photos": "absent"}, "holds no .tar shard"),
        ({"init": "absent.safetensors"}, "absent.safetensors: no such file"),
    ],
)
def test_bad_input_leaves_with_a_sentence(data, tmp_path, changes, message):
    assert message in failed(train.main, words(data, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"images": -1}, {"precision": "int8"}, {"schedule": "step"}, {"pool": 0}, {"pool": 1, "limit": 1}],
)
def test_wrong_options_leave_with_two(data, tmp_path, changes):
    refused(train.main, words(data, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cutouts": "nowhere"}, "nowhere/train holds no .tar shard"),
        ({"output": "/proc/x"}, "/proc/x/state cannot be written"),
    ],
)
def test_a_dry_run_tries_what_the_run_needs(data, tmp_path, changes, message):
    given = {"data": data, "output": tmp_path / "run"} | changes
    with pytest.raises(SystemExit, match=message) as left:
        train.main([*words(**given), "--dry-run"])
    assert "make room" not in str(left.value)
    with pytest.raises(SystemExit, match=message) as left:
        train.main(words(**given))
    assert "make room" not in str(left.value)


@pytest.mark.parametrize("number", [{"lr": -1}, {"ema": 1.5}, {"final-lr": "nan"}, {"time-limit": -1}, {"limit": 0}])
def test_numbers_that_cannot_be_are_refused(data, tmp_path, capsys, number):
    ((name, value),) = number.items()
    with pytest.raises(SystemExit) as left:
        parse_train(words(data, tmp_path, **number))
    assert left.value.code == 2 and re.search(rf"--{name} is {value}.*; it must be", capsys.readouterr().err)


def test_a_run_never_writes_over_the_checkpoint_that_it_starts_from(data, tmp_path, capsys):
    (tmp_path / "checkpoint.safetensors").write_bytes((data / "start.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        parse_train(words(data, tmp_path, "compositing", init=tmp_path / "checkpoint.safetensors"))
    assert "would be overwritten; give another --output" in capsys.readouterr().err


def test_the_second_stage_needs_the_first(data, tmp_path):
    assert "give --init" in refused(train.main, words(data, tmp_path / "run", "compositing"))


def test_the_second_stage_may_start_from_random_weights_to_learn_everything(data, tmp_path):
    """The ablation without stage 1."""
    train.main([*words(data, tmp_path / "run", "compositing"), "--train-all"])
    assert json.loads((tmp_path / "run" / "options.json").read_text())["trained"] == "everything"
    assert [line["step"] for line in stats(tmp_path / "run")] == [1, 2, 2]


def test_learning_rate():
    options = Train.of("identity", output=Path("x"), lr=1.0, lr_warmup=100, images=1000, final_lr=0.1)
    rates = [learning_rate(done, options) for done in range(0, 1001, 10)]
    assert rates[0] < 0.02 and max(rates) > 0.95 and rates.index(max(rates)) in range(8, 12)
    assert abs(rates[-1] - 0.1) < 1e-6 and rates[11:] == sorted(rates[11:], reverse=True)


def test_a_run_with_sides_goes_to_its_end_and_keeps_the_model_s_resolution(data, tmp_path):
    start = data / "start.safetensors"
    train.main(
        [*words(data, tmp_path / "run", "compositing", init=start), "--resolutions", "64", "128", "--view-side", "48"]
    )
    assert read_config(tmp_path / "run" / "checkpoint.safetensors") == read_config(start)
    assert json.loads((tmp_path / "run" / "options.json").read_text())["resolutions"] == [[64, 1.0], [128, 1.0]]
    with pytest.raises(SystemExit) as left:
        train.main([*words(data, tmp_path / "odd", "compositing", init=start), "--resolutions", "100"])
    assert "100 is not a multiple of 16" in str(left.value.code)


def test_distilled_guidance_needs_none_when_sampling_and_more_training_does_again(data, tmp_path):
    start, run = tmp_path / "start.safetensors", tmp_path / "guided"
    own = load_checkpoint(data / "start.safetensors")
    sampling = dataclasses.replace(own.config.sampling, guidance_scale=3.5)
    save_checkpoint(start, dataclasses.replace(own, config=dataclasses.replace(own.config, sampling=sampling)))
    train.main(words(data, run, "compositing", init=start, **{"distill-guidance": 2.0}))
    before, made = read_config(start), read_config(run / "checkpoint.safetensors")
    assert made.sampling.guidance_scale == 1
    assert dataclasses.replace(made, sampling=before.sampling) == before
    train.main(words(data, tmp_path / "on", "compositing", init=run / "checkpoint.safetensors"))
    assert read_config(tmp_path / "on" / "checkpoint.safetensors") == before  # its own former guidance too
    for changes in ({"stage": "identity", "init": start}, {"stage": "compositing"}):
        assert "--distill-guidance needs --init" in refused(
            train.main, [*words(data, tmp_path / "no", **changes), "--train-all", "--distill-guidance", "2"]
        )


def test_a_model_distilled_to_few_steps_takes_them_by_default_with_its_teacher_s_guidance(data, tmp_path):
    start, run = tmp_path / "start.safetensors", tmp_path / "few"
    own = load_checkpoint(data / "start.safetensors")
    sampling = dataclasses.replace(own.config.sampling, steps=7, guidance_scale=1.0, undistilled_guidance=3.5)
    save_checkpoint(start, dataclasses.replace(own, config=dataclasses.replace(own.config, sampling=sampling)))
    train.main(words(data, run, "compositing", steps=1, init=start, **{"distill-steps": 2}))
    made = read_config(run / "checkpoint.safetensors").sampling
    assert made == dataclasses.replace(sampling, steps=2, undistilled_steps=7)
    train.main(words(data, tmp_path / "on", "compositing", steps=1, init=run / "checkpoint.safetensors"))
    again = read_config(tmp_path / "on" / "checkpoint.safetensors").sampling
    assert again == dataclasses.replace(sampling, guidance_scale=3.5, undistilled_guidance=0.0)


def test_few_steps_are_distilled_from_a_model_that_begins_at_pure_noise(data, tmp_path):
    start = tmp_path / "start.safetensors"
    own = load_checkpoint(data / "start.safetensors")
    noise = dataclasses.replace(own.config.noise, timestep_spacing="leading")
    save_checkpoint(start, dataclasses.replace(own, config=dataclasses.replace(own.config, noise=noise)))
    command = words(data, tmp_path / "run", "finetune", init=start, **{"distill-steps": 2})
    assert f"those of {start} are spaced 'leading'; give another --init" in failed(train.main, command)
    command[command.index(str(start))] = str(data / "start.safetensors")
    many = failed(train.main, [*command, "--distill-steps", "251"])
    assert "--distill-steps is 251; it must be a whole number from 1 to 250" in many
    for more in (["--compile", "reduce-overhead"], ["--distill-steps", "1.5"]):
        with pytest.raises(SystemExit):
            parse_train([*command, *more])


def test_a_run_says_what_is_usable(data, first_run):
    counts = json.loads((first_run / "usable.json").read_text(encoding="utf-8"))
    assert counts.keys() == {"train", "held-out"} and counts["train"]["views"] == 12
    assert counts["train"]["annotated objects"] > 0 and counts["train"]["with another frame (video)"] > 0


@pytest.mark.parametrize("kind", ["anydoor", "controlcom"])
def test_what_training_cannot_run_is_refused(kind):
    shapes = third_party_weights.shapes("small", kind)
    checkpoint = from_tensors({name: torch.tensor(0.0).expand(shape) for name, shape in shapes.items()})
    with pytest.raises(ImprintError, match="not trained here; give another --init"):
        require_trainable(checkpoint)


def test_processes_that_read_ahead_end_with_a_run_that_cannot_begin(data, tmp_path, monkeypatch):
    started, others = [], set(multiprocessing.active_children())

    def fail(settings):
        started.extend(set(multiprocessing.active_children()) - others)
        raise ImprintError("no run")

    monkeypatch.setattr(training_run, "Run", fail)
    with pytest.raises(SystemExit, match="no run") as _error:  # whose traceback would keep them alive
        train.main(words(data, tmp_path / "run"))
    assert started and not set(multiprocessing.active_children()) & set(started)


def test_an_interrupt_while_pictures_are_read_is_one_sentence(tmp_path, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "read_ahead", interrupted)
    options = ["--sizes", "micro", "--cutouts", "absent", "--photos", "absent", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="stopped at once; what is in .*run is whole: run the same command again"):
        train.main(["identity", *options])
