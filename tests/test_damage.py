"""A damaged model file, from opening it to text: nothing but a TinyLlamaError, no hang, no memory beyond the file's size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyllama import Model, TinyLlamaError

TINY = Path(__file__).parent / "data" / "tiny"
ALLOWED = 64 << 20  # bytes beyond the file's size


def use(path: Path, **settings: Any) -> None:
    """All that a run does with a model, loaded with these settings."""
    told = ""
    tracemalloc.start()
    try:
        model = Model.load(path, **{"backend": "numpy", **settings})
        list(model.generate("Hello world", n_predict=2, seed=1))
        model.detokenize(model.tokenize("<s> ½ 🦙", add_bos=True), special=True)
    except TinyLlamaError as error:
        told = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "\n" not in told
    assert peak < path.stat().st_size + ALLOWED


@pytest.mark.parametrize("name", ["llama-q", "qwen2", "falcon-40b"])  # a SentencePiece and a byte-level vocabulary
def test_flipped_bits(name, tmp_path):
    sound = (TINY / f"{name}.gguf").read_bytes()
    head = sound.index(b"token_embd.weight") + 4000  # metadata and tensor infos: flips in weights only change numbers
    path = tmp_path / "damaged.gguf"

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, head), st.integers(0, 7)), min_size=1, max_size=3))
    def check(flips):
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        use(path)

    check()


@pytest.mark.parametrize("name", ["llama-q", "qwen2", "falcon-40b"])
def test_weights_of_random_bytes(name, tmp_path):
    """NaN, infinities and huge numbers in every weight."""
    sound = (TINY / f"{name}.gguf").read_bytes()
    path = tmp_path / "damaged.gguf"

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0x7F, 0xFF, 0x7C, 0x00]))
    def check(seed, byte):
        path.write_bytes(sound[:-60_000] + bytes([seed & 255, byte]) * 30_000)
        use(path)

    check()


def test_cut_short(tmp_path):
    sound = (TINY / "llama-q.gguf").read_bytes()
    path = tmp_path / "damaged.gguf"

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(sound) - 1))
    def check(length):
        path.write_bytes(sound[:length])
        with pytest.raises(TinyLlamaError):
            Model.load(path, backend="numpy")

    check()
