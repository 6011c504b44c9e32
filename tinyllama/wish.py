"""Where a user wants a model computed, checked and made into backends before the model's file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.base import Backend, Options
from backends.registry import AUTO, fastest, get_backend
from ops.errors import FetchError, OptionError

from .checks import whole_number
from .device_memory import Demand, place_last
from .fetch import cache_folder, of_variable
from .offload import HOST, Entry, Place, Placement, is_device, parse_map

ALL = 1 << 30  # layers: more than any model has


@dataclass(frozen=True)
class Wish:
    """A backend and how many layers it gets, or a map of layers over several."""

    backend: Backend
    n_gpu_layers: int | None  # None: as many as fit
    map: list[Entry] = field(default_factory=list)
    backends: dict[Place, Backend] = field(default_factory=dict)  # those of the map
    auto: str | None = None  # of a backend that `auto` chose: why it is this one

    @staticmethod
    def of(backend: str | Backend, options: Options, n_gpu_layers: Any, layers: str | None) -> Wish:
        """OptionError: flags that exclude each other, or have no meaning; BackendError: a backend that cannot be used."""
        n = layers_wanted(n_gpu_layers)
        if layers is None and backend == AUTO:
            choice = fastest(options)
            check_device_flags(choice.backend, options, f"auto found no device ({choice.passed_over})")
            return Wish(choice.backend, None if n_gpu_layers is None else n, auto=choice.told)
        if layers is None:
            return Wish(made(backend, options), n)
        if n_gpu_layers is not None:
            raise OptionError("give either -ngl (n_gpu_layers) or --layers (layers): each says which layers go where")
        if options.device is not None:
            raise OptionError("a map of layers (--layers) names its devices itself, such as opencl@1:10-29, without --device")
        entries = parse_map(layers)
        backends = backends_of(entries, backend, options)
        return Wish(next(reversed(backends.values())), n, entries, backends)

    def placement(self, demand: Demand) -> Placement:
        """BackendError if a device has too little memory for what is asked; nothing has been put there then."""
        n_layer = demand.built.config.n_layer
        if self.map:
            placement = Placement.of_map(self.map, self.backends, n_layer)
            demand.check_room(placement, "this map of layers")
            return placement
        if not is_device(self.backend):
            return Placement.all_on(self.backend, n_layer)
        return place_last(demand, self.backend, host_beside(self.backend), self.n_gpu_layers)


def layers_wanted(n: Any) -> int | None:
    """n_gpu_layers as a number; None for "auto". "all", None and -1 are more than any model has."""
    if n == "auto":
        return None
    return ALL if n is None or n == "all" or whole_number("n_gpu_layers", n, -1) == -1 else int(n)


def one_device(device: int | str | None, main_gpu: int | None) -> str | None:
    """--device and -mg say the same; OptionError if they do not."""
    if main_gpu is not None:
        whole_number("main_gpu", main_gpu, 0)
    if isinstance(device, str):
        device = device.strip()
    elif device is not None:
        whole_number("device", device, 0)
    if device == "":
        raise OptionError("device = '': expected a number, or a part of a device's name, as `tinyllama devices` lists them")
    if device is not None and main_gpu is not None and str(device) != str(main_gpu):
        raise OptionError(f"--device {device} and -mg {main_gpu} name two devices: give one of them")
    chosen = main_gpu if device is None else device
    return None if chosen is None else str(chosen)


def panels_folder() -> Path | None:
    """Where weights that a backend lays out anew are kept: TINYLLAMA_PANELS, else `panels` in the folder of fetched models.

    None if that variable is empty, or there is no home folder.
    """
    return _kept("panels", "TINYLLAMA_PANELS")


def tuning_file() -> Path | None:
    """Where it is kept what devices were found to be fastest with: TINYLLAMA_TUNING, else `tuning.json` beside the panels.

    None, and so not measured, if that variable is empty, or there is no home folder.
    """
    return _kept("tuning.json", "TINYLLAMA_TUNING")


def _kept(name: str, variable: str) -> Path | None:
    own = os.environ.get(variable)
    if own is not None:
        return of_variable(own) if own else None
    try:
        return cache_folder() / name
    except FetchError:
        return None


def made(backend: str | Backend, options: Options, *, in_map: bool = False) -> Backend:
    """The backend of that name with these options; one that exists already has its own.

    OptionError: something is said of the device of a backend that has none, unless it is said of a whole map.
    """
    if isinstance(backend, Backend):
        if options != Options():
            raise OptionError(
                "n_threads, weights_memory, fuse, precise, repack and the device are the backend's: give them to the one you "
                "made"
            )
        return backend
    if not isinstance(backend, str):
        raise OptionError(f"backend = {backend!r}: expected a name, module:Class, or a Backend")
    got = get_backend(backend, options)
    check_device_flags(got, options if not in_map else Options(device=options.device), f"the backend {backend} has no devices")
    return got


def check_device_flags(backend: Backend, options: Options, no_device: str) -> None:
    """OptionError, with this reason, if the options say something of a device and the backend has none."""
    asked = {
        "--device": options.device,
        "--device-memory": options.device_memory,
        "--device-features": options.device_features,
    }
    if not is_device(backend) and (flags := [flag for flag, value in asked.items() if value is not None]):
        raise OptionError(
            f"{flags[0]} {asked[flags[0]]} was asked for, but {no_device}: `tinyllama devices` lists what there is, and "
            "--backend chooses"
        )


def backends_of(entries: list[Entry], backend: str | Backend, options: Options) -> dict[Place, Backend]:
    """One backend for each BACKEND@DEVICE of a map, and numpy for the layers that it leaves out.

    A Backend that exists already goes by its name in the map.
    """
    known: dict[Place, Backend] = {}
    if isinstance(backend, Backend):
        known[backend.name, None] = made(backend, options)
        options = replace(backend.options, device=None)
    if AUTO in {entry.backend for entry in entries}:
        raise OptionError("a map of layers (--layers) names its backends itself, without auto: `tinyllama devices` lists them")
    name = backend.name if isinstance(backend, Backend) else backend
    if name not in (HOST, AUTO) and name not in {entry.backend for entry in entries}:
        raise OptionError(f"the map of layers (--layers) leaves out {name}, which --backend asks for: name it in the map")
    places = [(HOST, None), *(entry.place for entry in entries)]
    for place in places:
        if place not in known:
            new = made(place[0], replace(options, device=place[1]), in_map=True)
            known[place] = next((b for b in known.values() if b.is_same_device(new)), new)  # by another name
    return {place: known[place] for place in dict.fromkeys(places)}


def host_beside(backend: Backend) -> Callable[[], Backend]:
    """Makes what computes the layers that a device does not."""
    return lambda: get_backend(HOST, replace(backend.options, device=None, device_memory=None, device_features=None))
