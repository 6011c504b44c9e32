"""llama2.c's files, versions 0, 1 and 2: same weights, same logits as in GGUF; and what is damaged."""

from __future__ import annotations

from pathlib import Path
from struct import pack_into

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_damage import use
from writers.llama2c import as_stored, quantized, write_llama2c
from writers.tiny import TinyLlama, write_gguf

from ops.errors import FormatError
from ops.tensor import MadeRows
from tinyllama import Model
from tinyllama.formats import open_model_file
from tinyllama.formats.llama2c import is_headless

PROMPT = [1, 5, 261, 290, 270, 7]
VERSIONS = (0, 1, 2)
# The same floats go through the same code, save that a matrix may lie elsewhere and BLAS may sum in another order: rounding of
# float32, some 1e-7 of the largest logit
SAME = 1e-6


def tiny_of(shape: str) -> TinyLlama:
    if shape == "shared output":
        tiny = TinyLlama(eps=1e-5)
        del tiny.weights["output.weight"]
        return tiny
    return TinyLlama(n_head=8, n_head_kv=2, eps=1e-5) if shape == "grouped heads" else TinyLlama(eps=1e-5)


def logits(path: Path, **options) -> np.ndarray:
    return Model.load(path, backend="numpy", **options).context().eval(PROMPT, logits="all")


def assert_same(ours: np.ndarray, reference: np.ndarray) -> None:
    assert np.abs(ours - reference).max() <= SAME * np.abs(reference).max()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("shape", ["plain", "grouped heads", "shared output"])
@pytest.mark.parametrize("version", VERSIONS)
def test_same_weights_same_logits(version, shape, mmap, tmp_path):
    tiny = tiny_of(shape)
    write_llama2c(tmp_path / "model.bin", tiny, version)
    write_gguf(tmp_path / "model.gguf", as_stored(tiny, 32) if version == 2 else tiny)
    assert_same(logits(tmp_path / "model.bin", mmap=mmap), logits(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("group_size", "n_ff", "format"),
    [
        (32, 192, "Q8_0_F32"),
        (64, 192, "Q8_0_F32"),
        (64, 160, "Q8_0_F32"),  # a row of w2 has two groups and a half
        (16, 192, "F32"),
        (64, 176, "F32"),  # a row of w2 has five blocks and a half
    ],
)
def test_groups(group_size, n_ff, format, tmp_path):
    """Blocks where they lose nothing: the weights are those that were quantised, to the last bit."""
    tiny = TinyLlama(n_ff=n_ff, eps=1e-5)
    write_llama2c(tmp_path / "model.bin", tiny, 2, group_size)
    tensors = open_model_file(tmp_path / "model.bin").tensors
    for name, weight in as_stored(tiny, group_size).weights.items():
        np.testing.assert_array_equal(tensors[name].dequantize(), weight)
    down = tensors["blk.1.ffn_down.weight"]
    assert down.format.name == format
    rows = np.array([5, 3, 63])
    np.testing.assert_array_equal(down.data[rows], down.data[:][rows])
    np.testing.assert_array_equal(down.data[4:9], down.data[:][4:9])


def test_blocks_hold_the_int8_of_the_file(tmp_path):
    tiny = TinyLlama(eps=1e-5)
    write_llama2c(tmp_path / "model.bin", tiny, 2, 64)
    quants, scales = quantized(tiny.weights["blk.0.attn_q.weight"], 64)
    blocks = open_model_file(tmp_path / "model.bin").tensors["blk.0.attn_q.weight"].data[:].reshape(-1, 36)
    np.testing.assert_array_equal(blocks[:, 4:].view(np.int8), quants.reshape(-1, 32))
    np.testing.assert_array_equal(blocks[:, :4].copy().view("<f4")[:, 0], scales.repeat(2))


def test_metadata_and_text(tmp_path):
    tiny = TinyLlama(eps=1e-5)
    write_llama2c(tmp_path / "stories.bin", tiny, 0)
    write_gguf(tmp_path / "stories.gguf", tiny)
    ours, reference = (
        Model.load(tmp_path / "stories.bin", backend="numpy"),
        Model.load(tmp_path / "stories.gguf", backend="numpy"),
    )
    assert ours.file.format == "llama2.c v0"
    assert ours.config.ftype == "F32"
    assert ours.config.n_ctx_train == tiny.n_ctx
    assert ours.config.norm_eps == 1e-5
    assert ours.file.metadata["tokenizer.ggml.tokens"] == tiny.tokens
    for text in ("the and", "  two spaces", "½ 🦙 <s>", ""):
        assert ours.tokenize(text) == reference.tokenize(text)
    assert ours.detokenize(ours.tokenize("thing ½")) == "thing ½"


def test_lazy(tmp_path):
    write_llama2c(tmp_path / "v1.bin", TinyLlama(), 1)
    write_llama2c(tmp_path / "v2.bin", TinyLlama(), 2)
    for tensor in open_model_file(tmp_path / "v1.bin").tensors.values():
        assert isinstance(tensor.data, np.ndarray)
        assert not tensor.data.flags.owndata  # a view of the mapping
    kinds = {type(tensor.data) for tensor in open_model_file(tmp_path / "v2.bin").tensors.values() if len(tensor.shape) == 2}
    assert kinds == {MadeRows}


def test_a_vocabulary_by_its_size(tmp_path):
    """tok512.bin, as llama2.c's tinystories.py calls a vocabulary of 512 tokens, goes before tokenizer.bin."""
    write_llama2c(tmp_path / "model.bin", TinyLlama(), 0)
    (tmp_path / "tokenizer.bin").rename(tmp_path / "tok299.bin")
    (tmp_path / "tokenizer.bin").write_bytes(b"another model's")
    assert len(open_model_file(tmp_path / "model.bin").metadata["tokenizer.ggml.tokens"]) == 299


# What is wrong


def refused(path: Path, says: str) -> None:
    with pytest.raises(FormatError, match=says) as caught:
        open_model_file(path)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_is_missing_or_another(tmp_path):
    write_llama2c(tmp_path / "model.bin", TinyLlama(), 1)
    tokens = (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(tokens + b"\0\0\0\0\1\0\0\0x")
    refused(tmp_path / "model.bin", "has more than 299 tokens and the model 299")
    (tmp_path / "tokenizer.bin").write_bytes(tokens[:500])
    refused(tmp_path / "model.bin", "is cut short or damaged|has .* tokens and the model 299")
    (tmp_path / "tokenizer.bin").unlink()
    refused(tmp_path / "model.bin", r"the vocabulary is missing; put llama2\.c's tokenizer\.bin \(or tok299\.bin\) beside")


@pytest.mark.parametrize(
    ("at", "number", "says"),
    [
        (4, 3, "this is version 3"),
        (8, -64, "not those of a model of the sizes"),
        (8, 2**30, "not those of a model of the sizes"),
        (16, 2**31 - 1, "not those of a model of the sizes"),
        (20, 0, "not those of a model of the sizes"),
        (24, 3, "not those of a model of the sizes"),
        (37, 0, "not those of a model of the sizes"),
        (37, 2**31 - 1, "not those of a model of the sizes"),
    ],
)
def test_headers_that_cannot_be(at, number, says, tmp_path):
    path = tmp_path / "model.bin"
    write_llama2c(path, TinyLlama(), 2)
    content = bytearray(path.read_bytes())
    pack_into("<i", content, at, number)
    path.write_bytes(content)
    refused(path, says)


def test_what_is_not_headless(tmp_path):
    path = tmp_path / "model.bin"
    write_llama2c(path, TinyLlama(), 0)
    sound = path.read_bytes()
    assert is_headless(path, sound[:28])
    for content in (sound[:-4], sound + b"\0", sound[:20], b"\0" * len(sound), b"\xff" * len(sound)):
        path.write_bytes(content)
        assert not is_headless(path, content[:28])
        refused(path, "not a model file")


@pytest.mark.parametrize(
    ("version", "file", "head"),  # head: bytes that say something; flips in weights only change numbers
    [(0, "model.bin", 28), (1, "model.bin", 37), (2, "model.bin", 41), (0, "tokenizer.bin", 3000)],
)
def test_flipped_bits(version, file, head, tmp_path):
    write_llama2c(tmp_path / "model.bin", TinyLlama(n_embd=32, n_ff=96, n_layer=1), version)
    sound = (tmp_path / file).read_bytes()
    assert len(sound) > head

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 7)), min_size=1, max_size=2))
    def check(flips):
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        (tmp_path / file).write_bytes(damaged)
        use(tmp_path / "model.bin")

    check()


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_of_random_bytes(version, tmp_path):
    """NaN, infinities and huge numbers in weights and scales."""
    path = tmp_path / "model.bin"
    write_llama2c(path, TinyLlama(n_embd=32, n_ff=96, n_layer=1), version)
    sound = path.read_bytes()
    for byte in (0x7F, 0xFF, 0x00):
        path.write_bytes(sound[:256] + bytes([byte]) * (len(sound) - 256))
        use(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_short(version, tmp_path):
    path = tmp_path / "model.bin"
    write_llama2c(path, TinyLlama(n_embd=32, n_ff=96, n_layer=1), version)
    sound = path.read_bytes()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(sound) - 1))
    def check(length):
        path.write_bytes(sound[:length])
        with pytest.raises(FormatError):
            open_model_file(path)

    check()
