"""Tokenizer: text to token ids and back, as llama.cpp does it (llama-vocab.cpp, `llama_vocab::impl::tokenize`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from numbers import Integral
from typing import Any

from ops.errors import TokenError

from .byte_level import ByteLevel
from .library import without_surrogates
from .sentencepiece import SentencePiece
from .special_tokens import SpecialTokens
from .token_kinds import TokenKind
from .vocabulary import Vocabulary

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_HIDDEN = frozenset({TokenKind.CONTROL, TokenKind.UNKNOWN})


class Tokenizer:
    """The tokenizer that a model file describes.

    Making one is cheap; the tables for encoding are built by the first `encode`. Decoding needs none.

    >>> tokenizer = Tokenizer.from_metadata(open_model_file(path).metadata)  # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello"))  # doctest: +SKIP
    'Hello'
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._model = SentencePiece(vocabulary) if vocabulary.model == "llama" else ByteLevel(vocabulary)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """`metadata` by GGUF's keys: texts are str, arrays of texts list[str], arrays of numbers numpy arrays.

        Raises FormatError if it is damaged, ModelError if the kind of tokenizer or pre-tokenizer is not known here.
        """
        return cls(Vocabulary.from_metadata(metadata))

    @property
    def n_vocab(self) -> int:
        """Number of tokens; ids are 0 ... n_vocab - 1."""
        return self._vocabulary.n_vocab

    @property
    def bos(self) -> int | None:
        """Beginning of sequence."""
        return self._vocabulary.bos

    @property
    def eos(self) -> int | None:
        """End of sequence."""
        return self._vocabulary.eos

    @property
    def eot(self) -> int | None:
        """End of turn."""
        return self._vocabulary.eot

    @property
    def adds_bos(self) -> bool:
        """Does a text begin with bos, if the caller does not say?"""
        return self._vocabulary.adds_bos

    def is_end(self, id: int) -> bool:
        """Whether a generation ends with this token."""
        return id in self._vocabulary.ends

    def is_control(self, id: int) -> bool:
        """Whether the token steers the model and is no part of the text. Raises TokenError for an unknown id."""
        return self._vocabulary.kinds[self._checked(id)] == TokenKind.CONTROL

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Token ids of the text.

        add_bos: None puts BOS before it and EOS behind it if the file says so (llama.cpp's add_special); True puts BOS,
        if the vocabulary has one, and no EOS; False neither.
        parse_special: whether the text of a control token, such as <|im_end|>, becomes that token; else it is spelled
        as any other text. User-defined tokens are always found.

        Raises TokenError if the text holds lone surrogates, FormatError if the vocabulary is damaged.
        """
        if not isinstance(text, str):
            raise TokenError(f"Only text can be made into tokens, not {type(text).__name__}.")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise TokenError(
                f"character {error.start} of the text is a lone surrogate (U+{ord(text[error.start]):04X}): was it "
                "read from bytes that are not UTF-8?"
            ) from None
        vocabulary = self._vocabulary
        bos = vocabulary.bos if (vocabulary.adds_bos if add_bos is None else add_bos) else None
        eos = vocabulary.eos if vocabulary.adds_eos and add_bos is None else None

        ids = [] if bos is None else [bos]
        space_before = vocabulary.adds_space_prefix
        for part in (self._special if parse_special else self._user_defined).split(data):
            if isinstance(part, int):
                ids.append(part)
                space_before = vocabulary.adds_space_prefix
            else:
                ids += self._model.encode(" " * space_before + part.decode())
                space_before = False
        if eos is not None:
            ids.append(eos)
        return ids

    def piece(self, id: int) -> bytes:
        """The bytes of one token, which may be a part of a UTF-8 character; special tokens give their text.

        Raises TokenError for an id outside the vocabulary.
        """
        token, kind = self._vocabulary.tokens[self._checked(id)], self._vocabulary.kinds[id]
        if kind == TokenKind.NORMAL:
            return self._model.token_bytes(token)
        if kind in _HIDDEN or kind == TokenKind.USER_DEFINED:
            return token.encode("utf-8", "surrogateescape")
        if kind == TokenKind.BYTE and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return b""  # unused

    def visible_piece(self, id: int) -> bytes:
        """As `piece`, but nothing for control and unknown tokens."""
        return b"" if self._vocabulary.kinds[self._checked(id)] in _HIDDEN else self.piece(id)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD.

        special: whether control and unknown tokens are shown, by their text. The space that `encode` puts before a text
        for SentencePiece is taken off again. Unlike llama_detokenize, spaces before punctuation stay as they are.

        Raises TokenError for an id outside the vocabulary.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise TokenError(f"Only a list of token ids can be made into text, not {type(ids).__name__}.")
        data = b"".join(map(self.piece if special else self.visible_piece, ids))
        if self._vocabulary.adds_space_prefix:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    @cached_property
    def _special(self) -> SpecialTokens:
        return self._tokens_of_kinds(_HIDDEN | {TokenKind.USER_DEFINED})

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return self._tokens_of_kinds(frozenset({TokenKind.USER_DEFINED}))

    def _tokens_of_kinds(self, kinds: frozenset[TokenKind]) -> SpecialTokens:
        tokens = self._vocabulary.tokens
        ids = {tokens[id]: id for id, kind in enumerate(self._vocabulary.kinds) if kind in kinds}
        texts = {token.encode(): id for token, id in without_surrogates(ids).items()}
        return SpecialTokens(texts, self._vocabulary.strips_right)

    def _checked(self, id: int) -> int:
        if not isinstance(id, Integral) or not 0 <= id < self._vocabulary.n_vocab:
            raise TokenError(f"token id {id} is outside the vocabulary of {self._vocabulary.n_vocab} tokens")
        return id
