"""Random numbers from one generator."""

from __future__ import annotations

import torch


class Draw:
    """Random numbers from one generator, on its device."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """From `low` to below `high`."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device) * (high - low) + low

    def normal(self, shape: int | tuple[int, ...]) -> torch.Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def integers(self, high: int, count: int) -> torch.Tensor:
        """(count,) int64 from 0 to below `high`."""
        return torch.randint(high, (count,), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float | torch.Tensor, count: int) -> torch.Tensor:
        """(count,) bool: True with this probability, one for all or (count,)."""
        return self.uniform(count) < probability

    def categorical(self, weights: tuple[float, ...], count: int) -> torch.Tensor:
        """(count,) int64: indices of weights, in proportion to them."""
        table = torch.tensor(weights, device=self.generator.device).expand(count, -1)
        return torch.multinomial(table, 1, generator=self.generator)[:, 0]

    def permutation(self, count: int) -> torch.Tensor:
        """(count,) int64: each from 0 to below `count` once."""
        return torch.randperm(count, generator=self.generator, device=self.generator.device)
