"""A text that a model and a person write by turns, as llama.cpp's `main` of 2023 did it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from ops.errors import ContextFullError

if TYPE_CHECKING:
    from .context import Context
    from .generation import StopReason

LEAST_ROOM = 4  # places that the prompt must leave; llama.cpp's number


class Interaction:
    """The model writes until a reverse prompt, then the person goes on.

        interaction = Interaction(context, model.tokenize("User:"), reverse=["User:"])
        interaction.read("Hello")
        for piece in interaction.write(): print(piece, end="")

    When the context is full, the first n_keep tokens stay, and of those after them the later half: llama.cpp's context
    swap. That half is read anew, at its new places, and the text goes on.
    """

    def __init__(
        self,
        context: Context,
        prompt: Sequence[int],
        *,
        reverse: Sequence[str] = (),
        prefix: str = "",
        suffix: str = "\n",
        at_end: str = "",
        n_keep: int = 0,
    ) -> None:
        """prompt: the text so far; reverse: texts that end the model's turn; prefix, suffix: what goes before and after
        what the person writes; at_end: what is added when the model says that its text has ended; n_keep: -1 for all of
        the prompt.

        ContextFullError: the prompt leaves no room.
        """
        if len(prompt) > context.n_ctx - LEAST_ROOM:
            raise ContextFullError(
                f"the prompt has {len(prompt)} tokens, too many to go on by turns in n_ctx = {context.n_ctx}: shorten it, "
                "or set n_ctx (-c) higher"
            )
        self.context = context
        self.tokens = list(prompt)
        self.stop_reason: StopReason | None = None  # why the model's latest turn ended: see Generation
        bos = int(self.tokens[:1] == [context.model.tokenizer.bos])  # stays in any case, as in llama.cpp
        self._n_keep = n_keep + bos if 0 <= n_keep < len(prompt) else len(prompt)
        self._reverse = [text for text in reverse if text]
        self._prefix, self._suffix, self._at_end = prefix, suffix, at_end
        self._begun = ""  # a reverse prompt with which the model has begun the prefix

    def read(self, text: str) -> None:
        """The person's turn. ContextFullError: it is too long; then it was not taken."""
        prefix = self._prefix.partition(self._begun)[2] if self._begun else self._prefix
        self._add(prefix + text + self._suffix)
        self._begun = ""

    def write(self, *, n_predict: int = -1, **settings: Any) -> Generator[str, None, None]:
        """The model's turn: pieces of text. The reverse prompt that ended it comes last, unless the prefix holds it.

        n_predict: tokens of this turn, -1 for no limit; settings: those of Model.generate.
        """
        reason: StopReason | None = "context"
        while reason == "context":
            self._swap(1)
            generation = self.context.model.generate(
                self.tokens, n_predict=n_predict, stop=self._reverse, context=self.context, **settings
            )
            shown = 0
            try:
                for piece in generation:
                    shown += len(piece)
                    yield piece
            finally:
                self.tokens += generation.tokens
                self.stop_reason = reason = generation.stop_reason or "interrupted"
            if n_predict > 0:
                n_predict -= len(generation.tokens)
        if reason == "stop":
            found = self._text(generation.tokens)[shown:]
            self._begun = next((stop for stop in self._reverse if found.startswith(stop) and stop in self._prefix), "")
            if not self._begun:
                yield found
        elif reason == "end" and self._at_end:
            self._add(self._at_end)
            yield self._at_end

    def _text(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.context.model.tokenizer.visible_piece, tokens)).decode("utf-8", "replace")

    def _add(self, text: str) -> None:
        new = self.context.model.tokenize(text, add_bos=False)
        room = self.context.n_ctx - self._n_keep
        if len(new) > room:
            raise ContextFullError(
                f"this has {len(new)} tokens, but the context has room for {room}: shorten it, or set n_ctx (-c) higher"
            )
        self.tokens += new
        self._swap(len(new))

    def _swap(self, n_new: int) -> None:
        """If the context cannot hold all tokens: those before the last n_new give way."""
        n_ctx, n_keep, past = self.context.n_ctx, self._n_keep, len(self.tokens) - n_new
        if past + n_new > n_ctx:
            recent = min((past - n_keep) // 2, n_ctx - n_keep - n_new)
            del self.tokens[n_keep : past - recent]
