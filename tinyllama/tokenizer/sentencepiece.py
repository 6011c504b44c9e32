"""SentencePiece's BPE: neighbours whose union is the token of the highest score merge first, until none is left.

A space is written as U+2581. Nothing is cut beforehand: one fragment of text is one word. Characters that no token
holds are spelled as bytes (<0x00> ... <0xFF>).

The tokenizers library merges by a list of pairs, not by scores, so the list is made of all the ways to cut a token in
two, best token first. Two differences to SentencePiece are bridged here: single characters may merge although they are
no tokens themselves (they get ids beyond the vocabulary), and what is left of them, or is unknown, becomes bytes.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ops.errors import TokenError

from .library import library_errors, without_surrogates
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"


class SentencePiece:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        with library_errors("encode the text"):
            encoding = self._library.encode(text.replace(" ", SPACE), add_special_tokens=False)
        ids: list[int] = encoding.ids
        n_vocab = self._vocabulary.n_vocab
        if max(ids, default=0) < n_vocab:
            return ids
        spelled: list[int] = []
        for id, (start, end) in zip(ids, encoding.offsets, strict=True):
            if id < n_vocab:
                spelled.append(id)
            else:
                spelled += map(self._byte_id, text[start:end].replace(" ", SPACE).encode())
        return spelled

    def token_bytes(self, token: str) -> bytes:
        """What a normal token stands for."""
        return token.replace(SPACE, " ").encode("utf-8", "surrogateescape")

    def _byte_id(self, byte: int) -> int:
        ids = self._vocabulary.ids
        as_itself = bytes([byte]).decode("utf-8", "surrogateescape")
        id = ids.get(f"<0x{byte:02X}>", ids.get(as_itself, self._vocabulary.unknown))
        if id is None:
            raise TokenError(f"the vocabulary has no token for the byte 0x{byte:02X} and none for unknown text")
        return id

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer, models

        tokens, n_vocab = self._vocabulary.tokens, self._vocabulary.n_vocab
        ids = without_surrogates(self._vocabulary.ids)
        by_score = np.argsort(-self._vocabulary.scores, kind="stable").tolist()
        ranked = [tokens[id] for id in by_score if ids.get(tokens[id]) == id]  # of equal tokens the last one counts
        for character in sorted(set[str]().union(*ranked) - ids.keys()):
            ids[character] = n_vocab + len(ids)  # any number beyond the vocabulary, each once
        unknown = SPACE * (max(map(len, ids)) + 1)  # longer than every token, so it is none of them
        ids[unknown] = n_vocab + len(ids)
        halves = ((token[:cut], token[cut:]) for token in ranked for cut in range(1, len(token)))
        merges = [(left, right) for left, right in halves if left in ids and right in ids]
        with library_errors("build the SentencePiece tokenizer"):
            return Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=False))
