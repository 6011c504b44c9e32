"""A conversation with a model: messages, its own template, and a context that is not read twice."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from ops.errors import ModelError

from .chat_template import render
from .sampling import Sampling

if TYPE_CHECKING:
    from .context import Context
    from .generation import StopReason
    from .model import Model

__all__ = ["ChatSession", "render"]


class ChatSession:
    """Turns of "user" and "assistant", after a "system" message if there is one.

        session = ChatSession(model, system="Answer in one sentence.")
        for piece in session.say("Why is the sky blue?"): print(piece, end="")

    At each turn the whole conversation is rendered and tokenised, as llama.cpp does it; the context then reads only
    what comes after the longest common beginning with the tokens it holds. As in llama.cpp, the text of a special token
    in what the user types, such as <|im_end|>, becomes that token.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        n_predict: int = -1,
        context: Context | None = None,
    ) -> None:
        """n_predict: tokens of a reply at most, -1 for no limit; context: a new one by default.

        ModelError: the model's file has no chat template.
        """
        template = model.metadata.get("tokenizer.chat_template")
        if not isinstance(template, str) or not template.strip():
            raise ModelError(
                "the model's file has no chat template, so the form of its conversations is not known: complete a "
                "prompt with `tinyllama run` instead, or take a model made for chat"
            )
        self.model = model
        self.context = context if context is not None else model.context()
        self.stop_reason: StopReason | None = None  # why the latest reply ended: see Generation
        self._template = template
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._sampling = sampling
        self._n_predict = n_predict
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Begin anew: only the system message is left."""
        self.messages = list(self._system)
        self.stop_reason = None

    def say(self, text: str) -> Generator[str, None, None]:
        """Say this; the pieces of the reply, as they come.

        A reply that is broken off (an exception, Ctrl-C, or the caller stops asking) stays in `messages` as far as it
        was given out. If nothing was, the turn leaves no trace, and can be said again. So messages always alternate.

        ModelError: the template refuses the conversation; ContextFullError: it is longer than n_ctx.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        generation = self.model.generate(
            self._tokens(turn), n_predict=self._n_predict, sampling=self._sampling or Sampling(), context=self.context
        )
        reply: list[str] = []
        complete = False
        try:
            for piece in generation:
                reply.append(piece)
                yield piece
            complete = True
        finally:
            self.stop_reason = generation.stop_reason if complete else "interrupted"
            if complete or reply:
                self.messages = [*turn, {"role": "assistant", "content": "".join(reply)}]

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation as token ids, up to where the reply begins, with one bos where the model wants one."""
        tokenizer = self.model.tokenizer
        special = (tokenizer.bos, tokenizer.eos)
        bos, eos = ("" if id is None else tokenizer.piece(id).decode("utf-8", "replace") for id in special)
        text = render(self._template, messages, bos_token=bos, eos_token=eos)
        writes_bos = bos != "" and text.startswith(bos)  # many templates do
        return tokenizer.encode(text, add_bos=False if writes_bos else None, parse_special=True)
