"""Finding special tokens in a text before anything else is cut.

As llama.cpp's `tokenizer_st_partition`: of overlapping tokens the longest (in bytes) wins wherever it stands, then the
leftmost. Done on UTF-8 bytes, and with dictionary look-ups only where some token's first byte stands, so that neither
a long text nor thousands of special tokens make it slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_C_SPACES = b" \t\n\v\f\r"  # isspace() in C


class SpecialTokens:
    """A set of special tokens: UTF-8 text -> id. Those in `strips_right` swallow the white space behind them."""

    def __init__(self, ids: Mapping[bytes, int], strips_right: frozenset[int]) -> None:
        self._ids_by_length: dict[int, dict[bytes, int]] = {}
        for token in sorted(ids, key=len, reverse=True):
            self._ids_by_length.setdefault(len(token), {})[token] = ids[token]
        first_bytes = sorted({token[:1] for token in ids})
        self._first_byte = re.compile(b"|".join(map(re.escape, first_bytes)) or b"(?!)")  # of no tokens: never
        self._strips_right = strips_right

    def split(self, text: bytes) -> Iterator[bytes | int]:
        """Yields what lies between special tokens as text, never empty, and the tokens as their ids, in order."""
        starts = [match.start() for match in self._first_byte.finditer(text)]
        taken = bytearray(len(text))  # 1 where a token was found
        found: list[tuple[int, int, int]] = []  # start, end, id
        for length, ids in self._ids_by_length.items():  # longest first
            for start in starts:
                end = start + length
                id = ids.get(text[start:end])
                if id is None or taken.find(1, start, end) >= 0:
                    continue
                if id in self._strips_right:
                    while end < len(text) and not taken[end] and text[end] in _C_SPACES:
                        end += 1
                taken[start:end] = b"\1" * (end - start)
                found.append((start, end, id))
        done = 0
        for start, end, id in sorted(found):
            if start > done:
                yield text[done:start]
            yield id
            done = end
        if done < len(text):
            yield text[done:]
