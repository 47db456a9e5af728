"""A compiled sampling step draws the same as the plain one, and the loop never waits for the device."""

import diffusers
import elsewhere as device
import pytest
import torch
from drawing import run
from elsewhere import DEVICE, elsewhere, put
from nightly import at_night

from imprint import cli, runner
from imprint.errors import ImprintError
from imprint.pipeline import ImprintPipeline

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
"""What requires a value to come back from the device."""


@pytest.fixture(autouse=True)
def forget():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_picture_is_the_same(pipeline, scene, guidance, scheduler, monkeypatch):
    """Within 2 of 255, traced and differentiated by PyTorch, without the code generator, which is PyTorch's to test."""
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    settings = {"guidance_scale": guidance, "num_inference_steps": 3, "num_results": 2}
    plain = run(pipeline, scene, **settings).images
    pipeline.compile(backend="aot_eager")
    calls, step = [], pipeline._compiled
    monkeypatch.setattr(pipeline, "_compiled", lambda *given, **named: calls.append(1) or step(*given, **named))
    made = run(pipeline, scene, **settings).images
    assert len(calls) == 3 and torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert (made - plain).abs().max() <= 2 / 255 and (plain[0] != plain[1]).any()


def test_a_step_is_one_graph_and_is_compiled_once(pipeline, scene):
    """Nothing in it makes PyTorch fall back to Python, and no step is recompiled for its noise level."""
    torch._dynamo.utils.counters.clear()
    pipeline.compile(backend="eager")
    run(pipeline, scene, num_inference_steps=4, guidance_scale=2.0)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_a_machine_that_cannot_compile_says_so(pipeline, scene):
    def backend(*_):
        raise RuntimeError("no compiler was found\nby anyone")

    pipeline.compile(backend=backend)
    with pytest.raises(ImprintError, match=r"cannot compile the model here \(no compiler was found\); install what"):
        run(pipeline, scene)


def test_the_command_compiles(monkeypatch, tmp_path, micro_file):
    words = ["--checkpoint", str(micro_file), "--device", "cpu", "--out", str(tmp_path / "out.png"), "--fit", "fill"]
    seen = []
    monkeypatch.setattr(ImprintPipeline, "compile", lambda pipeline: seen.append(pipeline))
    monkeypatch.setattr(runner, "run_job", lambda job, insertions, pipeline, settings: seen.append(pipeline.model))
    assert cli.main(["demo", *words]) == 0 and len(seen) == 1
    assert cli.main(["demo", "--compile", *words]) == 0 and seen[1] is seen[2]


class Still(torch.nn.Module):
    """Stands in for the UNet: it predicts no noise."""

    dtype = torch.float32

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, contexts: torch.Tensor, **_others):
        assert timestep.device == sample.device and not timestep.ndim
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample * 0.1)


@at_night
@pytest.mark.parametrize(
    "name",
    ["EulerDiscrete", "DPMSolverMultistep", "DDIM", "UniPCMultistep", "EulerAncestralDiscrete", "HeunDiscrete"],
)
def test_no_step_waits_for_the_device(pipeline, monkeypatch, name):
    """Values are only read before the first step and after the last."""
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)
    pipeline.register_modules(unet=Still(), scheduler=scheduler)
    call, waits, steps = device._call, [], []

    def watch(function, arguments, options):
        result = call(function, arguments, options)
        given = any(isinstance(each, device._Elsewhere) for each in arguments)
        leaves = isinstance(result, torch.Tensor) and result.device != DEVICE
        if steps and given and (leaves or function.name().split(".")[0] in WAITS):
            waits.append(function.name())
        return result

    def callback(pipeline, index, timestep, given):
        steps.append(index)
        if index == last:
            steps.clear()
        return {}

    monkeypatch.setattr(device, "_call", watch)
    scheduler.set_timesteps(4)
    last = len(scheduler.timesteps) - 1
    latents = torch.zeros(1, 4, 8, 8)
    with elsewhere():
        inputs = map(put, (torch.zeros(1, 5, 32), latents, torch.ones(1, 1, 8, 8), latents + 1))
        drawn, _ = pipeline.denoise(*inputs, steps=4, guidance=1.0, callback=callback)
        assert drawn.device == DEVICE and not waits
        steps.append(0)
        drawn.sum().item()
        assert waits  # what is watched for would be seen
