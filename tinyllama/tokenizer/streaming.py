"""Text from tokens as they come, never half a character."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class StreamDecoder:
    """Decodes a generation token by token.

    A token may end inside a UTF-8 character; its bytes wait for the rest. Bytes that are no UTF-8 become U+FFFD.
    special: whether control and unknown tokens are shown, by their text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._piece = tokenizer.piece if special else tokenizer.visible_piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, id: int) -> str:
        """The text that this token completes, "" if it completes none. Raises TokenError for an unknown id."""
        return self._utf8.decode(self._piece(id))

    def flush(self) -> str:
        """What an unfinished character leaves at the end; the decoder can then be used for another text."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
