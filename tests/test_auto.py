"""The default backend: which one it is on computers that are made up, what is told of it, and on this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pretend import MIB, Pretend

from backends import Options, get_backend, registry
from backends.base import Device
from backends.numpy import Numpy
from backends.opencl import OpenCL
from backends.registry import fastest
from ops.errors import BackendError, OptionError
from tinyllama import Model, load_summary
from tinyllama.cli.main import main

TINY = Path(__file__).parent / "data" / "tiny" / "llama-mha.gguf"
N_LAYER = 2
NO_PYOPENCL = 'opencl: not installed: pip install "tinyllama[opencl]"'


class Cuda(Pretend):
    name = "cupy"


class NoGpu(Pretend):
    """As cupy is where its package is, and no card."""

    name = "cupy"

    @classmethod
    def devices(cls):
        raise BackendError("backend 'cupy' cannot be used here: there is no NVIDIA driver")


class Cl(Pretend):
    name = "opencl"

    @classmethod
    def devices(cls):
        return [Device("radeon", "GPU", 64 * MIB, "1.0"), Device("pocl", "CPU", 64 * MIB, "1.0")]


class NoDevice(Pretend):
    name = "opencl"

    @classmethod
    def devices(cls):
        raise BackendError("no OpenCL device was found: install a driver")


class Falls(Pretend):
    """Whose driver raises what no backend knows."""

    name = "opencl"

    @classmethod
    def devices(cls):
        raise RuntimeError("the driver\nfell over")


@pytest.fixture
def computer(monkeypatch):
    """Sets which backends are installed, and what they find; imports of what is not installed are an error."""

    def set_to(cupy=None, opencl=None):
        made = {"cupy": cupy, "opencl": opencl}
        packages = {"cupy": cupy, "pyopencl": opencl}
        known = {name: f"{__name__}:{c.__name__}" if c else "must.not:BeImported" for name, c in made.items()}
        monkeypatch.setattr(registry, "known_backends", lambda: {**registry.OURS, **known, "third": f"{__name__}:Cuda"})
        monkeypatch.setattr(registry, "find_spec", lambda package: packages[package])

    return set_to


@pytest.mark.parametrize(
    ("cupy", "opencl", "taken", "told"),
    [
        (Cuda, Cl, "cupy", "auto took cupy"),
        (Cuda, None, "cupy", "auto took cupy"),
        (None, Cl, "opencl", "auto took opencl; cupy: not installed"),
        (NoGpu, Cl, "opencl", "auto took opencl; cupy: cannot be used here: there is no NVIDIA driver"),
        (None, None, "numpy", f"auto took numpy; cupy: not installed; {NO_PYOPENCL}"),
        (None, NoDevice, "numpy", "auto took numpy; cupy: not installed; opencl: no OpenCL device was found: install a driver"),
        (None, Falls, "numpy",
         "auto took numpy; cupy: not installed; opencl: cannot be used here: RuntimeError: the driver fell over"),
    ],
)  # fmt: skip
def test_the_first_that_works(computer, cupy, opencl, taken, told):
    computer(cupy, opencl)
    choice = fastest()
    assert (choice.backend.name, choice.told) == (taken, told)
    assert get_backend("auto").name == taken
    model = Model.load(TINY)
    assert {backend.name for backend in model.placement.backends} == {taken}
    line = next(line for line in load_summary(model).splitlines() if line.startswith("load: backend "))
    assert line == f"load: backend      = {model.backend.describe()} ({told})"


def test_what_is_named_was_not_chosen(computer):
    computer(opencl=Cl)
    for backend in ("numpy", "opencl", Numpy()):
        assert "auto" not in load_summary(Model.load(TINY, backend=backend))


def test_a_device_that_is_named_is_looked_for_in_each(computer):
    computer(Cuda, Cl)
    for options, backend, device in (
        ({}, "cupy", "large"), ({"device": "small"}, "cupy", "small"), ({"device": "pocl"}, "opencl", "pocl"),
        ({"main_gpu": 1}, "cupy", "small"),
    ):  # fmt: skip
        model = Model.load(TINY, n_gpu_layers=1, **options)
        assert (model.backend.name, model.backend.device.name) == (backend, device)


@pytest.mark.parametrize("options", [{"device": "7"}, {"device_memory": MIB}, {"device_features": "gpu"}])
def test_what_is_said_of_a_device_where_there_is_none(computer, options):
    computer()
    ((flag, value),) = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    says = f"{flag} {value} was asked for, but auto found no device (cupy: not installed; {NO_PYOPENCL}): `tinyllama devices` "
    with pytest.raises(OptionError, match=re.escape(says)):
        Model.load(TINY, **options)


def test_as_many_layers_as_fit_unless_a_number_is_given(computer):
    """A byte is missing for everything: input and output go to the host."""
    computer(opencl=Cl)
    needs = next(iter(Model.load(TINY).memory_needed().values())).total
    model = Model.load(TINY, device_memory=needs - 1)
    assert "placement    = layers 0-1: opencl; input: numpy, output: numpy\n" in load_summary(model)
    model = Model.load(TINY, device_memory=1)
    assert [backend.name for backend in model.placement.backends] == ["numpy"]
    assert "(auto took opencl; cupy: not installed)" in load_summary(model)
    assert f"0 of {N_LAYER + 1} layers to opencl" in load_summary(model)
    for n in ("all", N_LAYER + 1):
        with pytest.raises(BackendError, match="the largest -ngl that fits is"):
            Model.load(TINY, device_memory=needs - 1, n_gpu_layers=n)
    for n in (0, 1, N_LAYER):
        model = Model.load(TINY, n_gpu_layers=n)
        assert model.placement.count(model.backend) == n


@pytest.mark.parametrize("n", [None, 0, 1, "all", "auto"])
def test_layers_on_a_device_where_there_is_none(computer, n):
    """As with --backend numpy."""
    computer()
    summary = load_summary(Model.load(TINY, n_gpu_layers=n))
    assert f"offloading   = 0 of {N_LAYER + 1} layers: numpy computes on the host\n" in summary


def test_a_map_names_its_backends_itself(computer):
    computer(opencl=Cl)
    model = Model.load(TINY, layers="opencl:0")
    assert [backend.name for backend in model.placement.layers] == ["opencl", "numpy"]
    assert model.auto is None
    with pytest.raises(OptionError, match="names its backends itself, without auto"):
        Model.load(TINY, layers="auto:0")


def test_options_reach_what_is_chosen(computer):
    computer(opencl=Cl)
    model = Model.load(TINY, n_threads=1, fuse=False, precise=True, repack=False)
    assert model.backend.options == Options(n_threads=1, fuse=False, precise=True, repack=False)
    with pytest.raises(OptionError, match="precise, repack and the device are the backend's"):
        Model.load(TINY, backend=Numpy(), precise=True)


def test_a_device_is_opened_once(computer, monkeypatch):
    """A driver may take seconds."""
    computer(opencl=Cl)
    made = []
    begin = Pretend.__init__
    monkeypatch.setattr(Cl, "__init__", lambda self, options=None: (made.append(1), begin(self, options))[1])
    Model.load(TINY)
    assert made == [1]


def test_the_commands(computer, capsys, tmp_path):
    computer(opencl=Cl)
    text = tmp_path / "text.txt"
    text.write_text("the and in the on at " * 10, "utf-8")
    for argv in (["run", "-n", "2", "--ignore-eos"], ["perplexity", "-f", str(text), "-c", "16", "--chunks", "1"]):
        assert main([*argv, "-m", str(TINY)]) == 0
        assert "(auto took opencl; cupy: not installed)\n" in capsys.readouterr().err
    assert main(["bench", "-m", str(TINY), "-p", "4", "-n", "0", "-r", "1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["backends"] == "opencl"
    assert main(["plan", str(TINY), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["name"] == "device"  # on paper: a plan may be for any machine
    assert main(["plan", str(TINY), "--json", "--backend", "auto"]) == 0
    planned = json.loads(capsys.readouterr().out)["device"]
    assert (planned["name"], planned["memory"]) == ("opencl", 64 * MIB)
    computer()
    assert main(["plan", str(TINY), "--backend", "auto"]) == 1
    assert f"no device whose memory could be planned (cupy: not installed; {NO_PYOPENCL})" in capsys.readouterr().err


def test_the_graph_is_fused_for_the_one_that_is_chosen(computer, capsys):
    """Pretend has no kernel of a fused op, numpy has two."""
    fused = []
    for opencl in (Cl, None):
        computer(opencl=opencl)
        assert main(["graph", "-m", str(TINY), "--layer", "0", "--fused"]) == 0
        fused.append("= swiglu(" in capsys.readouterr().out)
    assert fused == [False, True]


def test_devices_tells_the_choice(computer, capsys, monkeypatch):
    computer(opencl=Cl)
    monkeypatch.setattr("tinyllama.devices.survey", lambda: ([], []))
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.endswith("\n\nwithout --backend: pretend on radeon (cupy: not installed)\n")
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auto"] == {
        "backend": "opencl", "describe": "pretend on radeon", "passed_over": "cupy: not installed",
    }  # fmt: skip


def test_this_computer():
    """In a process of its own, which shows that what is not installed is not imported; what is chosen can compute."""
    code = """
import sys
from importlib.util import find_spec
from tinyllama import Model
model = Model.load(sys.argv[1], n_ctx=16)
assert model.context().eval([1, 2, 3]).shape == (model.config.n_vocab,)
assert find_spec("cupy") or "backends.cupy" not in sys.modules
assert find_spec("pyopencl") or "backends.opencl" not in sys.modules
print(model.backend.name)
"""
    name = subprocess.run(
        [sys.executable, "-c", code, str(TINY)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert name.strip() == fastest().backend.name


def test_opencl_takes_the_threads_and_the_device_that_are_asked_for():
    try:
        n = len(OpenCL.devices())
    except BackendError as error:
        pytest.skip(f"needs OpenCL: {error}")
    assert "no OpenCL device '99': there are 0: " in fastest(Options(device="99")).passed_over
    chosen = fastest(Options(device=str(n - 1), n_threads=1)).backend
    assert (chosen.options.n_threads, chosen.options.device) == (1, str(n - 1))
