"""The structure of the code: what imports what, what a script is, and how texts are opened."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("imprint", "nodes", "training")
SETTINGS = ("arguments", "settings")  # training's


def room(*names: str) -> str | None:
    """The room of a module, by the parts of its name; None if it is not ours."""
    if names[0] != "training":
        return names[0] if names[0] in TOPS else "comfy" if names[0].startswith("comfy") else None
    if (ROOT / "/".join(names[:2])).is_dir():
        return names[1]
    return "settings" if names[1] in SETTINGS else "scripts"


def imported(path: Path) -> set[tuple[str, ...]]:
    """What a file imports: each module, and each thing in it, by the parts of its name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module += tuple(node.module.split(".")) if node.module else ()
            found |= {(*module, alias.name) for alias in node.names} | ({module} if len(module) > 1 else set())
    return found


def test_imports_are_those_of_the_drawing_and_go_one_way():
    drawn = re.findall(r"^ +(\w+) --> (.+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    arrows = {(one, other) for one, others in drawn for other in others.split(" & ")}
    graph: dict[str, set[str]] = {}
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            here = room(*path.relative_to(ROOT).with_suffix("").parts)
            graph.setdefault(here, set()).update({room(*names) for names in imported(path)} - {here, None})
    list(TopologicalSorter(graph).static_order())  # raises where arrows make a circle
    assert {here for here, others in graph.items() if "comfy" in others} == {"nodes"}
    found = {("nodes" if here == "nodes" else "training", "imprint") for here in graph.keys() - {"imprint"}}
    assert arrows == found | {(here, other) for here in graph for other in graph[here] - {"imprint", "comfy"}}


def test_no_modules_import_each_other():
    files = [path for top in TOPS for path in (ROOT / top).rglob("*.py") if path.name != "__init__.py"]
    modules = {path.relative_to(ROOT).with_suffix("").parts: path for path in files}
    list(TopologicalSorter({name: imported(path) & modules.keys() for name, path in modules.items()}).static_order())


def test_scripts_are_a_parser_and_a_main():
    for path in (ROOT / "training").glob("*.py"):
        if path.name not in ("__init__.py", "arguments.py", "settings.py"):
            defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
            assert defined <= {"parse", "run", "main"}, f"{path.name} defines {defined}"


def test_texts_are_utf_8_whatever_the_system_s_encoding():
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Attribute, ast.Name)):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            named = any(word.arg == "encoding" for word in node.keywords)
            modes = [word.value for word in (*node.args, *(word.value for word in node.keywords)) if _is_mode(word)]
            opens_text = name == "open" and any("b" not in mode for mode in modes)
            if (name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)) or opens_text:
                assert named, f"{path.name}:{node.lineno} has no encoding"


def _is_mode(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value) <= set("rwaxbt+")
