"""Tokenizers against llama.cpp's own expected ids, and against plain definitions written out here."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.dense_vocabulary import dense_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.errors import TokenError
from tinyllama.formats import open_model_file
from tinyllama.tokenizer import StreamDecoder, Tokenizer
from tinyllama.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tinyllama.tokenizer.special_tokens import SpecialTokens

FOLDER = Path(__file__).parent / "data/vocab"
FILES = ["deepseek-coder", "falcon", "gpt-2", "llama-spm", "phi-3"]
GOLDEN = json.loads((FOLDER / "token_ids.json").read_text())  # by llama.cpp, see golden/make_token_ids.py
# What comes back from every vocabulary: Falcon's lacks some control bytes and the first byte of the highest planes, and
# SentencePiece cannot tell U+2581 from a space.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], exclude_characters="\u2581", include_characters="\n\t")
TEXTS = st.text(CHARACTERS, max_size=40)


@lru_cache
def metadata_of(name: str) -> dict[str, Any]:
    return dict(open_model_file(FOLDER / f"ggml-vocab-{name}.gguf").metadata)


@lru_cache
def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_metadata(metadata_of(name))


# ---- llama.cpp's ids


@pytest.mark.parametrize("name", FILES)
def test_expected_ids_of_llama_cpp(name: str) -> None:
    texts = (FOLDER / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (FOLDER / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    expected = [[int(id) for id in line.split()] for line in lines[: len(texts)]]
    assert len(texts) == 47
    assert [tokenizer_of(name).encode(text, add_bos=False, parse_special=False) for text in texts] == expected


def check_golden(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        text = case["text"]
        assert tokenizer.encode(text, add_bos=False, parse_special=False) == case["plain"]
        assert tokenizer.encode(text) == case["special"]
    ids = range(tokenizer.n_vocab)
    assert [id for id in ids if tokenizer.is_end(id)] == golden["ends"]
    assert [id for id in ids if tokenizer.is_control(id)] == golden["controls"]


@pytest.mark.parametrize("name", FILES)
def test_random_texts(name: str) -> None:
    check_golden(tokenizer_of(name), GOLDEN["vocabularies"][f"ggml-vocab-{name}.gguf"])


def test_random_texts_smollm2(smollm2: Path) -> None:
    check_golden(Tokenizer.from_metadata(open_model_file(smollm2).metadata), GOLDEN["vocabularies"]["smollm2"])


@pytest.mark.parametrize("name", sorted(GOLDEN["pre_tokenizers"]))
def test_pre_tokenizer(name: str) -> None:
    tokenizer = Tokenizer.from_metadata(dense_vocabulary(name))
    assert [tokenizer.encode(text) for text in GOLDEN["texts"]] == GOLDEN["pre_tokenizers"][name]


def test_every_pattern_has_golden_ids() -> None:
    tested = {PRE_TOKENIZERS[name] for name in GOLDEN["pre_tokenizers"]}
    assert tested == set(PRE_TOKENIZERS.values())


# ---- decoding


@pytest.mark.parametrize("name", FILES)
@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
def test_round_trip(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    for add_bos in (True, False):  # with BOS too, the space that SentencePiece puts first is taken off
        assert tokenizer.decode(tokenizer.encode(text, add_bos=add_bos, parse_special=False)) == text


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_stream_gives_whole_characters(name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30))
    decoder = StreamDecoder(tokenizer, special=True)
    pieces = [*map(decoder.feed, ids), decoder.flush()]
    assert "".join(pieces) == b"".join(map(tokenizer.piece, ids)).decode("utf-8", "replace")


def test_stream_waits_for_the_rest_of_a_character() -> None:
    tokenizer = tokenizer_of("llama-spm")
    ids = [3 + byte for byte in "🦙".encode()]  # <0x00> is token 3
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(id) for id in ids] == ["", "", "", "🦙"]
    assert [decoder.feed(ids[0]), decoder.flush(), decoder.flush()] == ["", "\ufffd", ""]


def test_control_tokens_are_shown_on_demand() -> None:
    tokenizer = tokenizer_of("phi-3")
    ids = tokenizer.encode("<|user|>\nHi<|end|>")
    assert tokenizer.decode(ids, special=True) == "<s><|user|> Hi<|end|>"
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.piece(ids[-1]) == b"<|end|>"


@pytest.mark.parametrize("id", [-1, 32000, 1 << 70])
def test_id_outside_the_vocabulary(id: int) -> None:
    tokenizer = tokenizer_of("llama-spm")
    for call in (tokenizer.piece, tokenizer.is_control, StreamDecoder(tokenizer).feed, lambda id: tokenizer.decode([1, id])):
        with pytest.raises(TokenError, match=f"{id} .* 32000"):
            call(id)
    assert not tokenizer.is_end(id)


# ---- plain definitions


def merged_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE as it is defined: of all neighbours that form a token, the best (the leftmost of equals) join."""
    parts = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


WORDS_OF_ABC = st.text("abc", min_size=1, max_size=4)


@given(pieces=st.lists(WORDS_OF_ABC, min_size=1, max_size=12, unique=True), text=st.text("abcdé", max_size=12))
@settings(max_examples=150, deadline=None)
def test_sentencepiece_merges_by_score(pieces: list[str], text: str) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_, *pieces],
            "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(i) for i in range(len(pieces))], np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 256, *[1] * len(pieces)], np.int32),
            "tokenizer.ggml.add_space_prefix": False,
        }
    )
    ids = {piece: 259 + i for i, piece in enumerate(pieces)}
    expected: list[int] = []
    for part in merged_by_score(text, {piece: -float(i) for i, piece in enumerate(pieces)}):
        expected += [ids[part]] if part in ids else [3 + byte for byte in part.encode()]  # letters may be no tokens
    assert tokenizer.encode(text, add_bos=False) == expected


def split_one_after_the_other(text: str, specials: list[str]) -> list[str]:
    """llama.cpp's way to find special tokens: for each of them, longest first, all text fragments are searched."""
    fragments = [text]
    for special in sorted(specials, key=lambda s: -len(s.encode())):
        found = []
        for fragment in fragments:
            if fragment in specials and fragment != text:
                found.append(fragment)
                continue
            rest = fragment
            while special in rest:
                before, _, rest = rest.partition(special)
                found += [before, special]
            found.append(rest)
        fragments = [fragment for fragment in found if fragment]
    return fragments


SPECIALS = ["<a><b>", "éé<", "é<a", "<a>", ">b"]  # 6, 5, 4, 3, 2 bytes


@given(text=st.text("<ab>é", max_size=16))
@settings(max_examples=300, deadline=None)
def test_longest_special_token_wins(text: str) -> None:
    tokens = SpecialTokens({special.encode(): id for id, special in enumerate(SPECIALS)}, strips_right=frozenset())
    parts = [SPECIALS[part] if isinstance(part, int) else part.decode() for part in tokens.split(text.encode())]
    assert parts == split_one_after_the_other(text, SPECIALS)


def test_special_token_swallows_spaces_behind_it() -> None:
    tokens = SpecialTokens({b"<a>": 0, b"<b>": 1}, strips_right=frozenset({0}))
    assert list(tokens.split(b" <a> \n\t<b> x<a>  ")) == [b" ", 0, 1, b" x", 0]


def test_many_special_tokens_and_a_long_text() -> None:
    ids = {f"<unused{i}>".encode(): i for i in range(5000)}
    text = b"".join(token + b" some text " for token in ids) * 2
    tokens = SpecialTokens(ids, strips_right=frozenset())
    parts = list(tokens.split(text))  # takes 0.1 s; searching the text for each of them, as llama.cpp does, minutes
    assert parts[::2] == list(range(5000)) * 2
