"""The pack in a running ComfyUI: what a user sees and gets."""

from __future__ import annotations

import copy
import json
import os
import time

import numpy as np
import pytest
import third_party_weights
import torch
from comfy_server import PACK, ROOT, Server
from make_workflows import DRAW, OBJECTSTITCH, PAINTED, RELATIVE, SAMPLES, file_of
from PIL import Image, ImageDraw
from ui_workflow import to_prompt

from imprint.blending import feather
from imprint.masks import coarsen

pytestmark = pytest.mark.comfyui

NODES = {
    "ImprintPlaceObject": "Imprint: Place Object",
    "ImprintRelight": "Imprint: Light and Shadow",
    "ImprintJob": "Imprint: Job",
    "ImprintLoadCheckpoint": "Imprint: Load Checkpoint",
    "ImprintIDEncoder": "Imprint: Encode Object",
    "ImprintContentAdapter": "Imprint: Condition on Object",
    "ImprintMaskCoarsener": "Imprint: Coarsen Mask",
    "ImprintCompositeSampler": "Imprint: Draw Object",
    "ImprintShowHint": "Imprint: Show Hint",
    "ImprintRestoreDetail": "Imprint: Restore Detail",
    "ImprintCastShadow": "Imprint: Cast Shadow",
    "ImprintBackgroundBlend": "Imprint: Blend into Background",
}


@pytest.fixture(scope="module")
def prompt(object_info: dict) -> dict:
    """The shipped workflow, in five steps, without the shadow, which could fall anywhere."""
    workflow = json.loads(file_of(DRAW).read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, object_info)
    one(prompt, "ImprintCompositeSampler").update(steps=5, variations=1)
    one(prompt, "ImprintCastShadow")["shadow"] = 0.0
    return prompt


@pytest.fixture(scope="module")
def picture(server: Server, prompt: dict) -> np.ndarray:
    return server.picture(prompt)


@pytest.fixture(scope="module")
def blend(prompt: dict) -> np.ndarray:
    """(H, W): how much of the generated picture each pixel can take in the shipped workflow."""
    hole = 1 - torch.from_numpy(np.asarray(Image.open(SAMPLES / PAINTED).getchannel("A"))[None] / np.float32(255))
    options, edge = one(prompt, "ImprintMaskCoarsener"), one(prompt, "ImprintBackgroundBlend")
    coarse = coarsen(hole, options["level"], options["margin"], options["min_size"])
    return feather(coarse, edge["feather_in"], edge["feather_out"])[0].numpy()


def one(prompt: dict, kind: str) -> dict:
    """The inputs of the prompt's only node of this type."""
    (inputs,) = (node["inputs"] for node in prompt.values() if node["class_type"] == kind)
    return inputs


def visible_inputs(info: dict) -> list[tuple[str, list]]:
    return [item for group in ("required", "optional") for item in info["input"].get(group, {}).items()]


def test_nodes_are_there(object_info: dict):
    ours = {name: info for name, info in object_info.items() if info["python_module"] == f"custom_nodes.{PACK}"}
    assert {name: info["display_name"] for name, info in ours.items()} == NODES
    for name, info in ours.items():
        assert info["category"].startswith("imprint/") and info["description"] and info["search_aliases"], name
        inputs = visible_inputs(info)
        for label, (_, options) in inputs:
            assert options.get("tooltip"), f"{name}: input {label} has no tooltip"
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name


def test_help_and_translations(server: Server, object_info: dict):
    file, words = ROOT / "locales" / "en" / "nodeDefs.json", node_definitions(object_info)
    if os.environ.get("IMPRINT_NEW_SCHEMA"):
        file.write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == words
    for name, title in NODES.items():
        page = server.request(f"/extensions/{PACK}/docs/{name}.md").decode()
        assert page.startswith(f"# {title}\n")


def node_definitions(object_info: dict) -> dict:
    """The expected content of locales/en/nodeDefs.json: the nodes' own texts. IMPRINT_NEW_SCHEMA=1 writes it."""
    definitions = {}
    for name in NODES:
        info = object_info[name]
        inputs = visible_inputs(info)
        definitions[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {label: {"name": label, "tooltip": options["tooltip"]} for label, (_, options) in inputs},
            "outputs": {
                str(index): {"name": label, "tooltip": tooltip}
                for index, (label, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"]))
            },
        }
    return definitions


def test_import_is_quick(server: Server):
    assert server.import_seconds() < 1


def test_samples_are_in_the_input_folder(server: Server):
    for sample in SAMPLES.iterdir():
        assert (server.base / "input" / f"imprint_{sample.name}").read_bytes() == sample.read_bytes()


def as_loaded(server: Server) -> np.ndarray:
    """The painted background as read by ComfyUI's own WebP reader, which rounds differently from Pillow's."""
    load = {"class_type": "LoadImage", "inputs": {"image": f"imprint_{PAINTED}"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}}
    return server.picture({"1": load, "2": save})


def test_workflow_keeps_the_background(server: Server, picture: np.ndarray, blend: np.ndarray):
    background = as_loaded(server)
    assert picture.shape == background.shape
    assert np.array_equal(picture[blend == 0], background[blend == 0])
    # Within the hole, a checkpoint with a matte keeps what is beside the object.
    assert (picture[blend == 1] != background[blend == 1]).any(1).mean() > 0.5


def test_a_shadow_darkens_the_ground_alone(server: Server, prompt: dict, picture: np.ndarray, blend: np.ndarray):
    shaded = copy.deepcopy(prompt)
    one(shaded, "ImprintCastShadow")["shadow"] = 1.0
    change = server.picture(shaded).astype(int) - picture
    assert change.max() <= 0 and change.min() < -20 and change[blend == 0].min() < -5


def test_same_seed_same_picture(server: Server, prompt: dict, picture: np.ndarray):
    free(server)  # or ComfyUI would answer from its cache
    assert np.array_equal(server.picture(prompt), picture)


def test_other_seed_other_picture(server: Server, prompt: dict, picture: np.ndarray, blend: np.ndarray):
    other = copy.deepcopy(prompt)
    one(other, "ImprintCompositeSampler")["seed"] += 1
    changed = (server.picture(other) != picture).any(2)
    assert changed.any() and not changed[blend == 0].any()


def test_other_object_changes_only_the_hole(server: Server, prompt: dict, picture: np.ndarray, blend: np.ndarray):
    disc = Image.new("RGBA", (160, 120))
    ImageDraw.Draw(disc).ellipse((20, 10, 140, 110), fill=(20, 160, 60, 255))
    disc.save(server.base / "input" / "disc.png")
    other = copy.deepcopy(prompt)
    for node in other.values():
        if node["inputs"].get("image") == "imprint_sloth.webp":
            node["inputs"]["image"] = "disc.png"
    changed = (server.picture(other) != picture).any(2)
    assert changed.any() and not changed[blend == 0].any()


def test_everything_can_be_freed(server: Server, prompt: dict, picture: np.ndarray):
    server.picture(prompt)
    assert server.get("/imprint_probe")["alive"] == ["CleanBackground", "Dinov2Model", "TAESD", "_AdapterModule"]
    probe = free(server)
    assert (probe["alive"], probe["loaded"]) == ([], 0)


def free(server: Server, seconds: float = 30) -> dict:
    """Make ComfyUI free everything; returns the probe's last answer.

    It is asked until it is done: a request that arrives between the worker's check of its flags and its next wait is
    only seen when that wait ends.
    """
    end = time.monotonic() + seconds
    while True:
        server.request("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.2)
        probe = server.get("/imprint_probe")
        if not probe["alive"] or time.monotonic() > end:
            return probe


def test_error_reaches_the_user(server: Server, prompt: dict):
    """A picture without transparency: Load Image gives a 64x64 mask of zeros."""
    other = copy.deepcopy(prompt)
    for node in other.values():
        if node["inputs"].get("image") == "imprint_sloth.webp":
            node["inputs"]["image"] = "imprint_background.png"
    entry = server.run(other)
    (error,) = (message for kind, message in entry["status"]["messages"] if kind == "execution_error")
    assert error["exception_type"].endswith("ImprintError") and error["node_type"] == "ImprintIDEncoder"
    assert "64x64" in error["exception_message"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("objectstitch", OBJECTSTITCH["name"]), ("controlcom", "ControlCom.pth"), ("anydoor", "AnyDoor.ckpt")],
)
def test_a_relative_s_file_runs_its_workflow(server: Server, kind: str, name: str):
    """Random weights, as released and converted, in few steps at 64 px; the object is seen, the background stays."""
    pytest.importorskip("diffusers")
    from imprint.third_party import convert

    workflow = json.loads(file_of(RELATIVE).read_text(encoding="utf-8"))
    folder = server.base / "models" / OBJECTSTITCH["directory"]
    torch.save({"state_dict": third_party_weights.random_weights("small", kind)}, folder / name)
    convert(folder / name, folder / "converted.safetensors")
    prompt = to_prompt(workflow, server.get("/object_info"))
    one(prompt, "ImprintLoadCheckpoint")["checkpoint"] = name
    one(prompt, "ImprintCompositeSampler").update(steps=2, resolution=64)
    released = server.picture(prompt)
    one(prompt, "ImprintLoadCheckpoint")["checkpoint"] = "converted.safetensors"
    converted = server.picture(prompt)

    background = as_loaded(server)
    changed = (released != background).any(2)
    assert released.shape == background.shape and 0.02 < changed.mean() < 0.9
    assert np.abs(released.astype(int) - converted).mean() < 2  # one is fp16
    one(prompt, "ImprintContentAdapter")["strength"] = 0.0
    assert (server.picture(prompt) != converted).any()
    if kind == "controlcom":
        one(prompt, "ImprintContentAdapter").update(strength=1.0, change="light")
        assert (server.picture(prompt) != converted).any()
