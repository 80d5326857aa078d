"""One class per kind of failure, so that callers can tell them apart."""

from __future__ import annotations

from typing import Any


def first_line(error: BaseException) -> str:
    """What an error says: torch's often go on with a page of advice."""
    return (str(error).strip().splitlines() or [repr(error)])[0]


class InfoptError(Exception):
    """Every error that infopt raises on purpose."""


class IllegalGraph(InfoptError):
    """A graph broke an invariant: a dangling value, a wrong type, an op outside its stage."""


class CannotInfer(InfoptError):
    """An op's reference refused the given types, or its result depends on a dim's value."""


class DependsOnSize(CannotInfer):
    """An op's result type depends on the value of a dim, which only torch's own guards decide.

    seen: the type it has at the sizes seen in tracing.
    """

    def __init__(self, message: str, seen: object = None) -> None:
        super().__init__(message)
        self.seen: Any = seen


class UnknownOp(InfoptError):
    """No infopt op and no aten operator has this name."""


class TraceDeclined(InfoptError):
    """This program cannot become a graph; it runs as torch runs it. The message is the reason."""


class IllegalTrace(IllegalGraph, TraceDeclined):
    """What tracing made is no legal graph: our fault, not the program's, which torch then runs."""


class CannotStream(InfoptError):
    """A model's result over time cannot be made hop by hop. The message names the op, and why."""


class PatternError(InfoptError):
    """A pattern is not a tree of op calls over its variables."""


class ContractBroken(InfoptError):
    """A pass left its accuracy contract, changed the graph's interface, or is out of order."""


class BadOption(InfoptError, ValueError):
    """An unknown option, or a value of the wrong kind."""


class FallbackRefused(InfoptError):
    """strict=True, and some part could only run as torch runs it."""


class UnreachableBudget(InfoptError):
    """No choice of formats keeps the error and the memory that the user allows."""


class MissingLibrary(InfoptError):
    """A library that an option needs is not installed; the message says how to install it."""
