"""The workflows and the blueprint in the files are what `make_workflows.py` makes, and each runs."""

from __future__ import annotations

import json

import pytest
from comfy_server import PACK, ROOT, Server
from make_workflows import BACKGROUND_REMOVAL, BLUEPRINTS, OBJECTSTITCH, SAMPLES, WORKFLOWS, blueprint, build, text
from PIL import Image
from ui_workflow import to_prompt

pytestmark = pytest.mark.comfyui

NEEDS_DOWNLOAD = "imprint_objectstitch_512px"  # run in test_server.py, with random weights
PICTURES = {"imprint_mask_levels": 4, "imprint_shape_guided_pose": 3, "imprint_batch": 6}


def shipped(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_file_is_current(object_info: dict, name: str):
    assert text(build(name, object_info)) == (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.width == 480


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_is_current(server: Server, object_info: dict, name: str):
    file = ROOT / "subgraphs" / f"{name}.json"
    assert text(blueprint(name, object_info)) == file.read_text(encoding="utf-8")
    offered = server.get("/global_subgraphs").items()
    ours = [key for key, each in offered if each["info"]["node_pack"] == f"custom_nodes.{PACK}"]
    assert len(ours) == len(BLUEPRINTS)
    (served,) = (each for key in ours if (each := server.get(f"/global_subgraphs/{key}"))["name"] == name)
    assert served["data"] == file.read_text(encoding="utf-8")


def test_all_are_offered(server: Server):
    assert set(WORKFLOWS) <= set(server.get("/workflow_templates")[PACK])
    for name in WORKFLOWS:
        assert server.request(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != NEEDS_DOWNLOAD])
def test_runs(server: Server, object_info: dict, name: str):
    """As it is, but in one step."""
    prompt = to_prompt(shipped(name), object_info)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    results = server.pictures(prompt, seconds=300)
    assert len(results) == PICTURES.get(name, 1)
    side = 3072 if name == "imprint_large_photo" else 400
    assert {result.size for result in results} == {(side, side)}
    assert len({result.tobytes() for result in results}) >= len(results) - (
        name == "imprint_batch"
    )  # one is made twice


def test_files_to_be_had_have_an_address():
    nodes = [node for name in WORKFLOWS for node in shipped(name)["nodes"]]
    offered = [node["properties"]["models"] for node in nodes if "models" in node["properties"]]
    assert offered == [[BACKGROUND_REMOVAL], [OBJECTSTITCH]]
    for (model,) in offered:
        assert model["url"].startswith("https://") and model["url"].endswith("/" + model["name"])


def test_samples_are_used():
    """Each sample picture is in a workflow, but for the demo's box; each workflow's pictures are samples."""
    named = {
        value.removeprefix("imprint_")
        for name in WORKFLOWS
        for node in shipped(name)["nodes"]
        if node["type"] in ("LoadImage", "LoadImageMask")
        for value in node["widgets_values"][:1]
    }
    assert named | {"box.png"} == {path.name for path in SAMPLES.iterdir()}
