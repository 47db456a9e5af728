"""The content adapter: from the ID encoder's tokens to the context that the UNet's cross-attention reads.

ObjectStitch (arXiv 2212.00932, section 3.2) as IMPRINT uses it. Layers come from an `operations` namespace: `torch.nn`
when training, `comfy.ops.manual_cast` in ComfyUI. Legend: B objects, V views of each, N tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .config import AdapterConfig
from .errors import require_number


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, operations: Any, **factory: Any):
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, **factory)
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.out = operations.Linear(width, width, **factory)
        self.norm2 = operations.LayerNorm(width, **factory)
        self.fc1 = operations.Linear(width, 4 * width, **factory)
        self.fc2 = operations.Linear(4 * width, width, **factory)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x_BNC)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BNC = x_BNC + self.out(attention)
        return x_BNC + self.fc2(F.gelu(self.fc1(self.norm2(x_BNC))))


class ContentAdapter(nn.Module):
    """Kind `tokens` keeps all tokens; `conv` first mixes them into fewer; `linear` is only the projection.

    Each view is adapted separately.
    """

    def __init__(self, config: AdapterConfig, operations: Any = nn, **factory: Any):
        super().__init__()
        self.config = config
        width = config.input_width
        if config.kind == "conv":
            self.reduce = operations.Conv1d(config.input_tokens, config.output_tokens, 1, **factory)
        self.blocks = nn.ModuleList(Block(width, config.heads, operations, **factory) for _ in range(config.layers))
        self.norm = nn.Identity() if config.kind == "linear" else operations.LayerNorm(width, **factory)
        self.project = operations.Linear(width, config.output_width, **factory)
        if config.kind != "linear":
            self.null_embedding = nn.Parameter(torch.zeros(1, 1, config.output_width, **factory))

    @property
    def dtype(self) -> torch.dtype:
        return self.project.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.project.weight.device

    def forward(self, tokens_BVNC: torch.Tensor, null: bool = False) -> torch.Tensor:
        """(B, V, N, C) -> (B, V * N', context width): the views' tokens, concatenated.

        null: the given tensor is a context, and the result its `null_context`.
        """
        if null:
            return self.null_embedding.to(tokens_BVNC).expand_as(tokens_BVNC)
        x_BNC = tokens_BVNC.flatten(0, 1)
        if self.config.kind == "conv":
            x_BNC = self.reduce(x_BNC)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return self.project(self.norm(x_BNC)).unflatten(0, tokens_BVNC.shape[:2]).flatten(1, 2)

    def null_context(self, context: torch.Tensor) -> torch.Tensor:
        """The context without an object, in the given one's shape: the learned null embedding at every token.

        A `linear` adapter has none: use the context of `preprocess.black_picture` instead. This calls the module, so
        that hooks that move its weights (accelerate's offloading, FSDP) run.
        """
        return self(context, null=True)

    def scale(self, context: torch.Tensor, strength: float, null: torch.Tensor | None = None) -> torch.Tensor:
        """Interpolate from no object (0) to the object (1); above 1 it is exaggerated.

        null: the context without an object, by default `null_context`. Raises `ImprintError` unless strength is a
        number.
        """
        require_number("strength", strength)
        return torch.lerp(self.null_context(context) if null is None else null, context, strength)
