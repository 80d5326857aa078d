"""Memory for intermediates: aligned and whole, whatever its size."""

import mmap

import pytest
import torch

from infopt.runtime import arena

SIZES = (1, 64, 4097, arena.HUGE_PAGE - 1, arena.HUGE_PAGE, 3 * arena.HUGE_PAGE + 100)


@pytest.mark.parametrize("size", SIZES)
def test_memory_is_aligned_and_can_be_written(size: int) -> None:
    memory = arena.allocate(size, torch.device("cpu"))
    assert memory.dtype == torch.uint8 and memory.shape == (size,)
    assert memory.data_ptr() % arena.ALIGNMENT == 0
    memory.fill_(7)
    assert int(memory[-1]) == 7


@pytest.mark.parametrize("advice", [None, 10**6])
def test_where_there_are_no_huge_pages(advice: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_ADVICE", advice)  # not known; refused by the kernel
    memory = arena.allocate(arena.HUGE_PAGE, torch.device("cpu"))
    assert memory.data_ptr() % arena.ALIGNMENT == 0 and memory.fill_(1).sum() == arena.HUGE_PAGE


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no such advice here")
def test_large_memory_begins_with_a_huge_page() -> None:
    memory = arena.allocate(arena.HUGE_PAGE, torch.device("cpu"))
    assert memory.data_ptr() % arena.HUGE_PAGE == 0
