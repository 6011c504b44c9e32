"""Files of torch.save, read without torch: the tensors that it wrote, and nothing for pickles that want anything else."""

from __future__ import annotations

import os
import pickle
import subprocess
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers.meta import MAGIC, dict_pickle, tensor_pickle, text, write_pickles, write_pth, write_zip

from ops.errors import FormatError
from ops.tensor import MadeRows
from tinyllama.formats.torch_pickle import read_torch

DATA = Path(__file__).parent / "data" / "meta"
COUNTED = np.arange(60, dtype=np.float32).reshape(6, 10)
ALLOWED = 64 << 20  # bytes beyond the file's size
NUMBERS = COUNTED.tobytes()
ZIPPED = (False, True)


def write(path: Path, pickled: bytes, zipped: bool, storages: dict[str, bytes] | None = None) -> None:
    storages = {"0": NUMBERS} if storages is None else storages
    write_zip(path, pickled, storages) if zipped else write_pickles(path, pickled, storages, 4)


def refused(path: Path, says: str) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match=says) as caught:
        read_torch(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert peak < path.stat().st_size + ALLOWED


# What torch wrote


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth"])
def test_tensors_of_torch(name, mmap):
    tensors, check = read_torch(DATA / name, mmap=mmap)
    check()
    expected = {
        "whole": COUNTED,
        "rows": COUNTED[2:4],
        "transposed": COUNTED.T,
        "column": COUNTED[:, 3],
        "vector": COUNTED.ravel()[7:11],
        "half": np.arange(6, dtype=np.float32).reshape(2, 3),
        "brain": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    assert tensors.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(tensors[key].dequantize(), values)
        assert tensors[key].shape == values.shape
    assert {key: t.format.name for key, t in tensors.items() if t.format.name != "F32"} == {"half": "F16", "brain": "BF16"}
    assert {key for key, t in tensors.items() if isinstance(t.data, MadeRows)} == {"transposed", "column"}
    np.testing.assert_array_equal(tensors["transposed"].dequantize(np.array([9, 0])), COUNTED.T[[9, 0]])
    assert not any(t.data.flags.owndata for t in tensors.values() if isinstance(t.data, np.ndarray))  # views of the file


@pytest.mark.parametrize("zipped", ZIPPED)
def test_what_torch_writes_today(zipped, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, to write with the torch.save of today; it is not installed")
    values = {"a.weight": torch.from_numpy(COUNTED.copy()), "b": torch.nn.Parameter(torch.ones(3, dtype=torch.float16))}
    torch.save(values, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    tensors, _ = read_torch(tmp_path / "x.pth")
    np.testing.assert_array_equal(tensors["a.weight"].dequantize(), COUNTED)
    np.testing.assert_array_equal(tensors["b"].dequantize(), np.ones(3))


@pytest.mark.parametrize("options", [{}, {"zip64": True}, {"folder": "archive/deeper"}, {"byteorder": b""}])
def test_zip_files_of_many_kinds(options, tmp_path):
    write_pth(tmp_path / "x.pth", {"a": COUNTED}, "F32", **options)
    tensors, _ = read_torch(tmp_path / "x.pth")
    np.testing.assert_array_equal(tensors["a"].dequantize(), COUNTED)


# Pickles that want something else


class Attack:
    """Pickled, it asks for a function to be called when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


ATTACKS = {
    "mkdir": lambda flag: Attack(os.mkdir, flag),
    "system": lambda flag: Attack(os.system, f"echo > {flag}"),
    "Popen": lambda flag: Attack(subprocess.Popen, ["touch", flag]),
    "eval": lambda flag: Attack(eval, f"open({flag!r}, 'w')"),
    "exec": lambda flag: Attack(exec, f"open({flag!r}, 'w')"),
    "getattr": lambda flag: Attack(getattr, "x", "join"),
    "_reconstruct": lambda flag: np.arange(3),  # numpy's arrays are made by a function of numpy's
    "loads": lambda flag: Attack(pickle.loads, b"cos\nsystem\n(X\x01\0\0\0xtR."),
    "fetch": lambda flag: Attack(zipfile.ZipFile, flag, "w"),
}


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, protocol, zipped, tmp_path):
    flag = tmp_path / "flag"
    for whole in (ATTACKS[name](str(flag)), OrderedDict(weight=ATTACKS[name](str(flag)))):
        write(tmp_path / "x.pth", pickle.dumps(whole, protocol), zipped)
        refused(tmp_path / "x.pth", "no part of a tensor; only tensors|is none that tensors need")
        assert not flag.exists()


@pytest.mark.parametrize("zipped", ZIPPED)
def test_the_sentence_names_what_was_asked_for(zipped, tmp_path):
    write(tmp_path / "x.pth", pickle.dumps(Attack(os.system, "true"), 2), zipped)
    refused(tmp_path / "x.pth", rf"asks for '{os.system.__module__}\.system', which is no part of a tensor")
    write(tmp_path / "x.pth", dict_pickle({"a": b"ctorch\nLongStorage\n"}), zipped)
    refused(tmp_path / "x.pth", r"asks for 'torch\.LongStorage', which is no part of a tensor; only tensors of float32")


def test_an_attack_before_torch_is_recognised(tmp_path):
    """Of an old file, the first pickle is the magic number: it is read by the same machine."""
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Attack(os.system, "true"), 2))
    refused(tmp_path / "x.pth", "no part of a tensor")


MISUSE = {
    "a storage called": b"ctorch\nFloatStorage\n)R",
    "OrderedDict of something": b"ccollections\nOrderedDict\n(]tR",
    "a tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "a tensor of a text": b"ctorch._utils\n_rebuild_tensor_v2\n(X\1\0\0\0aK\0))tR",
    "a parameter of a text": b"ctorch._utils\n_rebuild_parameter\n(X\1\0\0\0atR",
    "attributes of a list": b"]}b",
    "an instance, the old way": b"(X\1\0\0\0aios\nsystem\n",
    "an instance, the new way": b"ccollections\nOrderedDict\n)\x81",
    "an extension": b"\x82\1",
    "another persistent id": b"X\1\0\0\0aQ",
    "a text as a storage": b"(" + text("module") + b"NNNNtQ",
    "a key that is a list": b"}]Ns",
    "a name that is a list": b"]]\x93",
    "a name without an end": b"c" + b"x" * 300,
    "an item of a number": b"K\1K\1a",
    "a mark that is missing": b"t",
    "an unknown memo": b"h\7",
    "too short a stack": b"\x87",
    "an unknown instruction": b"\xff",
    "protocol 9": b"\x80\x09",
    "no UTF-8": b"X\1\0\0\0\xff",
    "no end": b"",
}


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_of_what_is_allowed(name, zipped, tmp_path):
    pickled = b"\x80\x02" + MISUSE[name] + (b"." if name != "no end" else b"")
    write(tmp_path / "x.pth", pickled, zipped, {})
    refused(tmp_path / "x.pth", "damaged|no part of a tensor|cut short|no dict of tensors")


BOMBS = {
    "a text of 2 GB": b"X\xff\xff\xff\x7f",
    "a text of 2**62 bytes": b"\x8d" + pack("<Q", 2**62),
    "a long of 255 bytes": b"\x8a\xff" + b"\x7f" * 255,
    "a long of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "a bytearray of 2**40 bytes": b"\x96" + pack("<Q", 2**40),
    "the last memo": b"Nr\xff\xff\xff\xff",
    "lists in lists": b"]" * 2**20 + b"a" * (2**20 - 1),
    "tuples in tuples": b")" + b"\x85" * 100_000,
    "marks": b"(" * 2**20,
    "memos": b"N" + b"".join(b"r" + pack("<I", i) for i in range(2**17)),
    "texts": b"".join(text("\U0001f999" * 60) for _ in range(2**14)),
    "a list in itself": b"]q\0h\0ah\0ah\0a",
    "ten lists of ten of ten": b"]q\0" + b"".join(b"(" + b"h%c" % i * 10 + b"lq%c" % (i + 1) for i in range(1, 40)),
}


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name, zipped, tmp_path):
    """None takes memory beyond the file's size and 64 MB, or long, or the interpreter with it."""
    write(tmp_path / "x.pth", b"\x80\x02" + BOMBS[name] + b".", zipped, {})
    refused(tmp_path / "x.pth", "damaged|no dict of tensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*(bytes([code]) for code in b"().]}aesutRQbNlq0"), b"\x85", b"\x86", b"\x87", b"\x93", b"\x94"]),
            st.sampled_from(
                [b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
            ),
            st.sampled_from([text("storage"), text("0"), text("a"), b"q\0", b"h\0", b"K\0", b"K\6", b"J\xff\xff\xff\xff"]),
            st.sampled_from([tensor_pickle("0", (6, 10)), tensor_pickle("1", (2,))]),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_programs_at_random(tmp_path, steps, zipped):
    path = tmp_path / "x.pth"
    write(path, b"\x80\x02" + b"".join(steps) + b".", zipped)
    try:
        tensors, _ = read_torch(path)
    except FormatError:
        return
    assert all(tensor.dequantize().size for tensor in tensors.values())


# Tensors that are not where they should be


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((6, 10), {"n": 60, "offset": 1}),
        ((6, 10), {"n": 60, "offset": -1}),
        ((6, 10), {"n": 60, "strides": (11, 1)}),
        ((6, 10), {"n": 60, "strides": (-10, 1)}),
        ((6, 10), {"n": 60, "strides": (1,)}),
        ((2**30, 2**30), {"n": 60}),
        ((2**30, 2**30), {"n": 60, "strides": (0, 0)}),  # torch's expand(): nothing of a model's file needs it
        ((6, -10), {"n": 60}),
        ((0, 10), {"n": 60}),
        ((), {"n": 60}),
        ((1,) * 5, {"n": 60}),
        ((2, 3, 4), {"n": 60, "strides": (1, 2, 6)}),
    ],
)
def test_tensors_outside_their_storage(shape, place, zipped, tmp_path):
    write(tmp_path / "x.pth", dict_pickle({"weight": tensor_pickle("0", shape, legacy=not zipped, **place)}), zipped)
    refused(tmp_path / "x.pth", "'weight' .*does not lie|pickle in this file is damaged")


@pytest.mark.parametrize("zipped", ZIPPED)
@pytest.mark.parametrize("storages", [{}, {"0": NUMBERS[:-4]}, {"1": NUMBERS}])
def test_storages_that_are_missing_or_short(storages, zipped, tmp_path):
    write(tmp_path / "x.pth", dict_pickle({"weight": tensor_pickle("0", (6, 10))}), zipped, storages)
    refused(tmp_path / "x.pth", "storage '0' of 60 elements is|list of storages does not fit")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([MAGIC + 1, 1001, {"little_endian": True}], "begins neither as a zip file nor with torch's magic number"),
        ([MAGIC, 1000, {"little_endian": True}], "begins neither as a zip file nor with torch's magic number"),
        ([MAGIC, 1001, {"little_endian": False}], "big-endian"),
        ([MAGIC, 1001, {"little_endian": True}, {}, []], "no dict of tensors"),
        ([MAGIC, 1001, {"little_endian": True}, {"a": 1}, []], "'a' is no tensor"),
        ([MAGIC, 1001, {"little_endian": True}, [], {}], "list of storages"),
        ([MAGIC, 1001, {"little_endian": True}, {}, ["0"]], "list of storages"),
    ],
)
def test_old_files_that_are_none(values, says, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"".join(pickle.dumps(value, 2) for value in values))
    refused(tmp_path / "x.pth", says)


def test_one_storage_of_two_types(tmp_path):
    two = {"a": tensor_pickle("0", (6, 10), legacy=True), "b": tensor_pickle("0", (6, 10), "F16", legacy=True)}
    write(tmp_path / "x.pth", dict_pickle(two), zipped=False)
    refused(tmp_path / "x.pth", "described in two ways")


# Zip files


def test_zip_files_that_are_not_read(tmp_path):
    path = tmp_path / "x.pth"
    write_pth(path, {"a": COUNTED}, "F32", compression=zipfile.ZIP_DEFLATED)
    refused(path, r"data\.pkl' is compressed or encrypted")
    write_pth(path, {"a": COUNTED}, "F32", byteorder=b"big")
    refused(path, "big-endian")
    write_pth(path, {"a": COUNTED}, "F32")
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"data/0", b"data/9", 1))  # in the local header alone
    refused(path, "another name in the directory")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    refused(path, r"0 entries data\.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", "")
        archive.writestr("y/data.pkl", "")
    refused(path, r"2 entries data\.pkl")
    path.write_bytes(path.read_bytes().replace(b"y/data.pkl", b"x/data.pkl"))
    refused(path, "two entries")


# Damage of what torch wrote


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth"])
def test_flipped_bits(name, tmp_path):
    sound = (DATA / name).read_bytes()
    path = tmp_path / "damaged.pth"

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 7)), min_size=1, max_size=3))
    def check(flips):
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            tensors, _ = read_torch(path)
        except FormatError:
            return
        for tensor in tensors.values():
            tensor.dequantize()

    check()


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth"])
def test_cut_short(name, tmp_path):
    sound = (DATA / name).read_bytes()
    for length in range(1, len(sound), 7):
        (tmp_path / "x.pth").write_bytes(sound[:length])
        refused(tmp_path / "x.pth", "cut short|damaged")
