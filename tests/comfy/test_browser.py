"""The pack in the front end: ComfyUI in Chromium, used as a person uses it.

CHROMIUM: the browser's path, by default the one that is installed. COMFYUI_FRONT_END: the folder `static` of another
comfyui-frontend-package. IMPRINT_SCREENSHOTS: a folder for the README's pictures, by default a temporary one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfy_server import PACK, ROOT, Server
from make_workflows import (
    BACKGROUND_REMOVAL,
    DRAW,
    FIRST,
    FORM,
    INSERT,
    OBJECTSTITCH,
    PLACE,
    PLACE_PHOTO,
    PLAIN_PHOTO,
    RELATIVE,
    SAMPLES,
    WORKFLOWS,
    file_of,
)
from PIL import Image
from safetensors.numpy import save_file
from ui_workflow import to_prompt

from imprint.checkpoint import SHIPPED

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-sandbox"]
STEPS = 2
SETTINGS = {
    # As of one who was here before: a first visit opens the template browser and tours, which take the mouse.
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "Comfy.AppBuilder.VueNodeSwitchDismissed": True,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # draw the words at any zoom
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
SAVERS = "app.graph.nodes.filter(n => n.type === 'SaveImage')"
PICTURES = f"{SAVERS}.map(n => n.imgs?.[0]?.src).join()"
SEEDS = "app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === 'seed').map(w => w.value)"
HAS_PICTURES = f"{SAVERS}.every(n => n.imgs?.length && n.imgs[0].naturalWidth)"


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The front end when it is ready."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
    browser = next((found for name in names if name and (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium was found; install it, or set CHROMIUM to its path")
    server.request("/settings", SETTINGS)
    with playwright.sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=browser,
            headless=True,
            args=FLAGS,
            viewport={"width": 1600, "height": 1000},
        )
        context.set_default_timeout(30_000)
        page = context.pages[0]
        page.on("filechooser", lambda _: None)  # from now on no dialog of the system opens
        page.goto(server.url)
        wait_until_ready(page)
        assert page.get_by_role("dialog").count() == 0
        yield page
        context.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("IMPRINT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wait_until_ready(page) -> None:
    page.wait_for_function("!!(window.app?.extensionManager && app.graph && app.canvas)", timeout=120_000)
    page.wait_for_function("'ImprintLoadCheckpoint' in LiteGraph.registered_node_types")
    page.wait_for_load_state("networkidle")  # blueprints and translations come last


def set_setting(page, name: str, value) -> None:
    page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])


def command(page, name: str) -> None:
    page.evaluate("name => app.extensionManager.command.execute(name)", name)


def new_canvas(page) -> None:
    """An empty workflow with its origin in the upper left of the window."""
    command(page, "Comfy.NewBlankWorkflow")
    page.wait_for_function("app.graph.nodes.length === 0")
    page.evaluate("app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [100, 220]; app.canvas.setDirty(true, true)")


def templates(page):
    """The template browser, opened at this pack."""
    command(page, "Comfy.BrowseTemplates")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(PACK, exact=True).first.click()
    return dialog


def open_template(page, name: str) -> None:
    page.evaluate("app.graph.extra.opened_before = true")
    templates(page).get_by_text(name, exact=True).first.click()
    page.wait_for_function(
        "name => !app.graph.extra.opened_before && "
        "app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)",
        arg=name.removesuffix(".app"),
    )
    page.get_by_role("dialog").wait_for(state="hidden")
    page.wait_for_function("app.graph.nodes.length > 5")


def run(page, steps: int | None = STEPS, seconds: int = 300) -> None:
    """Press Run, and wait until each Save Image shows its picture."""
    if steps:
        set_widget(page, "steps", steps)
    before = page.evaluate(PICTURES)  # the front end shows again what a workflow of the same nodes made before
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        f"before => {PICTURES} !== before && {HAS_PICTURES} || app.extensionManager.lastExecutionError",
        arg=before,
        timeout=seconds * 1000,
    )
    error = page.evaluate("app.extensionManager.lastExecutionError")
    assert error is None, error["exception_message"]


def select(page, kind: str) -> None:
    page.evaluate("kind => app.canvas.selectNode(app.graph.nodes.find(n => n.type === kind))", kind)


def open_help(page) -> None:
    """The selected node's help page, opened by the button above it or, if the side panel is open, by its tab."""
    page.get_by_test_id("info-button").or_(page.get_by_text("Info", exact=True)).first.click()


def set_widget(page, name: str, value) -> None:
    page.evaluate(
        "([name, value]) => { for (const n of app.graph.nodes) for (const w of n.widgets ?? []) "
        "if (w.name === name) w.value = value }",
        [name, value],
    )


def complaints(page) -> list[str]:
    """Nodes that are missing or red, and selected values of running nodes that the server does not offer."""
    return page.evaluate(
        "app.graph.nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type] || "
        "n.mode === 0 && (n.widgets ?? []).some(w => "
        "w.type === 'combo' && Array.isArray(w.options.values) && !w.options.values.includes(w.value)))"
        ".map(n => n.type)"
    )


def overlaps(page) -> list[list[str]]:
    """Pairs of nodes that overlap on the classic canvas, including what they show after a run."""
    return page.evaluate(
        """() => {
            const title = LiteGraph.NODE_TITLE_HEIGHT
            const height = n => n.flags.collapsed ? 0 : n.size[1]
            const box = n => [n.pos[0], n.pos[1] - title, n.pos[0] + n.size[0], n.pos[1] + height(n)]
            const boxes = app.graph.nodes.map(n => [n.title, box(n)])
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
                .filter(([, q]) => p[0] < q[2] && q[0] < p[2] && p[1] < q[3] && q[1] < p[3])
                .map(([b]) => [a, b]))
        }"""
    )


def overlaps_of_nodes_2(page) -> list[list[str]]:
    """The same in Nodes 2.0, as the browser lays out the nodes."""
    return page.evaluate(
        """() => {
            const boxes = [...document.querySelectorAll('[data-node-id]')].map(e => {
                const node = app.graph.getNodeById(e.dataset.nodeId)
                return node && [node.title, e.getBoundingClientRect()]
            }).filter(Boolean)
            if (boxes.length !== app.graph.nodes.length) return [['drawn', boxes.length + '']]
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
                .filter(([, q]) => p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom)
                .map(([b]) => [a, b]))
        }"""
    )


def offers(page, model: dict[str, str]) -> None:
    """Wait until the front end names the missing file, and offers to download it from its address."""
    page.get_by_text(f"{model['name']} is missing").filter(visible=True).first.wait_for()


def essence(workflow: dict) -> dict:
    """The essential content of a graph, without its appearance."""
    return {
        "nodes": {
            node["id"]: (
                (node["type"], node["mode"]),
                [(each["name"], each["type"], each.get("link")) for each in node.get("inputs", ())],
                [(each["name"], each["type"], each.get("links") or []) for each in node.get("outputs", ())],
                node.get("widgets_values", []),
            )
            for node in workflow["nodes"]
        },
        "links": sorted(workflow["links"]),
    }


@pytest.mark.parametrize("name", ["place", "draw"])
def test_a_saved_workflow_opens(page, object_info: dict, name: str):
    """A workflow of the previous version: nothing is red, and the front end would send the same prompt."""
    saved = json.loads((ROOT / "tests" / "comfy" / "saved" / f"{name}_0.1.0.json").read_text(encoding="utf-8"))
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(saved["nodes"]))
    assert complaints(page) == []
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    expected = to_prompt(saved, object_info)
    assert sent.keys() == expected.keys()
    for number, node in expected.items():
        if object_info[node["class_type"]]["python_module"] == f"custom_nodes.{PACK}":
            assert sent[number]["inputs"] == node["inputs"]


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if not name.endswith(".app")])
def test_workflow_opens_and_runs(page, name: str):
    open_template(page, name)
    shown = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    assert essence(shown) == essence(json.loads(file_of(name).read_text(encoding="utf-8")))
    if name == RELATIVE:  # without its weights there is nothing to run
        assert complaints(page) == ["ImprintLoadCheckpoint"]
        offers(page, OBJECTSTITCH)
        return
    assert complaints(page) == []
    run(page)
    page.wait_for_timeout(1000)  # nodes grow when their previews have loaded
    assert overlaps(page) == []
    set_setting(page, "Comfy.VueNodes.Enabled", True)
    try:
        command(page, "Comfy.Canvas.FitView")
        page.wait_for_function("document.querySelectorAll('[data-node-id]').length >= app.graph.nodes.length")
        page.wait_for_timeout(2000)
        assert overlaps_of_nodes_2(page) == []
    finally:
        set_setting(page, "Comfy.VueNodes.Enabled", False)


def test_automatic_cutout_offers_its_file(page, server: Server):
    """Switched on without its file, core's loader turns red and the file is offered; with the file, nothing is red."""
    open_template(page, PLAIN_PHOTO)
    page.evaluate("app.canvas.selectItems(app.graph.nodes.filter(n => n.mode === 4))")
    command(page, "Comfy.Canvas.ToggleSelectedNodes.Bypass")
    offers(page, BACKGROUND_REMOVAL)
    assert complaints(page) == ["LoadBackgroundRemovalModel"]
    file = server.base / "models" / BACKGROUND_REMOVAL["directory"] / BACKGROUND_REMOVAL["name"]
    file.parent.mkdir()
    file.touch()  # the front end knows files by their names
    try:
        open_template(page, PLAIN_PHOTO)
        page.evaluate("app.canvas.selectItems(app.graph.nodes.filter(n => n.mode === 4))")
        command(page, "Comfy.RefreshNodeDefinitions")
        command(page, "Comfy.Canvas.ToggleSelectedNodes.Bypass")
        page.wait_for_function("app.graph.nodes.every(n => n.mode === 0)")
        assert complaints(page) == []
    finally:
        shutil.rmtree(file.parent)
        command(page, "Comfy.RefreshNodeDefinitions")


def test_help_pages(page, object_info: dict):
    new_canvas(page)
    ours = [kind for kind, info in object_info.items() if info["python_module"] == f"custom_nodes.{PACK}"]
    for index, kind in enumerate(ours):
        add_node(page, kind, 100, 700 * index)
        select(page, kind)
        if index == 0:
            open_help(page)
        title = object_info[kind]["display_name"]
        page.locator("h1", has_text=title).filter(visible=True).first.wait_for()
    assert len(ours) == 12


@pytest.fixture
def nodes_2(page) -> Iterator[None]:
    """The canvas of Nodes 2.0, where boxes are drawn with the mouse."""
    set_setting(page, "Comfy.VueNodes.Enabled", True)
    yield
    set_setting(page, "Comfy.VueNodes.Enabled", False)


def add_node(page, kind: str, x: int, y: int) -> str:
    """Add a node at a position on the canvas; returns its id."""
    return page.evaluate(
        """([kind, x, y]) => {
            const node = LiteGraph.createNode(kind)
            node.pos = [x, y]
            app.graph.add(node)
            return String(node.id)
        }""",
        [kind, x, y],
    )


def add_blueprint(page, name: str, x: int, y: int) -> str:
    """Add a blueprint from the search box, at a position in the window; returns its id."""
    before = page.evaluate("app.graph.nodes.length")
    page.mouse.move(x - 10, y - 10)
    command(page, "Workspace.SearchBox.Toggle")
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type(name)
    page.get_by_text(name).filter(visible=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("before => app.graph.nodes.length === before + 1", arg=before)
    page.wait_for_function("app.canvas.state.ghostNodeId != null")  # the new node follows the pointer until a click
    page.wait_for_timeout(1000)  # the search box fades
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    page.wait_for_function("app.canvas.state.ghostNodeId == null")
    return page.evaluate("String(app.graph.nodes.at(-1).id)")


def middle(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def wire(page, output: tuple[str, int], into: tuple[str, int]) -> None:
    """Draw a wire with the mouse, from an output of a node to an input."""
    ends = zip((output, into), ("output", "input"))
    start, end = (
        page.locator(f"[data-node-id='{node}'] .lg-slot--{side} [data-slot-key]").nth(slot)
        for (node, slot), side in ends
    )
    before = page.evaluate("app.graph.links.size")
    drag(page, middle(start), middle(end))
    page.wait_for_function("before => app.graph.links.size === before + 1", arg=before)


def box_of(page, node: str) -> dict[str, int]:
    return page.evaluate("node => app.graph.getNodeById(node).widgets.find(w => w.name === 'box').value", node)


def drag_the_box(page, place: str, size: tuple[int, int], wanted: dict[str, int]) -> dict[str, int]:
    """Drag the box on the picture of that size by its corners, then move it; returns the box.

    place: the id of a Place Object, or of a blueprint that contains one.
    """
    node = page.locator(f"[data-node-id='{place}']")  # an open side panel shows a box too
    preview = node.locator("img[alt='Crop preview']")
    preview.wait_for()
    page.wait_for_timeout(1000)
    shown = preview.bounding_box()
    pixel = shown["width"] / size[0]

    def at(x: int, y: int) -> tuple[float, float]:
        return shown["x"] + x * pixel, shown["y"] + y * pixel

    x, y, width, height = wanted.values()
    away = 20 if x + width + 20 < size[0] else -20
    drag(page, middle(node.get_by_test_id("crop-resize-nw")), at(x + away, y))
    drag(page, middle(node.get_by_test_id("crop-resize-se")), at(x + away + width, y + height))
    drag(page, middle(node.get_by_test_id("crop-overlay")), at(x + width // 2, y + height // 2))
    box = box_of(page, place)
    assert all(abs(box[name] - value) <= 10 / pixel for name, value in wanted.items()), (box, wanted)
    return box


def stands_in(made: np.ndarray, was: np.ndarray, box: dict[str, int]) -> None:
    """Assert that strong changes are inside the box, and reach its lower edge."""
    rows, columns = (np.abs(made.astype(int) - was).max(2) > 60).nonzero()
    assert box["y"] - 1 <= rows.min() and rows.max() <= box["y"] + box["height"]
    assert box["x"] - 1 <= columns.min() and columns.max() <= box["x"] + box["width"]
    assert rows.max() > box["y"] + 0.94 * box["height"]


def results(page, server: Server) -> np.ndarray:
    """The pixels (B, H, W, 3) that Save Image shows."""
    names = page.evaluate(
        "app.graph.nodes.find(n => n.type === 'SaveImage').imgs.map(i => new URL(i.src).searchParams.get('filename'))"
    )
    return np.stack([np.asarray(Image.open(server.base / "output" / name).convert("RGB")) for name in names])


def result(page, server: Server) -> np.ndarray:
    """The pixels (H, W, 3) of the only picture that Save Image shows."""
    (made,) = results(page, server)
    return made


def titled(page, title: str) -> str:
    """The id of the node with that title."""
    return page.evaluate("title => String(app.graph.nodes.find(n => n.title === title).id)", title)


def choose_file(page, node: str, path: Path, nodes_2: bool) -> None:
    """Give a Load Image your own picture, by its upload button."""
    page.mouse.move(1500, 900)  # a tooltip goes with the pointer, and may lie over the button
    page.wait_for_timeout(1000)
    if nodes_2:
        button = middle(page.locator(f"[data-node-id='{node}'] label:has(input[type=file])").first)
    else:
        button = page.evaluate(
            """node => {
                const {pos, size, widgets} = app.graph.getNodeById(node)
                const widget = widgets.find(w => w.type === 'button')
                const [x, y] = app.canvas.convertOffsetToCanvas([pos[0] + size[0] / 2, pos[1] + widget.last_y + 8])
                const {left, top} = app.canvas.canvas.getBoundingClientRect()
                return [left + x, top + y]
            }""",
            node,
        )
    with page.expect_file_chooser() as chooser:
        page.mouse.click(*button)
    chooser.value.set_files(path)
    page.wait_for_function(
        "([node, name]) => { const n = app.graph.getNodeById(node); "
        "return n.widgets[0].value === name && n.imgs?.[0]?.naturalWidth && n.imgs[0].src.includes(name) }",
        arg=[node, path.name],
    )


def test_an_object_from_an_empty_canvas(page, nodes_2, server: Server):
    """Object, background, a dragged box, Run: with the mouse, and with five wires."""
    new_canvas(page)
    background, object_ = add_node(page, "LoadImage", 0, 0), add_node(page, "LoadImage", 0, 600)
    place = add_node(page, "ImprintPlaceObject", 450, 0)
    light = add_node(page, "ImprintRelight", 1050, 0)
    saved = add_node(page, "SaveImage", 1050, 450)
    page.locator(f"[data-node-id='{saved}']").wait_for()
    page.wait_for_timeout(1000)  # the nodes take their sizes
    wire(page, (background, 0), (place, 0))
    wire(page, (object_, 0), (place, 1))
    wire(page, (object_, 1), (place, 2))
    wire(page, (place, 0), (light, 0))
    wire(page, (light, 0), (saved, 0))
    assert page.evaluate("app.graph.links.size") == 5

    # Now the pictures: the front end shows a new one on the box, but not that of a new wire.
    choose_file(page, object_, SAMPLES / "object.png", True)
    choose_file(page, background, SAMPLES / "background.png", True)
    box = drag_the_box(page, place, (400, 400), {"x": 120, "y": 205, "width": 120, "height": 150})
    run(page, steps=None)
    was = np.asarray(Image.open(SAMPLES / "background.png").convert("RGB"))
    stands_in(result(page, server), was, box)


def test_a_plain_photo_from_an_empty_canvas(page, nodes_2, server: Server, tmp_path: Path):
    """A JPG that is not cut out: object, background, a dragged box, Run, with three wires.

    The blueprint contains core's background removal; in place of its weights, a stand-in of the probe pack is used.
    """
    photo, room = tmp_path / "own_plain_duck.jpg", tmp_path / "own_plain_room.jpg"
    duck, size = Image.open(SAMPLES / "duck.webp").resize((400, 400)), (960, 720)
    Image.alpha_composite(Image.new("RGBA", duck.size, "slategrey"), duck).convert("RGB").save(photo, quality=95)
    Image.open(SAMPLES / "room.jpg").resize(size).save(room, quality=95)
    file = server.base / "models" / BACKGROUND_REMOVAL["directory"] / BACKGROUND_REMOVAL["name"]
    file.parent.mkdir()
    save_file({"imprint_probe": np.zeros(1)}, file)
    try:
        command(page, "Comfy.RefreshNodeDefinitions")
        new_canvas(page)
        background, object_ = add_node(page, "LoadImage", 0, 0), add_node(page, "LoadImage", 0, 600)
        saved = add_node(page, "SaveImage", 1050, 450)
        place = add_blueprint(page, PLACE_PHOTO, 500, 200)
        page.locator(f"[data-node-id='{place}']").wait_for()
        page.wait_for_timeout(1000)  # the nodes take their sizes
        wire(page, (background, 0), (place, 0))
        wire(page, (object_, 0), (place, 1))
        wire(page, (place, 0), (saved, 0))
        assert page.evaluate("app.graph.links.size") == 3
        choose_file(page, object_, photo, True)
        choose_file(page, background, room, True)
        box = {"x": 200, "y": 240, "width": 240, "height": 300}
        if page.evaluate("node => !!app.graph.getNodeById(node).getInputNode(0)", place):
            box = drag_the_box(page, place, size, box)
        else:  # front end 1.58 finds no input of a blueprint, so that its box has no picture: the place is painted
            wire(page, (background, 1), (place, 2))
            paint(page, "Load Image", size, box)
        run(page, steps=None)
    finally:
        shutil.rmtree(file.parent)
        command(page, "Comfy.RefreshNodeDefinitions")
    stands_in(result(page, server), np.asarray(Image.open(room)), box)


def paint(page, title: str, size: tuple[int, int], wanted: dict[str, int]) -> None:
    """Draw a stroke from corner to corner of a box, in the MaskEditor of the Load Image with that title."""
    page.evaluate(
        "title => { app.canvas.deselectAll(); app.canvas.selectNode(app.graph.nodes.find(n => n.title === title)) }",
        title,
    )
    command(page, "Comfy.MaskEditor.OpenMaskEditor")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Save", exact=True).wait_for()
    canvas = dialog.locator("canvas").first
    page.wait_for_function(
        """size => {
            const canvas = document.querySelector('[role=dialog] canvas')
            if (canvas.width !== size[0] || canvas.height !== size[1]) return false
            return canvas.getContext('2d').getImageData(size[0] / 2, size[1] / 2, 1, 1).data[3] === 255
        }""",
        arg=list(size),
    )
    page.wait_for_timeout(1000)  # the picture glides into its place
    shown = canvas.bounding_box()
    pixel, brush = shown["width"] / size[0], 10
    x, y, width, height = wanted.values()
    left, top, right, bottom = x + brush, y + brush, x + width - brush, y + height - brush
    ends = [(shown["x"] + across * pixel, shown["y"] + down * pixel) for across, down in ((left, top), (right, bottom))]
    drag(page, *ends)
    page.wait_for_timeout(500)
    dialog.get_by_text("Save", exact=True).click()
    dialog.wait_for(state="hidden")


PAINTABLE = [
    (name, node["title"])
    for name in WORKFLOWS
    for node in json.loads(file_of(name).read_text(encoding="utf-8"))["nodes"]
    if node["type"] == "LoadImage"
]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_painting_in_any_mask_editor_changes_the_picture(page, server: Server, name: str):
    """A stroke on each of the template's pictures in turn: with the same seed, the result changes."""
    open_template(page, name)
    if name == FORM:
        command(page, "Comfy.ToggleLinear")
    if name == RELATIVE:  # its graph, with the weights that are here
        set_widget(page, "checkpoint", SHIPPED.name)
    set_widget(page, "control_after_generate", "fixed")
    set_widget(page, "resolution", 64)
    run(page)
    before, seeds = results(page, server), page.evaluate(SEEDS)
    titles = [title for each, title in PAINTABLE if each == name]
    assert len(titles) >= 2
    for title in titles:
        size = page.evaluate(
            """title => {
                const [image] = app.graph.nodes.find(n => n.title === title).imgs
                return [image.naturalWidth, image.naturalHeight]
            }""",
            title,
        )
        across, down = size
        stroke = {"x": across // 5, "y": down // 2, "width": across // 3, "height": down // 3}
        paint(page, title, tuple(size), stroke)
        run(page)
        after = results(page, server)
        assert (np.abs(after.astype(int) - before).max(3) > 20).mean() > 5e-4, title
        before = after
    assert page.evaluate(SEEDS) == seeds  # else another seed would be what changed it
    if name == FORM:
        command(page, "Comfy.ToggleLinear")


def seconds_of_the_last_run(server: Server) -> float:
    *_, last = server.get("/history").values()
    times = {kind: told["timestamp"] for kind, told in last["status"]["messages"]}
    return (times["execution_success"] - times["execution_start"]) / 1000


@pytest.mark.parametrize("canvas", ["nodes 2", "classic"])
def test_four_steps(page, server: Server, canvas: str, tmp_path: Path):
    """The first template with your own pictures: object, background, the place drawn on the picture, Run.

    All with the mouse and without a wire; on the classic canvas, where the front end draws no box, the place is
    painted.
    """
    nodes_2, size = canvas == "nodes 2", (960, 720)
    own_object, own_background = (
        tmp_path / f"own_{name}_{nodes_2:d}.{kind}" for name, kind in (("duck", "png"), ("room", "jpg"))
    )
    Image.open(SAMPLES / "duck.webp").resize((600, 600)).save(own_object)
    Image.open(SAMPLES / "room.jpg").resize(size).save(own_background, quality=95)
    was = np.asarray(Image.open(own_background).convert("RGB"))
    set_setting(page, "Comfy.VueNodes.Enabled", nodes_2)
    try:
        open_template(page, FIRST)
        command(page, "Comfy.Canvas.FitView")
        page.wait_for_timeout(2000)  # the view glides, the nodes take their sizes
        wires, box = page.evaluate("app.graph.links.size"), {"x": 320, "y": 360, "width": 200, "height": 260}
        choose_file(page, titled(page, "Object (cut-out)"), own_object, nodes_2)
        choose_file(page, titled(page, "Background"), own_background, nodes_2)
        if nodes_2:
            place = page.evaluate("String(app.graph.nodes.find(n => n.type === 'ImprintPlaceObject').id)")
            box = drag_the_box(page, place, size, box)
        else:
            paint(page, "Background", size, box)
        run(page, steps=None)
        assert page.evaluate("app.graph.links.size") == wires == 6
    finally:
        set_setting(page, "Comfy.VueNodes.Enabled", False)
    made = result(page, server)
    assert made.shape == was.shape
    assert seconds_of_the_last_run(server) < 20
    yellow = made[..., 2] < 0.4 * made[..., 0]  # as the duck is, in the shade too
    rows, columns = (yellow & (abs(made.astype(int) - was).max(2) > 30)).nonzero()
    assert abs((columns.min() + columns.max()) / 2 - box["x"] - box["width"] / 2) < 12  # a stroke's ends are round
    assert abs(rows.max() - box["y"] - box["height"]) < 24 and 0.8 < np.ptp(columns) / box["width"] < 1.05
    assert len(rows) > 0.2 * box["width"] ** 2


def test_app_mode_shows_the_form(page):
    """The template opens as a form: two pictures, the box, light and shadow."""
    open_template(page, FORM)
    page.locator("img[alt='Crop preview']").filter(visible=True).first.wait_for()
    for label in (
        "Object (cut-out)",
        "Background",
        "box",
        "rotate",
        "flip",
        "light",
        "shadow",
        "softness",
        "light_from",
    ):
        page.get_by_text(label, exact=True).filter(visible=True).first.wait_for()
    command(page, "Comfy.NewBlankWorkflow")
    page.wait_for_function("app.graph.nodes.length === 0")


@pytest.mark.parametrize(
    "blueprint, widgets, wires",
    [
        (PLACE, {"box", "light", "shadow", "softness"}, [("background", 0, 0), ("object", 0, 1), ("object", 1, 2)]),
        (
            INSERT,
            {"checkpoint", "level", "seed", "variations", "steps", "cfg"},
            [("object", 0, 0), ("object", 1, 1), ("background", 0, 2), ("hole", 1, 3)],
        ),
    ],
)
def test_blueprint(page, blueprint: str, widgets: set[str], wires: list[tuple]):
    """Added from the search box to an empty graph, wired, and run."""
    command(page, "Comfy.NewBlankWorkflow")
    page.wait_for_function("app.graph.nodes.length === 0")
    add_blueprint(page, blueprint, 710, 610)
    node = page.evaluate("app.graph.nodes.map(n => ({title: n.title, widgets: n.widgets.map(w => w.name)}))[0]")
    assert node["title"] == blueprint
    assert widgets <= set(node["widgets"])
    page.evaluate(
        """wires => {
            const made = app.graph.nodes[0]
            const add = (type, ...values) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                values.forEach((value, index) => { node.widgets[index].value = value })
                return node
            }
            const loaders = {
                object: add('LoadImage', 'imprint_sloth.webp'),
                background: add('LoadImage', 'imprint_ballroom.jpg'),
                hole: add('LoadImage', 'imprint_painted.webp'),
            }
            wires.forEach(([name, output, input]) => loaders[name].connect(output, made, input))
            made.connect(0, add('SaveImage'), 0)
        }""",
        wires,
    )
    run(page)
    assert page.evaluate(f"{SAVERS}.map(n => n.imgs[0].naturalWidth)") == [1024]
    if blueprint == PLACE:
        kinds = "Object.values((await app.graphToPrompt()).output).map(n => n.class_type)"
        cut_out = {"LoadBackgroundRemovalModel", "RemoveBackground", "ComfySwitchNode"}
        assert not cut_out & set(page.evaluate(f"async () => {kinds}"))
        switched_on = "app.graph.nodes[0].subgraph.nodes.forEach(n => { n.mode = 0 })"
        assert cut_out <= set(page.evaluate(f"async () => {{ {switched_on}; return {kinds} }}"))


def test_pictures_for_the_readme(page, nodes_2, screenshots: Path):
    """The first workflow after a run, with a help page beside it; the form; the template browser."""

    def photograph(name: str) -> None:
        page.mouse.move(1500, 980)
        page.wait_for_timeout(2000)  # the view glides, notices and tooltips fade
        page.screenshot(path=screenshots / f"{name}.jpg", type="jpeg", quality=75)

    open_template(page, FIRST)
    run(page, steps=None)
    select(page, "ImprintPlaceObject")
    open_help(page)
    page.locator("h1", has_text="Place Object").filter(visible=True).first.wait_for()
    command(page, "Comfy.Canvas.FitView")
    page.wait_for_timeout(2000)
    page.evaluate("app.canvas.ds.changeScale(app.canvas.ds.scale * 0.8, [0, 400])")  # the side panel hides a part
    photograph("graph")
    open_template(page, FORM)
    page.locator("img[alt='Crop preview']").filter(visible=True).first.wait_for()
    page.get_by_text("Run", exact=True).filter(visible=True).last.click()  # the first one is a hint
    page.locator("img[src*='type=output']").filter(visible=True).first.wait_for(timeout=120_000)
    photograph("form")
    command(page, "Comfy.NewBlankWorkflow")
    page.wait_for_function("app.graph.nodes.length === 0")
    dialog = templates(page)
    dialog.locator("img").first.wait_for()
    assert dialog.get_by_text(re.compile(r"^\d \w+")).all_inner_texts() == list(WORKFLOWS)
    photograph("templates")
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert all((screenshots / f"{name}.jpg").stat().st_size > 50_000 for name in ("graph", "form", "templates"))


def test_error_is_shown_at_its_node(page):
    """A photo without transparency: Load Image gives an empty mask of 64x64, and the encoder says what to do."""
    open_template(page, DRAW)
    page.evaluate("app.graph.nodes.find(n => n.title.startsWith('Object')).widgets[0].value = 'imprint_background.png'")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("app.extensionManager.lastExecutionError", timeout=60_000)
    error = page.evaluate("app.extensionManager.lastExecutionError")
    assert error["node_type"] == "ImprintIDEncoder" and "64x64" in error["exception_message"]
    page.get_by_text("View details").click()
    page.get_by_text("64x64").filter(visible=True).first.wait_for()


@pytest.mark.parametrize("language", ["zh-TW", "zh", "ja", "ko", "en"])
def test_nodes_speak_the_user_s_language(page, language: str):
    """Last in this file: after the reload the front end reopens the former workflows, at an unpredictable time."""
    set_setting(page, "Comfy.Locale", language)
    page.reload()
    wait_until_ready(page)
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    names = {kind: each["display_name"] for kind, each in words.items()}
    page.wait_for_function(
        "names => Object.entries(names).every(([kind, name]) => LiteGraph.createNode(kind).title === name)", arg=names
    )
