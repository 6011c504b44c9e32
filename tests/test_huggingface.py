"""Hugging Face folders: the same weights give the same logits as in GGUF, and as transformers computed from them."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.tiny_variants import VARIANTS
from safetensors.numpy import load_file, save_file
from writers import huggingface as writer
from writers.tiny import TinyLlama, write_gguf

from ops.errors import FormatError, ModelError
from ops.tensor import MadeRows
from tinyllama import Model, load_summary
from tinyllama.convert import convert
from tinyllama.formats import open_model_file

TINY = Path(__file__).parent / "data" / "tiny"
PROMPT = [1, 297, 259, 267, 294, 3, 270, 290, 298]
SAME_WEIGHTS = 0.0  # the same numbers go through the same kernels
AS_TORCH = 1e-5  # as in test_logits.py: five times float32's rounding in two layers


def logits(path: Path, prompt: list[int] = PROMPT, **settings: Any) -> np.ndarray:
    return Model.load(path, backend="numpy", **settings).context().eval(prompt, logits="all")


def error(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture
def tiny() -> TinyLlama:
    return TinyLlama(n_head_kv=2, eps=1e-5)


# ---- the same logits


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_same_logits_as_gguf(dtype: str, n_shards: int, tiny: TinyLlama, tmp_path: Path) -> None:
    tiny.weights = {name: writer.rounded(weight, dtype) for name, weight in tiny.weights.items()}
    write_gguf(tmp_path / "tiny.gguf", tiny)
    folder = writer.write_llama(tmp_path / "folder", tiny, dtype=dtype, n_shards=n_shards)
    wanted = logits(tmp_path / "tiny.gguf")
    assert error(logits(folder), wanted) <= SAME_WEIGHTS
    assert error(logits(folder, mmap=False), wanted) <= SAME_WEIGHTS
    assert Model.load(folder, backend="numpy").config.ftype == dtype


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_head_kv", [1, 4])
def test_tied_embeddings_and_kinds_of_attention(n_head_kv: int, tied: bool, tmp_path: Path) -> None:
    tiny = TinyLlama(n_head_kv=n_head_kv, rope_freq_base=500000.0)
    if tied:
        del tiny.weights["output.weight"]
    write_gguf(tmp_path / "tiny.gguf", tiny)
    folder = writer.write_llama(tmp_path / "folder", tiny)
    assert error(logits(folder), logits(tmp_path / "tiny.gguf")) <= SAME_WEIGHTS


def test_the_order_of_rows_shows(tiny: TinyLlama, tmp_path: Path) -> None:
    """Were the rows of q and k left where they are, the tests above would see it."""
    write_gguf(tmp_path / "tiny.gguf", tiny)
    folder = writer.write_llama(tmp_path / "folder", tiny, in_halves=False)
    assert error(logits(folder), logits(tmp_path / "tiny.gguf")) > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_same_logits_as_transformers(name: str, tmp_path: Path) -> None:
    """The logits in tests/data/tiny are what transformers computed from these weights, in its own order of rows."""
    folder = writer.write_golden(name, tmp_path / name)
    golden = np.load(TINY / f"{name}.npz")
    for i in range(4):
        assert error(logits(folder, golden[f"prompt_{i}"].tolist()), golden[f"logits_{i}"]) < AS_TORCH


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("falcon")])
def test_the_first_names_of_falcon(name: str, tmp_path: Path) -> None:
    folder = writer.write_golden(name, tmp_path / name, old_falcon=True)
    golden = np.load(TINY / f"{name}.npz")
    assert error(logits(folder, golden["prompt_3"].tolist()), golden["logits_3"]) < AS_TORCH


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3"])
def test_the_older_names_of_rope(name: str, tmp_path: Path) -> None:
    folder = writer.write_golden(name, tmp_path / name)
    rope = dict(VARIANTS[name].config["rope_parameters"])
    rope["type"] = rope.pop("rope_type")
    writer.set_keys(folder, "config.json", rope_parameters=None, rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    golden = np.load(TINY / f"{name}.npz")
    assert error(logits(folder, golden["prompt_3"].tolist()), golden["logits_3"]) < AS_TORCH


# ---- what config.json says


def test_metadata(tiny: TinyLlama, tmp_path: Path) -> None:
    folder = writer.write_llama(tmp_path / "Tiny-Llama", tiny)
    model = Model.load(folder, backend="numpy")
    assert (model.config.name, model.config.arch, model.config.norm_eps) == ("Tiny-Llama", "llama", 1e-5)
    assert model.file.format == "Hugging Face folder"
    assert model.file.path == folder
    assert Model.load(folder / "model.safetensors", backend="numpy").file.path == folder


@pytest.mark.parametrize(
    ("changes", "n_ctx", "window"),
    [
        ({"sliding_window": 20, "architectures": ["MistralForCausalLM"]}, 20, 20),
        ({"sliding_window": 64, "architectures": ["MistralForCausalLM"]}, 64, 64),
        ({"sliding_window": 99, "architectures": ["MistralForCausalLM"]}, 64, 99),
        ({"sliding_window": None, "architectures": ["MistralForCausalLM"]}, 64, None),
        ({"sliding_window": 20, "architectures": ["Qwen2ForCausalLM"]}, 64, None),  # not in use, by Qwen2's default
        ({"sliding_window": 20, "use_sliding_window": True, "architectures": ["Qwen2ForCausalLM"]}, 20, 20),
    ],
)
def test_context_ends_at_the_sliding_window(
    changes: dict[str, Any], n_ctx: int, window: int | None, tiny: TinyLlama, tmp_path: Path
) -> None:
    """Unless a longer one is asked for, which is told; the same in a GGUF file made of the folder."""
    folder, file = writer.write_llama(tmp_path / "folder", tiny, **changes), tmp_path / "model.gguf"
    convert(folder, file)
    up_to_it = ", its sliding window" if window == n_ctx else ""
    beyond = f"; beyond its sliding window of {window}, results are not the model's own" if window else ""
    for path in (folder, file):
        model = Model.load(path, backend="numpy")
        assert model.n_ctx == n_ctx
        assert f" n_ctx        = {n_ctx} (trained on {n_ctx}{up_to_it})\n" in load_summary(model)
        assert f" n_ctx        = 100 (trained on {n_ctx}{beyond})\n" in load_summary(
            Model.load(path, backend="numpy", n_ctx=100)
        )
        assert model.metadata[f"{model.config.arch}.context_length"] == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM.*supported are LlamaForCausalLM"),
        ({"architectures": None}, "architecture"),
        ({"architectures": [[]]}, "architecture"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_llamas_that_are_refused(changes: dict[str, Any], words: str, tiny: TinyLlama, tmp_path: Path) -> None:
    writer.write_llama(tmp_path, tiny)
    writer.set_keys(tmp_path, "config.json", **changes)
    with pytest.raises(ModelError, match=words):
        open_model_file(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alibi": True}, "alibi"),
        ({"bias": True}, "bias"),
        ({"parallel_attn": False}, "parallel_attn"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_falcons_that_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = writer.write_golden("falcon-7b", tmp_path)
    writer.set_keys(folder, "config.json", **changes)
    with pytest.raises(ModelError, match=words):
        open_model_file(folder)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_a_tensor_that_nothing_reads(family: str, tiny: TinyLlama, tmp_path: Path) -> None:
    """Refused, since logits without it would be silently wrong; but for what is computed from the config anyhow."""
    if family == "llama":
        writer.write_llama(tmp_path, tiny)
        folder, layer = tmp_path, "model.layers.0.self_attn"
    else:
        folder, layer = writer.write_golden("falcon-7b", tmp_path), "transformer.h.0.self_attention"
    file = next(folder.glob("*.safetensors"))
    held = load_file(file)
    save_file({**held, f"{layer}.rotary_emb.inv_freq": np.ones(4, np.float32)}, file)
    open_model_file(folder)
    save_file({**held, f"{layer}.query_key_value.bias": np.ones(4, np.float32)}, file)
    with pytest.raises(ModelError, match=rf"tensor '{layer}\.query_key_value\.bias', .* do not read"):
        open_model_file(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 32},
        {"num_attention_heads": 3},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"intermediate_size": 100},
        {"head_dim": 7},
        {"head_dim": 32},
        {"rms_norm_eps": "small"},
        {"rope_theta": -1.0},
        {"rope_theta": float("nan")},
        {"num_key_value_heads": 2.5},
        {"tie_word_embeddings": "no"},
        {"rope_scaling": [1]},
        {"rope_scaling": {"type": "llama3", "factor": 8.0}},
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], tiny: TinyLlama, tmp_path: Path) -> None:
    writer.write_llama(tmp_path, tiny)
    writer.set_keys(tmp_path, "config.json", **changes)
    with pytest.raises(FormatError):
        open_model_file(tmp_path)


# ---- missing files


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "neither config.json"),
        ("model-00002-of-00003.safetensors", "lacks model-00002-of-00003.safetensors"),
        ("model.safetensors.index.json", "index.json is missing"),
        ("tokenizer.json", "neither tokenizer.json nor tokenizer.model"),
    ],
)
def test_a_missing_file_is_named(missing: str, words: str, tiny: TinyLlama, tmp_path: Path) -> None:
    writer.write_llama(tmp_path, tiny, n_shards=3)
    (tmp_path / missing).unlink()
    with pytest.raises(FormatError, match=words):
        open_model_file(tmp_path)


def test_only_pytorch_weights(tiny: TinyLlama, tmp_path: Path) -> None:
    writer.write_llama(tmp_path, tiny)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin.*save_pretrained"):
        open_model_file(tmp_path)


def test_an_index_that_lacks_a_tensor_or_lies(tiny: TinyLlama, tmp_path: Path) -> None:
    writer.write_llama(tmp_path, tiny, n_shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    for wrong, words in (
        ({k: v for k, v in index.items() if k != name}, f"no tensor {name}"),
        (index | {name: next(v for v in index.values() if v != index[name])}, f"lacks the tensor {name}"),
        (index | {name: "../model-00001-of-00002.safetensors"}, "no .safetensors file of this folder"),
        (index | {name: 3}, "no .safetensors file of this folder"),
    ):
        writer.set_keys(tmp_path, "model.safetensors.index.json", weight_map=wrong)
        with pytest.raises(FormatError, match=words):
            open_model_file(tmp_path)


# ---- nothing is read before it is wanted


def test_tensors_are_views_and_rows_are_made_on_access(tiny: TinyLlama, tmp_path: Path) -> None:
    file = open_model_file(writer.write_llama(tmp_path, tiny))
    for name, tensor in file.tensors.items():
        if "attn_q" in name or "attn_k" in name:
            assert isinstance(tensor.data, MadeRows)
            whole = tensor.dequantize()
            assert np.array_equal(whole, tiny.weights[name])
            for rows in (slice(3, 40, 5), slice(-5, None), np.array([7, 0, 31]), [2]):
                assert np.array_equal(tensor.dequantize(rows), whole[rows])
        else:
            assert isinstance(tensor.data, np.ndarray)
            assert not tensor.data.flags.owndata
            assert not tensor.data.flags.writeable


@pytest.mark.skipif(sys.platform == "win32", reason="NTFS makes a file of zeros without holes: 15 GB would be written")
def test_a_file_of_15_gb_opens_at_once(tmp_path: Path) -> None:
    tiny = TinyLlama(n_layer=0)
    n, ff = 8192, 32768
    writer.write_llama(tmp_path, tiny, hidden_size=n, intermediate_size=ff, num_hidden_layers=8, num_attention_heads=64)
    writer.set_keys(tmp_path, "config.json", num_key_value_heads=8)
    shapes = {"model.embed_tokens": [tiny.n_vocab, n], "lm_head": [tiny.n_vocab, n], "model.norm": [n]}
    for i in range(8):
        layer = f"model.layers.{i}."
        shapes |= {layer + part: [n] for part in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {layer + f"self_attn.{part}_proj": [n if part in "qo" else 1024, n] for part in "qkvo"}
        shapes |= {layer + f"mlp.{part}_proj": [ff, n] for part in ("gate", "up")} | {layer + "mlp.down_proj": [n, ff]}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    writer.save_header(tmp_path / "model.safetensors", header, end)
    assert end > 15e9
    tracemalloc.start()
    try:
        model = Model.load(tmp_path, backend="numpy", n_ctx=16)
        row = model.tensors["blk.7.attn_q.weight"].dequantize([5])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert row.shape == (1, n)
    assert peak < 8e6  # a ten-thousandth of one matrix; the vocabulary takes most of it
