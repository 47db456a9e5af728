"""The speed of composites drawn by a model with random weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from imprint.checkpoint import read_config
from imprint.config import PRESETS
from imprint.model import build_modules
from imprint.noise import make_scheduler
from imprint.pipeline import ImprintPipeline

from .speed_inputs import disc, noise_picture
from .speed_trial import median

if TYPE_CHECKING:
    from .speed_trial import Trial

STEPS = 20
WINDOWS = 4


def random_pipeline(config: str, device: torch.device) -> ImprintPipeline:
    """A pipeline of a preset's or a file's sizes: in fp16 on a GPU, in fp32 and channels_last on a CPU, as the command
    uses it.
    """
    torch.manual_seed(0)
    settings = PRESETS[config] if config in PRESETS else read_config(config)
    with device:
        modules = build_modules(settings)
    half = device.type == "cuda"
    for module in modules.values():
        torch.nn.Module.to(module, torch.float16 if half else torch.float32).eval().requires_grad_(False)
    if not half:
        for name in ("unet", "vae"):
            torch.nn.Module.to(modules[name], memory_format=torch.channels_last)
    pipeline = ImprintPipeline(**modules, scheduler=make_scheduler(settings.noise), model_config=settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(side: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Object, background and hole: a box of half the background's side."""
    random = np.random.default_rng(0)
    subject, background = noise_picture(side, random), noise_picture(2 * side, random)
    subject.putalpha(disc(side))
    hole = Image.new("L", background.size)
    hole.paste(255, (side // 2, side // 2, 3 * side // 2, 3 * side // 2))
    return subject, background, hole


@torch.no_grad()
def time_composites(trial: Trial, config: str, results: int, mode: str) -> dict:
    """Times of `results` composites in one call, with `STEPS` steps and the configuration's guidance.

    mode: eager, offload (the same, with only the computing part on the GPU), graph, or one of torch.compile's. Times of
    a step of the sampling loop, of the same evaluations without the loop, before and after it, of the first call (with
    compilation) and of a whole later one; and the difference from the pictures of plain steps, of 255.
    """
    pipeline = random_pipeline(config, trial.device)
    if mode == "offload":
        trial.require_cuda()
        pipeline.enable_model_cpu_offload()
    elif mode != "eager":
        pipeline.compile(mode)
    subject, background, hole = pictures(pipeline.model_config.resolution)

    def whole(output_type: str = "pil") -> list[Image.Image] | torch.Tensor:
        return pipeline(
            subject,
            None,
            background,
            hole,
            STEPS,
            generator=torch.Generator().manual_seed(0),
            fit="fill",
            num_results=results,
            output_type=output_type,
        ).images

    trial.synchronize()
    began = time.perf_counter()
    whole()
    trial.synchronize()
    first = time.perf_counter() - began
    if trial.cuda:
        torch.cuda.reset_peak_memory_stats()
    composites = median([trial.timed(whole, 1, warmup=0) for _ in range(WINDOWS)])
    memory = trial.peak_memory()

    values = {
        "pictures_per_second": results / composites["seconds"],
        "spread": composites["spread"],
        "composite_seconds": composites["seconds"],
        "first_seconds": first,
    } | memory
    if mode == "offload":
        return values
    scene = pipeline.prepare(subject, None, background, hole)
    context, latents, latent_hole = (
        each.expand(results, *each.shape[1:]) for each in (scene.context, scene.latents, scene.hole)
    )
    noise = torch.randn(latents.shape, device=latents.device)
    guidance = pipeline.model_config.sampling.guidance_scale
    contexts = context if guidance == 1 else torch.cat([context, context])
    timestep = torch.tensor(500.0, device=noise.device)
    evaluate = pipeline._step()
    local = None if scene.local is None else scene.local.expand(results, -1, -1)
    more = {"hint": scene.hint, "local": local}
    both = None if local is None else local.repeat(len(contexts) // results, 1, 1)
    told = {"change": "both", "local": both, "control": pipeline.control, "hint": scene.hint}
    seen = timestep, latents, latent_hole, contexts.to(pipeline.unet.dtype), guidance

    def loop() -> tuple[torch.Tensor, torch.Tensor]:
        return pipeline.denoise(context, latents, latent_hole, noise, STEPS, **more)

    def model() -> None:
        for _ in range(STEPS):
            evaluate(pipeline.unet, noise, *seen, config=pipeline.model_config, **told)

    drawn = loop()
    parts = {
        "ms_per_step": loop,
        "model_ms_per_step": model,
        "prepare_ms": lambda: pipeline.prepare(subject, None, background, hole),
        "finish_ms": lambda: pipeline.finish(scene, *drawn),
    }
    # Interleaved, so that other load on the machine affects all alike.
    rounds = [[trial.timed(part, 1, warmup=0) for part in parts.values()] for _ in range(WINDOWS)]
    for name, seconds in zip(parts, zip(*rounds)):
        values[name] = median(seconds)["seconds"] / (STEPS if name.endswith("step") else 1) * 1e3
    if mode != "eager":
        made, pipeline._compiled = whole("pt"), None
        values["difference_of_255"] = float((made - whole("pt")).abs().max() * 255)
    return values
