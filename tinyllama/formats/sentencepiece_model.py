"""SentencePiece's tokenizer.model, which LLaMA 1 and 2 and Mistral came with, as GGUF's tokenizer metadata.

The file is one protocol buffer (sentencepiece_model.proto; wire format: protobuf.dev/programming-guides/encoding). A message
is a row of fields: a varint of the field's number * 8 + how its value is stored, then the value. Of it are read here

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece   2 score   3 type
    TrainerSpec      3 model_type   24 treat_whitespace_as_suffix   40 unk_id   41 bos_id   42 eos_id   43 pad_id
    NormalizerSpec   3 add_dummy_prefix   4 remove_extra_whitespaces

What else a normalizer may do to a text (NFKC) is not done: LLaMA's does nothing, and llama.cpp leaves it out too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any

import numpy as np

from ops.errors import FormatError, ModelError

from .other_files import is_there

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # how a value is stored
MAX_BYTES = 2**24  # of the file; that of Gemma's 256,000 tokens has 4 MB
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
NORMAL = 1  # the types of pieces are numbered as GGUF's token types are

Field = tuple[int, Any]  # number, and an int, or the bytes of whatever is no varint


def sentencepiece_metadata(path: Path) -> dict[str, Any]:
    """The keys tokenizer.ggml.* of a tokenizer.model: tokens, scores (float32), token_type (int32), special ids and flags.

    FormatError: the file is damaged or none of SentencePiece's; ModelError: its kind is not BPE; OSError: it cannot be read.
    """
    message = _whole_file(path)
    try:
        pieces, trainer, normalizer = _model(message)
        tokens, scores, types = _columns(pieces)
    except _Damaged as error:
        raise FormatError(f"{path}: this is no tokenizer.model of SentencePiece, or a damaged one: {error}") from None
    _check_kind(path, trainer)
    ids = {
        "unknown": trainer.get(40, 0),
        "bos": trainer.get(41, 1),
        "eos": trainer.get(42, 2),
        "padding": trainer.get(43, -1),  # none
    }
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{role}_token_id": id for role, id in ids.items() if 0 <= id < len(tokens)},
        "tokenizer.ggml.add_bos_token": 0 <= ids["bos"] < len(tokens),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
    }


def _whole_file(path: Path) -> memoryview:
    if not is_there(path):
        raise FormatError(f"{path}: there is no such file; a model's tokenizer has to lie beside it")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FormatError(f"{path}: a tokenizer.model of {size} bytes is no SentencePiece model: the largest have millions")
    return memoryview(path.read_bytes())


def _check_kind(path: Path, trainer: dict[int, int]) -> None:
    kind = MODEL_TYPES.get(trainer.get(3, 1), "unknown")
    if kind != "BPE":
        raise ModelError(f"{path}: this SentencePiece model is of the kind {kind}; only BPE, LLaMA's kind, is known here")
    if trainer.get(24, 0):
        raise ModelError(f"{path}: this SentencePiece model ends words with a space; only those that begin with one are known")


def _model(message: memoryview) -> tuple[list[memoryview], dict[int, int], dict[int, int]]:
    """The pieces, and the numbers of trainer_spec and normalizer_spec by their field's number."""
    pieces: list[memoryview] = []
    specs: dict[int, dict[int, int]] = {}
    for number, value in _fields(message):
        if number in (1, 2, 3) and not isinstance(value, memoryview):
            raise _Damaged(f"field {number} is a number")
        if number == 1:
            pieces.append(value)
        elif number in (2, 3):
            numbers = {inner: v for inner, v in _fields(value) if isinstance(v, int)}
            specs.setdefault(number, {}).update(numbers)
    if not pieces or len(specs) < 2:
        raise _Damaged("it lacks pieces, trainer_spec or normalizer_spec")
    return pieces, specs[2], specs[3]


def _columns(pieces: list[memoryview]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, scores and types of the pieces. Bytes of a text that are no UTF-8 stand as lone surrogates."""
    tokens = []
    scores, types = np.zeros(len(pieces), np.float32), np.full(len(pieces), NORMAL, np.int32)
    for i, piece in enumerate(pieces):
        text = ""
        for number, value in _fields(piece):
            is_bytes = isinstance(value, memoryview)
            if number == 1 and is_bytes:
                text = str(value, "utf-8", "surrogateescape")
            elif number == 2 and is_bytes and len(value) == 4:
                (scores[i],) = unpack("<f", value)
            elif number == 3 and not is_bytes and 0 <= value < 2**31:
                types[i] = value
            elif number in (1, 2, 3):
                raise _Damaged(f"piece {i} has a field {number} of another kind")
        if not text:
            raise _Damaged(f"piece {i} has no text")
        tokens.append(text)
    return tokens, scores, types


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in their order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, storage = key >> 3, key & 7
        if storage == VARINT:
            value, at = _varint(message, at)
            yield number, value - 2**64 if value >= 2**63 else value  # int32 and int64: two's complement
            continue
        if storage == LENGTH:
            size, at = _varint(message, at)
        elif storage in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if storage == EIGHT_BYTES else 4
        else:
            raise _Damaged(f"field {number} is stored in way {storage}, which is unknown")
        if size > len(message) - at:
            raise _Damaged(f"field {number} of {size} bytes leaves its message")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, seven bits a byte, the lowest first, the eighth bit set while more follow; and where it ends."""
    number = shift = 0
    while at < len(message) and shift < 70:  # ten bytes at most
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & (2**64 - 1), at
        shift += 7
    raise _Damaged("a number has no end")


class _Damaged(Exception):
    """What is wrong with the message; the file's name is added where it is known."""
