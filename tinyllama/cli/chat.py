"""`tinyllama chat`: a conversation, each line of stdin a turn."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat_formats import FORMATS
from .arguments import add_model_arguments, add_sampling_arguments, integer, load_model, note, sampling_from
from .person import ask, at_terminal, editable
from .text import read_text, text_argument, unescape

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
    form = parser.add_argument_group("form of the conversation").add_mutually_exclusive_group().add_argument
    form("--chat-template", default=None, metavar="NAME|JINJA",
         help=f"a name ({', '.join(FORMATS)}) or a Jinja text (default: the one in the model's file)")  # fmt: skip
    form("--chat-template-file", type=Path, default=None, metavar="FILE", help="a file with a Jinja text")
    add("--input", default=None, metavar="TEXT", help="what the first instruction is about (--chat-template alpaca)")
    add("-r", "--reverse-prompt", action="append", default=[], metavar="TEXT",
        help="a text that ends a reply, with \\n, \\t read as escapes; may be given several times")  # fmt: skip
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
        chat_template=read_text(args.chat_template_file) if args.chat_template_file else args.chat_template,
        stop=[unescape(text_argument(text)) for text in args.reverse_prompt],
        sampling=sampling,
        n_predict=args.n_predict,
        context=model.context(),
    )
    note(load_summary(model))
    warm_up(session.context)
    return converse(session, None if args.input is None else text_argument(args.input))


def converse(session: ChatSession, first_input: str | None = None) -> int:
    """Read, answer, repeat. 0 at the end of input; Ctrl-C while waiting for input goes to the caller.

    first_input: goes with the first turn of a conversation.
    """
    from ops.errors import TinyLlamaError

    if at_terminal():
        editable()
        note(COMMANDS)
    while True:
        line = ask("> ")
        if line is None or (line := line.strip()) == "/quit":
            return 0
        if line == "/reset":
            session.reset()
        elif line == "/help":
            note(COMMANDS)
        elif line:
            try:
                answer(session, line, None if session.begun else first_input)
            except TinyLlamaError as error:
                if not at_terminal():
                    raise  # a script must learn of it
                note(str(error))


def answer(session: ChatSession, text: str, input: str | None) -> None:
    """One turn; Ctrl-C stops the reply, not the conversation."""
    with contextlib.closing(session.say(text, input=input)) as reply, contextlib.suppress(KeyboardInterrupt):
        for piece in reply:
            print(piece, end="", flush=True)
    print(flush=True)
    if why := WHY_STOPPED.get(session.stop_reason or ""):
        note(why)
