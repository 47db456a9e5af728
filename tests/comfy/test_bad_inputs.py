"""Bad inputs through /prompt: each fails at the node that received it, and the server keeps running.

An entry gives the inputs to change, the node that must complain, and words of its message. A bad value is refused
before anything runs (ComfyUI's own check), or the node stops with an `ImprintError`. A few entries look bad but are
not: they end in a picture.
"""

from __future__ import annotations

import copy
import json
import urllib.error
from itertools import count

import pytest
import torch
from comfy_server import ROOT, Server
from make_workflows import DRAW, PAINTED, SAMPLES, file_of
from PIL import Image
from ui_workflow import to_prompt

from imprint.checkpoint import SHIPPED
from imprint.lightnet import SHIPPED_LIGHT

pytestmark = pytest.mark.comfyui

LOAD, ENCODE, ADAPT = "ImprintLoadCheckpoint", "ImprintIDEncoder", "ImprintContentAdapter"
COARSEN, SAMPLE, BLEND = "ImprintMaskCoarsener", "ImprintCompositeSampler", "ImprintBackgroundBlend"
RESTORE = "ImprintRestoreDetail"
PLACE, RELIGHT, JOB, CAST = "ImprintPlaceObject", "ImprintRelight", "ImprintJob", "ImprintCastShadow"
NAN = float("nan")  # which ComfyUI's own check of a widget's range lets through
SMALL = {"steps": 1, "resolution": 64}
_number = count()


def tensor(shape: str, fill="0.5", middle="", output: int = 0) -> dict:
    """The output (0: IMAGE, 1: MASK) of a probe node that makes this tensor."""
    return {"probe": "ProbeTensor", "inputs": {"shape": shape, "fill": fill, "middle": middle}, "output": output}


def mask(shape: str, fill="0", middle="") -> dict:
    return tensor(shape, fill, middle, 1)


def conditioning(shape: str, fill="0") -> dict:
    return {"probe": "ProbeConditioning", "inputs": {"shape": shape, "fill": fill}, "output": 0}


def job(**changes) -> dict:
    """The Job node's text."""
    values = {"background": "imprint_background.png", "object": "imprint_object.png", "at": [150, 330], "height": 180}
    return {"job": json.dumps(values | changes)}


REFUSED = {
    # the checkpoint's name
    "absent-file": (LOAD, {"checkpoint": "absent.safetensors"}, "not in"),
    "parent-folder": (LOAD, {"checkpoint": "../../../etc/passwd"}, "not in"),
    "hidden-parent-folder": (LOAD, {"checkpoint": "sub/../../../user/secret.safetensors"}, "not in"),
    "absolute-path": (LOAD, {"checkpoint": "/etc/passwd"}, "not in"),
    "windows-path": (LOAD, {"checkpoint": "..\\..\\secret.safetensors"}, "not in"),
    "null-byte": (LOAD, {"checkpoint": "imprint-tiny.safetensors\0.png"}, "not in"),
    "empty-name": (LOAD, {"checkpoint": ""}, "not in"),
    "number-for-a-name": (LOAD, {"checkpoint": 7}, "not in"),
    "list-for-a-name": (LOAD, {"checkpoint": ["imprint-tiny.safetensors"]}, ""),
    # values
    "unknown-level": (COARSEN, {"level": "boxy"}, "not in"),
    "unknown-marks": (ENCODE, {"mask_marks": "Object"}, "not in"),
    "unknown-sampler": (SAMPLE, {"sampler_name": "magic"}, "not in"),
    "unknown-scheduler": (SAMPLE, {"scheduler": None}, ""),
    "unknown-method": (BLEND, {"method": "poisson"}, "not in"),
    "word-for-steps": (SAMPLE, {"steps": "many"}, "steps"),
    "object-for-steps": (SAMPLE, {"steps": {"a": 1}}, "steps"),
    "zero-steps": (SAMPLE, {"steps": 0}, "steps"),
    "too-many-steps": (SAMPLE, {"steps": 10**9}, "steps"),
    "negative-seed": (SAMPLE, {"seed": -1}, "seed"),
    "huge-seed": (SAMPLE, {"seed": 2**70}, "seed"),
    "negative-cfg": (SAMPLE, {"cfg": -1.0}, "cfg"),
    "word-for-cfg": (SAMPLE, {"cfg": "strong"}, "cfg"),
    "context-below-one": (SAMPLE, {"context": 0.5}, "context"),
    "huge-resolution": (SAMPLE, {"resolution": 10**6}, "resolution"),
    "negative-margin": (COARSEN, {"margin": -5}, "margin"),
    "huge-margin": (COARSEN, {"margin": 10**7}, "margin"),
    "negative-shadow-room": (COARSEN, {"shadow_room": -1}, "shadow_room"),
    "negative-feather": (BLEND, {"feather_out": -1}, "feather_out"),
    "huge-feather": (BLEND, {"feather_in": 10**5}, "feather_in"),
    "colour-match-above-one": (BLEND, {"colour_match": 1.5}, "colour_match"),
    "strength-above-two": (ADAPT, {"strength": 3.0}, "strength"),
    "too-many-variations": (SAMPLE, {"variations": 9}, "variations"),
    "detail-above-one": (RESTORE, {"strength": 1.5}, "strength"),
    "no-alpha-for-detail": (RESTORE, {"alpha": None}, "alpha"),
    "unknown-place": (PLACE, {"place": "there"}, "not in"),
    "unknown-alignment": (PLACE, {"align_x": "middle"}, "not in"),
    "rotated-too-far": (PLACE, {"rotate": 500.0}, "rotate"),
    "inset-too-wide": (PLACE, {"inset": 0.5}, "inset"),
    "cast-shadow-above-one-and-a-half": (CAST, {"shadow": 1.6}, "shadow"),
    "no-alpha-to-cast-a-shadow": (CAST, {"alpha": None}, "alpha"),
    "light-above-one-and-a-half": (RELIGHT, {"light": 1.6}, "light"),
    "negative-shadow": (RELIGHT, {"shadow": -0.1}, "shadow"),
    "softness-above-one": (RELIGHT, {"softness": 1.1}, "softness"),
    "absent-light-model": (RELIGHT, {"light_model": "absent.safetensors"}, "not in"),
    # wires
    "image-for-a-placed-object": (RELIGHT, {"placed": ("LoadImage", 0)}, "placed"),
    "no-background-to-place-on": (PLACE, {"background": None}, "background"),
    "image-for-a-mask": (COARSEN, {"mask": ("LoadImage", 0)}, "mask"),
    "mask-for-an-image": (ENCODE, {"image": ("LoadImage", 1)}, "image"),
    "vae-for-a-model": (SAMPLE, {"model": (LOAD, 3)}, "model"),
    "adapter-for-a-clip-vision": (ENCODE, {"clip_vision": (LOAD, 2)}, "clip_vision"),
    "identity-for-a-conditioning": (SAMPLE, {"positive": (ENCODE, 0)}, "positive"),
    "no-mask": (SAMPLE, {"mask": None}, "mask"),
    "no-background": (BLEND, {"background": None}, "background"),
    "output-that-is-not-there": (ADAPT, {"adapter": (LOAD, 9)}, ""),
}

STOPPED = {
    # files
    "pickle": (LOAD, {"checkpoint": "pickle.pt"}, "pickle"),
    "pickle-named-safetensors": (LOAD, {"checkpoint": "disguised.safetensors"}, "pickle"),
    "truncated-file": (LOAD, {"checkpoint": "truncated.safetensors"}, "truncated"),
    "empty-file": (LOAD, {"checkpoint": "empty.safetensors"}, "empty.safetensors"),
    "text-file": (LOAD, {"checkpoint": "text.safetensors"}, "text.safetensors"),
    "foreign-checkpoint": (LOAD, {"checkpoint": "foreign.safetensors"}, "foreign.safetensors"),
    "a-part-is-missing": (LOAD, {"checkpoint": "no-unet.safetensors"}, "unet"),
    "changed-weights": (LOAD, {"checkpoint": "changed.safetensors"}, "changed.safetensors"),
    # the object
    "empty-object-mask": (ENCODE, {"mask": mask("1x90x70"), "mask_marks": "object"}, "empty"),
    "object-mask-of-load-image": (ENCODE, {"mask": mask("1x64x64")}, "64x64"),
    "object-mask-all-transparent": (ENCODE, {"mask": mask("1x90x70", "1")}, "white everywhere"),
    "object-mask-nan": (ENCODE, {"mask": mask("1x90x70", "nan")}, "NaN"),
    "object-nan": (ENCODE, {"image": tensor("1x90x70x3", "nan")}, "NaN"),
    "object-inf": (ENCODE, {"image": tensor("1x90x70x3", "0.5", "inf")}, "not finite"),
    "two-masks-three-views": (ENCODE, {"image": tensor("3x90x70x3"), "mask": mask("2x90x70", "0.2")}, "2 masks"),
    "object-two-channels": (ENCODE, {"image": tensor("1x90x70x2")}, "shape"),
    "object-without-batch": (ENCODE, {"image": tensor("90x70x3")}, "shape"),
    "object-empty-batch": (ENCODE, {"image": tensor("0x90x70x3")}, "shape"),
    "object-no-pixels": (ENCODE, {"image": tensor("1x0x70x3")}, "shape"),
    "object-mask-five-dimensions": (ENCODE, {"mask": mask("1x1x1x90x70", "1")}, "shape"),
    "object-video": (ENCODE, {"image": tensor("1x2x90x70x3")}, "shape"),
    "clip-instead-of-dinov2": (ENCODE, {"clip_vision": {"probe": "ProbeClipVision", "kind": "clip"}}, "DINOv2"),
    "dinov2-of-another-width": (ADAPT, {"identity": {"probe": "ProbeClipVision", "kind": "narrow"}}, "128"),
    # the place and its light
    "box-outside": (PLACE, {"box": {"x": 400, "y": 0, "width": 9, "height": 9}}, "outside"),
    "box-of-nothing": (PLACE, {"box": {"x": 4, "y": 4, "width": 0, "height": 9}}, "outside"),
    "box-without-a-width": (PLACE, {"box": {"x": 4, "y": 4, "height": 9}}, "width"),
    "box-a-word": (PLACE, {"box": "left"}, "the box is left"),
    "box-of-words": (PLACE, {"box": {"x": "left", "y": 4, "width": 9, "height": 9}}, "box"),
    "place-mask-empty": (PLACE, {"mask": mask("1x400x400")}, "empty"),
    "placed-object-without-mask": (PLACE, {"object_mask": None}, "no mask"),
    "placed-object-opaque": (PLACE, {"object": tensor("1x90x70x4", "1"), "object_mask": None}, "no mask"),
    "placed-object-mask-empty": (PLACE, {"object_mask": mask("1x90x70")}, "empty"),
    "placed-object-nan": (PLACE, {"object": tensor("1x90x70x3", "nan")}, "NaN"),
    "placed-picture-of-another-size": (PLACE, {"place": "as it lies"}, "400x400"),
    "two-masks-three-placed": (
        PLACE,
        {"object": tensor("3x90x70x3"), "object_mask": mask("2x90x70", "0.2")},
        "2 masks",
    ),
    "two-backgrounds-three-placed": (
        PLACE,
        {"background": tensor("2x400x400x3"), "object": tensor("3x90x70x4"), "object_mask": None},
        "2 of backgrounds",
    ),
    "checkpoint-for-a-light-model": (RELIGHT, {"light_model": "changed.safetensors"}, "changed.safetensors"),
    "pickle-for-a-light-model": (RELIGHT, {"light_model": "pickle.pt"}, "pickle"),
    # numbers that are none
    "strength-nan": (ADAPT, {"strength": NAN}, "strength is nan"),
    "cfg-nan": (SAMPLE, {"cfg": NAN}, "cfg is nan"),
    "context-nan": (SAMPLE, {"context": NAN}, "context is nan"),
    "detail-nan": (RESTORE, {"strength": NAN}, "detail is nan"),
    "colour-match-nan": (BLEND, {"colour_match": NAN}, "colour match is nan"),
    "rotate-nan": (PLACE, {"rotate": NAN}, "rotate is nan"),
    "cast-shadow-nan": (CAST, {"shadow": NAN}, "shadow is nan"),
    "light-nan": (RELIGHT, {"light": NAN}, "light is nan"),
    "softness-nan": (RELIGHT, {"softness": NAN}, "softness is nan"),
    # a job
    "job-no-json": (JOB, {"job": "no JSON"}, "not JSON"),
    "job-of-nothing": (JOB, {"job": "[]"}, "not an object"),
    "job-null-byte": (JOB, job(object="a\0.png"), "'object' is"),
    "job-half-a-letter": (JOB, job(background="\ud800.png"), "'background' is"),
    "job-parent-folder": (JOB, job(object="../../user/secret.safetensors"), "outside ComfyUI's input folder"),
    "job-absent-file": (JOB, job(object="absent.png"), "no such file"),
    "job-height-nan": (JOB, job(height=NAN), "height is nan"),
    "job-height-huge": (JOB, job(height=10**400), "height is 1000"),
    "job-at-words": (JOB, job(at="left"), "at is 'left'"),
    # the hole
    "empty-mask": (COARSEN, {"mask": mask("1x400x400")}, "empty"),
    "mask-of-load-image": (COARSEN, {"mask": mask("1x64x64")}, "64x64"),
    "mask-nan": (COARSEN, {"mask": mask("1x400x400", "nan")}, "NaN"),
    "mask-nan-in-the-middle": (COARSEN, {"mask": mask("1x400x400", "1", "nan")}, "NaN"),
    "mask-three-channels": (COARSEN, {"mask": mask("1x3x400x400", "1")}, "shape"),
    "mask-no-pixels": (COARSEN, {"mask": mask("1x0x0", "1")}, "no pixels"),
    "mask-empty-batch": (COARSEN, {"mask": mask("0x400x400", "1")}, "no pixels"),
    # the sampler
    "hole-empty": (SAMPLE, {"mask": mask("1x400x400")}, "empty"),
    "hole-nan": (SAMPLE, {"mask": mask("1x400x400", "0", "nan")}, "NaN"),
    "variations-of-a-batch": (SAMPLE, {"background": tensor("2x99x99x3"), "variations": 2}, "variations is 2"),
    "second-hole-empty": (SAMPLE, {"background": tensor("3x99x99x3"), "mask": mask("2x99x99", "1")}, "2 of masks"),
    "background-nan": (SAMPLE, {"background": tensor("1x99x99x3", "nan")}, "NaN"),
    "background-infinite": (SAMPLE, {"background": tensor("1x99x99x3", "0.5", "inf")}, "not finite"),
    "background-two-channels": (SAMPLE, {"background": tensor("1x99x99x2")}, "shape"),
    "background-empty-batch": (SAMPLE, {"background": tensor("0x99x99x3")}, "shape"),
    "background-no-pixels": (SAMPLE, {"background": tensor("1x99x0x3")}, "shape"),
    "resolution-no-multiple": (SAMPLE, {"resolution": 40}, "40"),
    "conditioning-of-sd15": (SAMPLE, {"positive": conditioning("1x77x768")}, "768"),
    "negative-of-sdxl": (SAMPLE, {"negative": conditioning("1x77x2048")}, "2048"),
    "third-order-on-uneven-steps": (SAMPLE, {"sampler_name": "dpmpp_3m_sde", "scheduler": "normal"}, "garbage"),
    "third-order-on-few-steps": (SAMPLE, {"sampler_name": "dpmpp_3m_sde_gpu", "scheduler": "kl_optimal"}, "garbage"),
    "extrapolation-over-uneven-steps": (
        SAMPLE,
        {"sampler_name": "ipndm_v", "scheduler": "linear_quadratic"},
        "garbage",
    ),
    "noise-on-few-uneven-steps": (
        SAMPLE,
        {"sampler_name": "res_multistep_ancestral", "scheduler": "karras"},
        "garbage",
    ),
    "own-steps-without-the-last": (
        SAMPLE,
        {"sampler_name": "dpm_adaptive", "scheduler": "linear_quadratic"},
        "garbage",
    ),
    "vae-missing-in-the-checkpoint": (SAMPLE, {"vae": ("no-vae.safetensors", 3)}, "VAE is empty"),
    # detail
    "detail-without-an-object": (RESTORE, {"identity": None, "image": None, "mask": None}, "Encode Object"),
    "detail-object-without-a-mask": (RESTORE, {"mask": None}, "mask"),
    "detail-object-mask-empty": (RESTORE, {"mask": mask("1x90x70"), "mask_marks": "object"}, "empty"),
    "detail-object-nan": (RESTORE, {"image": tensor("1x90x70x3", "nan")}, "NaN"),
    "detail-two-masks-three-views": (
        RESTORE,
        {"image": tensor("3x90x70x3"), "mask": mask("2x90x70", "0.2")},
        "2 masks",
    ),
    "detail-alpha-nan": (RESTORE, {"alpha": mask("1x400x400", "nan")}, "NaN"),
    "detail-three-alphas-two-generated": (
        RESTORE,
        {"generated": tensor("2x400x400x3"), "alpha": mask("3x400x400", "1")},
        "3 of alphas",
    ),
    # the blend
    "generated-of-another-size": (BLEND, {"generated": tensor("1x399x400x3")}, "399"),
    "generated-1x1": (BLEND, {"generated": tensor("1x1x1x3")}, "1x1"),
    "generated-nan": (BLEND, {"generated": tensor("1x400x400x3", "nan")}, "NaN"),
    "three-generated-two-masks": (
        BLEND,
        {"generated": tensor("3x400x400x3"), "mask": mask("2x400x400", "1")},
        "2 of masks",
    ),
    "blend-mask-empty": (BLEND, {"mask": mask("1x400x400")}, "mask is empty"),
    "blend-mask-nan": (BLEND, {"mask": mask("1x400x400", "nan")}, "NaN"),
    "alpha-nan": (BLEND, {"alpha": mask("1x400x400", "nan")}, "NaN"),
    "alpha-of-load-image": (BLEND, {"alpha": mask("1x64x64")}, "64x64"),
    "shadow-without-alpha": (BLEND, {"alpha": None, "shadow": mask("1x400x400", "1")}, "without alpha"),
    "three-shadows-two-generated": (
        BLEND,
        {"generated": tensor("2x400x400x3"), "shadow": mask("3x400x400", "1")},
        "3 of shadows",
    ),
    "blend-background-nan": (BLEND, {"background": tensor("1x400x400x3", "0.5", "nan")}, "NaN"),
}

FINE = {
    "1x1-object": {ENCODE: {"image": tensor("1x1x1x3"), "mask": mask("1x1x1")}},
    "thin-object": {ENCODE: {"image": tensor("1x3x20000x3"), "mask": mask("1x3x20000")}},
    "1x1-object-for-detail": {RESTORE: {"image": tensor("1x1x1x3"), "mask": mask("1x1x1")}},
    "thin-object-for-detail": {RESTORE: {"image": tensor("1x3x20000x3"), "mask": mask("1x3x20000")}},
    "rgba-object-for-detail": {RESTORE: {"image": tensor("1x90x70x4"), "mask": mask("1x90x70", "0.2")}},
    "1x1-background": {SAMPLE: {"background": tensor("1x1x1x3"), "mask": mask("1x1x1", "1")}},
    "20000x3-background": {
        SAMPLE: {"background": tensor("1x3x20000x3", "random"), "mask": mask("1x3x20000", "0", "1")}
    },
    "second-order-in-few-steps": {SAMPLE: {"sampler_name": "heun", "steps": 4}},
    "second-order-in-one-step": {SAMPLE: {"sampler_name": "dpm_2_ancestral", "steps": 1}},
    "own-steps-in-one-step": {SAMPLE: {"sampler_name": "dpm_fast", "steps": 1}},
    "equal-steps": {SAMPLE: {"scheduler": "linear_quadratic", "steps": 3}},
    "mask-of-another-size": {SAMPLE: {"mask": mask("1x33x77", "0", "1")}},
    "mask-without-batch": {SAMPLE: {"mask": mask("400x400", "0", "1")}},
    "hole-faint": {SAMPLE: {"mask": mask("1x400x400", "0", "0.4")}},
    "mask-98-percent": {SAMPLE: {"mask": mask("1x400x400", "0", "0.98")}},
    "rgba-background": {SAMPLE: {"background": tensor("1x99x99x4"), "mask": mask("1x99x99", "0", "1")}},
    "grey-background": {SAMPLE: {"background": tensor("1x99x99x1"), "mask": mask("1x99x99", "0", "1")}},
}


@pytest.fixture(scope="module")
def prompt(server: Server, object_info: dict) -> dict:
    """The first workflow with as little work as possible, and with the bad files in place."""
    write_files(server)
    workflow = json.loads(file_of(DRAW).read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, object_info)
    (background,) = (each["inputs"] for each in prompt.values() if each["inputs"].get("image") == f"imprint_{PAINTED}")
    background["image"] = "painted_small.png"
    node(prompt, SAMPLE)["inputs"].update(SMALL, show_crop=False, variations=1)
    inputs = copy.deepcopy(node(prompt, ENCODE)["inputs"])  # the object's picture and mask
    node(prompt, RESTORE)["inputs"].update({name: inputs[name] for name in ("image", "mask")})
    for kind in (ENCODE, RESTORE):
        node(prompt, kind)["inputs"]["mask_marks"] = "background"
    background = node(prompt, SAMPLE)["inputs"]["background"]
    prompt["101"] = {
        "class_type": PLACE,
        "inputs": {
            **{"background": background, "object": inputs["image"], "object_mask": inputs["mask"]},
            **{"box": {"x": 40, "y": 200, "width": 120, "height": 150}, "rotate": 0.0, "flip": False},
            **{"align_x": "center", "align_y": "bottom", "place": "box", "mask_marks": "auto"},
        },
    }
    light = {"placed": ["101", 0], "light": 1.0, "shadow": 1.0, "softness": 0.0}
    prompt["102"] = {"class_type": RELIGHT, "inputs": light | {"light_model": SHIPPED_LIGHT.name}}
    prompt["103"] = {"class_type": "PreviewImage", "inputs": {"images": ["102", 0]}}
    prompt["104"] = {"class_type": JOB, "inputs": job() | {"light_model": SHIPPED_LIGHT.name}}
    prompt["105"] = {"class_type": "PreviewImage", "inputs": {"images": ["104", 0]}}
    return prompt


def write_files(server: Server) -> None:
    """Files that are not checkpoints, or are broken, in models/imprint; the painted background at 400x400."""
    from safetensors.torch import load_file, save_file

    from imprint.checkpoint import load_checkpoint, save_checkpoint

    with Image.open(SAMPLES / PAINTED) as background:
        background.resize((400, 400), Image.NEAREST).save(server.base / "input" / "painted_small.png")
    folder = server.base / "models" / "imprint"
    torch.save({"a": torch.zeros(1)}, folder / "pickle.pt")
    torch.save({"a": torch.zeros(1)}, folder / "disguised.safetensors")
    whole = SHIPPED.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    changed = bytearray(whole)
    changed[-1000] ^= 255
    (folder / "changed.safetensors").write_bytes(changed)
    tensors = dict(list(load_file(SHIPPED).items())[:3])
    save_file(tensors, folder / "foreign.safetensors")
    for part in ("unet", "vae"):
        checkpoint = load_checkpoint(SHIPPED)
        if part == "unet":
            checkpoint.parts["unet"].pop("conv_out.bias")
        else:
            checkpoint.parts.pop("vae")
        save_checkpoint(folder / f"no-{part}.safetensors", checkpoint)
    (server.base / "user" / "secret.safetensors").write_bytes(whole[:100])


def node(prompt: dict, kind: str) -> dict:
    return next(each for each in prompt.values() if each["class_type"] == kind)


def number(prompt: dict, kind: str) -> str:
    return next(name for name, each in prompt.items() if each["class_type"] == kind)


def changed(prompt: dict, kind: str, inputs: dict) -> dict:
    """The prompt with other inputs at its node of this type."""
    prompt = copy.deepcopy(prompt)
    given = node(prompt, kind)["inputs"]
    for name, value in inputs.items():
        if isinstance(value, tuple):
            source, slot = value
            if source.endswith(".safetensors"):
                prompt["other"] = {"class_type": LOAD, "inputs": {"checkpoint": source}}
                source = "other"
            else:
                source = number(prompt, source)
            given[name] = [source, slot]
        elif isinstance(value, dict) and "probe" in value:
            given[name] = probe(prompt, value)
        elif value is None and isinstance(given.get(name), list):
            del given[name]
        else:
            given[name] = value
    return prompt


def probe(prompt: dict, value: dict) -> list:
    """Add the probe node; returns its output."""
    name = f"probe{next(_number)}"
    if value["probe"] != "ProbeClipVision":
        prompt[name] = {"class_type": value["probe"], "inputs": value["inputs"]}
        return [name, value["output"]]
    loaded = [number(prompt, LOAD), 1]
    prompt[name] = {"class_type": "ProbeClipVision", "inputs": {"clip_vision": loaded, "kind": value["kind"]}}
    if value["kind"] == "narrow":
        node(prompt, ENCODE)["inputs"]["clip_vision"] = [name, 0]
        return [number(prompt, ENCODE), 0]
    return [name, 0]


def answers(server: Server) -> None:
    """Run a good prompt, never the same one, right after the bad one."""
    margin = next(_number)
    good = {
        "1": {"class_type": "ProbeTensor", "inputs": {"shape": "1x32x32", "fill": "0", "middle": "1"}},
        "2": {
            "class_type": COARSEN,
            "inputs": {"mask": ["1", 1], "level": "box", "margin": margin % 1000, "min_size": 0, "shadow_room": 0},
        },
    }
    assert server.run(good)["status"]["status_str"] == "success"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server: Server, prompt: dict, name: str):
    kind, inputs, word = REFUSED[name]
    bad = changed(prompt, kind, inputs)
    try:
        answer = server.request("/prompt", {"prompt": bad})  # the nodes that show a preview may still be fine, and run
    except urllib.error.HTTPError as refusal:
        assert refusal.code == 400
        answer = refusal.read()
    complaint = json.dumps(json.loads(answer)["node_errors"][number(bad, kind)]["errors"])
    assert word in complaint and len(complaint) < 5000
    answers(server)


@pytest.mark.parametrize("name", STOPPED)
def test_stopped(server: Server, prompt: dict, name: str):
    kind, inputs, word = STOPPED[name]
    entry = server.run(changed(prompt, kind, inputs))
    errors = [message for what, message in entry["status"]["messages"] if what == "execution_error"]
    assert errors, f"it ended with {entry['status']['status_str']}"
    (error,) = errors
    message = error["exception_message"]
    assert error["exception_type"].endswith("ImprintError"), f"{error['exception_type']}: {message[:500]}"
    assert error["node_type"] == kind, message
    assert word in message and len(message) < 700
    answers(server)


@pytest.mark.parametrize("name", FINE)
def test_not_bad(server: Server, prompt: dict, name: str):
    ((kind, inputs),) = FINE[name].items()
    fine = changed(prompt, kind, inputs)
    if kind == SAMPLE:
        for each in ("background", "mask"):
            if each in inputs:
                node(fine, BLEND)["inputs"][each] = node(fine, SAMPLE)["inputs"][each]
    (made,) = server.pictures(fine)
    shape = inputs.get("background", {}).get("inputs", {}).get("shape", "1x400x400x3").split("x")
    assert made.size == (int(shape[2]), int(shape[1]))


def test_afterwards_all_is_well(server: Server, prompt: dict):
    with Image.open(ROOT / "imprint" / "assets" / "samples" / "background.png") as background:
        assert server.pictures(prompt)[0].size == background.size
    assert len(REFUSED) + len(STOPPED) >= 60
