"""`tinyllama quantize`: files as the `gguf` package reads them. Which type a tensor gets is test_tensor_types.py's matter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from commands import refused, tensors
from gguf import GGMLQuantizationType as Q
from writers.tiny import TinyLlama, write_gguf

from tinyllama import Model
from tinyllama.cli.main import main

TINY = Path(__file__).parent / "data" / "tiny"
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32")
# The most that a type's steps may move a weight, as a part of the largest in its block: half a step, and for K-quants as much
# again for the rounding of a sub-block's scale to 6 bits (Q4_K, Q5_K) or 8 (Q6_K)
STEPS = {Q.Q4_0: 1 / 8, Q.Q5_0: 1 / 16, Q.Q4_K: 1 / 7.5, Q.Q5_K: 1 / 15.5, Q.Q6_K: 1 / 32, Q.Q8_0: 1 / 127, Q.F32: 0}


def quantize(*argv: str | Path) -> int:
    return main(["quantize", *map(str, argv)])


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    """Rows of 256 and 512: K-quants fit."""
    return TinyLlama(n_embd=256, n_ff=512, n_layer=9)


@pytest.fixture(scope="module")
def source(model: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "f32.gguf"
    write_gguf(path, model)
    return path


@pytest.mark.parametrize("file_type", LEGACY)
def test_legacy_types_are_the_package_s_bit_for_bit(file_type: str, source: Path, model: TinyLlama, tmp_path: Path) -> None:
    """But for the output, which llama.cpp gives Q6_K."""
    assert quantize(source, tmp_path / "out.gguf", file_type) == 0
    made = tensors(tmp_path / "out.gguf")
    assert list(made) == list(model.weights)
    for name, weight in model.weights.items():
        if name == "output.weight" and file_type.startswith(("Q4", "Q5")):
            assert made[name].tensor_type is Q.Q6_K
            continue
        wanted = Q.F32 if weight.ndim == 1 else Q[file_type]
        assert made[name].tensor_type is wanted
        assert made[name].data.tobytes() == gguf.quantize(weight, wanted).tobytes(), name


@pytest.mark.parametrize(("file_type", "number"), [("q4_k_m", 15), ("Q5_K_M", 17), ("Q6_K", 18)])
def test_k_quants_stand_for_the_weights(
    file_type: str, number: int, source: Path, model: TinyLlama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    assert quantize(source, out, file_type, "-v") == 0
    told = capsys.readouterr().out
    seen = set()
    for name, tensor in tensors(out).items():
        weight = model.weights[name]
        seen.add(tensor.tensor_type)
        error = np.abs(gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape) - weight)
        assert error.max() <= STEPS[tensor.tensor_type] * np.abs(weight).max(), name
        assert re.search(rf"^{re.escape(name)} .*{tensor.tensor_type.name} +{tensor.n_bytes:,} bytes$", told, re.M)
    assert seen == {"q4_k_m": {Q.F32, Q.Q4_K, Q.Q6_K}, "Q5_K_M": {Q.F32, Q.Q5_K, Q.Q6_K}, "Q6_K": {Q.F32, Q.Q6_K}}[file_type]
    before, after = gguf.GGUFReader(source).fields, gguf.GGUFReader(out).fields
    assert after["general.file_type"].contents() == number
    assert after["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    for key in before:
        if not key.startswith("GGUF."):
            assert (after[key].types, after[key].contents()) == (before[key].types, before[key].contents())
    nbytes = sum(tensor.n_bytes for tensor in tensors(out).values())
    n_params = sum(weight.size for weight in model.weights.values())
    assert f"before  {4 * n_params / 2**20:10.2f} MiB   32.00 bits a weight\n" in told
    assert f"after   {nbytes / 2**20:10.2f} MiB  {8 * nbytes / n_params:6.2f} bits a weight\n" in told


def test_the_model_still_says_much_the_same(source: Path, tmp_path: Path) -> None:
    assert quantize(source, tmp_path / "out.gguf", "Q8_0") == 0
    before, after = (
        Model.load(path, backend="numpy").context().eval([1, 260, 270, 280]) for path in (source, tmp_path / "out.gguf")
    )
    # a step of 1/127 of the largest of 32 normal numbers is an error of 0.5% of each product, and there are nine layers
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_threads_change_nothing(source: Path, tmp_path: Path) -> None:
    assert quantize(source, tmp_path / "one.gguf", "Q4_K_M", "-t", "1") == 0
    assert quantize(source, tmp_path / "five.gguf", "Q4_K_M", "--threads", "5") == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "five.gguf").read_bytes()


@pytest.mark.parametrize("stored", [Q.F16, Q.BF16])
def test_from_half_precision(stored: Q, model: TinyLlama, tmp_path: Path) -> None:
    """To the same type is a copy; to another, what the package makes of the same numbers."""
    write_gguf(tmp_path / "half.gguf", model, stored)
    old = tensors(tmp_path / "half.gguf")
    for file_type in (stored.name, "Q5_1"):
        assert quantize(tmp_path / "half.gguf", tmp_path / "out.gguf", file_type, "--force") == 0
        for name in ("token_embd.weight", "blk.8.ffn_down.weight"):
            wanted = gguf.quantize(gguf.dequantize(old[name].data, stored), Q[file_type])
            assert tensors(tmp_path / "out.gguf")[name].data.tobytes() == wanted.tobytes()


def test_what_is_quantised_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = TINY / "llama-q.gguf", tmp_path / "out.gguf"
    told = refused(capsys, "quantize", source, out, "Q4_0")
    assert re.search(
        r"llama-q\.gguf: \S+ is quantised already \(Q\d_\w\): quantise the F16 or F32 file .* --allow-requantize$", told
    )
    assert not out.exists()
    assert quantize(source, out, "Q4_0", "--allow-requantize") == 0
    old, new = tensors(source), tensors(out)
    assert new["blk.0.attn_q.weight"].data.tobytes() == old["blk.0.attn_q.weight"].data.tobytes()  # was Q4_0
    up = old["blk.0.ffn_up.weight"]
    assert (
        new["blk.0.ffn_up.weight"].data.tobytes() == gguf.quantize(gguf.dequantize(up.data, up.tensor_type), Q.Q4_0).tobytes()
    )


def test_what_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert "no type 'Q3' to quantise to: choose one of F32, F16" in refused(capsys, "quantize", source, out, "Q3")
    before = source.read_bytes()
    assert "it is the file that is read" in refused(capsys, "quantize", source, source, "Q4_0", "--force")
    assert source.read_bytes() == before
    assert "there is no folder" in refused(capsys, "quantize", source, tmp_path / "nowhere" / "out.gguf", "Q4_0")
    vocabulary = Path(__file__).parent / "data" / "vocab" / "ggml-vocab-llama-spm.gguf"
    assert "token_embd.weight" in refused(capsys, "quantize", vocabulary, out, "Q4_0")
    out.write_bytes(b"precious")
    assert "exists: name another file, or overwrite it with --force" in refused(capsys, "quantize", source, out, "Q4_0")
    assert out.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [out]


def test_damaged_weights_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = TinyLlama()
    tiny.weights["output.weight"][-1, -1] = np.nan  # the last of all: the others are written by then
    write_gguf(tmp_path / "in.gguf", tiny)
    assert "output.weight holds a weight that is infinite or no number" in refused(
        capsys, "quantize", tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a single process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_kill(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "in.gguf", TinyLlama(n_embd=1024, n_ff=4096, n_layer=6))  # K-quants of it take seconds
    command = [sys.executable, "-m", "tinyllama", "quantize", tmp_path / "in.gguf", tmp_path / "out.gguf", "Q5_K_M"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (list(tmp_path.glob(".*.partial")) or process.poll() is not None or time.monotonic() > until):
        time.sleep(0.01)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert [file.name for file in tmp_path.iterdir()] == ["in.gguf"]
