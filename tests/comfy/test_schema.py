"""What saved workflows rely on: node ids, inputs, outputs and types, compared with `schema.json`.

After a change on purpose: `IMPRINT_NEW_SCHEMA=1 python -m pytest tests/comfy/test_schema.py` writes the snapshot anew.
A node that goes needs an `io.NodeReplace` as well, registered in `ImprintExtension.on_load`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from comfy_server import PACK, Server

pytestmark = pytest.mark.comfyui

SNAPSHOT = Path(__file__).with_name("schema.json")
OTHERS = {"checkpoint", "light_model", "sampler_name", "scheduler"}  # their choices are the user's files, and ComfyUI's


@pytest.fixture(scope="module")
def schema(object_info: dict) -> dict:
    ours = {name: info for name, info in object_info.items() if info["python_module"] == f"custom_nodes.{PACK}"}
    return {name: describe(info) for name, info in sorted(ours.items())}


def describe(info: dict) -> dict:
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            extra = options[0] if options else {}
            inputs[name] = [group, kind, extra.get("default")]
            if kind == "COMBO" and name not in OTHERS:
                inputs[name].append(extra["options"])
    outputs = [list(each) for each in zip(info["output_name"], info["output"])]
    return {"inputs": inputs, "order": list(inputs), "outputs": outputs}


def test_schema_is_the_snapshot(server: Server, schema: dict):
    if os.environ.get("IMPRINT_NEW_SCHEMA"):
        SNAPSHOT.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    gone = set(snapshot) - set(schema) - set(server.get("/node_replacements"))
    assert not gone, f"without io.NodeReplace, saved workflows lose {gone}"
    for name in sorted(set(schema) & set(snapshot)):
        assert schema[name] == snapshot[name], f"{name} has changed; see this file's first lines"
    assert set(schema) <= set(snapshot), "a new node; see this file's first lines"


@pytest.mark.parametrize("change", ["input", "type", "output", "choice", "node", "order"])
def test_a_change_is_noticed(schema: dict, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The comparison itself, against a snapshot with one change."""
    other = json.loads(json.dumps(schema))
    node = other["ImprintMaskCoarsener"]
    if change == "input":
        node["inputs"]["gone"] = node["inputs"].pop("margin")
    elif change == "type":
        node["inputs"]["margin"][1] = "FLOAT"
    elif change == "output":
        node["outputs"].append(["more", "IMAGE"])
    elif change == "choice":
        node["inputs"]["level"][3].reverse()
    elif change == "order":
        node["order"].reverse()
    else:
        other["ImprintGone"] = other.pop("ImprintMaskCoarsener")

    class Silent:
        def get(self, path: str) -> dict:
            return {}

    path = tmp_path / "schema.json"
    path.write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setitem(globals(), "SNAPSHOT", path)
    monkeypatch.delenv("IMPRINT_NEW_SCHEMA", raising=False)
    with pytest.raises(AssertionError):
        test_schema_is_the_snapshot(Silent(), schema)
