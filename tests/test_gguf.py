"""GGUF files: sound ones from the `gguf` package's writer, old and damaged ones put together by hand."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from struct import pack
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.blocks import BY_GGML_TYPE, FORMATS
from ops.errors import FormatError, TinyLlamaError
from tinyllama.formats import open_model_file
from tinyllama.formats.gguf import read_gguf

U8, U32, TEXT, ARRAY = 0, 4, 8, 9  # GGUF's numbers of value types
F32, Q4_0 = 0, 2  # ggml's numbers of tensor types
HUGE = [2**63, 2**64 - 1, 2**64 - 8, 2**61 + 1, 2**40]  # lengths that overflow, or leave any small file


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return pack("<Q", len(raw)) + raw


def pair(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return text(key) + pack("<I", value_type) + value


def array(item_type: int, n: int, items: bytes) -> bytes:
    return pack("<IQ", item_type, n) + items


def tensor(name: str | bytes, dims: list[int], ggml_type: int = F32, offset: int = 0) -> bytes:
    return text(name) + pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)


def gguf_bytes(
    pairs: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    n_pairs: int | None = None,  # for a file that lies about it
) -> bytes:
    counts = pack("<QQ", len(tensors), len(pairs) if n_pairs is None else n_pairs)
    head = b"GGUF" + pack("<I", version) + counts + b"".join(pairs + tensors)
    return head + bytes(-len(head) % alignment) + data


SMALL = gguf_bytes(
    [
        pair("general.architecture", TEXT, text("llama")),
        pair("tokens", ARRAY, array(TEXT, 3, text("a") + text("▁the") + text(b"\xff"))),
        pair("scores", ARRAY, array(6, 3, pack("<3f", 0, -1, -2))),
        pair("nested", ARRAY, array(ARRAY, 2, array(U8, 2, b"\1\2") + array(TEXT, 1, text("x")))),
        pair("general.alignment", U32, pack("<I", 32)),
    ],
    [tensor("a", [32, 2], Q4_0), tensor("b", [3], F32, 64), tensor("c", [2, 1, 2], F32, 96)],
    bytes(range(36)) + bytes(28) + pack("<3f", 1, 2, 3) + bytes(20) + pack("<4f", 4, 5, 6, 7),
)


@pytest.fixture(params=[True, False], ids=["mmap", "no-mmap"])
def mmap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def refused(tmp_path: Path, content: bytes) -> str:
    """The sentence with which a file of this content is refused: one line, naming the file."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    said = refusal(path, mmap=True)
    assert said == refusal(path, mmap=False)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def refusal(path: Path, mmap: bool) -> str:
    """No pytest.raises: it would keep the error, whose frames keep the mapping, and Windows then locks the file."""
    try:
        open_model_file(path, mmap=mmap)
    except FormatError as error:
        return str(error)
    pytest.fail(f"{path} was opened")


# ---- sound files ----


def test_every_value_type(tmp_path: Path, mmap: bool) -> None:
    numbers = {
        GGUFValueType.UINT8: 255,
        GGUFValueType.INT8: -128,
        GGUFValueType.UINT16: 65535,
        GGUFValueType.INT16: -32768,
        GGUFValueType.UINT32: 2**32 - 1,
        GGUFValueType.INT32: -(2**31),
        GGUFValueType.UINT64: 2**64 - 1,
        GGUFValueType.INT64: -(2**63),
        GGUFValueType.FLOAT32: 1.5,
        GGUFValueType.FLOAT64: 0.1,
        GGUFValueType.BOOL: True,
    }
    texts = ["", "a", "▁the", "\n", "日本", "x" * 300]
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for value_type, value in numbers.items():
        writer.add_key_value(f"one.{value_type.name}", value, value_type)
        writer.add_key_value(f"many.{value_type.name}", [value, 0, value], GGUFValueType.ARRAY, value_type)
    writer.add_string("text", "Grüße")
    writer.add_array("texts", texts)
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_array("nested.texts", [[["a"], ["b", "c"]]])
    write(writer)

    metadata = open_model_file(path, mmap=mmap).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["text"] == "Grüße"
    assert metadata["texts"] == texts
    for value_type, value in numbers.items():
        one, many = metadata[f"one.{value_type.name}"], metadata[f"many.{value_type.name}"]
        assert one == value
        assert type(one) is type(value)
        assert many.tolist() == [value, 0, value]
        assert many.dtype == gguf_dtype(value_type)
    assert [x.tolist() for x in metadata["nested"]] == [[1, 2], [3]]
    assert metadata["nested.texts"] == [[["a"], ["b", "c"]]]


def gguf_dtype(value_type: GGUFValueType) -> np.dtype[Any]:
    return np.dtype(gguf.GGUFReader.gguf_scalar_to_np[value_type])


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_every_tensor_type(tmp_path: Path, mmap: bool, alignment: int) -> None:
    rng, wanted = np.random.default_rng(0), {}
    path = tmp_path / "tensors.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for fmt in BY_GGML_TYPE.values():
        name = fmt.name
        shape = (2, 3, 256) if name == "Q4_0" else (3, 256)
        data = rng.integers(0, 100, (*shape[:-1], fmt.row_bytes(256)), dtype=np.uint8)  # < 100: scales without NaN
        wanted[name] = gguf.dequantize(data, GGMLQuantizationType[name])
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[name])
    wanted["vector"] = np.arange(5, dtype=np.float32)
    wanted["4d"] = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    for name in ("vector", "4d"):
        writer.add_tensor(name, wanted[name])
    write(writer)

    model_file = open_model_file(path, mmap=mmap)
    assert model_file.format == "GGUF v3"
    assert model_file.mapped is mmap
    assert list(model_file.tensors) == list(wanted)
    for name, values in wanted.items():
        tensor = model_file.tensors[name]
        assert tensor.name == name
        assert tensor.shape == values.shape
        assert tensor.data.shape[0] == values[..., 0].size
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.dequantize(), values)
    assert model_file.n_params == sum(values.size for values in wanted.values())
    model_file.check()


@pytest.mark.parametrize("version", [2, 3])
def test_small_file(tmp_path: Path, mmap: bool, version: int) -> None:
    """The bytes of SMALL read as what they were made of; v2 differs from v3 in the number only."""
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL[:4] + pack("<I", version) + SMALL[8:])
    model_file = read_gguf(path, mmap=mmap)
    assert model_file.format == f"GGUF v{version}"
    assert model_file.metadata["tokens"] == ["a", "▁the", "\udcff"]
    assert model_file.metadata["scores"].tolist() == [0, -1, -2]
    assert model_file.tensors["a"].shape == (2, 32)
    assert model_file.tensors["a"].data.tobytes() == bytes(range(36))
    assert model_file.tensors["b"].dequantize().tolist() == [1, 2, 3]
    assert model_file.tensors["c"].dequantize().tolist() == [[[4, 5]], [[6, 7]]]


def test_metadata_alone(tmp_path: Path, mmap: bool) -> None:
    """A vocabulary without tensors, as llama.cpp's ggml-vocab-*.gguf; its end needs no padding."""
    path = tmp_path / "vocab.gguf"
    path.write_bytes(gguf_bytes([pair("x", U8, b"\7")], [], alignment=1))
    model_file = open_model_file(path, mmap=mmap)
    assert dict(model_file.metadata) == {"x": 7}
    assert not model_file.tensors


def test_closes_what_it_opened(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    gc.collect()  # what other tests left is theirs
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_model_file(path, mmap=mmap)
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning)]
    os.replace(path, path.with_suffix(".moved"))  # Windows refuses while a mapping is alive


# ---- what is no GGUF file ----


@pytest.mark.parametrize("content", [b"PK\3\4 a zip archive of some length", b"G", b"\0" * 64])
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    assert "not a model file" in refused(tmp_path, content)


def test_read_gguf_of_another_file(tmp_path: Path, mmap: bool) -> None:
    other, empty = tmp_path / "other", tmp_path / "empty"
    other.write_bytes(b"something else entirely")
    empty.touch()
    with pytest.raises(FormatError, match="not a GGUF file"):
        read_gguf(other, mmap=mmap)
    with pytest.raises(FormatError, match=r"empty|0 bytes"):
        read_gguf(empty, mmap=mmap)


def test_empty(tmp_path: Path) -> None:
    assert "is empty" in refused(tmp_path, b"")


def test_version_1(tmp_path: Path) -> None:
    assert "version 1" in refused(tmp_path, b"GGUF" + pack("<III", 1, 0, 0))


def test_version_of_the_future(tmp_path: Path) -> None:
    assert "version 4" in refused(tmp_path, gguf_bytes([], [], version=4))


def test_big_endian(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.zeros(4, np.float32))
    write(writer)
    assert "big-endian" in refused(tmp_path, (tmp_path / "big.gguf").read_bytes())


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        open_model_file(tmp_path / "none.gguf")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="this folder holds neither"):
        open_model_file(tmp_path)


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(SMALL)
    with pytest.raises(FormatError, match="file"):
        open_model_file(tmp_path / "file" / "model.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        open_model_file(tmp_path / "pipe")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's answer is played."""

    def deny(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "secret.gguf").write_bytes(SMALL)
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(FormatError, match="permission"):
        open_model_file(tmp_path / "secret.gguf")


# ---- sizes and places that cannot be ----


@pytest.mark.parametrize("n", HUGE)
@pytest.mark.parametrize(
    "where",
    ["key", "text", "array of bytes", "array of u64", "array of texts", "text in array", "array of arrays"],
)
def test_length_leaves_the_file(tmp_path: Path, where: str, n: int) -> None:
    pairs = {
        "key": pack("<Q", n) + b"k" * 100,
        "text": pair("k", TEXT, pack("<Q", n) + b"t" * 100),
        "array of bytes": pair("k", ARRAY, array(U8, n, b"b" * 100)),
        "array of u64": pair("k", ARRAY, array(10, n, b"b" * 100)),
        "array of texts": pair("k", ARRAY, array(TEXT, n, text("t") * 10)),
        "text in array": pair("k", ARRAY, array(TEXT, 3, text("t") + pack("<Q", n) + text("t"))),
        "array of arrays": pair("k", ARRAY, array(ARRAY, n, array(U8, 1, b"b") * 10)),
    }
    said = refused(tmp_path, gguf_bytes([pairs[where]], []))
    assert "cut short or damaged" in said or "possible" in said or "limit" in said


def test_text_longer_than_any_text(tmp_path: Path) -> None:
    """In a large file a damaged length may well lie within the file; the weights after it must not become a str."""
    content = gguf_bytes([pair("k", TEXT, pack("<Q", 2**24 + 1))], [], bytes(2**24 + 64))
    assert "limit" in refused(tmp_path, content)


@pytest.mark.parametrize("n", HUGE)
def test_count_leaves_the_file(tmp_path: Path, n: int) -> None:
    assert "cut short or damaged" in refused(tmp_path, gguf_bytes([pair("x", U8, b"\1")], [], n_pairs=n, alignment=1))
    head = b"GGUF" + pack("<IQQ", 3, n, 0)
    assert "cut short or damaged" in refused(tmp_path, head + tensor("x", [1]))


@pytest.mark.parametrize(
    "dims", [[2**63], [2**64 - 1], [2**32, 2**32], [2**32, 2**32, 2**32, 2**32], [2**62 + 1, 4], [32, 3]], ids=str
)
def test_dimensions_leave_the_file(tmp_path: Path, dims: list[int]) -> None:
    """Some of these products are small again modulo 2^64."""
    assert "should end at byte" in refused(tmp_path, gguf_bytes([], [tensor("x", dims)], bytes(256)))


@pytest.mark.parametrize("dims", [[], [1, 1, 1, 1, 1], [0], [4, 0]], ids=str)
def test_impossible_dimensions(tmp_path: Path, dims: list[int]) -> None:
    said = refused(tmp_path, gguf_bytes([], [tensor("x", dims)], bytes(256)))
    assert "'x'" in said
    assert "dimensions" in said or "no elements" in said


@pytest.mark.parametrize("offset", [32, 2**63, 2**64 - 32, 2**40])
def test_offset_leaves_the_file(tmp_path: Path, offset: int) -> None:
    assert "should end at byte" in refused(tmp_path, gguf_bytes([], [tensor("x", [8], offset=offset)], bytes(32)))


def test_offset_not_aligned(tmp_path: Path) -> None:
    assert "alignment 32" in refused(tmp_path, gguf_bytes([], [tensor("x", [1], offset=4)], bytes(64)))


@pytest.mark.parametrize(
    ("value_type", "value"), [(U32, pack("<I", 0)), (U32, pack("<I", 3)), (U32, pack("<I", 48)), (TEXT, text("32"))]
)
def test_alignment(tmp_path: Path, value_type: int, value: bytes) -> None:
    """A power of two is demanded by gguf.cpp and by gguf-py."""
    assert "general.alignment" in refused(tmp_path, gguf_bytes([pair("general.alignment", value_type, value)], []))


def test_row_not_whole_blocks(tmp_path: Path) -> None:
    said = refused(tmp_path, gguf_bytes([], [tensor("x", [48, 2], Q4_0)], bytes(256)))
    assert "'x'" in said
    assert "48" in said
    assert "multiple of 32" in said


@pytest.mark.parametrize("ggml_type", [t for t in GGMLQuantizationType if t.name not in FORMATS])
def test_tensor_type_that_is_not_read(tmp_path: Path, ggml_type: GGMLQuantizationType) -> None:
    said = refused(tmp_path, gguf_bytes([], [tensor("x", [256], ggml_type)], bytes(4096)))
    assert f"ggml type {ggml_type.value} ({ggml_type.name})" in said
    assert "'x'" in said


def test_tensor_type_unknown(tmp_path: Path) -> None:
    said = refused(tmp_path, gguf_bytes([], [tensor("x", [256], 4_000_000_000)], bytes(4096)))
    assert "unknown ggml type 4000000000" in said


@pytest.mark.parametrize("value", [pair("key", 13, b""), pair("key", ARRAY, array(77, 1, b"\0"))])
def test_value_type_unknown(tmp_path: Path, value: bytes) -> None:
    said = refused(tmp_path, gguf_bytes([value], [], bytes(64)))
    assert "'key'" in said
    assert "does not know" in said


def test_arrays_too_deep(tmp_path: Path) -> None:
    value = array(U8, 0, b"")
    for _ in range(5000):  # deeper than Python's stack
        value = array(ARRAY, 1, value)
    assert "nested deeper" in refused(tmp_path, gguf_bytes([pair("key", ARRAY, value)], []))


def test_key_twice(tmp_path: Path) -> None:
    said = refused(tmp_path, gguf_bytes([pair("key", U8, b"\1"), pair("key", U8, b"\1")], []))
    assert "'key' occurs twice" in said


def test_tensor_twice(tmp_path: Path) -> None:
    said = refused(tmp_path, gguf_bytes([], [tensor("x", [1]), tensor("x", [1], offset=32)], bytes(64)))
    assert "'x' occurs twice" in said


@pytest.mark.parametrize("name", [b"\xff\xfe", b"", b"k" * 65536], ids=["not UTF-8", "empty", "too long"])
def test_names(tmp_path: Path, name: bytes) -> None:
    assert "name" in refused(tmp_path, gguf_bytes([pair(name, U8, b"\1")], []))
    assert "name" in refused(tmp_path, gguf_bytes([], [tensor(name, [1])], bytes(64)))


# ---- damaged files ----


def test_truncated_at_any_byte(tmp_path: Path) -> None:
    for n in range(len(SMALL)):
        assert refused(tmp_path, SMALL[:n])


BIT = st.integers(0, len(SMALL) * 8 - 1).map(lambda i: (i // 8, 1 << i % 8))
BYTE = st.tuples(st.integers(0, len(SMALL) - 1), st.integers(1, 255))


@settings(max_examples=300)
@given(
    damage=st.lists(BIT | BYTE, min_size=1, max_size=8),
    end=st.integers(len(SMALL) - 40, len(SMALL)),
    mmap=st.booleans(),
)
def test_damaged(folder: Path, damage: list[tuple[int, int]], end: int, mmap: bool) -> None:
    """No damage raises anything but TinyLlamaError or costs memory; what opens all the same lies within the file."""
    content = bytearray(SMALL)
    for at, mask in damage:
        content[at] ^= mask
    path = folder / "damaged.gguf"
    path.write_bytes(content[:end])
    tracemalloc.start()
    try:
        model_file = open_model_file(path, mmap=mmap)
        for tensor in model_file.tensors.values():
            with np.errstate(all="ignore"):
                assert tensor.dequantize().shape == tensor.shape
    except TinyLlamaError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < len(SMALL) + 64 * 2**20


def test_every_bit_flipped(folder: Path) -> None:
    """Each bit once: the header has so few that there is no need to draw."""
    path = folder / "flipped.gguf"
    path.write_bytes(SMALL)
    outcomes = {"opened": 0, "refused": 0}
    with path.open("r+b", buffering=0) as file:
        for i in range(len(SMALL) * 8):
            at, bit = divmod(i, 8)
            file.seek(at)
            file.write(bytes([SMALL[at] ^ 1 << bit]))
            try:
                open_model_file(path, mmap=False)
                outcomes["opened"] += 1
            except TinyLlamaError:
                outcomes["refused"] += 1
            file.seek(at)
            file.write(SMALL[at : at + 1])
    assert min(outcomes.values()) > 100  # flips in lengths are seen, flips in texts and weights cannot be


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let a mapped file shrink")
def test_file_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    mapped, copied = open_model_file(path), open_model_file(path, mmap=False)
    mapped.check()
    os.truncate(path, len(SMALL) - 1)
    copied.check()
    assert copied.tensors["c"].dequantize().tolist() == [[[4, 5]], [[6, 7]]]
    with pytest.raises(FormatError, match="shrunk"):
        mapped.check()


# ---- size ----

MEASURE = """
import sys, time
from pathlib import Path
from tinyllama.formats import open_model_file
from tinyllama.memory import peak_resident
start = time.perf_counter()
model_file = open_model_file(Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(model_file.n_params, model_file.nbytes, len(model_file.tensors), seconds, peak_resident())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module, which measures memory, is not on Windows")
def test_llama_65b_opens_at_once(tmp_path: Path) -> None:
    """LLaMA-65B's shapes in Q4_0 (Touvron et al. 2023, table 2): 37 GB, of which only the header may be read."""
    n_embd, n_layer, n_ff, n_vocab = 8192, 80, 22016, 32000
    shapes = {f"{x}.weight": [n_embd, n_vocab] for x in ("token_embd", "output")} | {"output_norm.weight": [n_embd]}
    for i in range(n_layer):
        shapes |= {f"blk.{i}.attn_{x}.weight": [n_embd, n_embd] for x in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{x}.weight": [n_embd, n_ff] for x in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down.weight": [n_ff, n_embd]}
        shapes |= {f"blk.{i}.{x}_norm.weight": [n_embd] for x in ("attn", "ffn")}
    tensors, offset = [], 0
    for name, dims in shapes.items():
        norm = len(dims) == 1
        tensors.append(tensor(name, dims, F32 if norm else Q4_0, offset))
        offset += dims[0] * 4 if norm else dims[0] * dims[1] // 32 * 18  # both are multiples of 32
    tokens = b"".join(text(f"token{i}") for i in range(n_vocab))
    header = gguf_bytes([pair("tokenizer.ggml.tokens", ARRAY, array(TEXT, n_vocab, tokens))], tensors)
    path = tmp_path / "65b.gguf"
    try:
        path.write_bytes(header)
        try:
            os.truncate(path, len(header) + offset)
        except OSError as error:
            pytest.skip(f"this file system does not take a file of 37 GB: {error}")
        if path.stat().st_blocks * 512 > 2**30:
            pytest.skip("this file system does not store files sparsely")
        root = Path(__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=60
        )
    finally:
        path.unlink()  # pytest keeps its folders, and a backup might not know about holes
    n_params, n_bytes, n_tensors, seconds, peak = map(float, done.stdout.split())
    assert (n_params, n_bytes, n_tensors) == (65_285_660_672, offset, 723)  # llama.cpp's log: 65.29 B
    print(f"opened in {seconds:.3f} s")  # under 1 s is the aim; a busy machine's clock proves nothing
    assert peak < 200e6
