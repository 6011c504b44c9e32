"""safetensors files: read as their own library reads them, and never believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from writers.huggingface import save, save_header

from ops.errors import FormatError
from tinyllama.formats.safetensors import read_safetensors


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=5), half=st.booleans())
def test_every_tensor_is_as_the_library_reads_it(shapes: list[list[int]], half: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "some.safetensors"
    save(path, {f"t{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}, "F16" if half else "F32")
    file, library = read_safetensors(path), load_file(path)
    assert file.entries.keys() == library.keys()
    for name, values in library.items():
        tensor = file.tensor(name, "other name")
        assert (tensor.name, tensor.shape) == ("other name", values.shape)
        assert np.array_equal(tensor.dequantize(), values.astype(np.float32))


F32 = {"dtype": "F32", "shape": [2, 2]}


@pytest.mark.parametrize(
    ("header", "n_bytes"),
    [
        ({"a": F32 | {"data_offsets": [0, 16]}, "b": F32 | {"data_offsets": [8, 24]}}, 24),  # they overlap
        ({"a": F32 | {"data_offsets": [0, 16]}, "b": F32 | {"data_offsets": [0, 16]}}, 16),
        ({"a": F32 | {"data_offsets": [4, 20]}}, 20),  # a gap
        ({"a": F32 | {"data_offsets": [0, 16]}}, 17),  # bytes that belong to none
        ({"a": F32 | {"data_offsets": [0, 16]}}, 15),  # cut short
        ({"a": F32 | {"data_offsets": [-16, 0]}}, 16),
        ({"a": F32 | {"data_offsets": [16, 0]}}, 16),
        ({"a": F32 | {"data_offsets": [0, 2**70]}}, 16),
        ({"a": F32 | {"data_offsets": [0]}}, 16),
        ({"a": F32 | {"data_offsets": [0, 16.0]}}, 16),
        ({"a": F32 | {"data_offsets": [False, 16]}}, 16),
        ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 16]}}, 16),
        ({"a": {"dtype": 3, "shape": [2], "data_offsets": [0, 16]}}, 16),
        ({"a": [1, 2]}, 16),
        (b'{"a": 1, "a": 1}', 0),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0),
        (b'{"a": \xff}', 0),
        (b'{"a": ' + b"9" * 5000 + b"}", 0),
        (b"[1]", 0),
        (b"{", 0),
        (b"", 0),
    ],
    ids=range(21),
)
def test_a_header_that_lies(header: object, n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_header(path, header, n_bytes)
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        read_safetensors(path)


def test_a_length_of_the_header_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for start in (b"\xff" * 8, (1000).to_bytes(8, "little"), b"\1\0\0", bytes(8)):
        path.write_bytes(start + b'{"a": 1}')
        with pytest.raises(FormatError, match="no safetensors file"):
            read_safetensors(path)


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "I32", "Q9"])
def test_a_dtype_that_is_not_read_matters_where_it_is_needed(dtype: str, tmp_path: Path) -> None:
    save_header(tmp_path / "some.safetensors", {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 16]}}, 16)
    file = read_safetensors(tmp_path / "some.safetensors")
    with pytest.raises(FormatError, match=f"'a' has dtype '{dtype}'"):
        file.tensor("a", "a")


@pytest.mark.parametrize("shape", [[2, 3], [0, 4], [2**62, 2**62], [], [1] * 5 + [4], [2**63 - 1] * 100_000])
def test_a_shape_that_does_not_fit_to_the_bytes(shape: list[int], tmp_path: Path) -> None:
    save_header(tmp_path / "some.safetensors", {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}, 16)
    file = read_safetensors(tmp_path / "some.safetensors")
    with pytest.raises(FormatError, match="do not fit"):
        file.tensor("a", "a")
