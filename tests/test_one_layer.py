"""examples/one_layer.py at small shapes: what it writes, that it runs, and that it leaves nothing behind."""

from __future__ import annotations

import re
import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from backends.opencl import OpenCL
from ops.errors import BackendError, OptionError
from tinyllama import Model, shapes

SMALL = {"small-llama": shapes.llama(512, 12, 8, 1024, n_head_kv=2), "small-falcon": shapes.falcon(512, 12, 8, 2)}
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parent.parent / "examples" / "one_layer.py"))


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(shapes.SHAPES, request.param, SMALL[request.param])
    return str(request.param)


def test_the_file_holds_one_layer_of_sane_weights(script: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Read by the gguf package: each matrix brings x to products of about its size, and no value is a NaN."""
    path = tmp_path / "m.gguf"
    script["write"](path, name)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert {key.split(".")[1] for key in tensors if key.startswith("blk")} == {"0"}
    for key, tensor in tensors.items():
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            assert (values == key.endswith("weight")).all()
            continue
        assert tensor.tensor_type == Q4_0
        written = values[:64] if key == "token_embd.weight" else values
        # random quants of -8 to 7 have a mean square of 21.5; the scale is a float16
        np.testing.assert_allclose(np.sqrt(np.mean(written**2)) * np.sqrt(values.shape[1]), 21.5**0.5 / 4.6, rtol=0.02)
        assert (values[64:] == 0).all() == (key == "token_embd.weight")
    logits = Model.load(path, backend="numpy").context().eval([3])
    assert 0.3 < logits.std() < 3


@pytest.fixture(params=["numpy", "opencl"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "opencl":
        try:
            OpenCL.devices()
        except BackendError as error:
            pytest.skip(f"no OpenCL device: {error}")
    return str(request.param)


def test_it_runs(script: dict[str, Any], name: str, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script["one_layer"](Namespace(shape=name, backend=backend, weights_memory=0.001, folder=tmp_path))
    told = capsys.readouterr().out
    n = SMALL[name]
    products = {"small-llama": 512 * (2 * 512 + 2 * 128 + 3 * 1024), "small-falcon": 512 * (2 * 512 + 2 * 128 + 2 * 2048)}
    norms = {"small-llama": 2, "small-falcon": 4}[name] * 512 * 4  # bytes
    of_layer = products[name] * 18 / 32 + norms
    assert f"one layer of 12, {of_layer / 2**20:.1f} MiB, and the output, {n['n_vocab'] * 288 / 2**20:.1f} MiB" in told
    assert f"backend     = {backend}" in told
    assert re.search(r"a step +=  *\d+\.\d+ s, \d+\.\d+ GB/s", told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["nowhere", "a file"])
def test_a_folder_that_cannot_be_written_to(script: dict[str, Any], name: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(OptionError, match=rf"--folder .*{folder}: the file cannot be written there: "):
        script["one_layer"](Namespace(shape=name, backend="numpy", weights_memory=0.001, folder=tmp_path / folder))


def test_a_full_disk(script: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(script["one_layer"].__globals__, "write_blocks", full)
    with pytest.raises(OptionError, match=r"--folder .*No space left"):
        script["one_layer"](Namespace(shape=name, backend="numpy", weights_memory=0.001, folder=tmp_path))
    assert not list(tmp_path.iterdir())
