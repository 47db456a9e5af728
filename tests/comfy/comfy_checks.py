"""Checks of the nodes inside ComfyUI's own process and Python; `test_checks.py` runs this file and reports each check.

    python comfy_checks.py COMFYUI PACK FOLDER [NAME ...]

FOLDER is empty and writable. The result is FOLDER/result.json: {check: null or the traceback}.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import time
import traceback
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

COMFYUI, PACK, FOLDER, *NAMES = sys.argv[1:]
sys.path.insert(0, COMFYUI)
sys.path.append(str(Path(__file__).parents[1]))

import comfy.cli_args  # noqa: E402
import utils.extra_config  # noqa: E402, F401  # early, as in main.py: core's nodes put another `utils` into sys.path

comfy.cli_args.args.cpu = True  # before comfy.model_management is imported
comfy.cli_args.args.fp32_text_enc = True

import comfy.clip_vision  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import server  # noqa: E402
import third_party_weights  # noqa: E402
import torch  # noqa: E402

import nodes as core  # noqa: E402

MODELS = Path(FOLDER) / "models"
SHIPPED = "imprint-tiny.safetensors"
STEPS = 2
CFG = 3.0


async def load_pack() -> None:
    server.PromptServer(asyncio.get_running_loop())
    assert await core.load_custom_node(PACK)


def prepare() -> None:
    folder_paths.models_dir = str(MODELS)
    for name in ("input", "output", "temp", "models/imprint"):
        (Path(FOLDER) / name).mkdir(parents=True, exist_ok=True)
    folder_paths.set_input_directory(f"{FOLDER}/input")
    folder_paths.set_output_directory(f"{FOLDER}/output")
    folder_paths.set_temp_directory(f"{FOLDER}/temp")
    asyncio.run(load_pack())


def module(name: str):
    """A module of the loaded pack, such as "imprint.checkpoint"."""
    root = core.NODE_CLASS_MAPPINGS["ImprintLoadCheckpoint"].__module__.removesuffix(".nodes.loaders")
    __import__(f"{root}.{name}")
    return sys.modules[f"{root}.{name}"]


def run(node: str, *args, **kwargs):
    """Run a node and return its outputs."""
    return core.NODE_CLASS_MAPPINGS[f"Imprint{node}"].execute(*args, **kwargs).result


def fails(*words: str, call) -> str:
    """Return the message of the ImprintError that the call raises; it must contain the words and be one paragraph."""
    try:
        call()
    except ValueError as error:
        message = str(error)
        assert type(error).__name__ == "ImprintError", repr(error)
        assert "\n" not in message and len(message) < 600, message
        for word in words:
            assert word in message, f"{word!r} is not in: {message}"
        return message
    raise AssertionError("no error was raised")


def telling(texts: list[str]):
    """Replaces `tell`: records what a node would show."""
    return lambda _, text: texts.append(text)


class Scene:
    """The shipped model, its samples, and a frame of exactly the model's size, so that nothing is resampled."""

    def __init__(self, checkpoint: str = SHIPPED):
        self.model, self.clip, self.adapter, self.vae = run("LoadCheckpoint", checkpoint)
        self.config = module("nodes.unet").imprint_config(self.model)
        self.object, self.transparent = core.LoadImage().load_image("imprint_object.png")
        self.identity = self.encoded(self.object, self.transparent, "background")
        self.positive, self.negative = run("ContentAdapter", self.adapter, self.identity, 1.0)
        side = self.config.resolution
        generator = torch.Generator().manual_seed(3)
        noise = torch.rand(1, 3, 16, 16, generator=generator)
        self.frame = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)
        self.mask = torch.zeros(1, side, side)
        self.mask[:, 64:200, 80:176] = 1

    def encoded(self, *inputs):
        """Outputs of Encode Object."""
        return run("IDEncoder", self.clip, *inputs)[0]

    def options(self, frame=None, mask=None, **options) -> dict:
        """Inputs of the sampler."""
        given = dict(
            model=self.model,
            vae=self.vae,
            positive=self.positive,
            negative=self.negative,
            background=self.frame if frame is None else frame,
            mask=self.mask if mask is None else mask,
            seed=5,
            steps=STEPS,
            cfg=CFG,
            sampler_name="euler",
            scheduler="simple",
            context=8.0,  # the whole frame
            resolution=0,
        )
        return given | options

    def sample_all(self, *args, **options) -> tuple[torch.Tensor, ...]:
        return run("CompositeSampler", **self.options(*args, **options))

    def sample(self, *args, **options) -> torch.Tensor:
        return self.sample_all(*args, **options)[0]


_scene: list[Scene] = []


def scene() -> Scene:
    if not _scene:
        _scene.append(Scene())
    return _scene[0]


def write_checkpoint(name: str, change) -> str:
    """Write a changed copy of the shipped checkpoint to ComfyUI's models, with a correct checksum.

    change: receives the checkpoint, and changes its parts in place or returns another.
    """
    files = module("imprint.checkpoint")
    checkpoint = files.load_checkpoint(files.SHIPPED)
    changed = change(checkpoint)
    checkpoint = changed if isinstance(changed, files.Checkpoint) else checkpoint
    files.save_checkpoint(MODELS / "imprint" / name, checkpoint)
    return name


def matte_checkpoint() -> str:
    """The shipped weights with a random matte, which takes values of all kinds."""
    return write_checkpoint("matte.safetensors", with_random_matte)


def with_random_matte(checkpoint, cells: int = 4):
    """cells: the matte's values per side of a latent cell; 0 for none."""
    config, unet = checkpoint.config, dict(checkpoint.parts["unet"])
    kept, generator = config.latent.channels, torch.Generator().manual_seed(1)
    weight, bias = (unet[f"conv_out.{name}"][:kept] for name in ("weight", "bias"))
    more = torch.randn(2 * cells**2, *weight.shape[1:], generator=generator).to(weight) * 0.2
    unet["conv_out.weight"] = torch.cat([weight, more])
    unet["conv_out.bias"] = torch.cat([bias, bias.new_zeros(len(more))])
    config = replace(config, matte=cells, unet=replace(config.unet, out_channels=kept + len(more)))
    return replace(checkpoint, config=config, parts=checkpoint.parts | {"unet": unet})


def concat_checkpoint() -> str:
    """The shipped weights with five more input channels, as SD-inpainting has."""

    def change(checkpoint):
        checkpoint = with_random_matte(checkpoint)
        config, unet = checkpoint.config, checkpoint.parts["unet"]
        first = unet["conv_in.weight"].float()
        more = torch.randn(len(first), 5, 3, 3, generator=torch.Generator().manual_seed(0)) * first.std()
        unet["conv_in.weight"] = torch.cat([first, more], 1).half()
        unet = replace(config.unet, in_channels=9)
        return replace(checkpoint, config=replace(config, background="concat", unet=unet))

    return write_checkpoint("concat.safetensors", change)


def sdxl_checkpoint() -> str:
    """The shipped weights around a narrow SDXL-like UNet, with random weights and a matte."""

    def change(checkpoint):
        unet = module("imprint.config").UNetConfig(
            in_channels=4,
            out_channels=36,
            widths=(32, 64, 128),
            layers_per_block=2,
            transformer_layers=(0, 1, 2),
            mid_transformer_layers=2,
            heads=(1, 2, 4),
            context_width=256,
            linear_projections=True,
            pooled_width=16,
        )
        config = replace(checkpoint.config, unet=unet, matte=4)
        shapes, names = unet_shapes(config)
        tensors = {
            theirs: third_party_weights.random_weight(name, tuple(shapes[name]), "")
            for theirs, name in names.items()
            if name in shapes and "class_embedding" not in theirs
        }
        return replace(checkpoint, config=config, parts=checkpoint.parts | {"unet": tensors})

    return write_checkpoint("sdxl.safetensors", change)


def unet_shapes(config) -> tuple[dict, dict]:
    """ComfyUI's UNet with these sizes: the shape of each tensor, and a map from diffusers' names to its own."""
    options = module("nodes.unet").ModelConfig(config).unet_config
    layers = module("nodes.shapes")
    plain = comfy.model_base.UNetModel(**options, device="meta", operations=layers.PLAIN_LAYERS)
    return layers.shapes_of(plain), comfy.utils.unet_to_diffusers(options)


def write_third_party(kind: str) -> str:
    """Write a third-party file with the seeded weights to ComfyUI's models."""
    path = MODELS / "imprint" / f"{kind}.pth"
    if not path.exists():
        torch.save({"state_dict": third_party_weights.random_weights("small", kind)}, path)
    return path.name


def split_path(of: Scene, sampler: str = "euler", scheduler: str = "simple") -> torch.Tensor:
    """The same crop with ComfyUI's own nodes."""
    pixels = torch.where(of.mask[..., None] > 0.5, 0.5, of.frame)
    (latent,) = core.VAEEncode().encode(of.vae, pixels)
    if of.config.background == "blend":
        (latent,) = core.SetLatentNoiseMask().set_mask(latent, of.mask)
        positive, negative = of.positive, of.negative
    else:
        positive, negative, background = core.InpaintModelConditioning().encode(
            of.positive, of.negative, pixels, of.vae, of.mask, noise_mask=False
        )
        latent = {"samples": torch.zeros_like(background["samples"])}
    (out,) = core.KSampler().sample(of.model, 5, STEPS, CFG, sampler, scheduler, positive, negative, latent)
    if of.config.background == "concat":  # nothing holds the background there while sampling; put it back
        hole = torch.nn.functional.max_pool2d(of.mask[:, None], 8)
        out["samples"] = torch.where(hole > 0, out["samples"], background["samples"])
    return core.VAEDecode().decode(of.vae, out)[0]


# ---------------------------------------------------------------------------------------------------- sampling


def check_split_path_gives_the_same_picture():
    of = scene()
    for sampler, scheduler in (("euler", "simple"), ("dpmpp_2m", "karras"), ("euler_ancestral", "sgm_uniform")):
        ours = of.sample(sampler_name=sampler, scheduler=scheduler)
        theirs = split_path(of, sampler, scheduler)
        difference = (ours - theirs).abs().max()
        # From sigma 4518 down, core's sum outside the mask keeps a rounding error: half of an 8-bit step at most.
        assert difference < 1e-3, f"{sampler}/{scheduler}: {difference:g}"
        assert (ours - of.frame).abs().max() > 0.1


def check_concat_checkpoints():
    of = Scene(concat_checkpoint())
    assert type(of.model.model).__name__ == "BaseModel" and of.model.model.concat_keys == ("mask", "masked_image")
    ours, inside = of.sample(), of.mask[..., None] > 0.5
    difference = (ours - split_path(of)).abs().max()
    assert difference < 1e-4, difference
    moved = of.sample(torch.flip(of.frame, (1,)))  # another background is seen, through the extra channels
    assert ((ours - moved) * inside).abs().max() > 1e-3


def check_sdxl_checkpoints():
    """A graph of ComfyUI's own nodes gives the same; the model is told the size at which it sees its crop."""
    of = Scene(sdxl_checkpoint())
    model = of.model.model
    assert isinstance(model, comfy.model_base.SDXL) and model.memory_usage_factor == 0.8
    assert model.latent_format.taesd_decoder_name == "taesdxl_decoder"
    difference = (of.sample() - split_path(of)).abs().max()
    assert difference < 1e-3, difference

    told, encode = [], model.encode_adm
    model.encode_adm = lambda **given: told.append(encode(**given)) or told[-1]
    try:
        of.sample(resolution=384)
    finally:
        del model.encode_adm
    sizes = [model.embedder(torch.tensor([number])) for number in (384, 384, 0, 0, 384, 384)]
    expected = torch.cat([torch.zeros(1, 16), torch.cat(sizes, 1)], 1)
    assert told and all(torch.equal(each, expected) for each in told)
    fails("is empty", "a VAE of SDXL", call=lambda: of.sample(vae=None))


def check_core_knows_sdxl_s_true_shapes():
    """Core's detection finds its own SDXL from our UNet's names and shapes, without the matte."""
    import comfy.model_detection
    import comfy.supported_models

    sdxl = module("imprint.config").PRESETS["sdxl"]
    sdxl = replace(sdxl, matte=0, unet=replace(sdxl.unet, out_channels=4))
    shapes, names = unet_shapes(sdxl)
    assert len(shapes) == 1680 and set(shapes) <= set(names.values())
    tensors = {f"unet.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = comfy.model_detection.model_config_from_unet(tensors, "unet.")
    assert type(found) is comfy.supported_models.SDXL
    ours = module("nodes.unet").ModelConfig(sdxl)
    for name, value in found.unet_config.items():
        assert ours.unet_config[name] == value, (name, value, ours.unet_config[name])
    assert ours.latent_format.scale_factor == found.latent_format.scale_factor == 0.13025


def check_the_spike_of_flux2():
    """For docs/flux2.md: a narrow FLUX.2 of core takes our tokens as CONDITIONING.

    One method shows it the clean background at every step.
    """
    import comfy.supported_models

    class Clean(comfy.model_base.Flux2):
        def scale_latent_inpaint(self, latent_image, **_):
            return latent_image

    sizes = {"in_channels": 128, "out_channels": 128, "context_in_dim": 256, "hidden_size": 64, "num_heads": 2}
    klein = {"vec_in_dim": None, "mlp_ratio": 3.0, "axes_dim": [8, 8, 8, 8], "theta": 2000, "patch_size": 1}
    klein |= {"qkv_bias": False, "guidance_embed": False, "txt_ids_dims": [3], "global_modulation": True}
    klein |= {"mlp_silu_act": True, "ops_bias": False, "depth": 1, "depth_single_blocks": 2, "image_model": "flux2"}
    model = Clean(comfy.supported_models.Flux2(sizes | klein))
    generator = torch.Generator().manual_seed(4)
    for parameter in model.diffusion_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    seen = []
    patcher.set_model_unet_function_wrapper(
        lambda apply, given: seen.append(given) or apply(given["input"], given["timestep"], **given["c"])
    )
    latent = torch.randn(1, 128, 6, 6, generator=generator)
    hole = torch.zeros(1, 1, 6, 6)
    hole[..., 2:4, 1:5] = 1
    of = scene()
    inputs = (of.positive, of.negative, {"samples": latent, "noise_mask": hole})
    (out,) = core.KSampler().sample(patcher, 5, 3, 1.0, "euler", "simple", *inputs)
    outside, clean = hole.expand_as(latent) == 0, model.process_latent_in(latent)
    assert len(seen) == 3
    for given in seen:
        assert torch.equal(given["input"][outside], clean[outside]) and given["timestep"].max() > 0
    # Core fills the text up to 512 tokens with zeros in front: an adapter must be trained so, or that be overridden.
    assert seen[0]["c"]["c_crossattn"].shape == (1, 512, 256) and not seen[0]["c"]["c_crossattn"][:, : 512 - 257].any()
    assert torch.equal(seen[0]["c"]["c_crossattn"][:, -257:], of.positive[0][0])
    assert torch.allclose(out["samples"][outside], latent[outside], atol=1e-5)
    assert (out["samples"] - latent)[~outside].abs().max() > 0.1
    (other,) = core.KSampler().sample(patcher, 5, 3, 1.0, "euler", "simple", of.negative, of.negative, inputs[2])
    assert (other["samples"] - out["samples"]).abs().max() > 1e-4  # the tokens reach the picture


def check_third_party_files():
    """Third-party files as released, compared with their own code's results for these weights; in fp32."""
    from safetensors.torch import load_file

    unet, noise, encode_views = module("nodes.unet"), module("imprint.noise"), module("nodes.clip_vision").encode_views
    given = third_party_weights.scene("small")
    for kind in third_party_weights.KINDS:
        golden = load_file(third_party_weights.FOLDER / f"{kind}.safetensors")
        model, clip, adapter, vae = run("LoadCheckpoint", write_third_party(kind))
        config = unet.imprint_config(model)
        tokens = encode_views(clip, given["pixels"] if config.changes else golden["pixels"])
        if config.encoder.local_layer:
            _, local = config.encoder.split(tokens)
            difference = (local[0, :, ::16, ::64] - golden["local"]).abs().max()
            assert difference < 1e-3, f"{kind}'s local tokens: {difference:g}"
        positive, negative = run("ContentAdapter", adapter, module("nodes.sockets").Subject(tokens, None), 1.0)
        difference = (positive[0][0] - golden["context"]).abs().max()
        assert difference < 1e-3, f"{kind}'s tokens: {difference:g}"

        def close(name: str, found: torch.Tensor, kind=kind, golden=golden):
            difference = (found - golden[name]).abs().max()
            assert difference < 1e-3, f"{kind}'s {name}: {difference:g}"

        scale = config.latent.scale_factor  # of the UNet's latents over ComfyUI's
        beside = {"concat_latent_image": given["background"] / scale, "concat_mask": given["hole"]}
        positive, negative = ([[context, values | beside] for context, values in each] for each in (positive, negative))
        alpha_bar = noise.alphas_cumprod(config.noise)
        sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().float()
        first = sigmas[901]
        # Their sampler starts with noise alone at a timestep before the last, where ComfyUI's sampling scales it by
        # sigma.
        start = given["noise"] * (first**2 + 1).sqrt() / first
        seen = []

        def record(apply, arguments, seen=seen):
            seen.append(apply(arguments["input"], arguments["timestep"], **arguments["c"]))
            return seen[-1]

        watched = model.clone()
        watched.set_model_unet_function_wrapper(record)
        steps = sigmas[[*range(901, 0, -100), 0]]  # their ten timesteps; the end keeps the first timestep's noise
        options = (5.0, comfy.samplers.sampler_object("euler"), steps, positive, negative, torch.zeros_like(start))
        found = comfy.sample.sample_custom(watched, start, *options, disable_pbar=True)
        close("latent", found * scale * alpha_bar[0].sqrt().float())
        assert len(seen) in (10, 20)
        if "encoded" in golden:  # ControlCom's autoencoder is the other two's
            close("encoded", vae.encode(given["picture"].movedim(1, -1)) * scale)

        fails("2 views", "one picture", call=lambda clip=clip: run("IDEncoder", clip, *two_views(), "object"))
        with torch.inference_mode():
            of = Scene(write_third_party(kind))
            small = {"resolution": 64, "cfg": 5.0, "scheduler": "ddim_uniform"}
            ours = of.sample(**small)
            assert ours.isfinite().all() and (ours - of.frame).abs().max() > 0.1


def check_anydoor():
    """AnyDoor's file as released, compared with its own code's results for these weights; in fp32."""
    from safetensors.torch import load_file

    noise, control, encode_views = (
        module("imprint.noise"),
        module("nodes.control"),
        module("nodes.clip_vision").encode_views,
    )
    subject, black = module("nodes.sockets").Subject, module("imprint.preprocess").black_picture
    given, golden = third_party_weights.scene("small"), load_file(third_party_weights.FOLDER / "anydoor.safetensors")
    of = Scene(write_third_party("anydoor"))
    tokens = encode_views(of.clip, torch.cat([given["pixels"], black(of.config.encoder)]))
    conditionings = run("ContentAdapter", of.adapter, subject(tokens[:, :1], of.identity.views, tokens[:, 1:]), 1.0)
    for name, found in zip(("context", "null"), conditionings):
        difference = (found[0][0][:, ::16] - golden[name]).abs().max()
        assert difference < 1e-3, f"{name}: {difference:g}"

    conditionings = control.apply_control(of.model, *conditionings, given["hint"])
    alpha_bar = noise.alphas_cumprod(of.config.noise)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    start = given["noise"] * (sigmas[901] ** 2 + 1).sqrt() / sigmas[901]
    steps = sigmas[[*range(901, 0, -100), 0]]  # its ten timesteps; the end keeps the first timestep's noise
    options = (5.0, comfy.samplers.sampler_object("euler"), steps, *conditionings, torch.zeros_like(start))
    found = comfy.sample.sample_custom(of.model, start, *options, disable_pbar=True)
    difference = (found * of.config.latent.scale_factor * alpha_bar[0].sqrt().float() - golden["latent"]).abs().max()
    assert difference < 1e-3, f"latent: {difference:g}"

    small = {"resolution": 64, "cfg": 5.0, "scheduler": "ddim_uniform"}
    with torch.inference_mode():
        ours = of.sample(**small)
        assert ours.isfinite().all() and (ours - of.frame).abs().max() > 0.1
        assert torch.equal(ours, of.sample(**small))
        twice = of.sample(of.frame.repeat(2, 1, 1, 1), of.mask.repeat(2, 1, 1), **small)  # each crop has its hint
        assert twice.shape[0] == 2 and (twice[:1] - ours).abs().max() < 1e-3
        inside = of.mask[..., None] > 0.5
        moved = of.sample(torch.flip(of.frame, (1,)), **small)  # the background is seen, by the ControlNet
        assert ((ours - moved) * inside).abs().max() > 1e-3
        collage, where = run("ShowHint", of.model, of.positive, of.frame, of.mask, 8.0)
        edges = (collage - of.frame).abs().amax(-1) > 0.01  # the whole frame is the crop
        assert collage.shape == of.frame.shape and where.shape == of.mask.shape and where.unique().tolist() == [0, 1]
        assert not edges[where == 0].any() and edges[where == 1].float().mean() > 0.9
        assert (where - of.mask).min() == 0 and 1.1 < where.sum() / of.mask.sum() < 1.3
        outline = of.mask.clone()
        outline[:, :100, :100] = 0
        assert torch.equal(run("ShowHint", of.model, of.positive, of.frame, outline, 8.0)[1], outline)
        drawn = (where > 0) & (collage.amax(-1) > 0.1)  # the object's edges on black
        assert 0.005 < drawn.sum() / where.sum() < 0.6
        _, pasted, outline = run(
            "PlaceObject", of.frame, of.object, box(150, 120, 200, 160), object_mask=of.transparent
        )
        positive, _ = run("ContentAdapter", of.adapter, of.encoded(pasted, outline, "object"), 1.0)
        collage, where = run("ShowHint", of.model, positive, of.frame, outline, 8.0)
        assert torch.equal(where > 0, outline > 0.5)
        drawn = (collage.amax(-1) > 0.1) & ((collage - of.frame).abs().amax(-1) > 0.01)
        assert drawn.sum() > 50 and drawn[outline > 0.5].sum() > 0.95 * drawn.sum()  # where it was put
    shipped = scene()
    fails("no ControlNet", call=lambda: run("ShowHint", shipped.model, shipped.positive, shipped.frame, shipped.mask))
    plain = [[context, {}] for context, _ in of.positive]
    fails("does not hold the object's pictures", "Condition on Object", call=lambda: of.sample(positive=plain, **small))
    fails("2 views", "one picture", call=lambda: run("IDEncoder", of.clip, *two_views(), "object"))
    lost = subject(of.identity.tokens, of.identity.views)
    fails("the tokens of no object", "CLIP_VISION", call=lambda: run("ContentAdapter", of.adapter, lost, 1.0))


def check_what_may_be_changed():
    """ControlCom's keep and light with a placed object use its photo and its box; other models take no such choice."""
    of = Scene(write_third_party("controlcom"))
    where = box(150, 120, 200, 160)
    _, pasted, outline = run("PlaceObject", of.frame, of.object, where, object_mask=of.transparent)
    identity = of.encoded(pasted, outline, "object")
    made = {}
    for change in ("keep", "light", "pose", "both"):
        positive, negative = run("ContentAdapter", of.adapter, identity, 1.0, change)
        given = {"positive": positive, "negative": negative, "resolution": 128, "steps": 1}
        made[change], drawn_in, *_ = of.sample_all(mask=outline, **given)
    rows, columns = (outline[0] > 0.5).nonzero().unbind(1)
    inside = torch.zeros_like(outline, dtype=torch.bool)
    inside[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert torch.equal(drawn_in > 0.5, inside) and (outline > 0.5).sum() < inside.sum()  # all of the object's box
    for one, other in itertools.combinations(made, 2):
        assert (made[one] - made[other]).abs().max() > 1e-3, f"{one} is {other}"
    shipped = scene()
    fails(
        "no choice of what to change",
        call=lambda: run("ContentAdapter", shipped.adapter, shipped.identity, 1.0, "light"),
    )
    plain = [[context, {}] for context, _ in of.positive]
    fails("does not say what to change", "Condition on Object", call=lambda: of.sample(positive=plain))


def two_views() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 40, 40, 3), torch.ones(1, 40, 40)


def check_background_stays_clean():
    """IMPRINT's rule: at every step the UNet sees the clean background outside the hole."""
    of, seen = scene(), []

    def record(apply, arguments):
        scaled = arguments["input"] / (arguments["timestep"][:, None, None, None] ** 2 + 1) ** 0.5
        seen.append(scaled.clone())
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = of.model.clone()
    model.set_model_unet_function_wrapper(record)
    of.sample(model=model, steps=4)
    outside = torch.nn.functional.max_pool2d(of.mask[:, None], 8) == 0
    first = seen[0] * outside
    assert len(seen) >= 4 and first.abs().max() > 0.1
    for later in seen[1:]:
        assert (later * outside - first[: len(later)]).abs().max() < 1e-5


def check_same_seed_twice():
    of = scene()
    assert torch.equal(of.sample(), of.sample())
    assert not torch.equal(of.sample(), of.sample(seed=6))


def check_sampler_batches():
    of = scene()
    frames, other = of.frame.repeat(3, 1, 1, 1), torch.zeros_like(of.mask)
    other[:, 10:60, 20:100] = 1
    masks = torch.cat([of.mask, other])
    small = {"context": 1.6, "resolution": 64, "steps": 1}
    assert of.sample(frames, of.mask, **small).shape == frames.shape
    two = of.sample(of.frame, masks, **small)
    assert two.shape == (2, *of.frame.shape[1:])
    assert not torch.equal(two[0], two[1])
    assert torch.equal(two[1, 220:], of.frame[0, 220:])  # far from the second mask nothing is touched
    assert of.sample(frames[:2], masks, **small).shape[0] == 2
    fails("3 of backgrounds", "2 of masks", call=lambda: of.sample(frames, masks, **small))


def check_variations_count_the_seed_up():
    of, small = scene(), {"context": 1.6, "resolution": 64, "steps": 2, "sampler_name": "euler_ancestral"}
    picture, mask, *maps = of.sample_all(seed=5, variations=3, **small)
    assert picture.shape == (3, *of.frame.shape[1:]) and torch.equal(mask, of.mask)
    for index in range(3):
        alone = of.sample_all(seed=5 + index, **small)
        assert torch.equal(picture[index], alone[0][0])
        assert all(torch.equal(many[index], one[0]) for many, one in zip(maps, alone[2:]))
    assert not torch.equal(picture[0], picture[1]) and not torch.equal(picture[1], picture[2])
    small["sampler_name"] = "euler"  # core's ancestral samplers do not take the highest seed
    assert torch.equal(of.sample(seed=2**64 - 1, variations=2, **small)[1:], of.sample(seed=0, **small))
    detailed = run("RestoreDetail", picture, maps[0], "auto", 1.0, of.identity)
    blended = run("BackgroundBlend", of.frame, detailed[0], mask, 4, 0, 0.0, alpha=detailed[1], shadow=maps[1])[0]
    assert blended.shape == picture.shape
    fails("variations is 2", "2 came", call=lambda: of.sample(of.frame.repeat(2, 1, 1, 1), variations=2, **small))


def check_frames_of_the_same_noise_do_not_flicker():
    """Equal frames give equal pictures, the same as each by itself; with separate noise they differ."""
    for of in (matte_scene(), Scene(concat_checkpoint())):
        frames, small = of.frame.repeat(3, 1, 1, 1), {"resolution": 64, "steps": 2}
        alone, same, own = (
            of.sample(each, same_noise=noise, **small)
            for each, noise in ((of.frame, False), (frames, True), (frames, False))
        )
        assert (same - alone).abs().max() < 1e-3 < (own - alone).abs().max()


def check_sampler_masks():
    of, small = scene(), {"context": 1.6, "resolution": 64, "steps": 1}
    whole = of.sample(mask=of.mask, **small)
    assert torch.equal(of.sample(mask=of.mask[0], **small), whole)
    assert torch.equal(of.sample(mask=of.mask[:, None], **small), whole)
    for strength in (0.98, 0.3):  # the faint one is a mask too, and goes on at full strength
        picture, mask, *_ = of.sample_all(mask=of.mask * strength, **small)
        assert torch.equal(picture, whole) and torch.equal(mask, of.mask)
    assert of.sample(mask=of.mask[:, ::2, ::2], **small).shape == of.frame.shape  # another size is stretched
    full = of.sample(mask=torch.ones_like(of.mask), **small)
    assert full.isfinite().all() and (full - of.frame).abs().mean() > 0.01
    fails("64x64", "Load Image", call=lambda: of.sample(mask=torch.zeros(1, 64, 64)))
    fails("empty", "0.5", call=lambda: of.sample(mask=of.mask * 0))
    fails("mask 2 of 2", call=lambda: of.sample(mask=torch.cat([of.mask, of.mask * 0])))
    fails("shape", call=lambda: of.sample(mask=torch.zeros(1, 3, 8, 8)))
    fails("resolution is 40", call=lambda: of.sample(resolution=40))
    border = torch.zeros_like(of.mask)
    border[:, :9, -30:] = 1
    assert of.sample(mask=border, **small).shape == of.frame.shape


def check_sampler_keeps_alpha():
    of, alpha = scene(), torch.rand(1, 256, 256, 1)
    rgba = torch.cat([of.frame, alpha], -1)
    result = of.sample(rgba, context=1.6, resolution=64, steps=1)
    assert torch.equal(result[..., 3:], alpha)
    assert torch.equal(result[..., :3], of.sample(context=1.6, resolution=64, steps=1))
    (blended,) = run("BackgroundBlend", rgba, result, of.mask, 4, 0, 0.5)
    assert torch.equal(blended[..., 3:], alpha)


def peak(call) -> int:
    """Peak memory of a call in bytes, above what is resident before it; only on Linux.

    Exact in a process whose allocator returns freed memory at once, as `check_a_large_background...` starts it.
    """

    def status(name: str) -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def write_memory(folder: Path) -> None:
    """Memory in bytes for sampling the crop alone, and on 8192 x 8192 with a hole of that size, three times each.

    Also of that background.
    """
    of, side = scene(), 8192
    crop, hole = of.frame, of.mask
    top, left = 5000, 3000
    frame, mask = torch.rand(1, side, side, 3), torch.zeros(1, side, side)
    mask[:, top : top + hole.shape[1], left : left + hole.shape[2]] = hole
    options = {"context": 1.6, "steps": 2}
    of.sample(crop, hole, **options)  # what is made once and kept is neither's
    alone, large = (
        [peak(lambda given=given: of.sample(*given, **options)) for _ in range(3)]
        for given in ((crop, hole), (frame, mask))
    )
    (folder / "memory.json").write_text(json.dumps({"alone": alone, "large": large, "background": frame.nbytes}))


def check_a_large_background_costs_no_more_than_itself():
    """In a separate process whose allocator keeps no freed memory, so that sizes are exact to a few MiB."""
    if not Path("/proc/self/clear_refs").exists() or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        return
    folder, mebibyte = Path(FOLDER) / "memory", 2**20
    folder.mkdir()
    command = [sys.executable, __file__, COMFYUI, PACK, str(folder), "write_memory"]
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": "0"}
    allocator["NUMPY_MADVISE_HUGEPAGE"] = "0"  # the kernel makes huge pages whole that were written to a little
    done = subprocess.run(command, env=os.environ | allocator, capture_output=True, text=True, timeout=600)
    assert (folder / "memory.json").is_file(), done.stderr[-4000:]
    sizes = json.loads((folder / "memory.json").read_text())
    alone, large = sizes["alone"], sizes["large"]
    print({name: [size / mebibyte for size in each] for name, each in (("alone", alone), ("large", large))})
    for each in (alone, large):
        assert max(each) - min(each) < 8 * mebibyte, sizes
    assert max(large) <= min(alone) + sizes["background"], sizes


def matte_scene() -> Scene:
    return Scene(matte_checkpoint())


def plain_scene() -> Scene:
    """Without a matte, as in former checkpoints."""
    return Scene(write_checkpoint("plain.safetensors", lambda each: with_random_matte(each, 0)))


def check_matte():
    """The UNet's additional channels leave the picture unchanged, the maps are the sampler's, and no state remains."""
    of, plain = matte_scene(), plain_scene()
    picture, mask, alpha, shadow = of.sample_all()
    assert torch.equal(picture, plain.sample()) and torch.equal(mask, of.mask)
    for each, most in ((alpha, 0.9), (shadow, 0.5)):  # a shadow is a mean over latent cells, here of noise
        assert each.shape == mask.shape and each.min() == 0 and most < each.max() <= 1
        assert 0.1 < each[mask > 0].mean() < 0.9 and not each[:, :50].any()
    assert not torch.equal(alpha, shadow)
    assert torch.equal(split_path(of), split_path(plain))  # a plain KSampler takes no notice
    assert not of.model.model_options["transformer_options"]


def check_matte_is_in_the_square_alone():
    of, plain = matte_scene(), plain_scene()
    small = {"context": 1.6, "resolution": 64, "steps": 1}
    frames, other = of.frame.repeat(2, 1, 1, 1), torch.zeros_like(of.mask)
    other[:, 10:40, 20:60] = 1
    masks, find = torch.cat([of.mask, other]), module("imprint.hole").Hole.find
    _, _, alpha, shadow = of.sample_all(frames, masks, **small)
    picture, _, square, none = plain.sample_all(frames, masks, **small)
    for index, mask in enumerate(masks):
        outside = torch.ones_like(mask, dtype=torch.bool)
        outside[find(mask, 64, 1.6, of.config.multiple).placement.area] = False
        for each in (alpha, shadow):
            assert each[index].any() and not each[index][outside].any()
        assert torch.equal(square[index], (~outside).float())
    # Without a matte the blend is the one that it would be without them.
    blend = (frames, picture, masks, 9, 3, 0.0)
    assert torch.equal(run("BackgroundBlend", *blend, alpha=square, shadow=none)[0], run("BackgroundBlend", *blend)[0])


def small_matte_scene() -> Scene:
    """A 64 x 64 frame for `sample_matte`, entirely inside the crop."""
    of = matte_scene()
    of.frame, of.mask = of.frame[:, :64, :64], torch.zeros(1, 64, 64)
    of.mask[:, 16:48, 20:60] = 1
    return of


def sample_matte(of: Scene, model=None, **options) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The sampler's alpha and shadow (2, B, 64, 64), and all the UNet's logits for a positive conditioning."""
    matte, model, kinds, outputs = module("nodes.matte"), (model or of.model).clone(), [], []
    split = matte.split_matte

    def record(apply, given):
        kinds.append(given["cond_or_uncond"])
        return apply(given["input"], given["timestep"], **given["c"])

    def keep(output, config):
        outputs.append(split(output, config)[1])
        return split(output, config)

    model.set_model_unet_function_wrapper(record)
    with patch.object(matte, "split_matte", keep):
        maps = of.sample_all(model=model, resolution=64, **options)[2:]
    chunks = [zip(each, output.chunk(len(each))) for each, output in zip(kinds, outputs)]
    return torch.stack(maps), [logits for each in chunks for kind, logits in each if kind == 0]


def maps_of(of: Scene, *logits: torch.Tensor) -> torch.Tensor:
    """Alpha and shadow from the logits' mean."""
    hole = torch.nn.functional.max_pool2d(of.mask[:, None], 8)
    return torch.stack(module("nodes.matte").matte_pixels(torch.stack(logits).mean(0), hole, of.config))


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and bool((first - second).abs().max() < 1e-4)


def check_matte_is_the_last_evaluation_s_with_every_sampler_and_scheduler():
    of, cfg = small_matte_scene(), 3.0
    chosen = [{"sampler_name": name} for name in comfy.samplers.KSampler.SAMPLERS]
    chosen += [{"scheduler": name} for name in comfy.samplers.KSampler.SCHEDULERS]
    for options in chosen:
        maps, logits = sample_matte(of, steps=3, cfg=cfg, **options)
        last, former = ((maps - maps_of(of, each)).abs().max() for each in (logits[-1], logits[-2]))
        assert last < 1e-4 and last < former / 10, (options, cfg)  # the last steps of some schedules are very short
        cfg = 4.0 - cfg  # by turns with guidance and without


def check_matte_is_the_object_s_however_conditionings_are_batched():
    """It is of the positive conditioning, batched with the negative or alone; several are averaged, as in ComfyUI."""
    of = small_matte_scene()
    turned = [[of.positive[0][0].flip(1) * 0.5, {}]]
    maps, logits = sample_matte(of)
    assert len(logits) == STEPS and same(maps, maps_of(of, logits[-1]))
    both, logits = sample_matte(of, positive=of.positive + turned)
    assert len(logits) == 2 * STEPS and same(both, maps_of(of, *logits[-2:]))
    assert not any(same(both, maps_of(of, each)) for each in logits)

    with patch.object(type(of.model), "get_free_memory", lambda *_: 0):  # each conditioning in a batch of its own
        assert same(sample_matte(of)[0], maps) and same(sample_matte(of, positive=of.positive + turned)[0], both)

    (part,) = core.ConditioningSetArea().append(turned, 32, 32, 0, 0, 1.0)
    maps, logits = sample_matte(of, positive=of.positive + part)
    (whole,) = [each for each in logits[-2:] if each.shape[2:] == (8, 8)]
    assert len(logits) == 2 * STEPS and same(maps, maps_of(of, whole))
    fails("an area", call=lambda: sample_matte(of, positive=part))


def check_matte_with_patches_of_the_model():
    """Guidance by a worse prediction needs one more evaluation, which is not the picture's; some patches omit one."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    of = small_matte_scene()
    for patched in (
        PerturbedAttentionGuidance.execute(of.model, 3.0),
        SelfAttentionGuidance.execute(of.model, 0.5, 2.0),
    ):
        maps, logits = sample_matte(of, patched.result[0])
        assert len(logits) == 2 * STEPS and same(maps, maps_of(of, logits[-2]))

    def leave_out(executor, latents, timesteps, *arguments, **options):
        return (
            torch.zeros_like(latents) if timesteps[0] < least else executor(latents, timesteps, *arguments, **options)
        )

    patched, least = of.model.clone(), 900
    patched.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, leave_out)
    maps, logits = sample_matte(of, patched, steps=3)
    assert len(logits) == 1 and same(maps, maps_of(of, logits[-1]))
    least = 1000
    fails("patch of the MODEL", call=lambda: sample_matte(of, patched))


def check_matte_leaves_nothing_behind():
    of, nodes_matte, logits = small_matte_scene(), module("nodes.matte"), []
    split = nodes_matte.split_matte

    def watch(output, config):
        prediction, matte = split(output, config)
        logits.append(weakref.ref(matte))
        assert sum(each() is not None for each in logits) <= 2  # no step's but the last one's is kept
        return prediction, matte

    with patch.object(nodes_matte, "split_matte", watch):
        of.sample(resolution=64, steps=4)
    assert len(logits) == 4 and not any(each() is not None for each in logits)
    assert not of.model.model_options["transformer_options"] and not of.model.wrappers


def check_blend_with_a_matte():
    """Where both maps are 0 the background stays bit for bit, even inside the mask; elsewhere the equation holds."""
    background, generated = torch.rand(1, 60, 80, 3), torch.rand(1, 60, 80, 3)
    mask = torch.zeros(1, 60, 80)
    mask[:, 20:40, 30:50] = 1
    alpha, shadow = torch.rand(1, 60, 80), torch.rand(1, 60, 80)
    free = torch.rand(1, 60, 80) > 0.5
    alpha[free] = shadow[free] = 0
    free, inside = free[..., None].expand_as(background), mask[..., None].expand_as(background) > 0
    (soft,) = run("BackgroundBlend", background, generated, mask, 4, 2, 0.0, alpha=alpha, shadow=shadow)
    assert torch.equal(soft[free], background[free])
    (hard,) = run("BackgroundBlend", background, generated, mask, 0, 0, 0.0, alpha=alpha, shadow=shadow)
    a, s = alpha[..., None], shadow[..., None]
    expected = a * generated + (1 - a) * (1 - s) * background
    assert (hard - expected)[inside].abs().max() < 1e-6 and torch.equal(hard[~inside], background[~inside])
    everything = {"alpha": torch.ones_like(mask), "shadow": shadow}
    blend = (background, generated, mask, 4, 2, 0.5)
    assert torch.equal(run("BackgroundBlend", *blend, **everything)[0], run("BackgroundBlend", *blend)[0])
    stretched = run("BackgroundBlend", background, generated, mask, 0, 0, 0.0, alpha=alpha[:, ::2, ::2])[0]
    assert stretched.shape == background.shape
    white = torch.ones_like(background)
    assert torch.equal(run("BackgroundBlend", white, white, mask, 0, 0, 0.0, alpha=alpha)[0], white)
    two = torch.cat([alpha, shadow])
    assert len(run("BackgroundBlend", background, generated, mask, 0, 0, 0.0, alpha=two, shadow=shadow)[0]) == 2
    fails("shadow", "without alpha", call=lambda: run("BackgroundBlend", *blend, shadow=shadow))
    fails("not finite", "alpha", call=lambda: run("BackgroundBlend", *blend, alpha=alpha * float("nan")))
    fails("64x64", "alpha", call=lambda: run("BackgroundBlend", *blend, alpha=torch.zeros(1, 64, 64)))


def check_tensors_may_lie_apart():
    """As with --gpu-only, where one node returns GPU tensors and another CPU tensors; see `elsewhere.py`."""
    from elsewhere import DEVICE, elsewhere, put

    picture, other = torch.rand(1, 60, 80, 3), torch.rand(1, 60, 80, 3)
    mask, alpha = torch.zeros(1, 60, 80), torch.zeros(1, 60, 80)
    mask[:, 10:50, 20:60] = alpha[:, 15:45, 25:55] = 1
    view, outline = shape(50, 40)
    other[:, 15:45, 25:55] = view[:, 4:34, 4:34]
    restored = {"generated": other, "alpha": alpha, "image": view, "mask": outline}
    blended = {"background": picture, "generated": other, "mask": mask}
    nodes = {
        "RestoreDetail": (restored, {"mask_marks": "object", "strength": 1.0}),
        "BackgroundBlend": (blended, {"feather_out": 4, "feather_in": 2, "colour_match": 0.5}),
        "MaskCoarsener": ({"mask": mask}, {"level": "coarse", "margin": 2, "min_size": 32}),
    }
    for name, (tensors, values) in nodes.items():
        here = run(name, **tensors, **values)
        for where in itertools.product((False, True), repeat=len(tensors)):
            with torch.inference_mode(False), elsewhere():
                moved = {key: put(each) if there else each for (key, each), there in zip(tensors.items(), where)}
                apart = run(name, **moved, **values)
                assert all(
                    (made.device == DEVICE) == where[0] and torch.equal(made.cpu(), expected)
                    for made, expected in zip(apart, here)
                ), (name, where)


def check_sampler_shows_its_crop():
    of, node = scene(), core.NODE_CLASS_MAPPINGS["ImprintCompositeSampler"]
    small = {"context": 1.6, "resolution": 64, "steps": 1}
    assert node.execute(**of.options(**small)).ui is None
    shown = node.execute(**of.options(**small, show_crop=True)).ui.as_dict()["images"]
    before, after = (core.LoadImage().load_image(f"{each['filename']} [temp]")[0] for each in shown)
    assert before.shape == after.shape == (1, 64, 64, 3)
    grey = (before - 0.5).abs().amax(-1) < 0.01  # the hole, painted out
    assert 0.2 < grey.float().mean() < 0.6 and not torch.equal(before, after)


def check_sampler_enlarges_what_is_too_small():
    of, small = scene(), {"context": 1.6, "resolution": 64, "steps": 1}
    assert torch.equal(of.sample_all(**small)[1], of.mask)
    soft = of.mask.clone()
    soft[:, 64:90] = 0.7 * of.mask[:, 64:90]
    assert torch.equal(of.sample_all(mask=soft, **small)[1], soft)  # the user's own, not thresholded
    dot = torch.zeros_like(of.mask)
    dot[:, 100:104, 60:62] = 1
    picture, mask, *_ = of.sample_all(mask=dot, **small)
    assert mask.sum() == 16 * 16 and bool(mask[:, 94:110, 53:69].all())
    assert (picture - of.frame)[mask > 0].abs().mean() > 0.01


def check_sampler_refuses_what_does_not_fit():
    of = scene()
    foreign = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), torch.device("cpu"), torch.device("cpu"))
    fails("Linear", "Imprint: Load Checkpoint", call=lambda: of.sample(model=foreign))
    fails("VAE is empty", "Load VAE", call=lambda: of.sample(vae=None))
    fails("16", "4", call=lambda: of.sample(vae=SimpleNamespace(latent_channels=16)))
    text = [[torch.zeros(1, 77, 768), {}]]
    fails("positive", "768", "256", call=lambda: of.sample(positive=text))
    fails("negative", "768", "256", call=lambda: of.sample(negative=text))


# ---------------------------------------------------------------------------------------------------- encoder, adapter


def check_encoder_masks():
    of = scene()
    opaque = 1 - of.transparent

    def tokens(image, mask, marks="object"):
        return of.encoded(image, mask, marks).tokens

    same = tokens(of.object, opaque)
    assert torch.equal(same, of.identity.tokens)
    assert torch.equal(tokens(of.object, opaque[0]), same)
    assert torch.equal(tokens(of.object, opaque, "auto"), same)
    assert torch.equal(tokens(of.object, of.transparent, "auto"), same)
    views = of.object.repeat(3, 1, 1, 1)
    three = tokens(views, opaque)
    assert three.shape == (1, 3, *same.shape[2:]) and torch.allclose(three[:, 1:2], same, atol=1e-4)
    assert tokens(of.object, torch.ones(1, 8, 8)).shape == same.shape
    assert tokens(of.object, torch.zeros(1, 8, 8), "background").shape == same.shape
    assert tokens(of.object, opaque * 0.7).isfinite().all()
    empty = torch.zeros(1, 64, 64)
    for marks in ("object", "background"):
        fails("64x64", call=lambda marks=marks: run("IDEncoder", of.clip, of.object, empty, marks))
    fails("empty", "'background'", call=lambda: run("IDEncoder", of.clip, of.object, opaque * 0, "object"))
    fails("white everywhere", call=lambda: run("IDEncoder", of.clip, of.object, opaque * 0 + 1, "background"))
    two = opaque.repeat(2, 1, 1)
    fails("2 masks", "1 picture", call=lambda: run("IDEncoder", of.clip, of.object, two, "object"))
    fails("2 masks", "3 picture", call=lambda: run("IDEncoder", of.clip, views, two, "object"))


def check_encoder_shows_the_cutout():
    of = scene()
    node = core.NODE_CLASS_MAPPINGS["ImprintIDEncoder"]
    (shown,) = node.execute(of.clip, of.object, of.transparent, "background").ui.as_dict()["images"]
    picture, _ = core.LoadImage().load_image(f"{shown['filename']} [temp]")
    assert picture.shape == (1, 224, 224, 3) and float(picture[0, 0].max()) == 0  # black around the object


def check_nodes_say_what_is_white_and_what_was_laid():
    of, said = scene(), []
    conditioning, image = (
        patch.object(module(f"nodes.{name}"), "tell", telling(said)) for name in ("conditioning", "image")
    )
    picture, _, alpha, _ = of.sample_all()
    other = torch.rand(1, 60, 60, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 60, 60)
    other[1][:, 28:32, 4:56] = 1
    with conditioning, image:
        of.encoded(of.object, of.transparent, "auto")
        of.encoded(of.object, 1 - of.transparent, "auto")
        by_identity = run("RestoreDetail", picture, alpha, "auto", 1.0, of.identity)
        by_picture = run("RestoreDetail", picture, alpha, "auto", 1.0, None, of.object, of.transparent)
        drawn = run("RestoreDetail", picture, alpha, "auto", 1.0, of.identity, *other)
        run("RestoreDetail", picture, alpha, "auto", 0.0, of.identity)
    assert said[0].endswith("the background.") and said[1].endswith("the object.")
    assert said[2].startswith("the photo is laid over ") and said[2].endswith(" % of the object"), said
    assert said[3].startswith(said[2]) and said[3].endswith("the background.")
    assert said[4].startswith("the photo does not fit") and said[5].startswith("strength is 0")
    assert all(map(torch.equal, by_identity, by_picture)) and not torch.equal(by_identity[0], picture)
    assert torch.equal(drawn[0], picture) and torch.equal(drawn[1], alpha)  # what is connected goes before the identity
    for given in ({}, {"image": of.object}, {"identity": of.identity, "mask": of.transparent}):
        fails(
            "Encode Object", "mask", call=lambda given=given: run("RestoreDetail", picture, alpha, "auto", 1.0, **given)
        )


def check_core_dinov2_works_too():
    of = scene()
    options = of.clip.config | {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    clip = comfy.clip_vision.ClipVisionModel(options)
    for parameter in clip.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    (identity,) = run("IDEncoder", clip, of.object, of.transparent, "background")
    assert identity.tokens.shape == (1, 1, 257, 128)
    fails(
        "Encode Object",
        "128",
        "Condition on Object",
        "256",
        call=lambda: run("ContentAdapter", of.adapter, identity, 1.0),
    )
    clip.model_type = "clip_vision_model"
    fails("DINOv2", "DINOv3", call=lambda: run("IDEncoder", clip, of.object, of.transparent, "background"))


def dinov3_checkpoint(swiglu: bool):
    """The shipped weights with transformers' random DINOv3 as the encoder; returns the file's name and that model."""
    import transformers

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_register_tokens": 4}
    gated = {"use_gated_mlp": True, "hidden_act": "silu"} if swiglu else {}
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(intermediate_size=512, **sizes, **gated)).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def change(checkpoint):
        config = module("imprint.config")
        encoder = config.dinov3(width=128, layers=2, heads=2, swiglu=swiglu)
        adapter = config.tokens_adapter(encoder, layers=1, heads=2, output_width=256)
        plain = module("imprint.adapter").ContentAdapter(adapter)
        tensors = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
        config = replace(checkpoint.config, encoder=encoder, adapter=adapter)
        return replace(
            checkpoint, config=config, parts=checkpoint.parts | {"encoder": tensors, "adapter": plain.state_dict()}
        )

    return write_checkpoint(f"dinov3-{swiglu}.safetensors", change), model


def check_dinov3_is_the_library_s():
    """From a checkpoint, and with ComfyUI's own loader: transformers' tokens without its registers."""
    for swiglu in (False, True):
        name, model = dinov3_checkpoint(swiglu)
        of = Scene(name)
        config = of.clip.imprint_encoder
        pixels, _ = of.identity.views.prepared(config)
        theirs = model(pixels).last_hidden_state
        theirs = torch.cat([theirs[:, :1], theirs[:, 5:]], 1)
        assert of.identity.tokens.shape == (1, 1, 197, 128)
        assert (of.identity.tokens[0] - theirs).abs().max() < 1e-3 * theirs.abs().max()
        assert of.sample().shape == of.frame.shape
        del of.clip.imprint_encoder  # as one from Load CLIP Vision
        assert torch.equal(of.encoded(of.object, of.transparent, "background").tokens, of.identity.tokens)


def check_core_s_lora_loader_applies_ours():
    """`training.train finetune` writes kohya's names for diffusers' modules; core finds all of them in our MODEL."""
    for name in (SHIPPED, sdxl_checkpoint()):
        apply_lora(name)


def apply_lora(checkpoint: str) -> None:
    """A LoRA of random weights for the checkpoint; core's loader applies it to the right weights."""
    import safetensors.torch

    path = folder_paths.get_full_path("imprint", checkpoint)
    attention = {
        name.removesuffix(".weight"): tensor.float()
        for name, tensor in module("imprint.checkpoint").load_checkpoint(path).parts["unet"].items()
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
    }
    lora, random = {}, torch.Generator().manual_seed(0)
    for name, weight in attention.items():
        key = "lora_unet_" + name.replace(".", "_")
        lora[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=random) * 0.1
        lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=random) * 0.1
        lora[f"{key}.alpha"] = torch.tensor(2.0)
    (MODELS / "loras").mkdir(exist_ok=True)
    folder_paths.add_model_folder_path("loras", str(MODELS / "loras"))
    safetensors.torch.save_file(lora, MODELS / "loras" / "mug.safetensors")

    model = run("LoadCheckpoint", checkpoint)[0]
    tuned = core.LoraLoaderModelOnly().load_lora_model_only(model, "mug.safetensors", 1.0)[0]
    assert len(tuned.patches) == len(attention) > 0
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    for name, weight in attention.items():
        key = "lora_unet_" + name.replace(".", "_")
        place = f"diffusion_model.{names[name + '.weight']}"
        expected = weight + lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
        merged = tuned.patch_weight_to_device(place, return_weight=True)
        assert torch.allclose(merged.float().cpu(), expected, atol=2e-3), name


FEW_STEPS = "imprint-tiny-2-steps.safetensors"


def with_few_steps(model):
    """The MODEL with the shipped LoRA, as core's node lists and loads it."""
    loader = core.LoraLoaderModelOnly()
    assert FEW_STEPS in loader.INPUT_TYPES()["required"]["lora_name"][0]
    return loader.load_lora_model_only(model, FEW_STEPS, 1.0)[0]


def check_core_s_lora_loader_applies_the_shipped_one():
    """All of its layers, as `merge_lora` does; and core's two steps are those that it was trained for."""
    lora, files = module("imprint.lora"), module("imprint.checkpoint")
    of = scene()
    tuned, sampling = with_few_steps(of.model), of.model.get_model_object("model_sampling")
    weights, layers = files.load_checkpoint(files.SHIPPED).parts["unet"], lora.read_lora(lora.FEW_STEPS)
    names = comfy.utils.unet_to_diffusers(of.model.model.model_config.unet_config)
    paths = {name.removesuffix(".weight").replace(".", "_"): name for name in weights if name.endswith(".weight")}
    assert len(tuned.patches) == len(layers) > 100
    for name, layer in layers.items():
        weight = weights[paths[name]].float()
        merged = tuned.patch_weight_to_device(f"diffusion_model.{names[paths[name]]}", return_weight=True)
        assert torch.allclose(merged.float().cpu(), weight + layer.change(weight.shape), atol=2e-3), name

    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 2)
    assert sampling.timestep(sigmas[:2]).tolist() == [999, 499] and sigmas[2] == 0
    euler, solver = (of.sample(model=tuned, steps=2, cfg=1.0, sampler_name=name) for name in ("euler", "dpmpp_2m"))
    assert (euler - solver).abs().max() < 1e-3  # rounding, from sigma 4518 down
    assert (euler - of.sample(steps=2, cfg=1.0)).abs().max() > 0.05


def check_adapter_strength():
    of = scene()
    (positive, _), (negative, _) = of.positive[0], of.negative[0]
    assert positive.shape == negative.shape == (1, 257, of.config.unet.context_width)
    none = run("ContentAdapter", of.adapter, of.identity, 0.0)[0][0][0]
    assert torch.allclose(none, negative, atol=1e-6)
    double = run("ContentAdapter", of.adapter, of.identity, 2.0)[0][0][0]
    assert torch.allclose(double, 2 * positive - negative, atol=1e-4)
    pair = of.encoded(of.object.repeat(2, 1, 1, 1), of.transparent, "background")
    views = run("ContentAdapter", of.adapter, pair, 1.0)
    assert views[0][0][0].shape == views[1][0][0].shape == (1, 514, of.config.unet.context_width)


# ---------------------------------------------------------------------------------------------------- masks, blend


def check_coarsener():
    mask = torch.zeros(2, 96, 128)
    mask[0, 30:50, 40:70] = mask[1, 80:96, 0:5] = 1
    levels = [run("MaskCoarsener", mask, level, 2, 0)[0] for level in module("imprint.masks").LEVELS]
    for finer, coarser in zip([mask, *levels], levels):
        assert coarser.shape == mask.shape and bool((coarser >= finer).all())
    assert torch.equal(run("MaskCoarsener", mask[0], "box", 2, 0)[0], levels[-1][:1])
    assert run("MaskCoarsener", mask, "precise", 0, 60)[0].sum(2).amax(1).min() >= 60
    fails("64x64", call=lambda: run("MaskCoarsener", torch.zeros(1, 64, 64), "box", 0, 0))
    fails("empty", call=lambda: run("MaskCoarsener", torch.zeros(1, 96, 128), "box", 0, 0))
    full = torch.ones(1, 32, 32)
    assert torch.equal(run("MaskCoarsener", full, "coarse", 0, 0)[0], full)
    soft = (mask + torch.nn.functional.max_pool2d(mask, 9, 1, 4) * 0.4).clamp(0, 1)  # the edge is not the mask
    for strength in (1, 0.3):
        assert torch.equal(run("MaskCoarsener", soft * strength, "precise", 0, 0)[0], mask), strength
    roomy = run("MaskCoarsener", mask[:1], "precise", 2, 0, shadow_room=9)[0][0]
    assert roomy[28:61, 38:72].all() and roomy.sum() == 33 * 34


def check_coarsener_says_what_made_the_mask_larger():
    sizes, mask = [], torch.zeros(1, 96, 128)
    mask[:, 70:90, 60:80] = 1
    with patch.object(module("nodes.mask"), "tell", telling(sizes)):
        run("MaskCoarsener", mask, "precise", 8, 32)
        run("MaskCoarsener", mask, "precise", 0, 20)
        run("MaskCoarsener", mask, "precise", 2, 32)
        run("MaskCoarsener", torch.ones(1, 20, 30), "precise", 0, 32)  # there is no room to enlarge it in
        run("MaskCoarsener", mask, "precise", 6, 32, shadow_room=9)  # grown beyond the picture's bottom
        run("MaskCoarsener", mask.flip(1), "precise", 6, 32, shadow_room=9)
    why = ": smaller than min_size 32, enlarged around its centre"
    assert sizes == [
        "20x20 px drawn, 36x34 px now",
        "20x20 px drawn, 20x20 px now",
        "20x20 px drawn, 32x32 px now" + why,
        "30x20 px drawn, 30x20 px now",
        "20x20 px drawn, 32x32 px now",
        "20x20 px drawn, 32x41 px now",
    ], sizes


def check_coarsener_shows_the_mask_over_the_background():
    node, mask = core.NODE_CLASS_MAPPINGS["ImprintMaskCoarsener"], torch.zeros(1, 48, 64)
    mask[:, 10:20, 30:40] = 1
    background = torch.rand(1, 96, 128, 3)  # any size

    def shown(**options) -> torch.Tensor:
        result = node.execute(mask, "precise", 0, 0, **options)
        assert torch.equal(result.result[0], mask)
        (picture,) = result.ui.as_dict()["images"]
        return core.LoadImage().load_image(f"{picture['filename']} [temp]")[0]

    assert torch.equal(shown()[..., 0], mask)
    over, inside = shown(background=background), torch.zeros(96, 128, dtype=torch.bool)
    inside[18:42, 58:82] = True  # and the stretched edge
    assert over.shape == background.shape
    assert (over - background)[0, ~inside].abs().max() < 1 / 255 and (over - background)[
        0, 22:38, 62:78
    ].abs().mean() > 0.1
    fails(
        "2 of backgrounds",
        "3 of masks",
        call=lambda: node.execute(mask.repeat(3, 1, 1), "box", 0, 0, background=background.repeat(2, 1, 1, 1)),
    )


def shape(*size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An object's photo (1, H, W, 3) and its mask, white on an object that does not touch the photo's border."""
    mask = torch.zeros(1, *size)
    mask[:, 4:-4, 4:-4] = 1
    return torch.rand(1, *size, 3), mask


def box(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return dict(x=x, y=y, width=width, height=height)


def put(*args, **options):
    """The PlacedObjects of Place Object, its picture and its mask."""
    placed, image, mask = run("PlaceObject", *args, **options)
    (objects,) = placed.objects
    return objects, image, mask


def check_place_in_a_box():
    background, (photo, mask) = torch.rand(1, 90, 120, 3), shape(48, 28)  # the object has 40x20 pixels
    (there,), image, alpha = put(background, photo, box(50, 10, 60, 80), object_mask=mask)
    assert there.box == (10, 60, 90, 100) and there.size == (90, 120)
    assert torch.equal(alpha[0, 10:90, 60:100], there.alpha)
    assert int((alpha > 0).sum()) == int((there.alpha > 0).sum())
    assert torch.equal(image[alpha == 0], background[alpha == 0]) and not torch.equal(image, background)
    inner = slice(20, 80), slice(70, 90)
    assert torch.allclose(image[0][inner], there.colours.movedim(0, -1)[10:70, 10:30], atol=1e-6)
    for across, down, corner in (
        ("left", "bottom", (10, 50)),
        ("right", "top", (10, 70)),
        ("center", "middle", (10, 60)),
    ):
        (there,), *_ = put(background, photo, box(50, 10, 60, 80), align_x=across, align_y=down, object_mask=mask)
        assert there.corner == corner
    for down, top in (("bottom", 70), ("middle", 40), ("top", 10)):
        (there,), *_ = put(background, photo, box(50, 10, 10, 80), align_y=down, object_mask=mask)
        assert there.corner == (top, 50) and there.alpha.shape == (20, 10)
    (there,), *_ = put(
        background, photo, box(50, 10, 60, 80), align_x="left", align_y="top", inset=0.25, object_mask=mask
    )
    assert there.box == (25, 65, 75, 90)  # 15 of 60 kept free along each side
    (there,), *_ = put(background, photo, box(50, 10, 60, 80), rotate=90.0, object_mask=mask)
    assert there.alpha.shape == (30, 60)
    (plain,), *_ = put(background, photo, box(50, 10, 20, 40), object_mask=mask)
    (other,), *_ = put(background, photo, box(50, 10, 20, 40), flip=True, object_mask=mask)
    assert torch.equal(plain.colours.flip(-1), other.colours) and not torch.equal(plain.colours, other.colours)
    (there,), *_ = put(
        background, photo, box(-10, -10, 5000, 5000), object_mask=mask
    )  # what of it is in the background
    assert there.box == (0, 38, 90, 83)
    fails("outside", "120x90", call=lambda: put(background, photo, box(120, 0, 50, 50), object_mask=mask))
    unused, options = box(0, 0, 9, 9), {"place": "whole picture", "align_x": "right", "align_y": "top", "inset": 0.1}
    (there,), *_ = put(background, photo, unused, object_mask=mask, **options)
    assert there.box == (9, 75, 81, 111)
    hole = torch.ones(1, 90, 120)
    fails(
        "'whole picture'", "mask", call=lambda: put(background, photo, unused, object_mask=mask, mask=hole, **options)
    )
    options["inset"] = 0.5
    fails("inset is 0.5", call=lambda: put(background, photo, unused, object_mask=mask, **options))


def check_place_by_a_mask_or_as_it_lies():
    background, (photo, mask) = torch.rand(1, 90, 120, 3), shape(48, 28)
    hole = torch.zeros(1, 90, 120)
    hole[:, 10:90, 50:110] = 1
    hole[:, 10:20, 50:60] = 0  # an outline
    by_box, by_mask = (put(background, photo, box(*where), object_mask=mask, **options)[1] for where, options in
                       (((50, 10, 60, 80), {}), ((0, 0, 9, 9), {"mask": hole})))  # fmt: skip
    assert torch.equal(by_box, by_mask)
    layer = torch.rand(1, 90, 120, 4)
    layer[..., 3] = 0
    layer[:, 30:50, 40:70, 3] = torch.rand(1, 20, 30)
    layer[:, 40, 50, 3] = 1
    (there,), image, alpha = put(background, layer, box(0, 0, 9, 9), place="as it lies")
    assert there.box == (30, 40, 50, 70) and torch.equal(alpha, layer[..., 3])
    assert torch.allclose(image, torch.lerp(background, layer[..., :3], layer[..., 3:]), atol=1e-6)
    fails("48", "90", call=lambda: put(background, photo, box(0, 0, 9, 9), place="as it lies", object_mask=mask))
    fails("another place", call=lambda: put(background, layer, box(0, 0, 9, 9), place="as it lies", mask=hole))
    fails("rotate", call=lambda: put(background, layer, box(0, 0, 9, 9), place="as it lies", rotate=5.0))
    fails("empty", call=lambda: put(background, photo, box(0, 0, 9, 9), object_mask=mask, mask=hole * 0))
    unpainted = torch.zeros(1, 64, 64)  # of the background's Load Image
    assert torch.equal(put(background, photo, box(50, 10, 60, 80), object_mask=mask, mask=unpainted)[1], by_box)
    assert torch.equal(put(background, layer, box(0, 0, 9, 9), place="as it lies", mask=unpainted)[1], image)


def check_place_sees_what_is_white():
    background, (photo, mask) = torch.rand(1, 90, 120, 3), shape(48, 28)
    said, where = [], box(50, 10, 60, 80)
    with patch.object(module("nodes.place"), "tell", telling(said)):
        white = put(background, photo, where, object_mask=mask)[1]
        black = put(background, photo, where, object_mask=1 - mask)[1]
        own = put(background, torch.cat([photo, mask[..., None]], -1), where)[1]
        told = put(background, photo, where, mask_marks="object", object_mask=1 - mask)[2]
    assert torch.equal(white, black) and torch.equal(white, own)
    assert [text.rpartition(" ")[2] for text in said] == ["object.", "background.", "object.", "object."], said
    assert said[0].startswith("40x80 px at 60,10 in 120x90")
    assert float(told[0, 50, 80]) == 0 < float(told.max())  # the photo's border is the object
    fails("no mask", "Remove Background", call=lambda: put(background, photo, where))
    fails("64x64", call=lambda: put(background, photo, where, object_mask=torch.zeros(1, 64, 64)))
    fails("empty", call=lambda: put(background, photo, where, object_mask=mask * 0))
    opaque = torch.cat([photo, torch.ones_like(photo[..., :1])], -1)  # as Join Image with Alpha makes of a plain photo
    fails("no mask", call=lambda: put(background, opaque, where))
    fails("white everywhere", call=lambda: put(background, photo, where, object_mask=mask * 0 + 1))


def check_place_batches():
    backgrounds, (photo, mask) = torch.rand(3, 90, 120, 3), shape(48, 28)
    photos, where = torch.rand(3, 48, 28, 3), box(50, 10, 60, 80)
    single = [put(backgrounds[i : i + 1], photos[i : i + 1], where, object_mask=mask)[1] for i in range(3)]
    assert torch.equal(put(backgrounds, photos, where, object_mask=mask)[1], torch.cat(single))
    one = put(backgrounds[:1], photos, where, object_mask=mask)
    assert len(one[0]) == len(one[1]) == len(one[2]) == 3 and torch.equal(one[1][0], single[0][0])
    fails("3 of backgrounds", "2 of objects", call=lambda: put(backgrounds, photos[:2], where, object_mask=mask))
    clear = torch.cat([backgrounds, torch.rand(3, 90, 120, 1)], -1)
    (placed, image, _) = run("PlaceObject", clear, photo, where, object_mask=mask)
    assert torch.equal(image[..., 3], clear[..., 3])
    assert torch.equal(run("Relight", placed, 1.0, 1.0, 0.0)[0][..., 3], clear[..., 3])


def check_place_shows_the_paste():
    node, (photo, mask) = core.NODE_CLASS_MAPPINGS["ImprintPlaceObject"], shape(48, 28)
    made = node.execute(torch.rand(1, 90, 120, 3), photo, box(50, 10, 60, 80), object_mask=mask)
    (shown,) = made.ui.as_dict()["images"]
    picture, _ = core.LoadImage().load_image(f"{shown['filename']} [temp]")
    assert (picture - made.result[1]).abs().max() < 1 / 255


def lit_scene(where=(150, 120, 90, 160), count: int = 1):
    """Place Object's output for the sample pictures."""
    background = core.LoadImage().load_image("imprint_background.png")[0].repeat(count, 1, 1, 1)
    photo, transparent = core.LoadImage().load_image("imprint_object.png")
    return background, run("PlaceObject", background, photo, box(*where), object_mask=transparent)


def check_a_cast_shadow_is_the_package_s():
    background, (_, pasted, alpha) = lit_scene((150, 120, 90, 160), 2)
    light, place = module("imprint.light"), module("imprint.place")
    put = place.PlacedObject.from_layer(pasted[1].movedim(-1, 0), alpha[1])
    net = module("imprint.lightnet").load_light()
    lit = light.relight(net, background[1:].movedim(-1, 1), put, 0.0, 1.2, 0.3, "left")
    transparent = torch.cat([background, background[..., :1]], 3)
    given = (transparent, pasted, alpha * torch.tensor([0.0, 1.0])[:, None, None])
    (image,) = run("CastShadow", *given, 1.2, 0.3, light_from="left")
    assert torch.equal(image[0], transparent[0])  # nothing was drawn there
    expected = transparent[1].clone()
    expected[lit.area][..., :3] = lit.ground()[0].movedim(0, -1)
    assert torch.equal(image[1], expected) and (background[1] - image[1, ..., :3]).max() > 0.1
    assert torch.equal(run("CastShadow", *given, 0.0, 0.0)[0], transparent)
    fails("79x", "generated", call=lambda: run("CastShadow", background, pasted[:, :, :79], alpha, 1.0, 0.0))
    fails("shadow", "1.5", call=lambda: run("CastShadow", *given, 1.6, 0.0))


def check_light_is_the_package_s():
    background, (placed, pasted, alpha) = lit_scene()
    light = module("imprint.light")
    net = module("imprint.lightnet").load_light()
    ((put,),) = placed.objects
    rows, columns = light.square_around(net, put).area
    lit = light.relight(net, background.movedim(-1, 1), put, 0.8, 1.2, 0.3)
    image, *layers = run("Relight", placed, 0.8, 1.2, 0.3)
    assert torch.equal(image[0, rows, columns], lit.composite()[0].movedim(0, -1))
    outside = torch.ones(image.shape[:3], dtype=torch.bool)
    outside[:, rows, columns] = False
    assert torch.equal(image[outside], background[outside]) and outside.any()
    changed = (image != background).any(-1)
    assert not changed[(alpha == 0) & (layers[0][..., 3] == 0)].any() and changed[alpha > 0.9].float().mean() > 0.9
    assert (layers[0][..., 3] > 0).sum() > 100  # there is a shadow
    stacked = background
    for layer in layers:
        assert layer.shape == (*image.shape[:3], 4)
        stacked = torch.lerp(stacked, layer[..., :3], layer[..., 3:])
    assert (stacked - image).abs().max() < 1e-3
    assert torch.equal(run("Relight", placed, 0.0, 0.0, 0.0)[0], pasted)


def check_light_of_several():
    placed = lit_scene(count=2)[1][0]
    image, *layers = run("Relight", placed, 1.0, 1.0, 0.0)
    one = run("Relight", lit_scene()[1][0], 1.0, 1.0, 0.0)
    assert torch.equal(image, one[0].repeat(2, 1, 1, 1)) and all(len(layer) == 2 for layer in layers)


def check_light_keeps_transparency_and_what_it_is_given():
    background, (placed, *_) = lit_scene(count=2)
    clear = torch.cat([background, torch.rand(*background.shape[:3], 1)], -1)
    given = clear.clone()
    photo, transparent = core.LoadImage().load_image("imprint_object.png")
    (layered, *_) = run("PlaceObject", clear, photo, box(150, 120, 90, 160), object_mask=transparent)
    strengths = (1.0, 1.0, 0.0)
    image, *layers = run("Relight", layered, *strengths)
    plain, *same = run("Relight", placed, *strengths)
    assert torch.equal(image[..., :3], plain) and torch.equal(image[..., 3:], given[..., 3:])
    assert all(map(torch.equal, layers, same)) and torch.equal(clear, given)


def check_several_objects_are_one_after_another():
    """Chained by `after` in one run: the same, bit for bit, as with the first's finished picture as the background."""
    background, (first, *_) = lit_scene()
    photo, transparent = core.LoadImage().load_image("imprint_object.png")
    where, strengths = box(200, 160, 110, 160), (1.0, 1.2, 0.2)
    finished, *layers = run("Relight", first, *strengths)
    (second, *_) = run("PlaceObject", finished, photo, where, object_mask=transparent)
    one_by_one, *last = run("Relight", second, *strengths)
    both, pasted, alpha = run("PlaceObject", background, photo, where, object_mask=transparent, after=first)
    together, *all_layers = run("Relight", both, *strengths)
    assert torch.equal(together, one_by_one) and not torch.equal(together, finished)
    assert all(map(torch.equal, all_layers, map(torch.cat, zip(layers, last))))
    ((there,),) = second.objects
    assert torch.equal(alpha[(0, *there.area)], there.alpha)
    assert torch.equal(run("Relight", both, 0.0, 0.0, 0.0)[0], pasted)
    (((front,),), ((behind,),)) = second.objects, first.objects
    assert (behind.box[3] > front.box[1]) and ((together - finished)[0][front.area].abs().sum(-1) > 0)[
        front.alpha > 0.9
    ].float().mean() > 0.9  # they overlap, and the second stands in front

    three = photo.repeat(3, 1, 1, 1)
    batch = run("PlaceObject", background, three, where, object_mask=transparent, after=first)[0]
    assert torch.equal(run("Relight", batch, *strengths)[0], together.repeat(3, 1, 1, 1))
    for other, why in ((background[:, ::2], "400x200"), (background * 0.5, "another picture")):
        fails(why, "after", call=lambda other=other: run(
            "PlaceObject", other, photo, box(9, 9, 99, 99), object_mask=transparent, after=first))  # fmt: skip


JOB = """{"background": "imprint_background.png", "shadow": 1.2, "objects": [
    {"object": "imprint_object.png", "at": [150, 330], "height": 180, "softness": 0.2},
    {"object": "imprint_duck.webp", "at": [260, 370], "height": 110, "light": 0.7}]}"""


def check_a_job_is_what_the_nodes_make():
    """Each object's place, as a sufficiently wide box of that height."""
    (picture,) = run("Job", JOB)
    background = core.LoadImage().load_image("imprint_background.png")[0]
    for name, (x, y), height, strengths in (
        ("imprint_object.png", (150, 330), 180, (1.0, 1.2, 0.2)),
        ("imprint_duck.webp", (260, 370), 110, (0.7, 1.2, 0.0)),
    ):
        photo, transparent = core.LoadImage().load_image(name)
        where = box(x - 120, y - height, 240, height)
        (placed, *_) = run("PlaceObject", background, photo, where, object_mask=transparent)
        background = run("Relight", placed, *strengths)[0]
    assert picture.shape == background.shape and (picture - background).abs().mean() < 2e-3  # two readers of WebP


def check_a_job_aligns_as_the_node_does():
    """In the whole 400x400 background, with 20 pixels kept free along each side."""
    background = core.LoadImage().load_image("imprint_background.png")[0]
    photo, transparent = core.LoadImage().load_image("imprint_object.png")
    for across, down in (("left", "top"), ("right", "middle"), ("center", "bottom")):
        job = {
            "background": "imprint_background.png",
            "object": "imprint_object.png",
            "align": [across, down],
            "inset": 0.05,
        }
        (picture,) = run("Job", json.dumps(job))
        options = {"align_x": across, "align_y": down, "inset": 0.05, "place": "whole picture"}
        (placed, *_) = run("PlaceObject", background, photo, box(0, 0, 9, 9), object_mask=transparent, **options)
        lit = run("Relight", placed, 1.0, 1.0, 0.0)[0]
        assert torch.allclose(picture, lit, rtol=0, atol=1e-6)  # the mask was 1 - alpha on the way


def check_a_job_refuses_what_it_cannot_do():
    start = '{"background": "imprint_background.png", "object": "imprint_object.png"'
    for rest, *words in (
        ("", "not JSON"),
        ("}", "nothing to say where"),
        (', "mask": "imprint_hole.png"}', "object 1 of 1", "Draw Object"),
        (', "at": [200, 390], "fit": "outline"}', "object 1 of 1", "Draw Object"),
        (', "at": [9, 9], "object_mask": "../secret.png"}', "outside ComfyUI's input folder"),
        (', "at": [9, 9], "object_mask": "/etc/hostname"}', "outside ComfyUI's input folder"),
        (', "align": "left", "height": 400, "inset": 0.2}', "object 1 of 1", "height is 400, but in the 240x240"),
        (', "at": [900, 9]}', "object 1 of 1", "outside the 400x400"),
        (', "where": 3}', "unknown keys: where"),
    ):
        fails(*words, call=lambda rest=rest: run("Job", start + rest))
    with_out = start + ', "at": [200, 390], "out": "/nowhere/a.png"}'
    assert run("Job", with_out)[0].shape == (1, 400, 400, 3)


def write_job(folder: Path) -> None:
    """For test_checks.py: the picture of `JOB`, and the job."""
    from PIL import Image

    (picture,) = run("Job", JOB)
    Image.fromarray((picture[0] * 255).round().byte().numpy()).save(folder / "job.png")
    (folder / "job.json").write_text(JOB.replace("\n", " "))


def check_light_refuses_what_does_not_fit():
    placed = lit_scene()[1][0]
    fails("light is 2", call=lambda: run("Relight", placed, 2.0, 1.0, 0.0))
    fails("no light network", SHIPPED, call=lambda: run("Relight", placed, 1.0, 1.0, 0.0, SHIPPED))
    fails("imprint-light", call=lambda: run("LoadCheckpoint", "imprint-light.safetensors"))
    torch.save({"a": torch.zeros(1)}, MODELS / "imprint" / "light.pt")
    fails("pickle", call=lambda: run("Relight", placed, 1.0, 1.0, 0.0, "light.pt"))


def check_light_is_freed():
    models, seen = module("nodes.models"), []
    loaded = models.Light.loaded

    def watch(light):
        seen.append(weakref.ref(light.patcher.model))
        return loaded(light)

    with patch.object(models.Light, "loaded", watch):
        run("Relight", lit_scene()[1][0], 1.0, 1.0, 0.0)
    gc.collect()
    comfy.model_management.cleanup_models()
    assert len(seen) == 1 and seen[0]() is None


def check_blend():
    background, generated = torch.rand(1, 60, 80, 3), torch.rand(1, 60, 80, 3)
    mask = torch.zeros(1, 60, 80)
    mask[:, 20:40, 30:50] = 1
    grown = torch.nn.functional.max_pool2d(mask, 9, 1, 4)[..., None].expand_as(background) > 0
    for match in (0.0, 1.0):
        (result,) = run("BackgroundBlend", background, generated, mask, 4, 2, match)
        assert torch.equal(result[~grown], background[~grown]) and not torch.equal(result, background)
    (hard,) = run("BackgroundBlend", background, generated, mask, 0, 0, 0.0)
    assert torch.equal(hard, torch.where(mask[..., None] > 0.5, generated, background))
    faint = run("BackgroundBlend", background, generated, mask * 0.3, 4, 0, 0.5, generation_mask=mask * 0.2)[0]
    assert torch.equal(faint, run("BackgroundBlend", background, generated, mask, 4, 0, 0.5)[0])
    fails("mask is empty", call=lambda: run("BackgroundBlend", background, generated, mask * 0, 4, 0, 0.5))
    assert torch.equal(run("BackgroundBlend", background, generated, mask * 0 + 1, 4, 0, 0.0)[0], generated)
    assert run("BackgroundBlend", background, generated, mask[:, ::2, ::2], 4, 0, 0.0)[0].shape == background.shape
    (bands,) = run("BackgroundBlend", background, generated, mask, 4, 2, 0.0, "multiband")
    assert torch.equal(bands[~grown], background[~grown]) and not torch.equal(bands, result)
    three, two = generated.repeat(3, 1, 1, 1), mask.repeat(2, 1, 1)
    assert len(run("BackgroundBlend", background, three, mask, 4, 0, 0.0)[0]) == 3
    fails("3 of generated", "2 of masks", call=lambda: run("BackgroundBlend", background, three, two, 4, 0, 0.0))
    fails("79x60", "80x60", call=lambda: run("BackgroundBlend", background, generated[:, :, 1:], mask, 4, 0, 0.0))
    fails("64x64", call=lambda: run("BackgroundBlend", background, generated, torch.zeros(1, 64, 64), 4, 0, 0.0))


def check_blend_measures_colours_outside_what_was_generated():
    background = torch.rand(1, 60, 80, 3) * 0.5 + 0.2
    generated, inner, outer = background + 0.1, torch.zeros(1, 60, 80), torch.zeros(1, 60, 80)
    inner[:, 25:30, 35:40] = outer[:, 20:40, 30:50] = 1
    generated[:, 20:40, 30:50] = 0.9  # the object, around the inner mask
    inside = inner[..., None].expand_as(background) > 0

    def level(*more) -> float:
        return float(
            run("BackgroundBlend", background, generated, inner, 0, 0, 1.0, "feather", *more)[0][inside].mean()
        )

    assert abs(level(outer) - 0.8) < 0.02  # the shift of 0.1 is taken off the object
    assert abs(level() - 0.8) > 0.05  # measured on the object itself, it would be taken for the background
    assert abs(level(None, 16, 20) - 0.8) < 0.02
    fails("from 20 to 16", call=lambda: level(None, 20, 16))


def check_broken_numbers_are_refused():
    of = scene()
    for bad in (float("nan"), float("inf")):
        picture, mask = of.frame.clone(), of.mask.clone()
        picture[0, 3, 3, 0] = mask[0, 3, 3] = bad
        fails("not finite", call=lambda picture=picture: of.sample(picture))
        fails("not finite", call=lambda mask=mask: of.sample(mask=mask))
        fails("not finite", call=lambda mask=mask: run("MaskCoarsener", mask, "box", 0, 0))
        fails("not finite", call=lambda p=picture: run("BackgroundBlend", of.frame, p, of.mask, 4, 0, 0.0))
    fails("no pixels", call=lambda: of.sample(mask=torch.zeros(1, 0, 0)))
    fails("no pixels", call=lambda: of.sample(torch.zeros(1, 0, 8, 3)))


def check_what_a_model_breaks_is_refused_where_it_breaks():
    """Each of the models in turn returns one number that is not finite."""
    of, matte = matte_scene(), module("nodes.matte")
    small, whole = {"context": 1.6, "resolution": 64, "steps": 1}, of.sample_all(context=1.6, resolution=64, steps=1)

    def broken(values: torch.Tensor, number: float) -> torch.Tensor:
        values = values.clone()
        values[..., -1, -1] = number
        return values

    for number in (float("nan"), float("inf")):
        encoder = of.clip.model
        with patch.object(of.clip, "model", lambda e=encoder, n=number, **given: (broken(e(**given)[0], n), None)):
            encode = (of.clip, of.object, of.transparent, "background")
            fails("encoder", "not finite", "fp32", call=lambda e=encode: run("IDEncoder", *e))
        for name, what in (("encode", "latents"), ("decode", "decoded")):
            step = getattr(of.vae, name)
            with patch.object(of.vae, name, lambda *given, s=step, n=number: broken(s(*given), n)):
                fails(what, "not finite", "fp32", call=lambda: of.sample(**small))
        model = of.model.clone()
        model.set_model_unet_function_wrapper(
            lambda apply, given, n=number: apply(given["input"], given["timestep"], **given["c"]) * n
        )
        fails("sampled", "not finite", "fp32", call=lambda m=model: of.sample(model=m, **small))
        split = matte.split_matte
        with patch.object(
            matte, "split_matte", lambda *given, s=split, n=number: (s(*given)[0], broken(s(*given)[1], n))
        ):
            fails("matte", "not finite", "fp32", call=lambda: of.sample(**small))
    assert all(torch.equal(*pair) for pair in zip(of.sample_all(**small), whole))


# ---------------------------------------------------------------------------------------------------- loader


def check_loader_lists_files():
    write_checkpoint("mine.safetensors", lambda checkpoint: None)
    schema = core.NODE_CLASS_MAPPINGS["ImprintLoadCheckpoint"].define_schema()
    assert {SHIPPED, "mine.safetensors"} <= set(schema.inputs[0].options)
    assert not any(name.endswith(".png") for name in schema.inputs[0].options)
    assert not any("imprint-light" in name or FEW_STEPS in name for name in schema.inputs[0].options)
    (light,) = (
        each for each in core.NODE_CLASS_MAPPINGS["ImprintRelight"].define_schema().inputs if each.id == "light_model"
    )
    assert {"imprint-light.safetensors", "mine.safetensors"} <= set(light.options)
    assert not any(SHIPPED in name or FEW_STEPS in name for name in light.options)
    loader = core.NODE_CLASS_MAPPINGS["ImprintLoadCheckpoint"]
    before = loader.fingerprint_inputs("mine.safetensors")
    os.utime(MODELS / "imprint" / "mine.safetensors", (1, 1))
    assert loader.fingerprint_inputs("mine.safetensors") != before


class Executed:
    """A pickle that would end this process if it were opened."""

    def __reduce__(self):
        return os._exit, (1,)


def check_an_old_comfyui_is_told_to_be_updated():
    import comfyui_version

    for old in ("0.24.9", "0.3.75"):
        with patch.object(comfyui_version, "__version__", old):
            fails(old, "0.25 or newer", call=lambda: run("LoadCheckpoint", SHIPPED))
    for new in ("0.25.0", "1.0", "0.100.2-rc1"):
        with patch.object(comfyui_version, "__version__", new):
            run("LoadCheckpoint", SHIPPED)


def check_wrong_files():
    def load(name: str):
        return lambda: run("LoadCheckpoint", name)

    def drop(part, name):
        return lambda checkpoint: checkpoint.parts[part].pop(name)

    for part, name in (
        ("unet", "conv_out.bias"),
        ("encoder", "layernorm.weight"),
        ("adapter", "null_embedding"),
        ("vae", "decoder.layers.0.weight"),
    ):
        file = write_checkpoint(f"no-{part}.safetensors", drop(part, name))
        fails(file, f"'{part}'", "1 missing", call=load(file))

    def reshape(checkpoint):
        checkpoint.parts["unet"]["conv_out.bias"] = torch.zeros(5)

    channels = scene().config.unet.out_channels
    fails("(5,)", f"({channels},)", call=load(write_checkpoint("reshaped.safetensors", reshape)))

    def add(checkpoint):
        checkpoint.parts["encoder"]["extra"] = torch.zeros(5)

    fails("'extra'", call=load(write_checkpoint("surplus.safetensors", add)))
    whole = Path(folder_paths.get_full_path("imprint", SHIPPED)).read_bytes()
    (MODELS / "imprint" / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    fails("half.safetensors", "truncated", call=load("half.safetensors"))
    torch.save({"a": torch.zeros(1)}, MODELS / "imprint" / "pickle.pt")
    fails("pickle.pt", "lacks the tensor", "download", call=load("pickle.pt"))
    torch.save({"state_dict": Executed()}, MODELS / "imprint" / "hostile.ckpt")
    fails("hostile.ckpt", "not a weight", call=load("hostile.ckpt"))
    torch.save({"a": torch.zeros(1)}, MODELS / "imprint" / "disguised.safetensors")
    fails("pickle", call=load("disguised.safetensors"))

    def registers(checkpoint):
        encoder = replace(checkpoint.config.encoder, register_tokens=4)
        return replace(checkpoint, config=replace(checkpoint.config, encoder=encoder))

    fails("register", "pipeline", call=load(write_checkpoint("registers.safetensors", registers)))
    with patch.dict(comfy.clip_vision.IMAGE_ENCODERS):
        del comfy.clip_vision.IMAGE_ENCODERS["dinov3"]
        fails("DINOv3", "newer than this ComfyUI", call=load(dinov3_checkpoint(False)[0]))

    def heads(checkpoint):
        unet = replace(checkpoint.config.unet, heads=(3, 2, 6))
        return replace(checkpoint, config=replace(checkpoint.config, unet=unet))

    fails("heads", "pipeline", call=load(write_checkpoint("heads.safetensors", heads)))


def check_checkpoint_without_vae():
    name = write_checkpoint("without-vae.safetensors", lambda checkpoint: checkpoint.parts.pop("vae"))
    *_, vae = run("LoadCheckpoint", name)
    assert vae is None


def check_noise_schedule_is_the_config_s():
    noise, of = module("imprint.noise"), scene()
    alpha_bar = noise.alphas_cumprod(of.config.noise)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    ours = of.model.model.model_sampling.sigmas.double()
    assert ((ours - sigmas) / sigmas).abs().max() < 1e-4
    epsilon = replace(of.config.noise, prediction_type="epsilon", zero_terminal_snr=False, beta_end=0.02)
    core_config = module("nodes.unet").ModelConfig(replace(of.config, noise=epsilon))
    assert core_config.model_type({}).name == "EPS"
    assert core_config.sampling_settings["linear_end"] == 0.02 and not core_config.sampling_settings["zsnr"]


def check_clones_and_reloads():
    of = Scene()
    imprint_config = module("nodes.unet").imprint_config
    assert imprint_config(of.model.clone()) == of.config
    for patcher in (of.model, of.clip.patcher, of.adapter.patcher, of.vae.patcher):
        load, arguments = patcher.cached_patcher_init
        fresh = load(*arguments, disable_dynamic=True)
        assert fresh is not patcher and type(fresh.model) is type(patcher.model)
        ours, theirs = patcher.model.state_dict(), fresh.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def check_nothing_keeps_the_models_alive():
    of = Scene()
    of.sample(steps=1, resolution=64)
    patchers = (of.model, of.clip.patcher, of.adapter.patcher, of.vae.patcher)
    watched = [weakref.ref(patcher.model) for patcher in patchers]
    del of, patchers
    gc.collect()
    comfy.model_management.cleanup_models()
    assert [watch() for watch in watched] == [None] * 4


def check_strange_folders_do_no_harm():
    """No input folder, or one that is not writable: the log gets a line, and the nodes load."""
    pack = module("nodes")
    pack.copy_samples(Path(FOLDER) / "absent")
    target = Path(FOLDER) / "own"
    target.mkdir()
    (target / "imprint_object.png").write_bytes(b"mine")
    (target / "imprint_hole.png").symlink_to(Path(FOLDER) / "gone" / "hole.png")
    pack.copy_samples(target)
    assert (target / "imprint_object.png").read_bytes() == b"mine" and not (Path(FOLDER) / "gone").exists()
    samples = {f"imprint_{path.name}" for path in pack.SAMPLES.iterdir()}
    assert {path.name for path in target.iterdir()} == samples and len(samples) > 3


BROAD = 0.11  # of 1: garbage and other colours differ by 0.1 to 0.5, other noise by 0.03 to 0.09


def check_core_s_compiled_model_draws_the_same() -> None:
    """TorchCompileModel before Draw Object gives the same picture and matte.

    Traced by PyTorch without its code generator, which is not ours to test. Nothing is traced again for another seed,
    although each run has its own reader.
    """
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    of, counters = scene(), torch._dynamo.utils.counters["stats"]
    plain = of.sample_all(steps=1)
    torch._dynamo.reset()
    counters.clear()
    compiled = TorchCompileModel.execute(of.model, "eager").result[0]
    # On a CPU core's attention asks for the free memory: a break in every graph, and another answer at each call.
    free = 2**33
    with patch.object(comfy.model_management, "get_free_memory", lambda _, both=False: (free, free) if both else free):
        made = of.sample_all(model=compiled, steps=1)
        traced = counters["unique_graphs"]
        assert traced > 0
        of.sample_all(model=compiled, seed=6, steps=1)
    assert counters["unique_graphs"] == traced, (counters["unique_graphs"], traced)
    for name, found, expected in zip(("image", "mask", "alpha", "shadow"), made, plain):
        assert (found - expected).abs().max() <= 2 / 255, (name, float((found - expected).abs().max()))


def nightly_4_steps():
    compare_with_euler(every_sampler_and_scheduler(4))


def nightly_8_steps():
    compare_with_euler(every_sampler_and_scheduler(8))


def nightly_20_steps():
    compare_with_euler(every_sampler_and_scheduler(20))


def every_sampler_and_scheduler(steps: int) -> itertools.product:
    samplers, schedulers = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
    return itertools.product(samplers, schedulers, [steps])


def check_samplers_of_second_order_draw_what_euler_draws():
    """With few steps, starting at sigma 4,518, they gave another colour, or garbage."""
    samplers = ("heun", "dpm_2_ancestral", "dpm_fast", "dpm_adaptive")
    compare_with_euler([*((name, "simple", 8) for name in samplers), ("heun", "simple", 4)])
    compare_with_euler([("res_multistep_ancestral", "simple", 4), ("res_multistep_ancestral", "karras", 20)])
    for name, scheduler in (
        ("dpmpp_3m_sde", "normal"),
        ("dpm_fast", "linear_quadratic"),
        ("ipndm_v", "linear_quadratic"),
        ("res_multistep_cfg_pp", "exponential"),
        ("res_multistep_ancestral", "normal"),
        ("dpm_2_ancestral", "karras"),
    ):
        options = {"sampler_name": name, "scheduler": scheduler, "resolution": 64}
        fails(name, scheduler, "garbage", "set scheduler to", call=lambda options=options: scene().sample(**options))


def compare_with_euler(cases) -> None:
    """Each case of sampler, scheduler and number of steps draws the same as Euler, in 6 x 6 broad colours.

    Otherwise it says that it cannot.
    """
    of = scene()
    background, _ = core.LoadImage().load_image("imprint_background.png")
    (hole,) = core.LoadImageMask().load_image_mask("imprint_hole.png", "red")
    ((top, left, bottom, right),) = module("imprint.preprocess").bounding_boxes(hole).tolist()

    def colours(name: str, scheduler: str, steps: int) -> torch.Tensor:
        options = {"sampler_name": name, "scheduler": scheduler, "steps": steps, "cfg": 1.0}
        picture = of.sample(background, hole, context=1.3, resolution=128, **options)
        drawn = picture[:, top:bottom, left:right].movedim(-1, 1)
        return torch.nn.functional.adaptive_avg_pool2d(drawn, 6)

    euler, wrong = colours("euler", "simple", 20), []
    for case in cases:
        try:
            difference = float((colours(*case) - euler).abs().mean())
        except ValueError as error:
            assert type(error).__name__ == "ImprintError" and "garbage" in str(error), (case, error)
            continue
        if not difference < BROAD:  # also what is not a number
            wrong.append((*case, round(difference, 3)))
    assert not wrong, wrong
    assert torch.equal(colours("euler", "simple", 20), euler)  # the MODEL is what it was


def drawn_samples(of: Scene, **options) -> tuple[torch.Tensor, ...]:
    """The shipped samples drawn: background, hole, picture, alpha, and the latents in the UNet's scale."""
    background, _ = core.LoadImage().load_image("imprint_background.png")
    (hole,) = core.LoadImageMask().load_image_mask("imprint_hole.png", "red")
    decoded, decode = [], of.vae.decode
    of.vae.decode = lambda latent: decoded.append(latent) or decode(latent)
    picture, _, alpha, _ = of.sample_all(background, hole, context=1.6, **options)
    return background, hole, picture, alpha, of.model.model.process_latent_in(decoded[0])


def write_graph_latents(folder: Path) -> None:
    """For test_checks.py: the final latents, in the UNet's scale, of the shipped samples through the graph."""
    saved = {}
    files = {"blend": matte_checkpoint(), "concat": concat_checkpoint(), "sdxl": sdxl_checkpoint()}
    for kind, name in files.items():
        of = Scene(name)
        background, hole, picture, alpha, latent = drawn_samples(of, steps=10)
        shaded = background
        if of.config.matte:
            (shaded,) = run("CastShadow", background, picture, alpha, 1.0, 0.0, light_from="left")
        (picture,) = run("BackgroundBlend", shaded, picture, hole, 3, 0, 0.0, alpha=alpha)
        saved[f"{kind}.alpha"] = alpha
        saved |= {f"{kind}.latent": latent, f"{kind}.picture": picture}
        saved |= {f"{kind}.identity": of.identity.tokens, f"{kind}.context": of.positive[0][0]}
        views, masks = (torch.cat([each, each.flip(-axis)]) for each, axis in ((of.object, 2), (of.transparent, 1)))
        seen = of.encoded(views, masks, "background")
        saved[f"{kind}.views"] = seen.tokens
        saved[f"{kind}.views_context"] = run("ContentAdapter", of.adapter, seen, 1.0)[0][0][0]
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in saved.items()}, folder / "graph.safetensors")


def write_few_steps(folder: Path) -> None:
    """For test_checks.py: the same, drawn with core's loader and the shipped LoRA, as the template's note says."""
    from safetensors.torch import save_file

    of = Scene()
    of.model = with_few_steps(of.model)
    _, _, _, alpha, latent = drawn_samples(of, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple")
    save_file({"latent": latent.contiguous(), "alpha": alpha.contiguous()}, folder / "few-steps.safetensors")


def write_composites(folder: Path) -> None:
    """Three composites made by the nodes on one thread, as pictures, and the versions that made them."""
    from PIL import Image

    of, threads = scene(), torch.get_num_threads()
    place = torch.linspace(-1, 1, 160)
    ellipse = ((place[:, None] / 0.5) ** 2 + (place - 0.3) ** 2 / 0.2 < 1).float()
    frames = torch.rand(2, 10, 10, 3, generator=torch.Generator().manual_seed(8)).repeat_interleave(16, 1)
    frames = frames.repeat_interleave(16, 2).clamp(0.1, 0.9)
    masks = torch.stack([ellipse, ellipse.roll((60, 50), (0, 1))])
    torch.set_num_threads(1)
    try:
        composites = []
        for context, resolution, masks_of in ((1.6, 0, masks), (1.2, 384, masks[:1])):
            options = dict(context=context, resolution=resolution, sampler_name="dpmpp_2m", seed=11)
            made, holes, alphas, shadows = of.sample_all(frames[: len(masks_of)], masks_of, **options)
            detailed = run("RestoreDetail", made, alphas, "auto", 1.0, of.identity)
            composites += run(
                "BackgroundBlend",
                frames[: len(masks_of)],
                detailed[0],
                holes,
                4,
                1,
                0.5,
                alpha=detailed[1],
                shadow=shadows,
            )[0]
    finally:
        torch.set_num_threads(threads)
    Image.fromarray((torch.cat(composites, 1) * 255).round().byte().numpy()).save(folder / "composites.png")
    here = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    (folder / "composites.json").write_text(json.dumps(here))


def main() -> None:
    prepare()
    checks = [name for name in globals() if name.startswith("check_")]
    results, seconds = {}, {}
    for name in NAMES or [*checks, "write_graph_latents", "write_few_steps", "write_composites", "write_job"]:
        start, call = time.monotonic(), globals()[name]
        try:
            with torch.inference_mode():  # as ComfyUI's executor does
                call(Path(FOLDER)) if name.startswith("write_") else call()
            results[name] = None
        except BaseException:
            results[name] = traceback.format_exc()
        seconds[name] = round(time.monotonic() - start, 1)
    (Path(FOLDER) / "result.json").write_text(json.dumps({"results": results, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
