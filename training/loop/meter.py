"""Accumulates what a run reports about its steps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator

BUCKETS = 10  # bins of timesteps, whose losses are logged separately


class Meter:
    """Sums of logged values, kept on the device so that no step waits for them."""

    def __init__(self, timesteps: int, device: torch.device):
        self.width = math.ceil(timesteps / BUCKETS)
        self.names = [
            f"{low:03d}-{min(low + self.width, timesteps) - 1:03d}" for low in range(0, timesteps, self.width)
        ]
        self.totals = torch.zeros(3, device=device)  # loss, matte's loss, gradient norm
        self.buckets = torch.zeros(2, len(self.names), device=device)  # sums and counts

    def add(
        self,
        error: torch.Tensor,
        matte: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        weight: float = 1.0,
    ) -> None:
        """Add a batch's losses, all (B,); weight: of the batch's mean in the step's."""
        error = error.detach()
        self.totals[0] += weight * error.mean()
        if matte is not None:
            self.totals[1] += weight * matte.detach().mean()
        if timesteps is not None:
            member = F.one_hot(timesteps // self.width, len(self.names)).to(error)
            self.buckets += torch.stack([error @ member, member.sum(0)])

    def add_gradient(self, norm: torch.Tensor, skipped: bool) -> None:
        """Add a step's gradient norm; skipped: fp16's loss scaler met an overflow and lowered its scale."""
        if not skipped:
            self.totals[2] += norm

    def read(self, accelerator: Accelerator, steps: int, batches: int) -> dict[str, float | dict[str, float]]:
        """Means over `steps` steps since the last call and over all processes; every process must call it."""
        totals, buckets = accelerator.reduce(self.totals, "mean"), accelerator.reduce(self.buckets, "sum")
        loss, matte, gradient = totals.tolist()
        means = {name: total / count for name, total, count in zip(self.names, *buckets.tolist()) if count}
        self.totals.zero_()
        self.buckets.zero_()
        values = {"loss": loss / steps / batches, "matte_loss": matte / steps / batches, "gradient": gradient / steps}
        return values | ({"loss_by_timestep": means} if means else {})
