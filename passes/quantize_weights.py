"""linear(x, constant weight), constant table[ids] -> the same with weights stored in few bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from infopt.codegen.weight_formats.weight_format import NAMES, weight_format
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.layers import label_of, name_matches, names_of
from infopt.passes.quantizing import Quantizing

Formats: TypeAlias = "tuple[tuple[str, str], ...]"
ACTIVATIONS = ("none", "int8", "int8-static")
NEEDS_CALIBRATION = (
    "activations='int8-static' uses ranges that calibration inputs give: give calibration too, "
    "a list of tuples of inputs like those the model will see (infopt.compile takes it), or "
    "activations='int8', which finds the range of every row at run time"
)
_COARSE = 0.03  # of a layer's results: what bytes may lose of them before 16 bits are taken
_LIMITS = {8: 0.1, 4: 0.5, 3: 0.9}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """linear(x, w) -> quantized_linear(x, values, scales, sums), and rows of tables alike

    formats      (pattern, format) pairs, the first whose pattern matches the weight's name counts;
                 a format is a name of codegen/weight_formats/formats.py, also with a remainder
                 (weight_formats/weight_format.py), or "none". Patterns are those of fnmatch;
                 whatever is not a letter, a digit or a wildcard counts as an underscore
    activations  "none": activations as they are. "int8": rows of activations become bytes, and
                 products are of integers. "int8-static": the same, and what one layer makes for
                 another alone has one range for all rows, which calibration inputs gave
    """

    name: ClassVar[str] = "quantize-weights"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    formats: Formats = (("*", "int8"),)
    activations: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", weight_formats(self.formats))
        if self.activations not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise BadOption(f"activations: expected one of {known}, found {self.activations!r}")

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        used = [weight_format(name).dense.bits for _, name in self.formats if name != "none"]
        return Bounded("rms_rel", _LIMITS[min(used, default=8)])

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if self.activations == "int8-static" and not ctx.calibration:
            raise BadOption(NEEDS_CALIBRATION)
        smooth = bool(ctx.calibration) and ctx.target.kind == "cpu"
        quantizing = Quantizing(graph, ctx, smooth=smooth, most=_COARSE if smooth else math.inf)
        changes: dict[Node, Node] = {}
        for node in quantizing.layers():
            label = label_of(node)
            reason = quantizing.refusal(node)
            wanted = {self.format_of(name) for name in names_of(node)}
            if not reason and len(wanted) > 1:
                reason = f"one product of two formats, {', '.join(sorted(wanted))}"
            if not reason and wanted == {"none"}:
                reason = "to stay as it is"
            if reason:
                ctx.site(label, False, reason)
                continue
            (format,) = wanted
            made = quantizing.replacement(node, format, self.activations)
            if isinstance(made, str):
                ctx.site(label, False, made)
                continue
            changes[node] = made
            found = f"{format}, error {quantizing.error(node, format):.2%}"
            if node in quantizing.coarse:
                lost = quantizing.coarse[node]
                found += f"; activations in 16 bits, as bytes would lose {lost:.2%} of its results"
            ctx.site(label, True, found)
        if not changes:
            return graph
        return ctx.exchange(graph, changes).with_consts(quantizing.tensors)

    def format_of(self, name: str) -> str:
        """The format asked for the weight of that name."""
        for pattern, format in self.formats:
            if name_matches(name, pattern):
                return format
        return "none"


def weight_formats(value: Formats | str | Mapping[str, str]) -> Formats:
    """The `formats` of the option weights="int8" or weights={"*attention*": "int8", ...}.

    Raises BadOption where it is neither, or where a format is unknown.
    """
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if isinstance(pairs, str):
        pairs = (("*", pairs),)
    if not isinstance(pairs, tuple) or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        for pair in pairs
    ):
        raise BadOption(
            f"weights: expected a format or a dict of patterns to formats, found {value!r}"
        )
    for pattern, name in pairs:
        if name != "none":
            checked_format(name, f"weights: there is no format {name!r} (for {pattern!r})")
    return pairs


def checked_format(name: str, problem: str) -> None:
    """Raises BadOption, which begins with the problem, where there is no format of that name."""
    try:
        weight_format(name)
    except KeyError:
        raise BadOption(f"{problem}; there are none, {NAMES}") from None
