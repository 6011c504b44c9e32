"""Falcon beyond its numbers, which are in test_logits.py: attn_qkv seen as three, what is refused, what commands tell."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_logits import FLOAT32, error, golden_of, load, run_eagerly

from ops.errors import ModelError
from ops.tensor import MadeRows, Tensor
from tinyllama import Model, load_summary
from tinyllama.build import build
from tinyllama.cli.main import main
from tinyllama.context import Context
from tinyllama.formats import ModelFile, open_model_file

TINY = Path(__file__).parent / "data" / "tiny"
SIZES = ["falcon-7b", "falcon-40b", "falcon-180b"]


def file_of(name: str) -> ModelFile:
    return open_model_file(TINY / f"{name}.gguf")


def context_of(model: Model, file: ModelFile) -> Context:
    """A context of the model as if it had been loaded from this file."""
    demand = replace(model.demand, built=build(file))
    return Model(file, demand, model.placement, model.backend).context()


@pytest.mark.parametrize("name", SIZES)
def test_queries_keys_and_values_are_views_of_one_tensor(name: str) -> None:
    file = file_of(name)
    leaves = build(file).leaves
    for i in range(2):
        whole = file.tensors[f"blk.{i}.attn_qkv.weight"]
        q, k, v = (leaves[f"blk.{i}.attn_qkv.weight[{part}]"] for part in "qkv")
        assert all(isinstance(part.data, np.ndarray) and np.shares_memory(part.data, whole.data) for part in (q, k, v))
        np.testing.assert_array_equal(np.concatenate([x.dequantize() for x in (q, k, v)]), whole.dequantize())
        n_head, n_head_kv = {"falcon-7b": (5, 1), "falcon-40b": (8, 2), "falcon-180b": (6, 2)}[name]
        assert [len(x.data) for x in (q, k, v)] == [8 * n_head, 8 * n_head_kv, 8 * n_head_kv]


@pytest.mark.parametrize("name", SIZES)
def test_rows_that_a_reader_makes_are_seen_as_three_too(name: str) -> None:
    """Hugging Face's files have the rows in another order: a reader sorts them when they are asked for."""
    file, golden = file_of(name), golden_of(name)
    asked = []

    def made(tensor: Tensor) -> Tensor:
        def make(rows: slice | np.ndarray) -> np.ndarray:
            asked.append(rows)
            return tensor.data[rows]

        return replace(tensor, data=MadeRows(tensor.data.shape, make))

    tensors = {key: made(t) if "qkv" in key else t for key, t in file.tensors.items()}
    context = context_of(load(name), replace(file, tensors=tensors))
    assert not asked, "opening reads nothing"
    assert error(context.eval(golden["prompt_3"].tolist(), "all"), golden["logits_3"]) < FLOAT32
    assert asked


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("name", SIZES)
def test_a_long_prompt_in_blocks_on_several_threads(name: str, n_threads: int) -> None:
    """Against the formulas on float64 arrays, which cut nothing."""
    model = Model.load(TINY / f"{name}.gguf", backend="numpy", n_threads=n_threads, n_ctx=600)
    tokens = np.random.default_rng(0).integers(0, model.config.n_vocab, 600)
    logits = model.context(n_batch=600).eval(tokens.tolist(), "all")
    assert error(logits, run_eagerly(model, tokens, np.float64)) < FLOAT32


@pytest.mark.parametrize(
    ("metadata", "without", "says"),
    [
        ({"falcon.attention.max_alibi_bias": 8.0}, "", "tells positions by ALiBi (falcon.attention.max_alibi_bias)"),
        ({"falcon.use_alibi": True}, "", "tells positions by ALiBi (falcon.use_alibi)"),
        ({}, "blk.0.attn_norm.bias", "lacks the tensor blk.0.attn_norm.bias, which falcon models have"),
        ({}, "blk.1.attn_norm_2.bias", "falcon-40b.gguf lacks the tensor blk.1.attn_norm_2.bias"),
        ({}, "output_norm.bias", "lacks the tensor output_norm.bias, which falcon models have"),
        ({"falcon.attention.layer_norm_epsilon": None}, "", "no falcon.attention.layer_norm_epsilon"),
        ({"falcon.attention.head_count_kv": 4}, "", "blk.0.attn_qkv.weight has shape [96, 64], expected [128, 64]"),
        ({"falcon.attention.value_length": 4}, "", "blk.0.attn_qkv.weight has shape [96, 64], expected [88, 64]"),
    ],
)
def test_what_is_refused(metadata: dict[str, object], without: str, says: str) -> None:
    file = file_of("falcon-40b")
    tensors = {key: t for key, t in file.tensors.items() if key != without}
    with pytest.raises(ModelError, match=re.escape(says)) as caught:
        build(replace(file, metadata={**file.metadata, **metadata}, tensors=tensors))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "extra", "like"),
    [
        ("falcon-7b", "blk.0.attn_qkv.bias", "output_norm.bias"),
        ("falcon-7b", "blk.1.ffn_up.bias", "output_norm.bias"),
        ("falcon-7b", "blk.0.ffn_norm.weight", "output_norm.weight"),  # one after the other, as other Falcons compute
        ("falcon-7b", "blk.0.attn_norm_2.bias", "output_norm.bias"),  # known, but its weight is not there
        ("falcon-7b", "blk.2.attn_norm.weight", "output_norm.weight"),  # a layer more than block_count
        ("falcon-40b", "position_embd.weight", "token_embd.weight"),
        ("llama-mha", "blk.0.attn_q_norm.weight", "output_norm.weight"),
        ("llama-mha", "output.bias", "output_norm.weight"),
    ],
)
def test_a_tensor_that_nothing_reads(name: str, extra: str, like: str) -> None:
    """Its model was trained with it, so logits without it would be wrong, silently. llama.cpp refuses it too, by a count."""
    file = file_of(name)
    tensors = {**file.tensors, extra: replace(file.tensors[like], name=extra)}
    with pytest.raises(ModelError, match=rf"{name}\.gguf has the tensor {re.escape(extra)}, which .* do not read"):
        build(replace(file, tensors=tensors))


def test_a_model_without_alibi_may_say_so() -> None:
    file = file_of("falcon-7b")
    build(replace(file, metadata={**file.metadata, "falcon.attention.max_alibi_bias": 0.0, "falcon.use_alibi": False}))


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    summary = load_summary(load("falcon-40b"))
    for told in ("arch         = falcon", "n_head_kv    = 2", "n_rot        = 8", "n_ff         = 256"):
        assert told in summary


def test_the_graph_and_its_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """attn_qkv shows as what it is read as; the type of its blocks stands beside each part."""
    model = str(TINY / "falcon-40b.gguf")
    assert main(["graph", "-m", model, "--layer", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    makes = {line.split()[0]: line.split(" = ")[1].strip() for line in lines}
    assert makes["ffn_up-0"] == "matmul(attn_norm-0, blk.0.ffn_up.weight)"
    assert makes["q-0"] == "matmul(attn_norm_2-0, blk.0.attn_qkv.weight[q])"
    assert main(["graph", "-m", model, "--layer", "1", "--fused", "--backend", "numpy"]) == 0
    assert "attention(Qcur-1, k_cache-1, v_cache-1, positions" in capsys.readouterr().out
    for layer in ("1", "all"):
        picture = tmp_path / f"{layer}.svg"
        assert main(["graph", "-m", model, "--layer", layer, "-o", str(picture)]) == 0
        assert ("[16, 64] Q5_1" if layer == "1" else "Q8_0") in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SIZES)
def test_it_is_run_and_traced(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    argv = ["run", "--backend", "numpy", "-m", str(TINY / f"{name}.gguf"), "-p", "the and", "-n", "4", "--temp", "0"]
    assert main([*argv, "--ignore-eos"]) == 0
    text = capsys.readouterr().out
    assert main([*argv, "--ignore-eos", "--trace", str(trace)]) == 0
    assert capsys.readouterr().out == text
    ops = [json.loads(line)["op"] for line in trace.read_text("utf-8").splitlines()]
    norms = 3 if name == "falcon-7b" else 5  # one or two a layer, and the last
    assert (ops.count("layernorm"), ops.count("gelu")) == (4 * norms, 4 * 2)  # in four steps: the prompt, three tokens


def test_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "--backend", "numpy", "-m", str(TINY / "falcon-7b.gguf"), "-p", "4", "-n", "2", "-r", "1", "--profile"])
        == 0
    )
    table = capsys.readouterr().out
    for op in ("layernorm", "gelu", "matmul"):
        assert re.search(rf"^{op} ", table, re.MULTILINE)
