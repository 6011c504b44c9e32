"""Meta's folders: same weights, same logits as in GGUF, in one file or several, of LLaMA 1, 2 and 3; and what is damaged."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_damage import use
from writers.meta import of_300_tokens, params, rounded, sentencepiece_model, shares, write_meta, write_pth
from writers.tiny import TinyLlama, write_gguf

from ops.errors import FormatError, TinyLlamaError
from ops.tensor import MadeRows
from tinyllama import Model
from tinyllama.formats import open_model_file

DATA = Path(__file__).parent / "data" / "meta"
PROMPT = [1, 5, 261, 290, 270, 7]
# The same numbers go through the same code, save that a matrix may lie elsewhere and BLAS may sum in another order: rounding of
# float32, some 1e-7 of the largest logit
SAME = 1e-6


def stored_model() -> TinyLlama:
    """What tests/golden/make_meta_files.py put into tests/data/meta."""
    return of_300_tokens(TinyLlama(n_embd=32, n_ff=96, n_layer=1, n_head_kv=2, seed=5))


def logits(path: Path, **options: Any) -> np.ndarray:
    return Model.load(path, backend="numpy", **options).context().eval(PROMPT, logits="all")


def assert_same(ours: np.ndarray, reference: np.ndarray) -> None:
    assert np.abs(ours - reference).max() <= SAME * np.abs(reference).max()


@pytest.mark.parametrize(("folder", "kind"), [("zip", "BF16"), ("legacy", "F16")])
@pytest.mark.parametrize("mmap", [True, False])
def test_files_of_torch(folder, kind, mmap, tmp_path):
    write_gguf(tmp_path / "model.gguf", rounded(stored_model(), kind), gguf.GGMLQuantizationType[kind])
    assert_same(logits(DATA / folder, mmap=mmap), logits(tmp_path / "model.gguf"))
    assert open_model_file(DATA / folder).format == "Meta's .pth, 2 parts"
    assert Model.load(DATA / folder, backend="numpy").config.ftype == kind


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_head_kv", [4, 8])
@pytest.mark.parametrize(("n", "embedding_axis"), [(1, 1), (2, 1), (2, 0), (4, 1), (4, 0)])
def test_same_weights_same_logits(n, embedding_axis, n_head_kv, kind, tmp_path):
    tiny = of_300_tokens(TinyLlama(n_head=8, n_head_kv=n_head_kv, rope_freq_base=30000.0))
    write_meta(tmp_path / "model", tiny, n, kind, embedding_axis=embedding_axis)
    write_gguf(tmp_path / "model.gguf", rounded(tiny, kind), gguf.GGMLQuantizationType[kind])
    assert_same(logits(tmp_path / "model"), logits(tmp_path / "model.gguf"))


@pytest.mark.parametrize("embedding_axis", [0, 1])
def test_joined_rows(embedding_axis, tmp_path):
    """Every way to ask for rows gives those of the whole."""
    tiny = of_300_tokens(TinyLlama())
    write_meta(tmp_path, tiny, 4, embedding_axis=embedding_axis)
    tensors = open_model_file(tmp_path).tensors
    rng = np.random.default_rng(1)
    for name, whole in tiny.weights.items():
        tensor = tensors[name]
        assert tensor.shape == whole.shape
        np.testing.assert_array_equal(tensor.dequantize(), whole)
        if whole.ndim == 2:
            assert isinstance(tensor.data, MadeRows)
            n = len(whole)
            for rows in (slice(3, 9), slice(n // 4 - 1, n // 2 + 1), slice(-3, None), slice(0, n, 7), rng.integers(0, n, 9)):
                np.testing.assert_array_equal(tensor.dequantize(rows), whole[rows])


def test_opening_reads_no_tensor(tmp_path):
    """Of 64 MB of weights in four files, opening keeps less than one."""
    n, vocabulary = 512, of_300_tokens(TinyLlama())
    tiny = TinyLlama(n_embd=n, n_ff=2816, n_layer=2)
    tiny.tokens, tiny.scores, tiny.kinds = vocabulary.tokens, vocabulary.scores, vocabulary.kinds
    tiny.weights |= {name: np.zeros((300, n), np.float32) for name in ("token_embd.weight", "output.weight")}
    write_meta(tmp_path, tiny, 4)
    tracemalloc.start()
    file = open_model_file(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.nbytes > 40_000_000
    assert peak < 4_000_000


def test_text_and_config(tmp_path):
    tiny = of_300_tokens(TinyLlama())
    write_meta(tmp_path / "7B", tiny)
    (tmp_path / "7B" / "tokenizer.model").rename(tmp_path / "tokenizer.model")  # where Meta put it
    write_gguf(tmp_path / "model.gguf", tiny)
    ours, reference = Model.load(tmp_path / "7B", backend="numpy"), Model.load(tmp_path / "model.gguf", backend="numpy")
    for text in ("the and", "  two spaces", "½ 🦙 <s>", ""):
        assert ours.tokenize(text) == reference.tokenize(text)
    assert ours.config.name == "7B"
    for size in ("n_vocab", "n_ctx_train", "n_embd", "n_head", "n_head_kv", "n_layer", "n_ff", "n_rot"):
        assert getattr(ours.config, size) == getattr(reference.config, size)
    assert np.float32(ours.config.norm_eps) == np.float32(reference.config.norm_eps)  # as GGUF keeps it
    assert_same(
        logits(tmp_path / "7B" / "consolidated.00.pth"), logits(tmp_path / "model.gguf")
    )  # a file stands for its folder


@dataclass
class Published:
    """A params.json of Meta's, and what its model card says of the context."""

    changes: dict[str, Any]
    n_ctx: int


@pytest.mark.parametrize(
    "published",
    [
        Published({"norm_eps": 1e-6}, 2048),  # LLaMA
        Published({"norm_eps": 1e-5}, 4096),  # LLaMA 2
        Published({"norm_eps": 1e-5, "rope_theta": 1e6}, 16384),  # Code Llama
        Published({"norm_eps": 1e-5, "rope_theta": 500000.0}, 8192),  # LLaMA 3
        Published({"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 131072),  # LLaMA 3.1
        Published({"max_seq_len": 77}, 77),
    ],
)
def test_context_lengths(published, tmp_path):
    write_meta(tmp_path, of_300_tokens(TinyLlama()))
    known = json.loads((tmp_path / "params.json").read_text()) | {"max_seq_len": None} | published.changes
    (tmp_path / "params.json").write_text(json.dumps(known))
    assert open_model_file(tmp_path).metadata["llama.context_length"] == published.n_ctx


def test_scaled_rope_of_llama3(tmp_path):
    """Against Meta's apply_scaling (llama-models, model.py), in its own form: frequencies, not their factors."""
    tiny = of_300_tokens(TinyLlama(n_head=1, n_head_kv=1, rope_freq_base=500000.0))
    write_meta(tmp_path, tiny)
    (tmp_path / "params.json").write_text(json.dumps(params(tiny) | {"use_scaled_rope": True, "rope_scaling_factor": 8}))
    factors = open_model_file(tmp_path).tensors["rope_freqs.weight"].dequantize()
    for i, factor in enumerate(factors):
        frequency = 500000.0 ** (-2 * i / 64)
        length = 2 * math.pi / frequency
        smooth = (8192 / length - 1) / (4 - 1)
        between = (1 - smooth) * frequency / 8 + smooth * frequency
        scaled = frequency if length < 8192 / 4 else frequency / 8 if length > 8192 else between
        assert factor == pytest.approx(frequency / scaled, rel=1e-6)  # float32 keeps 6e-8
    assert len(set(factors.tolist())) > 3


def test_tokenizer_of_llama3(tmp_path):
    """300 tokens: the 256 that stand for bytes are ranks, 256 more are special, so a longer embedding is needed."""
    tiny = TinyLlama(n_embd=32, n_ff=96, n_layer=1)
    tiny.weights["token_embd.weight"] = tiny.weights["output.weight"] = np.zeros((512, 32), np.float32)
    write_meta(tmp_path, tiny)
    (tmp_path / "tokenizer.model").write_bytes(b"".join(b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    model = Model.load(tmp_path, backend="numpy")
    assert model.tokenize("½<|eot_id|>") == [256, 0xC2, 0xBD, 265]


# What is wrong


def refused(path: Path, says: str) -> None:
    with pytest.raises(TinyLlamaError, match=says) as caught:
        Model.load(path, backend="numpy")
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound model in two files, to be spoiled."""
    return Path(shutil.copytree(DATA / "zip", tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("params.json", "neither config.json"),
        ("consolidated.00.pth", r"lacks consolidated\.00\.pth, the first part of the model"),
        ("consolidated.01.pth", r"lacks consolidated\.01\.pth, one of 2 parts of the model"),
        ("tokenizer.model", r"neither this folder nor the one above has a tokenizer\.model"),
    ],
)
def test_a_file_is_missing(name, says, folder):
    (folder / name).unlink()
    refused(folder, says)


def test_weights_in_another_format(folder):
    (folder / "consolidated.00.pth").unlink()
    (folder / "consolidated.safetensors").write_bytes(b"")
    refused(folder, r"its weights are in consolidated\.safetensors, .* take the model's Hugging Face folder")


def test_files_that_do_not_belong_together(folder, tmp_path):
    shutil.copy(DATA / "legacy" / "consolidated.01.pth", folder)
    refused(folder, r"consolidated\.01\.pth: this part and consolidated\.00\.pth do not belong to one model")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(TinyLlama()))
    shutil.copy(DATA / "zip" / "consolidated.01.pth", folder)
    refused(folder, "the tokenizer has 299 tokens and the model 300")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 40}, "wq has 16 rows, which is no share of dim = 40"),
        ({"dim": 64}, r"lacks consolidated\.02\.pth, one of 4 parts"),
        ({"dim": 2**31 - 1}, "no share of dim"),
        ({"dim": 0}, "expected a whole number"),
        ({"dim": "32"}, "expected a whole number"),
        ({"n_layers": 2}, r"n_layers is 2, but the \.pth files hold 1 layers"),
        ({"n_layers": 2**31 - 1}, r"the \.pth files hold 1 layers"),
        ({"n_heads": 3}, "head_count|heads|shape"),
        ({"n_heads": 2**31 - 1}, "."),
        ({"n_kv_heads": None}, "shape"),
        ({"norm_eps": -1}, "expected a finite number above 0"),
        ({"use_scaled_rope": 1}, "expected true or false"),
    ],
)
def test_params_that_cannot_be(changes, says, folder):
    known = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(known | changes))
    refused(folder, says)


SPOILED: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "another model's tensor": (
        lambda w: w.update({"transformer.h.0.mlp": np.ones(3, np.float32)}),
        "which LLaMA does not have",
    ),
    "a layer without wk": (lambda w: w.pop("layers.0.attention.wk.weight"), "attn_k"),
    "no embedding": (lambda w: w.pop("tok_embeddings.weight"), "no matrix token_embd.weight"),
    "no wq": (lambda w: w.pop("layers.0.attention.wq.weight"), "no matrix layers.0.attention.wq.weight"),
    "a norm of another size": (lambda w: w.update({"norm.weight": np.ones(3, np.float32)}), "shape"),
    "a matrix of three dimensions": (lambda w: w.update({"output.weight": np.ones((2, 2, 2), np.float32)}), "has 3 dimensions"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_tensors_that_cannot_be(name, folder):
    spoil, says = SPOILED[name]
    for i, share in enumerate(shares(stored_model(), 2)):
        spoil(share)
        write_pth(folder / f"consolidated.{i:02d}.pth", share, "F32")
    refused(folder, says)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"])
def test_flipped_bits(name, kind, tmp_path):
    folder = Path(shutil.copytree(DATA / kind, tmp_path / "model"))
    sound = (folder / name).read_bytes()

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 7)), min_size=1, max_size=3))
    def check(flips):
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        (folder / name).write_bytes(damaged)
        use(folder)

    check()


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["params.json", "consolidated.01.pth", "tokenizer.model"])
def test_cut_short(name, kind, tmp_path):
    folder = Path(shutil.copytree(DATA / kind, tmp_path / "model"))
    sound = (folder / name).read_bytes()

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(sound) - 1))
    def check(length):
        (folder / name).write_bytes(sound[:length])
        with pytest.raises(FormatError):
            Model.load(folder, backend="numpy")

    check()
