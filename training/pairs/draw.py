"""Random numbers from one generator."""

from __future__ import annotations

import torch


class Draw:
    """Random numbers from one generator, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device) * (high - low) + low

    def normal(self, shape: int | tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def integers(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float | torch.Tensor, count: int) -> torch.Tensor:
        return self.uniform(count) < probability

    def categorical(self, weights: tuple[float, ...], count: int) -> torch.Tensor:
        table = torch.tensor(weights, device=self.generator.device).expand(count, -1)
        return torch.multinomial(table, 1, generator=self.generator)[:, 0]

    def permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.generator, device=self.generator.device)
