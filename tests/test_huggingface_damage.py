"""A damaged Hugging Face folder, from opening it to text: nothing but a TinyLlamaError, no hang, no memory beyond its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_damage import use
from writers import huggingface as writer
from writers.tiny import TinyLlama

from backends.numpy import Numpy
from ops.errors import FormatError, TinyLlamaError
from tinyllama import Model
from tinyllama.formats import open_model_file

NUMPY = Numpy()  # one for all: finding the installed backends takes longer than what is tested
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer.write_llama(tmp_path, TinyLlama(), n_shards=2, rope_scaling={"rope_type": "linear", "factor": 2.0})
    writer.set_keys(tmp_path, "generation_config.json", bos_token_id=1, eos_token_id=[2, 5])
    return tmp_path


@pytest.mark.parametrize("name", [*FILES, "model-00001-of-00002.safetensors"])
def test_flipped_bits(name: str, folder: Path) -> None:
    path = folder / name
    sound = path.read_bytes()
    head = 8 + int.from_bytes(sound[:8], "little") if name.endswith(".safetensors") else len(sound)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 7)), min_size=1, max_size=3))
    def check(flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        use(folder, n_ctx=16, backend=NUMPY)

    check()


@pytest.mark.parametrize("name", [*FILES, "model-00001-of-00002.safetensors"])
def test_cut_short(name: str, folder: Path) -> None:
    path = folder / name
    sound = path.read_bytes()

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, len(sound.rstrip()) - 1))
    def check(length: int) -> None:
        path.write_bytes(sound[:length])
        with pytest.raises(TinyLlamaError):
            Model.load(folder, backend=NUMPY)

    check()


@pytest.mark.parametrize("name", FILES)
def test_values_of_other_kinds(name: str, folder: Path) -> None:
    """Any value of the JSON files replaced by any other."""
    sound = json.loads((folder / name).read_text())
    others = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.just(2**40), st.floats(), st.text(max_size=3), st.just([]), st.just({})
    )
    paths = list(places(sound))

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(paths), others)
    def check(place: tuple[Any, ...], other: Any) -> None:
        damaged = json.loads(json.dumps(sound))
        *above, last = place
        inner = damaged
        for key in above:
            inner = inner[key]
        inner[last] = other
        (folder / name).write_text(json.dumps(damaged))
        use(folder, n_ctx=16, backend=NUMPY)

    check()


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values are in a JSON document; of long lists and objects the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:30]:
        yield (*here, key)
        yield from places(inner, (*here, key))


def test_a_file_that_shrinks_while_in_use(folder: Path) -> None:
    file = open_model_file(folder)
    file.check()
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    try:
        with shard.open("r+b") as opened:
            opened.truncate(len(data) - 1)
    except OSError:
        pytest.skip("this system does not let a mapped file be cut short")
    with pytest.raises(FormatError, match="shrunk"):
        file.check()
