"""One way to run a model that is compared with others."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Arm:
    """`prepare(model, inputs)` gives a call without arguments; `own` marks infopt's arms, the rest
    are peers.
    """

    name: str
    dtype: str
    prepare: Callable[[nn.Module, tuple[Tensor, ...]], Call]
    needs: str | None = None
    own: bool = False

    @property
    def available(self) -> bool:
        """Whether the library this arm needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None
