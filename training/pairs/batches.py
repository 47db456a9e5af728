"""Batches of pairs, before and after the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Pairs:
    """Pictures of pairs, before the autoencoder."""

    reference: torch.Tensor
    """(B, 3, S, S) the cut-out of the reference view in [0, 1]."""
    target: torch.Tensor
    """(B, 3, R, R) in [0, 1]."""
    background: torch.Tensor
    """(B, 3, R, R) in [0, 1], with the hole painted grey."""
    hole: torch.Tensor
    """(B, 1, h, w) of 0 and 1, with h = w = R / 8."""
    matte: torch.Tensor
    """(B, 2 * matte**2, h, w) from `holes.matte_values`; -1: unknown."""
    text: torch.Tensor | None = None
    """(B, M, W) the text encoder's tokens of the caption, only for the adapter's warm-up."""

    def __getitem__(self, index: slice | torch.Tensor) -> Self:
        return type(self)(*(None if value is None else value[index] for value in vars(self).values()))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))


class Batch(Pairs):
    """The input of a training step. target, background: latents (B, C, h, w), as the UNet sees them. reference:
    (B, 3, S, S) uint8, or a frozen encoder's tokens (B, N, C).
    """
