"""GPT-2's byte-level BPE: each byte of the UTF-8 text is written as one printable character, then pairs merge.

Text is first cut into words (pre_tokenizers.py); inside a word the pair that stands first in the list of merges goes
first. Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2, and its code.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ops.errors import FormatError

from .library import library_errors, without_surrogates
from .pre_tokenizers import PRE_TOKENIZERS
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable bytes of Latin-1 stand for themselves, the others are U+0100 and on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class ByteLevel:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        with library_errors("encode the text"):
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        n_vocab = self._vocabulary.n_vocab
        return ids if max(ids, default=0) < n_vocab else [id for id in ids if id < n_vocab]

    def token_bytes(self, token: str) -> bytes:
        """What a normal token stands for. Characters outside the alphabet, which only odd files have, are kept."""
        try:
            return bytes([BYTE_OF[character] for character in token])
        except KeyError:
            kept = (bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode("utf-8", "surrogateescape") for c in token)
            return b"".join(kept)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        cut = PRE_TOKENIZERS[self._vocabulary.pre]
        n_vocab = self._vocabulary.n_vocab
        ids = without_surrogates(self._vocabulary.ids)
        for byte in sorted(BYTE_OF.keys() - ids.keys()):
            ids[byte] = n_vocab + len(ids)  # beyond the vocabulary: it keeps its neighbours apart, `encode` drops it
        in_order = dict.fromkeys(self._vocabulary.merges)  # of equal merges the first counts
        merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in in_order)]
        try:
            with library_errors("build the byte-level tokenizer"):
                library = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=cut.ignores_merges))
                library.pre_tokenizer = pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
                    + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
                )
        except FormatError:
            self._check_merges(ids)
            raise
        return library

    def _check_merges(self, ids: dict[str, int]) -> None:
        """Says which merge is wrong; called when the library has refused them."""
        for merge in self._vocabulary.merges:
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= ids.keys():
                raise FormatError(
                    f"tokenizer.ggml.merges holds {merge!r:.80}, which does not join two tokens of the vocabulary to a "
                    "third; the file is damaged"
                )
