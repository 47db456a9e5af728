"""The object as given: one or several pictures of it, each with a mask, validated once for all users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from .config import EncoderConfig
from .errors import ImprintError, require_masks, require_same_size
from .images import Picture, as_picture
from .mask_reading import alpha_to_tensor, as_mask
from .preprocess import prepare_object


@dataclass(frozen=True)
class ObjectViews:
    """Views of one object; they may differ in size. Raises `ImprintError` if pictures and masks do not match."""

    pictures: tuple[torch.Tensor, ...]
    """Each (1, 3, H, W) in [0, 1]."""
    masks: tuple[torch.Tensor, ...]
    """One for each picture, (1, H, W) in [0, 1] with 1 = object; soft edges count."""
    corner: tuple[int, int] | None = None
    """Row and column of the first picture's upper left pixel in the background, for an object that is placed there."""

    def __post_init__(self) -> None:
        require_masks(len(self.pictures), len(self.masks))
        for index, (picture, mask) in enumerate(zip(self.pictures, self.masks), 1):
            name = "the object's picture" if len(self) == 1 else f"view {index} of the object"
            require_same_size(name, picture.shape[2:], "its mask", mask.shape[1:])

    @classmethod
    def of(
        cls,
        images: Picture | Sequence[Picture],
        masks: Picture | Sequence[Picture] | None = None,
        profile: bytes | None = None,
    ) -> ObjectViews:
        """From Pillow pictures or tensors, one or a list of them.

        masks: one per picture, or None to use each picture's alpha. profile: the background's ICC profile, to which
        Pillow pictures are converted; None for sRGB. Raises `ImprintError` for differing counts or sizes, and for a
        picture with neither mask nor alpha.
        """
        pictures = tuple(as_picture(image, profile) for image in _listed(images))
        return cls(pictures, read_masks(images, masks))

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device | str) -> ObjectViews:
        """The same, on a device."""
        pictures, masks = (tuple(each.to(device) for each in kept) for kept in (self.pictures, self.masks))
        return replace(self, pictures=pictures, masks=masks)

    def prepared(self, config: EncoderConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's input, normalised, and the same cut-outs in [0, 1], both (V, 3, S, S).

        Raises `ImprintError` for more views than the model takes, an empty mask, or values that are not finite.
        """
        if len(self) > 1 and not config.several_views:
            raise ImprintError(
                f"got {len(self)} views of the object, but this checkpoint takes one picture; give the best one"
            )
        pixels, cutouts = zip(*(prepare_object(*view, config) for view in zip(self.pictures, self.masks)))
        return torch.cat(pixels), torch.cat(cutouts)


def read_masks(
    images: Picture | Sequence[Picture], masks: Picture | Sequence[Picture] | None
) -> tuple[torch.Tensor, ...]:
    """The masks of `ObjectViews.of` alone, each (1, H, W); arguments and errors as there."""
    images = _listed(images)
    masks = [None] * len(images) if masks is None else _listed(masks)
    require_masks(len(images), len(masks))
    return tuple(_alpha(image) if mask is None else as_mask(mask) for image, mask in zip(images, masks))


def _listed(value: Picture | Sequence[Picture]) -> list[Picture]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _alpha(image: Picture) -> torch.Tensor:
    alpha = alpha_to_tensor(image) if isinstance(image, Image.Image) else None
    if alpha is None:
        raise ImprintError(
            "the object's picture has no mask and no transparency; give its mask, white on the object (the command "
            "line's --cutout auto makes one)"
        )
    return alpha
