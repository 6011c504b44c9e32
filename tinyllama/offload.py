"""Which layer, with its part of the KV cache, lives on which backend: the last N layers (-ngl), or any map (--layers)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from backends.base import Backend
from ops.errors import OptionError
from ops.graph import Graph, Node

HOST = "numpy"  # what computes the layers that no device is asked to
Place = tuple[str, str | None]  # a backend's name, and which of its devices; None: the one it chooses


@dataclass(frozen=True)
class Placement:
    """A backend for what comes before the layers, one for each layer, and one for what comes after."""

    input: Backend
    layers: tuple[Backend, ...]
    output: Backend

    @staticmethod
    def all_on(backend: Backend, n_layer: int) -> Placement:
        return Placement(backend, (backend,) * n_layer, backend)

    @staticmethod
    def last_on(device: Backend, n: int, host: Callable[[], Backend], n_layer: int) -> Placement:
        """-ngl n: the last n layers on the device, the output too if n > n_layer; then nothing is left for the host."""
        if n > n_layer:
            return Placement.all_on(device, n_layer)
        rest = host()
        return Placement(rest, (rest,) * (n_layer - n) + (device,) * n, rest)

    @staticmethod
    def of_map(entries: Sequence[Entry], backends: Mapping[Place, Backend], n_layer: int) -> Placement:
        """--layers. Input goes with the first layer and output with the last, unless they are named.

        OptionError: a layer that the model does not have, or what is named twice.
        """
        ends: dict[str, Backend] = {}
        layers: dict[int, Backend] = {}
        for entry in entries:
            backend, where = backends[entry.place], entry.where
            if isinstance(where, str):
                if where in ends:
                    raise OptionError(f"the map of layers (--layers) names {where} twice")
                ends[where] = backend
                continue
            if where.stop > n_layer:
                raise OptionError(
                    f"the map of layers (--layers) names layer {where.stop - 1}: the model has layers 0 to {n_layer - 1}"
                )
            if twice := layers.keys() & set(where):
                raise OptionError(f"the map of layers (--layers) names layer {min(twice)} twice")
            layers |= dict.fromkeys(where, backend)
        placed = tuple(layers[i] if i in layers else backends[HOST, None] for i in range(n_layer))
        return Placement(ends.get("input", placed[0]), placed, ends.get("output", placed[-1]))

    @property
    def backends(self) -> list[Backend]:
        """Each once, in the order in which a step comes to them."""
        return list(dict.fromkeys([self.input, *self.layers, self.output]))

    @property
    def devices(self) -> list[Backend]:
        """Those with memory of their own."""
        return [backend for backend in self.backends if is_device(backend)]

    def count(self, backend: Backend) -> int:
        """Layers there, as llama.cpp counts: the output is one more."""
        return [*self.layers, self.output].count(backend)

    def runs(self, graph: Graph) -> list[tuple[Backend, list[Node]]]:
        """The graph's nodes in order, cut where the backend changes."""
        placed: list[tuple[Backend, Node]] = []
        before_layers = True
        for node in graph.nodes:
            before_layers = before_layers and node.layer is None
            if node.layer is not None:
                placed.append((self.layers[node.layer], node))
            else:
                placed.append((self.input if before_layers else self.output, node))
        return [(backend, [n for _, n in run]) for backend, run in groupby(placed, key=lambda pair: pair[0])]

    def parts(self, graph: Graph) -> list[tuple[Backend, Graph]]:
        """The runs as graphs."""
        return [(backend, graph.part(nodes)) for backend, nodes in self.runs(graph)]

    def ranges(self) -> Iterator[str]:
        """For the load summary: `layers 0-29: numpy`."""
        start = 0
        for backend, run in groupby(self.layers):
            end = start + len(list(run)) - 1
            yield f"layers {start}-{end}: {label(backend)}" if end > start else f"layer {start}: {label(backend)}"
            start = end + 1
        if {self.input, self.output} != set(self.layers):
            yield f"input: {label(self.input)}, output: {label(self.output)}"


def is_device(backend: Backend) -> bool:
    """Does it compute in another memory than the host's, or choose among devices?"""
    return backend.memory_free() is not None or bool(backend.devices())


def label(backend: Backend) -> str:
    """`opencl`, or `opencl@1` where a device was chosen."""
    return backend.name if backend.options.device is None else f"{backend.name}@{backend.options.device}"


@dataclass(frozen=True)
class Entry:
    """One part of a map: `opencl@1:10-29` is layers 10 to 29, `opencl:output` what comes after the layers."""

    backend: str
    device: str | None
    where: range | Literal["input", "output"]

    @property
    def place(self) -> Place:
        return self.backend, self.device


def parse_map(text: str) -> list[Entry]:
    """BACKEND[@DEVICE]:FIRST-LAST,... as entries. BACKEND may be module:Class, so the last colon divides.

    OptionError: nothing, or a part that is not of this form.
    """
    if not isinstance(text, str):
        raise OptionError(f"layers = {text!r}: expected a map, such as 'numpy:0-9,opencl:10-29'")
    entries = []
    for part in text.split(","):
        place, _, where = part.strip().rpartition(":")
        backend, at, device = place.partition("@")
        numbers = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", where)
        if not backend or (at and not device) or not (numbers or where in ("input", "output")):
            raise OptionError(
                f"the map of layers (--layers) has '{part.strip()}', expected BACKEND:FIRST-LAST or BACKEND@DEVICE:FIRST-LAST, "
                "such as numpy:0-9,opencl:10-29; a single layer, input and output can be named too"
            )
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if last < first:
                raise OptionError(f"the map of layers (--layers) has '{part.strip()}': layer {last} comes before {first}")
            entries.append(Entry(backend, device or None, range(first, last + 1)))
        else:
            entries.append(Entry(backend, device or None, "input" if where == "input" else "output"))
    return entries
