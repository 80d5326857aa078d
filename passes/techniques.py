"""What a budget may do to a whole model beside formats and ranks, in steps that lose ever more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infopt.compiler.cost import SPARSE_LINEARS
from infopt.compiler.graph import Graph, Node
from infopt.compiler.pipeline import Pass
from infopt.compiler.tokens import Tokens
from infopt.passes.merge_tokens import MergeTokens
from infopt.passes.prune_structures import PruneStructures
from infopt.passes.sparse_activations import SparseActivations

# technique -> the values that its option is tried with, each loses more than the one before
LADDERS: dict[str, tuple[float, ...]] = {
    "prune": (0.05, 0.1, 0.2, 0.3),
    "tokens": (0.9, 0.75, 0.5),
    "sparse_activations": (0.75, 0.6, 0.5),
}


@dataclass(frozen=True)
class Rung:
    """One technique with one value of its option."""

    technique: str
    share: float

    def __str__(self) -> str:
        named = f"Tokens({self.share:g})" if self.technique == "tokens" else f"{self.share:g}"
        return f"{self.technique}={named}"

    @property
    def compression(self) -> Pass:
        """The pass that does it."""
        if self.technique == "prune":
            return PruneStructures(self.share)
        if self.technique == "tokens":
            return MergeTokens(Tokens(self.share))
        return SparseActivations(self.share)


def with_rungs(rungs: Iterable[Rung], between: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes from where layers become narrower to where formats are chosen. Weights that are
    skipped have no format, so layers become sparse last."""
    order = [*LADDERS]
    taken = sorted(rungs, key=lambda r: order.index(r.technique))
    early = [r.compression for r in taken if r.technique != "sparse_activations"]
    late = [r.compression for r in taken if r.technique == "sparse_activations"]
    return (*early, *between, *late)


def sparse_bytes(graph: Graph) -> int:
    """Bytes of the weights of which calls read a part: no format will be chosen for them."""
    weights = {
        weight
        for node in graph.nodes()
        for weight in node.args[1 : 1 + SPARSE_LINEARS.get(node.op.name, 0)]
    }
    return sum(int(w.tensor_type.nbytes) for w in weights if isinstance(w, Node))
