"""Runs `comfy_checks.py` once in ComfyUI's Python and reports each of its checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from comfy_server import PACK

pytestmark = pytest.mark.comfyui

SCRIPT = Path(__file__).with_name("comfy_checks.py")
SECONDS = 1800
"""For all checks: four minutes of processor time, or seven if five other processes share its two cores."""
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def checked(comfyui: Path, python: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script wrote to."""
    folder = tmp_path_factory.mktemp("checks")
    run_checks(comfyui, python, base, folder)
    return folder


def run_checks(comfyui: Path, python: str, base: Path, folder: Path, *names: str, seconds: int = SECONDS) -> None:
    command = [python, str(SCRIPT), str(comfyui), str(base / "custom_nodes" / PACK), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if not (folder / "result.json").is_file():
        pytest.fail(f"the checks did not run:\n{done.stdout[-1000:]}{done.stderr[-4000:]}")


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(checked: Path, check: str):
    failure = json.loads((checked / "result.json").read_text())["results"][check]
    assert failure is None, failure


def test_golden_composites(checked: Path):
    """The nodes' own pictures: two of a batch, one at 384 px; recorded as in test_golden_composites.py."""
    from PIL import Image
    from test_golden_composites import compare

    failure = json.loads((checked / "result.json").read_text())["results"]["write_composites"]
    assert failure is None, failure
    made_with = json.loads((checked / "composites.json").read_text())
    compare("nodes", Image.open(checked / "composites.png"), made_with=made_with)


def test_a_job_is_the_command_line_s(checked: Path, base: Path, tmp_path: Path):
    """The same JSON, with `out`; between two objects, the command line rounds to 8 bits."""
    pytest.importorskip("diffusers")
    import numpy as np
    from PIL import Image

    from imprint import cli

    failure = json.loads((checked / "result.json").read_text())["results"]["write_job"]
    assert failure is None, failure
    for sample in (Path(cli.__file__).parent / "assets" / "samples").iterdir():
        (tmp_path / f"imprint_{sample.name}").symlink_to(sample)
    (tmp_path / "jobs.jsonl").write_text(
        json.dumps(json.loads((checked / "job.json").read_text()) | {"out": "out.png"})
    )
    assert cli.main(["batch", str(tmp_path / "jobs.jsonl"), "--dtype", "fp32"]) == 0
    made, expected = (np.asarray(Image.open(path)).astype(int) for path in (checked / "job.png", tmp_path / "out.png"))
    difference = np.abs(made - expected)
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_two_steps_are_the_command_s(checked: Path):
    """With the shipped LoRA by core's loader, and merged by `--fast`, both in fp32."""
    pytest.importorskip("diffusers")
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from imprint.checkpoint import SHIPPED
    from imprint.job_settings import JobSettings
    from imprint.lazy import open_pipeline

    failure = json.loads((checked / "result.json").read_text())["results"]["write_few_steps"]
    assert failure is None, failure
    graph = load_file(checked / "few-steps.safetensors")
    settings = JobSettings(device="cpu", fast=True, dtype="fp32")
    pipeline = open_pipeline(settings).model
    pipeline.set_progress_bar_config(disable=True)
    views = [Image.open(SHIPPED.parent / "samples" / f"{name}.png") for name in ("object", "background", "hole")]
    denoise, results = pipeline.denoise, []
    pipeline.denoise = lambda *args, **named: results.append(denoise(*args, **named)) or results[0]
    noise = torch.randn(graph["latent"].shape, generator=torch.manual_seed(5))
    options = dict(num_inference_steps=settings.sampling_steps, context=1.6, latents=noise, fit="fill", detail=0.0)
    made = pipeline(views[0], None, *views[1:], **options, output_type="pt")
    assert (results[0][0] - graph["latent"]).abs().max() < 1e-3
    in_frame = made.placement.insert(torch.zeros(1, 1, *graph["alpha"].shape[1:]), made.alpha[:, None])[:, 0]
    assert (in_frame - graph["alpha"]).abs().max() < 1e-3 and made.alpha.max() > 0.9


@pytest.mark.skipif(not os.environ.get("IMPRINT_NIGHTLY"), reason="takes an hour; set IMPRINT_NIGHTLY=1")
@pytest.mark.parametrize("check", re.findall(r"^def (nightly_\w+)", SCRIPT.read_text(), re.MULTILINE))
def test_inside_comfyui_at_night(comfyui: Path, python: str, base: Path, tmp_path: Path, check: str):
    run_checks(comfyui, python, base, tmp_path, check, seconds=3 * 3600)
    failure = json.loads((tmp_path / "result.json").read_text())["results"][check]
    assert failure is None, failure


@pytest.mark.parametrize("kind", ["blend", "concat", "sdxl"])
def test_pipeline_and_graph_agree(checked: Path, kind: str):
    """With the same weights, noise, steps and Euler schedule, both in fp32, latents and mattes agree to 1e-3."""
    pytest.importorskip("diffusers")
    import torch
    from PIL import Image, ImageOps
    from safetensors.torch import load_file

    from imprint.checkpoint import SHIPPED
    from imprint.pipeline import ImprintPipeline

    failure = json.loads((checked / "result.json").read_text())["results"]["write_graph_latents"]
    assert failure is None, failure
    graph = load_file(checked / "graph.safetensors")
    graph = {key.partition(".")[2]: value for key, value in graph.items() if key.startswith(kind)}
    file = {"blend": "matte.safetensors", "concat": "concat.safetensors", "sdxl": "sdxl.safetensors"}[kind]
    pipeline = ImprintPipeline.from_checkpoint(checked / "models" / "imprint" / file)
    pipeline.set_progress_bar_config(disable=True)
    views = [Image.open(SHIPPED.parent / "samples" / f"{name}.png") for name in ("object", "background", "hole")]

    with torch.no_grad():
        identity = pipeline.encode_object(views[0])
        assert (identity - graph["identity"]).abs().max() < 1e-4
        assert (pipeline.adapter(identity) - graph["context"]).abs().max() < 1e-4
        several = pipeline.encode_object([views[0], ImageOps.mirror(views[0])])
        assert several.shape == graph["views"].shape and several.shape[1] == 2
        assert (several[:, 0] - several[:, 1]).abs().max() > 0.1  # they are two
        assert (several - graph["views"]).abs().max() < 1e-4
        assert (pipeline.adapter(several) - graph["views_context"]).abs().max() < 1e-4
    options = dict(
        num_inference_steps=10,  # divides 1000: then both round the timesteps alike
        guidance_scale=3.0,
        context=1.6,
        latents=torch.randn(graph["latent"].shape, generator=torch.manual_seed(5)),
        feather_pixels=3,
        fit="fill",  # drawn, as the graph does, and not placed
        detail=0.0,
        light_from="left",
    )
    denoise, results = pipeline.denoise, []
    pipeline.denoise = lambda *args, **named: results.append(denoise(*args, **named)) or results[0]
    made = pipeline(views[0], None, *views[1:], **options, output_type="pt")
    assert (results[0][0] - graph["latent"]).abs().max() < 1e-3
    assert (made.images - graph["picture"].movedim(-1, 1)).abs().max() < 4e-3  # one step of 8 bits
    assert 0.05 < made.alpha.mean() < 0.9 and made.shadow.max() > 0.1
    in_frame = made.placement.insert(torch.zeros(1, 1, *graph["alpha"].shape[1:]), made.alpha[:, None])[:, 0]
    assert (in_frame - graph["alpha"]).abs().max() < 1e-3
