"""Light and shadow scores on tasks with known truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from imprint.errors import ImprintError
from imprint.lightnet import LightConfig, LightNet, save_light
from training import arguments, evaluate
from training.measure.light import LightErrors, LightTask, evaluate_light, light_report, tasks_of
from training.measure.settings import EvaluateLight

SIZE = 240, 180  # width, height


def write_task(folder, name: str, light: float = 0.5, shadow: float = 0.6) -> None:
    """A box that is darker in the scene than in its own photo, and takes light from the ground to its right."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(int(name))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    alpha = (abs(x - 100) < 38) & (abs(y - 90) < 45)
    shade = (x >= 138) & (x < 195) & (y > 100) & (y < 145)
    background = rng.integers(100, 140, (SIZE[1], SIZE[0], 3)) * 1.0
    colours = rng.integers(160, 220, (SIZE[1], SIZE[0], 3)) * 1.0
    target = np.where(alpha[..., None], light * colours, np.where(shade[..., None], shadow * background, background))
    cutout = np.dstack([colours, 255.0 * alpha])
    parts = {"obj": cutout, "bg": background, "target": target, "alpha": 255.0 * alpha}
    parts["hole"] = 255.0 * ((x > 50) & (x < 210) & (y > 30) & (y < 165))
    for part, values in parts.items():
        Image.fromarray(np.rint(values).astype(np.uint8)).save(folder / f"{name}_{part}.png")


@pytest.fixture
def tasks(tmp_path):
    for name in ("00", "01", "02"):
        write_task(tmp_path / "tasks", name)
    return tmp_path / "tasks"


def results(tasks, folder, made) -> dict:
    """The score of `made(task)`, an array, for each task."""
    folder.mkdir()
    for name in tasks_of(tasks):
        values = made(LightTask.read(tasks, name))
        Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(folder / f"{name}.png")
    return evaluate_light(arguments.of(EvaluateLight, tasks=tasks, results=folder))


NAMES = ("light", "shadow", "contact")


def test_the_truth_gains_all_and_pasting_nothing(tasks, tmp_path):
    truth = results(tasks, tmp_path / "truth", lambda task: task.target)
    assert [truth[name]["gain"] for name in NAMES] == [1, 1, 1]
    assert [truth[name]["better"] for name in NAMES] == [3, 3, 3] and truth["psnr"]["made"] == 100
    pasted = results(tasks, tmp_path / "pasted", LightTask.pasted)
    assert [pasted[name]["gain"] for name in NAMES] == pytest.approx([0, 0, 0], abs=0.02)
    assert pasted["psnr"]["made"] == pytest.approx(pasted["psnr"]["pasted"])


def test_each_gain_sees_its_own_half_of_the_way(tasks, tmp_path):
    def halfway(task: LightTask) -> np.ndarray:
        """Half of the missing light, and the whole shadow, twice too deep."""
        inside = task.alpha[..., None] > 0.5
        half = (task.pasted() + task.target) / 2
        return np.where(inside, half, 2 * task.target - task.background)

    found = results(tasks, tmp_path / "half", halfway)
    assert found["light"]["gain"] == pytest.approx(0.5, abs=0.02)
    assert found["shadow"]["gain"] == pytest.approx(0, abs=0.1) and found["contact"]["gain"] < 0.1
    assert found["light"]["better"] == 3


def test_errors_are_those_that_were_put_in(tasks):
    task = LightTask.read(tasks, "00")
    inside = task.alpha[..., None] > 0.5
    off = LightErrors.of(task, np.where(inside, task.target + 0.1, task.target), task.target)
    assert off.light == pytest.approx(0.1, abs=1e-6) and off.psnr == pytest.approx(20) and off.shadow == 0
    ground = LightErrors.of(task, task.target, np.where(inside, task.target, 0.5 * task.target))
    assert ground.shadow > 0.3 and ground.light == 0


def test_a_task_without_ground_has_no_shadow_to_measure(tasks):
    Image.new("L", SIZE).save(tasks / "00_hole.png")
    task = LightTask.read(tasks, "00")
    errors = LightErrors.of(task, task.target, task.target)
    assert np.isnan(errors.shadow) and np.isnan(errors.contact) and errors.light == 0


def test_the_command_composes_scores_and_writes(tasks, tmp_path, capsys):
    """A network with fresh weights changes little: it has no gain, and no shift of the object to report."""
    path, out = tmp_path / "net.safetensors", tmp_path / "out"
    save_light(path, LightNet(LightConfig(resolution=32, widths=(8, 8, 32))))
    evaluate.main(["light", str(tasks), "--checkpoint", str(path), "--output", str(out)])
    printed = capsys.readouterr().out
    assert "| 3 tasks | error | pasted | gain | better than pasting |" in printed and "PSNR" in printed
    result = json.loads((out / "results.json").read_text())
    assert printed.strip() == light_report(result).strip() and result["by_task"].keys() == {"00", "01", "02"}
    assert result["light"]["gain"] == pytest.approx(0, abs=0.05)
    evaluate.main(["light", str(tasks), "--results", str(out)])
    assert capsys.readouterr().out == printed  # the pictures that were written are those that were scored


def test_strength_nought_is_pasting(tasks):
    found = evaluate_light(arguments.of(EvaluateLight, tasks=tasks, light=0.0, shadow=0.0))
    assert [found[name]["gain"] for name in NAMES] == pytest.approx([0, 0, 0], abs=0.03)


def test_bad_tasks_and_results_are_said(tasks, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["light", str(tmp_path / "nowhere")])
    assert "nowhere: no such folder" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImprintError, match=r"holds no NN\.png"):
        evaluate_light(arguments.of(EvaluateLight, tasks=tasks, results=empty))
    with pytest.raises(ImprintError, match=r"holds no \*_target\.png"):
        evaluate_light(arguments.of(EvaluateLight, tasks=empty))
    Image.new("RGB", (9, 9)).save(empty / "01.png")
    with pytest.raises(ImprintError, match=r"result of task 01 is 9x9, its background 240x180"):
        evaluate_light(arguments.of(EvaluateLight, tasks=tasks, results=empty))
    Image.new("L", (5, 5)).save(tasks / "02_hole.png")
    with pytest.raises(ImprintError, match=r"task 02 .* differ in size .*hole 5x5"):
        LightTask.read(tasks, "02")
