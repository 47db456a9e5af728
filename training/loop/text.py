"""Stable Diffusion's text encoder."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from imprint.errors import ImprintError

from .pretrained import pretrained


class TextEncoder:
    """Stable Diffusion's: captions -> its CLIP's tokens after the last LayerNorm, padded as there."""

    def __init__(self, folder: str | os.PathLike, width: int, device: torch.device):
        """folder: SD 1.5's, or one with the text model and its tokenizer; width: of the UNet's context.

        Raises `ImprintError` for a folder without them, or of another width.
        """
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(folder)
        homes = [folder / part if (folder / part).is_dir() else folder for part in ("text_encoder", "tokenizer")]
        self.model = pretrained(CLIPTextModel, homes[0]).eval().requires_grad_(False).to(device)
        if self.model.config.hidden_size != width:
            raise ImprintError(
                f"{homes[0]} gives tokens of width {self.model.config.hidden_size}, but the UNet takes {width}; give "
                "the text encoder that the UNet was trained with"
            )
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(homes[1], local_files_only=True)
        except Exception as error:  # the library fails in many ways
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ImprintError(
                f"{homes[1]} cannot be read as a CLIP tokenizer ({reason}); download it again"
            ) from error
        self.nothing = self([""])
        """(1, M, W): the empty caption's."""

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        """-> (B, M, W)."""
        length = self.model.config.max_position_embeddings
        ids = self.tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.model(ids.input_ids.to(self.model.device)).last_hidden_state
