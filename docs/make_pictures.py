"""Makes the README's pictures, docs/demo.jpg, results.jpg and large-holes.jpg, and those of the nodes' help pages,
web/docs/assets/*.jpg.

    python -m docs.make_pictures
    python -m docs.make_pictures --subjects DREAMBOOTH --backgrounds COCO SCENES  # docs/placed.jpg alone

All are made with the shipped checkpoint; the first command's with the sample pictures.

Run it again when the checkpoint or the arithmetic has changed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from imprint.blending import blend_pictures, match_colour
from imprint.checkpoint import SHIPPED
from imprint.cli import DEMO_LIGHT
from imprint.files import replacing
from imprint.hole import Hole
from imprint.images import image_to_tensor, tensor_to_image
from imprint.mask_reading import mask_to_tensor
from imprint.masks import LEVELS, coarsen
from imprint.pipeline import Finish, ImprintPipeline
from imprint.vae import decode
from imprint.views import ObjectViews
from training.measure.contact_sheets import sheet

README_FOLDER = Path(__file__).parent
HELP_FOLDER = README_FOLDER.parent / "web" / "docs" / "assets"
SAMPLES = SHIPPED.parent / "samples"
PAINTED_OVER = "bear.webp"  # a whole photo, whose transparency is the mask that was painted over its object
RESULTS = (  # object, background, box, where the light comes from, as the background shows it
    ("dog.webp", "salon.jpg", (560, 350, 920, 700), "behind left"),
    ("collie.webp", "plaza.jpg", (580, 330, 880, 720), "right"),
    ("sloth.webp", "windows.jpg", (560, 380, 870, 710), "left"),
    ("bear.webp", "ballroom.jpg", (120, 350, 470, 710), "left"),
)
STRENGTHS = {
    "light": (0.0, 1.0, 1.5),
    "shadow": (0.0, 1.0, 1.5),
    "softness": (0.0, 0.5, 1.0),
    "light_from": ("left", "behind", "right"),
}
"""Of Light and Shadow, as its help page shows them; what is not varied is 1, 1, 0, and as the background shows it."""
LARGE = (  # object, its mask, background, box, of large-holes.jpg
    ("duck.webp", None, "street.jpg", (90, 235, 215, 360)),
    ("object.png", None, "hall.jpg", (120, 165, 270, 345)),
    ("sloth_1.webp", None, "room.jpg", (140, 235, 290, 385)),
    ("bear.jpg", "bear_mask.png", "background.png", (80, 210, 230, 385)),
)
ENLARGED = 3  # times
SIDES = ((256, 0.0), (512, 0.0), (256, 1.0), (512, 1.0))  # and how much detail of the photo
TILE = (330, 300)  # of placed.jpg, in pixels
HEIGHT, GAP = 240, 6  # of the strips, in pixels
TINT = torch.tensor((1.0, 0.25, 0.1))[:, None, None]  # as in Coarsen Mask's preview
WARM = torch.tensor((1.0, 0.8, 0.4))[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--subjects", type=Path, help="folder of DreamBooth's subjects, with NN.mask.png beside NN.jpg")
    parser.add_argument("--backgrounds", type=Path, nargs="+", default=[], help="folders of photos")
    options = parser.parse_args()
    pipeline = ImprintPipeline.from_checkpoint()
    pipeline.set_progress_bar_config(disable=True)
    if options.subjects:
        placed_sheet(pipeline, options.subjects, options.backgrounds)
        return
    readme_pictures(pipeline)
    help_pictures(pipeline)
    save(README_FOLDER / "large-holes.jpg", *large_holes(pipeline), height=400)


def readme_pictures(pipeline: ImprintPipeline) -> None:
    """What `imprint demo` makes, and objects put into boxes; each seed is 0, no result was chosen among several."""
    photo, room, box = (Image.open(SAMPLES / name) for name in ("duck.webp", "room.jpg", "box.png"))
    save(README_FOLDER / "demo.jpg", composited(pipeline, photo, None, room, box, DEMO_LIGHT))
    rows = [composited(pipeline, *task, light_from) for *task, light_from in map(result_task, RESULTS)]
    save(README_FOLDER / "results.jpg", rows[0] + rows[1], rows[2] + rows[3])


def result_task(result: tuple) -> tuple[Image.Image, Image.Image | None, Image.Image, Image.Image, str]:
    """One of `RESULTS`: the photo, its mask if it is no cut-out, the background, its box, the light's direction."""
    name, background, box, light_from = result
    photo, scene = Image.open(SAMPLES / name), Image.open(SAMPLES / background)
    mask = None
    if name == PAINTED_OVER:
        mask, photo = ImageOps.invert(photo.getchannel("A")), photo.convert("RGB")
    hole = Image.new("L", scene.size)
    hole.paste(255, box)
    return photo, mask, scene, hole, light_from


def placed_sheet(pipeline: ImprintPipeline, subjects: Path, folders: list[Path]) -> None:
    """docs/placed.jpg: all of placed.json at 100 %, cut out around the object."""
    tiles = []
    for task in json.loads((README_FOLDER / "placed.json").read_text(encoding="utf-8")):
        photo = subjects / f"{task['object']}.jpg"
        (file,) = [each for folder in folders for each in folder.rglob(f"*{task['background']}.jpg")]
        scene = Image.open(file).convert("RGB")
        box = tuple(round(edge * side) for edge, side in zip(task["box"], scene.size * 2))
        hole = Image.new("L", scene.size)
        hole.paste(255, box)
        mask, light_from = Image.open(photo.with_suffix(".mask.png")), task["light_from"]
        (made,) = pipeline(Image.open(photo), mask, scene, hole, light_from=light_from).images
        corner = [
            min(max(0, (box[axis] + box[axis + 2] - TILE[axis]) // 2), max(0, scene.size[axis] - TILE[axis]))
            for axis in (0, 1)
        ]
        tiles.append(made.crop((*corner, *(start + side for start, side in zip(corner, TILE)))))
    rows = [tiles[start : start + 4] for start in range(0, len(tiles), 4)]
    sheet(rows, TILE[1], gap=0).save(README_FOLDER / "placed.jpg", quality=88)


def large_holes(pipeline: ImprintPipeline) -> list[list[torch.Tensor]]:
    """Objects in enlarged places, each at all of `SIDES`: the object, then the hole."""
    rows = []
    for name, mask, background, box in LARGE:
        photo, scene = Image.open(SAMPLES / name), Image.open(SAMPLES / background)
        scene = scene.resize((scene.width * ENLARGED, scene.height * ENLARGED), Image.BICUBIC)
        mask, hole = mask and Image.open(SAMPLES / mask), Image.new("L", scene.size)
        hole.paste(255, tuple(edge * ENLARGED for edge in box))
        row = [seen_object(pipeline, photo, mask)]
        place = Hole.find(mask_to_tensor(hole)[0], 400, context=1.15).placement
        for side, detail in SIDES:
            generator = torch.Generator().manual_seed(0)
            settings = {"fit": "fill", "resolution": side, "detail": detail}  # the model's own drawing
            (result,) = pipeline(photo, mask, scene, hole, generator=generator, **settings).images
            row.append(place.extract(image_to_tensor(result)))
        rows.append(row)
    return rows


def composited(
    pipeline: ImprintPipeline,
    photo: Image.Image,
    mask: Image.Image | None,
    background: Image.Image,
    hole: Image.Image,
    light_from: str,
) -> list[torch.Tensor]:
    """The cut-out that the encoder sees, the background with its hole tinted, and the composite."""
    generator = torch.Generator().manual_seed(0)
    (result,) = pipeline(photo, mask, background, hole, generator=generator, light_from=light_from).images
    cutout = seen_object(pipeline, photo, mask)
    return [cutout, over(image_to_tensor(background), mask_to_tensor(hole)), image_to_tensor(result)]


def seen_object(pipeline: ImprintPipeline, photo: Image.Image, mask: Image.Image | None) -> torch.Tensor:
    """The cut-out that the encoder sees."""
    return ObjectViews.of(photo, mask).prepared(pipeline.model_config.encoder)[1]


def placing_pictures(pipeline: ImprintPipeline) -> None:
    """A box, and the paste in it; then what each strength does to it."""
    photo, mask, scene, hole, light_from = result_task(RESULTS[1])
    area = mask_to_tensor(hole)

    def put(**settings: Any) -> torch.Tensor:
        settings = {"light_from": light_from, **settings}
        return around(pipeline(photo, mask, scene, hole, output_type="pt", **settings).images, area)

    save(
        HELP_FOLDER / "ImprintPlaceObject.jpg",
        [around(over(image_to_tensor(scene), area), area), put(light=0, shadow=0)],
    )
    for name, values in STRENGTHS.items():
        save(HELP_FOLDER / f"ImprintRelight-{name}.jpg", [put(**{name: value}) for value in values])


def help_pictures(pipeline: ImprintPipeline) -> None:
    placing_pictures(pipeline)
    photo, painted = Image.open(SAMPLES / "sloth.webp"), Image.open(SAMPLES / "painted.webp")
    background, drawn = (
        image_to_tensor(painted.convert("RGB")),
        mask_to_tensor(ImageOps.invert(painted.getchannel("A"))),
    )
    config = pipeline.model_config

    views = ObjectViews.of(photo)
    (view,), (alpha,) = views.pictures, views.masks
    on_white = torch.lerp(torch.ones_like(view), view, alpha[:, None])
    _, cutout = views.prepared(config.encoder)
    save(HELP_FOLDER / "ImprintIDEncoder.jpg", [on_white, mask_picture(1 - alpha), cutout])

    levels = [coarsen(drawn, level) for level in LEVELS]
    roomy = coarsen(drawn, "fine", shadow_room=int(drawn.amax(2).sum()) // 5)
    save(
        HELP_FOLDER / "ImprintMaskCoarsener.jpg",
        [around(over(background, mask), levels[-1]) for mask in [drawn, *levels[1:], roomy]],
    )

    scene = pipeline.prepare(photo, None, background, drawn)
    crop, noise = scene.crop, torch.randn(scene.latents.shape, generator=torch.Generator().manual_seed(7))

    def sampled(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        context = pipeline.adapter.scale(scene.context, strength)
        return pipeline.denoise(context, scene.latents, scene.hole, noise)

    with torch.no_grad():
        strengths = {strength: sampled(strength) for strength in (0.0, 0.5, 1.0, 1.5)}
        pictures = {each: decode(pipeline.vae, latents, config.latent) for each, (latents, _) in strengths.items()}
    made, pasted = pictures[1.0], background.clone()
    crop.write(pasted, made)

    def finished(detail: float = 1.0, shadow: float = 1.0, light_from: str = "left") -> torch.Tensor:
        settings = Finish(feather_pixels=4, detail=detail, shadow=shadow, light_from=light_from)
        return pipeline.finish(scene, *strengths[1.0], settings, output_type="pt").images

    if config.matte:
        save(
            HELP_FOLDER / "ImprintRestoreDetail.jpg",
            [on_white, *(around(finished(detail), levels[-1]) for detail in (0.0, 1.0))],
        )
    shadows = finished(shadow=0.0), finished(light_from="auto"), finished()
    save(HELP_FOLDER / "ImprintCastShadow.jpg", [around(each, levels[-1]) for each in shadows])
    save(HELP_FOLDER / "ImprintLoadCheckpoint.jpg", [on_white, over(background, drawn), finished()])
    save(HELP_FOLDER / "ImprintContentAdapter.jpg", list(pictures.values()))
    save(HELP_FOLDER / "ImprintCompositeSampler.jpg", [over(background, drawn), crop.painted, made, pasted])

    # A tinted picture, as of a model that has shifted the colours: what the edge's width and method do to it.
    shifted, here = background.clone(), (slice(None), slice(None), *crop.placement.area)
    shifted[here] = torch.lerp(pasted[here], WARM.expand_as(pasted[here]), 0.15)
    soft = {method: blend_pictures(background, shifted, drawn, 0, 24, method) for method in ("feather", "multiband")}
    save(
        HELP_FOLDER / "ImprintBackgroundBlend.jpg",
        [around(picture, levels[-1]) for picture in (blend_pictures(background, shifted, drawn), *soft.values())],
    )
    matched = [match_colour(shifted, background, drawn, 16, strength) for strength in (0.0, 0.5, 1.0)]
    save(
        HELP_FOLDER / "ImprintBackgroundBlend-colour_match.jpg",
        [around(blend_pictures(background, each, drawn), levels[-1]) for each in matched],
    )


def over(background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.lerp(background, TINT.expand_as(background), 0.5 * mask[:, None])


def around(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The square of a picture around a mask."""
    hole = Hole.find(mask[0], HEIGHT, context=1.5)
    return hole.placement.extract(picture)


def mask_picture(mask: torch.Tensor) -> torch.Tensor:
    return mask[:, None].expand(-1, 3, -1, -1)


def save(path: Path, *rows: list[torch.Tensor], height: int = HEIGHT) -> None:
    """Rows of pictures of one height, from left to right."""
    made = sheet([[tensor_to_image(picture[0]) for picture in row] for row in rows], height, GAP)
    with replacing(path) as temporary:
        made.save(temporary, "JPEG", quality=80)


if __name__ == "__main__":
    main()
