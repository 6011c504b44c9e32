"""Tokenizers against llama.cpp's own expected ids, against plain definitions written out here, and with damaged metadata."""
from __future__ import annotations

import argparse
import io
import json
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.dense_vocabulary import dense_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from ops.errors import FormatError, ModelError, OptionError, TinyLlamaError, TokenError
from tinyllama.cli import tokenize
from tinyllama.formats import open_model_file
from tinyllama.tokenizer import StreamDecoder, Tokenizer
from tinyllama.tokenizer.library import library_errors
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
    start = time.perf_counter()
    parts = list(tokens.split(text))
    assert time.perf_counter() - start < 5  # takes 0.1 s; searching the text for each of them, as llama.cpp does, minutes
    assert parts[::2] == list(range(5000)) * 2


# ---- what the file says


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary of five tokens and the bytes; `changes` by the keys' last names, None removes one."""
    return changed(
        {
            "model": "llama",
            "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a"],
            "scores": np.zeros(261, np.float32),
            "token_type": np.array([2, 3, 3, *[6] * 256, 1, 1], np.int32),
        },
        changes,
    )


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of all bytes, one merge and one control token."""
    tokens = [*sorted(ByteLevel.alphabet()), "ab", "<|im_end|>"]
    return changed(
        {
            "model": "gpt2",
            "pre": "gpt-2",
            "tokens": tokens,
            "merges": ["a b"],
            "token_type": np.array([1] * 257 + [3], np.int32),
            "bos_token_id": 257,
            "eos_token_id": 257,
        },
        changes,
    )


def changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


def test_bos_and_eos_as_the_file_says() -> None:
    both = Tokenizer.from_metadata(spm_metadata(add_bos_token=True, add_eos_token=True))
    assert both.encode("a") == [1, 259, 260, 2]
    assert both.encode("a", add_bos=True) == [1, 259, 260]
    assert both.encode("a", add_bos=False) == [259, 260]
    assert both.encode("") == [1, 2]
    assert Tokenizer.from_metadata(spm_metadata()).encode("a") == [1, 259, 260]  # SentencePiece: BOS if nothing is said
    assert Tokenizer.from_metadata(bpe_metadata()).encode("ab") == [256]  # byte-level: none
    assert Tokenizer.from_metadata(bpe_metadata()).encode("ab", add_bos=True) == [257, 256]


def test_space_before_text_and_after_special_tokens() -> None:
    with_space = Tokenizer.from_metadata(spm_metadata())
    assert with_space.encode("<s>a</s>a", add_bos=False) == [1, 259, 260, 2, 259, 260]
    without = Tokenizer.from_metadata(spm_metadata(add_space_prefix=False))
    assert without.encode("<s>a</s>a", add_bos=False) == [1, 260, 2, 260]
    assert without.decode(without.encode(" a", add_bos=False)) == " a"


def test_id_that_means_none_gives_the_default() -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata(bos_token_id=2**32 - 1, eos_token_id=260))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eot) == (1, 260, None)
    assert tokenizer.is_end(260)
    assert Tokenizer.from_metadata(bpe_metadata()).eot == 257  # by its text, <|im_end|>


def test_missing_pre_tokenizer_is_the_default() -> None:
    texts = ["a+b 1234", "it's"]
    default = dense_vocabulary("default")
    missing = {key: value for key, value in default.items() if key != "tokenizer.ggml.pre"}
    ids = [[Tokenizer.from_metadata(metadata).encode(text) for text in texts] for metadata in (missing, default)]
    assert ids[0] == ids[1]


# ---- damage

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**33), 2**33),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.text(st.characters(), max_size=5), max_size=300),  # lone surrogates too
    st.lists(st.integers(), max_size=3),
    st.builds(np.full, st.integers(0, 300), st.sampled_from([0, 1, 7, -1, 2**31 - 1, float("nan"), float("-inf")])),
    st.just(np.zeros((261, 2))),
)
KEYS = ["model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "eot_token_id"]
KEYS += ["unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix"]


@given(make=st.sampled_from([spm_metadata, bpe_metadata]), changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=2))
@settings(max_examples=300, deadline=None)
def test_damage_is_told_in_a_sentence(make: Any, changes: dict[str, Any]) -> None:
    try:
        tokenizer = Tokenizer.from_metadata(make(**changes))
        tokenizer.decode(tokenizer.encode("ab\u2581é <s>"))
        tokenizer.decode(range(tokenizer.n_vocab))
    except TinyLlamaError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert sentence.isprintable()


@pytest.mark.parametrize(
    ("metadata", "error", "sentence"),
    [
        ({}, FormatError, "lacks tokenizer.ggml.model"),
        (spm_metadata(model="bert"), ModelError, "'bert'.*known here are gpt2, llama"),
        (bpe_metadata(pre="klingon"), ModelError, "'klingon'.*falcon.*gpt-2.*qwen2"),
        (bpe_metadata(tokens=[]), FormatError, "vocabulary is empty"),
        (bpe_metadata(tokens=["\ud800"], token_type=None), FormatError, "lone surrogate"),
        (spm_metadata(scores=np.zeros(3)), FormatError, "scores has 3 entries for 261 tokens"),
        (spm_metadata(scores=np.full(261, np.nan)), FormatError, "scores holds no number for token 0"),
        (spm_metadata(token_type=np.zeros(3, int)), FormatError, "token_type has 3 entries for 261 tokens"),
        (bpe_metadata(merges=None), FormatError, "lacks tokenizer.ggml.merges"),
        (bpe_metadata(merges=["a b", "ab"]), FormatError, "merges holds 'ab'"),
        (bpe_metadata(merges=["a zz"]), FormatError, "merges holds 'a zz'"),
        (bpe_metadata(bos_token_id="one"), FormatError, "bos_token_id must be a token's id"),
        (bpe_metadata(add_bos_token=7), FormatError, "add_bos_token must be true or false"),
    ],
)
def test_sentences(metadata: dict[str, Any], error: type[TinyLlamaError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        Tokenizer.from_metadata(metadata).encode("ab")


def test_lone_surrogate_in_the_text() -> None:
    with pytest.raises(TokenError, match=r"character 2 .*U\+D800"):
        Tokenizer.from_metadata(bpe_metadata()).encode("ab\ud800")


def test_byte_that_no_token_stands_for() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a"]
    metadata = spm_metadata(tokens=tokens, token_type=None, scores=np.zeros(4), add_space_prefix=False)
    assert Tokenizer.from_metadata(metadata).encode("aé", add_bos=False) == [3, 0, 0]  # <unk> for each byte


def test_panic_of_the_library_becomes_a_sentence() -> None:
    class PanicException(BaseException):  # as pyo3's, which is no Exception
        pass

    with pytest.raises(FormatError, match=r"cannot encode the text .*: index out of bounds"), library_errors("encode the text"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), library_errors("encode the text"):
        raise KeyboardInterrupt


# ---- tinyllama tokenize


def run_tokenize(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    tokenize.add_arguments(parser)
    return tokenize.run(parser.parse_args(["-m", str(FOLDER / "ggml-vocab-llama-spm.gguf"), *flags]))


def test_command_prints_as_llama_tokenize(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenize("-p", "Hello\\n", "--show-count") == 0
    assert capsys.readouterr().out == "     1 -> '<s>'\n 15043 -> ' Hello'\n    13 -> '\n'\nTotal number of tokens: 3\n"


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        (["-p", "Hello"], "[1, 15043]\n"),
        (["-p", "Hello", "--no-bos"], "[15043]\n"),
        (["-p", "<s>", "--no-bos"], "[1]\n"),
        (["-p", "<s>", "--no-bos", "--no-parse-special"], "[529, 29879, 29958]\n"),
        (["-p", "\\n", "--no-bos", "--no-escape"], "[320, 29876]\n"),
        (["-p", "", "--no-bos"], "[]\n"),
    ],
)
def test_command_flags(flags: list[str], out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenize(*flags, "--ids") == 0
    assert capsys.readouterr().out == out


def test_command_reads_files_and_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"Hello\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    run_tokenize("-f", str(file), "--ids")
    run_tokenize("--stdin", "--ids")
    assert capsys.readouterr().out == "[1, 15043, 13]\n" * 2  # the last newline counts


@pytest.mark.parametrize("flags", [[], ["-p", "a", "--stdin"], ["-p", "a", "-f", "a"]])
def test_command_needs_one_text(flags: list[str]) -> None:
    with pytest.raises(OptionError, match="exactly one text"):
        run_tokenize(*flags)


def test_command_names_the_place_of_bytes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"abc\xff")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff")))
    for flags in (["-f", str(file)], ["--stdin"]):
        with pytest.raises(OptionError, match="0xff at offset 3"):
            run_tokenize(*flags)
