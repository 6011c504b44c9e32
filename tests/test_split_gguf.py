"""GGUF models in several files, written by the gguf package: the same model as in one file; and what is wrong with parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_damage import use
from writers.tiny import TinyLlama, write_gguf

from ops.errors import FormatError
from tinyllama import Model
from tinyllama.formats import open_model_file

TINY = TinyLlama(n_embd=32, n_ff=96, n_head_kv=2)
N = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with whole.gguf, and its tensors split into four parts by the gguf package."""
    folder = tmp_path_factory.mktemp("split")
    write_gguf(folder / "whole.gguf", TINY)
    whole = gguf.GGUFReader(folder / "whole.gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=6)
    for field in whole.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.fixture
def parts(made, tmp_path) -> list[Path]:
    """The parts, to be spoiled."""
    found = sorted(made.glob("model-*.gguf"))
    assert len(found) == N
    return [Path(shutil.copy(path, tmp_path)) for path in found]


def test_same_model(made, parts):
    whole, ours = open_model_file(made / "whole.gguf"), open_model_file(parts[0])
    assert ours.format == f"GGUF v3, {N} parts"
    assert list(ours.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name].data, tensor.data)
        assert ours.tensors[name].shape == tensor.shape
    assert ours.metadata.keys() == whole.metadata.keys()  # nothing of split.*
    assert ours.nbytes == whole.nbytes
    prompt = [1, 5, 261, 290]
    logits, reference = (Model.load(path, backend="numpy").context().eval(prompt) for path in (parts[0], made / "whole.gguf"))
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5)  # rounding; logits spread over some +-8


@pytest.mark.parametrize("mmap", [True, False])
def test_any_part_will_do(mmap, parts):
    for part in parts:
        file = open_model_file(part, mmap=mmap)
        assert file.path == parts[0]
        assert file.mapped == mmap
        assert len(file.tensors) == len(TINY.weights)


def test_every_part_is_watched(parts):
    file = open_model_file(parts[0])
    file.check()
    with parts[2].open("r+b") as last:
        try:
            last.truncate(100)
        except OSError:
            pytest.skip("this system keeps a mapped file from being cut")
    with pytest.raises(FormatError, match=f"{parts[2].name}: the file has shrunk"):
        file.check()


def refused(path: Path, says: str) -> None:
    with pytest.raises(FormatError, match=says) as caught:
        open_model_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", range(N))
def test_a_part_is_missing(missing, parts):
    parts[missing].unlink()
    other = parts[(missing + 1) % N]
    refused(other, f"this model is in {N} files, and {parts[missing].name} is missing")


def test_a_name_of_its_own(parts, tmp_path):
    renamed = parts[0].rename(tmp_path / "model.gguf")
    refused(renamed, "one part of a model in several files, which is not named")


def test_parts_that_changed_places(parts, tmp_path):
    parts[1].rename(tmp_path / "kept")
    parts[2].rename(parts[1])
    (tmp_path / "kept").rename(parts[2])
    refused(parts[0], f"says that it is part 3 of {N}, against its name")


def test_a_part_twice(parts):
    """The third part's number, split.no, set in a copy of the second."""
    content = parts[1].read_bytes()
    at = content.index(b"split.no") + len(b"split.no") + 4
    parts[2].write_bytes(content[:at] + b"\2" + content[at + 1 :])
    refused(parts[0], "is in an earlier part too")


def test_a_part_of_a_model_in_more_parts(parts, tmp_path):
    for i, part in enumerate(parts[:3]):
        part.rename(tmp_path / f"model-{i + 1:05d}-of-00003.gguf")
    refused(tmp_path / "model-00001-of-00003.gguf", f"says that it is part 1 of {N}")


def test_too_few_tensors(parts):
    content = parts[0].read_bytes()
    at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[0].write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    refused(parts[0], f"hold {len(TINY.weights)} tensors, and should hold 255")


@pytest.mark.parametrize("part", [0, 1])
def test_flipped_bits(part, parts):
    sound = parts[part].read_bytes()
    head = sound.rindex(b".weight") + 40  # metadata and tensor infos: flips in weights only change numbers

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, head), st.integers(0, 7))
    def check(at, bit):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << bit
        parts[part].write_bytes(damaged)
        use(parts[0])

    check()


def test_cut_short(parts):
    sound = parts[1].read_bytes()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(sound) - 40))  # what comes last may be padding
    def check(length):
        parts[1].write_bytes(sound[:length])
        with pytest.raises(FormatError):
            open_model_file(parts[0])

    check()
