"""Where the next tokens of a batch go, kept where the program runs: a step waits for nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Inputs of a step's program beside its tokens, all int64 on the program's device.

    starts, positions [B]: as those of a State; ones [B], zeros [B, 1]: one new token of each
    sequence, whose logits are wanted
    """

    starts: Tensor
    positions: Tensor
    ones: Tensor
    zeros: Tensor

    @classmethod
    def of(cls, starts: Tensor, positions: Tensor, where: torch.device) -> Places:
        starts, positions = starts.to(where), positions.to(where)
        return cls(starts, positions, torch.ones_like(starts), torch.zeros_like(starts)[:, None])

    def after(self, starts: Tensor, positions: Tensor) -> Places:
        """One token later; starts, positions: the same on the CPU, where they are known."""
        if self.starts.device != starts.device:  # nothing is brought over
            starts, positions = self.starts + 1, self.positions + 1
        return replace(self, starts=starts, positions=positions)
