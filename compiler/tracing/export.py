"""From a model and example arguments to a graph, through torch.export."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, TensorArgument
from torch.utils import _pytree as pytree

from infopt.compiler.errors import TraceDeclined, first_line
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST
from infopt.compiler.rename import rename_dims
from infopt.compiler.tracing.capture import check_mode
from infopt.compiler.tracing.refusals import check_tensor
from infopt.compiler.tracing.torchao_weight import TorchaoWeight, is_torchao, torchao_weight
from infopt.compiler.tracing.trace import from_fx
from infopt.compiler.types import Dim, as_size, substitute


@dataclass(frozen=True)
class Argument:
    """One argument of the model: its name, whether by keyword only, and its tree of leaf numbers.

    A leaf is `leaf(i)` for the i-th tensor or size of the call; all else is part of the program.
    """

    name: str
    keyword: bool
    tree: Any


@dataclass(frozen=True)
class Exported:
    """A model as a graph.

    graph      inputs: the caller's tensors, then the buffers it writes to; scalars: sizes
    state      those buffers
    arguments  the model's arguments in order
    leaves     for every graph input and scalar of the caller, the leaf number it comes from
    outputs    the model's result with `leaf(i)` for the graph's i-th output
    rebuild    the graph's flat outputs -> the model's result, of its own classes
    names      const or state input of the graph -> the parameter or buffer of the model it is
    parameters all of the model's parameters and buffers by name
    """

    graph: Graph
    state: list[torch.Tensor]
    arguments: tuple[Argument, ...]
    leaves: tuple[int, ...]
    outputs: Any
    rebuild: Callable[[list], Any]
    names: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def state_names(self) -> list[str]:
        """What the graph calls the buffers it writes to."""
        count = len(self.graph.inputs) - len(self.state)
        return [str(n.attr("name")) for n in self.graph.inputs[count:]]

    def without_tensors(self) -> Exported:
        """Without the model's constants, for keeping when passes have made others of them."""
        return replace(self, graph=replace(self.graph, consts={}), parameters={})

    def sample(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The graph's inputs for one call of the model."""
        given = pytree.tree_leaves((args, dict(kwargs)))
        count = len(self.graph.inputs) - len(self.state)
        flat = [given[i] for i in self.leaves]
        return tuple(flat[:count] + self.state + flat[count:])


class _Function(torch.nn.Module):
    """A plain function as a module, which is what torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.eval()
        try:
            inspect.signature(function)
        except ValueError:  # a builtin
            self.forward = lambda *args, **kwargs: function(*args, **kwargs)
        else:  # dynamic_shapes may go by the names of its parameters
            self.forward = function


def export(
    model: torch.nn.Module | ExportedProgram | Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    leaf: Callable[[int], Any],
) -> Exported:
    """Trace a model; leaf makes the marker for the i-th leaf. TraceDeclined says why it cannot."""
    model, weights = _without_torchao(model)
    program, names = _program(model, args, dict(kwargs), dynamic_shapes)
    graph, state = graph_of(program)
    graph, origins = _with_torchao(graph, _parameter_origins(program), weights)
    graph = replace(graph, dims=_promised_ranges(program, graph.dims))
    graph = rename_dims(graph, _dim_names(program, args, kwargs, names, dynamic_shapes))
    user = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    markers = [a.value if isinstance(a, ConstantArgument) else leaf(i) for i, a in enumerate(user)]
    tensors = [i for i, a in enumerate(user) if isinstance(a, TensorArgument)]
    sizes = [i for i, a in enumerate(user) if not isinstance(a, TensorArgument | ConstantArgument)]
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    if in_spec is None or out_spec is None:
        raise TraceDeclined("the exported program does not say how it is called")
    positional, keyword = pytree.tree_unflatten(markers, in_spec)
    arguments = [Argument(names[i], False, tree) for i, tree in enumerate(positional)]
    # what is positional in the call may also be given by name; what was given by name stays so
    arguments += [Argument(name, True, tree) for name, tree in keyword.items()]
    outputs = pytree.tree_unflatten([leaf(i) for i in range(out_spec.num_leaves)], out_spec)
    return Exported(
        graph,
        state,
        tuple(arguments),
        tuple(tensors + sizes),
        outputs,
        lambda flat: pytree.tree_unflatten(flat, out_spec),
        origins,
        {
            n: t.detach()
            for n, t in program.state_dict.items()
            if isinstance(t, torch.Tensor) and n not in weights
        },
    )


def _without_torchao(model: Any) -> tuple[Any, dict[str, TorchaoWeight]]:
    """The model with empty matrices where torchao put its tensors, and those by name."""
    if not isinstance(model, torch.nn.Module):
        return model, {}
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {name: t for name, t in named.items() if is_torchao(t)}
    if not found:
        return model, {}
    if model.training:
        raise TraceDeclined("the model is in training mode; call model.eval() first")
    weights = {name: torchao_weight(name, t) for name, t in found.items()}
    # memory that nobody touches is never there
    memo: dict[int, torch.Tensor] = {id(t): t for t in (*named.values(), *model.buffers())}
    for t in found.values():
        memo[id(t)] = torch.nn.Parameter(torch.empty(t.shape, dtype=t.dtype), False)
    return copy.deepcopy(model, memo), weights


def _with_torchao(
    graph: Graph, origins: dict[str, str], weights: Mapping[str, TorchaoWeight]
) -> tuple[Graph, dict[str, str]]:
    """The graph with integers where matrices stand for them, and where its other constants are
    from."""
    o = Builder(graph.dims)
    changes: dict[Node, Node] = {}
    consts: dict[str, torch.Tensor] = {}
    for node in graph.nodes():
        name = origins.get(str(node.attr("name")), "") if node.op is CONST else ""
        if name in weights:
            made, parts = weights[name].node(o, str(node.attr("name")))
            changes |= weights[name].changes(o, node, made, graph.users(node))
            consts |= parts
    if changes:
        graph = exchange(graph, changes, o).with_consts(consts)
    return graph, {const: name for const, name in origins.items() if name not in weights}


def _parameter_origins(program: ExportedProgram) -> dict[str, str]:
    """Placeholder -> parameter or buffer, as state_dict() calls it."""
    specs = program.graph_signature.input_specs
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    return {
        s.arg.name: s.target
        for s in specs
        if s.kind in kinds and s.target is not None and s.target in program.state_dict
    }


def _dim_names(
    program: ExportedProgram, args: tuple, kwargs: Mapping[str, Any], names: list[str], given: Any
) -> dict[sympy.Symbol, str]:
    """What the user calls the sizes of a program: torch.export.Dim("batch") names one."""
    user = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    metas = {n.name: n.meta.get("val") for n in program.graph_module.graph.nodes}
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    found: dict[sympy.Symbol, str] = {}

    def walk(spec: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            index = next(i for i, leaf in enumerate(leaves) if leaf is value)
            meta = metas.get(user[index].name) if index < len(user) else None
            axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
            for axis, dim in axes:
                name = getattr(dim, "__name__", None)  # Dim.AUTO and numbers have none
                size = as_size(meta.shape[axis]) if isinstance(meta, torch.Tensor) else 0
                if isinstance(name, str) and isinstance(size, sympy.Symbol):
                    found[size] = name
        elif isinstance(spec, Mapping) and isinstance(value, Mapping):
            for key, inner in spec.items():
                walk(inner, value.get(key))
        elif isinstance(spec, list | tuple) and isinstance(value, list | tuple):
            for inner, part in zip(spec, value):
                walk(inner, part)

    by_name = {**dict(zip(names, args)), **kwargs}
    walk(given, by_name if isinstance(given, Mapping) else [*args, *kwargs.values()])
    return found


def _program(
    model: Any, args: tuple, kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, list[str]]:
    if isinstance(model, ExportedProgram):
        count = len(model.call_spec.in_spec.child(0).children()) if model.call_spec.in_spec else 0
        return model, [f"arg{i}" for i in range(count)]
    module = model if isinstance(model, torch.nn.Module) else _Function(model)
    check_module(module)
    names = _parameter_names(module, len(args))
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        raise TraceDeclined(f"torch.export could not trace it: {first_line(error)}") from error
    return program, names


def check_module(module: torch.nn.Module) -> None:
    """Raises TraceDeclined for a module that must run as torch runs it."""
    if module.training and any(p.requires_grad for p in module.parameters()):
        raise TraceDeclined("the model is in training mode; call model.eval() first")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        check_tensor(name, tensor)
    check_mode()


def _parameter_names(module: torch.nn.Module, count: int) -> list[str]:
    """Names of the first `count` positional parameters of a module's forward."""
    signature = inspect.signature(module.forward)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature.parameters.values() if p.kind in kinds][:count]
    return names + [f"arg{i}" for i in range(len(names), count)]


def graph_of(program: ExportedProgram) -> tuple[Graph, list[torch.Tensor]]:
    """The graph of an exported program, and the buffers it writes to (its last inputs).

    Parameters, buffers and constants become consts that share the model's memory.
    """
    placeholders = [n.name for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    tensors: dict[int, torch.Tensor] = {}
    for index, spec in enumerate(program.graph_signature.input_specs):
        if spec.kind is not InputKind.USER_INPUT:
            tensors[index] = _stored(program, spec)
    graph = from_fx(program.graph_module, set(tensors))
    return _bind(graph, {placeholders[i]: t for i, t in tensors.items()})


def _stored(program: ExportedProgram, spec: InputSpec) -> torch.Tensor:
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise TraceDeclined(f"the program takes a {spec.kind.name.lower()}")
    assert spec.target is not None
    source = program.state_dict if spec.target in program.state_dict else program.constants
    return source[spec.target].detach()


def _bind(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> tuple[Graph, list[torch.Tensor]]:
    """Inputs of these names become consts, but those the graph writes to stay inputs, last."""
    o = Builder(graph.dims)
    written = {i for i, _ in graph.updates}
    changes, consts, state, user = {}, {}, [], []
    for index, node in enumerate(graph.inputs):
        name = node.attr("name")
        if name not in tensors:
            user.append((index, node))
        elif index in written:
            state.append((index, node))
        else:
            changes[node] = o.const(name, node.tensor_type)
            consts[name] = tensors[name]
    position = {old: new for new, (old, _) in enumerate(user + state)}
    bound = replace(
        exchange(graph, changes, o),
        inputs=tuple(node for _, node in user + state),
        updates=tuple((position[i], n) for i, n in exchange(graph, changes, o).updates),
        consts={**graph.consts, **consts},
    )
    return bound.with_consts({}), [tensors[n.attr("name")] for _, n in state]


def _promised_ranges(program: ExportedProgram, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The ranges the caller asked for. torch traces as if every dynamic size were 2 or more; a
    lower bound of 0 or 1 (`torch.export.Dim("batch", min=1)`) holds only if the program gives the
    same types there and at what lies between, which runs on fake tensors of those sizes tell."""
    ranged = []
    for dim in dims:
        bounds = program.range_constraints.get(dim.symbol)
        lo = int(bounds.lower) if bounds is not None and bounds.lower.is_Integer else dim.lo
        hi = bounds.upper if bounds is not None else dim.hi
        upper = int(hi) if isinstance(hi, int | sympy.Integer) and hi < 2**62 else None
        least = 2
        while lo < least and _same_types_at(program, dims, dim, least - 1):
            least -= 1
        ranged.append(replace(dim, lo=max(lo, least), hi=upper))
    return tuple(ranged)


def _same_types_at(program: ExportedProgram, dims: tuple[Dim, ...], dim: Dim, value: int) -> bool:
    """True where the aten program at this size gives the shapes and dtypes the trace promises."""
    sizes = {d.symbol: value if d is dim else d.hint for d in dims}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    nodes = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]

    def at(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(substitute(as_size(s), sizes) for s in tensor.shape), tensor.dtype

    inputs = []
    for node in nodes:
        meta = node.meta.get("val")
        if isinstance(meta, torch.Tensor):
            shape, dtype = at(meta)
            with mode:
                meta = torch.empty(shape, dtype=dtype)
        inputs.append(substitute(as_size(meta), sizes) if isinstance(meta, torch.SymInt) else meta)
    try:
        with mode, torch.no_grad():
            found = pytree.tree_leaves(fx.Interpreter(program.graph_module).run(*inputs))
    except Exception:  # the operator itself refuses this size
        return False
    [end] = [n for n in program.graph_module.graph.nodes if n.op == "output"]
    promised = [n.meta.get("val") for n in end.all_input_nodes]
    types = [at(t) for t in promised if isinstance(t, torch.Tensor)]
    return types == [(tuple(t.shape), t.dtype) for t in found if isinstance(t, torch.Tensor)]
