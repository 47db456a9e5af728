"""A workflow as the front end saves it -> the prompt that the front end would send."""

from __future__ import annotations

from typing import Any

_FRONT_END_ONLY = {"Note", "MarkdownNote"}
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """API format, by the server's own description of the nodes. Raises KeyError for a node it does not have."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _FRONT_END_ONLY:
            continue
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        values = _widget_values(node, object_info[node["type"]]["input"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | links}
    return prompt


def _widget_values(node: dict, declared: dict[str, dict]) -> dict[str, Any]:
    values, left = {}, list(node["widgets_values"])
    uploads = 0
    for name, (kind, *options) in (
        item for group in ("required", "optional") for item in declared.get(group, {}).items()
    ):
        if not (isinstance(kind, list) or kind in _WIDGETS):
            continue
        values[name] = left.pop(0)
        extra = options[0] if options else {}
        if extra.get("control_after_generate"):
            assert left.pop(0) in ("fixed", "increment", "decrement", "randomize")
        uploads += bool(extra.get("image_upload"))
    # An upload button is a widget too, and comes last.
    assert left == ["image"] * uploads, f"{node['type']}: {left} left of {node['widgets_values']}"
    return values
