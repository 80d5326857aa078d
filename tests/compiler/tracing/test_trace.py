"""Tracing: views and in-place writes become pure values, and what cannot is declined by name."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

from infopt.compiler.graph import Graph
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.target import Target
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.fold_constants import FoldConstants
from tests.compiler.tracing.traced import check, declined, names, same

aten = torch.ops.aten


def normalized(graph: Graph) -> Graph:
    passes = Pipeline([Canonicalize(), FoldConstants(), Canonicalize()])
    return passes.run(graph, PassContext(Target.parse("cpu:scalar")))


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def write_through_select(a):
    b = a.clone()
    b[:, 1].mul_(2)
    return b, b.sum()


def write_through_slice_and_transpose(a):
    b = a * 1.5
    b.t()[1:3].add_(7)
    return b


def write_then_read_older_view(a):
    b = a + 1
    view = b.view(-1)
    b[0] = 3
    return view * 2


def write_through_reshape_of_slice(a):
    b = a + 0.5
    b[1:].unsqueeze(0).squeeze(0)[0, :2] = 9.0
    return b


def write_into_split(a):
    b = a + 1
    first, second = b.split([1, 3], dim=1)
    first.zero_()
    second[1] += 5
    return b, first, second


def write_into_unbind(a):
    b = a + 1
    rows = b.unbind(0)
    rows[1].copy_(rows[0])
    return b, rows[1]


def write_into_chunk(a):
    b = a + 1
    p, q = b.chunk(2, dim=-1)
    p.sub_(q)
    return b


def write_through_diagonal(a):
    b = a @ a.t()
    b.diagonal().fill_(0)
    return b


def dropout_eval_aliases(a):
    b = a + 1
    d = F.dropout(b, 0.5, training=False)
    d.mul_(2)
    return b, d


def copy_broadcasts_and_casts(a):
    b = torch.zeros(3, 4, dtype=torch.float64)
    b.copy_(a[0])
    return b


def masked_fill_in_place(a):
    b = a + 0.0
    b.masked_fill_(b > 0, float("-inf"))
    return b.softmax(-1)


def index_put(a):
    b = a.clone()
    b[torch.tensor([0, 2])] = 1.0
    return b


def mutate_input(a):
    a.add_(1)
    return a * 2


def mutate_input_through_a_view(a):
    a[1].zero_()
    return a.sum()


def mutate_and_return_input(a):
    a.relu_()
    return a


def swap_halves(a):
    first = a[:1].clone()
    a[:1] = a[1:2]
    a[1:2] = first
    return a + 0


def old_value_then_write(a):
    old = a.clone()
    a.mul_(3)
    return old


def in_place_chain(a):
    b = torch.zeros_like(a)
    b.add_(a)
    return b.exp_().log_().clamp_(min=0)


def inplace_scalar_types(a):
    counts = (a > 0).long()
    counts += 1
    counts //= 2
    return counts, counts.float().div_(3)


def views_of_everything(a):
    b = a.reshape(2, 2, 3).movedim(0, 2).flatten(1)
    return b.T, b.unflatten(1, (3, 2)).mT, a.expand(5, 4, 3)[1], a.narrow(0, 1, 2)


def scalars_in_tensor_places(a):
    return torch.where(a > 0, a, 0.0), torch.maximum(a, torch.tensor(0.5)), 2 - a, 1 / (a.abs() + 1)


def multiply_by_own_transpose(a):
    b = a.expand(4, 4).clone()
    return b.mul_(b.t())


SQUARE = {"write_through_diagonal": (4, 4)}
FUNCTIONS = [
    write_through_select,
    write_through_slice_and_transpose,
    write_then_read_older_view,
    write_through_reshape_of_slice,
    write_into_split,
    write_into_unbind,
    write_into_chunk,
    write_through_diagonal,
    dropout_eval_aliases,
    copy_broadcasts_and_casts,
    masked_fill_in_place,
    index_put,
    mutate_input,
    mutate_input_through_a_view,
    mutate_and_return_input,
    swap_halves,
    old_value_then_write,
    in_place_chain,
    inplace_scalar_types,
    scalars_in_tensor_places,
]


@pytest.mark.parametrize("change", [same, normalized])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_pure_form(fn, change) -> None:
    graph = check(fn, x(*SQUARE.get(fn.__name__, (3, 4))), change=change)
    assert not any("_." in n and not n.startswith("aten._") for n in names(graph))


@pytest.mark.parametrize("change", [same, normalized])
@pytest.mark.parametrize("fn", [write_through_select, write_into_split, mutate_input])
def test_dynamic_sizes(fn, change) -> None:
    graph = check(fn, x(5, 4), change=change, dynamic=True)
    assert graph.dims


@pytest.mark.parametrize("change", [same, normalized])
def test_views(change) -> None:
    check(views_of_everything, x(4, 3), change=change)


def test_static_view_functions_canonicalize_to_two_forms() -> None:
    graph = check(views_of_everything, x(4, 3), change=normalized)
    allowed = {"aten.permute.default", "aten.reshape.default", "aten.expand.default"}
    allowed |= {"aten.select.int", "aten.slice.Tensor"}
    assert set(names(graph)) <= allowed


@pytest.mark.parametrize("change", [same, normalized])
def test_zero_size_and_0d(change) -> None:
    check(
        lambda a, b: (a.reshape(2, -1) @ b.reshape(-1, 3), a.sum()), x(2, 0), x(0, 3), change=change
    )
    check(lambda a: (a * 2, a.reshape(1), a.expand(3)), torch.tensor(2.0), change=change)


@pytest.mark.parametrize("name", ["int8", "uint8", "int32", "bool", "bfloat16"])
def test_dtypes(name: str) -> None:
    values = torch.tensor([[0, 1, 3], [2, 0, 1]]).to(getattr(torch, name))
    check(lambda a: (a.to(torch.float32).mean(), a.t().contiguous(), a == a.flip(0)), values)


def test_non_contiguous_and_expanded_inputs() -> None:
    check(lambda a, b: (a + 1, (b * 2).view(-1)), x(3, 4).t(), x(1, 4).expand(3, 4))


def test_a_hit_of_the_weights_is_marked() -> None:
    layer = torch.nn.Linear(4, 3)
    graph = check(lambda a: layer(a), x(2, 4))
    assert [n.attr("weight") for n in graph.inputs].count(True) == 2


def test_random_ops_keep_the_order_of_the_program() -> None:
    def fn(a):
        first = torch.rand_like(a)
        second = torch.randn_like(a)
        return second * 0, first * 0

    found = [n for n in names(check(fn, x(3))) if "rand" in n]
    assert found == ["aten.rand_like.default", "aten.randn_like.default"]


@pytest.mark.parametrize(
    "fn, reason",
    [
        (multiply_by_own_transpose, "overlapping memory"),
        (lambda a: torch.add(a, 1, out=torch.empty_like(a)), "no pure form"),
        (
            lambda a: a.clone().as_strided((2, 2), (1, 1)).add_(1),
            "memory layout of an intermediate",
        ),
        (lambda a: F.dropout(a, 0.5, training=True).bernoulli_(0.5), "no pure form|random"),
        (lambda a: torch.view_as_complex(a.reshape(2, 2)).abs(), "complex"),
    ],
)
def test_declines_with_a_reason(fn, reason: str) -> None:
    found = declined(fn, x(1, 4))
    assert re.search(reason, found), found


def test_training_graphs_are_torchs() -> None:
    weight = torch.nn.Parameter(x(3, 4))
    assert "requires grad" in declined(lambda a: a @ weight.t(), x(2, 4))


def test_autocast_is_torchs() -> None:
    def fn(a):
        with torch.autocast("cpu", torch.bfloat16):
            return a @ a.t()

    assert "autocast" in declined(fn, x(2, 4))


def test_batch_norm_in_training_is_torchs() -> None:
    norm = torch.nn.BatchNorm1d(4)
    with torch.no_grad():
        assert "running statistics" in declined(functools.partial(_call, norm), x(2, 4))


def _call(module, a):
    return module(a)


def test_a_view_keeps_its_elements_where_sizes_cannot_show_it():
    """n*n // n * n is n * n, which no simplification of the sizes says."""

    def windows(a):
        rows = a.shape[1] // 4
        b = a[:, : rows * rows] * 2.0
        return b.view(a.shape[0], rows, (rows * rows) // rows, 3) + 1

    check(windows, x(2, 16, 3), dynamic=True)


def test_an_in_place_sum_keeps_its_shape_where_only_guards_could_tell_it():
    def grow(a, b):
        n = ((a.shape[0] - 1) // 4 + 1) ** 2
        c = torch.zeros(n, 3)
        c += b[:n].to(torch.bfloat16)
        return c

    check(grow, x(9), x(16, 3), dynamic=True)


def test_strides_of_a_broadcast_of_open_sizes_are_asked_of_several_sizes():
    def mask(a):
        blocks = a.shape[1] // 5
        ids = a[:, : blocks * 5].reshape(a.shape[0], blocks, 5)
        return torch.logical_and(ids[:, :, :, None] > 0, ids[:, :, None, :] < 2)

    check(mask, x(2, 15), dynamic=True)
    assert "strides" in declined(
        lambda a, b: torch.copysign(a.t(), b), x(2, 15), x(2), dynamic=True
    )


def written_in_another_dtype(a):
    b = (a * 4).to(torch.int64)
    b.gt_(1)
    return b


def test_what_is_written_keeps_its_dtype() -> None:
    check(written_in_another_dtype, x(2, 5))


@pytest.mark.parametrize(
    ("fn", "inputs", "reason"),
    [
        (
            lambda a: a.view(torch.int16),
            [x(10)[2:]],
            "is a view of a part, in another dtype",
        ),
        (
            lambda a: (torch._assert_async((a > -99).any()), a + 1)[1],
            [x(3)],
            "is run for its effect|no pure form",
        ),
        (lambda a: a.nonzero() + 1, [x(3)], "a size that depends on data"),
    ],
)
def test_declines_what_no_pure_graph_says(fn, inputs, reason: str) -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = declined(fn, *inputs)
    assert re.search(reason, found), found
