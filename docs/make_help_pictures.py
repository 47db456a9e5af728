"""Makes the pictures of the nodes' help pages, web/docs/assets/*.jpg, with the shipped checkpoint and sample pictures.

    python docs/make_help_pictures.py

Run it again when the checkpoint or the arithmetic has changed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from imprint.blending import blend_pictures
from imprint.checkpoint import SHIPPED
from imprint.files import replacing
from imprint.images import alpha_to_tensor, image_to_tensor, mask_to_tensor, tensor_to_image
from imprint.masks import LEVELS, coarsen, latent_hole, paint_hole
from imprint.pipeline import ImprintPipeline
from imprint.placement import Hole
from imprint.preprocess import prepare_object
from imprint.unet import decode, encode

FOLDER = Path(__file__).parents[1] / "web" / "docs" / "assets"
HEIGHT, GAP = 240, 6  # of the strips, in pixels
TINT = torch.tensor((1.0, 0.25, 0.1))[:, None, None]  # as in Mask Coarsener's preview


def main() -> None:
    samples = SHIPPED.parent / "samples"
    photo, background = Image.open(samples / "object.png"), image_to_tensor(Image.open(samples / "background.png"))
    drawn = mask_to_tensor(Image.open(samples / "hole.png"))
    pipeline = ImprintPipeline.from_checkpoint()
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.model_config

    views, alpha = image_to_tensor(photo), alpha_to_tensor(photo)
    on_white = torch.lerp(torch.ones_like(views), views, alpha[:, None])
    _, cutout = prepare_object(views, alpha, config.encoder)
    save("ImprintIDEncoder", on_white, mask_picture(1 - alpha), cutout)

    levels = [coarsen(drawn, level) for level in LEVELS]
    roomy = coarsen(drawn, "fine", shadow_room=int(drawn.amax(2).sum()) // 5)
    save("ImprintMaskCoarsener", *(around(over(background, mask), levels[-1]) for mask in [drawn, *levels[1:], roomy]))

    hole = Hole.find(drawn[0], config.resolution, config.sampling.context, config.multiple, config.latent.downscale)
    place = hole.placement.within(hole.placement.area)
    here = (slice(None), slice(None), *hole.placement.area)
    latent_mask = latent_hole(place.extract_mask(hole.mask[None]), config.latent.downscale)
    scene = place.extract(background[here])
    painted = paint_hole(scene, latent_mask, config.hole_value)
    with torch.no_grad():
        context = pipeline.adapter(pipeline.encode_object(photo))
        clean = encode(pipeline.vae, painted, config.latent)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))

        def sampled(strength: float) -> torch.Tensor:
            return pipeline.denoise(pipeline.adapter.scale(context, strength), clean, latent_mask, noise)

        latents = {strength: sampled(strength) for strength in (0.0, 0.5, 1.0, 1.5)}
        strengths = {strength: decode(pipeline.vae, each, config.latent) for strength, each in latents.items()}
        maps = pipeline.predict_matte(context, clean, latent_mask, latents[1.0]) if config.matte else ()

    made = strengths[1.0]
    frame = background.clone()
    frame[here] = place.insert(background[here], made)
    matte = [hole.placement.insert(torch.zeros_like(drawn[:, None]), each[:, None])[:, 0] for each in maps]
    finished = blend_pictures(background, frame, drawn, outwards=4, matte=matte or None)
    save("ImprintLoadCheckpoint", on_white, over(background, drawn), finished)
    save("ImprintContentAdapter", *strengths.values())
    save("ImprintCompositeSampler", over(background, drawn), painted, made, frame)

    # A brighter picture, as of a model that has shifted the colours: what the edge's width and method do to it.
    shifted = background.clone()
    shifted[here] = (place.insert(background[here], made) * 0.9 + 0.1).clamp(0, 1)
    soft = {method: blend_pictures(background, shifted, drawn, 0, 24, method) for method in ("feather", "multiband")}
    save(
        "ImprintBackgroundBlend",
        *(around(picture, levels[-1]) for picture in (blend_pictures(background, shifted, drawn), *soft.values())),
    )


def over(background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.lerp(background, TINT.expand_as(background), 0.5 * mask[:, None])


def around(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The square of a picture around a mask."""
    hole = Hole.find(mask[0], HEIGHT, context=1.5)
    return hole.placement.extract(picture)


def mask_picture(mask: torch.Tensor) -> torch.Tensor:
    return mask[:, None].expand(-1, 3, -1, -1)


def save(name: str, *pictures: torch.Tensor) -> None:
    """A strip of pictures of one height, from left to right."""
    tiles = []
    for picture in pictures:
        image = tensor_to_image(picture[0])
        tiles.append(image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.LANCZOS))
    strip = Image.new("RGB", (sum(tile.width + GAP for tile in tiles) - GAP, HEIGHT), "white")
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + GAP
    with replacing(FOLDER / f"{name}.jpg") as temporary:
        strip.save(temporary, "JPEG", quality=88)


if __name__ == "__main__":
    main()
