"""`tinyllama chat`: a conversation, each line of stdin a turn."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from .arguments import add_model_arguments, add_sampling_arguments, integer, load_model, note, sampling_from
from .text import option_error

if TYPE_CHECKING:
    from ..chat import ChatSession

HELP = "talk with a model; each line of stdin is a turn, stdout holds the replies"
COMMANDS = "/reset begins a new conversation, /quit or Ctrl-D ends, /help shows this; Ctrl-C stops a reply."
WHY_STOPPED = {
    "context": "(the context is full: /reset begins anew, -c sets a longer one)",
    "length": "(stopped after -n tokens)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("conversation").add_argument
    add("-sys", "--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    add("-n", "--n-predict", type=integer(-1), default=-1, metavar="N", help="tokens of a reply (default: -1, no end)")
    add_model_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..chat import ChatSession
    from ..summary import load_summary
    from .progress import warm_up

    sampling = sampling_from(args)
    model = load_model(args)
    session = ChatSession(
        model,
        system=args.system_prompt,
        sampling=sampling,
        n_predict=args.n_predict,
        context=model.context(),
    )
    note(load_summary(model))
    warm_up(session.context)
    return converse(session)


def converse(session: ChatSession) -> int:
    """Read, answer, repeat. 0 at the end of input; Ctrl-C while waiting for input goes to the caller."""
    from ops.errors import TinyLlamaError

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):  # where there is readline, input() has a history and an editable line
            import readline  # noqa: F401
        note(COMMANDS)
    while True:
        try:
            line = input("> " if at_terminal else "").strip()
        except (EOFError, KeyboardInterrupt) as end:
            if at_terminal:
                note()  # leaves the line of the prompt
            if isinstance(end, KeyboardInterrupt):
                raise
            return 0
        except UnicodeDecodeError as error:
            raise option_error(f"stdin is not valid UTF-8: byte {error.object[error.start]:#04x}") from None
        if line == "/quit":
            return 0
        if line == "/reset":
            session.reset()
        elif line == "/help":
            note(COMMANDS)
        elif line:
            try:
                answer(session, line)
            except TinyLlamaError as error:
                if not at_terminal:
                    raise  # a script must learn of it
                note(str(error))


def answer(session: ChatSession, text: str) -> None:
    """One turn; Ctrl-C stops the reply, not the conversation."""
    with contextlib.closing(session.say(text)) as reply, contextlib.suppress(KeyboardInterrupt):
        for piece in reply:
            print(piece, end="", flush=True)
    print(flush=True)
    if why := WHY_STOPPED.get(session.stop_reason or ""):
        note(why)
