"""`tinyllama devices`: what is there, what could be, and what to install; on computers that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.base import Backend, Device
from ops.errors import BackendError
from tinyllama import devices
from tinyllama.cli.main import main
from tinyllama.devices import Usable, survey
from tinyllama.hardware import Card, cards

NOWHERE = Path("no/such/folder")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_nvidia_cards_by_the_files_of_their_driver(tmp_path):
    """As the driver 580 of Linux writes them."""
    write(
        tmp_path / "version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version:"
    )
    write(tmp_path / "gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t\t 144\n")
    assert cards(tmp_path, NOWHERE, "no-nvidia-smi") == [Card("NVIDIA", "NVIDIA GeForce RTX 3060", "580.65.06")]
    write(tmp_path / "version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024")
    assert cards(tmp_path, NOWHERE, "no-nvidia-smi")[0].driver == "550.54.15"


def test_other_cards_by_the_list_of_linux(tmp_path):
    for card, vendor, number in (("card0", "0x1002", "0x744c"), ("card1", "0x8086", "0x56a0"), ("card2", "0x1a03", "0x2000")):
        write(tmp_path / card / "device/vendor", vendor + "\n")
        write(tmp_path / card / "device/device", number + "\n")
    write(tmp_path / "card0-HDMI-A-1/device/vendor", "0x1002\n")  # a connector
    assert [(c.vendor, str(c)) for c in cards(NOWHERE, tmp_path, "no-nvidia-smi")] == [
        ("AMD", "AMD GPU 0x744c"), ("Intel", "Intel GPU 0x56a0"),
    ]  # fmt: skip
    assert cards(NOWHERE, NOWHERE, "no-nvidia-smi") == []


class Two(Backend):
    name = "two"

    @classmethod
    def devices(cls):
        return [Device("one\x1b[31m", "GPU", 8 << 30, "v1"), Device("Radeon Pro", "GPU", 4 << 30, "v2")]


class Missing(Backend):
    name = "missing"

    @classmethod
    def devices(cls):
        raise BackendError("backend 'opencl' needs pyopencl: pip install \"tinyllama[opencl]\"")


class Broken(Backend):
    name = "broken"

    @classmethod
    def devices(cls):
        raise RuntimeError("a driver\nfell over")


@pytest.fixture
def known(monkeypatch):
    """Sets the backends that there are, and the packages."""

    def set_to(packages=(), **backends):
        names = {name: f"{__name__}:{made.__name__}" for name, made in backends.items()}
        monkeypatch.setattr(devices, "known_backends", lambda: names)
        monkeypatch.setattr(devices, "find_spec", lambda name: name in packages or None)

    return set_to


def test_devices_are_listed_with_what_chooses_them(known):
    known(opencl=Two)
    usable, unusable = survey([])
    assert [(u.device.name, u.choose) for u in usable] == [
        ("one\x1b[31m", "--backend opencl --device 0"), ("Radeon Pro", "--backend opencl --device 1"),
    ]  # fmt: skip
    assert unusable == []


@pytest.mark.parametrize(
    ("card", "advice"),
    [
        (Card("NVIDIA", "RTX 3060", "580.65.06"), 'pip install "tinyllama[cupy13]"'),
        (Card("NVIDIA", "RTX 3060", "535.183.01"), 'pip install "tinyllama[cupy12]"'),
        (Card("NVIDIA", "RTX 3060", "470.82.01"), "a newer NVIDIA driver"),
        (Card("NVIDIA", "NVIDIA GPU 0x2504"), "NVIDIA's driver (https"),
        (Card("Intel", "Intel GPU 0x56a0"), "intel-opencl-icd"),
    ],
)
def test_a_card_that_nothing_here_can_use(known, card, advice):
    known(opencl=Two, cupy=Missing)
    _, unusable = survey([card, card])
    assert [u.what for u in unusable] == [str(card)]
    assert advice in unusable[0].advice


def test_a_card_in_use_needs_no_advice(known):
    known(opencl=Two)
    assert survey([Card("AMD", "AMD GPU 0x744c")])[1] == []


def test_cupy_is_not_missed_without_a_card_and_says_itself_what_is_wrong_with_one(known):
    known(cupy=Broken, packages=["cupy"])
    assert survey([]) == ([], [])
    (told,) = survey([Card("NVIDIA", "RTX 3060", "580.65.06")])[1]
    assert (told.what, told.advice) == ("backend cupy", "RuntimeError: a driver fell over")


def test_the_command_never_fails(known, capsys, monkeypatch):
    known(opencl=Missing, two=Two, broken=Broken, gone=Backend)
    monkeypatch.setattr(devices, "cards", lambda: [])
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "--backend numpy" in out
    assert "8.0 GiB" in out
    assert 'backend opencl: needs pyopencl: pip install "tinyllama[opencl]"' in out
    assert "RuntimeError: a driver fell over" in out
    assert "\x1b" not in out
    assert main(["devices", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["devices"][1] == {
        "backend": "two", "number": 1, "name": "Radeon Pro", "kind": "GPU", "memory": 4 << 30, "driver": "v2",
        "choose": "--backend two --device 1",
    }  # fmt: skip
    assert {u["what"] for u in told["unusable"]} == {"backend opencl", "backend broken"}


def test_what_is_listed_can_be_chosen():
    """On this computer."""
    from backends import Options
    from backends.registry import get_backend

    for u in survey([])[0]:
        assert isinstance(u, Usable)
        assert u.device.name.split()[0] in get_backend(u.backend, Options(device=str(u.number))).describe()
