"""What runs and data cost, from measured rates."""

from __future__ import annotations

import json

import pytest
from leaving import failed
from runs import words

from imprint.config import PRESETS
from training import costs
from training.loop.run import Run
from training.measure.costs import GIB, RUNS, bytes_of, parameters
from training.measure.speed import state_bytes
from training.settings import parse_train


def rows(text: str) -> dict[str, list[str]]:
    """Rows of the first table by the runs' names."""
    lines = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].strip().splitlines()[2:]]
    return {line[0]: [cell.strip() for cell in line[1:]] for line in lines}


def test_hours_are_pictures_over_the_rate_and_several_gpus_lose_some(capsys):
    costs.main(["--gpus", "1", "2"])
    pictures, rate, one, two, *_ = rows(capsys.readouterr().out)["SD 1.5, compositing"]
    assert (pictures, rate) == ("4.8 M", "90.3")
    assert float(one) == pytest.approx(4.8e6 / 90.3 / 3600, abs=0.01)
    assert float(two) == pytest.approx(float(one) * 3030 / 5500, abs=0.01)


def test_what_rests_on_another_stage_s_rate_is_in_brackets(capsys):
    costs.main(["--gpus", "1", "2"])
    found = rows(capsys.readouterr().out)
    measured, assumed = found["SD 1.5, compositing"], found["SD 1.5, identity"]
    for place in (1, 2, 3, 5):  # rate, hours, peak of memory
        assert assumed[place] == f"({measured[place]})"
    assert "(" not in "".join([*measured, assumed[4], assumed[6]])  # weights and states are computed


def test_a_state_is_what_a_run_saves(data, tmp_path, micro_preset):
    """For a run with a frozen encoder, and for one that trains everything."""
    for stage, fresh, start in (("compositing", False, {"init": data / "start.safetensors"}), ("identity", True, {})):
        run = Run(parse_train(words(data, tmp_path / stage, stage, **start)))
        total, trained = parameters("micro", stage, fresh)
        mask_token = run.raw.encoder.backbone.embeddings.mask_token.numel()  # frozen whatever is trained
        assert bytes_of(total, trained)[1] - state_bytes(run) == 12 * mask_token * fresh


def test_rates_of_one_s_own_machine(tmp_path, capsys):
    file = tmp_path / "benchmark.json"
    measured = [
        {"row": "loop:sd15:16:eager", "pictures_per_second": 40.0, "allocated_gib": 36.8},
        {"row": "loop:sd15:16:default", "pictures_per_second": 50.0, "allocated_gib": 30.0},
        {"row": "loop:tiny:512:default", "error": "out of memory"},
        {"row": "peak", "tflops": 800.0},
    ]
    file.write_text(json.dumps({"rows": measured}))
    costs.main(["--benchmark", str(file), "--gpus", "1"])
    found = rows(capsys.readouterr().out)
    assert found["SD 1.5, compositing"][1:3] == ["50", f"{4.8e6 / 50 / 3600:.2f}"]
    assert found["SD 1.5, compositing"][4] == "30.0" and found["SD 1.5, identity"][1] == "(50)"
    assert found["tiny, compositing"][1:3] == ["", ""]


@pytest.mark.parametrize("text", ['{"rows": []}', '{"rows": 3}', "[]", '{"rows": [{"row": "loop:a:1:b"}]}', "{"])
def test_a_file_without_rates_is_a_sentence(tmp_path, text):
    file = tmp_path / "benchmark.json"
    file.write_text(text)
    assert "give the benchmark.json of python -m training.benchmark" in failed(costs.main, ["--benchmark", str(file)])


@pytest.mark.parametrize(
    "values",
    ['"pictures_per_second": 0', '"pictures_per_second": "fast"', '"pictures_per_second": 3, "allocated_gib": NaN'],
)
def test_a_rate_that_is_none_is_a_sentence(tmp_path, values):
    file = tmp_path / "benchmark.json"
    file.write_text(f'{{"rows": [{{"row": "loop:tiny:512:default", {values}}}]}}')
    assert "it must be a finite number of 1e-06 or more" in failed(costs.main, ["--benchmark", str(file)])


def test_runs_are_of_presets_and_sdxl_is_as_its_page_says():
    assert {run.sizes for run in RUNS} <= PRESETS.keys()
    held, _ = bytes_of(*parameters("sdxl", "compositing"))
    assert round(held / 1e9) == 54 and round(held / GIB) == 50
