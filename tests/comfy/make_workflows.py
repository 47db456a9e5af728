"""Writes workflows/ and subgraphs/, and makes the workflows' thumbnails by running them.

    COMFYUI_PATH=... [COMFYUI_PYTHON=...] python tests/comfy/make_workflows.py [--graphs-only] [NAME ...]

Run it after a change of the nodes' inputs, of the sample pictures, or of the shipped checkpoint. Without names, all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_server import ROOT, Server, make_base, running
from PIL import Image, ImageOps
from ui_workflow import Graph, Node, Output, subgraph_inputs, to_prompt

from imprint.checkpoint import SHIPPED
from imprint.files import replacing
from imprint.job_settings import LORA_STEPS
from imprint.lora import FEW_STEPS

SAMPLES = SHIPPED.parent / "samples"
PAINTED = "painted.webp"  # a background whose transparency is the mask that was painted on it
PAINTED_OVER = "bear.webp"  # a whole photo, whose transparency is the mask that was painted over its object
YOURS = {"color": "#233", "bgcolor": "#355"}  # the front end's cyan: what a user exchanges
PLACE = "Imprint - place object"  # also the file's name, which the front end shows, and where ":" cannot stand
PLACE_PHOTO = "Imprint - place a plain photo"
INSERT = "Imprint - insert object"
BACKGROUND_REMOVAL = {
    "name": "birefnet.safetensors",
    "url": "https://huggingface.co/Comfy-Org/BiRefNet/resolve/main/background_removal/birefnet.safetensors",
    "directory": "background_removal",
}
OBJECTSTITCH = {
    "name": "ObjectStitch.pth",
    "url": "https://huggingface.co/BCMIZB/Libcom_pretrained_models/resolve/main/ObjectStitch.pth",
    "directory": "imprint",
}


# ---------------------------------------------------------------------------------------------------- building blocks


def checkpoint(g: Graph, column: float = 0, download: dict[str, str] | None = None) -> Node:
    """download: a file that a user must download first, instead of the shipped one."""
    if download:
        return g.add("ImprintLoadCheckpoint", column, models=[download], checkpoint=download["name"])
    return g.add("ImprintLoadCheckpoint", column, checkpoint=SHIPPED.name)


def picture(g: Graph, column: float, name: str, title: str) -> Node:
    return g.add("LoadImage", column, title, colour=YOURS, image=f"imprint_{name}")


@dataclass(frozen=True)
class Subject:
    """An object to draw: its identity, and the conditioning made from it."""

    identity: Output
    positive: Output
    negative: Output


def subject(g: Graph, column: float, parts: Node, image: Output, mask: Output) -> Subject:
    """An object's encoder and adapter, in one column."""
    encoder = g.add("ImprintIDEncoder", column, clip_vision=parts["clip_vision"], image=image, mask=mask)
    adapter = g.add("ImprintContentAdapter", column, adapter=parts["adapter"], identity=encoder["identity"])
    return Subject(encoder["identity"], adapter["positive"], adapter["negative"])


def coarsen(g: Graph, column: float, mask: Output, background: Output, level: str, **options) -> Output:
    title = options.pop("title", "")
    node = g.add("ImprintMaskCoarsener", column, title, mask=mask, background=background, level=level, **options)
    return node["mask"]


def insert(
    g: Graph,
    column: float,
    parts: Node | dict[str, Output],
    object_: Subject,
    background: Output,
    mask: Output,
    sampling: dict[str, Any] | None = None,
    matte: bool = True,
    light_from: str = "auto",
    **blend,
) -> Output:
    """The sampler, detail, the shadow and the blend, one below the other.

    sampling: the sampler's values that differ from its defaults. matte: whether the checkpoint predicts one; without it
    there is nothing to lay detail on, and nothing that casts a shadow.
    """
    sampler = g.add(
        "ImprintCompositeSampler",
        column,
        model=parts["model"],
        vae=parts["vae"],
        positive=object_.positive,
        negative=object_.negative,
        background=background,
        mask=mask,
        seed=7,
        show_crop=True,
        **(sampling or {}),
    )
    drawn = sampler
    if matte:
        drawn = g.add(
            "ImprintRestoreDetail",
            column,
            generated=sampler["image"],
            alpha=sampler["alpha"],
            identity=object_.identity,
        )
        background = cast_shadow(g, column, background, drawn, light_from)
    blended = g.add(
        "ImprintBackgroundBlend",
        column,
        background=background,
        generated=drawn["image"],
        mask=sampler["mask"],
        alpha=drawn["alpha"],
        **blend,
    )
    return blended["image"]


def cast_shadow(g: Graph, column: float, background: Output, drawn: Node, light_from: str) -> Output:
    """The background with the shadow of the drawn object."""
    made = {"generated": drawn["image"], "alpha": drawn["alpha"], "light_from": light_from}
    return g.add("ImprintCastShadow", column, background=background, **made)["image"]


def save(g: Graph, column: float, image: Output, title: str = "Save Image", **options) -> Node:
    return g.add("SaveImage", column, title, images=image, filename_prefix="imprint", **options)


# ---------------------------------------------------------------------------------------------------- the workflows


def note(g: Graph, *lines: str) -> None:
    """What to do, in numbered lines."""
    text = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    g.note(0, text, "What to do", height=200)


PAINT = "right-click *Background*, *Open in MaskEditor*"


def place(g: Graph, column: float, box: tuple[int, int, int, int], title: str = "", **inputs) -> Node:
    """Place Object. box: x, y, width, height; inside 960x720, so that it is visible in most of a user's photos."""
    where = dict(zip(("x", "y", "width", "height"), box))
    return g.add("ImprintPlaceObject", column, title, box=where, columns=1.4, **inputs)


def place_object(
    g: Graph,
    object_name: str = "dog.webp",
    background_name: str = "salon.jpg",
    box: tuple[int, int, int, int] = (560, 350, 360, 350),
    light_from: str = "behind left",
) -> dict[str, Node]:
    """The nodes by name."""
    note(
        g,
        "Load your **object**, a cut-out, and your **background**.",
        f"Drag the **box** on *Place Object* to where it shall stand. Or paint the place: {PAINT}.",
        "Press **Run**. Then say with **light_from** where your photo's light comes from; try **light** and "
        "**shadow**.",
    )
    object_ = picture(g, 0, object_name, "Object (cut-out)")
    background = picture(g, 0, background_name, "Background")
    placed = place(
        g,
        1,
        box,
        background=background["IMAGE"],
        object=object_["IMAGE"],
        object_mask=object_["MASK"],
        mask=background["MASK"],
    )
    light = g.add("ImprintRelight", 2.4, placed=placed["placed"], light_from=light_from)
    saved = save(g, 2.4, light["image"], columns=1.4)
    return {"object": object_, "background": background, "place": placed, "light": light, "saved": saved}


def place_object_app(g: Graph) -> None:
    nodes = place_object(g, "collie.webp", "plaza.jpg", (580, 330, 300, 390), "right")
    shown = {"object": ["image"], "background": ["image"], "place": ["box", "rotate", "flip"]}
    shown["light"] = ["light", "shadow", "softness", "light_from"]
    widgets = [(nodes[name], widget) for name, widgets in shown.items() for widget in widgets]
    g.show_as_form(widgets, [nodes["saved"]])


def several_objects(g: Graph) -> None:
    note(
        g,
        "Load two **objects** and a **background**.",
        "Drag both boxes, or paint the front one's place. What stands **behind** comes first; for a third object, wire "
        "*placed* to *after* once more.",
        "Press **Run**: each is lit, from back to front, and throws its shadow on what is behind; **light_from** says "
        "whence.",
    )
    behind, front = picture(g, 0, "backpack.webp", "Object behind"), picture(g, 0, "sloth.webp", "Object in front")
    background = picture(g, 0, "windows.jpg", "Background")
    chain: dict[str, Output] = {}
    for column, object_, box, title in (
        (1, behind, (420, 290, 290, 350), "Imprint: Place Object (behind)"),
        (2.4, front, (610, 380, 310, 330), "Imprint: Place Object (in front)"),
    ):
        inputs = {"background": background["IMAGE"], "object": object_["IMAGE"], "object_mask": object_["MASK"]}
        if object_ is front:
            inputs["mask"] = background["MASK"]
        chain = {"after": place(g, column, box, title, **inputs, **chain)["placed"]}
    light = g.add("ImprintRelight", 3.8, placed=chain["after"], light_from="left")
    save(g, 3.8, light["image"], columns=1.4)


def remove_background(g: Graph, column: float, image: Output) -> tuple[Node, Node]:
    """Core's background removal: its model, and the node that makes the mask."""
    model = g.add(
        "LoadBackgroundRemovalModel", column, models=[BACKGROUND_REMOVAL], bg_removal_name=BACKGROUND_REMOVAL["name"]
    )
    return model, g.add("RemoveBackground", column, bg_removal_model=model["bg_model"], image=image)


def cut_out(g: Graph, column: float, image: Output, mask: Output) -> Output:
    """The object's mask: the given one or, after three nodes are switched on, core's background removal's."""
    model, remove = remove_background(g, column, image)
    # When all three are switched off, the last gives its first mask.
    cut = g.add("ComfySwitchNode", column, "Automatic mask", switch=True, on_false=mask, on_true=remove["mask"])
    g.bypass(model, remove, cut, frame="Cut-out (switched off)")
    return cut["output"]


def plain_photo(g: Graph) -> None:
    note(
        g,
        "Load any **photo** of an object, and a background; drag the box.",
        "**Cut it out**: right-click the frame, *Set Group Nodes to Always*, and fetch "
        f"[{BACKGROUND_REMOVAL['name']}]({BACKGROUND_REMOVAL['url']}) into `models/{BACKGROUND_REMOVAL['directory']}`.",
        "Or paint over the object in its photo's MaskEditor, as in the sample. Press **Run**.",
    )
    photo = picture(g, 0, PAINTED_OVER, "Object (any photo)")
    background = picture(g, 0, "ballroom.jpg", "Background")
    mask = cut_out(g, 1, photo["IMAGE"], photo["MASK"])
    placed = place(
        g,
        2,
        (120, 350, 350, 360),
        background=background["IMAGE"],
        object=photo["IMAGE"],
        object_mask=mask,
        mask=background["MASK"],
    )
    light = g.add("ImprintRelight", 3.4, placed=placed["placed"], light_from="left")
    save(g, 3.4, light["image"], columns=1.4)


def many_objects(g: Graph) -> None:
    note(
        g,
        "Load your **objects**, and wire each into both lists, in one order.",
        "Drag the **box** that holds for all, or paint it on the background.",
        "Press **Run**: a picture for each object.",
    )
    objects = [picture(g, 0, name, f"Object {index}") for index, name in enumerate(("sloth.webp", "collie.webp"), 1)]
    background = picture(g, 1, "plaza.jpg", "Background")
    pictures = g.add("CreateList", 1, "Objects", inputs=[each["IMAGE"] for each in objects])["list"]
    masks = g.add("CreateList", 1, "Their masks", inputs=[each["MASK"] for each in objects])["list"]
    placed = place(
        g,
        2,
        (570, 350, 350, 360),
        background=background["IMAGE"],
        object=pictures,
        object_mask=masks,
        mask=background["MASK"],
    )
    light = g.add("ImprintRelight", 3.4, placed=placed["placed"], light_from="right")
    save(g, 3.4, light["image"], columns=1.4)


def draw_object(g: Graph) -> None:
    note(
        g,
        "Load your **object**, a cut-out, and your **background**.",
        f"**Paint** where it shall be: {PAINT}. The outline decides the pose; with *level* `box` the model does.",
        "Press **Run**: two **variations**, with the seed and the next one. Then say with **light_from** where your "
        "photo's light comes from.",
    )
    object_ = picture(g, 0, "sloth.webp", "Object (cut-out)")
    background = picture(g, 0, PAINTED, "Background")
    parts = checkpoint(g, 1)
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, background["MASK"], background["IMAGE"], "fine")
    fast = (
        f"Switch this LoRA on (select it, **Ctrl+B**), and set **steps** to {LORA_STEPS}; leave *euler* and *simple*."
    )
    g.note(2, fast, "Fast", height=110)
    lora = g.add("LoraLoaderModelOnly", 2, model=parts["model"], lora_name=FEW_STEPS.name)
    g.bypass(lora)
    parts = {"model": lora["MODEL"], "vae": parts["vae"]}
    made = insert(g, 3, parts, made_of, background["IMAGE"], mask, {"variations": 2}, light_from="left")
    save(g, 4, made, columns=1.4)


def split_path(g: Graph) -> None:
    left, top, side = 466, 282, 484  # the square that Draw Object takes for what is painted
    resolution = 256
    crop = {"x": left, "y": top, "width": side, "height": side}
    note(
        g,
        "For your own samplers: what **Draw Object** does in one node. A square around the hole is cropped, scaled to "
        "the model's 256 px, painted grey and encoded.",
        "**KSampler** draws it: by *Set Latent Noise Mask*, the MODEL keeps the background clean at every step.",
        "Decoded, scaled back, pasted, blended. *Draw Object* knows the outline; here the mask stands in for it.",
    )
    object_ = picture(g, 0, "sloth.webp", "Object (cut-out)")
    photo = picture(g, 0, PAINTED, "Background")
    background = photo["IMAGE"]
    parts = checkpoint(g, 1)
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, photo["MASK"], background, "precise")
    scaled = {"upscale_method": "lanczos", "width": resolution, "height": resolution, "crop": "disabled"}
    cropped = g.add("ImageCropV2", 2, "Crop the background", image=background, crop_region=crop)["IMAGE"]
    small = g.add("ImageScale", 2, "To the model's size", image=cropped, **scaled)["IMAGE"]
    mask_crop = g.add("CropMask", 3, "Crop the hole", mask=mask, x=left, y=top, width=side, height=side)["MASK"]
    mask_picture = g.add("MaskToImage", 3, mask=mask_crop)["IMAGE"]
    mask_small = g.add(
        "ImageScale", 3, "To the model's size", image=mask_picture, **{**scaled, "upscale_method": "nearest-exact"}
    )
    mask_small = g.add("ImageToMask", 3, image=mask_small["IMAGE"], channel="red")["MASK"]
    grey = g.add("EmptyImage", 3, "Grey", width=resolution, height=resolution, batch_size=1, color=0x808080)
    painted = g.add(
        "ImageCompositeMasked",
        4,
        "Paint the hole grey",
        destination=small,
        source=grey["IMAGE"],
        x=0,
        y=0,
        resize_source=False,
        mask=mask_small,
    )["IMAGE"]
    latent = g.add("VAEEncode", 4, pixels=painted, vae=parts["vae"])["LATENT"]
    latent = g.add("SetLatentNoiseMask", 4, samples=latent, mask=mask_small)["LATENT"]
    sampled = g.add(
        "KSampler",
        4,
        model=parts["model"],
        positive=made_of.positive,
        negative=made_of.negative,
        latent_image=latent,
        seed=7,
        steps=20,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )["LATENT"]
    made = g.add("VAEDecode", 5, samples=sampled, vae=parts["vae"])["IMAGE"]
    made = g.add("ImageScale", 5, "Back to the crop's size", image=made, **{**scaled, "width": side, "height": side})
    whole = g.add(
        "ImageCompositeMasked",
        5,
        "Paste the crop",
        destination=background,
        source=made["IMAGE"],
        x=left,
        y=top,
        resize_source=False,
    )["IMAGE"]
    detailed = g.add("ImprintRestoreDetail", 6, generated=whole, alpha=mask, identity=made_of.identity)
    blended = g.add(
        "ImprintBackgroundBlend",
        6,
        background=cast_shadow(g, 6, background, detailed, "left"),
        generated=detailed["image"],
        mask=mask,
        alpha=detailed["alpha"],
    )["image"]
    save(g, 7, blended, columns=1.4)


def other_models_512px(g: Graph) -> None:
    note(
        g,
        f"Fetch [{OBJECTSTITCH['name']}]({OBJECTSTITCH['url']}) (5.2 GB, by BCMI) into "
        f"`models/{OBJECTSTITCH['directory']}`; the front end offers it. Or **Paint-by-Example**, **ControlCom** or "
        "**AnyDoor**: choose its file in *Load Checkpoint*; where from, says its help page.",
        f"Load **object** and **background**; paint where it shall be: {PAINT}.",
        "Press **Run**. The settings are the authors'; licences are on that page too.",
    )
    object_ = picture(g, 0, "sloth.webp", "Object (cut-out)")
    background = picture(g, 0, PAINTED, "Background")
    parts = checkpoint(g, 1, download=OBJECTSTITCH)
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, background["MASK"], background["IMAGE"], "box")
    settings = {"steps": 50, "cfg": 5.0, "scheduler": "ddim_uniform", "context": 2.0}
    save(g, 4, insert(g, 3, parts, made_of, background["IMAGE"], mask, settings, matte=False), columns=1.4)


FIRST, FORM = "1 Place an object", "2 Place an object as a form.app"
PLAIN_PHOTO, DRAW = "4 Place an object from a plain photo", "6 Draw an object in a painted shape"
RELATIVE = "8 Draw at 512 px with other models"
WORKFLOWS: dict[str, Callable[[Graph], Any]] = {
    FIRST: place_object,
    FORM: place_object_app,
    "3 Place several objects": several_objects,
    PLAIN_PHOTO: plain_photo,
    "5 Place many objects one by one": many_objects,
    DRAW: draw_object,
    "7 Draw with your own KSampler": split_path,
    RELATIVE: other_models_512px,
}
"""In the template browser's order, which is that of their names; see nodes/templates.py."""


def file_of(name: str) -> Path:
    """Path of the workflow of that name; its thumbnail is beside it."""
    return ROOT / "workflows" / f"{name}.json"


def build(name: str, object_info: dict[str, dict]) -> dict:
    """Build the workflow of that name from the server's description of the nodes."""
    graph = Graph(object_info)
    WORKFLOWS[name](graph)
    return graph.workflow(name)


def place_blueprint(g: Graph) -> dict:
    # The box is drawn on the picture of the first input.
    inputs = subgraph_inputs(background="IMAGE", object="IMAGE", object_mask="MASK", mask="MASK")
    mask = cut_out(g, 0, inputs["object"], inputs["object_mask"])
    return placing_blueprint(
        g,
        PLACE,
        "Puts an object's own photo into a box that is drawn on the background, in the scene's light and with its "
        "shadow. object_mask: the MASK of Load Image for a cut-out; for a plain photo, open the subgraph and switch "
        f"its Cut-out on, or take {PLACE_PHOTO}. mask: instead of the box, where it was painted.",
        inputs,
        mask,
    )


def photo_blueprint(g: Graph) -> dict:
    inputs = subgraph_inputs(background="IMAGE", object="IMAGE", mask="MASK")
    _, remove = remove_background(g, 0, inputs["object"])
    return placing_blueprint(
        g,
        PLACE_PHOTO,
        "Cuts the object out of any photo with core's background removal, and puts it into a box that is drawn on the "
        f"background, in the scene's light and with its shadow. Needs {BACKGROUND_REMOVAL['name']} in "
        f"models/{BACKGROUND_REMOVAL['directory']}. mask: instead of the box, where it was painted.",
        inputs,
        remove["mask"],
    )


def placing_blueprint(g: Graph, name: str, description: str, inputs: dict[str, Output], object_mask: Output) -> dict:
    placed = g.add("ImprintPlaceObject", 1, **{**inputs, "object_mask": object_mask}, columns=1.4)
    light = g.add("ImprintRelight", 2.4, placed=placed["placed"])
    shown = [("ImprintPlaceObject", "box")]
    shown += [("ImprintRelight", widget) for widget in ("light", "shadow", "softness", "light_from")]
    return g.blueprint(name, description, inputs, {"image": light["image"]}, shown)


def insert_blueprint(g: Graph) -> dict:
    inputs = subgraph_inputs(object="IMAGE", object_mask="MASK", background="IMAGE", hole="MASK")
    parts = checkpoint(g)
    made_of = subject(g, 1, parts, inputs["object"], inputs["object_mask"])
    mask = coarsen(g, 1, inputs["hole"], inputs["background"], "box")
    finished = insert(g, 2, parts, made_of, inputs["background"], mask)
    shown = [
        ("ImprintLoadCheckpoint", "checkpoint"),
        ("ImprintMaskCoarsener", "level"),
        ("ImprintCompositeSampler", "seed"),
        ("ImprintCompositeSampler", "variations"),
        ("ImprintCompositeSampler", "steps"),
        ("ImprintCompositeSampler", "cfg"),
        ("ImprintCastShadow", "shadow"),
        ("ImprintCastShadow", "light_from"),
        ("ImprintBackgroundBlend", "feather_out"),
    ]
    return g.blueprint(
        INSERT,
        "Draws an object into a background, where the hole is white, such as the MASK that was painted on the "
        "background. object_mask: the MASK of Load Image.",
        inputs,
        {"image": finished},
        shown,
    )


BLUEPRINTS: dict[str, Callable[[Graph], dict]] = {
    PLACE: place_blueprint,
    PLACE_PHOTO: photo_blueprint,
    INSERT: insert_blueprint,
}


def blueprint(name: str, object_info: dict[str, dict]) -> dict:
    """Build the subgraph of that name: several nodes as one."""
    return BLUEPRINTS[name](Graph(object_info))


# ---------------------------------------------------------------------------------------------------- files


def text(workflow: dict) -> str:
    return json.dumps(workflow, indent=2) + "\n"


def tile(image: Image.Image, side: int) -> Image.Image:
    """The picture on a grey square."""
    image = ImageOps.contain(image.convert("RGBA"), (side, side))
    square = Image.new("RGBA", (side, side), (128, 128, 128, 255))
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB")


def sheet(pictures: list[Image.Image], width: int) -> Image.Image:
    """The pictures as squares in as many columns as rows, or one more."""
    columns, gap = math.ceil(len(pictures) ** 0.5), 4
    rows, side = math.ceil(len(pictures) / columns), (width + gap) // columns - gap
    made = Image.new("RGB", (width, rows * (side + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        made.paste(tile(picture, side), (index % columns * (side + gap), index // columns * (side + gap)))
    return made


def thumbnail(workflow: dict, results: list[Image.Image], width: int = 480) -> Image.Image:
    """The workflow's objects and its result, side by side if that fills a square, or inset.

    Several pictures of one painted background are shown next to it.
    """
    loaded = [node for node in workflow["nodes"] if node["type"] == "LoadImage" and "bject" in node.get("title", "")]
    objects = [Image.open(SAMPLES / node["widgets_values"][0].removeprefix("imprint_")) for node in loaded]
    objects = [each.convert("RGB") if each.filename.endswith(PAINTED_OVER) else each for each in objects]
    if len(results) > 1 and (background := painted(workflow)):
        objects.append(background)
    if len(objects) + len(results) in (4, 9):
        return sheet([*results, *objects], width)  # the template browser puts its badge to the upper left
    made, inset = sheet(results, width), width // (4 * math.ceil(len(results) ** 0.5))
    for index, each in enumerate(objects):
        # Things stand below, and the badge is to the left.
        made.paste(ImageOps.expand(tile(each, inset), 2, "white"), (made.width - (index + 1) * (inset + 12), 8))
    return made


def painted(workflow: dict) -> Image.Image | None:
    """The background with the painted areas in colour; None if nothing was painted."""
    (name,) = (node["widgets_values"][0] for node in workflow["nodes"] if node.get("title") == "Background")
    background = Image.open(SAMPLES / name.removeprefix("imprint_"))
    if background.mode != "RGBA":
        return None
    made = background.convert("RGB")
    made.paste((255, 64, 26), mask=background.getchannel("A").point(lambda value: (255 - value) // 2))
    return made


def write(path: Path, graph: dict) -> None:
    with replacing(path) as file:
        file.write_text(text(graph), encoding="utf-8")


def write_thumbnail(name: str, server: Server, object_info: dict[str, dict]) -> None:
    workflow, prompt = build(name, object_info), to_prompt(build(name, object_info), object_info)
    start = time.monotonic()
    if any(OBJECTSTITCH["name"] in node["inputs"].values() for node in prompt.values()):
        results = [painted(workflow)]  # its weights are not here to be run
    else:
        results = server.pictures(prompt, seconds=900)
    print(f"{name}: {len(results)} pictures in {time.monotonic() - start:.1f} s", flush=True)
    with replacing(file_of(name).with_suffix(".jpg")) as file:
        thumbnail(workflow, results).save(file, "JPEG", quality=85, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs-only", action="store_true", help="run nothing, leave the thumbnails as they are")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WORKFLOWS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        with running(
            Path(os.environ["COMFYUI_PATH"]), os.environ.get("COMFYUI_PYTHON", sys.executable), base
        ) as server:
            object_info = server.get("/object_info")
            for name in BLUEPRINTS:
                write(ROOT / "subgraphs" / f"{name}.json", blueprint(name, object_info))
            for name in options.names or WORKFLOWS:
                write(file_of(name), build(name, object_info))
                if not options.graphs_only:
                    write_thumbnail(name, server, object_info)


if __name__ == "__main__":
    main()
