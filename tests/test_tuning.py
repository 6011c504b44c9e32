"""What a device is fastest with: which candidate is taken, when it is measured, where it is kept; results with each are right.

Times are made up wherever something is decided by them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import ops
from backends import Options, registry
from backends.conformance.blocks import weight
from backends.device import products_int8, tuning
from backends.device.array import DeviceArray, DeviceWeight, PanelWeight, Part
from backends.device.panels import LAYOUTS
from backends.device.runtime import CANDIDATES, Limits, Tuning, untuned
from backends.device.tuning import Answer, in_turns, keep, kept, key
from backends.opencl.devices import NEEDS
from ops.errors import BackendError
from tinyllama import Model
from tinyllama.cli.main import main
from tinyllama.wish import tuning_file

CPU = Limits("a CPU", "cpu", 4096, 1 << 20, 1 << 30, 1 << 30, cores=8, integers="avx2", driver="PoCL 3")
GPU = Limits("a GPU", "gpu", 1024, 48 << 10, 1 << 30, 1 << 30, cores=20, driver="NVIDIA 580")
TINY = Path(__file__).parent / "data" / "tiny" / "llama-q.gguf"


def test_the_default_is_a_candidate():
    for integers in ("", *NEEDS):
        for field, candidates in CANDIDATES.items():
            assert getattr(untuned(integers), field) in candidates


# Choosing


@pytest.mark.parametrize(
    ("eight", "sixteen", "four", "chosen"),
    [
        (1.0, 0.8, 0.9, 16),
        (1.0, 0.9, 0.8, 4),
        (1.0, 0.96, 0.97, 8),  # 4% faster
        (1.0, 0.94, 1.2, 16),  # 6% faster
        (1.0, 2.0, 3.0, 8),
    ],
)
def test_the_fastest_is_taken_if_it_is_faster_by_five_percent(eight, sixteen, four, chosen):
    assert Answer("tokens", 8, {4: [four] * 8, 16: [sixteen] * 8, 8: [eight] * 8}).chosen == chosen


def test_turns_are_compared_each_by_itself():
    """The machine is three times slower in every other turn, for all candidates alike."""
    slow = [1, 3] * 8
    times = {4: [1.1 * s for s in slow], 16: [0.8 * s for s in slow], 8: [1.0 * s for s in slow]}
    assert Answer("tokens", 8, times).chosen == 16


@pytest.mark.parametrize(("n_good", "chosen"), [(11, 8), (13, 16)])
def test_chance_does_not_choose(n_good, chosen):
    """Of 16 turns it must be faster in three quarters, however much faster it was in some."""
    sixteen = [0.2] * n_good + [1.0] * (16 - n_good)
    assert Answer("tokens", 8, {4: [1.0] * 16, 16: sixteen, 8: [1.0] * 16}).chosen == chosen


def test_candidates_take_turns():
    ran: list[int] = []

    def timer(n: int) -> Callable[[], float]:
        def run() -> float:
            ran.append(n)
            return float(n)

        return run

    seconds = in_turns({n: timer(n) for n in (1, 2, 3)}, clock=count(0, 100).__next__)
    assert seconds == {n: [float(n)] * tuning.FEWEST for n in (1, 2, 3)}
    assert ran[:9] == [1, 2, 3, 1, 2, 3, 3, 2, 1]  # the first three compile; then no one always comes after the same other
    seconds = in_turns({n: timer(n) for n in (1, 2, 3)}, clock=lambda: 0.0)
    assert len(seconds[1]) == tuning.MOST


def test_what_is_asked_depends_on_the_kernels():
    assert tuning.fields_of(CPU) == ("tokens", "groups")
    assert tuning.fields_of(replace(CPU, integers="")) == ()
    assert tuning.fields_of(GPU) == ("tile", "few")


# Keeping

FOUND = Tuning(tokens=16, groups=3)


def test_what_is_kept_is_found_again(tmp_path):
    file = tmp_path / "no" / "such" / "folder" / "tuning.json"
    assert kept(file, CPU) is None
    keep(file, CPU, FOUND)
    keep(file, GPU, Tuning(few=16, tile=32))
    assert kept(file, CPU) == FOUND
    assert kept(file, GPU) == Tuning(few=16, tile=32)
    assert [path.name for path in file.parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(
    "other",
    [{"name": "another"}, {"driver": "PoCL 4"}, {"cores": 4}, {"integers": "avx512vnni"}, {"kind": "gpu", "integers": ""}],
)
def test_another_device_is_asked_anew(tmp_path, other):
    file = tmp_path / "tuning.json"
    keep(file, CPU, FOUND)
    assert kept(file, replace(CPU, **other)) is None
    assert kept(file, replace(CPU, memory=1 << 20)) == FOUND  # what a user allows it changes nothing


def test_other_kernels_are_asked_anew(tmp_path, monkeypatch):
    file = tmp_path / "tuning.json"
    keep(file, CPU, FOUND)
    for name in ("source", "CANDIDATES"):
        with monkeypatch.context() as patch:
            changed = {"tokens": (4, 16)} if name == "CANDIDATES" else lambda language, file, defines: f"another {file}"
            patch.setattr(tuning, name, changed)
            tuning._mark.cache_clear()
            assert kept(file, CPU) is None
        tuning._mark.cache_clear()
    assert kept(file, CPU) == FOUND


GOOD = {"kernels": tuning._mark(), "tokens": 16, "groups": 3}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", "\x00\x01", json.dumps({key(CPU): None}), json.dumps({key(CPU): {}}),
        json.dumps({key(CPU): {**GOOD, "tokens": 7}}), json.dumps({key(CPU): {**GOOD, "tokens": 16.0}}),
        json.dumps({key(CPU): {**GOOD, "tokens": [16]}}), json.dumps({key(CPU): {**GOOD, "groups": True}}),
        json.dumps({key(CPU): {**GOOD, "few": 4}}), json.dumps({key(CPU): {"kernels": tuning._mark(), "tokens": 16}}),
        json.dumps({key(CPU): GOOD})[:-20],
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_anew(tmp_path, text):
    file = tmp_path / "tuning.json"
    file.write_text(text, "utf-8")
    assert kept(file, CPU) is None
    keep(file, CPU, FOUND)
    assert kept(file, CPU) == FOUND


def test_bytes_that_are_no_text(tmp_path):
    file = tmp_path / "tuning.json"
    file.write_bytes(b"\xff\xfe{}")
    assert kept(file, CPU) is None


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    keep(tmp_path / "file" / "tuning.json", CPU, FOUND)
    (tmp_path / "tuning.json").mkdir()
    keep(tmp_path / "tuning.json", CPU, FOUND)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tuning.json"]


def keep_often(file: Path, tokens: int) -> None:
    for _ in range(50):
        keep(file, CPU, Tuning(tokens=tokens))


def test_two_processes_may_write_at_once(tmp_path):
    """At any time the file is one that was written whole."""
    file = tmp_path / "tuning.json"
    keep(file, CPU, Tuning(tokens=4))
    writers = [get_context("spawn").Process(target=keep_often, args=(file, tokens)) for tokens in (16, 8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert kept(file, CPU) is not None
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert kept(file, CPU) in (Tuning(tokens=16), Tuning(tokens=8))
    assert len(list(tmp_path.iterdir())) == 1


def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLLAMA_TUNING", str(tmp_path / "mine.json"))
    assert tuning_file() == tmp_path / "mine.json"
    assert Model.load(TINY, backend="numpy").backend.options.tuning_file == tmp_path / "mine.json"
    monkeypatch.setenv("TINYLLAMA_TUNING", "")
    assert tuning_file() is None
    monkeypatch.delenv("TINYLLAMA_TUNING")
    monkeypatch.setenv("TINYLLAMA_CACHE", str(tmp_path))
    assert tuning_file() == tmp_path / "tuning.json"


# On a device


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The smallest candidate of each field is the fastest; every one is computed once. Tells which ran."""
    ran: list[int] = []

    def in_turns(timers: Mapping[int, Callable[[], float]]) -> dict[int, list[float]]:
        for n, timer in timers.items():
            assert timer() > 0
            ran.append(n)
        return {n: [0.5 if n == min(timers) else 1.0] * 8 for n in timers}

    monkeypatch.setattr(tuning, "in_turns", in_turns)
    return ran


def opencl(**options):
    pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")
    from backends.opencl import OpenCL

    return OpenCL(Options(**options))


def silent(items, told):
    return items


def test_it_is_measured_once_for_a_device(tmp_path, made_up):
    file = tmp_path / "tuning.json"
    first = opencl(device_features="portable", tuning_file=file)
    assert (first.tuned, first.runtime.limits.tuning) == (None, Tuning())
    answers = first.tune(silent)
    assert made_up == [*CANDIDATES["tokens"], *CANDIDATES["groups"]]
    assert [answer.chosen for answer in answers] == [4, 1]
    assert first.tuned == first.runtime.limits.tuning == Tuning(tokens=4, groups=1)
    assert first.runtime.used() == 0
    second = opencl(device_features="portable", tuning_file=file)
    assert second.runtime.limits.tuning == Tuning(tokens=4, groups=1)
    assert first.tune(silent) == second.tune(silent) == []
    assert len(second.tune(silent, anew=True)) == 2
    assert opencl(device_features="portable", tuning_file=file, n_threads=1).tuned is None  # of other cores it is not known


def test_nothing_is_measured_where_it_has_no_place_or_no_use(tmp_path, made_up):
    assert opencl().tune(silent) == []
    assert opencl(tuning_file=tmp_path / "tuning.json", precise=True, device_features="cpu").tune(silent, anew=True) == []
    assert made_up == []
    assert len(opencl().tune(silent, anew=True)) == 2  # as with no place to keep it, but wanted
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_full_is_not_tuned(tmp_path, made_up):
    full = opencl(tuning_file=tmp_path / "tuning.json", device_memory=1 << 20)
    assert full.tune(silent) == []
    assert full.tuned is None
    assert full.runtime.used() == 0
    with pytest.raises(BackendError, match="out of memory"):
        full.tune(silent, anew=True)


def test_the_first_model_that_warms_up_does_it(tmp_path, made_up, monkeypatch):
    """After a step with the defaults; later ones, in the same memory and with more tokens, are as right as this."""
    opencl()
    monkeypatch.setenv("TINYLLAMA_TUNING", str(tmp_path / "tuning.json"))
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, 200, 50)]
    truth = Model.load(TINY, backend="opencl", device_features="portable").context().eval(tokens, "all")
    assert made_up == []
    context = Model.load(TINY, backend="opencl", device_features="portable").context()
    context.eval(tokens[:7])
    told = []
    context.warm_up(lambda items, words: told.append(words) or items)
    assert told[0] == tuning.TELLS
    assert context.model.backend.tuned == Tuning(tokens=4, groups=1)
    # rows of x are rounded to bytes alike in any tile; what is left is float32's rounding, in sums that the compiler may order
    np.testing.assert_allclose(context.eval(tokens[7:], "all"), truth[7:], atol=1e-4 * np.abs(truth).max())
    made_up.clear()
    again = Model.load(TINY, backend="opencl", device_features="portable").context()
    again.warm_up(silent)
    assert made_up == []
    np.testing.assert_allclose(again.eval(tokens, "all"), truth, atol=1e-4 * np.abs(truth).max())


def tuned(features: str, **sizes: int):
    backend = opencl(device_features=features)
    backend.runtime.limits = replace(backend.runtime.limits, tuning=Tuning(**sizes))
    return backend


@pytest.mark.parametrize("features", ["cpu", "portable"])
@pytest.mark.parametrize("tokens", CANDIDATES["tokens"])
def test_integer_products_are_right_with_every_size(features, tokens):
    """By the formula in float64, of x whose blocks of 32 are exact as bytes: whole numbers, the largest 127 in each."""
    rng = np.random.default_rng(tokens)
    for groups, n_tokens in [(g, t) for g in CANDIDATES["groups"] for t in (1, 3, 37, 64, 65)]:
        backend = tuned(features, tokens=tokens, groups=groups)
        w = weight(rng, "w", (150, 96), "Q4_0", "usual")
        x = rng.integers(-127, 128, (n_tokens, 96)).astype(np.float32)
        x[:, ::32] = 127
        there = backend.bring(w, backend.form(w, "weight", ops.matmul))
        ours = backend.download(backend.kernel_of(ops.matmul)(backend.upload(x), there))
        right = ops.matmul.formula(x.astype(np.float64), w)
        assert np.sum((ours - right) ** 2) <= 1e-12 * np.sum(right**2)  # float32 rounds by 6e-8, squared 4e-15


@pytest.mark.parametrize("tile", CANDIDATES["tile"])
@pytest.mark.parametrize("few", [4, 16])
def test_products_of_floats_are_right_with_every_size(tile, few):
    rng = np.random.default_rng(tile)
    backend = tuned("gpu", tile=tile, few=few)
    w = weight(rng, "w", (70, 96), "Q4_0", "usual")
    there = backend.bring(w, backend.form(w, "weight", ops.matmul))
    for n_tokens in (1, few, few + 1, 65):
        x = rng.standard_normal((n_tokens, 96)).astype(np.float32)
        ours = backend.download(backend.kernel_of(ops.matmul)(backend.upload(x), there))
        right = ops.matmul.formula(x.astype(np.float64), w)
        assert np.sum((ours - right) ** 2) <= 1e-12 * np.sum(right**2)  # as above


def test_sizes_reach_the_kernels():
    from backends.device.launch import TABLE

    x, y = DeviceArray(None, (100, 64), np.dtype(np.float32)), DeviceArray(None, (100, 32), np.dtype(np.float32))
    panels = PanelWeight(LAYOUTS["Q4_0"], (32, 64), (Part(0, 32, None),))
    blocks = DeviceWeight(ops.FORMATS["Q4_0"], (32, 64), (Part(0, 32, None),))

    def launched(limits, weight):
        return [(launch.kernel, launch.defines) for launch in TABLE["matmul"](limits, x, weight, y, rooms=[None])]

    _, (kernel, defines) = launched(replace(CPU, tuning=Tuning(tokens=16)), panels)
    assert (kernel, defines["TOKENS"]) == ("product_int8", 16)
    ((kernel, defines),) = launched(replace(GPU, tuning=Tuning(tile=16)), blocks)
    assert (kernel, defines["TILE"]) == ("matmul_tile", 16)
    assert launched(replace(GPU, tuning=Tuning(few=100)), blocks)[0][0] == "matvec"


@pytest.mark.parametrize("cores", [1, 2, 20])
def test_room_for_x_is_enough_for_any_sizes(cores):
    """A work-group's row of a single token, or whole tiles; a row of 64 takes 2 blocks of 28 ints."""
    limits = replace(CPU, cores=cores)
    for n_tokens in (1, 2, 5, 8, 9, 37, 512):
        room = products_int8.room_bytes(limits, n_tokens, 64) // (2 * 28 * 4)
        assert all(room >= groups * cores for groups in CANDIDATES["groups"])
        assert all(room >= -(-n_tokens // tokens) * tokens for tokens in CANDIDATES["tokens"])


# The command


def test_the_command_tells_what_is_kept_and_measures_anew(tmp_path, made_up, monkeypatch, capsys):
    opencl()
    monkeypatch.setattr(registry, "FASTER", registry.FASTER[1:])  # opencl, also where there is a GPU for cupy
    monkeypatch.setenv("TINYLLAMA_TUNING", str(tmp_path / "tuning.json"))
    assert main(["devices"]) == 0
    assert "not tuned yet" in capsys.readouterr().out
    assert main(["devices", "--tune"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.endswith("chosen") and "x 2.00" in line]) == 2
    assert "x 1.00" in out
    assert main(["devices"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tuned: ")]
    assert line in out
    assert main(["devices", "--json"]) == 0
    auto = json.loads(capsys.readouterr().out)["auto"]
    assert all(f": {size}" in line for size in auto["tuned"].values())
    (tmp_path / "a file").touch()
    monkeypatch.setenv("TINYLLAMA_TUNING", str(tmp_path / "a file" / "tuning.json"))
    assert main(["devices", "--tune"]) == 0
    assert "tuning.json, which may not be written (TINYLLAMA_TUNING)" in capsys.readouterr().out
    monkeypatch.setenv("TINYLLAMA_TUNING", "")
    assert main(["devices", "--tune"]) == 0
    assert "not kept: there is no file to keep it in (TINYLLAMA_TUNING)" in capsys.readouterr().out
    assert main(["devices"]) == 0
    assert "not tuned: there is no file" in capsys.readouterr().out


def test_a_backend_without_sizes(monkeypatch, capsys):
    monkeypatch.setattr(registry, "FASTER", ())
    assert main(["devices", "--tune"]) == 1
    told = capsys.readouterr().err
    assert "numpy" in told
    assert "has no sizes to choose" in told
    assert main(["devices"]) == 0
    assert "tuned" not in capsys.readouterr().out


def test_a_rate():
    """Four bits and a half a weight are read; a product of m x n weights and T tokens is 2 m n T operations."""
    one = Answer("groups", 2, {2: [1e-3] * 3, 1: [2e-3] * 3})
    n_weights = 16 * 1536 * 576 + 4096 * 4096
    assert one.rate(2) == f"{n_weights * 4.5 / 8 / 1e6:.1f} GB/s"
    assert one.rate(1) == f"{n_weights * 4.5 / 8 / 2e6:.1f} GB/s"
    many = Answer("tokens", 8, {4: [0.01, 0.02, 0.5]})
    assert many.rate(4) == f"{2 * 128 * (2 * 1536 * 576 + 2048**2) / 0.02 / 1e9:.1f} GOP/s"
