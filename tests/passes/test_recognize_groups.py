"""recognize-groups: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.recognize_groups import RecognizeGroups
from tests.compiler.tracing.traced import names

torch.manual_seed(0)
X, W = torch.randn(6, 8).bfloat16(), torch.randn(3, 16, 8).bfloat16()
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)
GIVEN = [X, W, ENDS]
TORCH = "aten._grouped_mm.default"


def before(o, x, w, ends):
    """Without rows of no group, whose values torch leaves open."""
    return o.slice(o.call(TORCH, x, o.permute(w, [0, 2, 1]), ends), 0, 0, 5)


def after(o, x, w, ends):
    return o.slice(o.call("grouped_linear", x, w, ends), 0, 0, 5)


def test_rewrites():
    check_pass(RecognizeGroups(), before, after, GIVEN)


def test_matrices_that_lie_transposed():
    def found(o, x, w, ends):
        return o.call(TORCH, x, w, ends)

    def wanted(o, x, w, ends):
        return o.call("grouped_linear", x, o.permute(w, [0, 2, 1]), ends)

    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    check_pass(RecognizeGroups(), found, wanted, [X, W.transpose(1, 2).contiguous(), ends])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ends", [torch.int32, torch.int64], ids=str)
def test_that_of_transformers(dtype, ends):
    pytest.importorskip("transformers.integrations.moe")

    def found(o, x, w, ends):
        product = torch.ops.transformers.grouped_mm_fallback.default
        return o.call(product, x, o.permute(w, [0, 2, 1]), ends)

    def wanted(o, x, w, ends):
        cast = ends if ends.dtype is torch.int32 else o.call("aten.to.dtype", ends, torch.int32)
        return o.call("grouped_linear", x, w, cast)

    check_pass(RecognizeGroups(), found, wanted, [X.to(dtype), W.to(dtype), ENDS.to(ends)])


@pytest.mark.parametrize(
    ("build", "given", "reason"),
    [
        (lambda o, x, w: o.call(TORCH, x, w), [W, W.transpose(1, 2)], "expected rows and a matrix"),
        (
            lambda o, x, w, e: o.call(TORCH, x, w, e),
            [X, torch.randn(8, 16).bfloat16(), torch.tensor([3, 8], dtype=torch.int32)],
            "expected rows and a matrix",
        ),
    ],
    ids=["a batch", "groups of columns"],
)
def test_declines(build, given, reason):
    start = graph_of(build, given)
    found, report = run_pass(RecognizeGroups(), start)
    assert found is start and reason in report.declined[0].reason


def test_what_no_kernel_computes_is_declined():
    pytest.importorskip("transformers.integrations.moe")

    def build(o, x, w, ends):
        return o.call(torch.ops.transformers.grouped_mm_fallback.default, x, w, ends)

    given = [X.double(), W.transpose(1, 2).double(), ENDS]
    _, report = run_pass(RecognizeGroups(), graph_of(build, given))
    assert "float64" in report.declined[0].reason


def test_accuracy():
    _, report = run_pass(RecognizeGroups(), graph_of(before, GIVEN), [tuple(GIVEN)])
    assert len(report.applied) == 1  # Exact was measured by the pipeline, else ContractBroken


def test_idempotent():
    found, _ = run_pass(RecognizeGroups(), graph_of(before, GIVEN))
    again, report = run_pass(RecognizeGroups(), found)
    assert again is found and not report.applied and not report.declined


def test_gain():
    """What only torch could run has a kernel: applied wherever there is one."""
    found, _ = run_pass(RecognizeGroups(), graph_of(before, GIVEN))
    assert isinstance(found, Graph) and TORCH not in names(found)
