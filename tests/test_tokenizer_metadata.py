"""What a tokenizer takes from the file's metadata, and what it says when they are damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden.dense_vocabulary import dense_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from ops.errors import FormatError, ModelError, TinyLlamaError, TokenError
from tinyllama.tokenizer import Tokenizer
from tinyllama.tokenizer.library import library_errors


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
