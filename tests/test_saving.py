"""The checkpoints that a run keeps while it trains, and those of its states; a few steps on a CPU."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from leaving import failed
from runs import stats, weights, words
from safetensors.torch import load_file

from imprint.checkpoint import read_config
from training import export, subject, train
from training.loop import checkpoints
from training.loop.state import State
from training.loop.validation import Validation

pytestmark = pytest.mark.usefixtures("micro_preset")

BEST, LAST = "best.safetensors", "checkpoint.safetensors"


def numbered(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run of four steps that saves after each step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.main(words(data, folder, steps=4, keep=3, **{"save-every": 1}))
    return folder


def losses(*values: float):
    """Replaces `Validation.measure`: returns these values in turn."""
    turns = iter(values)
    return lambda *_: {"held_out_loss": next(turns)}


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_the_newest_few_are_kept_and_the_last_is_the_result(whole):
    assert numbered(whole) == [f"checkpoint-{pictures:09d}.safetensors" for pictures in (4, 6, 8)]
    assert os.path.samefile(whole / LAST, whole / numbered(whole)[-1])  # it takes no room
    assert not same(whole / LAST, whole / numbered(whole)[0])
    held_out = {line["pictures"]: line["held_out_loss"] for line in stats(whole) if "held_out_loss" in line}
    best = whole / f"checkpoint-{min(held_out, key=held_out.get):09d}.safetensors"
    assert best.exists() and os.path.samefile(best, whole / BEST)


def test_the_best_outlives_newer_ones_and_a_restart(data, tmp_path, whole, monkeypatch):
    """The second of four steps is the best; the run is interrupted after the third."""
    folder, save = tmp_path / "run", State.save
    command = words(data, folder, steps=4, keep=1, **{"save-every": 1})

    def save_then_die(state, step):
        save(state, step)
        if step == 3:
            raise KeyboardInterrupt  # its checkpoint is not there yet

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", losses(0.5, 0.3, 0.4))
        patch.setattr(State, "save", save_then_die)
        with pytest.raises(SystemExit, match="stopped at once"):
            train.main(command)
    assert numbered(folder) == ["checkpoint-000000004.safetensors"] and same(folder / BEST, whole / numbered(whole)[0])
    monkeypatch.setattr(Validation, "measure", losses(0.4))
    train.main(command)
    assert numbered(folder) == ["checkpoint-000000008.safetensors"] and same(folder / LAST, whole / LAST)
    assert same(folder / BEST, whole / "checkpoint-000000004.safetensors")


def test_checkpoints_of_steps_that_are_done_again_are_dropped(data, tmp_path, whole):
    """A missing one is exported from the state."""
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("state-000000004"))
    (folder / "checkpoint-000000006.safetensors").unlink()
    (folder / "checkpoint-000000008.safetensors").write_bytes(b"of another time")
    (folder / "checkpoint-of-mine.safetensors").write_bytes(b"mine")
    command = words(data, folder, steps=4, keep=2, **{"save-every": 1})  # --keep may change
    train.main(command)
    assert numbered(folder)[:-1] == [f"checkpoint-{pictures:09d}.safetensors" for pictures in (6, 8)]
    for name in numbered(folder)[:-1]:
        assert same(folder / name, whole / name)
    assert (folder / "checkpoint-of-mine.safetensors").read_bytes() == b"mine"


def test_where_there_are_no_hard_links_the_best_is_a_copy(tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(b"new")
    (tmp_path / BEST).write_bytes(b"old")

    def refuse(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    checkpoints._link(tmp_path / "one", tmp_path / BEST)
    assert (tmp_path / BEST).read_bytes() == b"new" and sorted(os.listdir(tmp_path)) == [BEST, "one"]
    monkeypatch.setattr(checkpoints.shutil, "copyfile", refuse)
    (tmp_path / "one").write_bytes(b"newer")
    with pytest.raises(PermissionError):
        checkpoints._link(tmp_path / "one", tmp_path / BEST)
    assert (tmp_path / BEST).read_bytes() == b"new" and sorted(os.listdir(tmp_path)) == [BEST, "one"]


@pytest.mark.parametrize("name", [BEST, "checkpoint-000000004.safetensors"])
def test_a_run_never_writes_over_a_kept_checkpoint_that_it_starts_from(data, whole, capsys, name):
    with pytest.raises(SystemExit):
        train.main(words(data, whole, "compositing", init=whole / name))
    assert "would be overwritten; give another --output" in capsys.readouterr().err


# --- of a state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["identity", "compositing"])
def test_a_state_s_checkpoint_is_the_one_that_the_run_made(data, tmp_path, whole, stage):
    run = whole
    if stage != "identity":  # with frozen parts, and another guidance than its start's
        run = tmp_path / "run"
        train.main(words(data, run, stage, init=data / "start.safetensors", **{"distill-guidance": 2.0}))
    made, own = tmp_path / "made.safetensors", run / numbered(run)[-2 if run == whole else -1]
    state = sorted(run.glob("state-*"))[-2 if run == whole else -1]
    before = sorted(path.name for path in run.iterdir())
    export.main([str(state), str(made)])
    assert same(made, own) and read_config(made) == read_config(own)
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_state_of_fine_tuning_gives_its_lora(data, few_photos, tmp_path):
    subject.main([str(few_photos), "--output", str(tmp_path / "data")])
    folders = {"cutouts": tmp_path / "data" / "cutouts", "photos": tmp_path / "data" / "photos"}
    run = tmp_path / "run"
    train.main(words(data, run, "finetune", init=data / "start.safetensors", rank=2, **folders))
    export.main([str(run / "state-000000002"), str(tmp_path / "lora.safetensors")])
    made = load_file(tmp_path / "lora.safetensors")
    for name in ("lora", "lora-000000004", "best"):
        own = load_file(run / f"{name}.safetensors")
        assert own.keys() == made.keys() and all(torch.equal(tensor, made[name]) for name, tensor in own.items())


def test_what_is_no_state_or_does_not_fit_is_said(data, tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    state, made = run / "state-000000004", tmp_path / "made.safetensors"

    def said() -> str:
        return failed(export.main, [str(state), str(made)])

    assert "is not a state" in failed(export.main, [str(run), str(made)])
    assert "would be overwritten" in failed(export.main, [str(state), str(data / "vae.safetensors")])
    options = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps(options | {"model": options["model"] | {"resolution": 128}}))
    assert "is of another model than micro is now" in said()
    (run / "options.json").write_text(json.dumps({name: value for name, value in options.items() if name != "output"}))
    assert "does not say output" in said()
    (run / "options.json").write_text(json.dumps(options))
    averages = state / "custom_checkpoint_0.pkl"
    averages.write_bytes(averages.read_bytes()[:1000])
    assert "custom_checkpoint_0.pkl cannot be read" in said()
    assert not made.exists()
