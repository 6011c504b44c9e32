"""What this computer could compute on: every backend's devices, and what is missing to use the rest."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from backends.base import Backend, Device
from backends.registry import known_backends
from ops.errors import TinyLlamaError

from .hardware import Card, cards

NEEDS = {"cupy": "NVIDIA"}  # a backend that is of no use, and so is not missed, without a card of this vendor
CUDA_13, CUDA_12 = 580, 525  # NVIDIA's drivers from which on they run it: CUDA's release notes, "minimum required driver"
WORDS = {"AMD": ("amd", "radeon", "gfx"), "Intel": ("intel",)}  # by which OpenCL's names of a device tell the vendor
PACKAGES = {
    "AMD": "AMD's OpenCL driver (rocm-opencl-icd or mesa-opencl-icd on Debian and Ubuntu)",
    "Intel": "Intel's OpenCL driver (intel-opencl-icd on Debian and Ubuntu)",
}


@dataclass(frozen=True)
class Usable:
    """A device, and how to choose it."""

    backend: str
    number: int
    device: Device

    @property
    def choose(self) -> str:
        """The flags of the command line."""
        return f"--backend {self.backend} --device {self.number}"


@dataclass(frozen=True)
class Unusable:
    """What was found, and what to install to use it."""

    what: str
    advice: str


def survey(found: Sequence[Card] | None = None) -> tuple[list[Usable], list[Unusable]]:
    """Every device of every backend, and what cannot be used; `found`: the cards, looked for if not given."""
    found = cards() if found is None else found
    usable: list[Usable] = []
    unusable: list[Unusable] = []
    for name, place in known_backends().items():
        if name in NEEDS and not any(card.vendor == NEEDS[name] for card in found):
            continue
        try:
            usable += [Usable(name, number, device) for number, device in enumerate(_backend(place).devices())]
        except Exception as error:  # a driver's own, or what a foreign module does when it is imported
            told = str(error) if isinstance(error, TinyLlamaError) else f"{type(error).__name__}: {error}"
            if name != "cupy" or find_spec("cupy"):  # else the advice for the card says it better
                told = " ".join(told.split()).removeprefix(f"backend '{name}' ")
                unusable.append(Unusable(f"backend {name}", told))
    return usable, list(dict.fromkeys([*unusable, *_advice(found, usable)]))  # two cards of a kind are told once


def _advice(found: Iterable[Card], usable: Sequence[Usable]) -> Iterable[Unusable]:
    """For cards that no backend reached."""
    told = [f"{u.device.name} {u.device.driver}".lower() for u in usable if u.backend == "opencl" and u.device.kind == "GPU"]
    for card in found:
        if card.vendor == "NVIDIA":
            if not find_spec("cupy"):
                yield Unusable(str(card), _for_nvidia(card.driver))
        elif not any(word in text for text in told for word in WORDS[card.vendor]):
            yield Unusable(str(card), f'install {PACKAGES[card.vendor]}, and pip install "tinyllama[opencl]"')


def _for_nvidia(driver: str) -> str:
    major = int(driver.split(".")[0]) if driver.split(".")[0].isdigit() else 0
    if major >= CUDA_13:
        return 'pip install "tinyllama[cupy13]"'
    if major >= CUDA_12:
        return 'pip install "tinyllama[cupy12]"'
    which = "a newer NVIDIA driver" if driver else "NVIDIA's driver"
    return f'install {which} (https://www.nvidia.com/drivers), then pip install "tinyllama[cupy13]"'


def _backend(place: str) -> type[Backend]:
    module, _, name = place.partition(":")
    made: type[Backend] = getattr(importlib.import_module(module), name)
    return made
