"""Adapters of a compiled model: loaded into memory that its program reads, and chosen row by row.

Every layer with room has constants a [slots, rank, in], b [slots, rank, out] and ranks i64 [slots].
Loading writes into a slot that nobody uses. An adapter that was unloaded keeps its slot for the
calls, and the states of a decoder, that were given it: so nobody ever reads what is being written.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from infopt.runtime.adapter_files import Factors, read_adapter
from infopt.runtime.errors import (
    AdapterMismatch,
    AdaptersFull,
    InputMismatch,
    UnknownAdapter,
)
from infopt.runtime.signature import Signature

ARGUMENT = "adapters"  # of a call: what its rows use
Names: TypeAlias = "str | None | Sequence[str | None]"


@dataclass(frozen=True)
class Layer:
    """A layer with room: its sizes, and what its constants are called."""

    inputs: int
    outputs: int
    a: str
    b: str
    ranks: str


@dataclass(frozen=True)
class Room:
    """What adapters there is room for.

    leaf   which leaf of the arguments holds the rows' slot numbers; batch: whose first size is the
           number of rows. Of a decoder, whose loop makes its inputs, 0
    """

    rank: int
    slots: int
    layers: Mapping[str, Layer]
    leaf: int = 0
    batch: int = 0

    @property
    def constants(self) -> set[str]:
        """The names of all constants that loading writes to."""
        return {name for layer in self.layers.values() for name in (layer.a, layer.b, layer.ranks)}

    def to_json(self) -> dict[str, Any]:
        layers = {
            name: [layer.inputs, layer.outputs, layer.a, layer.b, layer.ranks]
            for name, layer in self.layers.items()
        }
        return {
            "rank": self.rank,
            "slots": self.slots,
            "layers": layers,
            "leaf": self.leaf,
            "batch": self.batch,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Room:
        """Raises KeyError, TypeError and ValueError for what is none."""
        layers = {
            str(name): Layer(int(inputs), int(outputs), str(a), str(b), str(ranks))
            for name, (inputs, outputs, a, b, ranks) in record["layers"].items()
        }
        rank, slots = int(record["rank"]), int(record["slots"])
        return cls(rank, slots, layers, int(record["leaf"]), int(record["batch"]))


class Adapter:
    """A loaded adapter: its slot is taken for as long as somebody holds this."""

    __slots__ = ("__weakref__", "name", "slot")

    def __init__(self, name: str, slot: int) -> None:
        self.name, self.slot = name, slot


@dataclass(frozen=True)
class Chosen:
    """The adapter of each row of a batch, None where the model alone counts."""

    adapters: tuple[Adapter | None, ...]

    @property
    def names(self) -> tuple[str | None, ...]:
        return tuple([None if a is None else a.name for a in self.adapters])

    def slots(self) -> Tensor:
        """int64 [rows], -1 for none."""
        return torch.tensor([-1 if a is None else a.slot for a in self.adapters])

    def pick(self, rows: Sequence[int]) -> Chosen:
        return Chosen(tuple([self.adapters[row] for row in rows]))


class AdapterSet:
    """The adapters of a compiled model, by name.

    room  how many there can be, how large, of which layers

    Adapters may be loaded and unloaded while other threads call the model.
    """

    def __init__(
        self,
        room: Room,
        memories: Sequence[Mapping[str, Tensor]],
        loaded: Mapping[str, int] | None = None,
    ) -> None:
        """memories: the room's constants by name, each of which is written to (those a program
        reads on its device, and those that are saved). loaded: adapters that are there already."""
        self.room, self._memories = room, tuple(memories)
        self._lock = threading.Lock()
        self._loaded: dict[str, Adapter] = {}
        self._free = [s for s in range(room.slots) if s not in set((loaded or {}).values())]
        for name, slot in (loaded or {}).items():
            self._loaded[name] = self._adapter(name, slot)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that a call can name, in the order in which they were loaded."""
        return tuple(self._loaded)

    def load(
        self,
        name: str,
        source: Mapping[str, Tensor] | str | Path,
        *,
        scale: float | None = None,
    ) -> None:
        """Load an adapter; calls can name it from then on. One of that name is exchanged: calls and
        states that have the old one keep it, and its slot, until they are done.

        source: a folder that PEFT wrote (adapter_model.safetensors and adapter_config.json), or
        tensors by PEFT's names, "layers.0.attention.query.lora_A.weight" [r, in] and
        "...lora_B.weight" [out, r], with or without "base_model.model." before them. They add
        scale * B A x: 1 if None, and a folder says its own. Numbers get the layers' dtype.
        Raises AdapterMismatch, AdapterUnsupported, AdaptersFull; nothing was changed then.
        """
        if not isinstance(name, str) or not name:
            raise AdapterMismatch(f"name: expected a name, found {name!r}")
        factors = read_adapter(source, scale)
        ready = {layer: self._fitting(layer, own) for layer, own in factors.items()}
        with self._lock:
            if not self._free:
                raise AdaptersFull(
                    f"no slot for {name!r}: {self.room.slots} are taken by {list(self._loaded)} "
                    "and by what calls and states still use"
                )
            slot = self._free.pop(0)
            for memory in self._memories:
                self._write(memory, slot, ready)
            self._loaded[name] = self._adapter(name, slot)

    def unload(self, name: str) -> None:
        """Calls cannot name it any more. Its slot is free when those that have it are done.

        Raises UnknownAdapter.
        """
        with self._lock:
            self._known(name)
            del self._loaded[name]

    def choose(self, names: Names, rows: int) -> Chosen:
        """The adapters of a batch of so many rows: one name for all, or one for each, None for the
        model alone. Raises UnknownAdapter, InputMismatch."""
        if names is None or isinstance(names, str):
            return Chosen((self._known(names),) * rows)
        if not isinstance(names, list | tuple) or len(names) != rows:
            raise InputMismatch(
                f"{ARGUMENT}: expected a name, or a list of {rows} of them or None, found {names!r}"
            )
        return Chosen(tuple([self._known(name) for name in names]))

    def bind(
        self, signature: Signature, args: tuple, kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], Chosen]:
        """The leaves of a call whose keyword `adapters` names what its rows use, and what that is,
        to be held while the call runs. Raises InputMismatch, UnknownAdapter."""
        names = kwargs.get(ARGUMENT)
        flat = signature.bind(args, {**kwargs, ARGUMENT: None})
        batch = flat[self.room.batch]
        if not isinstance(batch, Tensor) or not batch.dim():
            raise InputMismatch(f"expected rows in the first size of an input, found {batch!r}")
        chosen = self.choose(names, int(batch.shape[0]))
        flat[self.room.leaf] = chosen.slots().to(batch.device)
        return flat, chosen

    def use(self, memories: Sequence[Mapping[str, Tensor]]) -> None:
        """Write to these constants from now on; they hold what is loaded."""
        with self._lock:
            self._memories = tuple(memories)

    def to_json(self) -> dict[str, Any]:
        """The room, and in which slot what is loaded lies."""
        with self._lock:
            loaded = [[name, adapter.slot] for name, adapter in self._loaded.items()]
        return {**self.room.to_json(), "loaded": loaded}

    def _adapter(self, name: str, slot: int) -> Adapter:
        adapter = Adapter(name, slot)
        weakref.finalize(adapter, self._free.append, slot).atexit = False
        return adapter

    def _known(self, name: str | None) -> Adapter | None:
        adapter = None if name is None else self._loaded.get(name)
        if name is not None and adapter is None:
            raise UnknownAdapter(f"no adapter {name!r} is loaded, only {list(self._loaded)}")
        return adapter

    def _fitting(self, name: str, given: Factors) -> tuple[Tensor, Tensor]:
        """a [r, in] and scale * b turned, [r, out], as the layer's constants hold them."""
        layer = self.room.layers.get(name)
        if layer is None:
            known = list(self.room.layers)
            listed = ", ".join(known[:4]) + (", ..." if len(known) > 4 else "")
            raise AdapterMismatch(f"{name}: no such layer has room for adapters, only {listed}")
        if given.rank > self.room.rank:
            raise AdapterMismatch(
                f"{name}: rank {given.rank}, and there is room for {self.room.rank}"
            )
        found = given.a.shape[1], given.b.shape[0]
        if found != (layer.inputs, layer.outputs):
            raise AdapterMismatch(
                f"{name}: expected lora_A [r, {layer.inputs}] and lora_B [{layer.outputs}, r], "
                f"found {list(given.a.shape)} and {list(given.b.shape)}"
            )
        dtype = self._memories[0][layer.a].dtype
        a = given.a.detach().to("cpu", dtype)
        b = (given.b.detach().cpu().double() * given.scale).T.contiguous().to(dtype)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise AdapterMismatch(f"{name}: numbers that are not finite in {dtype}")
        return a, b

    def _write(
        self,
        memory: Mapping[str, Tensor],
        slot: int,
        ready: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        for name, layer in self.room.layers.items():
            a, b = ready.get(name, (None, None))
            rank = 0 if a is None else a.shape[0]
            for bank, rows in ((memory[layer.a], a), (memory[layer.b], b)):
                bank[slot].zero_()
                if rows is not None:
                    bank[slot, :rank].copy_(rows)
            memory[layer.ranks][slot] = rank
        if bank.is_cuda:
            torch.cuda.synchronize(bank.device)  # calls may come on any stream

    def __repr__(self) -> str:
        return f"<infopt.AdapterSet {list(self._loaded)}, {self.room.slots} slots>"
