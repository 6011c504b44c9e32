"""What each device has to hold, counted before anything is put there: weights, KV cache, scratch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from backends.base import Backend
from ops.errors import BackendError
from ops.graph import Graph

from .build import Built
from .kv_cache import KvTypes, cache_bytes, cache_dtypes, cache_shapes
from .memory import mib
from .offload import Placement, label


@dataclass(frozen=True)
class Needs:
    """Bytes on one device."""

    weights: int = 0  # in the form the backend multiplies; shared by all contexts
    kv_cache: int = 0  # of one context, with all its places
    scratch: int = 0  # of one context: what lies between the ops of its largest step

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.scratch


@dataclass(frozen=True)
class Demand:
    """What is to be run: a model with so long a context, read in batches of so many tokens."""

    built: Built
    types: KvTypes
    n_ctx: int
    n_batch: int

    @property
    def sizes(self) -> dict[str, int]:
        """Of the largest step: T tokens, U rows of logits, C places of a cache."""
        return {"T": min(self.n_batch, self.n_ctx), "U": 1, "C": self.n_ctx}

    def on_devices(self, placement: Placement) -> dict[Backend, Needs]:
        """What each device of a placement has to hold."""
        graph, layers = self.built.graph, placement.layers
        weights: dict[Backend, dict[tuple[str, str], int]] = {device: {} for device in placement.devices}
        scratch = dict.fromkeys(weights, 0)
        for backend, part in placement.parts(graph):
            if backend in weights:
                weights[backend] |= self._resident(backend, part)  # by name and form: a tied table in one counts once
                scratch[backend] += backend.scratch_bytes(part, self.sizes)
        shapes = cache_shapes(graph)
        caches = cache_bytes(shapes, cache_dtypes(shapes, layers, self.types), self.n_ctx)
        return {
            device: Needs(
                weights=sum(weights[device].values()),
                kv_cache=sum(n for name, n in caches.items() if layers[shapes[name][0]] is device),
                scratch=scratch[device],
            )
            for device in weights
        }

    def check_room(self, placement: Placement, what: str, *, weights_are_there: bool = False) -> None:
        """BackendError if a device of the placement lacks the memory."""
        for device, needs in self.on_devices(placement).items():
            if weights_are_there:
                needs = replace(needs, weights=0)
            if not fits(device, needs):
                raise BackendError(
                    f"{what} needs {_told(needs, self.n_ctx)} on {label(device)}, which has {_free(device)} free: take a "
                    f"shorter context (-c){self.half_cache(placement)} or smaller batches (-b), or give the device fewer layers"
                )

    def half_cache(self, placement: Placement) -> str:
        """Advice, where it is any."""
        dtypes = cache_dtypes(cache_shapes(self.built.graph), placement.layers, self.types).values()
        return ", a cache in half precision (-ctk f16 -ctv f16)" if any(d.itemsize > 2 for d in dtypes) else ""

    def _resident(self, backend: Backend, part: Graph) -> dict[tuple[str, str], int]:
        """Bytes of each weight and constant that a plan of this part keeps; a formula on the host takes the file's."""
        leaves = self.built.leaves
        return {
            (v.name, form): backend.resident_bytes(leaves[v.name], form)
            for n in backend.fused(part).nodes
            for v in n.inputs
            if v.name in leaves and (v.dtype != "weight" or backend.kernel_of(n.op))
            for form in [backend.form(leaves[v.name], v.dtype, n.op)]
        }


def place_last(demand: Demand, device: Backend, host: Callable[[], Backend], n: int | None) -> Placement:
    """-ngl: the last n layers on the device; None: as many as fit.

    BackendError if n layers do not fit, with the largest number that does.
    """
    n_layer = demand.built.config.n_layer
    host = cache(host)  # one for all placements that are tried

    def place(n: int) -> Placement:
        return Placement.last_on(device, n, host, n_layer)

    def overflows(n: int) -> bool:
        return not fits(device, demand.on_devices(place(n)).get(device, Needs()))

    wanted = n_layer + 1 if n is None else min(n, n_layer + 1)
    if not overflows(wanted):
        return place(wanted)
    largest = bisect_left(range(1, wanted), True, key=overflows)  # more layers never need less
    if n is None:
        return place(largest)
    needs = demand.on_devices(place(wanted))[device]
    raise BackendError(
        f"{_wants(wanted, n_layer)} {_told(needs, demand.n_ctx)} on {label(device)}, which has {_free(device)} "
        f"free: the largest -ngl that fits is {largest}, -ngl auto finds it; a shorter context (-c)"
        f"{demand.half_cache(place(wanted))} or smaller batches (-b) leave room for more"
    )


def fits(device: Backend, needs: Needs) -> bool:
    free = device.memory_free()
    return free is None or needs.total <= free


def _wants(n: int, n_layer: int) -> str:
    return f"all {n_layer} layers and the output need" if n > n_layer else f"{n} of {n_layer} layers need"


def _told(needs: Needs, n_ctx: int) -> str:
    return (
        f"{mib(needs.total)} (weights {mib(needs.weights)}, KV cache of {n_ctx} places {mib(needs.kv_cache)}, "
        f"scratch {mib(needs.scratch)})"
    )


def _free(device: Backend) -> str:
    return mib(device.memory_free() or 0)
