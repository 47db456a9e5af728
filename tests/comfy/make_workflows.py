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

SAMPLES = SHIPPED.parent / "samples"
PLACE = "Imprint - place object"  # also the file's name, which the front end shows, and where ":" cannot stand
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
    """download: a file that a user must get first, instead of the shipped one."""
    if download:
        return g.add("ImprintLoadCheckpoint", column, models=[download], checkpoint=download["name"])
    return g.add("ImprintLoadCheckpoint", column, checkpoint=SHIPPED.name)


def picture(g: Graph, column: float, name: str, title: str) -> Node:
    return g.add("LoadImage", column, title, image=f"imprint_{name}")


def hole(g: Graph, column: float, name: str = "hole.png", title: str = "Hole (white = object goes here)") -> Output:
    return g.add("LoadImageMask", column, title, image=f"imprint_{name}", channel="red")["MASK"]


@dataclass(frozen=True)
class Subject:
    """An object: its picture, and the conditioning made of it."""

    photo: dict[str, Any]
    """image, mask and mask_marks, as the nodes take them."""
    positive: Output
    negative: Output


def subject(
    g: Graph, column: float, parts: Node, image: Output, mask: Output, mask_marks: str = "background", title: str = ""
) -> Subject:
    """An object's encoder and adapter, in one column."""
    photo = {"image": image, "mask": mask, "mask_marks": mask_marks}
    encoder = g.add(
        "ImprintIDEncoder",
        column,
        title,
        clip_vision=parts["clip_vision"],
        **photo,
    )
    adapter = g.add("ImprintContentAdapter", column, adapter=parts["adapter"], identity=encoder["identity"])
    return Subject(photo, adapter["positive"], adapter["negative"])


def coarsen(g: Graph, column: float, mask: Output, background: Output, level: str, **options) -> Output:
    title = options.pop("title", "")
    node = g.add("ImprintMaskCoarsener", column, title, mask=mask, background=background, level=level, **options)
    return node["mask"]


def insert(
    g: Graph,
    column: float,
    parts: Node,
    object_: Subject,
    background: Output,
    mask: Output,
    sampling: dict[str, Any] | None = None,
    matte: bool = True,
    **blend,
) -> Output:
    """The sampler, detail and the blend, one below the other.

    sampling: the sampler's values that are not its defaults. matte: whether the checkpoint predicts one, without which
    there is nothing to lay detail on.
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
            "ImprintRestoreDetail", column, generated=sampler["image"], alpha=sampler["alpha"], **object_.photo
        )
    blended = g.add(
        "ImprintBackgroundBlend",
        column,
        background=background,
        generated=drawn["image"],
        mask=sampler["mask"],
        alpha=drawn["alpha"],
        shadow=sampler["shadow"],
        **blend,
    )
    return blended["image"]


def save(g: Graph, column: float, image: Output, title: str = "Save Image", **options) -> Node:
    return g.add("SaveImage", column, title, images=image, filename_prefix="imprint", **options)


# ---------------------------------------------------------------------------------------------------- the workflows


def place_object(g: Graph) -> dict[str, Node]:
    """The nodes by their names."""
    g.note(
        0,
        "## Put an object into a photo\n\n1. Load your **object**, a cut-out, and your **background**.\n"
        "2. Drag the **box** on *Place Object* to where it shall stand (classic canvas: type its numbers).\n"
        "3. Press **Run**. Then try **light** and **shadow**.",
        "Read me",
        height=220,
    )
    object_ = picture(g, 0, "object.png", "Object (cut-out)")
    background = picture(g, 0, "background.png", "Background")
    place = g.add(
        "ImprintPlaceObject",
        1,
        background=background["IMAGE"],
        object=object_["IMAGE"],
        object_mask=object_["MASK"],
        box={"x": 190, "y": 190, "width": 140, "height": 180},
        columns=1.4,
    )
    light = g.add("ImprintRelight", 2.4, placed=place["placed"])
    saved = save(g, 2.4, light["image"], columns=1.4)
    return {"object": object_, "background": background, "place": place, "light": light, "saved": saved}


def place_object_app(g: Graph) -> None:
    nodes = place_object(g)
    shown = {"object": ["image"], "background": ["image"], "place": ["box", "rotate", "flip"]}
    shown["light"] = ["light", "shadow", "softness"]
    widgets = [(nodes[name], widget) for name, widgets in shown.items() for widget in widgets]
    g.show_as_form(widgets, [nodes["saved"]])


def object_insert(g: Graph) -> None:
    g.note(
        0,
        "## Insert an object\n\nPress **Run**: the object goes into the white part of the mask. Then load your own "
        "pictures.\n\n- *Object*: a cut-out with transparency. For a photo, paint a mask over the object in the mask "
        "editor and set **mask_marks** to `object`.\n- *Hole*: its outline steers shape and pose; with **level** `box` "
        "the model chooses them.\n\nBeyond the hole and its soft edge the background stays as it is, bit for bit.",
        "Read me",
        height=330,
    )
    parts = checkpoint(g)
    object_ = picture(g, 1, "object.png", "Object (cut-out)")
    background = picture(g, 1, "background.png", "Background")["IMAGE"]
    where = hole(g, 1)
    made_of = subject(g, 2, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, where, background, "precise")
    save(g, 4, insert(g, 3, parts, made_of, background, mask), columns=1.4)


def mask_levels(g: Graph) -> None:
    g.note(
        0,
        "## The four mask levels side by side\n\nOne object, one place, one seed. The closer the mask is to an "
        "outline, the more it decides shape and pose; a box leaves both to the model, with room for a shadow.\n\n"
        "Draw as exactly as you want to decide, and no more exactly.",
        "Read me",
        height=260,
    )
    parts = checkpoint(g)
    object_ = picture(g, 0, "object.png", "Object (cut-out)")
    background = picture(g, 0, "background.png", "Background")["IMAGE"]
    where = hole(g, 0)
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    for column, level in enumerate(("precise", "fine", "coarse", "box"), 2):
        mask = coarsen(g, column, where, background, level, title=f"Coarsen Mask: {level}")
        save(g, column, insert(g, column, parts, made_of, background, mask), f"Result: {level}")


def shape_guided_pose(g: Graph) -> None:
    g.note(
        0,
        "## The mask's shape steers the pose\n\nThe same object and seed, three masks: upright, tilted, lying. "
        "**level** `fine` keeps the drawn shape and forgives a rough hand.\n\nPaint your own: right-click a Load "
        "Image node, *Open in MaskEditor*.",
        "Read me",
        height=240,
    )
    parts = checkpoint(g)
    object_ = picture(g, 0, "object.png", "Object (cut-out)")
    background = picture(g, 0, "background.png", "Background")["IMAGE"]
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    for column, (file, pose) in enumerate(
        (("hole.png", "upright"), ("hole_tilted.png", "tilted"), ("hole_wide.png", "lying")), 2
    ):
        mask = coarsen(g, column, hole(g, column, file, f"Hole: {pose}"), background, "fine")
        save(g, column, insert(g, column, parts, made_of, background, mask), f"Result: {pose}")


def reference_views(g: Graph) -> None:
    g.note(
        0,
        "## Several views of one object\n\nBatch pictures of **one and the same** object, and their masks in the same "
        "order: the model looks at all of them. It helps where one photo hides what the new pose shows.\n\n"
        "Different objects do not go here: see *imprint_several_objects*.",
        "Read me",
        height=240,
    )
    parts = checkpoint(g)
    views = [picture(g, 0, f"sloth_{index}.webp", f"Object, view {index}") for index in (1, 2, 3)]
    images = g.add("BatchImagesNode", 1, images=[view["IMAGE"] for view in views])["IMAGE"]
    masks = g.add("BatchMasksNode", 1, masks=[view["MASK"] for view in views])["MASK"]
    background = picture(g, 1, "street.jpg", "Background")["IMAGE"]
    made_of = subject(g, 2, parts, images, masks)
    mask = coarsen(g, 2, hole(g, 1), background, "coarse")
    save(g, 4, insert(g, 3, parts, made_of, background, mask), columns=1.4)


def several_objects(g: Graph) -> None:
    g.note(
        0,
        "## Several objects in one scene\n\nOne after another: the finished picture of the first is the background of "
        "the second, so that the second sees the first, its light and its shadow. Put what is farther away first.",
        "Read me",
        height=190,
    )
    parts = checkpoint(g)
    first, second = picture(g, 0, "object.png", "First object"), picture(g, 0, "duck.webp", "Second object")
    background = picture(g, 1, "background.png", "Background")["IMAGE"]
    holes = hole(g, 1, "hole.png", "First hole"), hole(g, 1, "hole_right.png", "Second hole")
    for column, object_, where, name in ((2, first, holes[0], "first"), (4, second, holes[1], "second")):
        made_of = subject(g, column, parts, object_["IMAGE"], object_["MASK"])
        mask = coarsen(g, column, where, background, "precise")
        background = insert(g, column + 1, parts, made_of, background, mask)
        if name == "first":
            g.add("PreviewImage", column + 1, "With the first object", images=background)
    save(g, 6, background, columns=1.4)


def automatic_cutout(g: Graph) -> None:
    g.note(
        0,
        "## Cut the object out automatically\n\nCore's *Remove Background* finds the object in any photo, so that you need "
        "no mask. Its model is one more file; therefore it is **switched off** at first, and a ready mask of the sample "
        "photo stands in.\n\n**To switch it on**, and always for your own photo: right-click the frame *Automatic "
        "cut-out*, *Set Group Nodes to Always*. The front end then offers the file, if it is missing:\n\n"
        f"[{BACKGROUND_REMOVAL['name']}]({BACKGROUND_REMOVAL['url']}) in `models/{BACKGROUND_REMOVAL['directory']}`\n\n"
        "Both masks are white on the object, therefore **mask_marks** is `object`.",
        "Read me",
        height=400,
    )
    parts = checkpoint(g)
    photo = picture(g, 1, "bear.jpg", "Object (any photo)")["IMAGE"]
    ready = hole(g, 1, "bear_mask.png", "Ready mask of the sample photo")
    remover = g.add(
        "LoadBackgroundRemovalModel", 2, models=[BACKGROUND_REMOVAL], bg_removal_name=BACKGROUND_REMOVAL["name"]
    )
    remove = g.add("RemoveBackground", 2, bg_removal_model=remover["bg_model"], image=photo)
    # When all three are switched off, the last gives its first mask.
    cut = g.add("ComfySwitchNode", 2, "Use the automatic mask", switch=True, on_false=ready, on_true=remove["mask"])
    g.bypass("Automatic cut-out (switched off)", remover, remove, cut)
    background = picture(g, 2, "hall.jpg", "Background")["IMAGE"]
    where = hole(g, 2)
    made_of = subject(g, 3, parts, photo, cut["output"], "object")
    mask = coarsen(g, 3, where, background, "coarse")
    save(g, 5, insert(g, 4, parts, made_of, background, mask), columns=1.4)


def split_path(g: Graph) -> None:
    left, top, side = 56, 110, 288  # the square that Draw Object takes for hole.png
    resolution = 256
    crop = {"x": left, "y": top, "width": side, "height": side}
    g.note(
        0,
        "## The parts by themselves, with KSampler\n\nFor your own samplers. What Draw Object does in one "
        "node:\n\n1. crop a square around the hole, scale it to the model's 256 px\n2. paint the hole grey, encode, "
        "**Set Latent Noise Mask**\n3. sample: the MODEL keeps the background clean at every step by itself\n4. decode, "
        "scale back, paste, blend\n\nAll of the hole is repainted here: **alpha** and **shadow**, which keep the photo "
        "beside the object and let *Restore Detail* work, are the sampler node's.",
        "Read me",
        height=350,
    )
    parts = checkpoint(g)
    object_ = picture(g, 0, "object.png", "Object (cut-out)")
    background = picture(g, 0, "background.png", "Background")["IMAGE"]
    where = hole(g, 0)
    made_of = subject(g, 1, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 1, where, background, "precise")
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
    blended = g.add("ImprintBackgroundBlend", 5, background=background, generated=whole, mask=mask)["image"]
    save(g, 6, blended, columns=1.4)


def large_photo(g: Graph) -> None:
    side = 3072
    g.note(
        0,
        f"## Large photos\n\nOnly a square around the hole is generated, here at 384 px, and only the "
        f"hole and its soft edge are exchanged: the other pixels of a {side} x {side} picture keep every bit.\n\n"
        "- **resolution** (sampler, advanced): 384 or 512 for holes of more pixels than 256. 0 is 256, and faster.\n"
        "- **context** (sampler): how much of the surroundings the model sees. Less makes the object sharper.\n"
        "- **feather_out** and **method** `multiband` (blend): a wide, soft seam.\n\n"
        "*Stand-in* enlarges a sample picture. Remove it, and load a large photo of yours.",
        "Read me",
        height=340,
    )
    parts = checkpoint(g)
    object_ = picture(g, 1, "object.png", "Object (cut-out)")
    sample = picture(g, 0, "background.png", "Background")["IMAGE"]
    background = g.add(
        "ImageScale",
        1,
        "Stand-in for a large photo",
        image=sample,
        upscale_method="lanczos",
        width=side,
        height=side,
        crop="disabled",
    )["IMAGE"]
    where = hole(g, 0)
    big = g.add("MaskToImage", 1, mask=where)["IMAGE"]
    big = g.add(
        "ImageScale",
        1,
        "The hole at the photo's size",
        image=big,
        upscale_method="bilinear",
        width=side,
        height=side,
        crop="disabled",
    )["IMAGE"]
    where = g.add("ImageToMask", 1, image=big, channel="red")["MASK"]
    made_of = subject(g, 2, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, where, background, "precise")
    sampling = {"resolution": 384}
    finished = insert(g, 3, parts, made_of, background, mask, sampling, feather_out=24, method="multiband")
    save(g, 4, finished, "Full resolution", columns=1.4)


def batch(g: Graph) -> None:
    g.note(
        0,
        "## Batches\n\n**One object into many backgrounds** (above): pictures of one size in *Batch Images*. One mask "
        "serves all; a batch of masks gives each its own.\n\n**Many objects into one background** (below): *Create "
        "List* hands the objects on one by one, so that each is inserted on its own. Pictures and masks in the same "
        "order.",
        "Read me",
        height=290,
    )
    parts = checkpoint(g)
    objects = [
        picture(g, 0, name, f"Object {index}")
        for index, name in enumerate(("object.png", "duck.webp", "sloth_3.webp"), 1)
    ]
    backgrounds = [
        picture(g, 1, name, f"Background {index}")["IMAGE"]
        for index, name in enumerate(("background.png", "street.jpg", "room.jpg"), 1)
    ]
    where = hole(g, 1)
    frames = g.add("BatchImagesNode", 2, images=backgrounds)["IMAGE"]
    mask = coarsen(g, 2, where, backgrounds[0], "coarse")
    one = subject(g, 2, parts, objects[0]["IMAGE"], objects[0]["MASK"], title="One object")
    save(g, 4, insert(g, 3, parts, one, frames, mask), "One object, many backgrounds", columns=1.4)
    pictures = g.add("CreateList", 2, "Objects", inputs=[each["IMAGE"] for each in objects])["list"]
    masks = g.add("CreateList", 2, "Their masks", inputs=[each["MASK"] for each in objects])["list"]
    each = subject(g, 2, parts, pictures, masks, title="Each object of the list")
    save(g, 4, insert(g, 3, parts, each, backgrounds[0], mask), "Many objects, one background", columns=1.4)


def objectstitch_512px(g: Graph) -> None:
    g.note(
        0,
        "## Insert an object at 512 px\n\nWith the weights that BCMI released for *ObjectStitch*: 5.2 GB, which do not come "
        f"with this pack. The front end offers the file:\n\n[{OBJECTSTITCH['name']}]({OBJECTSTITCH['url']}) in "
        f"`models/{OBJECTSTITCH['directory']}`\n\nThe sampler's settings are those of ObjectStitch's authors. The help "
        "page of *Imprint: Load Checkpoint* compares the checkpoints, and names their licences.",
        "Read me",
        height=320,
    )
    parts = checkpoint(g, download=OBJECTSTITCH)
    object_ = picture(g, 1, "object.png", "Object (cut-out)")
    background = picture(g, 1, "background.png", "Background")["IMAGE"]
    where = hole(g, 1)
    made_of = subject(g, 2, parts, object_["IMAGE"], object_["MASK"])
    mask = coarsen(g, 2, where, background, "box")
    settings = {"steps": 50, "cfg": 5.0, "scheduler": "ddim_uniform", "context": 2.0}
    save(g, 4, insert(g, 3, parts, made_of, background, mask, settings, matte=False), columns=1.4)


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    "imprint_1_place_object": place_object,
    "imprint_1_place_object.app": place_object_app,
    "imprint_object_insert": object_insert,
    "imprint_mask_levels": mask_levels,
    "imprint_shape_guided_pose": shape_guided_pose,
    "imprint_reference_views": reference_views,
    "imprint_several_objects": several_objects,
    "imprint_automatic_cutout": automatic_cutout,
    "imprint_split_path_ksampler": split_path,
    "imprint_large_photo": large_photo,
    "imprint_batch": batch,
    "imprint_objectstitch_512px": objectstitch_512px,
}


def build(name: str, object_info: dict[str, dict]) -> dict:
    """The workflow of that name, by the server's description of the nodes."""
    graph = Graph(object_info)
    WORKFLOWS[name](graph)
    return graph.workflow(name)


def place_blueprint(g: Graph) -> dict:
    # The box is drawn on the picture of the first input.
    inputs = subgraph_inputs(background="IMAGE", object="IMAGE", object_mask="MASK")
    place = g.add("ImprintPlaceObject", 0, **inputs, columns=1.4)
    light = g.add("ImprintRelight", 1.4, placed=place["placed"])
    shown = [("ImprintPlaceObject", "box"), *(("ImprintRelight", name) for name in ("light", "shadow", "softness"))]
    return g.blueprint(
        PLACE,
        "Puts an object's own photo into a box that is drawn on the background, in the scene's light and with its shadow. "
        "object_mask: the MASK of Load Image for a cut-out.",
        inputs,
        {"image": light["image"]},
        shown,
    )


def insert_blueprint(g: Graph) -> dict:
    inputs = subgraph_inputs(object="IMAGE", object_mask="MASK", background="IMAGE", hole="MASK")
    parts = checkpoint(g)
    made_of = subject(g, 1, parts, inputs["object"], inputs["object_mask"])
    mask = coarsen(g, 1, inputs["hole"], inputs["background"], "box")
    finished = insert(g, 2, parts, made_of, inputs["background"], mask)
    shown = [
        ("ImprintLoadCheckpoint", "checkpoint"),
        ("ImprintIDEncoder", "mask_marks"),
        ("ImprintMaskCoarsener", "level"),
        ("ImprintCompositeSampler", "seed"),
        ("ImprintCompositeSampler", "steps"),
        ("ImprintCompositeSampler", "cfg"),
        ("ImprintBackgroundBlend", "feather_out"),
    ]
    return g.blueprint(
        INSERT,
        "Puts an object into a background, where the hole is white. object_mask: the MASK of Load Image for a cut-out; "
        "for a mask painted over the object, set mask_marks to object.",
        inputs,
        {"image": finished},
        shown,
    )


BLUEPRINTS: dict[str, Callable[[Graph], dict]] = {PLACE: place_blueprint, INSERT: insert_blueprint}


def blueprint(name: str, object_info: dict[str, dict]) -> dict:
    """The subgraph of that name: several nodes as one."""
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
    """The objects that the workflow loads and what it made of them: side by side where that fills a square, or inset."""
    loaded = [node for node in workflow["nodes"] if node["type"] == "LoadImage" and "bject" in node.get("title", "")]
    objects = [Image.open(SAMPLES / node["widgets_values"][0].removeprefix("imprint_")) for node in loaded]
    if len(objects) + len(results) in (4, 9):
        return sheet([*objects, *results], width)
    made, inset = sheet(results, width), width // (4 * math.ceil(len(results) ** 0.5))
    for index, each in enumerate(objects):
        made.paste(ImageOps.expand(tile(each, inset), 2, "white"), (8 + index * (inset + 12), made.height - inset - 12))
    return made


def place(workflow: dict) -> Image.Image:
    """The background with its hole in colour, for a workflow whose weights are not here to be run."""
    named = {
        node["title"]: node["widgets_values"][0]
        for node in workflow["nodes"]
        if "Load" in node["type"] and "title" in node
    }
    background, mask = (
        Image.open(SAMPLES / named[title].removeprefix("imprint_"))
        for title in ("Background", "Hole (white = object goes here)")
    )
    made = background.convert("RGB")
    made.paste((255, 64, 26), mask=mask.convert("L").point(lambda value: value // 2))
    return made


def write(path: Path, graph: dict) -> None:
    with replacing(path) as file:
        file.write_text(text(graph), encoding="utf-8")


def write_thumbnail(name: str, server: Server, object_info: dict[str, dict]) -> None:
    workflow, prompt = build(name, object_info), to_prompt(build(name, object_info), object_info)
    start = time.monotonic()
    if any(OBJECTSTITCH["name"] in node["inputs"].values() for node in prompt.values()):
        results = [place(workflow)]
    else:
        results = server.pictures(prompt, seconds=900)
    print(f"{name}: {len(results)} pictures in {time.monotonic() - start:.1f} s", flush=True)
    with replacing(ROOT / "workflows" / f"{name}.jpg") as file:
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
                write(ROOT / "workflows" / f"{name}.json", build(name, object_info))
                if not options.graphs_only:
                    write_thumbnail(name, server, object_info)


if __name__ == "__main__":
    main()
