"""tokenizer.model: SentencePiece's against the sentencepiece package, LLaMA 3's against tiktoken's way to merge."""

from __future__ import annotations

import json
import tracemalloc
from base64 import b64encode
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers.meta import sentencepiece_model, varint
from writers.tiny import TinyLlama

from ops.errors import FormatError, ModelError
from tinyllama.formats.sentencepiece_model import sentencepiece_metadata
from tinyllama.formats.tiktoken_model import tiktoken_metadata
from tinyllama.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data" / "sentencepiece"
ENCODINGS = json.loads((DATA / "encodings.json").read_text(encoding="utf-8"))
ALLOWED = 64 << 20  # bytes beyond the file's size


@pytest.mark.parametrize(("text", "ids"), ENCODINGS)
def test_the_package_encodes_alike(text, ids):
    tokenizer = Tokenizer.from_metadata(sentencepiece_metadata(DATA / "bpe.model"))
    assert tokenizer.encode(text, add_bos=False, parse_special=False) == ids


def test_columns(tmp_path):
    tiny = TinyLlama()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(tiny))
    metadata = sentencepiece_metadata(path)
    assert metadata["tokenizer.ggml.tokens"] == tiny.tokens
    assert metadata["tokenizer.ggml.scores"].tolist() == tiny.scores
    assert metadata["tokenizer.ggml.token_type"].tolist() == tiny.kinds
    assert metadata["tokenizer.ggml.scores"].dtype == np.float32
    assert metadata["tokenizer.ggml.token_type"].dtype == np.int32
    special = {key: value for key, value in metadata.items() if key.endswith("_id") or "add_" in key}
    assert special == {  # the defaults of sentencepiece_model.proto; it has no padding
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def test_ids_of_its_own(tmp_path):
    """trainer_spec: unk_id = 3, bos_id = -1 (none), eos_id = 4, pad_id = 5; normalizer_spec: no add_dummy_prefix."""
    minus_one = b"\xff" * 9 + b"\x01"
    trainer = b"\x18\x02" + b"\xc0\x02\x03" + b"\xc8\x02" + minus_one + b"\xd0\x02\x04" + b"\xd8\x02\x05"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(TinyLlama()) + b"\x12" + varint(len(trainer)) + trainer + b"\x1a\x02\x18\x00")
    metadata = sentencepiece_metadata(path)
    ids = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("unknown", "bos", "eos", "padding")]
    assert ids == [3, None, 4, 5]
    assert not metadata["tokenizer.ggml.add_bos_token"]
    assert not metadata["tokenizer.ggml.add_space_prefix"]


def test_other_kinds_are_refused():
    with pytest.raises(ModelError, match="of the kind unigram"):
        sentencepiece_metadata(DATA / "unigram.model")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x08\x01", b"\xff" * 20, b"\x0a\x02\x10\x00", b"\x0a\x00", b"hello"],
)
def test_nonsense_is_refused(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"no tokenizer\.model of SentencePiece, or a damaged one"):
        sentencepiece_metadata(path)


# LLaMA 3's


def base64_ranks(tokens: list[bytes]) -> bytes:
    return b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b"th", b"he", b"in", b"er", b"an", b" t", b"ing", b"the", b" the", b"nd", b"and", "½".encode(), b"  ", b"aa", b"aaa"]


def tiktoken_merge(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule, the slow way: the two neighbours whose union has the lowest rank merge, the left ones of several."""
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while True:
        unions = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not unions:
            return [ranks[part] for part in parts]
        _, i = min(unions)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture
def llama3(tmp_path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64_ranks([*BYTES, *WORDS]))
    return path


def test_tiktoken_encodes_alike(llama3):
    tokenizer = Tokenizer.from_metadata(tiktoken_metadata(llama3))
    ranks = {token: rank for rank, token in enumerate([*BYTES, *WORDS])}

    @settings(max_examples=300, deadline=None)
    @given(st.text("thenaidgr½", min_size=1, max_size=20))  # one word: its letters are never cut apart before merging
    def check(word):
        if word.isalpha():
            assert tokenizer.encode(word, add_bos=False) == tiktoken_merge(word.encode(), ranks)

    check()


def test_special_tokens_of_llama3(llama3):
    """Ids and names of LLaMA 3.1, of which the 128,000 ranks come first there."""
    metadata = tiktoken_metadata(llama3)
    n = len(BYTES) + len(WORDS)
    names = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        2: "<|reserved_special_token_0|>",
        4: "<|finetune_right_pad_id|>",
        5: "<|reserved_special_token_2|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
        255: "<|reserved_special_token_247|>",
    }
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == n + 256
    assert {i: tokens[n + i] for i in names} == names
    tokenizer = Tokenizer.from_metadata(metadata)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eot) == (n, n + 1, n + 9)
    assert tokenizer.encode("<|eot_id|>the") == [n, n + 9, n - len(WORDS) + WORDS.index(b"the")]
    assert tokenizer.is_control(n + 255)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[:200],
        lambda lines: [*lines[:5], *lines[6:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, b"!!! 271\n"],
        lambda lines: [*lines, b64encode(b"x" * 300) + b" 271\n"],
        lambda lines: [*lines, b" 271\n"],
        lambda lines: [b"\x00\xff\n", *lines],
    ],
)
def test_damaged_ranks_are_refused(spoil, llama3):
    llama3.write_bytes(b"".join(spoil(llama3.read_bytes().splitlines(keepends=True))))
    with pytest.raises(FormatError, match=r"LLaMA 3|256 bytes"):
        tiktoken_metadata(llama3)


def test_tokens_that_merge_in_every_way_are_refused(tmp_path):
    """A vocabulary of a, aa, aaa ... has as many merges as the square of its length."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64_ranks([*BYTES, *(bytes([a]) * n for a in range(60) for n in range(2, 256))]))
    tracemalloc.start()
    with pytest.raises(FormatError, match="more ways"):
        tiktoken_metadata(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size + ALLOWED


# Damage of both


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_damage(kind, tmp_path, llama3):
    sound = (DATA / "bpe.model" if kind == "sentencepiece" else llama3).read_bytes()
    read = sentencepiece_metadata if kind == "sentencepiece" else tiktoken_metadata
    path = tmp_path / "damaged.model"

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 7)), max_size=3), st.integers(1, len(sound)))
    def check(flips, length):
        damaged = bytearray(sound)
        for at, bit in flips:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged[:length])
        with suppress(FormatError, ModelError):
            Tokenizer.from_metadata(read(path)).encode("Hello <s> ½ 🦙")

    check()
