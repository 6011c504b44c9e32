"""The GGUF writer, held against the `gguf` package's: same content, same bytes. And what is left when writing fails."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.blocks import FORMATS
from ops.errors import FormatError, OptionError
from tinyllama.formats.gguf import read_gguf
from tinyllama.formats.gguf_writer import NewTensor, write_gguf

INTEGERS = {
    kind: st.integers(low, high)
    for bits, unsigned, signed in [
        (8, "UINT8", "INT8"),
        (16, "UINT16", "INT16"),
        (32, "UINT32", "INT32"),
        (64, "UINT64", "INT64"),
    ]
    for kind, low, high in [
        (GGUFValueType[unsigned], 0, 2**bits - 1),
        (GGUFValueType[signed], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    ]
}
NUMBERS: dict[GGUFValueType, st.SearchStrategy[Any]] = INTEGERS | {
    GGUFValueType.FLOAT32: st.floats(width=32),
    GGUFValueType.FLOAT64: st.floats(),
    GGUFValueType.BOOL: st.booleans(),
}
RAW_TEXTS = st.one_of(st.text(), st.binary(max_size=20))  # the package writes bytes as they are: tokens need not be UTF-8


def values() -> st.SearchStrategy[tuple[Any, GGUFValueType, GGUFValueType | None]]:
    """A value, its type, and of an array the type of its items."""
    numbers = [st.tuples(items, st.just(kind), st.none()) for kind, items in NUMBERS.items()]
    # the package leaves an empty array away
    arrays = [
        st.tuples(st.lists(items, min_size=1), st.just(GGUFValueType.ARRAY), st.just(kind))
        for kind, items in (NUMBERS | {GGUFValueType.STRING: RAW_TEXTS}).items()
    ]
    return st.one_of(*numbers, *arrays, st.tuples(RAW_TEXTS, st.just(GGUFValueType.STRING), st.none()))


def one_chunk(name: str, values: NDArray[np.float32]) -> NewTensor:
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4 * values.shape[-1])
    return NewTensor(name, values.shape, FORMATS["F32"], lambda: [data])


def again(path: Path) -> bytes:
    """The file's content, read and written by us."""
    file, copy = read_gguf(path), path.with_suffix(".copy")
    tensors = [NewTensor(t.name, t.shape, t.format, lambda t=t: [t.data[:1], t.data[1:]]) for t in file.tensors.values()]
    size = write_gguf(copy, file.metadata, tensors, number_types=file.number_types, force=True)
    written = copy.read_bytes()
    assert len(written) == size
    return written


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@given(
    pairs=st.dictionaries(st.text("abc.é", min_size=1), values(), max_size=8),
    shapes=st.lists(st.sampled_from([(3,), (2, 5), (2, 1, 4)])),
)
def test_the_same_bytes_as_the_package(pairs: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "theirs.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        for key, (value, kind, item_kind) in pairs.items():
            writer.add_key_value(key, value, kind, item_kind)
        for i, shape in enumerate(shapes):
            writer.add_tensor(f"tensor {i}", np.arange(i, i + np.prod(shape), dtype=np.float32).reshape(shape))
        close(writer)
        assert again(path) == path.read_bytes()


@pytest.mark.parametrize("name", ["llama-q", "llama-bias", "qwen2"])
def test_models_come_out_byte_for_byte(name: str, tmp_path: Path) -> None:
    """Written by the package (tests/golden/make_tiny_models.py): quantised tensors, biases, merges of byte pairs."""
    shutil.copy(Path(__file__).parent / "data" / "tiny" / f"{name}.gguf", tmp_path / "theirs.gguf")
    assert again(tmp_path / "theirs.gguf") == (tmp_path / "theirs.gguf").read_bytes()


def test_arrays_of_arrays(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_array("nested", [[["a"], ["b", "c"]]])
    close(writer)
    assert again(tmp_path / "theirs.gguf") == (tmp_path / "theirs.gguf").read_bytes()


def test_numbers_without_a_type_get_what_llama_cpp_reads(tmp_path: Path) -> None:
    """As the package's writer has them (`add_layer_norm_rms_eps` and so on). JSON files write 10000 for a float."""
    given = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000,
        "llama.rope.scaling.factor": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.scores": np.array([0, -1.5]),
        "tokenizer.ggml.token_type": np.array([1, 3]),
        "offset": -1,
        "large": 2**40,
    }
    write_gguf(tmp_path / "ours.gguf", given, [])
    fields = gguf.GGUFReader(tmp_path / "ours.gguf").fields
    T = GGUFValueType
    assert {key: fields[key].types for key in given} == {
        "general.architecture": [T.STRING],
        "llama.context_length": [T.UINT32],
        "llama.attention.layer_norm_rms_epsilon": [T.FLOAT32],
        "llama.rope.freq_base": [T.FLOAT32],
        "llama.rope.scaling.factor": [T.FLOAT32],
        "tokenizer.ggml.add_bos_token": [T.BOOL],
        "tokenizer.ggml.scores": [T.ARRAY, T.FLOAT32],
        "tokenizer.ggml.token_type": [T.ARRAY, T.INT32],
        "offset": [T.INT32],
        "large": [T.UINT64],
    }
    assert fields["llama.rope.freq_base"].contents() == 10000
    assert fields["tokenizer.ggml.scores"].contents() == [0, -1.5]


@pytest.mark.parametrize("value", ["\ud800", 2**70], ids=["half a surrogate pair", "71 bits"])
def test_what_gguf_cannot_hold(value: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"the metadata 'llama\.odd' holds what a GGUF file cannot"):
        write_gguf(tmp_path / "ours.gguf", {"llama.odd": value}, [])
    assert not list(tmp_path.iterdir())


# ---- a file appears whole or not at all ----

ROWS = np.ones((4, 8), np.float32)


def failing(error: BaseException) -> NewTensor:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        yield ROWS[:2].view(np.uint8)
        raise error

    return NewTensor("half", ROWS.shape, FORMATS["F32"], chunks)


@pytest.mark.parametrize("error", [FormatError("damaged"), KeyboardInterrupt(), MemoryError()], ids=type)
def test_an_error_midway_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        write_gguf(tmp_path / "new.gguf", {}, [one_chunk("first", ROWS), failing(error)])
    assert not list(tmp_path.iterdir())


def test_an_error_midway_leaves_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF precious")
    with pytest.raises(FormatError):
        write_gguf(old, {}, [failing(FormatError("damaged"))], force=True)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"GGUF precious"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_what_is_no_gguf_file_is_never_overwritten(tmp_path: Path) -> None:
    """A model's other files lie beside it; and a device would become a file."""
    config, pipe = tmp_path / "config.json", tmp_path / "pipe"
    config.write_bytes(b"{}")
    os.mkfifo(pipe)
    for path, told in ((config, "no GGUF file"), (pipe, "a device, a pipe or the like")):
        with pytest.raises(OptionError, match=told):
            write_gguf(path, {}, [one_chunk("first", ROWS)], force=True)
    assert config.read_bytes() == b"{}"
    assert pipe.is_fifo()


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_link_leads_to_the_file_that_is_written(tmp_path: Path) -> None:
    link, target = tmp_path / "link.gguf", tmp_path / "target.gguf"
    target.touch()
    link.symlink_to(target)
    write_gguf(link, {}, [one_chunk("first", ROWS)], force=True)
    assert link.is_symlink()
    assert np.array_equal(gguf.GGUFReader(target).tensors[0].data, ROWS)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF precious")
    with pytest.raises(OptionError, match=r"old\.gguf exists: name another file, or overwrite it with --force"):
        write_gguf(old, {}, [one_chunk("first", ROWS)])
    assert old.read_bytes() == b"GGUF precious"
    write_gguf(old, {}, [one_chunk("first", ROWS)], force=True)
    assert np.array_equal(gguf.GGUFReader(old).tensors[0].data, ROWS)


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "new.gguf"

    def chunks() -> Iterator[NDArray[np.uint8]]:
        target.write_bytes(b"of another program")
        yield ROWS.view(np.uint8)

    with pytest.raises(OptionError, match="exists"):
        write_gguf(target, {}, [NewTensor("t", ROWS.shape, FORMATS["F32"], chunks)])
    assert target.read_bytes() == b"of another program"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_file_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    write_gguf(tmp_path / "new.gguf", {}, [])
    (tmp_path / "plain").touch()
    assert (tmp_path / "new.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_disk_without_room_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 bytes of header, 128 of the tensor."""
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OptionError, match="it takes 224 bytes, and its disk has 100 free"):
        write_gguf(tmp_path / "new.gguf", {}, [one_chunk("first", ROWS)])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network disks tell it no earlier."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match=rf"cannot write .*new\.gguf: {os.strerror(errno.ENOSPC)}; nothing of it was kept"):
        write_gguf(tmp_path / "new.gguf", {}, [one_chunk("first", ROWS)])
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from ops.blocks import FORMATS
from ops.errors import OptionError
from tinyllama.formats.gguf_writer import NewTensor, write_gguf
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensor = NewTensor("t", (1024, 64), FORMATS["F32"], lambda: [np.zeros((64, 256), np.uint8)] * 16)
try:
    write_gguf(Path(sys.argv[1]), {}, [tensor])
except OptionError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file's size")
def test_a_disk_that_fills_up_midway(tmp_path: Path) -> None:
    """Really: the system refuses to let the file grow."""
    said = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / "new.gguf"], capture_output=True, text=True, timeout=60)
    assert said.stdout == f"cannot write {tmp_path / 'new.gguf'}: {os.strerror(errno.EFBIG)}; nothing of it was kept\n", (
        said.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="no folder is closed to root, and Windows has no modes"
)
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match=rf"cannot write .*new\.gguf: {os.strerror(errno.EACCES)}"):
        write_gguf(tmp_path / "new.gguf", {}, [])
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no folder"):
        write_gguf(tmp_path / "nowhere" / "new.gguf", {}, [])
    with pytest.raises(OptionError, match="it is a folder; name a file"):
        write_gguf(tmp_path, {}, [], force=True)


SLOW = """
import sys, time
import numpy as np
from pathlib import Path
from ops.blocks import FORMATS
from tinyllama.formats.gguf_writer import NewTensor, write_gguf
def chunks():
    yield np.zeros((1, 256), np.uint8)
    print("begun", flush=True)
    time.sleep(60)
write_gguf(Path(sys.argv[1]), {}, [NewTensor("t", (1024, 64), FORMATS["F32"], chunks)])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a single process")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, tmp_path / "new.gguf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())
