"""Stable Diffusion's and SDXL's text encoders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from imprint.errors import ImprintError

from .pretrained import pretrained


class TextEncoder:
    """Captions -> the tokens of a UNet's context, padded as by its authors.

    Stable Diffusion's: its CLIP's tokens after the last LayerNorm. SDXL's: those of two CLIPs side by side, each before
    its last layer (arXiv 2307.01952, section 2.1).
    """

    def __init__(self, folder: str | os.PathLike, width: int, device: torch.device):
        """folder: SD 1.5's, SDXL's, or one with the text model and its tokenizer; width: of the UNet's context.

        Raises `ImprintError` for a folder without them, or with another width.
        """
        folder = Path(folder)
        self.is_sdxl = (folder / "text_encoder_2").is_dir()
        homes = [(folder / f"text_encoder{number}", folder / f"tokenizer{number}") for number in ("", "_2")]
        if not self.is_sdxl:
            homes = [tuple(home if home.is_dir() else folder for home in homes[0])]
        self.parts = [_read(*pair) for pair in homes]
        for model, _ in self.parts:
            model.to(device)
        found = sum(model.config.hidden_size for model, _ in self.parts)
        if found != width:
            raise ImprintError(
                f"{homes[0][0]} gives tokens of width {found}, but the UNet takes {width}; give "
                "the text encoder that the UNet was trained with"
            )
        self.nothing = self([""])
        """(1, M, W): the empty caption's. SDXL's are zeros, as diffusers has it."""
        if self.is_sdxl:
            self.nothing = torch.zeros_like(self.nothing)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        """-> (B, M, W)."""
        return torch.cat([self._tokens(captions, *part) for part in self.parts], 2)

    def _tokens(self, captions: list[str], model: Any, tokenizer: Any) -> torch.Tensor:
        length = model.config.max_position_embeddings
        ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        made = model(ids.input_ids.to(model.device), output_hidden_states=self.is_sdxl)
        return made.hidden_states[-2] if self.is_sdxl else made.last_hidden_state


def _read(home: Path, words: Path) -> tuple[Any, Any]:
    """A text model and its tokenizer."""
    from transformers import CLIPTextModel, CLIPTokenizer

    model = pretrained(CLIPTextModel, home).eval().requires_grad_(False)
    try:
        return model, CLIPTokenizer.from_pretrained(words, local_files_only=True)
    except Exception as error:  # the library raises many kinds of error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ImprintError(f"{words} cannot be read as a CLIP tokenizer ({reason}); download it again") from error
