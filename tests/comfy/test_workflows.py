"""The workflow and blueprint files are what `make_workflows.py` makes, and each of them runs."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from comfy_server import PACK, ROOT, Server
from make_workflows import (
    BACKGROUND_REMOVAL,
    BLUEPRINTS,
    DRAW,
    FIRST,
    OBJECTSTITCH,
    RELATIVE,
    SAMPLES,
    WORKFLOWS,
    blueprint,
    build,
    file_of,
    text,
)
from PIL import Image
from ui_workflow import to_prompt

pytestmark = pytest.mark.comfyui

# RELATIVE is run in test_server.py, with random weights.
PICTURES = {"5 Place many objects one by one": 2, DRAW: 2}


def shipped(name: str) -> dict:
    return json.loads(file_of(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_file_is_current(object_info: dict, name: str):
    assert text(build(name, object_info)) == file_of(name).read_text(encoding="utf-8")
    with Image.open(file_of(name).with_suffix(".jpg")) as thumbnail:
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
    """In the order of their names, regardless of the disk's; each with its file and its thumbnail."""
    offered = server.get("/workflow_templates")[PACK]
    assert offered == list(WORKFLOWS) and len(offered) <= 8
    for name in WORKFLOWS:
        assert server.get(quote(f"/api/workflow_templates/{PACK}/{name}.json")) == shipped(name)
        assert server.request(quote(f"/api/workflow_templates/{PACK}/{name}.jpg")).startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != RELATIVE])
def test_runs(server: Server, object_info: dict, name: str):
    """Unchanged, except for a single step."""
    prompt = to_prompt(shipped(name), object_info)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    results = server.pictures(prompt, seconds=300)
    assert len(results) == PICTURES.get(name, 1)
    assert {result.size for result in results} == {(1024, 1024)}
    assert len({result.tobytes() for result in results}) == len(results)


def test_the_drawing_template_draws_in_two_steps_as_its_note_says(server: Server, object_info: dict):
    """Its LoRA is switched off, and in the MODEL's way once it is switched on."""
    prompts = []
    for mode in (4, 0):
        workflow = shipped(DRAW)
        (lora,) = (node for node in workflow["nodes"] if node["type"] == "LoraLoaderModelOnly")
        assert lora["mode"] == 4
        lora["mode"] = mode
        prompts.append(to_prompt(workflow, object_info))
        (sampling,) = (each["inputs"] for each in prompts[-1].values() if "sampler_name" in each["inputs"])
        assert (sampling["sampler_name"], sampling["scheduler"], sampling["cfg"]) == ("euler", "simple", 1.0)
        sampling.update(steps=2, variations=1)
    assert len(prompts[1]) == len(prompts[0]) + 1
    without, with_lora = (server.picture(prompt) for prompt in prompts)
    assert (without != with_lora).any()


def saved(name: str) -> dict:
    return json.loads((ROOT / "tests" / "comfy" / "saved" / f"{name}_0.1.0.json").read_text(encoding="utf-8"))


def test_a_saved_place_gives_the_same_picture(server: Server, object_info: dict):
    """The same as the first template, which has widgets that the saved one lacks, with its pictures and its box."""
    before, now = (to_prompt(each, object_info) for each in (saved("place"), shipped(FIRST)))
    same = {"LoadImage": ("image",), "ImprintPlaceObject": ("box",)}
    values = {
        kind: [{name: node["inputs"][name] for name in names} for node in before.values() if node["class_type"] == kind]
        for kind, names in same.items()
    }
    for node in now.values():
        if node["class_type"] in same:
            node["inputs"] |= values[node["class_type"]].pop(0)
        if node["class_type"] == "ImprintRelight":
            node["inputs"]["light_from"] = "auto"  # its default; the template says where its own light comes from
    made = server.picture(to_prompt(saved("place"), object_info))
    assert made.shape == (400, 400, 3) and (made == server.picture(now)).all()


def test_a_saved_drawing_gives_the_same_picture(server: Server, object_info: dict):
    """Restore Detail with the object's picture and mask, as in former versions, or with its identity."""
    prompt = to_prompt(saved("draw"), object_info)
    kinds = {node["class_type"]: (number, node["inputs"]) for number, node in prompt.items()}
    sampling, detail = kinds["ImprintCompositeSampler"][1], kinds["ImprintRestoreDetail"][1]
    assert detail["mask_marks"] == "background" and sampling["variations"] == 1 and not sampling["same_noise"]
    sampling["steps"] = 4
    before = server.picture(prompt)
    del detail["image"], detail["mask"]
    detail["identity"] = [kinds["ImprintIDEncoder"][0], 0]
    for _, inputs in kinds.values():
        if "mask_marks" in inputs:
            inputs["mask_marks"] = "auto"
    assert (server.picture(prompt) == before).all()


def test_files_to_be_had_have_an_address():
    nodes = [node for name in WORKFLOWS for node in shipped(name)["nodes"]]
    offered = [node["properties"]["models"] for node in nodes if "models" in node["properties"]]
    assert offered == [[BACKGROUND_REMOVAL], [OBJECTSTITCH]]
    for (model,) in offered:
        assert model["url"].startswith("https://") and model["url"].endswith("/" + model["name"])


def test_samples_are_used():
    """Each workflow's pictures are samples, and each sample is in a workflow or named in the documents or tests."""
    named = {
        value.removeprefix("imprint_")
        for name in WORKFLOWS
        for node in shipped(name)["nodes"]
        if node["type"] == "LoadImage"
        for value in node["widgets_values"][:1]
    }
    # ComfyUI 0.33 reads a WebP of odd width with an opaque last column, which is a line beside the object.
    assert all(side % 2 == 0 for name in named for side in Image.open(SAMPLES / name).size)
    samples = {path.name for path in SAMPLES.iterdir()}
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "tests").glob("test_*.py"), ROOT / "imprint" / "cli.py"]
    words = "".join(path.read_text(encoding="utf-8") for path in files)
    saved_before = {"hole.png"}  # of workflows that version 0.1.0 saved
    assert named <= samples
    assert samples - named - saved_before == {name for name in samples - named - saved_before if name in words}
