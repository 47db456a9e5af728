"""The border between ComfyUI's tensors and `imprint`'s: BHWC becomes BCHW here and nowhere else.

ComfyUI: IMAGE (B, H, W, 3 or 4) in [0, 1]; MASK (H, W) or (B, H, W). `imprint`: (B, 3, H, W) and (B, H, W), float32.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..imprint.errors import ImprintError
from ..imprint.images import in_range, require_range

PRECISION = "its weights are broken, or too large for this precision: start ComfyUI with --force-fp32"
"""What to do if a model gives values that are not finite; for `require_finite`."""


def to_bchw(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """IMAGE -> colours (B, 3, H, W) and alpha (B, 1, H, W), or None if it has none."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ImprintError(
            f"the IMAGE has shape {tuple(image.shape)}; expected (batch, height, width, 3 or 4 channels)"
        )
    if not image.numel():
        raise ImprintError(f"the IMAGE has no pixels (shape {tuple(image.shape)}); connect a picture")
    require_range(image, "the IMAGE")
    image = image.float().movedim(-1, 1)
    if image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    return image[:, :3], image[:, 3:] if image.shape[1] == 4 else None


def to_bhwc(colours: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
    """Colours (B, 3, H, W), and the alpha of `to_bchw`, one per picture or one for all -> IMAGE."""
    if alpha is not None:
        colours = torch.cat([colours, alpha.expand(len(colours), -1, -1, -1)], 1)
    return colours.movedim(1, -1).contiguous()


def copy_image(image: torch.Tensor, count: int) -> torch.Tensor:
    """A writable copy of an IMAGE, float32 with 3 or 4 channels; a single picture is repeated `count` times."""
    channels = max(3, image.shape[-1])
    return image.float().expand(count, -1, -1, channels).clone(memory_format=torch.contiguous_format)


def fit_mask(mask: torch.Tensor, images: torch.Tensor, name: str) -> torch.Tensor:
    """MASK -> (B, H, W) in [0, 1] beside the images (B, 3, H, W), resized to them as ComfyUI's own nodes do.

    name: the mask's name in error messages.
    """
    size = tuple(images.shape[2:])
    mask = listed_masks(mask, name, size).to(images.device)
    if tuple(mask.shape[1:]) != size:
        mask = F.interpolate(mask[:, None], size, mode="bilinear")[:, 0]
    return mask


def listed_masks(mask: torch.Tensor, name: str, size: tuple[int, int] | None = None) -> torch.Tensor:
    """MASK of any accepted shape -> (B, H, W) in [0, 1]. size: the picture's, if known."""
    if mask.ndim not in (2, 3) and not (mask.ndim == 4 and mask.shape[1] == 1):
        raise ImprintError(
            f"the {name} has shape {tuple(mask.shape)}; expected (height, width) or (batch, height, width)"
        )
    if not mask.numel():
        raise ImprintError(f"the {name} has no pixels (shape {tuple(mask.shape)}); connect a MASK of a picture")
    mask = mask.float() if mask.dtype == torch.bool else mask
    mask = in_range(mask, f"the {name}").float().reshape(-1, *mask.shape[-2:])
    if is_placeholder(mask, size):
        raise ImprintError(
            f"the {name} is the empty 64x64 mask that Load Image gives for a picture without transparency; "
            "paint one in the mask editor, or connect another MASK, such as that of Remove Background"
        )
    return mask


def is_placeholder(mask: torch.Tensor, size: tuple[int, int] | None) -> bool:
    """Whether this is Load Image's empty mask for a picture of `size` on which nothing was painted."""
    return tuple(mask.shape[-2:]) == (64, 64) != size and not bool(mask.any())


def broadcast(**batches: torch.Tensor) -> list[torch.Tensor]:
    """Expand tensors to equal batch sizes, on the first one's device: with --gpu-only not all are on the GPU.

    A batch of one is repeated; any other difference raises `ImprintError`.
    """
    count, device = max(len(batch) for batch in batches.values()), next(iter(batches.values())).device
    if any(len(batch) not in (1, count) for batch in batches.values()):
        counts = ", ".join(f"{len(batch)} of {name}" for name, batch in batches.items())
        raise ImprintError(f"the batches do not fit together: {counts}; give one, or equally many of each")
    return [batch.to(device).expand(count, *batch.shape[1:]) for batch in batches.values()]


def lazy_zeros(*shape: int) -> torch.Tensor:
    """float32 zeros that take memory only where they are written to, like numpy's and unlike torch's."""
    return torch.from_numpy(np.zeros(shape, np.float32))
