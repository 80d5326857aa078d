"""infopt: an optimizing compiler for PyTorch inference.

Names load on first use, so `import infopt` is cheap and a deployed machine that only loads
artifacts never imports the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infopt.codegen.build import BuildFailed as BuildFailed
    from infopt.codegen.build import CompilerMissing as CompilerMissing
    from infopt.codegen.kernel import kernel_op as kernel_op
    from infopt.compiler import testing as testing
    from infopt.compiler.accuracy import Accuracy as Accuracy
    from infopt.compiler.accuracy import Bounded as Bounded
    from infopt.compiler.accuracy import Close as Close
    from infopt.compiler.accuracy import Exact as Exact
    from infopt.compiler.adapters import Adapters as Adapters
    from infopt.compiler.budget import Budget as Budget
    from infopt.compiler.certification.certify import NotCertified as NotCertified
    from infopt.compiler.decoding import kv as kv
    from infopt.compiler.decoding.causal_lm import compile_causal_lm as compile_causal_lm
    from infopt.compiler.driver import compile as compile
    from infopt.compiler.driver import explain as explain
    from infopt.compiler.errors import BadOption as BadOption
    from infopt.compiler.errors import CannotInfer as CannotInfer
    from infopt.compiler.errors import CannotStream as CannotStream
    from infopt.compiler.errors import ContractBroken as ContractBroken
    from infopt.compiler.errors import FallbackRefused as FallbackRefused
    from infopt.compiler.errors import IllegalGraph as IllegalGraph
    from infopt.compiler.errors import InfoptError as InfoptError
    from infopt.compiler.errors import MissingLibrary as MissingLibrary
    from infopt.compiler.errors import PatternError as PatternError
    from infopt.compiler.errors import TraceDeclined as TraceDeclined
    from infopt.compiler.errors import UnknownOp as UnknownOp
    from infopt.compiler.errors import UnreachableBudget as UnreachableBudget
    from infopt.compiler.fx_pass import FxPass as FxPass
    from infopt.compiler.graph import Graph as Graph
    from infopt.compiler.graph import Node as Node
    from infopt.compiler.graph import Stage as Stage
    from infopt.compiler.inductor import InductorPass as InductorPass
    from infopt.compiler.model import Compiled as Compiled
    from infopt.compiler.ops import Op as Op
    from infopt.compiler.ops import op as op
    from infopt.compiler.pipeline import Pass as Pass
    from infopt.compiler.pipeline import PassContext as PassContext
    from infopt.compiler.report import PassReport as PassReport
    from infopt.compiler.report import Report as Report
    from infopt.compiler.report import Site as Site
    from infopt.compiler.rewrite import Rule as Rule
    from infopt.compiler.stream import compile_stream as compile_stream
    from infopt.compiler.target import Target as Target
    from infopt.compiler.tokens import Tokens as Tokens
    from infopt.compiler.transformers_exporter import (
        register_with_transformers as register_with_transformers,
    )
    from infopt.compiler.types import Dim as Dim
    from infopt.compiler.types import TensorType as TensorType
    from infopt.passes.pipelines import default_passes as default_passes
    from infopt.runtime.adapters import AdapterSet as AdapterSet
    from infopt.runtime.decoding.causal_lm import CausalLM as CausalLM
    from infopt.runtime.decoding.compaction import Compaction as Compaction
    from infopt.runtime.decoding.layout import KV as KV
    from infopt.runtime.decoding.state import State as State
    from infopt.runtime.errors import AdapterError as AdapterError
    from infopt.runtime.errors import AdapterMismatch as AdapterMismatch
    from infopt.runtime.errors import AdaptersFull as AdaptersFull
    from infopt.runtime.errors import AdapterUnsupported as AdapterUnsupported
    from infopt.runtime.errors import ArtifactCorrupt as ArtifactCorrupt
    from infopt.runtime.errors import ArtifactError as ArtifactError
    from infopt.runtime.errors import ArtifactIncompatible as ArtifactIncompatible
    from infopt.runtime.errors import ArtifactTooNew as ArtifactTooNew
    from infopt.runtime.errors import ArtifactUnsafe as ArtifactUnsafe
    from infopt.runtime.errors import ArtifactUntrusted as ArtifactUntrusted
    from infopt.runtime.errors import BadTokens as BadTokens
    from infopt.runtime.errors import ContextFull as ContextFull
    from infopt.runtime.errors import GoldenMismatch as GoldenMismatch
    from infopt.runtime.errors import InfoptRuntimeError as InfoptRuntimeError
    from infopt.runtime.errors import InputMismatch as InputMismatch
    from infopt.runtime.errors import KernelError as KernelError
    from infopt.runtime.errors import LibraryError as LibraryError
    from infopt.runtime.errors import OverBudget as OverBudget
    from infopt.runtime.errors import PlanError as PlanError
    from infopt.runtime.errors import SizeError as SizeError
    from infopt.runtime.errors import StaleState as StaleState
    from infopt.runtime.errors import TooManySequences as TooManySequences
    from infopt.runtime.errors import UnknownAdapter as UnknownAdapter
    from infopt.runtime.errors import WeightsMismatch as WeightsMismatch
    from infopt.runtime.loading import load as load
    from infopt.runtime.loading import sign as sign
    from infopt.runtime.loading import verify as verify
    from infopt.runtime.stream import Stream as Stream
    from infopt.runtime.stream import StreamState as StreamState
    from infopt.runtime.trust import NativeCodeRefused as NativeCodeRefused
    from infopt.runtime.verdict import Verdict as Verdict
    from infopt.runtime.verdict import verdicts as verdicts

__version__ = "0.1.0"

# Public name -> the module that defines it; tests/test_packaging.py resolves every one.
_HOMES = {
    "Accuracy": "compiler.accuracy",
    "AdapterError": "runtime.errors",
    "AdapterMismatch": "runtime.errors",
    "AdapterSet": "runtime.adapters",
    "AdapterUnsupported": "runtime.errors",
    "Adapters": "compiler.adapters",
    "AdaptersFull": "runtime.errors",
    "ArtifactCorrupt": "runtime.errors",
    "ArtifactError": "runtime.errors",
    "ArtifactIncompatible": "runtime.errors",
    "ArtifactTooNew": "runtime.errors",
    "ArtifactUnsafe": "runtime.errors",
    "ArtifactUntrusted": "runtime.errors",
    "BadOption": "compiler.errors",
    "BadTokens": "runtime.errors",
    "Bounded": "compiler.accuracy",
    "Budget": "compiler.budget",
    "BuildFailed": "codegen.build",
    "CannotInfer": "compiler.errors",
    "CannotStream": "compiler.errors",
    "CausalLM": "runtime.decoding.causal_lm",
    "Close": "compiler.accuracy",
    "Compaction": "runtime.decoding.compaction",
    "Compiled": "compiler.model",
    "CompilerMissing": "codegen.build",
    "ContextFull": "runtime.errors",
    "ContractBroken": "compiler.errors",
    "Dim": "compiler.types",
    "Exact": "compiler.accuracy",
    "FallbackRefused": "compiler.errors",
    "FxPass": "compiler.fx_pass",
    "GoldenMismatch": "runtime.errors",
    "Graph": "compiler.graph",
    "IllegalGraph": "compiler.errors",
    "InductorPass": "compiler.inductor",
    "InfoptError": "compiler.errors",
    "InfoptRuntimeError": "runtime.errors",
    "InputMismatch": "runtime.errors",
    "KV": "runtime.decoding.layout",
    "KernelError": "runtime.errors",
    "LibraryError": "runtime.errors",
    "MissingLibrary": "compiler.errors",
    "NativeCodeRefused": "runtime.trust",
    "Node": "compiler.graph",
    "NotCertified": "compiler.certification.certify",
    "Op": "compiler.ops",
    "Pass": "compiler.pipeline",
    "PassContext": "compiler.pipeline",
    "PassReport": "compiler.report",
    "PatternError": "compiler.errors",
    "PlanError": "runtime.errors",
    "Report": "compiler.report",
    "Rule": "compiler.rewrite",
    "Site": "compiler.report",
    "SizeError": "runtime.errors",
    "Stage": "compiler.graph",
    "OverBudget": "runtime.errors",
    "StaleState": "runtime.errors",
    "State": "runtime.decoding.state",
    "Stream": "runtime.stream",
    "StreamState": "runtime.stream",
    "Target": "compiler.target",
    "TensorType": "compiler.types",
    "TooManySequences": "runtime.errors",
    "Tokens": "compiler.tokens",
    "TraceDeclined": "compiler.errors",
    "UnknownAdapter": "runtime.errors",
    "UnknownOp": "compiler.errors",
    "UnreachableBudget": "compiler.errors",
    "Verdict": "runtime.verdict",
    "WeightsMismatch": "runtime.errors",
    "compile": "compiler.driver",
    "compile_causal_lm": "compiler.decoding.causal_lm",
    "compile_stream": "compiler.stream",
    "default_passes": "passes.pipelines",
    "explain": "compiler.driver",
    "kernel_op": "codegen.kernel",
    "load": "runtime.loading",
    "op": "compiler.ops",
    "register_with_transformers": "compiler.transformers_exporter",
    "sign": "runtime.loading",
    "verdicts": "runtime.verdict",
    "verify": "runtime.loading",
}
_MODULES = {"kv": "compiler.decoding.kv", "testing": "compiler.testing"}

__all__ = [
    "KV",
    "Accuracy",
    "AdapterError",
    "AdapterMismatch",
    "AdapterSet",
    "AdapterUnsupported",
    "Adapters",
    "AdaptersFull",
    "ArtifactCorrupt",
    "ArtifactError",
    "ArtifactIncompatible",
    "ArtifactTooNew",
    "ArtifactUnsafe",
    "ArtifactUntrusted",
    "BadOption",
    "BadTokens",
    "Bounded",
    "Budget",
    "BuildFailed",
    "CannotInfer",
    "CannotStream",
    "CausalLM",
    "Close",
    "Compaction",
    "Compiled",
    "CompilerMissing",
    "ContextFull",
    "ContractBroken",
    "Dim",
    "Exact",
    "FallbackRefused",
    "FxPass",
    "GoldenMismatch",
    "Graph",
    "IllegalGraph",
    "InductorPass",
    "InfoptError",
    "InfoptRuntimeError",
    "InputMismatch",
    "KernelError",
    "LibraryError",
    "MissingLibrary",
    "NativeCodeRefused",
    "Node",
    "NotCertified",
    "Op",
    "OverBudget",
    "Pass",
    "PassContext",
    "PassReport",
    "PatternError",
    "PlanError",
    "Report",
    "Rule",
    "Site",
    "SizeError",
    "Stage",
    "StaleState",
    "State",
    "Stream",
    "StreamState",
    "Target",
    "TensorType",
    "Tokens",
    "TooManySequences",
    "TraceDeclined",
    "UnknownAdapter",
    "UnknownOp",
    "UnreachableBudget",
    "Verdict",
    "WeightsMismatch",
    "compile",
    "compile_causal_lm",
    "compile_stream",
    "default_passes",
    "explain",
    "kernel_op",
    "kv",
    "load",
    "op",
    "register_with_transformers",
    "sign",
    "testing",
    "verdicts",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"infopt.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"infopt.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'infopt' has no attribute {name!r}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
