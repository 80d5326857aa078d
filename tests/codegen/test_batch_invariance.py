"""batch_invariant=True: the bytes of a row do not depend on the batch it is in."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import infopt
from infopt.compiler.errors import BadOption
from infopt.runtime.loading import read_manifest

CUTS = [
    (1, 0),
    (1, 17),
    (2, 5),
    (5, 30),
    (8, 3),
    (9, 1),
    (16, 8),
    (17, 3),
    (33, 5),
]  # (rows, first)


class Block(torch.nn.Module):
    """A decoder layer: norms, grouped projections, attention, a gated MLP, a product, a mean."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.before, self.after = torch.nn.LayerNorm(96), torch.nn.RMSNorm(96)
        self.qkv, self.out = torch.nn.Linear(96, 288), torch.nn.Linear(96, 96)
        self.gate = torch.nn.Linear(96, 192, bias=False)
        self.up = torch.nn.Linear(96, 192, bias=False)
        self.down = torch.nn.Linear(192, 96)
        self.head = torch.nn.Parameter(torch.randn(96, 50) / 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, 4, 24).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, d))
        y = self.after(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return torch.softmax(x @ self.head, -1), x.mean(1)


@torch.no_grad()
def depending(dtype: torch.dtype, tokens: int, **options: object) -> list[tuple[int, int]]:
    """The cuts of a batch of 40 whose rows come out otherwise than in the whole."""
    torch._dynamo.reset()
    model, x = Block(tokens > 4).eval().to(dtype), torch.randn(40, tokens, 96).to(dtype)
    compiled = torch.compile(model, backend="infopt", options=options)
    whole = [y.clone() for y in compiled(x)]
    return [
        (rows, first)
        for rows, first in CUTS
        if not all(
            torch.equal(part, y[first : first + rows])
            for part, y in zip(compiled(x[first : first + rows]), whole, strict=True)
        )
    ]


KINDS = [(torch.float32, None), (torch.float32, "bf16"), (torch.bfloat16, None)]
KINDS += [(torch.float16, None)]
QUICK = [(torch.float32, None, 1), (torch.float32, "bf16", 20)]
ALL = [(*kind, tokens) for kind in KINDS for tokens in (1, 3, 20)]


@pytest.mark.parametrize(
    ("dtype", "compute", "tokens"),
    [pytest.param(*c, marks=[] if c in QUICK else pytest.mark.slow) for c in ALL],
)
def test_a_row_is_the_same_in_every_batch(
    dtype: torch.dtype, compute: str | None, tokens: int
) -> None:
    options = {"compute": compute} if compute else {}
    assert depending(dtype, tokens, batch_invariant=True, **options) == []


def test_without_the_option_it_is_not() -> None:
    """The control: if this passes without differences, the test above shows nothing."""
    assert (1, 0) in depending(torch.float32, 1)


def test_saved_models_keep_it(tmp_path: Path) -> None:
    """For every target of the artifact; and a load that cannot keep it says so."""
    torch.manual_seed(0)
    net = torch.nn.Linear(192, 64).eval()
    rows = torch.export.Dim("rows", min=1, max=64)
    x = torch.randn(40, 192)
    for asked in (True, False):
        compiled = infopt.compile(
            net, (x,), dynamic_shapes=({0: rows},), batch_invariant=asked, target="cpu:avx2"
        )
        path = compiled.save(tmp_path / str(asked), targets=["native", "cpu:scalar"])
        native, plain = infopt.load(path), infopt.load(path, native="never")
        assert native.batch_invariant is asked and not plain.batch_invariant
        said = any(
            "batch_invariant does not cover what torch runs: aten." in n for n in plain.notes
        )
        assert said is asked and not native.notes
        if asked or native.level == "scalar":
            assert torch.equal(native(x)[7:8], native(x[7:8]))
        for level in ("avx2", "scalar"):  # the row kernel of few rows is in no plan
            assert read_manifest(path).batch_invariant is asked
            plans = (path / "plans" / f"{level}.json").read_text()
            assert ("infopt_few_rows" in plans) is not asked


def test_what_torch_runs_is_named() -> None:
    x = torch.randn(4, 8)
    compiled = infopt.compile(lambda x: torch.renorm(x, 2, 0, 1.0), (x,), batch_invariant=True)
    assert any("does not cover what torch runs: " in note for note in compiled.report.notes)


def test_it_is_true_or_false() -> None:
    with pytest.raises(BadOption, match="batch_invariant: expected True or False, found 1"):
        infopt.compile(torch.nn.Linear(8, 8), (torch.randn(1, 8),), batch_invariant=1)
