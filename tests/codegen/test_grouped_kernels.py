"""Linear layers of groups of rows against torch in float64, on every level this machine runs."""

import pytest
import torch

from tests.codegen.product_kernels import (
    BF16,
    F16,
    F32,
    NAME,
    assert_close,
    ceil_div,
    guarded,
    random,
)

PANELS, SHARES = 2, 7


def run(kernels, x, weight, ends, few):
    """weight [G, N, K], rows or columns of each matrix neighbours in memory."""
    (m, k), (groups, n, _), dtype = x.shape, weight.shape, x.dtype
    in_rows = weight.stride(2) == 1
    held = BF16 if dtype is BF16 else F32
    panel = 16 * (k + k % 2 if held is BF16 else k)
    count = ceil_div(m, 16) + groups
    panels = torch.full((count, panel), float("nan"), dtype=held)
    numbers = [m, k, groups, few, x.stride(0), panel]
    kernels.run(f"pack_groups_{NAME[dtype]}", [x, ends, panels], numbers, count, 0)
    y, check = guarded(m, n, dtype=dtype)
    depth = min(ceil_div(k, 32) * 32, 2048)
    chunk = 96 if in_rows else 128
    products = 6144 * PANELS if in_rows else 4 * 16 * PANELS * chunk + 64 * 8 * depth
    scratch = max(products + 384 * (depth + 32), 32 * (ceil_div(k, 32) * 32 + 32))
    numbers = [m, n, k, groups, *weight.stride(), chunk, PANELS, few]
    numbers += [x.stride(0), n, panel, SHARES]
    tensors = [panels, x, weight, ends, y]
    kernels.run(f"grouped_linear_{NAME[dtype]}", tensors, numbers, SHARES, scratch)
    check()
    return y


def expected(x, weight, ends):
    y = torch.zeros(x.shape[0], weight.shape[1], dtype=torch.float64)
    start = 0
    for g, end in enumerate(ends.tolist()):
        y[start:end] = x[start:end].double() @ weight[g].double().T
        start = end
    return y


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)
def test_groups(kernels, dtype, turned):
    torch.manual_seed(7)
    for ends in ([0, 1, 9, 9, 75], [0, 0, 0], [130], [8, 16, 17], [1, 2, 3, 4]):
        m = max(1, ends[-1] + (len(ends) == 3) * 2)  # some with rows of no group
        ends = torch.tensor(ends, dtype=torch.int32)
        for n, k in ((1, 1), (33, 17), (200, 64), (16, 1100)):
            x = random(m, k + 3, dtype=dtype)[:, :k]
            shape = (len(ends), k, n) if turned else (len(ends), n, k)
            weight = random(*shape, dtype=dtype)
            weight = weight.transpose(1, 2) if turned else weight
            for few in (8, 0):
                y = run(kernels, x, weight, ends, few)
                assert_close(y, expected(x, weight, ends), dtype, k)
                tail = y[int(ends[-1]) :]
                assert torch.equal(tail, torch.zeros_like(tail))


def test_weights_of_groups_without_rows_are_not_read(kernels):
    x, weight = random(5, 40), random(4, 30, 40)
    ends = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    poisoned = weight.clone()
    poisoned[[0, 2]] = float("nan")
    assert torch.equal(run(kernels, x, poisoned, ends, 8), run(kernels, x, weight, ends, 8))


def test_ends_that_do_not_rise_are_harmless(kernels):
    weight = random(3, 30, 40)
    for ends in ([5, 2, 7], [-3, 100, 4], [9, -1, 9]):
        run(kernels, random(9, 40), weight, torch.tensor(ends, dtype=torch.int32), 2)
