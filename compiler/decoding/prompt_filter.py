"""The program that says which tokens of a prompt matter: a model's first layers, up to the scores
of the one whose attention is asked. Nothing behind that is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from infopt.codegen.traced_ops import adopt_kernel_ops
from infopt.compiler.compiled import build
from infopt.compiler.decoding.policy import LayerShape, Policy
from infopt.compiler.dynamo import refuse_fallbacks
from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.flat_program import FlatProgram
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Exported, export
from infopt.runtime.decoding.compaction import Compaction
from infopt.runtime.structure import Leaf

DEPTH = 0.4  # of the layers, where attention is asked if nothing is said (GemFilter: 13 of 32)


def with_layer(
    compact: Compaction, layers: list[LayerShape], policy: Policy, windows: set[int], room: int
) -> Compaction:
    """`compact` with a layer of the model. Raises BadOption where prompts cannot be cut."""
    layer = round(DEPTH * len(layers)) if compact.layer is None else compact.layer
    if layer >= len(layers):
        raise BadOption(f"compact.layer: expected 0 to {len(layers) - 1}, found {layer}")
    if policy.forgets:
        raise BadOption(
            f"compact: {type(policy).__name__} forgets tokens by their places in the text, and "
            "those of a cut prompt have others in the cache: expected a cache that keeps all"
        )
    if any(window < room for window in windows):
        raise BadOption(
            f"compact: some layers see only the last {min(windows)} tokens, which those of a cut "
            f"prompt are not; expected a window of max_length={room} or none"
        )
    return replace(compact, layer=layer)


def does_not_pay(compact: Compaction, layers: int) -> str | None:
    """Why reading whole prompts is no dearer, by the layers that tokens go through, or None."""
    share = compact.layer / layers  # type: ignore[operator]
    if share + compact.keep < 1:
        return None
    return (
        f"compact: {compact.layer} of {layers} layers for all tokens and {layers} for "
        f"{compact.keep:.0%} of them are {share + compact.keep:.0%} of reading them all; prompts "
        "are read whole"
    )


def build_filter(
    forward: Any,
    model: torch.nn.Module,
    compact: Compaction,
    sizes: tuple[int, int, int],
    texts: Sequence[Tensor],
    options: Options,
    target: Target,
) -> FlatProgram:
    """The compiled program (ids [B, T], counts [B]) -> f32 [B, T], what each token is worth.

    sizes: vocabulary, sequences, and tokens at most. texts: ids to calibrate with. options: without
    a budget, for what errors do to scores is not what they do to results.
    Raises TraceDeclined, FallbackRefused.
    """
    vocabulary, batch, most = sizes
    step = _Filter(forward, model, compact).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = min(most, 3 * compact.asking)
    ids = torch.randint(vocabulary, (min(2, batch), tokens), generator=generator)
    sample = ids, torch.full((len(ids),), tokens)
    rows: Any = torch.export.Dim("batch", min=1, max=max(3, batch))
    open_rows = {0: rows} if batch > 1 else {}
    length = torch.export.Dim("tokens", min=2, max=max(3, most))
    shapes = {"ids": {**open_rows, 1: length}, "counts": open_rows}
    exported: Exported = export(step, sample, {}, shapes, Leaf)
    exported = replace(exported, graph=adopt_kernel_ops(exported.graph))
    seen = [exported.sample((text, torch.full((len(text),), text.shape[1])), {}) for text in texts]
    report = Report(target=target.name)
    built = build(
        exported.graph, options, target, report, [exported.sample(sample, {})], calibration=seen
    )
    refuse_fallbacks(options, report)
    return FlatProgram(exported, built, (sample, {}))


class _Filter(torch.nn.Module):
    def __init__(self, forward: Any, model: torch.nn.Module, compact: Compaction) -> None:
        super().__init__()
        self.model, self.through, self.compact = model, forward, compact

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        cache = _FilterCache(self.compact, counts)
        order = torch.arange(ids.shape[1], device=ids.device)
        positions = torch.minimum(order, (counts[:, None] - 1).clamp(min=0))
        self.through(ids, positions, cache, lambda x: x[:, -1:])
        if cache.worth is None:
            raise TraceDeclined(f"layer {self.compact.layer} has no attention with its cache")
        return cache.worth


class _FilterCache:
    """The cache that the model meets: nothing is kept, one layer's attention is looked at."""

    def __init__(self, compact: Compaction, counts: Tensor) -> None:
        self.compact, self.counts = compact, counts
        self.worth: Tensor | None = None
        self._asked: Tensor | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer == self.compact.layer:
            self._asked = k
        return k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if k is self._asked:
            self.worth = self._received(q, k, scale)
        options = {"scale": scale, "window": window or 0, "softcap": softcap or 0.0}
        starts = torch.zeros_like(self.counts)
        return torch.ops.infopt.kv_attention(q, k, v, starts, **options)

    def _received(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """f32 [B, T]: the mean attention, over heads and the last tokens, to those before them.
        Caps of scores, which change no order, are left out."""
        first = (self.counts - self.compact.asking)[:, None]
        rows = (first + torch.arange(self.compact.asking, device=q.device)).clamp(min=0)
        index = rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
        order = torch.arange(k.shape[2], device=k.device)
        before = torch.where(order < first, 0.0, -torch.inf)
        received = torch.ops.infopt.attention_received(q.gather(2, index), k, before, scale=scale)
        return received.mean(1)
