"""Workflows as ComfyUI's front end saves them: built node by node, and turned into the prompt that it would send.

Both follow the server's own description of the nodes (`/object_info`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_FRONT_END_ONLY = {"Note", "MarkdownNote"}
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "BOUNDING_BOX"}
_PREVIEWS = {"LoadImage", "LoadImageMask", "SaveImage", "PreviewImage", "MaskPreview"}
_COLUMN, _GAP, _PREVIEW = 430, 50, 260  # pixels of the canvas


@dataclass(frozen=True)
class Output:
    """A node's output, to be given as another node's input."""

    node: int
    slot: int
    type: str


@dataclass(frozen=True)
class Node:
    """A node of a `Graph`; `node["IMAGE"]` is its output of that name."""

    id: int
    outputs: dict[str, Output]

    def __getitem__(self, name: str) -> Output:
        return self.outputs[name]


class Graph:
    """A graph under construction: nodes stand in columns, each below the one before it."""

    def __init__(self, object_info: dict[str, dict]):
        self.object_info = object_info
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self._bottom: dict[float, int] = {}

    def note(self, column: float, text: str, title: str = "Note", columns: float = 1, height: int = 180) -> None:
        self._place("MarkdownNote", column, height, columns, title=title, properties={}, widgets_values=[text])

    def add(
        self, kind: str, column: float, title: str = "", models: list[dict] | None = None, columns: float = 1, **given
    ) -> Node:
        """A node. given: an `Output`, or a widget's value; a list of outputs for inputs that grow.

        models: files that a user needs for it, as {"name", "url", "directory"}. Raises KeyError for an unknown input.
        """
        info, number = self.object_info[kind], len(self.nodes) + 1
        inputs, values, uploads = [], [], 0
        given = dict(given)
        for name, spec, options in _declared(info["input"]):
            if spec == "COMFY_AUTOGROW_V3":
                grown = self._grown(name, options["template"], given.pop(name))
                inputs += [self._input(number, len(inputs) + index, *each) for index, each in enumerate(grown)]
                continue
            value = given.pop(name, None)
            source = value if isinstance(value, Output) else None
            if spec not in _WIDGETS and source is None and name not in info["input"].get("optional", {}):
                raise KeyError(f"{kind}: input {name} is not given")
            inputs.append(self._input(number, len(inputs), name, spec, source, widget=spec in _WIDGETS))
            if name in info["input"].get("optional", {}):
                inputs[-1]["shape"] = 7
            if spec in _WIDGETS:
                values += _saved_values(spec, options, None if source else value)
                uploads += bool(options.get("image_upload"))
        if given:
            raise KeyError(f"{kind} has no input {', '.join(given)}")
        outputs = [
            {"name": label, "type": type_, "links": []} for label, type_ in zip(info["output_name"], info["output"])
        ]
        properties: dict[str, Any] = {"Node name for S&R": kind}
        if models:
            properties["models"] = models
        rows = max(sum("widget" not in each for each in inputs), len(outputs))
        height = 50 + 24 * rows + 28 * len(values)
        height += _PREVIEW if kind in _PREVIEWS or info["output_node"] or "BOUNDING_BOX" in str(inputs) else 0
        self._place(
            kind,
            column,
            height,
            columns,
            title,
            inputs=inputs,
            outputs=outputs,
            properties=properties,
            widgets_values=values + ["image"] * uploads,  # an upload button is a widget too, and comes last
        )
        return Node(
            number,
            {each["name"]: Output(number, slot, each["type"]) for slot, each in enumerate(outputs)},
        )

    def workflow(self, name: str) -> dict:
        """The graph as a file holds it. name: makes the workflow's id."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"imprint/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _place(self, kind: str, column: float, height: int, columns: float, title: str = "", **parts) -> None:
        top = self._bottom.get(column, 0)
        self._bottom[column] = top + height + _GAP
        self.nodes.append(
            {
                "id": len(self.nodes) + 1,
                "type": kind,
                "pos": [int(column * _COLUMN), top],
                "size": [int(columns * _COLUMN) - 90, height],
                "flags": {},
                "order": len(self.nodes),
                "mode": 0,
                "inputs": [],
                "outputs": [],
                **parts,
                **({"title": title} if title else {}),
            }
        )

    def _input(self, node: int, slot: int, name: str, spec: str, source: Output | None, widget: bool = False) -> dict:
        entry: dict[str, Any] = {"name": name, "type": spec}
        if widget:
            entry["widget"] = {"name": name}
        entry["link"] = None
        if source:
            entry["link"] = len(self.links) + 1
            self.links.append([entry["link"], source.node, source.slot, node, slot, source.type])
            self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(entry["link"])
        return entry

    @staticmethod
    def _grown(name: str, template: dict, sources: list[Output]) -> Iterator[tuple[str, str, Output | None]]:
        """One input for each source, and the empty one that the front end adds."""
        for index, source in enumerate([*sources, None]):
            yield f"{name}.{template['prefix']}{index}", sources[0].type, source


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """API format. Raises KeyError for a node that the server does not have."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _FRONT_END_ONLY:
            continue
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        values = _widget_values(node, object_info[node["type"]]["input"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | links}
    return prompt


def _declared(inputs: dict[str, dict]) -> Iterator[tuple[str, str, dict]]:
    """(name, type, options) of each input; an old-style list of choices is a COMBO."""
    for group in ("required", "optional"):
        for name, (kind, *options) in inputs.get(group, {}).items():
            extra = options[0] if options else {}
            if isinstance(kind, list):
                kind, extra = "COMBO", {"options": kind} | extra
            yield name, kind, extra


def _saved_values(kind: str, options: dict, value: Any) -> list:
    """What the front end saves of a widget: its value, and those of the widgets that it comes with."""
    if value is None:
        value = options.get("default", (options.get("options") or [None])[0])
    if kind == "BOUNDING_BOX":
        return [value, *value.values()]
    return [value, "fixed"] if options.get("control_after_generate") else [value]


def _widget_values(node: dict, declared: dict[str, dict]) -> dict[str, Any]:
    values, left = {}, list(node["widgets_values"])
    uploads = 0
    for name, kind, options in _declared(declared):
        if kind not in _WIDGETS:
            continue
        values[name] = left.pop(0)
        if options.get("control_after_generate"):
            assert left.pop(0) in ("fixed", "increment", "decrement", "randomize")
        if kind == "BOUNDING_BOX":
            del left[:4]
        uploads += bool(options.get("image_upload"))
    assert left == ["image"] * uploads, f"{node['type']}: {left} left of {node['widgets_values']}"
    return values
