"""fuse-rotary: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.rotary import rotary
from infopt.compiler.cost import graph_seconds
from infopt.compiler.dynamo import reports_of
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_rotary import FuseRotary

Q, K = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
COS, SIN = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
INPUTS = [Q, K, COS, SIN]
END = 2**63 - 1


def half(o, x):
    middle = x.shape[-1] // 2
    return o.cat([o.neg(o.slice(x, 3, middle, END)), o.slice(x, 3, 0, middle)], -1)


def turn(o, x, cos, sin):
    wide = [o.reshape(t, [t.shape[0], 1, *t.shape[1:]]) for t in (cos, sin)]
    return o.add(o.mul(x, wide[0]), o.mul(half(o, x), wide[1]))


def both(o, q, k, cos, sin):
    return turn(o, q, cos, sin), turn(o, k, cos, sin)


def partial(o, q, k, cos, sin):
    def one(x):
        part, rest = o.slice(x, 3, 0, 16), o.slice(x, 3, 16, END)
        return o.cat([turn(o, part, cos, sin), rest], -1)

    return one(q), one(k)


def neighbours(o, q, k, cos, sin):
    def one(x):
        odd, even = o.slice(x, 3, 1, END, 2), o.slice(x, 3, 0, END, 2)
        turned = o.reshape(o.stack([o.neg(odd), even], -1), list(x.shape))
        wide = [o.reshape(t, [1, 1, 5, 16]) for t in (cos, sin)]
        return o.add(o.mul(x, wide[0]), o.mul(turned, wide[1]))

    return one(q), one(k)


def fused_neighbours(o, q, k, cos, sin):
    made = o.call(rotary, q, k, cos, sin, interleaved=True)
    return o.getitem(made, 0), o.getitem(made, 1)


def fused(o, q, k, cos, sin):
    made = o.call(rotary, q, k, cos, sin)
    return o.getitem(made, 0), o.getitem(made, 1)


def with_more_features(t):
    return torch.cat([t, t + 1], -1)


PARTIAL = [with_more_features(Q), with_more_features(K), COS, SIN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build, inputs", [(both, INPUTS), (partial, PARTIAL)])
def test_rewrites(build, inputs, dtype: torch.dtype) -> None:
    report = check_pass(FuseRotary(), build, fused, [t.to(dtype) for t in inputs])
    assert len(report.applied) == 1


def test_rewrites_neighbouring_pairs() -> None:
    assert check_pass(FuseRotary(), neighbours, fused_neighbours, INPUTS).applied


def test_rewrites_per_sequence_angles() -> None:
    check_pass(
        FuseRotary(),
        both,
        fused,
        [Q, K, COS.expand(2, 5, 16).clone(), SIN.expand(2, 5, 16).clone()],
    )


def swapped(o, q, k, cos, sin):
    def other(x):
        low = o.cat([o.slice(x, 3, 8, END), o.neg(o.slice(x, 3, 0, 8))], -1)
        return o.add(
            o.mul(x, o.reshape(cos, [1, 1, 5, 16])), o.mul(low, o.reshape(sin, [1, 1, 5, 16]))
        )

    return other(q), other(k)


def chained(o, q, k, cos, sin):
    once = turn(o, q, cos, sin)
    return once, turn(o, once, cos, sin)


DECLINED = {
    "no second value": lambda o, q, k, cos, sin: turn(o, q, cos, sin),
    "computed from the other": chained,
    "have other tokens": lambda o, q, k, cos, sin: (
        turn(o, q, cos, sin), turn(o, o.slice(q, 0, 0, 1), cos, sin)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], INPUTS, FuseRotary())
    result, report = run_pass(FuseRotary(), graph)
    assert result is graph and reason in report.declined[0].reason


def test_another_rotation_is_left_alone() -> None:
    graph = graph_of(swapped, INPUTS, FuseRotary())
    assert run_pass(FuseRotary(), graph)[0] is graph


def test_accuracy() -> None:
    for build, inputs in ((both, INPUTS), (partial, PARTIAL)):
        graph = graph_of(build, inputs, FuseRotary())
        _, report = run_pass(FuseRotary(), graph, [tuple(inputs)])
        assert report.applied


def test_idempotent() -> None:
    once, _ = run_pass(FuseRotary(), graph_of(both, INPUTS, FuseRotary()))
    assert run_pass(FuseRotary(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(both, INPUTS, FuseRotary())
    result, _ = run_pass(FuseRotary(), graph)
    target = Target.parse("cpu:avx2")
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_rewrites_tables_without_a_batch() -> None:
    """Plain models keep [T, R] tables, which broadcast over batch and heads."""

    def before(o, q, k, cos, sin):
        return tuple(o.add(o.mul(x, cos), o.mul(half(o, x), sin)) for x in (q, k))

    def after(o, q, k, cos, sin):
        return fused(o, q, k, o.reshape(cos, [1, 5, 16]), o.reshape(sin, [1, 5, 16]))

    check_pass(FuseRotary(), before, after, [Q, K, COS[0], SIN[0]])


def test_a_table_whose_length_only_guards_could_tell_is_declined_at_its_site() -> None:
    def turned(q, k, cos, sin):
        n = (q.shape[2] // 8) ** 2
        tables = cos[:n] * 2, sin[:n] * 2
        return [
            x * tables[0] + torch.cat([-x[..., 8:], x[..., :8]], -1) * tables[1]
            for x in (q[:, :, :n], k[:, :, :n])
        ]

    inputs = [torch.randn(2, 4, 17, 16), torch.randn(2, 4, 17, 16), *torch.randn(2, 17, 16)]
    for t in inputs:
        torch._dynamo.mark_dynamic(t, t.dim() - 2)
    torch._dynamo.reset()
    run = torch.compile(turned, backend="infopt")
    torch.testing.assert_close(run(*inputs), turned(*inputs))
    (report,) = reports_of(run)
    (entry,) = [p for p in report.passes if p.name == "fuse-rotary"]
    assert not report.declined and entry.declined
    assert all("depending on a size" in site.reason for site in entry.declined)


def test_rewrites_tables_that_are_wide_already() -> None:
    def before(o, q, k, cos, sin):
        return tuple(o.add(o.mul(x, cos), o.mul(half(o, x), sin)) for x in (q, k))

    def after(o, q, k, cos, sin):
        return fused(o, q, k, o.reshape(cos, [1, 5, 16]), o.reshape(sin, [1, 5, 16]))

    check_pass(FuseRotary(), before, after, [Q, K, COS[:, None], SIN[:, None]])


def test_features_in_front_of_those_that_are_turned_stay_apart() -> None:
    """The kernel turns the first features of what it reads, and no others."""

    def parts(o, x):
        return o.slice(x, 3, 0, 16), o.slice(x, 3, 16, END)

    def before(o, q, k, cos, sin):
        split = [parts(o, x) for x in (q, k)]
        return tuple(o.cat([rest, turn(o, part, cos, sin)], -1) for part, rest in split)

    def after(o, q, k, cos, sin):
        split = [parts(o, x) for x in (q, k)]
        made = o.call(rotary, split[0][0], split[1][0], cos, sin)
        turned = [o.getitem(made, i) for i in (0, 1)]
        return tuple(o.cat([split[i][1], turned[i]], -1) for i in (0, 1))

    check_pass(FuseRotary(), before, after, PARTIAL)


def test_declines_a_result_of_another_type() -> None:
    inputs = [Q.bfloat16(), K.bfloat16(), COS, SIN]  # f32 tables make it f32
    graph = graph_of(both, inputs, FuseRotary())
    result, report = run_pass(FuseRotary(), graph)
    assert result is graph and [s.applied for s in report.sites] == [False]


def test_declines_two_kinds_of_pairs() -> None:
    def build(o, q, k, cos, sin):
        return turn(o, q, cos, sin), neighbours(o, q, k, cos, sin)[1]

    graph = graph_of(build, INPUTS, FuseRotary())
    result, report = run_pass(FuseRotary(), graph)
    reason = "one is turned in halves, the other in neighbours"
    assert result is graph and report.declined[0].reason == reason
