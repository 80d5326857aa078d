"""The statements a random program is made of, as texts with blanks.

{0} {1} .. are values; <d> <e> are dims of {0} (different ones where it has two), <s> a number, <k>
a small whole number, <t> a dtype. `on` says what {0} may be: f float, i integer, b bool.

exact    the bits are eager's where the arguments' are
free     the order of rounding is the compiler's: equal to eager within rounding
steep    exact, and a small change of an argument may change the result much, so that it is only
         drawn where the arguments' bits are eager's
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    code: str
    on: str = "fib"
    kind: str = "exact"
    rank: int = 0
    writes: bool = False


def forms(kind: str, on: str, texts: str, rank: int = 0, writes: bool = False) -> list[Form]:
    return [Form(t.strip(), on, kind, rank, writes) for t in texts.strip().split("\n")]


POINTWISE = [
    *forms(
        "exact",
        "fi",
        """-{0}
        {0}.abs()
        {0} * <s>
        {0} + <s>
        <s> - {0}
        {0} * <k>
        <k> - {0}
        {0}.clamp(-1, 2)
        {0}.clamp(min=1)
        {0}.relu()
        torch.square({0})
        torch.where({0} == {0}, {0}, 0)
        torch.rsub({0}, 1)""",
    ),
    *forms(
        "exact",
        "f",
        """{0} / <k>
        {0} / <s>
        torch.reciprocal({0}.abs() + 1)
        {0}.clamp(-0.5, 0.5)
        F.relu6({0})
        F.hardtanh({0})
        torch.nan_to_num({0}, nan=0.5, posinf=2.0, neginf=-2.0)
        {0}.isnan()
        {0}.isfinite()
        torch.copysign({0}, -1.0)
        {0}.to(<f>)
        {0} * 0.5""",
    ),
    *forms(
        "steep",
        "f",
        """{0}.floor()
        {0}.ceil()
        {0}.round()
        {0}.trunc()
        {0}.sign()
        {0} > 0
        {0} <= 0.5
        {0} != 0
        torch.signbit({0})
        {0}.to(torch.bool)
        torch.logical_not({0})
        torch.remainder({0}.clamp(-999, 999), 0.75)
        torch.fmod({0}.clamp(-999, 999), 0.75)
        {0} // 0.5
        F.threshold({0}, 0.1, -1.0)
        {0}.nan_to_num(0.0).clamp(-99, 99).to(<i>)
        {0}.nan_to_num(0.0).clamp(0, 99).to(torch.uint8)
        {0}.view(torch.uint8)
        {0}.view(torch.int16)
        torch.heaviside({0}, {0})
        {0}.frac()""",
    ),
    *forms(
        "free",
        "f",
        """{0}.clamp(-8, 8).exp()
        ({0}.abs() + 0.1).log()
        {0}.tanh()
        {0}.sigmoid()
        {0}.abs().sqrt()
        F.gelu({0})
        F.gelu({0}, approximate='tanh')
        F.silu({0})
        torch.erf({0})
        {0}.clamp(-9, 9).sin()
        {0}.clamp(-9, 9).cos()
        ({0}.abs() + 0.1).rsqrt()
        torch.log1p({0}.abs())
        torch.expm1({0}.clamp(-8, 8))
        F.softplus({0})
        F.elu({0})
        F.leaky_relu({0}, 0.1)
        F.hardswish({0})
        F.mish({0})
        {0}.clamp(-4, 4).pow(2)
        {0}.clamp(-4, 4).pow(3)
        {0}.clamp(-4, 4) ** 2.5
        torch.atan({0})
        torch.asinh({0})
        torch.logit({0}.clamp(0.1, 0.9))
        torch.addcmul({0}, {0}, {0}, value=0.5)
        torch.lerp({0}, {0} + 1, 0.25)""",
    ),
    *forms(
        "exact",
        "i",
        """{0} // 3
        {0} % 5
        torch.remainder({0}, -3)
        torch.div({0}, 3, rounding_mode='trunc')
        torch.fmod({0}, 4)
        {0} / 4
        {0} * 0.5
        ~{0}
        {0} << 1
        {0} >> 1
        {0} & 6
        {0} ^ 3
        {0} > 1
        {0} == 0
        {0}.sign()
        {0}.to(<i>)
        {0}.to(<f>)
        {0}.to(torch.bool)
        {0} + 100
        {0} * 3
        {0}.float()""",
    ),
    *forms(
        "exact",
        "b",
        """~{0}
        {0}.logical_not()
        {0}.to(<i>)
        {0}.to(<f>)
        {0} * 2
        {0} + 0.5
        {0} | True
        torch.where({0}, 1.5, -2.0)
        torch.where({0}, 3, -2)
        {0}.float()""",
    ),
    *forms("exact", "fib", "{0}.clone()\n{0}.contiguous()\ntorch.zeros_like({0})"),
    *forms("exact", "fib", "torch.full_like({0}, 2)\ntorch.ones_like({0})"),
]

PAIRS = [
    *forms(
        "exact",
        "fib",
        """{0} + {1}
        {0} * {1}
        torch.maximum({0}, {1})
        torch.minimum({0}, {1})""",
    ),
    *forms("exact", "fi", "{0} - {1}\ntorch.fmax({0}, {1})"),
    *forms("exact", "f", "{0} / ({1}.abs() + 1)\ntorch.copysign({0}, {1})"),
    *forms("free", "f", "torch.atan2({0}, {1})\ntorch.hypot({0}, {1})\ntorch.lerp({0}, {1}, 0.3)"),
    # eager rounds alpha twice or once in half precision, by the element's place
    *forms("free", "fi", "torch.add({0}, {1}, alpha=2)"),
    *forms("free", "f", "torch.addcmul({0}, {1}, {0})\ntorch.where({1} != {1}, {0}, {1})"),
    *forms(
        "steep",
        "fib",
        """{0} < {1}
        {0} >= {1}
        {0} == {1}
        torch.ne({0}, {1})
        torch.logical_and({0}, {1})
        torch.logical_or({0}, {1})
        torch.where({0} > {1}, {0}, {1})
        torch.where({0} != 0, {0}, {1})
        {0}.masked_fill({1} > 0, 2)
        {0} * ({1} > 0)""",
    ),
    *forms("exact", "ib", "{0} & {1}\n{0} | {1}\n{0} ^ {1}"),
]

REDUCTIONS = [
    *forms(
        "free",
        "fib",
        """{0}.sum()
        {0}.sum(<d>)
        {0}.sum(<d>, keepdim=True)
        {0}.sum((<d>, <e>))
        {0}.sum((<d>, <e>), keepdim=True)
        {0}.sum(<d>, dtype=torch.float32)""",
        1,
    ),
    *forms(
        "free",
        "f",
        """{0}.mean()
        {0}.mean(<d>)
        {0}.mean(-1, keepdim=True)
        {0}.mean((<d>, <e>))
        {0}.mean((<d>, <e>), keepdim=True)
        {0}.var(<d>)
        {0}.var(-1, unbiased=False, keepdim=True)
        {0}.std(<d>, keepdim=True)
        {0}.norm(dim=<d>)
        torch.linalg.vector_norm({0}, 2, <d>, True)
        torch.linalg.vector_norm({0}, 1, (<d>, <e>))
        torch.logsumexp({0}, <d>)
        {0}.clamp(-1.5, 1.5).prod(<d>)
        {0}.cumsum(<d>)
        torch.softmax({0}, <d>)
        torch.softmax({0}, -1)
        torch.log_softmax({0}, <d>)
        F.softmax({0}, dim=<d>, dtype=torch.float32)
        F.normalize({0}, dim=<d>)
        F.layer_norm({0}, {0}.shape[-1:])
        F.layer_norm({0}, {0}.shape[-2:])
        F.rms_norm({0}, {0}.shape[-1:])
        ({0} - {0}.mean(-1, keepdim=True)) * torch.rsqrt({0}.var(-1, False, keepdim=True) + 1e-5)
        {0} * torch.rsqrt({0}.pow(2).mean(-1, keepdim=True) + 1e-6)
        {0}.exp() / {0}.exp().sum(-1, keepdim=True)""",
        1,
    ),
    # which of two zeros of other signs is the larger depends on their places in eager
    *forms(
        "exact",
        "fi",
        """{0}.amax(<d>) + 0
        {0}.amin(<d>, keepdim=True) + 0
        {0}.amax((<d>, <e>)) + 0
        {0}.amax() + 0
        {0}.max(<d>).values + 0
        {0}.min(<d>, keepdim=True)[0] + 0""",
        1,
    ),
    *forms(
        "steep",
        "f",
        """{0}.argmax(<d>)
        {0}.argmax(<d>, keepdim=True)
        {0}.argmin()
        {0}.max(<d>).indices
        {0}.cummax(<d>).values
        {0}.sort(<d>).values
        {0}.topk(1, <d>).values""",
        1,
    ),
    *forms(
        "steep", "fib", "{0}.any(<d>)\n{0}.all(<d>)\n{0}.any()\ntorch.count_nonzero({0}, <d>)", 1
    ),
    *forms("exact", "i", "{0}.cumsum(<d>)\n{0}.prod(<d>)\n{0}.sort(<d>, stable=True).values", 1),
]

VIEWS = [
    *forms(
        "exact",
        "fib",
        """{0}.unsqueeze(<d>)
        {0}.unsqueeze(-1)
        {0}[None]
        {0}.squeeze()
        {0}.squeeze(<d>)
        {0}.reshape(-1)
        {0}.flatten()
        {0}.flatten(-2)
        {0}.reshape({0}.shape[0], -1)
        {0}.reshape(-1, {0}.shape[-1])
        {0}.reshape(-1, {0}.shape[<d>])
        {0}.transpose(<d>, <e>)
        {0}.transpose(-1, -2)
        {0}.transpose(<d>, <e>).contiguous()
        {0}.transpose(<d>, <e>).reshape({0}.shape)
        {0}.mT
        {0}.movedim(<d>, -1)
        {0}.permute(*reversed(range({0}.dim())))
        {0}.select(<d>, 0)
        {0}.select(<d>, -1)
        {0}.unbind(<d>)[0]
        {0}.narrow(<d>, 0, 1)
        {0}[..., ::2]
        {0}[..., 1:]
        {0}[..., :-1]
        {0}[1:]
        {0}[::3]
        {0}[..., 1::2, :]
        {0}[:, 0]
        {0}[:2]
        {0}.flip(<d>)
        {0}.flip((<d>, <e>))
        {0}.roll(1, <d>)
        {0}.roll(-2)
        {0}.roll((1, 2), (<d>, <e>))
        {0}.unfold(<d>, 2, 1)
        {0}.unfold(<d>, 3, 2)
        {0}.unsqueeze(<d>).expand(*{0}.shape[:<d>], 3, *{0}.shape[<d>:])
        {0}.expand(2, *{0}.shape)
        {0}.repeat(2, *([1] * ({0}.dim() - 1)))
        {0}.repeat_interleave(2, <d>)
        {0}.unflatten(<d>, (2, -1))
        {0}.unflatten(-1, (-1, 4))
        {0}.diagonal(0, <d>, <e>)
        {0}.chunk(2, <d>)[0]
        {0}.chunk(2, <d>)[-1]
        {0}.split(2, <d>)[-1]
        {0}.split(3, <d>)[0]
        torch.tensor_split({0}, 2, <d>)[1]
        {0}.triu()
        {0}.tril(-1)
        F.pad({0}, (1, 2))
        F.pad({0}, (0, 0, 1, 0))
        F.pad({0}, (-1, 1), value=2)
        torch.cat([{0}, {0}], <d>)
        torch.cat([{0}[:1], {0}, {0}[1:]])
        torch.stack([{0}, {0}], <d>)
        torch.stack([{0}, {0}], -1)
        torch.stack({0}.unbind(<d>), <e>)
        torch.cat({0}.split(1, <d>), <e>)
        torch.cat([{0}[..., 1:], {0}[..., :1]], -1)
        {0}.swapaxes(0, -1)
        {0}.view(-1, {0}.shape[-1])
        F.dropout({0}, 0.1, False)
        F.dropout({0}[..., 1:], 0.1, False)""",
        1,
    ),
    # sizes that are computed
    *forms(
        "exact",
        "fib",
        """{0}[: {0}.shape[0] // 2]
        {0}[{0}.shape[0] // 2 :]
        {0}[: ({0}.shape[0] // 4) ** 2]
        {0}[..., : {0}.shape[-1] // 3 + 1]
        {0}[..., -({0}.shape[-1] // 2) :]
        torch.split({0}, [1, {0}.shape[<d>] - 1], <d>)[1]
        {0}.index_select(<d>, torch.arange({0}.shape[<d>] // 2))
        {0}.new_zeros({0}.shape[0] // 2 + 1, {0}.shape[-1])
        {0}.new_full(({0}.shape[-1],), 3)
        torch.arange({0}.shape[<d>])
        torch.arange({0}.shape[0])[:, None] >= torch.arange({0}.shape[-1])""",
        1,
    ),
    *forms("exact", "fib", "{0}.view({0}.shape)\n{0}.expand(3)\n{0}.reshape(1, 1)\n{0}.detach()"),
]

JOINS = forms(
    "exact",
    "fib",
    """torch.cat([{0}, {1}], <d>)
    torch.cat([{0}, {1}])
    torch.cat([{0}, {1}, {0}], -1)
    torch.stack([{0}, {1}], <d>)
    torch.stack([{0}, {1}], -1)
    {0}.expand_as({1})
    {0}.reshape({1}.shape)
    torch.broadcast_to({0}, {1}.shape)
    torch.where({0} == {0}, {0}, {1})""",
    1,
)

WRITES = [
    *forms(
        "exact",
        "fi",
        """{0}.add_(1)
        {0}.mul_(2)
        {0}.sub_(3)
        {0}.neg_()
        {0}.relu_()
        {0}.clamp_(-1, 2)
        {0}.abs_()
        {0}.transpose(<d>, <e>).add_(1)
        {0}[0].mul_(-1)
        {0}[..., ::2].add_(1)
        {0}[..., 1:].mul_(2)
        {0}.select(<d>, 0).fill_(7)
        {0}.view(-1).add_(1)
        {0}.unsqueeze(0).sub_(1)
        {0}.diagonal(0, <d>, <e>).add_(5)
        {0}.flatten().add_(1)
        {0}.narrow(<d>, 0, 1).neg_()
        {0}.clamp_min_(1)
        {0}.cumsum_(<d>)
        {0}.index_fill_(<d>, torch.tensor([0]), 3)
        {0}[: {0}.shape[0] // 2].mul_(2)
        {0}[..., {0}.shape[-1] // 2 :].sub_(1)""",
        1,
        True,
    ),
    *forms("exact", "fib", "{0}.zero_()\n{0}.fill_(1)\n{0}.copy_({0}.flip(0).clone())", 1, True),
    *forms("free", "f", "{0}.tanh_()\n{0}.sigmoid_()\n{0}.div_(3).sin_()", 1, True),
    *forms("free", "f", "{0}.lerp_({0}.flip(0), 0.5)\n{0}.addcmul_({0}, {0})", 1, True),
    *forms("steep", "f", "{0}.masked_fill_({0} > 0.5, 0)\n{0}.floor_()\n{0}.round_()", 1, True),
]

PAIR_WRITES = forms(
    "exact",
    "fi",
    """{0}.add_({1})
    {0}.mul_({1})
    {0}.copy_({1})
    {0}.sub_({1})
    {0}[0].add_({1})
    {0}[..., ::2].copy_({1})
    {0}.transpose(-1, -2).copy_({1})
    {0}.unsqueeze(0).add_({1})""",
    1,
    True,
)

# Writes that are statements of their own: nothing is bound to a name.
ASSIGNMENTS = forms(
    "exact",
    "fi",
    """{0}[0] = 2
    {0}[..., 0] = {0}[..., -1]
    {0}[..., ::2] = 3
    {0}[1:] = {0}[:-1].clone()
    {0}[..., 1:-1] += 1
    {0}[..., 0] *= 2
    {0}[:, 0] = {0}[:, -1]
    {0}[-1] = {1}
    {0}[:] = {1}
    {0}[..., 0] = {1}
    {0} += {1}
    {0} *= 2""",
    1,
    True,
)
