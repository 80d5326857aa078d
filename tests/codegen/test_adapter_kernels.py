"""Low-rank adapters of rows against torch in float64, on every level this machine runs."""

import pytest
import torch

from tests.codegen.kernel_call import call_kernel, every_level
from tests.codegen.product_kernels import BF16, F16, F32, NAME, assert_close, guarded, random

pytestmark = every_level


def run(level, y, x, a, b, ranks, slots, each=1):
    """x [M, K] perhaps with a gap between rows, slots [M / each]."""
    (m, k), (count, room, n) = x.shape, b.shape
    out, check = guarded(m, n, dtype=x.dtype)
    out.copy_(y)
    numbers = [m, k, n, room, count, each, x.stride(0), n]
    scratch = 32 * ((k + 31) // 32 * 32 + 32 + (room + 15) // 16 * 16)
    tensors = [x, a, b, ranks, slots, out]
    name = f"infopt_adapter_linear_{NAME[x.dtype]}"
    call_kernel(level, name, tensors, numbers, m, scratch)
    check()
    return out


def expected(y, x, a, b, ranks, slots):
    found = y.double().clone()
    for row, slot in enumerate(slots.tolist()):
        if 0 <= slot < len(ranks):
            rank = int(ranks[slot])
            found[row] += x[row].double() @ a[slot, :rank].double().T @ b[slot, :rank].double()
    return found


def factors(count, room, k, n, dtype):
    return random(count, room, k, dtype=dtype), random(count, room, n, dtype=dtype) / room


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)
def test_rows_of_several_adapters(level, dtype):
    torch.manual_seed(5)
    ranks = torch.tensor([16, 3, 0, 40])
    for n, k in ((1, 1), (33, 17), (200, 64), (64, 1100)):
        a, b = factors(4, 40, k, n, dtype)
        for slots in ([3], [0, 0, 1, -1, 2, 3, 3, 9], [1] * 21, [-1, -1], [0, 1] * 9):
            x = random(len(slots), k + 3, dtype=dtype)[:, :k]
            y, slots = random(len(slots), n, dtype=dtype), torch.tensor(slots)
            found = run(level, y, x, a, b, ranks, slots)
            assert_close(found, expected(y, x, a, b, ranks, slots), dtype, k)


def test_rows_without_an_adapter_keep_their_bytes(level):
    a, b = factors(2, 8, 40, 30, F32)
    y, ranks = random(6, 30), torch.tensor([8, 0])
    y[:, 0], y[:, 1] = -0.0, float("nan")
    slots = torch.tensor([-1, 1, 2, -(2**63), 2**62, 0])
    found = run(level, y, random(6, 40), a, b, ranks, slots)
    assert torch.equal(found[:5].view(torch.int32), y[:5].view(torch.int32))
    assert not torch.equal(found[5], y[5])


def test_how_rows_go_together_changes_no_bit(level):
    a, b = factors(3, 16, 300, 96, F32)
    y, x, ranks = random(19, 96), random(19, 300), torch.tensor([16, 9, 16])
    slots = torch.tensor([0] * 11 + [2] * 5 + [1] * 3)
    together = run(level, y, x, a, b, ranks, slots)
    for row in range(19):
        alone = run(level, y[row : row + 1], x[row : row + 1], a, b, ranks, slots[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_neighbours_share_a_number(level):
    a, b = factors(2, 8, 40, 30, F32)
    y, x, ranks = random(15, 30), random(15, 40), torch.tensor([8, 8])
    slots = torch.tensor([1, -1, 0])
    found = run(level, y, x, a, b, ranks, slots, each=5)
    assert torch.equal(found, run(level, y, x, a, b, ranks, slots.repeat_interleave(5)))


def test_ranks_that_there_are_not_are_harmless(level):
    a, b = factors(2, 8, 40, 30, F32)
    y, x, slots = random(4, 30), random(4, 40), torch.tensor([0, 1, 0, 1])
    found = run(level, y, x, a, b, torch.tensor([-5, 2**40]), slots)
    assert torch.equal(found, run(level, y, x, a, b, torch.tensor([0, 8]), slots))


def test_other_adapters_are_not_read(level):
    a, b = factors(3, 8, 40, 30, F32)
    y, x, ranks = random(4, 30), random(4, 40), torch.tensor([8, 8, 4])
    slots = torch.tensor([2, -1, 2, 2])
    poisoned = a.clone(), b.clone()
    for bank in poisoned:
        bank[:2] = bank[2, 4:] = float("nan")
    found = run(level, y, x, *poisoned, ranks, slots)
    assert torch.equal(found, run(level, y, x, a, b, ranks, slots))
