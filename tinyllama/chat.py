"""A conversation with a model: messages, their form, and a context that is not read twice."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ops.errors import OptionError

from .chat_formats import ChatFormat
from .chat_template import chat_format, render
from .sampling import Sampling

if TYPE_CHECKING:
    from .context import Context
    from .generation import StopReason
    from .model import Model
    from .tokenizer import Tokenizer

__all__ = ["ChatSession", "prompt_tokens", "render"]


def prompt_tokens(messages: Sequence[Mapping[str, Any]], form: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """The conversation as token ids, up to where the reply begins, with one bos where the model wants one.

    As in llama.cpp, the text of a special token in a message, such as <|im_end|>, becomes that token.

    OptionError: what is given are no messages; ModelError: the template refuses them.
    """
    _check(messages, form)
    special = (tokenizer.bos, tokenizer.eos)
    bos, eos = ("" if id is None else tokenizer.piece(id).decode("utf-8", "replace") for id in special)
    text = render(form.template, messages, bos_token=bos, eos_token=eos)
    writes_bos = bos != "" and text.startswith(bos)  # many templates do
    return tokenizer.encode(text, add_bos=False if writes_bos else None, parse_special=True)


def _check(messages: Sequence[Mapping[str, Any]], form: ChatFormat) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise OptionError('messages: expected a list such as [{"role": "user", "content": "Hello"}]')
    for message in messages:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise OptionError(f'message {str(message)[:60]!r}: expected {{"role": ..., "content": ...}}, both of them text')
        if message.get("input") and "input" not in form.template:
            raise OptionError("the chat template has no place for an input: make it part of the message, or use alpaca")


class ChatSession:
    """Turns of "user" and "assistant", after a "system" message if there is one.

        session = ChatSession(model, system="Answer in one sentence.")
        for piece in session.say("Why is the sky blue?"): print(piece, end="")

    At each turn the whole conversation is rendered and tokenised, as llama.cpp does it; the context then reads only
    what comes after the longest common beginning with the tokens it holds.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        chat_template: str | None = None,
        sampling: Sampling | None = None,
        n_predict: int = -1,
        stop: str | Sequence[str] = (),
        context: Context | None = None,
    ) -> None:
        """chat_template: a name of chat_formats.FORMATS or a Jinja text, None for the one in the model's file;
        n_predict: tokens of a reply at most, -1 for no limit; stop: texts that end a reply, besides those of the format;
        context: a new one by default.

        ModelError: the model's file has no chat template; OptionError: no format of that name.
        """
        self._form = chat_format(chat_template, model.metadata)
        self.model = model
        self.context = context if context is not None else model.context()
        self.stop_reason: StopReason | None = None  # why the latest reply ended: see Generation
        self._stop = self._form.stops(stop)
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._sampling = sampling
        self._n_predict = n_predict
        self.messages: list[dict[str, str]] = []
        self.reset()

    @property
    def begun(self) -> bool:
        """Whether anything was said."""
        return len(self.messages) > len(self._system)

    def reset(self) -> None:
        """Begin anew: only the system message is left."""
        self.messages = list(self._system)
        self.stop_reason = None

    def say(self, text: str, *, input: str | None = None) -> Generator[str, None, None]:
        """Say this; the pieces of the reply, as they come. input: what the instruction is about, in Alpaca's format.

        A reply that is broken off (an exception, Ctrl-C, or the caller stops asking) stays in `messages` as far as it
        was given out. If nothing was, the turn leaves no trace, and can be said again. So messages always alternate.

        ModelError: the template refuses the conversation; ContextFullError: it is longer than n_ctx.
        """
        turn = [*self.messages, {"role": "user", "content": text, **({"input": input} if input else {})}]
        generation = self.model.generate(
            prompt_tokens(turn, self._form, self.model.tokenizer),
            n_predict=self._n_predict,
            stop=self._stop,
            sampling=self._sampling or Sampling(),
            context=self.context,
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
