"""`python -m benchmarks kv_remainder`: what repairs a rounded cache, by the bits that it takes.

GEAR (Kang et al., 2024) adds to rounded keys and values a few exact outliers and a product of thin
factors, the best one of what rounding left. Here the shipped language model reads held-out source
with keys and values that went through such a form: groups of 32 tokens as `KV("int4")` has them,
rounded once complete, in one pass of plain torch that sees what steps would see.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from benchmarks.report import wide_console, write_json
from infopt.models.language_model import corpus
from infopt.models.language_model.checkpoint import load_language_model, load_tokenizer

WINDOW, GROUP, FACTOR = 512, 32, 16  # tokens; of a range; bits of a least value, step or factor


@dataclass(frozen=True)
class Form:
    """outliers: of each range, exact, as a place in 8 bits and a value; rank: of the factors."""

    bits: int
    outliers: int = 0
    rank: int = 0

    def size(self, width: int) -> float:
        """Bits of each of a group's numbers, all told."""
        ranges = (2 * FACTOR + self.outliers * (8 + FACTOR)) / GROUP
        return self.bits + ranges + self.rank * FACTOR * (GROUP + width) / (GROUP * width)

    def __call__(self, x: Tensor, per_token: bool) -> Tensor:
        """x [B, H, T, D], of every complete 32 tokens, as it comes back."""
        whole = x.shape[2] // GROUP * GROUP
        rows = x[:, :, :whole].unflatten(2, (-1, GROUP))
        width = min(GROUP, x.shape[3])
        ranges = rows.unflatten(-1, (-1, width)) if per_token else rows.transpose(-1, -2)
        middle = ranges.median(-1, keepdim=True).values
        out = (ranges - middle).abs().topk(self.outliers, -1).indices
        kept = torch.zeros_like(ranges, dtype=torch.bool).scatter(-1, out, True)
        rounded = torch.where(kept, ranges, self.rounded(torch.where(kept, middle, ranges)))
        made = rounded.flatten(-2) if per_token else rounded.transpose(-1, -2)
        if self.rank:
            u, s, v = torch.linalg.svd(rows - made, full_matrices=False)
            left = u[..., : self.rank] * s[..., None, : self.rank]
            made = made + left.bfloat16().float() @ v[..., : self.rank, :].bfloat16().float()
        return torch.cat((made.flatten(2, 3), x[:, :, whole:]), 2)

    def rounded(self, ranges: Tensor) -> Tensor:
        low, high = ranges.amin(-1, keepdim=True), ranges.amax(-1, keepdim=True)
        most = 2**self.bits - 1
        least, step = low.bfloat16().float(), ((high - low) / most).bfloat16().float()
        return ((ranges - least) / step.clamp(min=1e-9)).round().clamp(0, most) * step + least


FORMS = [
    Form(4),
    Form(4, outliers=1),
    Form(4, rank=2),
    Form(4, outliers=1, rank=1),
    Form(4, outliers=2, rank=2),
    Form(5),
    Form(6),
]


class RoundedCache:
    """Of one pass over whole texts: a query reads as rounded the groups complete at its place."""

    def __init__(self, form: Form | None) -> None:
        self.form = form

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        groups, place = q.shape[1] // k.shape[1], torch.arange(q.shape[2])
        scale = q.shape[-1] ** -0.5
        in_group = place < ((place + 1) // GROUP * GROUP)[:, None]
        forms = [(k, v)]
        if self.form is not None:
            forms.append((self.form(k, False), self.form(v, True)))
        forms = [tuple(x.repeat_interleave(groups, 1) for x in pair) for pair in forms]  # type: ignore[misc]
        scores = [q @ keys.transpose(2, 3) * scale for keys, _ in forms]
        chosen = torch.where(in_group, scores[-1], scores[0])
        weights = chosen.masked_fill(place > place[:, None], -math.inf).softmax(-1)
        exact = weights.masked_fill(in_group, 0.0) if self.form else weights
        made = exact @ forms[0][1]
        return made + weights.masked_fill(~in_group, 0.0) @ forms[1][1] if self.form else made


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kv_remainder", description=__doc__)
    parser.add_argument("--windows", type=int, default=32, help=f"of {WINDOW} tokens each")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    model, tokenizer = load_language_model(), load_tokenizer()
    width = model.config.head_width
    ids = corpus.encode(corpus.held_out_documents(), tokenizer).astype(np.int64)
    starts = np.linspace(0, len(ids) - WINDOW - 1, options.windows).astype(int)
    nats: dict[Form | None, list[float]] = {form: [] for form in [None, *FORMS]}
    far: dict[Form | None, list[float]] = {form: [] for form in FORMS}
    for start in starts:
        text = torch.from_numpy(ids[start : start + WINDOW + 1])
        for form, own in nats.items():
            logits = model(text[None, :-1], torch.arange(WINDOW)[None], RoundedCache(form))[0]
            own.append(float(F.cross_entropy(logits, text[1:])))
            if form is None:
                whole = logits.log_softmax(-1)
            else:
                apart = F.kl_div(logits.log_softmax(-1), whole, log_target=True, reduction="sum")
                far[form].append(float(apart) / WINDOW)
    rows = []
    for form in FORMS:
        change = torch.tensor(nats[form]) - torch.tensor(nats[None])
        rows.append(
            {
                "bits": form.bits,
                "outliers": form.outliers,
                "rank": form.rank,
                "size": form.size(width),
                "change": math.expm1(change.mean()),
                "change_error": float(change.std()) / len(change) ** 0.5,
                "divergence": sum(far[form]) / len(starts),
            }
        )
    drawn = Table(title=f"{len(starts) * WINDOW} held-out tokens, heads of {width} features")
    for heading in ("bits", "outliers of 32", "rank", "bits in all", "perplexity", "divergence"):
        drawn.add_column(heading)
    for row in rows:
        drawn.add_row(
            *(str(row[name]) for name in ("bits", "outliers", "rank")),
            f"{row['size']:.2f}",
            f"{row['change']:+.2%} ± {row['change_error']:.2%}",
            f"{row['divergence'] * 1e3:.3f} mnat",
        )
    wide_console().print(drawn)
    if options.json:
        write_json(options.json, {"window": WINDOW, "rows": rows})
    return 0
