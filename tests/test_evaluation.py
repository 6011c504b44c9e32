"""Perplexity: against llama.cpp's, and by its definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ops.errors import OptionError
from tinyllama import Model
from tinyllama.cli.main import main
from tinyllama.evaluation import perplexity
from tinyllama.evaluation.perplexity import perplexity_of_tokens

DATA = Path(__file__).parent / "data"
EVALUATION = DATA / "evaluation"
# llama.cpp computes with activations of 8 bits: docs/evaluating.md has up to 0.5%, observed 0.05%
OF_LLAMA_CPP = 0.005


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Model:
    return Model.load(smollm2, backend="numpy", n_ctx=512)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model.load(DATA / "tiny" / "llama-gqa-tied.gguf", backend="numpy")


def test_perplexity_is_llama_cpps(real):
    """On each window of an excerpt of The Devil's Dictionary; tests/golden/make_perplexity.py recorded llama.cpp's."""
    golden = json.loads((EVALUATION / "perplexity.json").read_text("utf-8"))
    text = (EVALUATION / golden["text"]).read_text("utf-8")
    found = list(perplexity(real, text, n_ctx=golden["n_ctx"]))
    assert [e.n_done for e in found] == list(range(1, len(golden["perplexity"]) + 1))
    assert found[-1].n_scored == golden["n_scored"]
    for estimate, expected in zip(found, golden["perplexity"], strict=True):
        assert estimate.perplexity == pytest.approx(expected, rel=OF_LLAMA_CPP)


def test_perplexity_by_its_definition(tiny):
    """The formula written out, token by token, in float64."""
    tokens, n_ctx = np.random.default_rng(0).integers(3, tiny.config.n_vocab, 70).tolist(), 16
    surprises = []
    for start in range(0, 64, n_ctx):
        window = [tiny.tokenizer.bos, *tokens[start + 1 : start + n_ctx]]
        logits = tiny.context().eval(window, logits="all").astype(np.float64)
        for i in range(n_ctx // 2, n_ctx - 1):
            p = np.exp(logits[i]) / np.exp(logits[i]).sum()
            surprises.append(-np.log(p[tokens[start + i + 1]]))
    *_, last = perplexity_of_tokens(tiny, tokens, n_ctx=n_ctx)
    assert last.n_scored == len(surprises)
    # logits of 8 with 24 bits: a relative 1e-6 each, and batches of other lengths round otherwise
    assert last.perplexity == pytest.approx(np.exp(np.mean(surprises)), rel=1e-5)
    assert last.error == pytest.approx(last.perplexity * np.std(surprises) / np.sqrt(len(surprises) - 1), rel=1e-4)


def test_a_text_that_is_too_short(tiny):
    with pytest.raises(OptionError, match="two windows of n_ctx = 64"):
        perplexity(tiny, "the and the", n_ctx=64)
    with pytest.raises(OptionError):
        perplexity(tiny, "the and the", n_ctx=1)


def test_the_command(capsys, tmp_path):
    text, model = tmp_path / "text.txt", str(DATA / "tiny" / "llama-gqa-tied.gguf")
    text.write_text("the and in the on at " * 60, "utf-8")
    assert main(["perplexity", "--backend", "numpy", "-m", model, "-f", str(text), "-c", "32", "--chunks", "3"]) == 0
    out, err = capsys.readouterr()
    estimates, final = out.strip().splitlines()
    assert estimates.count("[") == 3
    assert final.startswith("Final estimate: PPL = ")
    assert "45 tokens scored in 3 windows of 32" in err
    text.write_text("the", "utf-8")
    assert main(["perplexity", "--backend", "numpy", "-m", model, "-f", str(text)]) == 1
    assert "windows of n_ctx = 512" in capsys.readouterr().err
