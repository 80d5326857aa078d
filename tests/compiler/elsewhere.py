"""Tensors that say they are on a GPU, for tests without one."""

from __future__ import annotations

import torch


class Elsewhere(torch.Tensor):
    """A tensor in memory of the CPU whose `device` is `place`."""

    place = torch.device("cuda", 0)

    @property
    def device(self) -> torch.device:
        return self.place

    def detach(self) -> torch.Tensor:
        return self

    def cpu(self) -> torch.Tensor:
        return plain(self).clone()


def there(value: torch.Tensor, index: int | None = 0) -> torch.Tensor:
    """The same memory as a tensor of that GPU; None: without a number."""
    made = value.as_subclass(Elsewhere)
    made.place = torch.device("cuda") if index is None else torch.device("cuda", index)
    return made


def plain(value: torch.Tensor) -> torch.Tensor:
    """The same memory on the CPU."""
    return value.as_subclass(torch.Tensor)
