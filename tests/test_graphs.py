"""A step recorded as a CUDA graph draws the same as the plain one.

A tape of operators stands in for the graph: like one, it is replayed in the memory in which it was recorded, whatever
Python has changed since.
"""

import contextlib
import types

import diffusers
import pytest
import torch
from drawing import DrawingPipeline, run
from micro import cutout, fresh_checkpoint, micro_config, sdxl_config, told_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imprint import graphs
from imprint.checkpoint import save_checkpoint
from imprint.errors import ImprintError
from imprint.graphs import Graphs
from imprint.unet import evaluated


class Tape(TorchDispatchMode):
    """Records the operators called while it is active, with the exact tensors that each takes and returns."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        made = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, made))
        return made

    def replay(self):
        self.replays += 1
        for function, args, kwargs, made in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again)):
                if isinstance(old, torch.Tensor):
                    with torch.inference_mode():  # where those that were made in it may be written to, too
                        old.copy_(new)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    made = []

    def tape():
        made.append(Tape())
        return made[-1]

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    stand_in = {
        "CUDAGraph": tape,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "graph_pool_handle": object,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda tape, pool: tape,
    }
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def both(pipeline: DrawingPipeline, scene, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of the plain step and of the recorded one."""
    before, pipeline._compiled = pipeline._compiled, None
    plain = run(pipeline, scene, **settings).images
    pipeline._compiled = before or Graphs(evaluated)
    return plain, run(pipeline, scene, **settings).images


def other(scene):
    return cutout(40, 50, seed=7), *scene[1:]


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_picture_is_the_same(pipeline, scene, tapes, scheduler):
    """Also for another object in another place, with the same graph."""
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    plain, made = both(pipeline, scene, guidance_scale=3.0, num_inference_steps=3)
    assert torch.equal(plain, made)
    elsewhere = other(scene)[0], scene[1], scene[2].transpose(0)
    second, again = both(pipeline, elsewhere, seed=1, guidance_scale=3.0, num_inference_steps=3)
    assert torch.equal(second, again) and not torch.equal(second, plain)
    assert len(tapes) == 1 and tapes[0].replays == 6


def test_first_in_inference_mode_and_then_without(pipeline, scene, tapes):
    pipeline._compiled = Graphs(evaluated)
    with torch.inference_mode():
        first = run(pipeline, scene, num_inference_steps=2).images
    assert torch.equal(first, run(pipeline, scene, num_inference_steps=2).images) and len(tapes) == 1


def test_each_shape_and_number_has_its_graph_and_few_are_kept(pipeline, scene, tapes):
    cases = [{}, {"num_results": 2}, {"guidance_scale": 1.0}, {"guidance_scale": 5.0}, {"resolution": 128}, {}]
    for case in cases:
        plain, made = both(pipeline, scene, num_inference_steps=2, **case)
        assert torch.equal(plain, made), case
    assert len(tapes) == 6  # the first was the oldest of five, and is recorded once more
    assert len(pipeline._compiled.kept) == graphs.MOST


@pytest.mark.parametrize("config", [told_config(), sdxl_config()], ids=["ControlCom", "SDXL"])
def test_of_other_models_too(config, tmp_path, scene, tapes):
    save_checkpoint(tmp_path / "other.safetensors", fresh_checkpoint(config))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "other.safetensors")
    changes = ["pose", "both"] if config.changes else [None]
    made = [both(pipeline, scene, num_inference_steps=2, change=change) for change in changes]
    assert all(torch.equal(plain, drawn) for plain, drawn in made) and len(tapes) == len(changes)


def test_weights_may_change_and_move(tmp_path, scene, tapes):
    save_checkpoint(tmp_path / "micro.safetensors", fresh_checkpoint(micro_config()))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "micro.safetensors")
    first, _ = both(pipeline, scene, num_inference_steps=2)
    with torch.no_grad():
        pipeline.unet.conv_out.bias += 1
    changed, made = both(pipeline, scene, num_inference_steps=2)
    assert torch.equal(changed, made) and not torch.equal(changed, first) and len(tapes) == 1
    weight = pipeline.unet.conv_out.weight
    weight.data = weight.data * 1.5
    moved, made = both(pipeline, scene, num_inference_steps=2)
    assert torch.equal(moved, made) and not torch.equal(moved, changed) and len(tapes) == 2


def test_a_lora_counts(tmp_path, scene, tapes):
    peft = pytest.importorskip("peft")
    save_checkpoint(tmp_path / "micro.safetensors", fresh_checkpoint(micro_config()))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "micro.safetensors")
    both(pipeline, scene, num_inference_steps=2)
    settings = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(settings, adapter_name="one")
    drawn = []
    for strength in (1.0, 3.0):
        pipeline.set_adapters("one", strength)
        plain, made = both(pipeline, scene, num_inference_steps=2)
        assert torch.equal(plain, made)
        drawn.append(plain)
    assert len(tapes) == 3 and not torch.equal(*drawn)


def test_what_cannot_be_recorded_says_so(pipeline, scene, tapes):
    def waits(*given, **named):
        made = evaluated(*given, **named)
        assert made[0].sum().item()
        return made

    pipeline._compiled = Graphs(waits)
    with pytest.raises(
        ImprintError, match=r"cannot be recorded .*\(operation not permitted when stream is capturing\)"
    ):
        run(pipeline, scene)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_recorded_in_channels_last(tmp_path, scene, tapes, monkeypatch, dtype):
    """Between the first and the last, no layer reorders the picture; in fp32 nothing changes."""
    save_checkpoint(tmp_path / "micro.safetensors", fresh_checkpoint(micro_config()))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "micro.safetensors", torch_dtype=dtype)
    plain = run(pipeline, scene, num_inference_steps=2).images
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(DrawingPipeline, "_execution_device", torch.device("cuda"))
        pipeline.compile()
    made = run(pipeline, scene, num_inference_steps=2).images
    layers = [args for function, args, *_ in tapes[0].calls if function is torch.ops.aten.convolution.default]
    wide = [args for args in layers if args[1].shape[-1] > 1]
    lasts = [all(each.is_contiguous(memory_format=torch.channels_last) for each in args[:2]) for args in wide]
    if dtype == torch.float32:
        assert torch.equal(plain, made) and not any(lasts)
    else:
        assert (plain - made).abs().max() < 0.02 and len(lasts) > 5 and all(lasts[1:])


def test_there_are_none_without_a_gpu(pipeline):
    with pytest.raises(ImprintError, match="CUDA graphs need a CUDA device, and this pipeline is on cpu"):
        pipeline.compile("graph")


def test_a_mode_that_pytorch_lacks_is_a_sentence(pipeline):
    with pytest.raises(ImprintError, match="in the mode 'fast'"):
        pipeline.compile("fast")
