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
_PREVIEWS = {"LoadImage", "LoadImageMask", "SaveImage", "PreviewImage", "MaskPreview", "ImageCropV2"}
_LEAST = {"ImageCropV2": 680, "SaveImage": 560}  # the one with its picture in Nodes 2.0, the other to see the result
_WORDS = 100  # of a node that tells what it did
_COLUMN, _GAP, _PREVIEW = 430, 50, 260  # pixels of the canvas
_REGISTRY_ID = "imprint"  # pyproject.toml's name: by it the front end finds the pack of a node that is missing
_ALWAYS, _BYPASSED = 0, 4  # the front end's modes of a node


@dataclass(frozen=True)
class Output:
    """A node's output, to be used as another node's input."""

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


@dataclass(frozen=True)
class _Input:
    name: str
    type: str
    source: Output | None = None


def subgraph_inputs(**types: str) -> dict[str, Output]:
    """The inputs of a subgraph, as sources for the nodes in it."""
    return {name: Output(-10, slot, type_) for slot, (name, type_) in enumerate(types.items())}


class Graph:
    """A graph under construction: nodes are in columns, each below the previous one."""

    def __init__(self, object_info: dict[str, dict]):
        self.object_info = object_info
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.groups: list[dict] = []
        self.form: dict[str, list] = {}
        self._bottom: dict[float, int] = {}

    def note(self, column: float, text: str, title: str = "Note", columns: float = 1, height: int = 180) -> None:
        self._place("MarkdownNote", column, height, columns, title=title, properties={}, widgets_values=[text])

    def add(
        self,
        kind: str,
        column: float,
        title: str = "",
        models: list[dict] | None = None,
        columns: float = 1,
        colour: dict[str, str] | None = None,
        **given,
    ) -> Node:
        """Add a node.

        given: its inputs' `Output`s and its widgets' values; a list of outputs for an input that grows. models: files
        that a user needs for it, as {"name", "url", "directory"}. colour: "color" and "bgcolor". Raises KeyError for an
        unknown input.
        """
        info, optional = self.object_info[kind], self.object_info[kind]["input"].get("optional", {})
        sockets, widgets, values = [], [], []  # the front end puts widgets last
        for name, spec, options in _declared(info["input"]):
            value = given.pop(name, None)
            if spec == "COMFY_AUTOGROW_V3":
                grown = [*value, None]  # one input for each, and the empty one that the front end adds
                prefix = f"{name}.{options['template']['prefix']}"
                sockets += [_Input(f"{prefix}{index}", value[0].type, source) for index, source in enumerate(grown)]
            elif spec in _WIDGETS:
                widgets.append(_Input(name, spec))
                values += _saved_values(spec, options, value)
            elif value is None and name not in optional:
                raise KeyError(f"{kind}: input {name} is not given")
            else:
                type_ = value.type if value and spec == "COMFY_MATCHTYPE_V3" else spec
                sockets.append(_Input(name, type_, value))
        if given:
            raise KeyError(f"{kind} has no input {', '.join(given)}")
        if any(options.get("image_upload") for _, _, options in _declared(info["input"])):
            widgets.append(_Input("upload", "IMAGEUPLOAD"))
            values.append("image")
        number = len(self.nodes) + 1
        matched = next((each.source.type for each in sockets if each.source), "*")
        outputs = [
            {"name": label, "type": matched if type_ == "COMFY_MATCHTYPE_V3" else type_, "links": []}
            for label, type_ in zip(info["output_name"], info["output"])
        ]
        ours = info["python_module"].startswith("custom_nodes.")
        properties: dict[str, Any] = {"cnr_id": _REGISTRY_ID if ours else "comfy-core", "Node name for S&R": kind}
        if models:
            properties["models"] = models
        height = 50 + 24 * max(len(sockets), len(outputs)) + 28 * len(values)
        height += _PREVIEW if kind in _PREVIEWS or info["output_node"] else 0
        height += _WORDS if "unique_id" in info["input"].get("hidden", {}) else 0
        height = max(height, _LEAST.get(kind, 0))
        self._place(
            kind,
            column,
            height,
            columns,
            title,
            inputs=[self._connect(number, slot, each) for slot, each in enumerate(sockets)]
            + [{"name": each.name, "type": each.type, "widget": {"name": each.name}, "link": None} for each in widgets],
            outputs=outputs,
            properties=properties,
            **({"widgets_values": values} if values else {}),
            **(colour or {}),
        )
        return Node(number, {each["name"]: Output(number, slot, each["type"]) for slot, each in enumerate(outputs)})

    def show_as_form(self, inputs: list[tuple[Node, str]], outputs: list[Node]) -> None:
        """Open the graph in App Mode: these widgets, under their nodes' titles if they have one, and what these nodes
        save.
        """
        for node, widget in inputs:
            (entry,) = (each for each in self.nodes[node.id - 1]["inputs"] if each["name"] == widget)
            if "title" in self.nodes[node.id - 1]:
                entry["label"] = self.nodes[node.id - 1]["title"]
        shown = [[str(node.id), widget] for node, widget in inputs]
        self.form = {"linearData": {"inputs": shown, "outputs": [str(node.id) for node in outputs]}, "linearMode": True}

    def bypass(self, *nodes: Node, frame: str = "") -> None:
        """Switch nodes off, in a frame with that title, if given, by which a user can switch them on again together."""
        off = [self.nodes[node.id - 1] for node in nodes]
        for node in off:
            node["mode"] = _BYPASSED
        if not frame:
            return
        left, top = (min(node["pos"][axis] for node in off) - 15 for axis in (0, 1))
        right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in off) + 15 for axis in (0, 1))
        bounding = [left, top - 65, right - left, bottom - top + 65]  # above: the frame's title, and the first node's
        self.groups.append({"id": len(self.groups) + 1, "title": frame, "bounding": bounding, "flags": {}})

    def workflow(self, name: str) -> dict:
        """The graph in a file's format. name: determines the workflow's id."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"imprint/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": self.form,
            "version": 0.4,
        }

    def blueprint(
        self, name: str, description: str, inputs: dict[str, Output], outputs: dict[str, Output], widgets: list[tuple]
    ) -> dict:
        """The graph as one node that contains it, a subgraph blueprint.

        inputs: from `subgraph_inputs`. widgets: (node's type, widget's name) of those that the outer node shows.
        """
        sockets, inputs, values = len(inputs), dict(inputs), []
        for kind, widget in widgets:
            (inner,) = (node for node in self.nodes if node["type"] == kind)
            slot, entry = next((i, each) for i, each in enumerate(inner["inputs"]) if each["name"] == widget)
            inputs[widget] = Output(-10, len(inputs), entry["type"])
            inner["inputs"][slot] |= self._connect(inner["id"], slot, _Input(widget, entry["type"], inputs[widget]))
            declared = [each for each in _declared(self.object_info[kind]["input"]) if each[1] in _WIDGETS]
            before = declared[: [name for name, _, _ in declared].index(widget)]
            values.append(inner["widgets_values"][sum(len(_saved_values(*each[1:], None)) for each in before)])
        ids = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, f"imprint/{name}/{key}")) for key in ("", *inputs, *outputs)}
        for slot, output in enumerate(outputs.values()):
            self.links.append([len(self.links) + 1, output.node, output.slot, -20, slot, output.type])
            self.nodes[output.node - 1]["outputs"][output.slot]["links"].append(len(self.links))
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links = [dict(zip(names, link)) for link in self.links]
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes)

        def ports(ends: dict[str, Output], end: str, number: int) -> list[dict]:
            return [
                {
                    "id": ids[label],
                    "name": label,
                    "type": output.type,
                    "linkIds": [
                        link["id"] for link in links if (link[f"{end}_id"], link[f"{end}_slot"]) == (number, slot)
                    ],
                }
                for slot, (label, output) in enumerate(ends.items())
            ]

        definition = {
            "id": ids[""],
            "version": 1,
            "state": {
                "lastGroupId": len(self.groups),
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": name,
            "inputNode": {"id": -10, "bounding": [-250, 0, 120, 40 + 20 * len(inputs)]},
            "outputNode": {"id": -20, "bounding": [right + 100, 0, 120, 40 + 20 * len(outputs)]},
            "inputs": ports(inputs, "origin", -10),
            "outputs": ports(outputs, "target", -20),
            "widgets": [],
            "nodes": self.nodes,
            "groups": self.groups,
            "links": links,
            "extra": {},
            "category": "imprint",
            "description": description,
        }
        node = {
            "id": 1,
            "type": ids[""],
            "pos": [0, 0],
            "size": [450 if "box" in inputs else 320, 40 + 28 * len(inputs)],  # a box is drawn on a picture
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [
                {"name": label, "type": output.type, "link": None}
                | ({"widget": {"name": label}} if output.slot >= sockets else {})
                for label, output in inputs.items()
            ],
            "outputs": [{"name": label, "type": output.type, "links": []} for label, output in outputs.items()],
            "properties": {},
            "widgets_values": values,
            "title": name,
        }
        return {
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [definition]},
            "extra": {},
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
                "mode": _ALWAYS,
                "inputs": [],
                "outputs": [],
                **parts,
                **({"title": title} if title else {}),
            }
        )

    def _connect(self, node: int, slot: int, given: _Input) -> dict:
        entry: dict[str, Any] = {"name": given.name, "type": given.type, "link": None}
        if given.source:
            entry["link"] = len(self.links) + 1
            self.links.append([entry["link"], given.source.node, given.source.slot, node, slot, given.source.type])
            if given.source.node > 0:
                self.nodes[given.source.node - 1]["outputs"][given.source.slot]["links"].append(entry["link"])
        return entry


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """API format. Raises KeyError for a node that the server does not have."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in _FRONT_END_ONLY}
    links = {link[0]: link[1:] for link in workflow["links"]}

    def source(number: int) -> list | None:
        """The source of a link; a node that is switched off passes on its first input of the output's type."""
        origin, slot, *_, type_ = links[number]
        if nodes[origin]["mode"] == _ALWAYS:
            return [str(origin), slot]
        through = (each["link"] for each in nodes[origin]["inputs"] if each.get("link") and each["type"] == type_)
        return next(map(source, through), None)

    prompt = {}
    for node in nodes.values():
        if node["mode"] != _ALWAYS:
            continue
        given = {slot["name"]: source(slot["link"]) for slot in node["inputs"] if slot.get("link") is not None}
        values = _widget_values(node, object_info[node["type"]]["input"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | given}
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
    """What the front end saves for a widget: its value, and those of the widgets that belong to it."""
    if value is None:
        value = options.get("default", (options.get("options") or [None])[0])
    if kind == "BOUNDING_BOX":
        return [value, *value.values()]
    return [value, "randomize"] if options.get("control_after_generate") else [value]


def _widget_values(node: dict, declared: dict[str, dict]) -> dict[str, Any]:
    values, left = {}, list(node.get("widgets_values", ()))
    uploads = 0
    for name, kind, options in _declared(declared):
        if kind not in _WIDGETS:
            continue
        if not left:  # saved before the node had this widget: its default, as in the front end
            values[name] = _saved_values(kind, options, None)[0]
            continue
        values[name] = left.pop(0)
        if options.get("control_after_generate"):
            assert left.pop(0) in ("fixed", "increment", "decrement", "randomize")
        if kind == "BOUNDING_BOX":
            del left[:4]
        uploads += bool(options.get("image_upload"))
    assert left == ["image"] * uploads, f"{node['type']}: {left} left over"
    return values
