"""`tinyllama convert`: metadata and bytes, as the `gguf` package reads them, against what went in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from commands import refused, tensors
from gguf import GGMLQuantizationType as Q
from writers.ggml import GGJT2, quantized, write_ggml
from writers.tiny import TinyLlama, write_gguf

from tinyllama import Model
from tinyllama.cli.main import main

TINY = Path(__file__).parent / "data" / "tiny"
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # llama.h: enum llama_ftype
OURS = ("general.file_type", "general.quantization_version")


def convert(*argv: str | Path) -> int:
    return main(["convert", *map(str, argv)])


def metadata(path: Path) -> dict[str, tuple[list[gguf.GGUFValueType], Any]]:
    """Types and value by key; those of the file's layout and the two that say how weights are stored left out."""
    fields = gguf.GGUFReader(path).fields
    return {key: (f.types, f.contents()) for key, f in fields.items() if not key.startswith("GGUF.") and key not in OURS}


@pytest.mark.parametrize("outtype", FILE_TYPES)
@pytest.mark.parametrize("name", ["llama-mha", "llama-q", "llama-llama3", "qwen2", "falcon-7b"])
def test_each_outtype(name: str, outtype: str, tmp_path: Path) -> None:
    source, out = TINY / f"{name}.gguf", tmp_path / "out.gguf"
    assert convert(source, out, "--outtype", outtype) == 0
    assert metadata(out) == metadata(source)
    fields = gguf.GGUFReader(out).fields
    assert [fields[key].contents() for key in OURS] == [FILE_TYPES[outtype], gguf.GGML_QUANT_VERSION]
    before, after = tensors(source), tensors(out)
    assert list(after) == list(before)
    for tensor, old in before.items():
        wanted = Q.F32 if len(old.shape) == 1 else Q[outtype.upper()]
        if wanted is Q.Q8_0 and old.shape[0] % 32:
            wanted = Q.F16
        assert (after[tensor].tensor_type, list(after[tensor].shape)) == (wanted, list(old.shape))
        data = gguf.quantize(gguf.dequantize(old.data, old.tensor_type), wanted)
        assert after[tensor].data.tobytes() == data.tobytes()


def test_as_stored(tmp_path: Path) -> None:
    source, out = TINY / "llama-q.gguf", tmp_path / "out.gguf"
    assert convert(source, out) == 0
    for name, old in tensors(source).items():
        assert tensors(out)[name].tensor_type is old.tensor_type
        assert np.array_equal(tensors(out)[name].data, old.data)
    assert metadata(out) == metadata(source)


def test_f32_gives_the_same_logits(tmp_path: Path) -> None:
    """All blocks are exact in float32, and numpy multiplies in it: not a bit differs."""
    assert convert(TINY / "llama-q.gguf", tmp_path / "out.gguf", "--outtype", "f32") == 0
    before, after = (
        Model.load(path, backend="numpy").context().eval([1, 2, 3, 4], "all")
        for path in (TINY / "llama-q.gguf", tmp_path / "out.gguf")
    )
    assert np.array_equal(before, after)


@pytest.mark.parametrize("type", ["F32", "F16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_ggjt_to_float32_is_the_gguf_file(type: str, tmp_path: Path) -> None:
    """Weights as the test's writer says that the blocks of 2023 mean them; the package writes them to GGUF."""
    means = write_ggml(tmp_path / "old.bin", TinyLlama(n_ctx=2048), GGJT2, type)  # LLaMA's n_ctx: those files do not say it
    write_gguf(tmp_path / "wanted.gguf", means)
    assert convert(tmp_path / "old.bin", tmp_path / "out.gguf", "--outtype", "f32") == 0
    wanted, made = tensors(tmp_path / "wanted.gguf"), tensors(tmp_path / "out.gguf")
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert np.array_equal(made[name].data, tensor.data), name
    wanted_pairs, pairs = metadata(tmp_path / "wanted.gguf"), metadata(tmp_path / "out.gguf")
    del wanted_pairs["llama.rope.freq_base"]  # the default
    assert {key: pairs.get(key) for key in wanted_pairs} == wanted_pairs
    assert not [key for key in pairs if key.startswith("ggml.")]


@pytest.mark.parametrize(("type", "n_scales"), [("Q4_0", 1), ("Q4_1", 2), ("Q8_0", 1)])
def test_scales_are_rounded_to_float16_and_that_is_told(
    type: str, n_scales: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, largest = TinyLlama(), 0.0
    write_ggml(tmp_path / "old.bin", tiny, GGJT2, type)
    assert convert(tmp_path / "old.bin", tmp_path / "out.gguf") == 0
    told = capsys.readouterr().err
    made = tensors(tmp_path / "out.gguf")
    matrices = {name: weight for name, weight in tiny.weights.items() if weight.ndim > 1}
    for name, weight in matrices.items():
        assert made[name].tensor_type is Q[type]
        block_bytes = gguf.GGML_QUANT_SIZES[Q[type]][1]
        old = quantized(weight, type, GGJT2)[0].reshape(-1, block_bytes + 2 * n_scales)
        new = made[name].data.reshape(-1, block_bytes)
        scales = np.ascontiguousarray(old[:, : 4 * n_scales]).view("<f4")
        rounded = scales.astype("<f2")
        assert np.array_equal(np.ascontiguousarray(new[:, : 2 * n_scales]).view("<f2"), rounded)
        assert np.array_equal(new[:, 2 * n_scales :], old[:, 4 * n_scales :])
        largest = max(largest, float(np.abs(rounded / scales.astype(np.float64) - 1).max()))
    assert f"the scales of {len(matrices)} tensors were rounded" in told
    assert f"by at most {largest:.3%}; --outtype f32 keeps every weight exactly" in told
    file_type = gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents()
    assert file_type == {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}[type]


def test_exact_scales_are_kept_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are integers times a power of two, the largest of each block -8: the scale is that power."""
    tiny = TinyLlama()
    rng = np.random.default_rng(0)
    for name, weight in tiny.weights.items():
        if weight.ndim > 1:
            q = rng.integers(-7, 8, weight.shape)
            q[:, ::32] = -8
            tiny.weights[name] = (q / 16).astype(np.float32)
    write_ggml(tmp_path / "old.bin", tiny, GGJT2, "Q4_0")
    assert convert(tmp_path / "old.bin", tmp_path / "out.gguf") == 0
    assert capsys.readouterr().err == ""
    for name, weight in tiny.weights.items():
        made = tensors(tmp_path / "out.gguf")[name]
        assert np.array_equal(gguf.dequantize(made.data, made.tensor_type), weight), name


# ---- what is refused ----


def test_places_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes((TINY / "llama-mha.gguf").read_bytes())
    before = source.read_bytes()
    (tmp_path / "old.gguf").write_bytes(b"GGUF precious")
    assert "exists: name another file, or overwrite it with --force" in refused(
        capsys, "convert", source, tmp_path / "old.gguf"
    )
    assert "it is the file that is read" in refused(capsys, "convert", source, source, "--force")
    (tmp_path / "link.gguf").symlink_to(source)
    assert "it is the file that is read" in refused(capsys, "convert", source, tmp_path / "link.gguf", "--force")
    assert "there is no folder" in refused(capsys, "convert", source, tmp_path / "nowhere" / "out.gguf")
    assert "it is a folder" in refused(capsys, "convert", source, tmp_path, "--force")
    assert "no model" in refused(capsys, "convert", tmp_path / "missing.gguf", tmp_path / "out.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == b"GGUF precious"
    assert source.read_bytes() == before
    assert convert(source, tmp_path / "old.gguf", "--force") == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_a_part_of_the_model_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ggml(tmp_path / "old.bin", TinyLlama(), GGJT2)
    (tmp_path / "old.bin.1").write_bytes(b"a part")
    assert "it is no GGUF file" in refused(capsys, "convert", tmp_path / "old.bin", tmp_path / "old.bin.1", "--force")


@pytest.mark.parametrize(
    ("weight", "told"),
    [(np.nan, "infinite or no number"), (np.inf, "infinite or no number"), (70000, "too large for F16: take BF16 or F32")],
)
def test_weights_that_no_file_should_have(weight: float, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = TinyLlama()
    tiny.weights["blk.1.ffn_up.weight"][3, 4] = weight
    write_gguf(tmp_path / "in.gguf", tiny)
    for command in (["convert", "--outtype", "f16"], ["quantize", "F16"]):
        said = refused(capsys, command[0], tmp_path / "in.gguf", tmp_path / "out.gguf", *command[1:])
        assert f"{tmp_path / 'in.gguf'}: blk.1.ffn_up.weight holds a weight" in said
        assert told in said
        assert [file.name for file in tmp_path.iterdir()] == ["in.gguf"]


def test_a_scale_that_float16_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = TinyLlama()
    tiny.weights["blk.1.ffn_up.weight"][3, 4] = 1e6  # the scale is an eighth of a block's largest weight
    write_ggml(tmp_path / "old.bin", tiny, GGJT2, "Q4_0")
    said = refused(capsys, "convert", tmp_path / "old.bin", tmp_path / "out.gguf")
    assert f"{tmp_path / 'old.bin'}: blk.1.ffn_up.weight holds a scale that is no number of float16's range" in said
    assert [file.name for file in tmp_path.iterdir()] == ["old.bin"]


# ---- large files ----


def sparse(path: Path, n_rows: int) -> None:
    """A file of one tensor of n_rows x 16384 zeros in float32, which takes no room on most disks."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor_info("token_embd.weight", (n_rows, 16384), np.dtype(np.float32), n_rows * 65536)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + n_rows * 65536)


MEASURED = """
import os, sys
from tinyllama.cli.main import main
from tinyllama.memory import peak_resident
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:2])  # two threads on any machine
code = main(["convert", *sys.argv[1:]])
print(code, peak_resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets mapped pages go, and makes sparse files everywhere")
@pytest.mark.parametrize("outtype", [["--outtype", "q8_0"], []], ids=["q8_0", "as stored"])
def test_a_large_file_passes_through_little_memory(outtype: list[str], tmp_path: Path) -> None:
    sparse(tmp_path / "in.gguf", 8192)  # 512 MiB
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "in.gguf", tmp_path / "out.gguf", *outtype],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    code, peak = map(int, process.stdout.splitlines()[-1].split())
    assert code == 0
    # 60 MiB of Python and numpy, 64 MiB of pages before they are let go, some 20 MiB a thread: not half of the file
    assert peak < 250 << 20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a single process")
def test_ctrl_c(tmp_path: Path) -> None:
    sparse(tmp_path / "in.gguf", 32768)
    command = [sys.executable, "-m", "tinyllama", "convert", tmp_path / "in.gguf", tmp_path / "out.gguf", "--outtype", "q8_0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (list(tmp_path.glob(".*.partial")) or process.poll() is not None or time.monotonic() > until):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert [file.name for file in tmp_path.iterdir()] == ["in.gguf"]
