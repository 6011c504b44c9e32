"""What a run takes of the machine's memory, measured in processes of their own."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.pages import let_go
from tinyllama.formats import open_model_file

MIB = 2**20


def python(code: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(code: str, *argv: str) -> list[int]:
    out, err = (process := python(code, *argv)).communicate(timeout=300)
    assert process.returncode == 0, err
    return [int(word) for word in out.split()]


GENERATE = """
import sys
from tinyllama import Model
from tinyllama.memory import peak_resident
model = Model.load(sys.argv[1], backend="numpy")
list(model.generate("Hello " * 3000, n_predict=8, temp=0))
print(peak_resident(), model.file.n_params)
"""


def test_pages_that_are_let_go_read_the_same_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.arange(100_000, dtype=np.uint8).tobytes())
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = np.frombuffer(mapping, np.uint8)[5000:60_000]
    owned = np.arange(100_000, dtype=np.uint8)
    for data in (mapped, mapped[:10], mapped[:0], owned, owned[5000:]):
        before = data.copy()
        let_go(data)
        np.testing.assert_array_equal(data, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell a process its peak memory without another library")
def test_resident_memory_is_the_model_in_float32_and_little_more(smollm2):
    peak, n_params = answer(GENERATE, str(smollm2))
    assert peak < 4 * n_params + 300 * MIB  # with 135 MiB of KV cache for 3,000 tokens in it


SHARE = """
import re, sys
from tinyllama import Model

def private():
    text = open("/proc/self/smaps_rollup").read()
    return sum(int(kb) for kb in re.findall(r"Private_\\w+:\\s+(\\d+) kB", text)) * 1024

model = Model.load(sys.argv[1], backend="numpy", weights_memory=0)
context = model.context()
before = private()
context.eval([1, 2, 3])
print(private() - before, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells private from shared pages (/proc/self/smaps_rollup)")
def test_two_processes_share_the_weights_of_one_file(smollm2):
    weights = open_model_file(smollm2).nbytes
    first = python(SHARE, str(smollm2))
    try:
        assert first.stdout.readline()  # it has touched every weight, and stays
        (grown,) = answer(SHARE, str(smollm2))
    finally:
        first.communicate()
    assert grown < weights / 3  # what remains is scratch: a few chunks of float32, and the KV cache


STEP_65B = """
import sys
from tinyllama import Model
from tinyllama.memory import peak_resident
model = Model.load(sys.argv[1], backend="numpy", weights_memory=0)
logits = model.context().eval([1])
print(peak_resident(), model.file.nbytes, len(logits))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell a process its peak memory without another library")
def test_one_layer_of_65b_shapes_takes_a_step_within_the_memory_of_its_file(tmp_path: Path):
    n, ff, vocab = 8192, 22016, 100
    path = tmp_path / "65b-layer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(n)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(64)
    writer.add_layer_norm_rms_eps(1e-6)
    products = {"attn_q": (n, n), "attn_k": (n, n), "attn_v": (n, n), "attn_output": (n, n)}
    products |= {"ffn_gate": (ff, n), "ffn_up": (ff, n), "ffn_down": (n, ff)}
    rng = np.random.default_rng(0)
    block = np.frombuffer(np.float16(0.01).tobytes() + rng.bytes(16), np.uint8)  # one block of Q4_0, over and over
    for name, (rows, columns) in products.items():
        stored = np.tile(block, (rows, columns // 32))
        writer.add_tensor(f"blk.0.{name}.weight", stored, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(n, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((vocab, n)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        peak, nbytes, n_logits = answer(STEP_65B, str(path))
    finally:
        path.unlink()  # pytest keeps its folders
    assert n_logits == vocab
    assert peak < nbytes + 300 * MIB  # 450 MB of file; in float32 the layer would take 3.2 GB
