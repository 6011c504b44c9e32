"""examples/bench_vs_llama_cpp.py, as far as it goes without llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bench_vs_llama_cpp

    return bench_vs_llama_cpp


def test_without_llama_cpp_it_says_what_to_install(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_vs_llama_cpp.py"])
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main() == 1
    assert "llama-cpp-python is not installed: docs/speed.md says how" in capsys.readouterr().err


def test_random_rows_are_as_wide_as_keeps_a_length(script):
    """Each of n weights has the variance 1 / n, so W x is about as long as x."""
    blocks = np.concatenate(list(script.random_rows((300, 512), "Q8_0")))
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert weights.shape == (300, 512)
    assert weights.std() == pytest.approx(512**-0.5, rel=0.02)  # 153,600 draws: their spread is known to 0.2%


def test_ours_reads_as_it_is_asked(script):
    ours = script.Ours(Path(__file__).parent / "data" / "tiny" / "llama-mha.gguf", 1, "numpy")
    script.CASES["prefill 5"] = (0, 5, 5)
    script.CASES["decode 3"] = (0, 3, 1)
    for case, n in (("prefill 5", 5), ("decode 3", 3)):
        assert script.turn(ours, case) > 0
        assert ours.context.tokens == list(range(1, n + 1))
