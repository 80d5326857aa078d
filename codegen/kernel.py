"""Kernel declarations: an op's reference plus emitters that turn types into one native call.

    @kernel_op(cases=cases, tolerance=Close(1e-4, 1e-3))
    def low_rank_linear(x, a, b, bias): ...            # the semantics, in torch

    @low_rank_linear.kernel("cpu", legal=lambda target: target.lacks("avx2"), block=(16, 32))
    def cpp(cfg, target, x, a, b, bias): ...           # a pure function: types in, Call out

`aten_kernel("softmax.int")` attaches an emitter to one of torch's own ops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as combinations
from typing import Any, TypeAlias

from infopt.codegen.launch import Launch
from infopt.compiler.accuracy import Accuracy, Exact
from infopt.compiler.graph import Node
from infopt.compiler.ops import Op, op
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

Legal: TypeAlias = Callable[..., "str | None"]
Wanted: TypeAlias = Callable[[TensorType], "tuple[Size, ...] | None"]


@dataclass(frozen=True)
class Call:
    """One native call, in symbolic sizes.

    symbol    the exported C function
    pointers  in the kernel's order: a parameter's name ("xs0" for the first of a list "xs"), "out"
              (or "out0", "out1" for several results), None for an absent tensor, or another Call
              whose result is read here; such a call gets new memory of `bytes` bytes as its last
              pointer and runs once for all who ask for the same one
    numbers   sizes, strides, flags; a float travels as a double
    tasks     how many independent tasks; 0 leaves the call out
    scratch   bytes each thread needs
    error     the message, with its exception's name, if the kernel can find its data invalid
    source    C++ text that defines the symbol; None for the kernels that were installed
    includes  headers of csrc that the text needs; such a text is one function, compiled together
              with the graph's regions. Without, the text is a whole file and a library of its own
    """

    symbol: str
    pointers: tuple[str | Call | None, ...]
    numbers: tuple[Size | float, ...]
    tasks: Size
    scratch: Size | None = None
    error: str | None = None
    source: str | None = None
    includes: tuple[str, ...] = ()
    bytes: Size = 0


@dataclass(frozen=True)
class Config:
    """One point of an emitter's schedule space, and the types of the results in memory.

    outs: of every result, None for one that nobody reads; out: of the only result
    """

    outs: tuple[TensorType | None, ...]
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> TensorType:
        (only,) = self.outs
        assert only is not None
        return only

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "choice")[name]
        except KeyError:
            raise AttributeError(f"the schedule has no {name!r}") from None


@dataclass(frozen=True)
class Emitter:
    """emit(cfg, target, *types, **attrs) -> Call, or Launch on a GPU, or several; legal -> None or
    the reason not to.

    layouts: parameter -> the strides it must have given its type, None where they are fine
    space: schedule option -> its possible values, the usual one first
    out: (types, attrs) -> the type of the result in memory, where that is not to be contiguous
    packed: (types, attrs) -> for each result the bytes of a packed form, known only to kernels that
        take it, or None where the result is a plain tensor. takes_packed: attrs -> the parameters
        that must be given in that form
    over: parameters that the only result may be written over, where they lie alike and nobody
        reads them afterwards: each element is read before the one in its place is written, and in
        no other task than that
    """

    kind: str
    emit: Callable[..., Call | Launch | Sequence[Call | Launch]]
    legal: Legal
    layouts: Mapping[str, Wanted]
    space: Mapping[str, tuple]
    out: Callable[..., TensorType] | None = None
    packed: Callable[..., tuple[Size | None, ...]] | None = None
    takes_packed: Callable[..., tuple[str, ...]] | None = None
    over: tuple[str, ...] = ()

    def reason_against(
        self, target: Target, types: Sequence[Any], attrs: Mapping[str, Any]
    ) -> str | None:
        """None where this emitter can compute the op for these types on this target."""
        if self.kind != target.kind:
            return f"for {self.kind}, not {target.kind}"
        if self._asks_only_for_target:
            return self.legal(target)
        return self.legal(target, *types, **attrs)

    def refuses_target(self, target: Target) -> bool:
        """True where no types at all could make this emitter legal on the target."""
        asked = self._asks_only_for_target and self.legal(target) is not None
        return self.kind != target.kind or asked

    @property
    def _asks_only_for_target(self) -> bool:
        return len(inspect.signature(self.legal).parameters) == 1

    def schedules(self) -> Iterator[dict[str, Any]]:
        """Every point of the schedule space, the usual one first."""
        for values in combinations(*self.space.values()):
            yield dict(zip(self.space, values, strict=True))


_EMITTERS: dict[str, list[Emitter]] = {}


@dataclass(frozen=True, eq=False)
class KernelOp(Op):
    """An op of infopt's own: its reference is the semantics, its emitters are the kernels.

    cases      makes example arguments for tests and tuning: () -> iterable of (args, attrs)
    tolerance  how far a kernel may be from the reference
    in_place   the parameter whose memory may also be the result's: the kernel writes only what
               changes, so where the program updates an input by this op, nothing is copied. Other
               results must be made from a copy, which lowering makes
    """

    cases: Callable[[], Any] | None = None
    tolerance: Accuracy = field(default_factory=Exact)
    in_place: str | None = None

    def kernel(
        self,
        kind: str,
        *,
        legal: Legal = lambda target: None,
        layouts: Mapping[str, Wanted] | None = None,
        out: Callable[..., TensorType] | None = None,
        packed: Callable[..., tuple[Size | None, ...]] | None = None,
        takes_packed: Callable[..., tuple[str, ...]] | None = None,
        over: tuple[str, ...] = (),
        **space: tuple,
    ) -> Callable:
        """Declare an emitter for targets of this kind: "cpu", or "gpu" (codegen/gpu)."""
        return _register(self.name, kind, legal, layouts, out, space, packed, takes_packed, over)

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        """The reference, in torch."""
        return self.reference(*args, **attrs)


def kernel_op(
    function: Callable | None = None,
    *,
    cases: Callable[[], Any] | None = None,
    tolerance: Accuracy | None = None,
    in_place: str | None = None,
) -> Any:
    """Declare an op by its reference: positional parameters are tensors, others attributes."""
    if function is None:
        return lambda f: kernel_op(f, cases=cases, tolerance=tolerance, in_place=in_place)
    tolerance = tolerance or Exact()
    return op(function, kind=KernelOp, cases=cases, tolerance=tolerance, in_place=in_place)


def aten_kernel(
    *names: str,
    kind: str = "cpu",
    legal: Legal = lambda target: None,
    layouts: Mapping[str, Wanted] | None = None,
    out: Callable[..., TensorType] | None = None,
    over: tuple[str, ...] = (),
    **space: tuple,
) -> Callable:
    """Declare an emitter for torch's own ops, named as in `aten_kernel("softmax.int")`."""

    def add(emit: Callable) -> Callable:
        for name in names:
            _register(f"aten.{name}", kind, legal, layouts, out, space, over=over)(emit)
        return emit

    return add


def _register(
    name: str,
    kind: str,
    legal: Legal,
    layouts: Mapping[str, Wanted] | None,
    out: Callable[..., TensorType] | None,
    space: Mapping[str, tuple],
    packed: Callable[..., tuple[Size | None, ...]] | None = None,
    takes_packed: Callable[..., tuple[str, ...]] | None = None,
    over: tuple[str, ...] = (),
) -> Callable:
    def add(emit: Callable) -> Callable:
        made = Emitter(kind, emit, legal, layouts or {}, space, out, packed, takes_packed, over)
        _EMITTERS.setdefault(name, []).append(made)
        return emit

    return add


def emitters(name: str) -> Sequence[Emitter]:
    """The emitters of an op, the preferred one first."""
    return _EMITTERS.get(name, ())


def kernel_names(target: Target) -> tuple[str, ...]:
    """The ops with a kernel that may be legal on this target: its kind, its instruction sets."""
    found = []
    for name, known in sorted(_EMITTERS.items()):
        if not all(e.refuses_target(target) for e in known):
            found.append(name)
    return tuple(found)


def find_emitter(node: Node, target: Target) -> tuple[Emitter | None, str]:
    """The first emitter that is legal for the node, else None and the reasons."""
    reasons = []
    types = argument_types(node)
    attrs = dict(node.attrs)
    for emitter in emitters(node.op.name):
        if emitter.kind != target.kind:
            continue
        reason = emitter.reason_against(target, types, attrs)
        if reason is None:
            return emitter, ""
        reasons.append(reason)
    return None, "; ".join(dict.fromkeys(reasons)) or "no kernel"


def argument_types(node: Node) -> tuple[Any, ...]:
    """The types of what a node reads: None for what is absent, tuples for lists."""
    return tuple(_type(a) for a in node.args)


def _type(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tuple(_type(a) for a in arg)
    return None if arg is None else arg.type
