"""A model over a time axis as a step: f(x) -> step(x's next hop, state) -> (y's next hop, state).

The model is traced at two lengths that are one hop apart. So the axis of time is seen and not
guessed: it is the one whose size differs, and it differs by the samples that a hop brings.

Positions are exact. In step n, the part of a value with hop h and delay d holds the positions
n h - d ... n h - d + h - 1 that the value has offline. Padding puts what it fills with at positions
below 0 of *its* input: where the input is late, what came out before its position 0 is replaced
(`started`), because zeros inside of a network are not what zeros in front of it give.

The end is a second graph over the same state: a step without samples. There, what a padded layer
would read behind the last position of its input is replaced likewise (`ended`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from infopt.compiler.errors import CannotInfer, CannotStream
from infopt.compiler.graph import Graph, Node, attr_key, type_text
from infopt.compiler.infer import builder_for
from infopt.compiler.interpret import interpret
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.types import TensorType


@dataclass(frozen=True)
class Flow:
    """A value that comes hop by hop.

    node   the positions of this step
    axis   where time is in it
    delay  the position before the stream's first one, counted backwards; below 0, the stream begins
           behind position 0, and all before holds `fill`
    end    of a signal of n hops it has n hop + end positions
    """

    node: Node
    axis: int
    delay: int = 0
    fill: float = 0.0
    end: int = 0

    @property
    def hop(self) -> int:
        size = self.node.shape[self.axis]
        assert isinstance(size, int)
        return size


@dataclass(frozen=True)
class Store:
    """One tensor of the state: its input of the step, its next value, and what it starts with.

    in_place: the step writes into the input's memory; else the next value is a result of the step,
    which costs less than to write it back.
    """

    node: Node
    value: Node
    fill: float = 0.0
    in_place: bool = False


@dataclass(frozen=True)
class Step:
    """The step's graph: inputs (x, *stores), results (y, *the next values of stores not in place),
    and `updates` of those in place. limit: how many hops its stores and tables have room for.

    ending: the same for the steps behind the last hop, None where nothing is left then. Its inputs
    are (number, *stores), i64[1] from 0 on.
    """

    graph: Graph
    stores: tuple[Store, ...]
    output: Flow
    limit: int | None = None
    ending: Graph | None = None

    @property
    def rest(self) -> int:
        """Positions of the result that the steps have not given when the signal ends; below 0, so
        many of theirs are behind its end."""
        return self.output.delay + self.output.end

    def run(self, x: torch.Tensor, stores: list[torch.Tensor]) -> torch.Tensor:
        """One step by the references; the stores are brought up to date."""
        return self._run(self.graph, x, stores)

    def finish(self, stores: list[torch.Tensor]) -> list[torch.Tensor]:
        """The steps behind the last hop, by the references."""
        if self.ending is None:
            return []
        count = -(-self.rest // self.output.hop)
        return [self._run(self.ending, torch.tensor([i]), stores) for i in range(count)]

    def _run(self, graph: Graph, x: torch.Tensor, stores: list[torch.Tensor]) -> torch.Tensor:
        y, *made = interpret(graph, [x, *stores])
        fresh = (i for i, store in enumerate(self.stores) if not store.in_place)
        for index, value in zip(fresh, made, strict=True):
            stores[index] = value
        return y


Rule = Callable[["Streaming", Node, Node], Flow]


def stream(
    graph: Graph,
    longer: Graph,
    rule: Callable[[Node], Rule | str],
    hops: int | None = None,
) -> Step:
    """The step of a model with one input and one result, traced at two lengths a hop apart, of
    whole hops.

    rule: how a node streams, or the reason why it cannot. hops: the room of what grows with the
    signal. Raises CannotStream.
    """
    step = _derived(Streaming(rule, hops), graph, longer)
    if step.rest <= 0:
        return step
    late = -(-step.rest // step.output.hop)
    if step.limit is not None:  # the steps behind the last hop need room too
        step = _derived(Streaming(rule, hops, late), graph, longer)
    ending = _derived(Streaming(rule, hops, late, ending=True), graph, longer)
    assert [s.node for s in ending.stores] == [s.node for s in step.stores]
    return replace(step, ending=ending.graph)


def _derived(made: Streaming, graph: Graph, longer: Graph) -> Step:
    pairs = list(zip(graph.nodes(), longer.nodes(), strict=False))
    same = len(graph.nodes()) == len(longer.nodes())
    if not same or any(a.op is not b.op for a, b in pairs):
        raise CannotStream("the program is another one for a signal that is one hop longer")
    for index, (node, twin) in enumerate(pairs):
        try:
            made.add(node, twin, graph, longer)
        except CannotStream as reason:
            raise CannotStream(f"%{index} {_described(node)}: {reason}") from None
    (result,) = graph.outputs
    if not isinstance(result, Node) or result not in made.flows:
        raise CannotStream("the result does not depend on the signal")
    return made.finish(made.ready(made.flows[result]), graph)


def _described(node: Node) -> str:
    given = ", ".join(type_text(a.type) for a in node.inputs)
    return f"{node.op.name}({given}) -> {type_text(node.type)}"


class Streaming:
    """Builds a step. Rules ask it for what they need: past samples, delays, padding.

    spare: hops there is room for behind the last one. ending: builds the steps there.
    """

    def __init__(
        self,
        rule: Callable[[Node], Rule | str],
        hops: int | None = None,
        spare: int = 0,
        ending: bool = False,
    ) -> None:
        self.o = builder_for(())
        self.rule, self.hops, self.spare = rule, hops, spare
        count = TensorType.dense((1,), torch.int64)
        self.number = self.o.input("infopt_ending", count) if ending else None
        self.length = 0  # hops of the signal that the model was traced with
        self.limit: int | None = None
        self.flows: dict[Node, Flow] = {}
        self.stores: list[Store] = []
        self.consts: dict[str, torch.Tensor] = {}
        # of a value, axis and fill: how many past places are kept, and they with this step's
        self._pasts: dict[tuple[Node, int, str], list[tuple[int, Node]]] = {}
        self._begun: dict[tuple[Node, int, int], Node] = {}
        self._steps: Node | None = None

    def add(self, node: Node, twin: Node, graph: Graph, longer: Graph) -> None:
        """Derive what a node is in the step. twin: the same node over the longer signal."""
        moving = [a for a in node.inputs if a in self.flows]
        axis = _axis(node, twin)
        if node.op is INPUT:
            if axis is None:
                raise CannotStream("an input without the time axis")
            hop = _extent(twin, axis) - _extent(node, axis)
            self.length, rest = divmod(_extent(node, axis), hop)
            if rest:
                raise CannotStream(f"{_extent(node, axis)} samples are not whole hops of {hop}")
            type = _cut(node, axis, hop)
            self.flows[node] = Flow(self._signal(node.attr("name"), type), axis)
        elif moving and axis is None:
            raise CannotStream("it mixes all of time: its result does not grow with the signal")
        elif axis is not None and node.op is CONST:
            raise CannotStream("a constant that is as long as the signal")
        elif axis is not None:
            rule = self.rule(node)
            if isinstance(rule, str):
                raise CannotStream(rule)
            try:
                flow = rule(self, node, twin)
            except CannotInfer as error:
                raise CannotStream(f"it refuses a hop: {error}") from None
            _check(flow, node, twin, axis)
            self.flows[node] = replace(flow, end=self.end(node, twin))
        elif node.op is CONST:
            mine, other = graph.consts[node.attr("name")], longer.consts[twin.attr("name")]
            if mine is not other and not torch.equal(mine, other):
                raise CannotStream("a constant that depends on the signal's length")
        elif attr_key(node.attrs) != attr_key(twin.attrs):
            raise CannotStream("its attributes depend on the signal's length")

    def finish(self, output: Flow, graph: Graph) -> Step:
        inputs = tuple(self.flows[n].node for n in graph.inputs)
        if self.number is not None:
            inputs = (self.number,)
        stores = tuple(self.stores)
        results = (output.node, *(s.value for s in stores if not s.in_place))
        made = Graph(
            inputs + tuple(s.node for s in stores),
            results,
            {**graph.consts, **self.consts},
            updates=tuple((len(inputs) + i, s.value) for i, s in enumerate(stores) if s.in_place),
            results=tuple(TensorType.dense(r.shape, r.dtype) for r in results),
        )
        return Step(made.with_consts({}), stores, output, self.limit)

    def _signal(self, name: str, type: TensorType) -> Node:
        """A hop of the signal; behind its end there is nothing to read."""
        if self.number is None:
            return self.o.input(name, type)
        zero = self.const(torch.zeros((), dtype=type.dtype))
        return self.o.call(
            "aten.clone.default", self.o.call("aten.expand.default", zero, type.shape)
        )

    # What rules are made of

    def end(self, node: Node, twin: Node) -> int:
        """Of a signal of n hops a node has n hop + end positions."""
        axis = _axis(node, twin)
        assert axis is not None
        return _extent(node, axis) - self.length * (_extent(twin, axis) - _extent(node, axis))

    def moving(self, arg: Any) -> Flow:
        """The flow of the operand over which an op that grows with the signal runs."""
        if arg not in self.flows:
            raise CannotStream("it grows with the signal, what it is made of does not")
        return self.flows[arg]

    def flow(self, arg: Any) -> Flow:
        """An argument whose position 0 has come or will come."""
        return self.ready(self.moving(arg))

    def ready(self, flow: Flow) -> Flow:
        """The flow, with what lies before it in it."""
        return flow if flow.delay >= 0 else self.delayed(flow, 0)

    def aligned(self, flows: Sequence[Flow]) -> list[Flow]:
        """The flows with the same delay, the longest of theirs."""
        flows = [self.ready(f) for f in flows]
        if len({f.hop for f in flows}) > 1:
            raise CannotStream(f"it joins hops of {sorted({f.hop for f in flows})} samples")
        longest = max(f.delay for f in flows)
        return [self.delayed(f, longest) for f in flows]

    def delayed(self, flow: Flow, delay: int) -> Flow:
        """The flow with a longer delay."""
        if delay == flow.delay:
            return flow
        # what is before place 0 and behind the end is free: a padded layer's view shares its past
        while (known := (flow.node, flow.axis, flow.delay)) in self._begun:
            flow = replace(flow, node=self._begun[known])
        both = self.history(flow, delay - flow.delay)
        return replace(flow, node=self.part(both, flow.axis, 0, flow.hop), delay=delay)

    def history(self, flow: Flow, count: int) -> Node:
        """This step's positions behind the `count` ones before them."""
        for known, longest in self._pasts.get((flow.node, flow.axis, str(flow.fill)), ()):
            if known >= count:
                return self.part(longest, flow.axis, known - count, known + flow.hop)
        past = self.store(_cut(flow.node, flow.axis, count))
        both = self.o.call("aten.cat.default", (past, flow.node), dim=flow.axis)
        value = self.part(both, flow.axis, flow.hop, flow.hop + count)
        self.stores.append(Store(past, value, flow.fill))
        self._pasts.setdefault((flow.node, flow.axis, str(flow.fill)), []).append((count, both))
        return both

    def part(self, node: Node, axis: int, start: int, end: int, step: int = 1) -> Node:
        """node[start:end:step] along an axis."""
        if (start, end, step) == (0, node.shape[axis], 1):
            return node
        return self.o.call("aten.slice.Tensor", node, dim=axis, start=start, end=end, step=step)

    def padded(self, flow: Flow, count: int, fill: float) -> Flow:
        """The flow with `count` positions of `fill` in front of it, which become 0, 1, ..."""
        if count < 0:
            return replace(self.ready(flow), delay=self.ready(flow).delay - count)
        if count == 0:
            return flow
        if flow.delay > 0:
            flow = replace(flow, node=self.started(flow, fill))
        elif flow.delay < 0 and str(flow.fill) != str(fill):
            flow = self.ready(flow)
        return replace(flow, delay=flow.delay - count, fill=fill, end=flow.end + count)

    def ended(self, flow: Flow, fill: float) -> Flow:
        """The flow with `fill` behind its last position."""
        # past samples are kept as they are: none may be behind the end when the signal ends
        flow = self.delayed(flow, max(flow.delay, -flow.end))
        if self.number is None:  # the same stores for both graphs
            made = self.o.call("aten.clone.default", flow.node)
        else:
            behind = (1,) * (flow.node.tensor_type.rank - flow.axis - 1)
            most = (flow.end + flow.delay - torch.arange(flow.hop)).reshape(-1, *behind)
            here = self.o.call(
                "aten.lt.Tensor", self.o.mul(self.number, flow.hop), self.const(most)
            )
            made = self.o.call("aten.where.ScalarOther", here, flow.node, fill)
        self._begun.setdefault((flow.node, flow.axis, flow.delay), made)
        return replace(flow, node=made)

    def started(self, flow: Flow, fill: float) -> Node:
        """This step's positions, with `fill` at those below 0."""
        behind = (1,) * (flow.node.tensor_type.rank - flow.axis - 1)
        least = (flow.delay - torch.arange(flow.hop)).reshape(-1, *behind)
        begun = self.o.mul(self.steps(), flow.hop)
        here = self.o.call("aten.ge.Tensor", begun, self.const(least))
        made = self.o.call("aten.where.ScalarOther", here, flow.node, fill)
        self._begun.setdefault((flow.node, flow.axis, flow.delay), made)
        return made

    def steps(self) -> Node:
        """i64[1]: how many steps came before this one."""
        if self._steps is None:
            self._steps = self.store(TensorType.dense((1,), torch.int64))
            self.stores.append(Store(self._steps, self.o.add(self._steps, 1)))
        return self._steps

    def store(self, type: TensorType) -> Node:
        """The input of the next store; the caller appends it to `stores` with its next value."""
        # no argument of a model is called so
        return self.o.input(f"infopt_state{len(self.stores)}", type)

    def room(self, hop: int) -> int:
        """The places of a value that is kept whole."""
        if self.hops is None:
            raise CannotStream("what it keeps grows with the signal: compile_stream(max_length=)")
        self.most(self.hops)
        return (self.hops + self.spare) * hop

    def most(self, hops: int) -> None:
        """No more hops than these can be taken."""
        self.limit = hops if self.limit is None else min(self.limit, hops)

    def const(self, value: torch.Tensor) -> Node:
        """A constant of the step."""
        for name, known in self.consts.items():
            if TensorType.of(known) == TensorType.of(value) and torch.equal(known, value):
                return self.o.const(name, TensorType.of(value))
        name = f"stream{len(self.consts)}"
        self.consts[name] = value
        return self.o.const(name, TensorType.of(value))

    def like(self, node: Node, flows: Sequence[Flow], **attrs: Any) -> Node:
        """The node's op on this step's positions of the values that flow."""
        new = dict(zip([a for a in node.inputs if a in self.flows], flows, strict=True))

        def moved(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return tuple(moved(a) for a in arg)
            return new[arg].node if arg in new else arg

        changed = tuple((k, attrs.get(k, v)) for k, v in node.attrs)
        return self.o.node(node.op, moved(node.args), changed)

    def batched(self, node: Node) -> Flow:
        """The node's op where time is its batch: apart."""
        (moving,) = (a for a in node.inputs if a in self.flows)
        flow = self.flow(moving)
        return replace(flow, node=self.like(node, [flow]))


def _axis(node: Node, twin: Node) -> int | None:
    """The axis whose size grows with the signal; None where none does."""
    if not isinstance(node.type, TensorType):
        if node.type != twin.type:
            raise CannotStream("an op with several results over time")
        return None
    if not node.type.is_static:
        raise CannotStream("a size that depends on data")
    if node.dtype != twin.dtype or len(node.shape) != len(twin.shape):
        raise CannotStream("its type depends on the signal's length")
    found = [i for i, (a, b) in enumerate(zip(node.shape, twin.shape)) if a != b]
    if len(found) > 1:
        raise CannotStream("several of its axes grow with the signal")
    return found[0] if found else None


def _check(flow: Flow, node: Node, twin: Node, axis: int) -> None:
    """A hop of the result is what the longer signal has more of it."""
    wanted = list(node.shape)
    wanted[axis] = _extent(twin, axis) - _extent(node, axis)
    if flow.axis != axis or list(flow.node.shape) != wanted or flow.node.dtype != node.dtype:
        raise CannotStream(f"a hop of it would be {flow.node.type}, expected {wanted}")


def _extent(node: Node, axis: int) -> int:
    size = node.shape[axis]
    assert isinstance(size, int)
    return size


def _cut(node: Node, axis: int, count: int) -> TensorType:
    shape = list(node.shape)
    shape[axis] = count
    return TensorType.dense(shape, node.dtype)
