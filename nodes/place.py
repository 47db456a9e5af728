"""Place Object: an object's own photo is put into a background."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..imprint.errors import ImprintError
from ..imprint.place import PlacedObject, place_object
from ..imprint.positions import ACROSS, DOWN, Align
from ..imprint.preprocess import bounding_boxes
from ..imprint.views import ObjectViews
from . import sockets
from .messages import tell
from .objects import marks_input, object_views
from .tensors import broadcast, copy_image, fit_mask, is_placeholder, lazy_zeros, to_bchw

_BOX, _AS_IT_LIES, *_ = _PLACES = ("box", "as it lies", "whole picture")


class ImprintPlaceObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImprintPlaceObject",
            display_name="Imprint: Place Object",
            category="imprint/image",
            description="Puts an object into a background: into a box drawn with the mouse, where a mask was painted, "
            "or as it lies in its own picture. Follow it with Light and Shadow.",
            search_aliases=[
                "place object",
                "insert object",
                "composite",
                "paste",
                "overlay",
                "position",
                "imprint",
                "product placement",
            ],
            is_output_node=True,  # the front end shows previews of output nodes only
            inputs=[
                io.Image.Input(
                    "background",
                    tooltip="The picture to put the object into, of any size. The box is drawn on it, once a Load "
                    "Image node is connected here.",
                ),
                io.Image.Input(
                    "object",
                    tooltip="The object's photo, as large and sharp as you have it. A batch puts each into a picture "
                    "of its own.",
                ),
                io.BoundingBox.Input(
                    "box",
                    component="ImageCrop",
                    default={"x": 80, "y": 80, "width": 240, "height": 240},  # all of it is seen in most pictures
                    tooltip="Where the object goes: drag the box on the picture. The object keeps its proportions, as "
                    "large as the box allows, and stands on the box's lower edge. Not used where a mask was painted, "
                    "or with another place. In the classic canvas, which draws no box, paint a mask.",
                ),
                io.Float.Input(
                    "rotate",
                    default=0.0,
                    min=-180.0,
                    max=180.0,
                    step=1.0,
                    tooltip="Turns the object, in degrees, clockwise, -180 to 180; default 0.",
                ),
                io.Boolean.Input("flip", default=False, tooltip="Mirrors the object left to right; off by default."),
                io.Combo.Input(
                    "align_x",
                    options=list(ACROSS),
                    default="center",
                    advanced=True,
                    tooltip="Where the object stands in a box that is wider than it: center (default), left or right.",
                ),
                io.Combo.Input(
                    "align_y",
                    options=list(DOWN),
                    default="bottom",
                    advanced=True,
                    tooltip="Where the object stands in a box that is higher than it: bottom (default), middle or top.",
                ),
                io.Combo.Input(
                    "place",
                    options=list(_PLACES),
                    default=_BOX,
                    advanced=True,
                    tooltip="What says where the object goes. box (default): the box, or the mask where one is "
                    "connected. as it lies: its picture is as large as the background, and the object is already in "
                    "its place there, as in a layer of an image editor. whole picture: align_x, align_y and inset "
                    "alone, for batches without drawing.",
                ),
                marks_input(),
                io.Float.Input(
                    "inset",
                    optional=True,  # and last: older workflows and prompts have no value for it
                    default=0.0,
                    min=0.0,
                    max=0.45,
                    step=0.01,
                    advanced=True,
                    tooltip="Margin on each side of the box, or of the whole picture, as a fraction of its shorter "
                    "side, 0 (default) to 0.45.",
                ),
                io.Mask.Input(
                    "object_mask",
                    optional=True,
                    tooltip="Which part of the photo is the object: the MASK of Load Image, of Remove Background, or "
                    "painted. Without it, the picture's own transparency.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Instead of the box: white where the object goes, such as the MASK of the background's "
                    "Load Image, painted in its mask editor; as long as nothing is painted there, the box is used. The "
                    "object is fitted into what is white, from left to right and top to bottom.",
                ),
                sockets.Placed.Input(
                    "after",
                    optional=True,
                    tooltip="For several objects in one picture: the placed of another Place Object with the same "
                    "background, whose objects stand behind this one. One Light and Shadow lights them all, from back "
                    "to front.",
                ),
            ],
            outputs=[
                sockets.Placed.Output(
                    display_name="placed",
                    tooltip="The background and the objects in their places. For Light and Shadow, or for the after of "
                    "the next Place Object.",
                ),
                io.Image.Output(
                    display_name="image",
                    tooltip="The object pasted over the background as it is, without light or shadow.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The object's outline in the background: white is the object."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        background: torch.Tensor,
        object: torch.Tensor,
        box: dict,
        rotate: float = 0.0,
        flip: bool = False,
        align_x: str = "center",
        align_y: str = "bottom",
        place: str = _BOX,
        mask_marks: str = "auto",
        inset: float = 0.0,
        object_mask: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        after: sockets.PlacedBatch | None = None,
    ) -> io.NodeOutput:
        frames, transparency = to_bchw(background)
        size = tuple(frames.shape[2:])
        if object_mask is None:
            _, own = to_bchw(object)
            if own is None or bool((own == 1).all()):  # Join Image with Alpha makes it so of a plain photo
                raise ImprintError(
                    "the object has no mask: connect the MASK of its Load Image to object_mask, or a picture with "
                    "transparency to object; cut a plain photo out with Remove Background first"
                )
            object_mask, mask_marks = own[:, 0], "object"
        views, white = object_views(object, object_mask, mask_marks)
        boxes, behind = _boxes(box, mask, place, frames), ()
        if after is not None:
            frames, behind = _same_background(frames, after), after.objects
        frames, pictures, outlines, boxes = broadcast(
            backgrounds=frames, objects=torch.cat(views.pictures), object_masks=torch.cat(views.masks), places=boxes
        )
        there, align = [], Align(align_x, align_y, inset)
        for picture, outline, each in zip(pictures, outlines, boxes.tolist()):
            if place != _AS_IT_LIES:
                there.append(PlacedObject.aligned(picture, outline, each, align, size, rotate, flip))
            else:
                view = ObjectViews((picture[None],), (outline[None],))
                there.append(place_object(view, size, placed=True, rotate=rotate, flip=flip))
        objects = tuple(each if len(each) == len(there) else each * len(there) for each in (*behind, tuple(there)))
        image, alpha = _pasted(background, objects)
        tell(cls, "\n".join(map(_words, there)) + f"\nWhite in the object's mask: the {white}.")
        placed = sockets.PlacedBatch(frames, transparency, objects)
        return io.NodeOutput(placed, image, alpha, ui=ui.PreviewImage(image, cls=cls))


def _boxes(box: dict, mask: torch.Tensor | None, place: str, frames: torch.Tensor) -> torch.Tensor:
    """Top, left, bottom, right of the places (1 or B, 4) in frames (B, 3, H, W): the whole frame where place needs no
    box.

    Raises `ImprintError` for a box outside, an empty mask, and a mask beside another place than "box".
    """
    size = tuple(frames.shape[2:])
    if mask is not None and is_placeholder(mask, size):
        mask = None  # the MASK of the background's Load Image, on which nothing was painted: the box holds
    if place == _BOX:
        return torch.tensor([_within(box, size)]) if mask is None else bounding_boxes(fit_mask(mask, frames, "mask"))
    if mask is not None:
        raise ImprintError(
            f"place is '{place}', but a mask is connected, which says another place; disconnect the mask, or set place "
            f"to '{_BOX}'"
        )
    return torch.tensor([(0, 0, *size)])


def _pasted(
    background: torch.Tensor, objects: tuple[tuple[PlacedObject, ...], ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The background (IMAGE) with the objects over it, and the outline (MASK) of the last, which stands in front.

    objects: from back to front, each once for every picture.
    """
    *_, front = objects
    image, outlines = copy_image(background, len(front)), lazy_zeros(len(front), *front[0].size)
    for index, stack in enumerate(zip(*objects)):
        for put in stack:
            part = image[(index, *put.area)][..., :3]
            part.lerp_(put.colours.movedim(0, -1).to(part), put.alpha[..., None].to(part))
        outlines[(index, *front[index].area)] = front[index].alpha
    return image, outlines


def _same_background(frames: torch.Tensor, after: sockets.PlacedBatch) -> torch.Tensor:
    """The backgrounds of what was placed before. Raises `ImprintError` unless frames (B, 3, H, W) are the same."""
    before = after.backgrounds
    if frames.shape[1:] != before.shape[1:]:
        found = f"it is {frames.shape[3]}x{frames.shape[2]}, that one {before.shape[3]}x{before.shape[2]}"
    elif 1 != len(frames) != len(before):
        found = f"here are {len(frames)}, there {len(before)}"
    elif not bool((frames.to(before) == before).all()):
        found = "it is another picture"
    else:
        return before
    raise ImprintError(
        f"the background is not the one of the Place Object that is connected to after ({found}); connect the same "
        "picture to both"
    )


def _within(box: dict, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a BOUNDING_BOX's part in a frame of `size`.

    Raises `ImprintError` where there is none.
    """
    if not isinstance(box, dict) or not all(isinstance(box.get(name), int) for name in ("x", "y", "width", "height")):
        raise ImprintError(f"the box is {box}; it must have x, y, width and height in whole pixels")
    height, width = size
    left, top = max(0, box["x"]), max(0, box["y"])
    right, bottom = min(width, box["x"] + box["width"]), min(height, box["y"] + box["height"])
    if right <= left or bottom <= top:
        raise ImprintError(
            f"the box of {box['width']}x{box['height']} px at {box['x']},{box['y']} lies outside the {width}x{height} "
            "background; drag it onto the picture"
        )
    return top, left, bottom, right


def _words(put: PlacedObject) -> str:
    top, left, bottom, right = put.box
    height, width = put.size
    return f"{right - left}x{bottom - top} px at {left},{top} in {width}x{height}"
