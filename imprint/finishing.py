"""The phases after the drawing: detail, shadow and blending; also for placed objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from PIL import Image

from .blending import Finish
from .crop import Drawn, inner, paste_all, union
from .detail import restore_detail
from .errors import PRECISION, require_finite
from .hole import Placement
from .images import Picture, picture_part, picture_size
from .light import Lit, relight
from .lightnet import LightNet, at_full_speed, load_light
from .matte import matte_pixels
from .phases import Phases, Prepared
from .place import PlacedObject
from .placed import light_placed
from .vae import decode

_USUAL = Finish()


@dataclass
class ImprintPipelineOutput(BaseOutput):
    """images: `num_results` Pillow pictures, or a (B, 3, H, W) tensor in [0, 1] for `output_type="pt"`, or the final
    (B, C, h, w) latents for `"latent"`. placement: the square of the background that the model worked in. alpha,
    shadow: the maps used for the composite, in that square, each (B, resolution, resolution) in [0, 1], alpha with the
    outline refined by detail; None without a matte. lit: for a placed object, its layers of shadow, object and light,
    in `lit.area` of the background; None for a drawn one.
    """

    images: list[Image.Image] | torch.Tensor
    placement: Placement
    alpha: torch.Tensor | None = None
    shadow: torch.Tensor | None = None
    lit: Lit | None = None


class Finishing(Phases):
    """The phases after the drawing: `finish`, or `finish_placed` for an object that was not drawn."""

    @torch.no_grad()
    def finish(
        self,
        scene: Prepared,
        latents: torch.Tensor,
        logits: torch.Tensor,
        settings: Finish = _USUAL,
        output_type: str = "pil",
    ) -> ImprintPipelineOutput:
        """The composites, from the scene that `prepare` made and the latents and logits that `denoise` returned.

        output_type: as in `__call__`. Raises `ImprintError` if a decoded picture holds values that are not finite.
        """
        config, crop = self.model_config, scene.crop
        if output_type == "latent":
            return ImprintPipelineOutput(latents, crop.placement)
        device = crop.frame.device
        drawings = decode(self.vae, latents.to(self.vae.dtype), config.latent).float().to(device)
        maps = [each.to(device) for each in matte_pixels(logits, scene.hole, config)] if config.matte else []
        require_finite(drawings, "the decoded picture", PRECISION)
        if settings.colour_match:
            drawings = crop.matched(drawings, settings.colour_match)
        alpha = crop.put_back_maps(maps[0]) if maps else None
        drawn = self._drawn(scene, drawings, alpha, settings)
        frames, lost, area = self._shaded(scene, drawn, settings)
        outwards = crop.feather if settings.feather_pixels is None else settings.feather_pixels
        here = (..., *inner(area, crop.area))
        edge = settings.feather_inwards, outwards, settings.blend_method
        frames[here] = drawn.over(frames[here], scene.blend_mask, *edge)
        images = paste_all(scene.background, frames, area, output_type)
        if drawn.alpha is None:
            return ImprintPipelineOutput(images, crop.placement)
        # Detail changes alpha: the one that was used is returned, resampled to the square if necessary.
        alpha = maps[0] if torch.equal(drawn.alpha, alpha) else crop.taken(drawn.alpha)
        shadow = crop.taken(lost[here][:, 0])
        return ImprintPipelineOutput(images, crop.placement, alpha.cpu(), shadow.cpu())

    @staticmethod
    def _drawn(scene: Prepared, drawings: torch.Tensor, alpha: torch.Tensor | None, settings: Finish) -> Drawn:
        """What was drawn, with the object's own detail.

        drawings: of the square (B, 3, R, R); alpha: theirs in the frame (B, h, w), if the model gives one.
        """
        picture = scene.crop.put_back(drawings)
        if alpha is None:
            return Drawn(picture)
        picture, alpha, _ = restore_detail(picture, alpha, scene.views, settings.detail)
        for values in (picture, alpha):
            require_finite(values, "the picture with the object's own detail", "switch detail off (0) for this object")
        return Drawn(picture, alpha if settings.matte else None)

    def _shaded(
        self, scene: Prepared, drawn: Drawn, settings: Finish
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[slice, slice]]:
        """The part of the background (B, 3, h, w) that may change, with the drawn objects' shadows; the share of light
        that it lost (B, 1, h, w); and its rows and columns.
        """
        crop, lit = scene.crop, []
        if drawn.alpha is not None and settings.shadow:
            lit = [self._thrown(scene, *each, settings) for each in zip(drawn.picture, drawn.alpha)]
        area = union(crop.area, *(each.area for each in lit if each))
        frames = picture_part(scene.background, area, crop.frame.device).repeat(len(drawn.picture), 1, 1, 1)
        lost = torch.zeros_like(frames[:, :1])
        for frame, share, each in zip(frames, lost, lit):
            if each:
                here = (slice(None), *inner(area, each.area))
                frame[here], share[here] = each.ground()[0], each.shadow[0]
        return frames, lost, area

    def _thrown(self, scene: Prepared, picture: torch.Tensor, alpha: torch.Tensor, settings: Finish) -> Lit | None:
        """The shadow of an object that was drawn, (3, h, w) with alpha (h, w) in the crop's frame; None without one."""
        if not bool(alpha.any()):
            return None
        rows, columns = scene.crop.area
        placed = PlacedObject.from_layer(picture, alpha, (rows.start, columns.start), picture_size(scene.background))
        lit = relight(
            self._light_net(), scene.background, placed, 0.0, settings.shadow, settings.softness, settings.light_from
        )
        if scene.whole_blend_mask is None:
            return lit
        return lit.through(scene.whole_blend_mask[(slice(None), *lit.area)][None].to(lit.shadow))

    def _light_net(self) -> LightNet:
        """The light network, by default the shipped one; loaded on first use."""
        if self.light is None:
            self.register_modules(light=load_light().to(self.device))
        return at_full_speed(self.light)

    def finish_placed(
        self,
        background: Picture,
        placed: PlacedObject,
        light: float = 1.0,
        shadow: float = 1.0,
        softness: float = 0.0,
        light_from: str | float = "auto",
        blend_mask: Picture | None = None,
        num_results: int = 1,
        output_type: str = "pil",
    ) -> ImprintPipelineOutput:
        """Composites of a placed object, relit and with its shadow.

        placed: as `place_object` gives it, of the background's size. light, shadow, softness, light_from: see
        `relight`. blend_mask: Pillow or (1, H, W) in [0, 1], how much of object and shadow is visible; by default all.
        All results are identical, since nothing is random. output_type: "pil" or "pt". Raises `ImprintError` for others
        and for sizes that differ.
        """
        lit = light, shadow, softness, light_from
        made = light_placed(self._light_net(), background, placed, *lit, blend_mask, num_results, output_type)
        return ImprintPipelineOutput(*made)
